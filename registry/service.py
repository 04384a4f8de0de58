"""The registry as a service: an RPC server that also answers the messages of the registry protocol."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rpc_kit import RPCServer
from rpc_kit.addresses import Address
from rpc_kit.dispatch import Handler, Pending
from rpc_kit.errors import StoreError
from rpc_kit.messages import (
    AnyRequest,
    CheckAlive,
    Entry,
    EventType,
    Malformed,
    Register,
    Renew,
    Scalar,
    Unregister,
)
from rpc_kit.sockets import ZmqContext
from rpc_kit.wire import Frames, registry_frame, unsupported_frame

from .callbacks import STOP_TIME, Callbacks, DeviceCallback
from .directory import Directory, Kind
from .interface import Registry
from .stores.base import Store
from .stores.memory import MemoryStore
from .table import Reason

logger = logging.getLogger(__name__)

LARGEST_REQUEST = 1 << 20
"""Nobody has more to say to a registry, bytes; a thousand renewals are 60 KB."""
WORKERS = 16
"""So many changes are stored at a time when the store is asked over a network."""
MOST_PENDING = 256
"""So many may wait for that."""
PATIENCE = 2.0
"""Devices wait for so long: what comes to its turn later is not done, s."""


class DeviceRegistry(Registry, RPCServer):
    """A registry of devices: to be run by `run`, or on a thread of its own by `start`.

    Parameters
    ----------
    context : zmq.Context
    addr : str, default "*"
        Host or interface to listen on; ``127.0.0.1`` keeps it on this host.
    port : str or int, default "5555"
        0 for any free one; `url` tells which.
    store : Store, optional
        Where entries are kept; in memory unless told otherwise.

    Raises
    ------
    OSError
        When the address cannot be bound.
    StoreError
        When the store cannot be used (an OSError, too).
    """

    def __init__(
        self, context: ZmqContext, addr: str = "*", port: str | int = "5555", store: Store | None = None
    ) -> None:
        self._thread = threading.Thread(target=self.run, name="rpc-registry", daemon=True)
        self._callbacks = Callbacks()
        self._is_ending = False
        self._room = threading.Semaphore(MOST_PENDING)
        store = store or MemoryStore()
        self._workers = ThreadPoolExecutor(WORKERS, "rpc-registry-store") if store.is_remote else None
        url = str(Address("tcp", addr.strip("[]"), 0))
        super().__init__(context, url.rpartition(":")[0] + f":{port}", remote_stop=False, max_request=LARGEST_REQUEST)
        try:
            self._directory = Directory(store, self._announce)
        except BaseException:
            self.stop_server()
            raise

    def list(self, device_type: str | None = None, **metadata: Scalar) -> "list[Entry]":
        return self._directory.entries(device_type, metadata)

    def find(self, name: str) -> Entry:
        return self._directory.find(name)

    def wait_for(self, name: str, timeout: float) -> "Future[Entry]":  # type: ignore[override]
        # A server may return a future: others are served meanwhile.
        return self._directory.wait_for(name, timeout)

    def evict(self, name: str) -> "Entry | Future[Entry]":  # type: ignore[override]
        return self._workers.submit(self._directory.evict, name) if self._workers else self._directory.evict(name)

    def start(self) -> None:
        """Serve on the registry's own thread."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the registry's own thread has ended, `timeout` seconds at most."""
        self._thread.join(timeout)

    def run(self) -> None:
        """Serve on the calling thread until `stop`."""
        timekeeper = threading.Thread(target=self._directory.keep_time, name="rpc-registry-expiry", daemon=True)
        timekeeper.start()
        self._callbacks.start()
        try:
            self.serve_forever()
        except RuntimeError:
            if not self._is_ending:
                raise
            # Stopped before this thread had begun to serve.
        finally:
            self._close()
            timekeeper.join(STOP_TIME)

    def stop(self) -> None:
        """End the registry; from any thread or signal handler, any number of times."""
        self._is_ending = True
        self.stop_server()
        if self._rpc.serving is None:
            self._close()

    def get_devices(self) -> dict[str, tuple[str, str]]:
        """The registered devices: name to ``(device_type, address)``."""
        return {entry.name: (entry.device_type, entry.address) for entry in self._directory.entries()}

    def add_new_device_callback(self, callback: DeviceCallback) -> None:
        """Call `callback` with ``(device_type, address, name)`` for each new device, on a thread of the registry."""
        self._callbacks.add(callback, removed=False)

    def add_device_removed_callback(self, callback: DeviceCallback) -> None:
        """Call `callback` with ``(device_type, address, name)`` for each device that left or died."""
        self._callbacks.add(callback, removed=True)

    def _close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)
        self._directory.close()
        self._callbacks.stop()

    def _control_handlers(self) -> Mapping[type, Handler]:
        return {
            Register: self._writing(self._register),
            Unregister: self._writing(self._unregister),
            CheckAlive: self._writing(self._check_alive),
            Renew: self._writing(self._renew),
            Malformed: lambda request: [unsupported_frame(request, str(request.error))],
        }

    def _writing(self, handler: Callable[[Any], Frames]) -> Handler:
        """The handler of a request that changes something; whatever is wrong with it is told."""

        def answer(request: AnyRequest) -> Frames:
            try:
                return handler(request)
            except (ValueError, StoreError) as exc:
                return _refusal(request, exc)

        workers = self._workers
        if workers is None:
            return answer
        return lambda request: self._queue(workers, answer, request)

    def _queue(
        self, workers: ThreadPoolExecutor, answer: Callable[[Any], Frames], request: AnyRequest
    ) -> Frames | Pending:
        if not self._room.acquire(blocking=False):
            return _refusal(request, StoreError(f"{MOST_PENDING} changes wait for the store; nothing was changed"))
        came = time.monotonic()

        def work() -> Frames:
            try:
                if time.monotonic() - came > PATIENCE:
                    return _refusal(request, StoreError("the store took too long; nothing was changed"))
                return answer(request)
            finally:
                self._room.release()

        return Pending(workers.submit(work), lambda frames: frames)

    def _register(self, request: Register) -> Frames:
        entry = self._directory.register(request.payload)
        return [registry_frame(EventType.REGISTER_ACK, {"name": entry.name, "uuid": entry.uuid})]

    def _unregister(self, request: Unregister) -> Frames:
        return [_ack(EventType.UNREGISTER, self._directory.remove(request.payload.uuid, "unregistered"))]

    def _check_alive(self, request: CheckAlive) -> Frames:
        asked = request.payload
        return [_ack(EventType.CHECK_ALIVE, not self._directory.renew({asked.uuid: asked.alive_timeout}))]

    def _renew(self, request: Renew) -> Frames:
        unknown = self._directory.renew(request.payload.leases)
        return [_ack(EventType.RENEW, not unknown, unknown=sorted(unknown))]

    def _announce(self, kind: Kind, entry: Entry, reason: Reason | None) -> None:
        if kind != "changed":
            self._callbacks.tell(kind == "removed", entry)
        try:
            if kind == "removed":
                self.device_removed.emit(entry, reason)
            else:
                (self.device_added if kind == "added" else self.device_changed).emit(entry)
        except Exception:
            logger.exception("%s cannot be announced", entry.name)


def _refusal(request: AnyRequest, exc: Exception) -> Frames:
    event = EventType(str(request.__struct_config__.tag))
    return [unsupported_frame(Malformed(exc, event, request.id), str(exc))]


def _ack(event: EventType, success: bool, **more: Any) -> bytes:
    return registry_frame(EventType.ACK, {"req_event": event, "success": success, **more})
