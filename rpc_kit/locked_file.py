"""A file in memory that processes share: locks on it that the kernel drops with their owner, and a table of slots.

All locks belong to an open file description (OFD locks): they end with its last descriptor. So nothing is left locked
by whoever was killed, and what a forked child has inherited stays locked until the child, too, has closed it.
"""

import contextlib
import errno
import mmap
import os
import re
import secrets
import stat
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Self

try:
    import fcntl
except ImportError:  # not a Unix; is_supported() says so
    pass

NAME = re.compile(r"rpc-kit-[0-9a-f]{16}")
"""How the files are called."""
MAX_SLOTS = 255
TICKETS = 1024
READERS = 1 << 40
MOST_SPARES = 16
"""So many descriptors without locks are kept."""

# Locks lie far beyond what the file holds. These places are the same in every version: they tell who is alive.
OWNER = 1 << 50
SLOT = OWNER + 1024
READER = 1 << 51

# The header in words of 8 bytes: a line of general things, a line for each slot, the tickets.
_LINE = 8
_TICKET = _LINE * (MAX_SLOTS + 1)
_HEADER = 8 * (_TICKET + TICKETS)
_MAGIC = int.from_bytes(b"rpc-kit\0", sys.byteorder)
_VERSION = 1
_COUNT = 4
_FIRST = struct.Struct("=5Q")  # magic, version, secret in two words, number of slots
_FLOCK = struct.Struct("hhqqi4x")

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# Before 3.13 a mapping always keeps a descriptor.
_MAPPING: dict[str, bool] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def is_supported() -> bool:
    """Whether this platform has what is needed: so far that is Linux, with 64 bits."""
    return hasattr(os, "O_TMPFILE") and hasattr(sys.modules.get("fcntl"), "F_OFD_SETLK") and sys.maxsize > 1 << 32


def lock(descriptor: int, at: int, exclusive: bool) -> bool:
    """Lock a byte, or turn the lock there into one of the other kind; False when another description has it."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
    except OSError:
        return False
    return True


def unlock(descriptor: int, at: int) -> None:
    """Drop the lock of a byte."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, 1, 0))


class Spares:
    """Descriptors without locks, to be used again: opening and closing takes longer than locking and unlocking.

    A description that a forked child has inherited is never unlocked, only closed: the child may hold what it locks.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._is_closed = False

    def take(self) -> int | None:
        """One of them, if there is any."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, descriptor: int, index: int, forks: int) -> None:
        """Drop the lock of a slot that was locked when there had been so many forks; without waiting for anybody."""
        try:
            if forks != _forks[0] or self._is_closed or len(self._free) >= MOST_SPARES:
                os.close(descriptor)
                return
            unlock(descriptor, SLOT + index)
            self._free.append(descriptor)
        except (OSError, TypeError, AttributeError):
            return  # not an OSError: modules are gone at the end of the process
        if self._is_closed or forks != _forks[0]:
            self.drop()

    def drop(self, close: Callable[[int], None] = os.close) -> None:
        """Close all of them."""
        # At the end of the process modules may be gone before.
        while (descriptor := self.take()) is not None:
            try:
                close(descriptor)
            except OSError:
                pass

    def close(self) -> None:
        """Close all of them, and those that are given later."""
        self._is_closed = True
        self.drop()


_forks = [0]
_all_spares: "weakref.WeakSet[Spares]" = weakref.WeakSet()


def forks() -> int:
    """How many forks there have been, counted twice."""
    return _forks[0]


def _around_fork() -> None:
    # Before and after, in both processes: also what was locked by another thread in between is inherited.
    _forks[0] += 1
    for each in list(_all_spares):
        each.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_around_fork, after_in_parent=_around_fork, after_in_child=_around_fork)


def is_locked(descriptor: int, at: int) -> bool:
    """Whether another description has a lock of any kind on a byte."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def rounded(size: int, step: int = mmap.ALLOCATIONGRANULARITY) -> int:
    """The next multiple of a step."""
    return -(-size // step) * step


class LockedFile:
    """One such file, of which the header is mapped; a context manager for those who use it.

    Entering says whether it is open; whoever is inside may finish what it does before a `close` of another thread, or
    of a handler of a signal, closes the descriptor.

    Attributes
    ----------
    path : str
        Where it is, as long as it is not unlinked.
    secret : str
        Known to those who may read the file.
    """

    def __init__(self, descriptor: int, path: str = "") -> None:
        # It has the lock of the owner, or of a reader.
        self._descriptor = descriptor
        self._is_closed = False
        self._users = 0
        self._lock = threading.RLock()
        self._words = memoryview(bytes(_HEADER)).cast("Q")
        self.spares = Spares()
        _all_spares.add(self.spares)
        self._mapped: dict[tuple[int, bool], tuple[tuple[int, int], mmap.mmap]] = {}
        self.path = path
        self.secret = ""

    @classmethod
    def create(cls, folder: str) -> Self | None:
        """A new file with an empty table, whose owner is alive as long as the object; None where that is impossible.

        It gets its name when it is complete.
        """
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        made = cls(descriptor)
        try:
            os.fchmod(descriptor, 0o600)
            os.posix_fallocate(descriptor, 0, rounded(_HEADER))
            os.pwrite(descriptor, _FIRST.pack(_MAGIC, _VERSION, secrets.randbits(64), secrets.randbits(64), 0), 0)
            made._map_header()
            made.path = _link(descriptor, folder) if lock(descriptor, OWNER, exclusive=True) else ""
        except OSError:
            return None
        return made if made.path else None

    @classmethod
    def open(cls, path: str) -> Self | None:
        """A file of the same user whose owner is alive; None for everything else."""
        descriptor = _open_own(path)
        if descriptor is None:
            return None
        made = cls(descriptor, path)
        try:
            made._map_header()
            return made if made._words[1] == _VERSION and is_locked(descriptor, OWNER) else None
        except OSError:
            return None

    def _map_header(self) -> None:
        self._words = memoryview(self._map(0, _HEADER)).cast("Q")
        self.secret = f"{self._words[2]:016x}{self._words[3]:016x}"

    def __enter__(self) -> bool:
        with self._lock:
            self._users += 1
            return not self._is_closed

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._users -= 1
            if self._is_closed:
                self.close()

    def __del__(self) -> None:
        self._drop_locks()
        self.spares.close()

    def close(self) -> None:
        """Drop the locks and the mappings, as soon as nobody uses them any more; idempotent."""
        with self._lock:
            self._is_closed = True
            if self._users == 0:
                self._drop()

    def forget(self) -> None:
        """In a forked child: leave the locks to the parent. The threads that used the file are not in this process."""
        self._lock = threading.RLock()
        self._is_closed = True
        self._drop()

    def _drop(self) -> None:
        self._drop_locks()
        self.spares.close()
        self._mapped.clear()
        self._words = memoryview(bytes(_HEADER)).cast("Q")

    def _drop_locks(self, close: Callable[[int], None] = os.close) -> None:
        # When the interpreter ends, modules may be gone before this object.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close(descriptor)

    def _reopen(self) -> int:
        """A descriptor of another description, for locks of its own."""
        try:
            return os.open(self.path, _FLAGS)
        except FileNotFoundError:
            return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDWR | os.O_CLOEXEC)

    def hold(self, indexes: Iterable[int], exclusive: bool) -> tuple[int, int] | None:
        """The first of the slots that can be locked, and the descriptor with whose end its lock ends; None if none can.

        OSError when this process has too many descriptors.
        """
        descriptor, before = self.spares.take(), forks()
        if descriptor is None:
            descriptor = self._reopen()
        try:
            for index in indexes:
                if lock(descriptor, SLOT + index, exclusive):
                    return index, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        self.spares.give(descriptor, 0, before)
        return None

    def is_held(self, index: int) -> bool:
        """Whether anybody holds a slot."""
        return is_locked(self._descriptor, SLOT + index)

    def memory(self, index: int, extent: tuple[int, int], writable: bool) -> mmap.mmap:
        """A slot in memory, mapped when it is needed first; OSError when that is impossible."""
        known = self._mapped.get((index, writable))
        if known is None or known[0] != extent:
            known = self._mapped[index, writable] = extent, self._map(*extent, writable)
        return known[1]

    def _map(self, offset: int, size: int, writable: bool = True) -> mmap.mmap:
        # The mapping may keep what it is made of open, with all locks: this one has none.
        descriptor = self._reopen()
        try:
            if not 0 < size <= os.fstat(descriptor).st_size - offset:
                raise OSError(f"{self.path} has no such part")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            return mmap.mmap(descriptor, size, flags, access, offset=offset, **_MAPPING)
        finally:
            os.close(descriptor)

    def extend(self, index: int, capacity: int) -> tuple[int, int]:
        """Give a slot, held exclusively, memory behind all that there is; OSError when there is none."""
        offset = rounded(os.fstat(self._descriptor).st_size)
        system = os.fstatvfs(self._descriptor)
        # Without this a reservation in vain would first fill all memory that is left, each time.
        if system.f_blocks and system.f_bavail * system.f_frsize < capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        # Memory that turns out later not to be there would end the process by a signal.
        os.posix_fallocate(self._descriptor, offset, capacity)
        try:
            self.memory(index, (offset, capacity), writable=True)
        except BaseException:
            os.ftruncate(self._descriptor, offset)
            raise
        self._set_extent(index, offset, capacity)
        if index >= self.count:
            # Not from zero: what another run of the server has said of its slots never fits those of this one.
            self._words[_LINE * (index + 1)] += secrets.randbits(62)
            self._words[_COUNT] = index + 1
        return offset, capacity

    def retire(self, index: int, extent: tuple[int, int]) -> None:
        """Take the memory from a slot, held exclusively; OSError when that is impossible."""
        self.memory(index, extent, writable=True).madvise(mmap.MADV_REMOVE)
        self._set_extent(index, 0, 0)
        del self._mapped[index, True]

    @property
    def is_open(self) -> bool:
        return not self._is_closed

    @property
    def count(self) -> int:
        """How many slots have been made."""
        return min(self._words[_COUNT], MAX_SLOTS)

    def generation(self, index: int) -> int:
        """How often a slot has been taken."""
        return self._words[_LINE * (index + 1)]

    def next_generation(self, index: int) -> int:
        """Count that a slot was taken; for whoever has it exclusively."""
        self._words[_LINE * (index + 1)] = made = (self._words[_LINE * (index + 1)] + 1) & (1 << 64) - 1
        return made

    def extent(self, index: int) -> tuple[int, int]:
        """Offset and capacity of a slot."""
        at = _LINE * (index + 1)
        return self._words[at + 1], self._words[at + 2]

    def _set_extent(self, index: int, offset: int, capacity: int) -> None:
        at = _LINE * (index + 1)
        self._words[at + 1], self._words[at + 2] = offset, capacity

    def has_ticket(self, index: int) -> bool:
        """Whether nobody has cleared a ticket."""
        return self._words[_TICKET + index] != 0

    def set_ticket(self, ticket: int) -> None:
        self._words[_TICKET + ticket % TICKETS] = ticket + 1

    def clear_ticket(self, ticket: int) -> None:
        """Clear a ticket, unless its place has another one by now."""
        if self._words[_TICKET + ticket % TICKETS] == ticket + 1:
            self._words[_TICKET + ticket % TICKETS] = 0

    def become_reader(self) -> int | None:
        """Take a row of readers that nobody else has; None when there is none."""
        for _ in range(100):
            row = secrets.randbelow(READERS)
            if lock(self._descriptor, READER + row, exclusive=True):
                return row
        return None

    def is_reader(self, row: int) -> bool:
        """Whether somebody has that row."""
        return 0 <= row < READERS and is_locked(self._descriptor, READER + row)


def remove_leftovers(folder: str) -> None:
    """Unlink the files of the same user whose owners have died."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for path in [os.path.join(folder, name) for name in names if NAME.fullmatch(name)]:
        descriptor = _open_own(path)
        if descriptor is None:
            continue
        try:
            if not is_locked(descriptor, OWNER):
                unlink(path)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def unlink(path: str) -> None:
    """Remove a file, if it is there and may be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _open_own(path: str) -> int | None:
    """A descriptor of such a file, of any version, when it belongs to the same user and to nobody else."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o600
        # It is read with care, as it need not be one of ours.
        first = os.pread(descriptor, _FIRST.size, 0) if is_own and found.st_size >= _HEADER else b""
        if len(first) == _FIRST.size and _FIRST.unpack(first)[0] == _MAGIC:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _link(descriptor: int, folder: str) -> str:
    """Give a file without a name one that is not taken; the path."""
    numbers = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            path = os.path.join(folder, f"rpc-kit-{secrets.token_hex(8)}")
            with contextlib.suppress(FileExistsError):
                os.link(str(descriptor), path, src_dir_fd=numbers, follow_symlinks=True)
                return path
    finally:
        os.close(numbers)
