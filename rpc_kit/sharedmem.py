"""Slots in shared memory, by which large arrays go from process to process without a copy.

Who holds a slot has a descriptor with a lock on it (see locked_file): exclusive while the slot is written, shared once
it can be read. Nobody counts holds: whoever gets the exclusive lock may use the slot anew. Between the hand-over and
the pick-up the server holds the slot by a ticket, which the reader clears.
"""

import hmac
import itertools
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import locked_file
from .allocation import Allocation
from .errors import BufferLost
from .locked_file import MAX_SLOTS, SLOT, TICKETS, LockedFile, Spares, forks

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

FOLDER = "/dev/shm"
PICK_UP_TIME = 30.0
"""How long a slot that was handed over waits for its reader, s."""

SlotRef = tuple[int, int, int, int, int]
"""Slot, its generation, where the bytes begin in it, how many they are, and the ticket: −1 for none."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How much shared memory there is.

    Attributes
    ----------
    limit, size : int
        What all slots together may have and do have, bytes.
    slots, held : int
        How many there are, and how many of them are in use.
    """

    limit: int
    size: int
    slots: int
    held: int

    def __str__(self) -> str:
        return f"{self.size >> 20} of {self.limit >> 20} MiB, {self.slots} slots, {self.held} held"


_holds: "dict[int, _Hold]" = {}
"""By the id of the array: kept here, as a weak reference that has died itself calls nobody."""


class _Hold:
    """Keeps a slot locked until an array dies; views of an array keep it alive."""

    def __init__(
        self,
        array: Any,
        ring: object,
        spares: Spares,
        descriptor: int,
        index: int,
        generation: int,
        start: int,
        is_sealed: bool,
    ) -> None:
        self.ring = ring
        self._spares = spares
        self._forks = forks()
        self.index = index
        self.generation = generation
        self.start = start
        self.is_sealed = is_sealed
        self._descriptor = descriptor
        self._arrays: list[weakref.ref[Any]] = []
        self._key = id(array)
        self.array = weakref.ref(array, self._release)
        _holds[self._key] = self

    def freeze(self, array: Any) -> None:
        """Make an array read-only when the slot is sealed, or has been."""
        if not self.is_sealed:
            self._arrays.append(weakref.ref(array))
        if self.is_sealed:
            array.flags.writeable = False

    def seal(self) -> None:
        if self.is_sealed:
            return
        locked_file.lock(self._descriptor, SLOT + self.index, exclusive=False)
        self.is_sealed = True
        for each in (self.array, *self._arrays):
            array = each()
            if array is not None:
                array.flags.writeable = False
        self._arrays.clear()

    def _release(self, _: object, holds: "dict[int, _Hold]" = _holds) -> None:
        # It runs in any thread, in the middle of anything: so it takes no lock. At the end modules may be gone before.
        holds.pop(self._key, None)
        self._spares.give(self._descriptor, self.index, self._forks)


class Slot:
    """A hold of a slot, by which this process writes or has written; it ends with this object and all its arrays.

    Attributes
    ----------
    array : ndarray
        The bytes, ``(size,) uint8``; writable until `seal`.
    """

    __slots__ = ("_hold", "array")

    def __init__(self, array: "NDArray[numpy.uint8]", hold: _Hold) -> None:
        self.array = array
        self._hold = hold

    def freeze(self, array: Any) -> None:
        """Make a view of the array read-only with it."""
        self._hold.freeze(array)

    def seal(self) -> None:
        """Let others read; the array becomes read-only, with all for which `Ring.find` was asked. Idempotent."""
        self._hold.seal()


class _Ticket(NamedTuple):
    slot: Slot
    reader: int
    deadline: float


class _Memory:
    """What both sides have: slots to look at and to write to."""

    def __init__(self, file: LockedFile) -> None:
        self._file = file
        self._own = object()
        _memories.add(self)

    def view(self, ref: SlotRef) -> "NDArray[numpy.uint8]":
        """The bytes that another process has put into a slot, read-only; held as long as any view of them lives.

        Raises
        ------
        BufferLost
            When they are not there any more, or this side is closed.
        """
        index = ref[0]
        with self._file as is_open:
            if not is_open:
                raise BufferLost("the shared memory is closed, or this process was forked since it was opened")
            try:
                found = self._file.hold([index], exclusive=False) if 0 <= index < MAX_SLOTS else None
                if found is not None:
                    return self._view(found[1], *ref)
            except BufferLost:
                raise
            except OSError as exc:
                raise BufferLost(f"slot {index} of the shared memory cannot be held or mapped: {exc}") from exc
            raise BufferLost(f"slot {index} of the shared memory has been used for something else")

    def close(self) -> None:
        """Close; what lives of views stays. Idempotent."""
        self._file.close()

    def _view(
        self, descriptor: int, index: int, generation: int, start: int, size: int, ticket: int
    ) -> "NDArray[numpy.uint8]":
        import numpy

        try:
            if self._file.generation(index) != generation:
                raise BufferLost(f"slot {index} of the shared memory has been used for something else since")
            extent = self._extent(index)
            if not 0 <= start <= start + size <= extent[1]:
                raise BufferLost(f"slot {index} of the shared memory holds no {size} bytes at {start}")
            memory = memoryview(self._file.memory(index, extent, writable=self._writes_all)).toreadonly()
            array = numpy.frombuffer(memory, numpy.uint8, size, start)
            _Hold(array, self._own, self._file.spares, descriptor, index, generation, start, is_sealed=True)
        except BaseException:
            os.close(descriptor)
            raise
        self._file.clear_ticket(ticket)
        return array

    def _slot(self, index: int, descriptor: int, size: int) -> Slot:
        """A slot that was taken exclusively, to be written."""
        import numpy

        try:
            generation = self._file.next_generation(index)
            memory = self._file.memory(index, self._extent(index), writable=True)
            array = numpy.frombuffer(memory, numpy.uint8, size)
            hold = _Hold(array, self._own, self._file.spares, descriptor, index, generation, 0, is_sealed=False)
            return Slot(array, hold)
        except BaseException:
            os.close(descriptor)
            raise

    _writes_all = False

    def _extent(self, index: int) -> tuple[int, int]:
        return self._file.extent(index)

    def _forget(self) -> None:
        """In a forked child; holds of its views stay."""
        self._file.forget()


_memories: "weakref.WeakSet[_Memory]" = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_memories):
        each._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def remove_leftovers(folder: str = FOLDER) -> None:
    """Remove what servers of the same user have left that were killed."""
    if locked_file.is_supported():
        locked_file.remove_leftovers(folder)


class Ring(_Memory):
    """The shared memory of one run of a server: its slots are lent, handed over, and used anew when nobody holds them.

    Attributes
    ----------
    path : str
        The file; gone when the ring is closed, or the process ends.
    limit : int
        What all slots together may have, bytes.
    """

    _writes_all = True

    def __init__(self, file: LockedFile, limit: int, clock: Callable[[], float]) -> None:
        # Handlers of signals and finalizers may close the ring in the middle of an allocation.
        self._lock = threading.RLock()
        self.path = file.path
        self.limit = limit
        self._clock = clock
        self._slots = Allocation(file, limit)
        self._tickets: dict[int, _Ticket] = {}
        self._unused = deque(range(TICKETS))
        self._numbers = itertools.count(secrets.randbits(40))  # others than those of another run
        self._secret = file.secret.encode()
        self._unlink = weakref.finalize(self, locked_file.unlink, file.path)
        super().__init__(file)

    @staticmethod
    def create(limit: int, folder: str = FOLDER, clock: Callable[[], float] = time.monotonic) -> "Ring | None":
        """A ring without slots, of up to `limit` bytes; None where there is no shared memory.

        What servers of the same user have left that were killed is removed.
        """
        if limit <= 0 or not locked_file.is_supported():
            return None
        remove_leftovers(folder)
        file = LockedFile.create(folder)
        return Ring(file, limit, clock) if file is not None else None

    def describe(self) -> dict[str, Any]:
        """What a client needs to open the ring."""
        return {"path": self.path}

    def admits(self, proof: tuple[str, int]) -> bool:
        """Whether that is the proof of a client that has had the ring open; `_sweep` sees whether it lives still."""
        return self._file.is_open and hmac.compare_digest(proof[0].encode(errors="replace"), self._secret)

    def allocate(self, size: int) -> Slot | None:
        """A slot that nobody holds, to be written; None when there is no memory left for one."""
        with self._lock, self._file as is_open:
            if not is_open:
                return None
            self._sweep()
            try:
                found = self._slots.take(size)
                return self._slot(*found, size) if found is not None else None
            except OSError:
                # Too many descriptors or mappings: without shared memory it works, too.
                return None

    def find(self, array: Any) -> tuple[Slot, int] | None:
        """The slot in which a C-contiguous array lies, and where it begins there; None when it lies in none.

        The array, and what it is a view of, become read-only when the slot is sealed.
        """
        import numpy

        if not self._file.is_open or not array.flags.c_contiguous or not array.size:
            return None
        # The usual case is all of a loan: its base is the array that the slot is known by.
        base: Any = array.base
        hold = _holds.get(id(base))
        if hold is not None and hold.ring is self._own and base.nbytes == array.nbytes:
            hold.freeze(array)
            return Slot(base, hold), hold.start
        passed: list[Any] = []
        base, hold = array, None
        while base is not None:
            if isinstance(base, numpy.ndarray):
                passed.append(base)
                hold = _holds.get(id(base))
            if hold is not None or not isinstance(base, (numpy.ndarray, memoryview)):
                break
            base = base.obj if isinstance(base, memoryview) else base.base
        if hold is None or hold.ring is not self._own:
            return None
        first = _address(array) - _address(base)
        if not 0 <= first <= first + array.nbytes <= base.nbytes:
            return None
        for each in passed:
            hold.freeze(each)
        return Slot(base, hold), hold.start + first

    def hand_over(self, slot: Slot, offset: int, size: int, reader: int) -> SlotRef | None:
        """Seal a slot and let a reader have a part of it; None when too many wait for their readers.

        The slot is held until the reader has it, is dead, or has let `PICK_UP_TIME` pass.
        """
        hold = slot._hold
        with self._lock, self._file as is_open:
            if not is_open or hold.ring is not self._own:
                return None
            if not self._unused:
                self._sweep()
                if not self._unused:
                    return None
            slot.seal()
            index = self._unused.popleft()
            # The number is never used again: who comes too late does not clear the ticket of another one.
            ticket = next(self._numbers) * TICKETS + index
            self._file.set_ticket(ticket)
            self._tickets[index] = _Ticket(slot, reader, self._clock() + PICK_UP_TIME)
            return hold.index, hold.generation, offset, size, ticket

    def usage(self) -> Usage:
        """How much there is, and how much of it is in use."""
        with self._lock, self._file as is_open:
            if not is_open:
                return Usage(self.limit, 0, 0, 0)
            self._sweep()
            used = self._slots.used
            return Usage(self.limit, self._slots.size, len(used), sum(map(self._file.is_held, used)))

    def close(self) -> None:
        """Remove the file; what lives of views stays. Idempotent."""
        with self._lock:
            self._unlink()
            self._tickets.clear()
            super().close()

    def _forget(self) -> None:
        super()._forget()
        self._lock = threading.RLock()
        self._unlink.detach()
        # What waits for a reader is the parent's.
        self._tickets.clear()

    def _extent(self, index: int) -> tuple[int, int]:
        return self._slots.extent(index)

    def _sweep(self) -> None:
        """Drop the tickets that were cleared, or that nobody will clear."""
        if not self._tickets:
            return
        now, alive = self._clock(), dict[int, bool]()
        for index, ticket in list(self._tickets.items()):
            if self._file.has_ticket(index) and now < ticket.deadline:
                if ticket.reader not in alive:
                    alive[ticket.reader] = self._file.is_reader(ticket.reader)
                if alive[ticket.reader]:
                    continue
            # A handler of a signal may have closed the ring meanwhile.
            self._tickets.pop(index, None)
            self._unused.append(index)


class RingClient(_Memory):
    """A server's shared memory, as a client of the same user on the same host has it.

    Attributes
    ----------
    proof : tuple of str and int
        By this the server knows that this client has the memory open.
    """

    def __init__(self, file: LockedFile, reader: int) -> None:
        self.proof = file.secret, reader
        super().__init__(file)

    @staticmethod
    def open(described: dict[str, Any], folder: str = FOLDER) -> "RingClient | None":
        """The ring that a server describes; None when it is not there, or not what it should be."""
        path = described.get("path") if isinstance(described, dict) else None
        # Whoever answers as a server must not make us open anything else.
        if not locked_file.is_supported() or not isinstance(path, str) or os.path.dirname(path) != folder:
            return None
        file = LockedFile.open(path) if locked_file.NAME.fullmatch(os.path.basename(path)) else None
        reader = file.become_reader() if file is not None else None
        return RingClient(file, reader) if file is not None and reader is not None else None

    def allocate(self, size: int) -> Slot | None:
        """A slot that nobody holds, to be written; None when the server has made none that is large enough."""
        with self._file as is_open:
            if not is_open or size < 0:
                return None
            capacities = {index: self._extent(index)[1] for index in range(self._file.count)}
            fitting = [index for index, capacity in capacities.items() if capacity >= max(size, 1)]
            try:
                found = self._file.hold(sorted(fitting, key=capacities.__getitem__), exclusive=True)
                if found is None:
                    return None
                if self._extent(found[0])[1] != capacities[found[0]]:  # retired just before it was held
                    os.close(found[1])
                    return None
                return self._slot(*found, size)
            except OSError:
                return None

    def reference(self, slot: Slot) -> SlotRef:
        """Seal a slot and say where it is; the caller keeps it until the server has read it."""
        slot.seal()
        hold = slot._hold
        return hold.index, hold.generation, hold.start, slot.array.nbytes, -1


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])
