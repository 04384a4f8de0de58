"""Names and leases: planned, applied, and ended by a clock that only the tests advance."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from registry import table as module
from registry.table import Change, Table, check_lease, matches
from rpc_kit.messages import Entry, Registration
from tests.helpers import FakeClock
from tests.test_registry_names import naive

NOW = 1e9
"""When devices are registered, Unix seconds."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> Table:
    return Table(clock)


def plan(table: Table, name: str, address: str = "", device_type: str = "camera", **more: Any) -> Change:
    """Plan a device, at an address of its own unless told otherwise."""
    return table.plan(Registration(device_type, address or f"tcp://h:{len(table)}-{name}", name, **more), NOW)


def enter(table: Table, *details: str, **more: Any) -> Entry:
    """Plan and apply a device."""
    change = plan(table, *details, **more)
    table.apply(change)
    assert change.added is not None
    return change.added


def remove(table: Table, *entries: Entry) -> None:
    table.apply(Change(entries, "unregistered"))


def expire(table: Table) -> list[str]:
    """Remove what is due; its names."""
    due = table.due()
    table.apply(Change(due, "expired"))
    return names(due)


def names(entries: Any) -> list[str]:
    return [entry.name for entry in entries]


def seen(table: Table) -> Any:
    """All that others see of a table."""
    entries = table.entries()
    return (
        [(each, table.get(each.uuid), table.find(each.name), table.entries(each.device_type)) for each in entries],
        len(table),
        table.next_end(),
    )


@pytest.mark.parametrize(
    ("proposed", "accepted"),
    [
        (["a"], ["a"]),
        (["a", "a", "a"], ["a", "a-1", "a-2"]),
        (["", "", ""], ["camera-0", "camera-1", "camera-2"]),
        (["a-1", "a", "a"], ["a-1", "a", "a-2"]),
        (["camera-0", "", ""], ["camera-0", "camera-1", "camera-2"]),
        (["camera", ""], ["camera", "camera-0"]),
        (["a-1", "a-1"], ["a-1", "a-1-1"]),
    ],
)
def test_names(table: Table, proposed: list[str], accepted: list[str]) -> None:
    """The proposed name, or the type with 0; when it is taken, the next free number from 1 on."""
    assert accepted == [enter(table, name).name for name in proposed]


def test_freed_name_is_given_again(table: Table) -> None:
    """A name is free when its entry is gone."""
    first, _ = enter(table, "a"), enter(table, "a")
    remove(table, first)

    assert "a" == enter(table, "a").name


def test_entry(table: Table) -> None:
    """An entry has all that was given, and the address is the first of its addresses and not twice among them."""
    asked = Registration(
        "camera", "tcp://h:1", "left", False, ["tcp://i:1", "tcp://h:1", "tcp://i:1"], "Camera", "hash", "epoch",
        {"host": "h", "pid": 7},
    )  # fmt: skip
    change = table.plan(asked, NOW)
    assert change.added is not None
    expected = Entry(
        change.added.uuid, "left", "camera", "tcp://h:1", ("tcp://h:1", "tcp://i:1"), "Camera", "hash", "epoch",
        {"host": "h", "pid": 7}, NOW,
    )  # fmt: skip

    assert Change((), "replaced", expected, 20.0) == change


def test_plan_changes_nothing(table: Table, clock: FakeClock) -> None:
    """Until a change is applied the table is as it was, and each plan says the same."""
    for number in range(3):
        enter(table, "a", f"tcp://h:{number}")
    asked = [
        Registration("camera", "tcp://h:9", "a"),
        Registration("camera", "tcp://h:1", "a", True),
        Registration("laser", "tcp://h:2", ""),
        Registration("laser", "tcp://h:0", "b", uuid=table.entries()[1].uuid),
    ]
    before = seen(table)
    plans = [[table.plan(each, NOW) for each in asked] for _ in range(2)]
    first, second = ([(names(each.removed), each.added.name) for each in some if each.added] for some in plans)

    assert before == seen(table)
    assert [([], "a-3"), (["a-1", "a"], "a"), (["a-2"], "laser-0"), (["a"], "a-1")] == first == second


def test_look_up(table: Table) -> None:
    """Entries are found by uuid, name and type, in the order of registration."""
    camera, stage, other = enter(table, "b"), enter(table, "a", "", "stage"), enter(table, "c")

    assert ([camera, stage, other], 3) == (table.entries(), len(table))
    assert ([camera, other], [stage], []) == tuple(table.entries(each) for each in ("camera", "stage", "laser"))
    assert (stage, None) == (table.find("a"), table.find("d"))
    assert (stage, None) == (table.get(stage.uuid), table.get("unknown"))
    assert (True, False) == (stage.uuid in table, "unknown" in table)
    assert 3 == len({each.uuid for each in table.entries()})


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({}, ["a", "b", "c"]),
        ({"room": "12"}, ["a", "b"]),
        ({"room": "12", "slot": 1}, ["a"]),
        ({"room": 12}, []),
        ({"slot": 1.0}, ["a"]),
        ({"spare": None}, ["c"]),
        ({"missing": None}, []),
    ],
)
def test_look_up_by_metadata(table: Table, metadata: dict[str, Any], found: list[str]) -> None:
    """Entries with all the metadata are found, of any type or of one."""
    enter(table, "a", metadata={"room": "12", "slot": 1})
    enter(table, "b", "", "stage", metadata={"room": "12", "slot": 2})
    enter(table, "c", metadata={"room": "13", "spare": None})

    assert found == names(table.entries(None, metadata))
    assert [name for name in found if name != "b"] == names(table.entries("camera", metadata))
    assert found == names(each for each in table.entries() if matches(each, metadata))


def test_same_address_replaces(table: Table) -> None:
    """An entry at the same address goes first, whatever its name, so that a restarted device keeps its name."""
    first = enter(table, "a", "tcp://h:1")

    change = plan(table, "a", "tcp://h:1")
    table.apply(change)
    again = change.added
    assert again is not None
    assert ("a", (first,), "replaced") == (again.name, change.removed, change.reason)
    change = plan(table, "b", "tcp://h:1", "stage")
    table.apply(change)
    assert (again,) == change.removed
    assert (["b"], None) == (names(table.entries()), table.find("a"))


@pytest.mark.parametrize("proposed", ["", "a"])
def test_restarted_device_keeps_its_number(table: Table, proposed: str) -> None:
    """The number of the entry that goes first is free again."""
    before = [enter(table, proposed, f"tcp://h:{port}").name for port in range(5)]

    assert before == [enter(table, proposed, f"tcp://h:{port}").name for port in range(5)]
    assert before[2] == enter(table, proposed, "tcp://h:2").name
    assert before[0] == plan(table, proposed, "tcp://h:0", overwrite=True).removed[0].name


def test_overwrite_takes_the_name(table: Table) -> None:
    """With overwrite the holder of the name goes, and so does the entry at the address."""
    holder, neighbour = enter(table, "a", "tcp://h:1"), enter(table, "b", "tcp://h:2")

    change = plan(table, "a", "tcp://h:2", overwrite=True)
    table.apply(change)

    assert (neighbour, holder) == change.removed
    assert [change.added] == table.entries()
    assert "a" == table.entries()[0].name


def test_overwrite_of_oneself(table: Table) -> None:
    """An entry with the same name and address is removed once."""
    first = enter(table, "a", "tcp://h:1")

    assert (first,) == plan(table, "a", "tcp://h:1", overwrite=True).removed


def test_overwrite_without_name(table: Table) -> None:
    """An empty name overwrites nobody."""
    enter(table, "", "tcp://h:1")
    change = plan(table, "", "tcp://h:2", overwrite=True)

    assert ((), "camera-1") == (change.removed, change.added and change.added.name)


def test_replaced_entry_is_unknown(table: Table, clock: FakeClock) -> None:
    """The uuid of an entry that had to make room means nothing any more, and its lease takes nobody with it."""
    first = enter(table, "a", "tcp://h:1", alive_timeout=5.0)
    second = enter(table, "a", "tcp://h:1")
    clock.advance(5)

    assert not table.renew(first.uuid, 10)
    remove(table, first)
    assert ([], [second]) == (expire(table), table.entries())


def test_known_uuid_keeps_its_name(table: Table, clock: FakeClock) -> None:
    """With a known uuid all but uuid, name and time of registration changes, in the place of the entry."""
    first, second, third = (enter(table, "", f"tcp://h:{number}") for number in range(3))
    asked = Registration(
        "camera", "tcp://i:9", "other", False, ["tcp://i:9", "tcp://h:9"], "Camera", "hash", "epoch", {"room": 12},
        5.0, first.uuid,
    )  # fmt: skip
    change = table.plan(asked, NOW + 1)
    table.apply(change)
    changed = replace(
        first, address="tcp://i:9", addresses=("tcp://i:9", "tcp://h:9"), interface="Camera", interface_hash="hash",
        epoch="epoch", metadata={"room": 12},
    )  # fmt: skip

    assert Change((), "replaced", changed, 5.0) == change
    assert [changed, second, third] == table.entries() == table.entries("camera")
    assert (changed, changed) == (table.get(first.uuid), table.find("camera-0"))
    assert () == plan(table, "new", "tcp://h:0").removed
    assert (changed,) == plan(table, "new", "tcp://i:9").removed
    clock.advance(5)
    assert ["camera-0"] == expire(table)


def test_known_uuid_changes_its_type(table: Table) -> None:
    """Among those of its new type an entry stands where it was registered."""
    first, laser, last = enter(table, "a"), enter(table, "b", "", "laser"), enter(table, "c", "", "laser")
    now_laser = enter(table, "a", first.address, "laser", uuid=first.uuid)

    assert ([], [now_laser, laser, last]) == (table.entries("camera"), table.entries("laser"))
    assert [now_laser, laser, last] == table.entries()
    camera = enter(table, "a", first.address, uuid=first.uuid)
    assert ([camera], [laser, last]) == (table.entries("camera"), table.entries("laser"))


def test_known_uuid_at_the_address_of_another(table: Table) -> None:
    """The entry that was at the new address goes."""
    first, second = enter(table, "a", "tcp://h:1"), enter(table, "b", "tcp://h:2")
    change = plan(table, "a", "tcp://h:2", uuid=first.uuid)
    table.apply(change)

    assert (second,) == change.removed
    assert [replace(first, address="tcp://h:2", addresses=("tcp://h:2",))] == table.entries()


def test_known_uuid_overwrites_nobody(table: Table) -> None:
    """An entry that keeps its name takes no other one away from anybody."""
    first = enter(table, "a", "tcp://h:1")
    enter(table, "b", "tcp://h:2")
    change = plan(table, "b", "tcp://h:1", overwrite=True, uuid=first.uuid)

    assert ((), "a") == (change.removed, change.added and change.added.name)


def test_unknown_uuid_is_not_taken(table: Table) -> None:
    """A device that the table does not know gets a uuid that nobody could choose."""
    entry = enter(table, "a", uuid="mine")

    assert ("a", False) == (entry.name, "mine" in table)


@pytest.mark.parametrize(("seconds", "gone"), [(0.0, []), (19.9, []), (20.0, ["a"]), (1e6, ["a"])])
def test_first_lease(table: Table, clock: FakeClock, seconds: float, gone: list[str]) -> None:
    """A new entry lives 20 s until its first renewal."""
    enter(table, "a")
    clock.advance(seconds)

    assert gone == expire(table)
    assert bool(gone) is (table.find("a") is None)
    assert [] == expire(table)


def test_first_lease_that_was_asked_for(table: Table, clock: FakeClock) -> None:
    """A new entry may ask for another lease."""
    enter(table, "a", alive_timeout=60.0)
    enter(table, "b", alive_timeout=5.0)
    clock.advance(5)
    assert ["b"] == expire(table)
    clock.advance(55)
    assert ["a"] == expire(table)


@pytest.mark.parametrize("lease", [5.0, 60.0])
def test_renewal(table: Table, clock: FakeClock, lease: float) -> None:
    """After a renewal an entry lives for the lease from then on, longer or shorter than before."""
    entry = enter(table, "a")
    for _ in range(3):
        clock.advance(4.9)
        assert [] == expire(table)
        assert table.renew(entry.uuid, lease)
    clock.advance(lease - 0.1)
    assert [] == expire(table)
    clock.advance(0.1)

    assert ["a"] == expire(table)
    assert not table.renew(entry.uuid, lease)


def test_lease_of_somebody_else(table: Table, clock: FakeClock) -> None:
    """An entry whose end is seen to by somebody else is never due, and may be renewed."""
    change = plan(table, "a")
    table.apply(replace(change, lease=None))
    assert change.added is not None
    clock.advance(1e6)

    assert table.renew(change.added.uuid, 5.0)
    assert (None, []) == (table.next_end(), expire(table))


def test_expired_entry_makes_room(table: Table, clock: FakeClock) -> None:
    """Name and address of an expired entry are free."""
    enter(table, "a", "tcp://h:1")
    clock.advance(20)
    expire(table)
    change = plan(table, "a", "tcp://h:1")

    assert ("a", ()) == (change.added and change.added.name, change.removed)


def test_entries_expire_in_order(table: Table, clock: FakeClock) -> None:
    """Entries go in the order in which their leases end."""
    leases = {"a": 30, "b": 10, "c": 20}
    for name, lease in leases.items():
        table.renew(enter(table, name).uuid, lease)
    clock.advance(30)

    assert ["b", "c", "a"] == expire(table)
    assert table.next_end() is None


def test_next_end(table: Table, clock: FakeClock) -> None:
    """The table tells when it has to be looked at next."""
    assert table.next_end() is None
    entry = enter(table, "a")
    assert clock.now + 20 == table.next_end()
    table.renew(entry.uuid, 5)

    assert clock.now + 5 == table.next_end()


@pytest.mark.parametrize("lease", [0, -1, math.nan, math.inf, 7 * 86400 + 1])
def test_bad_lease(table: Table, lease: float) -> None:
    """A lease that is no positive number, or longer than a week, is refused."""
    for refused in (lambda: check_lease(lease), lambda: plan(table, "a", alive_timeout=lease)):
        with pytest.raises(ValueError, match="a lease is a number of seconds up to 604800, not"):
            refused()
    assert 604800.0 == check_lease(604800.0)


@pytest.mark.parametrize("uuid", ["", "unknown"])
def test_unknown_uuid(table: Table, uuid: str) -> None:
    """An unknown uuid can neither be renewed nor removed."""
    entry = enter(table, "a")
    remove(table, replace(entry, uuid=uuid))

    assert not table.renew(uuid, 10)
    assert [entry] == table.entries()


def asked_with(place: str, text: str) -> Registration:
    """A registration that has that text in that place."""
    asked: dict[str, Any] = {"device_type": "camera", "addr": "tcp://h:1", "name": "a"}
    asked[place] = {"addresses": ["tcp://h:2", text], "metadata": {text: 1}}.get(place, text)
    return Registration(**asked)


@pytest.mark.parametrize("place", ["device_type", "addr", "name", "interface", "interface_hash", "epoch", "addresses"])
def test_length_of_texts(table: Table, place: str) -> None:
    """A text of more than 1024 characters is refused."""
    with pytest.raises(ValueError, match="texts of 1 to 1024 characters"):
        table.plan(asked_with(place, "x" * 1025), NOW)

    assert table.plan(asked_with(place, "x" * 1024), NOW).added


@pytest.mark.parametrize("place", ["device_type", "addr", "addresses"])
def test_empty_texts(table: Table, place: str) -> None:
    """An empty type or address is refused."""
    with pytest.raises(ValueError, match="texts of 1 to 1024 characters"):
        table.plan(asked_with(place, ""), NOW)


@pytest.mark.parametrize("text", ["a\n", "\0", "\u202e", "\x1b[2J", "\ud800", "\u2028"])
@pytest.mark.parametrize(
    "place", ["device_type", "addr", "name", "interface", "interface_hash", "epoch", "addresses", "metadata"]
)
def test_texts_that_cannot_be_printed(table: Table, text: str, place: str) -> None:
    """A text that would confuse a terminal, or cannot be sent, is refused."""
    with pytest.raises(ValueError, match="addresses, name and the names of metadata are printable texts"):
        table.plan(asked_with(place, text), NOW)


def test_number_of_addresses(table: Table) -> None:
    """A device has 32 addresses at most."""
    addresses = [f"tcp://h:{port}" for port in range(33)]
    with pytest.raises(ValueError, match="32 addresses at most, not 33"):
        plan(table, "a", addresses=addresses)

    assert 33 == len(enter(table, "a", "tcp://i:1", addresses=addresses[:32]).addresses)


def test_size_of_metadata(table: Table) -> None:
    """Metadata have 4096 bytes at most, as JSON in UTF-8."""
    largest = {"key": "é" * 2043}
    with pytest.raises(ValueError, match="metadata have 4096 bytes at most, not 4097"):
        plan(table, "a", metadata={"key": largest["key"] + "x"})

    assert largest == enter(table, "a", metadata=largest).metadata


def test_full_table(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full table refuses new devices and keeps its entries; one that replaces or changes another is taken."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 2)
    first = enter(table, "a", "tcp://h:1")
    enter(table, "b", "tcp://h:2")
    with pytest.raises(ValueError, match="the registry is full: 2 devices"):
        plan(table, "c", "tcp://h:3")

    assert ["a", "b"] == names(table.entries())
    assert "b" == enter(table, "b", "tcp://h:2").name
    assert "a" == enter(table, "", "tcp://h:4", uuid=first.uuid).name
    assert "b" == enter(table, "b", "tcp://h:3", overwrite=True).name
    with pytest.raises(ValueError, match="full"):
        plan(table, "c", "tcp://h:5")


def test_renewals_take_no_memory(table: Table, clock: FakeClock) -> None:
    """However often a device renews its lease, little is kept of it."""
    entry = enter(table, "a")
    for _ in range(10_000):
        clock.advance(0.001)
        table.renew(entry.uuid, 20)

    assert len(table._due) < 100
    assert ([], [entry]) == (expire(table), table.entries())
    clock.advance(20)
    assert ["a"] == expire(table)


def test_nothing_is_kept_of_what_is_gone(table: Table, clock: FakeClock) -> None:
    """A table that is empty again keeps nothing but ends of leases, and those until they are over."""
    for number in range(200):
        entries = [enter(table, f"{number}"[: port // 2], f"tcp://h:{port}", f"t{number}") for port in range(5)]
        remove(table, *entries)
    clock.advance(20)

    assert ((), None) == (table.due(), table.next_end())
    assert [] == [each for each in vars(table).values() if each and each is not clock]


TYPES = ["camera", "laser"]
NAMES = ["", "a", "a-1", "camera", "camera-0", "camera-1", "laser"]


class Tables(RuleBasedStateMachine):
    """A table, and a naive model of one: a list of entries in the order of registration, and the ends of leases."""

    known = Bundle("known")

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.table = Table(self.clock)
        self.entries: list[Entry] = []
        self.ends: dict[str, float] = {}

    @rule(
        target=known,
        device_type=st.sampled_from(TYPES),
        address=st.integers(0, 6),
        name=st.sampled_from(NAMES),
        overwrite=st.booleans(),
        metadata=st.sampled_from([{}, {"room": 1}]),
        lease=st.sampled_from([None, 5.0, 60.0]),
    )
    def register(
        self, device_type: str, address: int, name: str, overwrite: bool, metadata: Any, lease: float | None
    ) -> Any:
        asked = Registration(
            device_type, f"tcp://h:{address}", name, overwrite, metadata=metadata, alive_timeout=lease
        )
        gone = [each for each in self.entries if each.address == asked.addr or overwrite and each.name == name]
        taken = {each.name for each in self.entries if each not in gone}
        return self.change(asked, gone, naive(taken, device_type, name))

    @rule(
        target=known,
        uuid=known,
        device_type=st.sampled_from(TYPES),
        address=st.integers(0, 6),
        name=st.sampled_from(NAMES),
        overwrite=st.booleans(),
    )
    def update(self, uuid: str, device_type: str, address: int, name: str, overwrite: bool) -> Any:
        before = next((each for each in self.entries if each.uuid == uuid), None)
        if before is None:
            return multiple()
        asked = Registration(device_type, f"tcp://h:{address}", name, overwrite, uuid=uuid)
        gone = [each for each in self.entries if each.address == asked.addr and each is not before]
        return self.change(asked, gone, before.name)

    def change(self, asked: Registration, gone: list[Entry], name: str) -> Any:
        """Plan and apply; the uuid if it is a new one."""
        change = self.table.plan(asked, NOW)
        entry = change.added
        assert entry is not None
        assert gone == sorted(change.removed, key=self.entries.index)
        assert name == entry.name
        self.table.apply(change)
        self.forget(gone)
        places = [place for place, each in enumerate(self.entries) if each.uuid == asked.uuid]
        self.ends[entry.uuid] = self.clock.now + (asked.alive_timeout or 20.0)
        if places:
            self.entries[places[0]] = entry
            return multiple()
        self.entries.append(entry)
        return entry.uuid

    def forget(self, gone: Any) -> None:
        for each in gone:
            del self.ends[each.uuid]
        self.entries = [each for each in self.entries if each not in gone]

    @rule(uuid=known, lease=st.sampled_from([1.0, 15.0, 60.0]))
    def renew(self, uuid: str, lease: float) -> None:
        assert (uuid in self.ends) is self.table.renew(uuid, lease)
        if uuid in self.ends:
            self.ends[uuid] = self.clock.now + lease

    @rule(uuid=consumes(known))
    def remove(self, uuid: str) -> None:
        gone = [each for each in self.entries if each.uuid == uuid]
        self.table.apply(Change(tuple(gone), "unregistered"))
        self.forget(gone)

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 30.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        due = self.table.due()
        ended = [each for each in self.entries if self.ends[each.uuid] <= self.clock.now]
        assert ended == sorted(due, key=self.entries.index)
        assert [self.ends[each.uuid] for each in due] == sorted(self.ends[each.uuid] for each in due)
        self.table.apply(Change(due, "expired"))
        self.forget(due)

    @invariant()
    def everything_is_found(self) -> None:
        assert self.entries == self.table.entries()
        assert len(self.entries) == len(self.table) == len({each.name for each in self.entries})
        for device_type in TYPES:
            alike = [each for each in self.entries if each.device_type == device_type]
            assert alike == self.table.entries(device_type)
            assert [each for each in alike if each.metadata] == self.table.entries(device_type, {"room": 1})
        for each in self.entries:
            assert each == self.table.get(each.uuid) == self.table.find(each.name)
            assert each == self.table._by_address[each.address]
        assert [] == [name for name in NAMES if self.table.find(name) not in [None, *self.entries]]

    @invariant()
    def it_is_looked_at_in_time(self) -> None:
        ends = sorted(self.ends.values())
        next_end = self.table.next_end()
        assert not ends or next_end is not None and next_end <= ends[0]


TestTables = Tables.TestCase
TestTables.__doc__ = "After any steps a table is what a naive model says."
TestTables.settings = settings(derandomize=True, deadline=None, max_examples=100, stateful_step_count=40)


def test_size_of_all_texts(table: Table) -> None:
    """Texts that are each short enough may be too long together; those just within the limit are not."""
    addresses = [f"tcp://h:{number}".ljust(1000, "x") for number in range(4)]
    used = len("camera") + len("a") + len("tcp://h:1") + sum(map(len, addresses))
    enter(table, "a", "tcp://h:1", addresses=addresses, epoch="e" * (module.LARGEST_TEXTS - used))

    with pytest.raises(ValueError, match="names and addresses have 4096 characters together at most"):
        plan(table, "a", "tcp://h:1", addresses=addresses, epoch="e" * (module.LARGEST_TEXTS - used + 1))
