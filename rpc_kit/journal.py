"""What became of each request id: a repeated id is answered again, never executed twice."""

from collections.abc import Sequence
from typing import Literal

from .messages import RequestId

State = Literal["unknown", "pending", "done"]

Kept = Sequence[bytes | bytearray | memoryview]


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
        self._entries = entries
        self._largest = largest
        self._capacity = capacity
        self._room = capacity
        self._pending: set[RequestId] = set()
        self._young: dict[RequestId, Kept | None] = {}
        self._old: dict[RequestId, Kept | None] = {}

    def begin(self, request_id: RequestId) -> bool:
        """Note a request; False when its id is known already."""
        if request_id in self._pending or request_id in self._young or request_id in self._old:
            return False
        self._pending.add(request_id)
        return True

    def state(self, request_id: RequestId) -> State:
        """What is known of an id."""
        if request_id in self._pending:
            return "pending"
        return "done" if request_id in self._young or request_id in self._old else "unknown"

    def reply(self, request_id: RequestId) -> Kept | None:
        """The reply to an id that is done; None when it was too large to keep."""
        return self._young[request_id] if request_id in self._young else self._old[request_id]

    def finish(self, request_id: RequestId, frames: Kept) -> None:
        """Note the reply to a pending request."""
        self._pending.discard(request_id)
        size = sum(map(len, frames))
        small = size <= self._largest
        self._young[request_id] = frames if small else None
        self._room -= size if small else 0
        if len(self._young) >= self._entries or self._room <= 0:
            self._old, self._young, self._room = self._young, {}, self._capacity
