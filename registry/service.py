"""The registry as a service: an RPC server that also answers the messages of the registry protocol."""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from rpc_kit import RPCServer, RPCSignal
from rpc_kit.addresses import Address
from rpc_kit.errors import DeviceNotFound
from rpc_kit.messages import CheckAlive, EventType, Malformed, Register, Unregister
from rpc_kit.sockets import ZmqContext
from rpc_kit.wire import Frames, registry_frame, unsupported_frame

from .table import Entry, Table

logger = logging.getLogger(__name__)

DeviceCallback = Callable[[str, str, str], object]

LONGEST_BACKLOG = 100_000
"""So many callbacks may wait behind one that blocks."""
STOP_TIME = 5.0
"""How long stopping waits for a callback that blocks, s."""


class Registry(ABC):
    """The interface of a registry; clients of it are made as of any other interface."""

    device_added = RPCSignal(str, str, str)
    """Device type, address, name."""
    device_removed = RPCSignal(str, str, str)
    """Device type, address, name."""

    @RPCServer.register_method_json
    @abstractmethod
    def list(self, device_type: str | None = None) -> "list[Entry]":
        """The registered devices, all or those of one type, in the order of their registration."""

    @RPCServer.register_method_json
    @abstractmethod
    def find(self, name: str) -> Entry:
        """The device of that name.

        Raises
        ------
        DeviceNotFound
            When there is none.
        """


class RegistryServer(Registry, RPCServer):
    """Serves a table of devices; `notify` hears of every change as ``(added, entry)``."""

    def __init__(self, context: ZmqContext, url: str, notify: Callable[[bool, Entry], None]) -> None:
        self._table = Table(time.monotonic)
        self._notify = notify
        self._changed = threading.Condition()
        self._expiring = True
        super().__init__(context, url, remote_stop=False)

    def list(self, device_type: str | None = None) -> "list[Entry]":
        with self._changed:
            return self._table.entries(device_type)

    def find(self, name: str) -> Entry:
        with self._changed:
            entry = self._table.find(name)
        if entry is None:
            raise DeviceNotFound(f"no device is registered as {name!r}")
        return entry

    def expire(self) -> None:
        """Remove entries as their leases end, until `stop_expiring`."""
        with self._changed:
            while self._expiring:
                for entry in self._table.expire():
                    logger.info("%s at %s has not renewed its lease", entry.name, entry.address)
                    self._announce(False, entry)
                end = self._table.next_end()
                self._changed.wait(None if end is None else max(0.0, end - time.monotonic()))

    def stop_expiring(self) -> None:
        """End `expire`."""
        with self._changed:
            self._expiring = False
            self._changed.notify()

    def _control_handlers(self) -> Mapping[type, Any]:
        return {
            Register: self._register,
            Unregister: self._unregister,
            CheckAlive: self._check_alive,
            Malformed: self._unsupported,
        }

    def _register(self, request: Register) -> Frames:
        asked = request.payload
        with self._changed:
            try:
                entry, removed = self._table.register(asked.device_type, asked.addr, asked.name, asked.overwrite)
            except ValueError as exc:
                return [unsupported_frame(Malformed(exc, EventType.REGISTER, request.id), str(exc))]
            for gone in removed:
                self._announce(False, gone)
            self._announce(True, entry)
            self._changed.notify()
        return [registry_frame(EventType.REGISTER_ACK, {"name": entry.name, "uuid": entry.uuid})]

    def _unregister(self, request: Unregister) -> Frames:
        with self._changed:
            entry = self._table.unregister(request.payload.uuid)
            if entry is not None:
                self._announce(False, entry)
        return [_ack(EventType.UNREGISTER, entry is not None)]

    def _check_alive(self, request: CheckAlive) -> Frames:
        with self._changed:
            try:
                first = self._table.next_end()
                known = self._table.renew(request.payload.uuid, request.payload.alive_timeout)
            except ValueError as exc:
                return [unsupported_frame(Malformed(exc, EventType.CHECK_ALIVE, request.id), str(exc))]
            if self._table.next_end() != first:
                self._changed.notify()
        return [_ack(EventType.CHECK_ALIVE, known)]

    def _unsupported(self, request: Malformed) -> Frames:
        return [unsupported_frame(request, str(request.error))]

    def _announce(self, added: bool, entry: Entry) -> None:
        self._notify(added, entry)
        signal = self.device_added if added else self.device_removed
        try:
            signal.emit(entry.device_type, entry.address, entry.name)
        except Exception:
            logger.exception("%s cannot be announced", entry.name)


def _ack(event: EventType, success: bool) -> bytes:
    return registry_frame(EventType.ACK, {"req_event": event, "success": success})


class DeviceRegistry:
    """A registry of devices on a thread of its own.

    Parameters
    ----------
    context : zmq.Context
    addr : str, default "*"
        Host or interface to listen on; ``127.0.0.1`` keeps it on this host.
    port : str or int, default "5555"
        0 for any free one; `url` tells which.

    Raises
    ------
    OSError
        When the address cannot be bound.
    """

    def __init__(self, context: ZmqContext, addr: str = "*", port: str | int = "5555") -> None:
        self._thread = threading.Thread(target=self.run, name="rpc-registry", daemon=True)
        self._added: list[DeviceCallback] = []
        self._removed: list[DeviceCallback] = []
        self._news: queue.Queue[tuple[bool, Entry] | None] = queue.Queue(LONGEST_BACKLOG)
        self._ending = False
        url = str(Address("tcp", addr.strip("[]"), 0))
        self._server = RegistryServer(context, url.rpartition(":")[0] + f":{port}", self._tell)

    @property
    def url(self) -> str:
        """Where the registry listens, with the port it got."""
        return self._server.url

    def start(self) -> None:
        """Serve on the registry's own thread."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the registry's own thread has ended, `timeout` seconds at most."""
        self._thread.join(timeout)

    def run(self) -> None:
        """Serve on the calling thread until `stop`."""
        helpers = [
            threading.Thread(target=self._server.expire, name="rpc-registry-expiry", daemon=True),
            threading.Thread(target=self._call_back, name="rpc-registry-callbacks", daemon=True),
        ]
        for helper in helpers:
            helper.start()
        try:
            self._server.serve_forever()
        except RuntimeError:
            if not self._ending:
                raise
            # Stopped before this thread had begun to serve.
        finally:
            self._server.stop_expiring()
            self._forget_news()
            for helper in helpers:
                helper.join(STOP_TIME)

    def stop(self) -> None:
        """End the registry; from any thread or signal handler, any number of times."""
        self._ending = True
        self._server.stop_server()

    def get_devices(self) -> dict[str, tuple[str, str]]:
        """The registered devices: name to ``(device_type, address)``."""
        return {entry.name: (entry.device_type, entry.address) for entry in self._server.list()}

    def add_new_device_callback(self, callback: DeviceCallback) -> None:
        """Call `callback` with ``(device_type, address, name)`` for each new device, on a thread of the registry."""
        self._added.append(_checked(callback))

    def add_device_removed_callback(self, callback: DeviceCallback) -> None:
        """Call `callback` with ``(device_type, address, name)`` for each device that left or died."""
        self._removed.append(_checked(callback))

    def _tell(self, added: bool, entry: Entry) -> None:
        try:
            self._news.put_nowait((added, entry))
        except queue.Full:
            logger.error("a callback blocks: %s is not announced to callbacks", entry.name)

    def _forget_news(self) -> None:
        """Make room for the mark that ends the thread of the callbacks."""
        while True:
            try:
                self._news.put_nowait(None)
                return
            except queue.Full:
                self._news.get_nowait()

    def _call_back(self) -> None:
        while (news := self._news.get()) is not None:
            added, entry = news
            for callback in list(self._added if added else self._removed):
                try:
                    callback(entry.device_type, entry.address, entry.name)
                except BaseException:  # noqa: B036 - a sys.exit() in a callback must not end them all
                    logger.exception("callback %r failed for device %s", callback, entry.name)


def _checked(callback: DeviceCallback) -> DeviceCallback:
    if not callable(callback):
        raise TypeError(f"a callback is a callable, not {type(callback).__name__}")
    return callback
