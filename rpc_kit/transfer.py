"""How buffers travel: in shared memory on one host, else as frames of their own, compressed if the client wants it."""

import math
import operator
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, cast

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from .buffers import Bytes, Part, receive
from .compression import Codec, compress
from .errors import BufferLost, MissingExtra
from .messages import BufferHeader, Carrying, OpenStream, SlotRef
from .sharedmem import Ring, RingClient, Slot, Usage, remove_leftovers

SHARED_FROM = 256 << 10
"""From this size on a slot of shared memory is faster than a socket, bytes; measured (docs/images.md)."""
COMPRESSED_FROM = 4 << 10
"""Smaller buffers are not worth compressing, bytes."""

MOST_SHARED = 512 << 20
"""What a server takes of shared memory at most, unless it says otherwise, bytes."""
SHARED_MEMORY = "shm"
"""The path that a message took whose buffers lay in shared memory; all others are named by their transport."""

Proof = tuple[str, int] | UnsetType


def default_limit() -> int:
    """Shared memory that a server may take unless it says otherwise, bytes."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return min(MOST_SHARED, found.f_blocks * found.f_frsize // 4)


class ServerTransfer:
    """What the buffers of one server run travel in.

    Parameters
    ----------
    limit : int
        How much shared memory the server may take, bytes; 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._made: Ring | None = None
        self._pid = os.getpid()
        self._closed = limit <= 0
        if not self._closed:
            remove_leftovers()

    def describe(self) -> dict[str, Any] | None:
        """Where the shared memory is, for the inventory; None without it."""
        ring = self._ring()
        return ring.describe() if ring is not None else None

    def loan(self, shape: int | Sequence[int], dtype: Any) -> Any:
        """A writable array in a slot; in ordinary memory when there is none."""
        import numpy

        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"an array of dtype {kind} cannot be sent, as it holds Python objects")
        lengths = tuple(map(operator.index, (shape,) if isinstance(shape, int) else shape))
        size = kind.itemsize * math.prod(lengths)
        ring = self._ring() if size else None
        slot = ring.allocate(size) if ring is not None else None
        if ring is None or slot is None:
            return numpy.empty(lengths, kind)
        made = slot.array.view(kind).reshape(lengths)
        slot.freeze(made)  # also when only a view of it is sent
        return made

    def reader(self, proof: Proof) -> int | None:
        """Which reader of the shared memory a client is; None when it is none."""
        ring = self._made
        return proof[1] if ring is not None and proof is not UNSET and ring.admits(proof) else None

    def view(self, proof: Proof, ref: SlotRef) -> Any:
        """The bytes that a client has put into a slot."""
        ring = self._made
        if ring is None or self.reader(proof) is None:
            raise BufferLost("the shared memory is that of another server; nothing was executed")
        return ring.view(ref)

    def expect(self, proof: Proof, sizes: Iterable[int]) -> None:
        """Have slots free for the next arguments like these, which a client had to send: it makes none itself."""
        ring = self._made
        if ring is not None and self.reader(proof) is not None:
            # Two of each, as the last result, of which the server has not seen yet that it was picked up, keeps one.
            made = [ring.allocate(size) for size in sizes if size >= SHARED_FROM for _ in range(2)]
            made.clear()

    def load(self, request: Carrying, parts: Sequence[Part]) -> tuple[list[BufferHeader], list[Bytes]]:
        """The headers of buffers, and frames for those that need one, to the client that has sent that request."""
        return self.load_for(self.reader(request.shm), request.codec, parts)

    def load_for(
        self, reader: int | None, codec: Codec | UnsetType, parts: Sequence[Part]
    ) -> tuple[list[BufferHeader], list[Bytes]]:
        """The same for a reader of the shared memory, or a client that wants buffers compressed."""
        headers: list[BufferHeader] = []
        frames: list[Bytes] = []
        for part in parts:
            header, frame = self._load(part, reader, codec)
            headers.append(header)
            if frame is not None:
                frames.append(frame)
        return headers, frames

    def keep(self, part: Part) -> None:
        """Make the bytes independent of whoever may write to them, in a slot if possible; a loan is not copied."""
        if not part.is_fixed() and (part.size < SHARED_FROM or self.settle(part) is None):
            part.move(memoryview(bytes(part.data)))

    def settle(self, part: Part) -> tuple[Slot, int] | None:
        """The slot in which the bytes are from now on, and where they begin in it; None when there is none."""
        import numpy

        ring = self._ring()
        if ring is None:
            return None
        found = ring.find(numpy.frombuffer(part.data, numpy.uint8) if part.array is None else part.array)
        if found is None:
            slot = ring.allocate(part.size)
            if slot is None:
                return None
            part.write_to(slot.array)
            found = slot, 0
            part.move(memoryview(cast(Any, slot.array)).toreadonly())
        found[0].seal()
        part.is_settled = True
        return found

    def usage(self) -> Usage | None:
        """How much shared memory there is; None without any."""
        return self._made.usage() if self._made is not None else None

    def close(self) -> None:
        """Give the shared memory back; idempotent."""
        with self._lock:
            self._closed = True
            if self._made is not None:
                self._made.close()

    def _load(
        self, part: Part, reader: int | None, codec: Codec | UnsetType
    ) -> tuple[BufferHeader, Bytes | None]:
        if part.size >= SHARED_FROM and reader is not None:
            found = self.settle(part)
            ref = self._made.hand_over(*found, part.size, reader) if found and self._made is not None else None
            if ref is not None:
                header = part.header
                return BufferHeader(header.dtype, header.shape, header.order, header.size, ref), None
        if codec is not UNSET and part.size >= COMPRESSED_FROM:
            return compressed(part, codec)
        self.keep(part)
        return part.header, part.data

    def _ring(self) -> Ring | None:
        if self._made is None and not self._closed:
            with self._lock:
                if self._made is None and not self._closed:
                    self._made = Ring.create(self._limit) if os.getpid() == self._pid else None
                    self._closed = self._made is None
        return self._made


def compressed(part: Part, codec: Codec) -> tuple[BufferHeader, bytes]:
    """Header and frame of a buffer that is compressed."""
    part = part.in_c_order()
    header = part.header
    try:
        return replace(header, codec=codec.name), compress(part.data, header.dtype, header.shape, codec)
    except MissingExtra as exc:
        raise MissingExtra(f"at the server: {exc}") from exc


class ClientTransfer:
    """What the buffers of one client travel in.

    Parameters
    ----------
    codec : Codec, optional
        How buffers are to be compressed that come from another host.

    Attributes
    ----------
    epoch : str
        The run of the server that `attach` was told of.
    """

    def __init__(self, codec: Codec | UnsetType = UNSET) -> None:
        self.epoch = ""
        self._wanted = codec
        self._codec: Codec | UnsetType = UNSET
        self._ring: RingClient | None = None

    def attach(self, epoch: str, described: dict[str, Any] | UnsetType, is_local: bool) -> None:
        """Use the shared memory of a run of the server, if this process can; compress what comes from another host."""
        self.close()
        self._ring = RingClient.open(described) if described is not UNSET else None
        self._codec = UNSET if is_local or self._ring is not None else self._wanted
        self.epoch = epoch  # last, as other threads see by it that all is done

    def sign(self, request: Carrying | OpenStream) -> None:
        """Say in a request how its reply may travel."""
        ring = self._ring
        if ring is not None:
            request.shm = ring.proof
        elif self._codec is not UNSET:
            request.codec = self._codec

    def load(self, parts: Sequence[Part]) -> tuple[list[BufferHeader], list[Bytes], list[Slot]]:
        """Headers and frames of the buffers of a request, and the slots to be held until its reply has come."""
        headers: list[BufferHeader] = []
        frames: list[Bytes] = []
        slots: list[Slot] = []
        for part in parts:
            ring = self._ring if part.size >= SHARED_FROM else None
            slot = ring.allocate(part.size) if ring is not None else None
            if ring is None or slot is None:
                headers.append(part.header)
                frames.append(part.data)
            else:
                slot.array.data.cast("B")[:] = part.data
                slots.append(slot)
                headers.append(replace(part.header, slot=ring.reference(slot)))
        return headers, frames, slots

    def receive(self, headers: Sequence[BufferHeader], frames: Sequence[Bytes]) -> list[Any]:
        """The arrays and memoryviews of a message from the server."""
        return receive(headers, frames, self._view)

    def _view(self, ref: SlotRef) -> Any:
        ring = self._ring
        if ring is None:
            raise BufferLost("the shared memory is that of another server")
        return ring.view(ref)

    def close(self) -> None:
        """Use no shared memory any more; what was received stays. Idempotent."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()
