"""What became of each request id: a repeated id is answered again, never executed twice."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from .messages import RequestId

State = Literal["unknown", "pending", "done"]

Kept = Sequence[bytes | bytearray | memoryview]


class Journal:
    """The latest request ids of a server, with their replies as long as these are small.

    Parameters
    ----------
    entries : int, default 4096
        How many ids are remembered.
    largest : int, default 65536
        Replies of more bytes are not kept: a repeated id is then told so.
    capacity : int, default 16 MiB
        How many bytes of replies are kept in all.
    """

    def __init__(self, entries: int = 4096, largest: int = 65536, capacity: int = 16 << 20) -> None:
        self._entries = entries
        self._largest = largest
        self._capacity = capacity
        self._size = 0
        self._pending: set[RequestId] = set()
        self._replies: OrderedDict[RequestId, Kept | None] = OrderedDict()

    def begin(self, request_id: RequestId) -> bool:
        """Note a request; False when its id is known already."""
        if request_id in self._pending or request_id in self._replies:
            return False
        self._pending.add(request_id)
        return True

    def state(self, request_id: RequestId) -> State:
        """What is known of an id."""
        if request_id in self._pending:
            return "pending"
        return "done" if request_id in self._replies else "unknown"

    def reply(self, request_id: RequestId) -> Kept | None:
        """The reply to an id that is done; None when it was too large to keep."""
        return self._replies[request_id]

    def finish(self, request_id: RequestId, frames: Kept) -> None:
        """Note the reply to a pending request."""
        self._pending.discard(request_id)
        size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
        if size > self._largest:
            self._replies[request_id] = None
        else:
            self._replies[request_id] = frames
            self._size += size
        while len(self._replies) > self._entries or self._size > self._capacity:
            _, oldest = self._replies.popitem(last=False)
            if oldest is not None:
                self._size -= sum(map(len, oldest))
