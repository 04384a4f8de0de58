"""The interface of a registry; clients of it are made as of any other interface."""

from abc import ABC, abstractmethod

from rpc_kit import RPCServer, RPCSignal
from rpc_kit.messages import Entry, Scalar


class Registry(ABC):
    """Knows which devices are alive, what they are called and where they are."""

    device_added = RPCSignal(Entry)
    """The new device."""
    device_removed = RPCSignal(Entry, str)
    """The device, and why: ``unregistered``, ``expired``, ``replaced`` or ``evicted``."""
    device_changed = RPCSignal(Entry)
    """The device as it is now: at other addresses, or with other metadata, under the name and uuid it had."""

    @RPCServer.register_method_json
    @abstractmethod
    def list(self, device_type: str | None = None, **metadata: Scalar) -> "list[Entry]":
        """The registered devices, all or those of one type and with these metadata, in the order of registration."""

    @RPCServer.register_method_json
    @abstractmethod
    def find(self, name: str) -> Entry:
        """The device of that name.

        Raises
        ------
        DeviceNotFound
            When there is none.
        """

    @RPCServer.register_method_json(timeout=None)
    @abstractmethod
    def wait_for(self, name: str, timeout: float) -> Entry:
        """The device of that name, as soon as there is one.

        Parameters
        ----------
        timeout : float
            How long to wait for it, s; an hour at most.

        Raises
        ------
        DeviceNotFound
            When there was none in that time.
        """

    @RPCServer.register_method_json
    @abstractmethod
    def evict(self, name: str) -> Entry:
        """Remove the device of that name, as an operator may; one that is alive registers again.

        Raises
        ------
        DeviceNotFound
            When there is none.
        """
