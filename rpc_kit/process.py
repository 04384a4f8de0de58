"""What a server changes in its process while it is served: signal handlers, and how often threads are switched."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

HANDLER_TIME = 1.0
"""A signal handler that has not run after so long cannot, s."""

_ours: set[Any] = set()
_intervals: list[float] = []
_usual_interval = 0.0
_intervals_lock = threading.Lock()


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[signal.Signals], None], wakeup_descriptor: int) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`, unless the program has handlers of its own; only in the main thread.

    Parameters
    ----------
    wakeup_descriptor
        Gets a byte for each signal: one that comes just before a receive blocks would not be seen until a message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    defaults: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }

    def handle(number: int, frame: FrameType | None) -> None:
        logger.info("stopping on %s", signal.Signals(number).name)
        # The second one does what it always does.
        signal.signal(number, defaults[signal.Signals(number)])
        stop(signal.Signals(number))

    _ours.add(handle)
    taken = [number for number, default in defaults.items() if signal.getsignal(number) is default]
    for number in taken:
        signal.signal(number, handle)
    before = signal.set_wakeup_fd(wakeup_descriptor, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number in taken:
            signal.signal(number, defaults[number])
        _ours.discard(handle)


class UnheardSignal:
    """A signal that is to stop a server, and whose handler does not run: the method hangs in code that is no Python.

    Attributes
    ----------
    number : int
        Of the signal, once that is certain; else 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._came: tuple[int, float] | None = None

    def note(self, received: bytes) -> None:
        """Signals have come; their numbers."""
        for number in received:
            if self._came is None and signal.getsignal(number) in _ours:
                self._came = number, time.monotonic()

    def is_certain(self) -> bool:
        """Whether the handler had time enough, and has not run."""
        if self._came is None:
            return False
        number, came = self._came
        if signal.getsignal(number) not in _ours:
            self._came = None
        elif time.monotonic() - came > HANDLER_TIME:
            self.number = number
        return self.number > 0


@contextlib.contextmanager
def shorter_switch_interval(seconds: float | None) -> Iterator[None]:
    """The shortest interval that servers of this process ask for, until the last of them ends; None asks for none."""
    global _usual_interval
    asked = [] if seconds is None else [seconds]
    with _intervals_lock:
        if not _intervals:
            _usual_interval = sys.getswitchinterval()
        _intervals.extend(asked)
        sys.setswitchinterval(min(_intervals, default=_usual_interval))
    try:
        yield
    finally:
        with _intervals_lock:
            for each in asked:
                _intervals.remove(each)
            sys.setswitchinterval(min(_intervals, default=_usual_interval))
