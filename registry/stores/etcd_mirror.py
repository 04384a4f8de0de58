"""What is in etcd, as far as it was heard of, and what a change needs there. Pure: no sockets, no threads."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from rpc_kit.errors import StoreError
from rpc_kit.messages import Entry

from ..table import LONGEST_TEXT, Change, Reason
from .base import Conflict

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_NUMBER = 8
"""What a name that is taken gets in addition."""


class Behind(StoreError):
    """What happened since a revision is not told any more: all is to be listed again."""


class KeyValue(Struct, frozen=True):
    """A key of etcd as its gateway sends it; `lease` is 0 for a key that stays."""

    key: bytes
    value: bytes = b""
    mod_revision: int = 0
    create_revision: int = 0
    lease: int = 0


class Event(Struct, frozen=True):
    """What became of a key."""

    kv: KeyValue
    type: Literal["PUT", "DELETE"] = "PUT"


class Kept(Struct):
    """The value below the name of a device; `lease` is the length that was asked for, s."""

    entry: Entry
    lease: int


class Removal(Struct):
    """The value that says why the keys that were deleted at the same revision are gone."""

    uuids: list[str]
    reason: Reason


@dataclass(frozen=True, slots=True)
class Record:
    """A device in etcd."""

    entry: Entry
    lease: int
    lease_id: int
    revision: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a change does in etcd, as its gateway wants it.

    Attributes
    ----------
    keys : tuple of bytes
        All that it relies on.
    lease_id : int
        The lease of what it puts; 0 when it only deletes.
    old_leases : tuple of int
        Those without keys afterwards.
    """

    compare: list[dict[str, Any]]
    success: list[dict[str, Any]]
    keys: tuple[bytes, ...]
    lease_id: int
    old_leases: tuple[int, ...]

    def is_done(self, found: Iterable[KeyValue]) -> bool:
        """Whether the keys look as they do afterwards."""
        if self.lease_id:
            return self.lease_id in {each.lease for each in found}
        return not [*found]


class Mirror:
    """The keys of the registry in etcd, as far as events told of them."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self._devices = prefix + b"devices/"
        self._addresses = prefix + b"addresses/"
        self._removal = prefix + b"removal"
        self._revisions: dict[bytes, int] = {}
        self._records: dict[str, Record] = {}
        self._names: dict[str, str] = {}
        self._by_address: dict[bytes, str] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._revisions

    def device_key(self, name: str) -> bytes:
        """The key of the device of that name."""
        return self._devices + name.encode()

    def get(self, uuid: str) -> Record | None:
        """The device of that uuid."""
        return self._records.get(self._names.get(uuid, ""))

    def hear(self, events: Iterable[Event]) -> list[Change]:
        """Take in the events of one revision; what they change in the table."""
        removal, gone, come = Removal([], "expired"), list[Entry](), list[Entry]()
        for event in events:
            if event.kv.key == self._removal:
                removal = _decoded(event.kv, Removal) or removal
                continue
            name, before, after = self._take(event)
            if before is not None and (after is None or after.entry.uuid != before.entry.uuid):
                gone.append(before.entry)
            if after is not None and (before is None or after.entry != before.entry):
                come.append(after.entry)
        reasons = {uuid: removal.reason for uuid in removal.uuids}
        otherwise: Reason = "replaced" if come else "expired"
        return _changes(gone, reasons, otherwise, come)

    def replace(self, found: Iterable[KeyValue]) -> list[Change]:
        """Take in all keys that there are now; what that changes in the table."""
        fresh = Mirror(self.prefix)
        for each in sorted(found, key=lambda item: item.create_revision):
            if each.key != self._removal:
                fresh._take(Event(each))
        gone = [each.entry for each in self._records.values() if fresh._names.get(each.entry.uuid) != each.entry.name]
        reasons: dict[str, Reason] = {each.uuid: "replaced" for each in gone if each.name in fresh._records}
        known = {each.entry.uuid: each.entry for each in self._records.values()}
        come = [each.entry for each in fresh._records.values() if known.get(each.entry.uuid) != each.entry]
        # The keys may be older, as a device may have taken the place of another.
        come.sort(key=lambda entry: entry.registered)
        self._revisions, self._records = fresh._revisions, fresh._records
        self._names, self._by_address = fresh._names, fresh._by_address
        return _changes(gone, reasons, "expired", come)

    def transaction(self, change: Change, seconds: int, lease_id: int) -> Transaction:
        """What a change does in etcd; raises Conflict when it was planned on something else than this."""
        added = change.added
        gone = [self._planned_on(entry) for entry in change.removed]
        own = self.get(added.uuid) if added is not None else None
        puts = dict[bytes, bytes]()
        if added is not None:
            self._check_free(added, {each.entry.uuid for each in gone} | {added.uuid})
            puts[self.device_key(added.name)] = msgspec.json.encode(Kept(added, seconds))
            puts[self._address_key(added.address)] = added.name.encode()
        old = [*gone, *([own] if own is not None else [])]
        keys = sorted({*puts, *(key for each in old for key in self._keys_of(each.entry))})
        if change.removed:
            puts[self._removal] = msgspec.json.encode(Removal([each.uuid for each in change.removed], change.reason))
        return Transaction(
            [{"key": key, "target": "MOD", "mod_revision": self._revisions.get(key, 0)} for key in keys],
            [_put(key, value, 0 if key == self._removal else lease_id) for key, value in puts.items()]
            + [{"request_delete_range": {"key": key}} for key in keys if key not in puts],
            tuple(keys),
            lease_id,
            tuple(each.lease_id for each in old if each.lease_id),
        )

    def _planned_on(self, entry: Entry) -> Record:
        record = self._records.get(entry.name)
        if record is None or record.entry != entry:
            raise Conflict(f"{entry.name} has changed meanwhile")
        return record

    def _check_free(self, entry: Entry, leaving: set[str]) -> None:
        there = self._records.get(self._by_address.get(self._address_key(entry.address), ""))
        holders = [self._records.get(entry.name), there if there and there.entry.address == entry.address else None]
        if any(each is not None and each.entry.uuid not in leaving for each in holders):
            raise Conflict(f"{entry.name} or {entry.address} is taken meanwhile")
        if self._names.get(entry.uuid, entry.name) != entry.name:
            raise Conflict(f"{entry.name} has another name meanwhile")

    def _keys_of(self, entry: Entry) -> list[bytes]:
        address = self._address_key(entry.address)
        mine = self._by_address.get(address) == entry.name
        return [self.device_key(entry.name), *([address] if mine else [])]

    def _address_key(self, address: str) -> bytes:
        return self._addresses + address.encode()

    def _take(self, event: Event) -> tuple[str, Record | None, Record | None]:
        """Take in one event: the name of the device, and what was and is below it."""
        kv, name = event.kv, ""
        before = after = None
        self._revisions.pop(kv.key, None)
        self._by_address.pop(kv.key, None)
        if kv.key.startswith(self._devices):
            name = kv.key[len(self._devices) :].decode(errors="replace")
            before = self._records.pop(name, None)
            if before is not None:
                self._names.pop(before.entry.uuid, None)
        if event.type == "DELETE":
            return name, before, after
        self._revisions[kv.key] = kv.mod_revision
        if kv.key.startswith(self._devices):
            after = self._record(name, kv)
            if after is not None:
                self._records[name] = after
                self._names[after.entry.uuid] = name
        elif kv.key.startswith(self._addresses):
            self._by_address[kv.key] = kv.value.decode(errors="replace")
        return name, before, after

    def _record(self, name: str, kv: KeyValue) -> Record | None:
        kept = _decoded(kv, Kept)
        if kept is None:
            return None
        entry = kept.entry
        if entry.name != name or not _is_plausible(entry):
            logger.warning("%r in etcd is skipped: no device of that name", kv.key)
            return None
        if entry.uuid in self._names:
            logger.warning("%r in etcd is skipped: its uuid is also that of %s", kv.key, self._names[entry.uuid])
            return None
        return Record(entry, kept.lease, kv.lease, kv.mod_revision)


def _decoded(kv: KeyValue, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(kv.value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        logger.warning("%r in etcd is skipped: %s", kv.key, exc)
        return None


def _changes(gone: list[Entry], reasons: Mapping[str, Reason], otherwise: Reason, come: list[Entry]) -> list[Change]:
    removed: dict[Reason, list[Entry]] = {}
    for entry in gone:
        removed.setdefault(reasons.get(entry.uuid, otherwise), []).append(entry)
    changes = [Change(tuple(entries), reason) for reason, entries in removed.items()]
    if len(changes) == len(come) == 1:
        return [replace(changes[0], added=come[0])]
    return changes + [Change(added=entry) for entry in come]


def _put(key: bytes, value: bytes, lease: int) -> dict[str, Any]:
    return {"request_put": {"key": key, "value": value, "lease": lease}}


def _is_plausible(entry: Entry) -> bool:
    texts = (entry.device_type, entry.interface, entry.interface_hash, entry.epoch, *entry.addresses, *entry.metadata)
    needed = (entry.uuid, entry.name, entry.device_type, entry.address)
    fit = all(len(text) <= LONGEST_TEXT + LONGEST_NUMBER and text.isprintable() for text in (*needed, *texts))
    return fit and all(needed) and not entry.stale
