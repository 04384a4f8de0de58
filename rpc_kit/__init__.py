"""Use lab devices from other processes and hosts as if they were local objects."""

from .client import RPCClient
from .errors import NoResult
from .lookup import RegistryClient, connect
from .messages import RPCEvents
from .properties import RPCProperty
from .server import RPCServer
from .signals import RPCSignal
from .subscriber import RPCSignalReceiver

__all__ = [
    "NoResult",
    "RPCClient",
    "RPCEvents",
    "RPCProperty",
    "RPCServer",
    "RPCSignal",
    "RPCSignalReceiver",
    "RegistryClient",
    "connect",
]
