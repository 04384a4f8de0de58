"""The service that knows which devices are alive, what they are called and where they are."""

from rpc_kit.messages import Entry, EventType
from rpc_kit.registration import AliveCheckState, register_device, send_alive_check, unregister_device

from .interface import Registry
from .service import DeviceRegistry

__all__ = [
    "AliveCheckState",
    "DeviceRegistry",
    "Entry",
    "EventType",
    "Registry",
    "register_device",
    "send_alive_check",
    "unregister_device",
]
