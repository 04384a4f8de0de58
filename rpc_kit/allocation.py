"""Which slot of shared memory is given for a size: one that nobody holds, a new one, or one in place of others."""

import os

from .locked_file import MAX_SLOTS, LockedFile, rounded


class Allocation:
    """The slots that a server has made; the caller sees to it that one thread at a time uses it.

    Attributes
    ----------
    limit : int
        What all slots together may have, bytes.
    used : list of int
        The slots that have memory, the last used one at the end.
    """

    def __init__(self, file: LockedFile, limit: int) -> None:
        self.limit = limit
        self.used: list[int] = []
        self._file = file
        # The header of the file is for the others: what they might write into it is not used here.
        self._extents: list[tuple[int, int]] = []

    def extent(self, index: int) -> tuple[int, int]:
        """Offset and capacity of a slot; zeros when it has no memory."""
        return self._extents[index] if index < len(self._extents) else (0, 0)

    @property
    def size(self) -> int:
        """What all slots together have, bytes."""
        return sum(capacity for _, capacity in self._extents)

    def take(self, size: int) -> tuple[int, int] | None:
        """A slot that is large enough, and the descriptor that holds it exclusively; None when there is none.

        OSError when this process has too many descriptors or mappings.
        """
        wanted, least = self._capacities(size)
        if size < 0 or least > self.limit:
            return None
        return (
            self._reuse(least, 2 * wanted)
            or self._grow(wanted, least)
            or self._reuse(least, self.limit)
            or (self._grow(wanted, least) if self._retire(wanted, least) else None)
        )

    def _capacities(self, size: int) -> tuple[int, int]:
        """What a slot of that size should have, in steps, so that similar sizes fit; and what it must have."""
        least = rounded(max(size, 1))
        wanted = rounded(least, 1 << max(0, least.bit_length() - 4))
        return wanted if wanted <= self.limit else least, least

    def _reuse(self, least: int, most: int) -> tuple[int, int] | None:
        """A free slot, the smallest first; of equal ones the last used, as its memory is warm."""
        fitting = [index for index in reversed(self.used) if least <= self._extents[index][1] <= most]
        if len(fitting) > 1:
            fitting.sort(key=lambda index: self._extents[index][1])
        found = self._file.hold(fitting, exclusive=True) if fitting else None
        if found is not None:
            self.used.remove(found[0])
            self.used.append(found[0])
        return found

    def _grow(self, wanted: int, least: int) -> tuple[int, int] | None:
        """A new slot, as far as there is room."""
        room = self.limit - self.size
        if least > room:
            return None
        indexes = [index for index, extent in enumerate(self._extents) if not extent[1]]
        if len(self._extents) < MAX_SLOTS:
            indexes.append(len(self._extents))
        found = self._file.hold(indexes, exclusive=True)
        if found is None:
            return None
        index, descriptor = found
        try:
            extent = self._file.extend(index, wanted if wanted <= room else least)
        except OSError:
            os.close(descriptor)
            return None
        self._extents[index : index + 1] = [extent]
        self.used.append(index)
        return found

    def _retire(self, wanted: int, least: int) -> bool:
        """Give back the memory of free slots, the longest unused first, if that makes room for a new one."""
        room = self.limit - self.size
        missing, dispensable = wanted - room, wanted - least
        if least <= room:
            # Either all slots are made, then one has to go; or the system has no memory, then it has to get some.
            missing, dispensable = 1 if len(self.used) == MAX_SLOTS else wanted, 0
        taken: dict[int, int] = {}
        try:
            for index in self.used:
                found = self._file.hold([index], exclusive=True)
                if found is not None:
                    taken[index] = found[1]
                    missing -= self._extents[index][1]
                if missing <= 0:
                    break
            for index in taken if missing <= dispensable else ():
                self._file.retire(index, self._extents[index])
                self._extents[index] = (0, 0)
                self.used.remove(index)
        finally:
            for descriptor in taken.values():
                os.close(descriptor)
        return missing <= dispensable
