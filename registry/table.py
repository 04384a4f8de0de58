"""Who is registered under which name, and for how long. Pure: no sockets, no threads, the clock is an argument."""

import heapq
import uuid
from collections.abc import Callable
from dataclasses import dataclass

FIRST_LEASE = 20.0
"""How long an entry lives until its first renewal, s."""
LONGEST_LEASE = 7 * 86400.0
"""A renewal may not ask for more, s."""
LONGEST_TEXT = 1024
"""Names, types and addresses are not longer."""
MAX_ENTRIES = 200_000
"""A table takes no more entries: anybody may register."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered device."""

    uuid: str
    name: str
    device_type: str
    address: str


class Table:
    """The registered devices.

    Parameters
    ----------
    clock
        Seconds on a clock that never jumps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._by_name: dict[str, str] = {}
        self._by_address: dict[str, str] = {}
        self._ends: dict[str, float] = {}
        self._taken_up_to: dict[str, int] = {}
        self._due: list[tuple[float, str]] = []

    def register(
        self, device_type: str, address: str, name: str, overwrite: bool = False
    ) -> tuple[Entry, list[Entry]]:
        """Enter a device; the entry, and those that had to make room for it.

        An entry at the same address goes first, whatever its name; with `overwrite` also the one of that name. The
        name is the proposed one or ``<type>-0``, and with ``-1``, ``-2`` … when it is taken.

        Raises
        ------
        ValueError
            When a text is empty, too long or not printable, or the table is full.
        """
        texts = (device_type, address, name)
        if not device_type or not address or max(map(len, texts)) > LONGEST_TEXT:
            raise ValueError(f"device type and address are texts of 1 to {LONGEST_TEXT} characters")
        if not all(map(str.isprintable, texts)):
            raise ValueError("device type, address and name are printable texts")
        removed = [self._entries[self._by_address[address]]] if address in self._by_address else []
        if overwrite and name in self._by_name:
            removed.append(self._entries[self._by_name[name]])
        removed = list(dict.fromkeys(removed))
        if len(self._entries) - len(removed) >= MAX_ENTRIES:
            raise ValueError(f"the registry is full: {MAX_ENTRIES} devices")
        for entry in removed:
            self._remove(entry.uuid)
        entry = Entry(str(uuid.uuid4()), self._free_name(device_type, name), device_type, address)
        self._entries[entry.uuid] = entry
        self._by_name[entry.name] = self._by_address[address] = entry.uuid
        self._lease(entry.uuid, FIRST_LEASE)
        return entry, removed

    def renew(self, key: str, lease: float) -> bool:
        """Let an entry live for `lease` seconds from now; False when the uuid is unknown.

        Raises
        ------
        ValueError
            When the lease is not a positive number, or longer than a week.
        """
        if not 0 < lease <= LONGEST_LEASE:
            raise ValueError(f"a lease is a number of seconds up to {LONGEST_LEASE:.0f}, not {lease}")
        if key not in self._entries:
            return False
        self._lease(key, lease)
        return True

    def unregister(self, key: str) -> Entry | None:
        """Remove an entry; None when the uuid is unknown."""
        return self._remove(key) if key in self._entries else None

    def expire(self) -> list[Entry]:
        """Remove the entries whose lease has ended, and return them."""
        now, gone = self._clock(), []
        while self._due and self._due[0][0] <= now:
            end, key = heapq.heappop(self._due)
            if self._ends.get(key) == end:
                gone.append(self._remove(key))
        return gone

    def next_end(self) -> float | None:
        """When the next lease may end, on the table's clock."""
        return self._due[0][0] if self._due else None

    def find(self, name: str) -> Entry | None:
        """The entry of that name."""
        key = self._by_name.get(name)
        return self._entries[key] if key is not None else None

    def entries(self, device_type: str | None = None) -> list[Entry]:
        """All entries, or those of one type, in the order of their registration."""
        return [each for each in self._entries.values() if device_type in (None, each.device_type)]

    def _free_name(self, device_type: str, name: str) -> str:
        base = name or device_type
        candidate = name or f"{device_type}-0"
        number = self._taken_up_to.get(base, 0)
        while candidate in self._by_name:
            number += 1
            candidate = f"{base}-{number}"
            self._taken_up_to[base] = number
        return candidate

    def _lease(self, key: str, lease: float) -> None:
        self._ends[key] = self._clock() + lease
        heapq.heappush(self._due, (self._ends[key], key))
        if len(self._due) > 4 * len(self._entries) + 64:
            # Each renewal leaves its old end behind.
            self._due = [(end, each) for each, end in self._ends.items()]
            heapq.heapify(self._due)

    def _remove(self, key: str) -> Entry:
        entry = self._entries.pop(key)
        del self._by_name[entry.name], self._by_address[entry.address], self._ends[key]
        # The search for a free name begins at the lowest that may be free.
        base, _, number = entry.name.rpartition("-")
        if base in self._taken_up_to and number.isascii() and number.isdigit():
            self._taken_up_to[base] = min(self._taken_up_to[base], max(int(number) - 1, 0))
        self._taken_up_to.pop(entry.name, None)
        return entry
