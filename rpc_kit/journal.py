"""What became of each request id: a repeated id is answered again, never executed twice."""

from collections.abc import Sequence
from typing import Literal

from .messages import RequestId

State = Literal["unknown", "pending", "done"]

Kept = Sequence[bytes | bytearray | memoryview]

_PENDING: Kept = ()
"""Stands for a reply that is not there yet."""


class Journal:
    """The latest request ids of a server, with their replies as long as these are small.

    Finished ids are kept in two generations: when the younger is full, the older is forgotten. That costs nothing per
    call, and at least the given number of ids is always known.

    Parameters
    ----------
    entries : int, default 4096
        How many finished ids are remembered at least.
    largest : int, default 65536
        Replies of more bytes are not kept: a repeated id is then told so.
    capacity : int, default 16 MiB
        When the replies of a generation have so many bytes it is full, too.
    """

    def __init__(self, entries: int = 4096, largest: int = 65536, capacity: int = 16 << 20) -> None:
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
        return "pending" if self._found(request_id) is _PENDING else "done"

    def reply(self, request_id: RequestId) -> Kept | None:
        """The reply to an id that is done; None when it was too large to keep."""
        return self._found(request_id)

    def finish(self, request_id: RequestId, frames: Kept) -> None:
        """Note the reply to a pending request."""
        size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
        if size > self._largest:
            self._young[request_id] = None
        else:
            self._young[request_id] = frames
            self._room -= size
        if len(self._young) >= self._limit or self._room <= 0:
            self._grow_old()

    def _found(self, request_id: RequestId) -> Kept | None:
        return self._young[request_id] if request_id in self._young else self._old[request_id]

    def _grow_old(self) -> None:
        pending: dict[RequestId, Kept | None] = {key: kept for key, kept in self._young.items() if kept is _PENDING}
        self._old, self._young, self._room = self._young, pending, self._capacity
        self._limit = self._entries + len(pending)
