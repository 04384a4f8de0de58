"""The service that knows which devices are alive, what they are called and where they are."""

from rpc_kit.messages import EventType
from rpc_kit.registration import (
    AliveCheckState,
    find_device,
    register_device,
    send_alive_check,
    unregister_device,
)

from .service import DeviceRegistry, Registry
from .table import Entry

__all__ = [
    "AliveCheckState",
    "DeviceRegistry",
    "Entry",
    "EventType",
    "Registry",
    "find_device",
    "register_device",
    "send_alive_check",
    "unregister_device",
]
