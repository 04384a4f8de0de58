"""Calls functions of the program for each change, on a thread of its own: one that raises or blocks harms nobody."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from rpc_kit.messages import Entry

logger = logging.getLogger(__name__)

DeviceCallback = Callable[[str, str, str], object]

LONGEST_BACKLOG = 100_000
"""So many callbacks may wait behind one that blocks."""
STOP_TIME = 5.0
"""How long stopping waits for a callback that blocks, s."""


class Callbacks:
    """Callbacks for devices that come and go."""

    def __init__(self) -> None:
        self._added: list[DeviceCallback] = []
        self._removed: list[DeviceCallback] = []
        self._news: queue.Queue[tuple[bool, Entry] | None] = queue.Queue(LONGEST_BACKLOG)
        self._thread = threading.Thread(target=self._call, name="rpc-registry-callbacks", daemon=True)

    def add(self, callback: DeviceCallback, removed: bool) -> None:
        """Call it with ``(device_type, address, name)`` for each device that is added, or for each that is removed."""
        if not callable(callback):
            raise TypeError(f"a callback is a callable, not {type(callback).__name__}")
        (self._removed if removed else self._added).append(callback)

    def tell(self, removed: bool, entry: Entry) -> None:
        """Have the callbacks called; never blocks."""
        if not (self._removed if removed else self._added):
            return
        try:
            self._news.put_nowait((removed, entry))
        except queue.Full:
            logger.error("a callback blocks: %s is not announced to callbacks", entry.name)

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    def stop(self) -> None:
        """Call no more; returns when the running callback has ended, or blocks for too long."""
        while True:
            try:
                self._news.put_nowait(None)
                break
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._news.get_nowait()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_TIME)

    def _call(self) -> None:
        while (news := self._news.get()) is not None:
            removed, entry = news
            for callback in list(self._removed if removed else self._added):
                try:
                    callback(entry.device_type, entry.address, entry.name)
                except BaseException:  # noqa: B036 - a sys.exit() in a callback must not end them all
                    logger.exception("callback %r failed for device %s", callback, entry.name)
