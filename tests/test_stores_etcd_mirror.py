"""What a registry knows of etcd, and what its changes do there, without etcd."""

import logging
from typing import Any

import msgspec
import pytest

from registry.stores.base import Conflict
from registry.stores.etcd_mirror import Event, Kept, KeyValue, Mirror, Removal
from registry.table import Change, Reason
from rpc_kit.messages import Entry

PREFIX = b"/lab/"


def entry(name: str = "camera", number: int = 1, uuid: str = "", **fields: Any) -> Entry:
    address = f"tcp://h:{number}"
    return Entry(uuid or f"uuid-{number}", name, "camera", address, (address,), **fields)


def device(entry: Entry, revision: int, lease: int = 7, seconds: int = 20) -> list[Event]:
    """What is heard when a device is put."""
    value = msgspec.json.encode(Kept(entry, seconds))
    return [
        Event(KeyValue(PREFIX + b"devices/" + entry.name.encode(), value, revision, revision, lease)),
        address(entry, revision, lease),
    ]


def address(entry: Entry, revision: int, lease: int = 7) -> Event:
    return Event(KeyValue(PREFIX + b"addresses/" + entry.address.encode(), entry.name.encode(), revision, 1, lease))


def deleted(entry: Entry, revision: int) -> list[Event]:
    """What is heard when a device is deleted."""
    keys = (b"devices/" + entry.name.encode(), b"addresses/" + entry.address.encode())
    return [Event(KeyValue(PREFIX + key, mod_revision=revision), "DELETE") for key in keys]


def removal(revision: int, reason: Reason, *entries: Entry) -> Event:
    value = msgspec.json.encode(Removal([each.uuid for each in entries], reason))
    return Event(KeyValue(PREFIX + b"removal", value, revision))


def raw(key: bytes, value: bytes, revision: int = 5) -> Event:
    return Event(KeyValue(PREFIX + key, value, revision, revision))


@pytest.fixture
def mirror() -> Mirror:
    """Knows one camera, put at revision 3 with lease 7 of 20 s."""
    made = Mirror(PREFIX)
    made.hear(device(entry(), 3))
    return made


def compared(mirror: Mirror, change: Change) -> dict[bytes, int]:
    """The keys that a change relies on, with their revisions."""
    return {each["key"]: each["mod_revision"] for each in mirror.transaction(change, 20, 9).compare}


def done(mirror: Mirror, change: Change) -> tuple[set[bytes], set[bytes]]:
    """The keys that a change puts and deletes."""
    success = mirror.transaction(change, 20, 9).success
    return (
        {each["request_put"]["key"] for each in success if "request_put" in each},
        {each["request_delete_range"]["key"] for each in success if "request_delete_range" in each},
    )


def test_put_is_an_addition() -> None:
    """A device that is new in etcd is added; its lease is that of etcd."""
    mirror = Mirror(PREFIX)

    assert [Change(added=entry(metadata={"room": 5}))] == mirror.hear(device(entry(metadata={"room": 5}), 3))


def test_same_entry_again_is_no_change(mirror: Mirror) -> None:
    """A device with another lease is the same entry; its lease and revision are known."""
    assert [] == mirror.hear(device(entry(), 4, lease=8, seconds=60))
    record = mirror.get("uuid-1")
    assert record is not None
    assert (8, 60, 4) == (record.lease_id, record.lease, record.revision)


def test_put_of_same_uuid_is_a_change(mirror: Mirror) -> None:
    """A device that has moved is the same one."""
    moved = entry(number=2, uuid="uuid-1")

    assert [Change(added=moved)] == mirror.hear([*device(moved, 4), deleted(entry(), 4)[1]])


@pytest.mark.parametrize("reason", ["unregistered", "evicted", "replaced"])
def test_reason_is_told(mirror: Mirror, reason: Reason) -> None:
    """The reason that was put at the same revision is that of the deletion."""
    assert [Change((entry(),), reason)] == mirror.hear([*deleted(entry(), 4), removal(4, reason, entry())])


def test_deletion_without_reason_is_expired(mirror: Mirror) -> None:
    """What is only deleted has expired, whatever the reason of an earlier deletion."""
    mirror.hear([removal(4, "evicted", entry())])

    assert [Change((entry(),), "expired")] == mirror.hear(deleted(entry(), 5))


def test_replacement_is_one_change(mirror: Mirror) -> None:
    """A device with the name of another takes its place at once."""
    new = entry(number=2)
    events = [*device(new, 4), deleted(entry(), 4)[1], removal(4, "replaced", entry())]

    assert [Change((entry(),), "replaced", new)] == mirror.hear(events)


def test_all_again(mirror: Mirror) -> None:
    """When all is read again what differs is changed: gone, replaced, changed and new devices, the old ones first."""
    mirror.hear(device(gone := entry("gone", 2), 4))
    mirror.hear(device(old := entry("taken", 3), 5))
    mirror.hear(device(entry("moved", 4), 6))
    new, moved, taken = entry("new", 5), entry("moved", 6, "uuid-4"), entry("taken", 7)
    found = [event.kv for each in (new, moved, taken, entry()) for event in device(each, 9)]
    expected = [
        Change((gone,), "expired"),
        Change((old,), "replaced"),
        Change(added=new),
        Change(added=moved),
        Change(added=taken),
    ]

    assert expected == mirror.replace(found)
    assert [] == mirror.replace(found)


def test_order_of_creation() -> None:
    """Devices come in the order in which they were registered or put, not in that of their names."""
    devices = [("a", 9, 1.0), ("b", 7, 1.0), ("c", 6, 2.0)]
    found = [each.kv for name, at, when in devices for each in device(entry(name, at, registered=when), at)]
    changes = Mirror(PREFIX).replace(found)

    assert ["b", "a", "c"] == [change.added.name for change in changes if change.added is not None]


def test_new_device_relies_on_free_keys(mirror: Mirror) -> None:
    """A new device is put if neither its name nor its address is there."""
    new = entry("other", 2)
    keys = {PREFIX + b"devices/other", PREFIX + b"addresses/tcp://h:2"}

    assert dict.fromkeys(keys, 0) == compared(mirror, Change(added=new))
    assert (keys, set()) == done(mirror, Change(added=new))


def test_replacement_relies_on_what_it_replaces(mirror: Mirror) -> None:
    """A device of the same name is put over the other, whose address is freed and whose lease may end."""
    change = Change((entry(),), "replaced", entry(number=2))
    name, old, new = PREFIX + b"devices/camera", PREFIX + b"addresses/tcp://h:1", PREFIX + b"addresses/tcp://h:2"

    assert {name: 3, old: 3, new: 0} == compared(mirror, change)
    assert ({name, new, PREFIX + b"removal"}, {old}) == done(mirror, change)
    assert (7,) == mirror.transaction(change, 20, 9).old_leases


def test_change_of_a_device_frees_its_address(mirror: Mirror) -> None:
    """A device that moves keeps its key."""
    change = Change(added=entry(number=2, uuid="uuid-1"))
    name, old, new = PREFIX + b"devices/camera", PREFIX + b"addresses/tcp://h:1", PREFIX + b"addresses/tcp://h:2"

    assert {name: 3, old: 3, new: 0} == compared(mirror, change)
    assert ({name, new}, {old}) == done(mirror, change)


def test_removal_tells_its_reason(mirror: Mirror) -> None:
    """Name and address of a removed device are deleted, and the reason is put, which stays."""
    wanted = mirror.transaction(Change((entry(),), "evicted"), 0, 0)
    puts = [each["request_put"] for each in wanted.success if "request_put" in each]

    assert [(PREFIX + b"removal", 0)] == [(each["key"], each["lease"]) for each in puts]
    assert Removal(["uuid-1"], "evicted") == msgspec.json.decode(puts[0]["value"], type=Removal)
    assert {PREFIX + b"devices/camera", PREFIX + b"addresses/tcp://h:1"} == done(mirror, Change((entry(),)))[1]


@pytest.mark.parametrize(
    "change",
    [
        Change(added=entry(number=2)),
        Change(added=entry("other", uuid="uuid-2")),
        Change((entry("other", 2),)),
        Change((entry(metadata={"room": 5}),)),
        Change(added=entry("other", 2, "uuid-1")),
    ],
    ids=["name is taken", "address is taken", "not there", "has changed", "has another name"],
)
def test_plan_on_something_else_is_a_conflict(mirror: Mirror, change: Change) -> None:
    """What was planned on a table that is not that of now has to be planned again."""
    with pytest.raises(Conflict):
        mirror.transaction(change, 20, 9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"devices/thing", b"no JSON"),
        (b"devices/thing", b"\xff\xfe"),
        (b"devices/thing", b"{}"),
        (b"devices/thing", msgspec.json.encode(Kept(entry("other", 2), 20))),
        (b"devices/thing", msgspec.json.encode(Kept(entry("thing", 2, "uuid-1"), 20))),
        (b"devices/thing", msgspec.json.encode(Kept(entry("thing", 2, stale=True), 20))),
        (b"devices/thing", msgspec.json.encode(Kept(entry("thing", 2, interface="\n"), 20))),
        (b"devices/thing", msgspec.json.encode(Kept(entry("thing", 2, interface="x" * 2000), 20))),
        (b"devices/thing", msgspec.json.encode({"entry": {"uuid": 5}, "lease": "long"})),
        (b"devices/\xff", b"5"),
        (b"devices/", b""),
        (b"removal", b"because"),
        (b"removal", b'{"uuids": [], "reason": "boredom"}'),
    ],
)
def test_nonsense_is_skipped(mirror: Mirror, caplog: pytest.LogCaptureFixture, key: bytes, value: bytes) -> None:
    """What is no device of that name is logged, and not in the table."""
    assert [] == mirror.hear([raw(key, value)])
    assert ["registry.stores.etcd_mirror"] == [each.name for each in caplog.records if each.levelno == logging.WARNING]


@pytest.mark.parametrize("key", [b"", b"format", b"devices", b"addresses/tcp://h:9", b"addresses/\xff", b"else"])
def test_other_keys_are_no_devices(mirror: Mirror, key: bytes) -> None:
    """Other keys below the prefix change nothing in the table."""
    assert [] == mirror.hear([raw(key, b"\xff")])


def test_nonsense_is_overwritten() -> None:
    """A device is put over nonsense that is under its name and address, if that is still the same."""
    mirror = Mirror(PREFIX)
    mirror.hear([raw(b"devices/camera", b"nonsense", 5)])
    mirror.hear([raw(b"addresses/tcp://h:1", b"nonsense", 6)])

    assert [5, 6] == sorted(compared(mirror, Change(added=entry())).values())


def test_nonsense_in_the_place_of_a_device(mirror: Mirror) -> None:
    """A device that is overwritten with nonsense is gone."""
    assert [Change((entry(),), "expired")] == mirror.hear([raw(b"devices/camera", b"nonsense")])


def test_address_of_somebody_else_is_kept(mirror: Mirror) -> None:
    """A device does not delete the address that another one has got."""
    other = Event(KeyValue(PREFIX + b"addresses/tcp://h:1", b"other", 5, 5))
    mirror.hear([other])

    assert ({PREFIX + b"removal"}, {PREFIX + b"devices/camera"}) == done(mirror, Change((entry(),)))


def test_transaction_is_recognised(mirror: Mirror) -> None:
    """A transaction has happened when the keys have its lease, or are not there when it deletes them."""
    put = mirror.transaction(Change(added=entry("other", 2)), 20, 9)
    deletion = mirror.transaction(Change((entry(),)), 0, 0)

    assert [True, False, False] == [put.is_done([KeyValue(b"k", lease=each)]) for each in (9, 7, 0)]
    assert [True, False] == [deletion.is_done(found) for found in ([], [KeyValue(b"k", lease=7)])]
