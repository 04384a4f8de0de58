"""Watches a registry: every device that comes, changes or goes, also across the loss of a registry."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import zmq

from .calls import Calls
from .convert import converter
from .errors import CallTimeout, ClientClosed
from .messages import Entry, MethodCall, Ping
from .sockets import ZmqContext, is_terminated
from .subscriber import HANDSHAKE_TIMEOUT, RPCSignalReceiver
from .wire import failure_of, parse_reply

logger = logging.getLogger(__name__)

REGISTRY_LIVENESS = 1.5
"""A registry that has not answered for so long is lost, s."""
LONGEST_BACKLOG = 100_000
"""So many events may wait for a callback that blocks; after more the whole list is compared."""
PAUSE = 0.2
"""Between two tries to find a registry that answers, s."""

_SIGNALS = ("device_added", "device_changed", "device_removed")
_entry = converter(Entry)
_entries = converter(list[Entry])


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """What has happened to a device.

    Attributes
    ----------
    kind : {"added", "changed", "removed"}
    entry : Entry
        The device; as it was, when it is removed.
    reason : str
        Why it was removed: ``unregistered``, ``expired``, ``replaced``, ``evicted``, or ``gone`` when that was not
        seen, as no registry could be reached.
    """

    kind: Literal["added", "changed", "removed"]
    entry: Entry
    reason: str = ""


class RegistryWatch:
    """Calls a function for every device that is there, and for each change from then on, on a thread of its own.

    A callback that raises is logged. One that blocks holds up this watch only.
    """

    def __init__(self, context: ZmqContext, urls: Sequence[str], callback: Callable[[RegistryEvent], object]) -> None:
        if not callable(callback):
            raise TypeError(f"a callback is a callable, not {type(callback).__name__}")
        # The end of `with zmq.Context()` closes the sockets of that object, whoever uses them; those of a shadow are
        # left to their thread, which ends with the context.
        self._context: ZmqContext = zmq.Context.shadow(context)
        self._urls = list(urls)
        self._callback = callback
        self._known: dict[str, Entry] = {}
        self._news: queue.Queue[tuple[str, list[Any]]] = queue.Queue(LONGEST_BACKLOG)
        self._stopped = threading.Event()
        self._is_up = True
        self._outdated = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rpc-registry-watch", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether nothing is watched any more."""
        return self._stopped.is_set()

    def close(self) -> None:
        """Watch no more; waits for a callback that runs, 5 s at most. Idempotent."""
        self._stopped.set()
        self._put("", [])
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    def __enter__(self) -> "RegistryWatch":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self) -> None:
        for url in cycle(self._urls):
            if self._stopped.is_set() or self._context.closed:
                return
            try:
                self._watch(url)
            except ClientClosed:
                return  # with its context
            except Exception as exc:
                if is_terminated(exc):
                    return
                # Once for each outage, however often it is tried.
                logger.log(logging.WARNING if self._is_up else logging.DEBUG, "%s is not watched: %s", url, exc)
                self._is_up = False
                self._stopped.wait(PAUSE)

    def _watch(self, url: str) -> None:
        """Watch one registry until it is lost."""
        calls = Calls(self._context, url, REGISTRY_LIVENESS)
        receiver: RPCSignalReceiver | None = None
        try:
            calls.ask(Ping(), REGISTRY_LIVENESS, "PING")
            receiver = RPCSignalReceiver(self._context, calls, _SIGNALS, self._put, self._resync)
            receiver.start()
            deadline = time.monotonic() + HANDSHAKE_TIMEOUT
            while not receiver.subscribed.wait(0.1) and time.monotonic() < deadline:
                if self._stopped.is_set() or receiver.has_ended:
                    return
            if not receiver.subscribed.is_set():
                raise CallTimeout(f"no signals within {HANDSHAKE_TIMEOUT:g} s")
            if not self._is_up:
                logger.info("%s is watched", url)
            self._is_up = True
            self._outdated.set()
            while not self._stopped.is_set():
                if self._outdated.is_set():
                    self._outdated.clear()
                    self._compare(calls)
                try:
                    self._take(*self._news.get(timeout=1.0))
                except queue.Empty:
                    calls.ask(Ping(), REGISTRY_LIVENESS, "PING")
        finally:
            calls.close()
            if receiver is not None:
                receiver.stop()

    def _put(self, signal: str, args: list[Any]) -> None:
        try:
            self._news.put_nowait((signal, args))
        except queue.Full:
            self._outdated.set()

    def _resync(self, names: set[str]) -> set[str]:
        """Events were lost, or the registry was restarted."""
        self._outdated.set()
        self._put("", [])
        return set()

    def _compare(self, calls: Calls) -> None:
        """Ask for all devices, and tell what is different from what is known."""
        # What has come before is older than the list, and would bring back what was if it were taken after it.
        for _ in range(self._news.qsize()):
            news = self._news.get_nowait()
            if self._known:
                self._take(*news)
        request = MethodCall(method="list")
        reply, _ = calls.exchange(request, HANDSHAKE_TIMEOUT, "list", parse_reply)
        if not reply.success:
            raise failure_of(reply)
        there = {entry.name: entry for entry in _entries(reply.result)}
        for entry in list(self._known.values()):
            if entry.name not in there or there[entry.name].uuid != entry.uuid:
                self._remove(entry, "gone")
        for entry in there.values():
            self._enter(entry)

    def _take(self, signal: str, args: list[Any]) -> None:
        if not signal:
            return
        entry: Entry = _entry(args[0])
        if signal == "device_removed":
            self._remove(entry, str(args[1]))
        else:
            self._enter(entry)

    def _enter(self, entry: Entry) -> None:
        known = self._known.get(entry.name)
        if known is not None and known.uuid != entry.uuid:
            self._remove(known, "replaced")
            known = None
        if known != entry:
            self._known[entry.name] = entry
            self._tell(RegistryEvent("added" if known is None else "changed", entry))

    def _remove(self, entry: Entry, reason: str) -> None:
        known = self._known.get(entry.name)
        if known is not None and known.uuid == entry.uuid:
            del self._known[entry.name]
            self._tell(RegistryEvent("removed", known, reason))

    def _tell(self, event: RegistryEvent) -> None:
        if self._stopped.is_set():
            return
        try:
            self._callback(event)
        except BaseException:  # noqa: B036 - a sys.exit() in a callback must not end the watch
            logger.exception("callback %r failed for device %s", self._callback, event.entry.name)
