"""What a server changes in its process while it is served: signal handlers, and how often threads are switched."""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

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


def is_unheard(number: int) -> bool:
    """Whether the handler that stops a server upon that signal is there, and has not run: it may not be able to."""
    return signal.getsignal(number) in _ours


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
