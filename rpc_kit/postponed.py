"""Replies that come later: of methods that return a future, and of control messages that others work on."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .dispatch import Pending
from .wire import Frames

C = TypeVar("C")


class Postponed(Generic[C]):
    """Calls whose futures are not done, or whose replies have not been sent.

    Futures are done on any thread; the replies are sent by the one that has the socket, once `ring` has woken it.

    Parameters
    ----------
    settle
        Makes the reply of a future that is done; never raises.
    ring
        Wakes who sends; called by one thread at a time, and not after `close`.
    """

    def __init__(self, settle: Callable[[C, Pending], Frames], ring: Callable[[], None]) -> None:
        self._settle = settle
        self._ring = ring
        self._waiting: dict[C, Pending] = {}
        self._finished: deque[tuple[C, Frames]] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def add(self, call: C, pending: Pending) -> None:
        """Have the call replied to when its future is done."""
        self._waiting[call] = pending

        def done(future: "Future[Any]") -> None:
            self._finished.append((call, self._settle(call, pending)))
            with self._lock:
                if not self._closed:
                    self._ring()

        pending.future.add_done_callback(done)

    def take_finished(self) -> Iterator[tuple[C, Frames]]:
        """The calls that are done, with their replies; each once."""
        while self._finished:
            call, frames = self._finished.popleft()
            if self._waiting.pop(call, None) is not None:
                yield call, frames

    def give_up(self) -> list[C]:
        """The calls that are not done; their replies are dropped when they come."""
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    def close(self) -> None:
        """Ring no more."""
        with self._lock:
            self._closed = True
