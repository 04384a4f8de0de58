"""Who is registered under which name, and for how long. Pure: no sockets, no threads, the clock is an argument."""

import heapq
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from rpc_kit.messages import Entry, Registration, Scalar

FIRST_LEASE = 20.0
"""How long an entry lives until its first renewal unless it asks for more, s."""
LONGEST_LEASE = 7 * 86400.0
"""A renewal may not ask for more, s."""
LONGEST_TEXT = 1024
"""Names, types and addresses are not longer."""
MOST_ADDRESSES = 32
LARGEST_METADATA = 4096
"""As JSON, bytes."""
LARGEST_TEXTS = 4096
"""All other texts of an entry together, characters."""
MAX_ENTRIES = 200_000
"""A table takes no more entries: anybody may register."""

_COMMON = ("host", "version")
"""Metadata that many devices share."""

Reason = Literal["unregistered", "expired", "replaced", "evicted"]


@dataclass(frozen=True, slots=True)
class Change:
    """What one request changes in a table; it happens as a whole.

    Attributes
    ----------
    removed : tuple of Entry
        What goes first, and `reason` why.
    added : Entry or None
        What comes then; in the place of the entry with the same uuid, if there is one.
    lease : float or None
        How long `added` lives from now, s; None when its end is seen to by somebody else.
    """

    removed: tuple[Entry, ...] = ()
    reason: Reason = "replaced"
    added: Entry | None = None
    lease: float | None = None


class Table:
    """The registered devices.

    A change is planned first, which changes nothing, so that it can be stored before it is applied.

    Parameters
    ----------
    clock
        Seconds on a clock that never jumps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._by_name: dict[str, Entry] = {}
        self._by_address: dict[str, Entry] = {}
        self._by_type: dict[str, dict[str, Entry]] = {}
        self._ends: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []
        self._taken_up_to: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def plan(self, asked: Registration, now: float) -> Change:
        """What entering a device would change.

        An entry at the same address goes first, whatever its name; with `overwrite` also the one of that name. The
        name is the proposed one or ``<type>-0``, and with ``-1``, ``-2`` … when it is taken. A known uuid keeps its
        name.

        Parameters
        ----------
        now
            Unix seconds.

        Raises
        ------
        ValueError
            When a text is empty, too long or not printable, or the table is full.
        """
        lease = FIRST_LEASE if asked.alive_timeout is None else check_lease(asked.alive_timeout)
        _check(asked)
        known = self._entries.get(asked.uuid)
        takes_name = asked.overwrite and known is None
        found = [self._by_address.get(asked.addr), self._by_name.get(asked.name) if takes_name else None]
        removed = {each.uuid: each for each in found if each is not None and each is not known}
        if known is None and len(self._entries) - len(removed) >= MAX_ENTRIES:
            raise ValueError(f"the registry is full: {MAX_ENTRIES} devices")
        entry = Entry(
            known.uuid if known else str(uuid.uuid4()),
            known.name if known else self._free_name(asked, {each.name for each in removed.values()}),
            asked.device_type,
            asked.addr,
            tuple(dict.fromkeys([asked.addr, *asked.addresses])),
            asked.interface,
            asked.interface_hash,
            asked.epoch,
            asked.metadata,
            known.registered if known else now,
        )
        return Change(tuple(removed.values()), "replaced", compact(entry), lease)

    def apply(self, change: Change) -> None:
        """Make a change."""
        for entry in change.removed:
            self._remove(entry.uuid)
        if change.added is None:
            return
        entry = change.added
        known = self._entries.get(entry.uuid)
        if known is not None:
            self._forget(known)
        self._entries[entry.uuid] = self._by_name[entry.name] = self._by_address[entry.address] = entry
        if known is None or known.device_type == entry.device_type:
            self._by_type.setdefault(entry.device_type, {})[entry.uuid] = entry
        else:
            self._leave_type(known)
            # Not behind those that came later.
            alike = [each for each in self._entries.values() if each.device_type == entry.device_type]
            self._by_type[entry.device_type] = {each.uuid: each for each in alike}
        if change.lease is not None:
            self._lease(entry.uuid, change.lease)

    def renew(self, key: str, lease: float) -> bool:
        """Let an entry live for `lease` seconds from now; False when the uuid is unknown."""
        if key not in self._entries:
            return False
        if key in self._ends:
            self._lease(key, lease)
        return True

    def due(self) -> tuple[Entry, ...]:
        """The entries whose lease has ended."""
        now, gone = self._clock(), {}
        while self._due and self._due[0][0] <= now:
            found, key = heapq.heappop(self._due)
            end = self._ends.get(key)
            if end == found:
                gone[key] = self._entries[key]
            elif end is not None:
                # It has been renewed meanwhile; its turn may come in this round, behind others.
                heapq.heappush(self._due, (end, key))
        return tuple(gone.values())

    def next_end(self) -> float | None:
        """When the next lease may end, on the table's clock; or earlier."""
        return self._due[0][0] if self._due else None

    def get(self, key: str) -> Entry | None:
        """The entry of that uuid."""
        return self._entries.get(key)

    def find(self, name: str) -> Entry | None:
        """The entry of that name."""
        return self._by_name.get(name)

    def entries(self, device_type: str | None = None, metadata: Mapping[str, Scalar] | None = None) -> list[Entry]:
        """All entries, or those of one type or with these metadata, in the order of their registration."""
        found: Iterable[Entry]
        found = self._entries.values() if device_type is None else self._by_type.get(device_type, {}).values()
        return [each for each in found if matches(each, metadata)] if metadata else list(found)

    def _free_name(self, asked: Registration, freed: set[str]) -> str:
        base = asked.name or asked.device_type
        candidate = asked.name or f"{base}-0"
        lower = [before for other, before in map(_numbered, freed) if other == base]
        number = min([self._taken_up_to.get(base, 0), *lower])
        while candidate in self._by_name and candidate not in freed:
            number += 1
            candidate = f"{base}-{number}"
            if number > 1:
                # Where the next search begins; the name itself is not taken yet.
                self._taken_up_to[base] = number - 1
        return candidate

    def _lease(self, key: str, lease: float) -> None:
        before = self._ends.get(key)
        end = self._ends[key] = self._clock() + lease
        if before is not None and before <= end:
            return  # an earlier end of it is due before, and then this one is looked up
        heapq.heappush(self._due, (end, key))
        if len(self._due) > 4 * len(self._ends) + 64:
            # Each shorter lease leaves a longer one behind.
            self._due = [(end, each) for each, end in self._ends.items()]
            heapq.heapify(self._due)

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._ends.pop(key, None)
            self._forget(entry)
            self._leave_type(entry)

    def _leave_type(self, entry: Entry) -> None:
        alike = self._by_type[entry.device_type]
        del alike[entry.uuid]
        if not alike:
            del self._by_type[entry.device_type]

    def _forget(self, entry: Entry) -> None:
        for index, value in ((self._by_name, entry.name), (self._by_address, entry.address)):
            if index.get(value) is entry:
                del index[value]
        # The search for a free name begins at the lowest that may be free.
        base, before = _numbered(entry.name)
        if before < self._taken_up_to.get(base, 0):
            self._taken_up_to[base] = before
            if not before:
                del self._taken_up_to[base]


def _numbered(name: str) -> tuple[str, int]:
    """Of a name that ends with a number: what stands before, and the number before that one, at least 0."""
    base, _, number = name.rpartition("-")
    return (base, max(int(number) - 1, 0)) if number.isascii() and number.isdigit() else (name, 0)


def compact(entry: Entry) -> Entry:
    """The entry, sharing with others what many have in common."""
    share = sys.intern
    return replace(
        entry,
        device_type=share(entry.device_type),
        addresses=(entry.address, *entry.addresses[1:]) if entry.addresses else (),
        interface=share(entry.interface),
        interface_hash=share(entry.interface_hash),
        metadata={
            share(key): share(value) if isinstance(value, str) and key in _COMMON else value
            for key, value in entry.metadata.items()
        },
    )


def matches(entry: Entry, metadata: Mapping[str, Scalar]) -> bool:
    """Whether an entry has all these metadata."""
    return all(key in entry.metadata and entry.metadata[key] == value for key, value in metadata.items())


def check_lease(lease: float) -> float:
    """The lease; raises ValueError when it is not a positive number, or longer than a week."""
    if not 0 < lease <= LONGEST_LEASE:
        raise ValueError(f"a lease is a number of seconds up to {LONGEST_LEASE:.0f}, not {lease}")
    return lease


def _check(asked: Registration) -> None:
    texts = (asked.device_type, asked.addr, asked.name, asked.interface, asked.interface_hash, asked.epoch)
    needed = (asked.device_type, asked.addr, *asked.addresses)
    if not all(needed) or max(map(len, (*texts, *needed))) > LONGEST_TEXT:
        raise ValueError(f"device type and addresses are texts of 1 to {LONGEST_TEXT} characters")
    if not all(map(str.isprintable, (*texts, *asked.addresses, *asked.metadata))):
        raise ValueError("device type, addresses, name and the names of metadata are printable texts")
    if len(asked.addresses) > MOST_ADDRESSES:
        raise ValueError(f"a device has {MOST_ADDRESSES} addresses at most, not {len(asked.addresses)}")
    size = len(msgspec.json.encode(asked.metadata)) if asked.metadata else 0
    if size > LARGEST_METADATA:
        raise ValueError(f"metadata have {LARGEST_METADATA} bytes at most, not {size}")
    if sum(map(len, (*texts, *asked.addresses))) > LARGEST_TEXTS:
        raise ValueError(f"names and addresses have {LARGEST_TEXTS} characters together at most")
