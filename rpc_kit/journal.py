"""What became of each request id: a repeated id is answered again, never executed twice."""

import time
from collections.abc import Callable, Sequence
from typing import Literal

from .messages import RequestId

State = Literal["unknown", "pending", "done", "sent"]
"""A reply that is sent is no longer there, as it was too large to keep."""

Kept = Sequence[bytes | bytearray | memoryview]

_PENDING: Kept = ()
"""Stands for a reply that is not there yet."""


class Journal:
    """The latest request ids of a server, with their replies as long as these are small.

    Finished ids are kept in two generations: when the younger is full, the older is forgotten. That costs next to
    nothing per call, at least the given number of ids is known, and so is the time since when none was forgotten.

    Parameters
    ----------
    entries : int, default 4096
        How many finished ids are remembered at least.
    largest : int, default 65536
        Replies of more bytes are not kept: a repeated id is then told so.
    capacity : int, default 16 MiB
        When the replies of a generation have so many bytes it is full, too.
    clock
        Seconds on a clock that never jumps.
    """

    def __init__(
        self,
        entries: int = 4096,
        largest: int = 65536,
        capacity: int = 16 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._old_since = self._young_since = clock()
        self._entries = self._limit = entries
        self._largest = largest
        self._capacity = capacity
        self._room = capacity
        self._young: dict[RequestId, Kept | None] = {}
        self._old: dict[RequestId, Kept | None] = {}

    def begin(self, request_id: RequestId) -> bool:
        """Note a request; False when its id is known already."""
        if request_id in self._young or request_id in self._old:
            return False
        self._young[request_id] = _PENDING
        return True

    def state(self, request_id: RequestId) -> State:
        """What is known of an id."""
        if request_id not in self._young and request_id not in self._old:
            return "unknown"
        found = self.reply(request_id)
        if found is None:
            return "sent"
        return "pending" if found is _PENDING else "done"

    def covers(self, since: float) -> bool:
        """Whether every id that came after that time of the clock is known: one that is not has never come."""
        return since > self._old_since

    def reply(self, request_id: RequestId) -> Kept | None:
        """The reply to an id that is done; None to one that is sent."""
        return self._young[request_id] if request_id in self._young else self._old[request_id]

    def finish(self, request_id: RequestId, frames: Kept) -> None:
        """Note the reply to a pending request."""
        size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
        if size > self._largest:
            self._young[request_id] = None
        else:
            # A copy of what is not fixed: the device may use its buffer again.
            self._young[request_id] = frames if len(frames) == 1 else list(map(bytes, frames))
            self._room -= size
        if len(self._young) >= self._limit or self._room <= 0:
            self._grow_old()

    def _grow_old(self) -> None:
        pending: dict[RequestId, Kept | None] = {key: kept for key, kept in self._young.items() if kept is _PENDING}
        self._old, self._young, self._room = self._young, pending, self._capacity
        self._old_since, self._young_since = self._young_since, self.clock()
        self._limit = self._entries + len(pending)
