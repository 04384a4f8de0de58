"""Names and leases, with a clock that only the tests advance."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import table as module
from registry.table import Entry, Table
from tests.helpers import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> Table:
    return Table(clock)


def enter(table: Table, name: str, address: str = "", device_type: str = "camera", overwrite: bool = False) -> Entry:
    """Register a device, at an address of its own unless told otherwise."""
    address = address or f"tcp://h:{len(table.entries())}-{name}"
    return table.register(device_type, address, name, overwrite)[0]


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


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
    assert first == table.unregister(first.uuid)

    assert "a" == enter(table, "a").name


def test_entry(table: Table) -> None:
    """An entry has all that was given, and is found by name and type, in the order of registration."""
    camera, stage = enter(table, "b", "tcp://h:1"), enter(table, "a", "tcp://h:2", "stage")

    assert ("b", "camera", "tcp://h:1") == (camera.name, camera.device_type, camera.address)
    assert [camera, stage] == table.entries()
    assert ([stage], []) == (table.entries("stage"), table.entries("laser"))
    assert (stage, None) == (table.find("a"), table.find("c"))
    assert camera.uuid != stage.uuid


def test_same_address_replaces(table: Table) -> None:
    """An entry at the same address goes first, whatever its name, so that a restarted device keeps its name."""
    first = enter(table, "a", "tcp://h:1")

    again, removed = table.register("camera", "tcp://h:1", "a")
    assert ("a", [first]) == (again.name, removed)
    other, removed = table.register("stage", "tcp://h:1", "b")
    assert ("b", [again]) == (other.name, removed)
    assert [other] == table.entries()
    assert table.find("a") is None


def test_overwrite_takes_the_name(table: Table) -> None:
    """With overwrite the holder of the name goes, and so does the entry at the address."""
    holder, neighbour = enter(table, "a", "tcp://h:1"), enter(table, "b", "tcp://h:2")

    entry, removed = table.register("camera", "tcp://h:2", "a", overwrite=True)

    assert ("a", [neighbour, holder]) == (entry.name, removed)
    assert [entry] == table.entries()


def test_overwrite_of_oneself(table: Table) -> None:
    """An entry with the same name and address is removed once."""
    first = enter(table, "a", "tcp://h:1")

    assert [first] == table.register("camera", "tcp://h:1", "a", overwrite=True)[1]


def test_overwrite_without_name(table: Table) -> None:
    """An empty name overwrites nobody."""
    enter(table, "", "tcp://h:1")

    entry, removed = table.register("camera", "tcp://h:2", "", overwrite=True)

    assert ("camera-1", []) == (entry.name, removed)


def test_replaced_entry_is_unknown(table: Table) -> None:
    """The uuid of an entry that had to make room means nothing any more, and its lease takes nobody with it."""
    first = enter(table, "a", "tcp://h:1")
    second = enter(table, "a", "tcp://h:1")

    assert not table.renew(first.uuid, 10)
    assert table.unregister(first.uuid) is None
    assert [second] == table.entries()


@pytest.mark.parametrize(("seconds", "gone"), [(0.0, []), (19.9, []), (20.0, ["a"]), (1e6, ["a"])])
def test_first_lease(table: Table, clock: FakeClock, seconds: float, gone: list[str]) -> None:
    """A new entry lives 20 s until its first renewal."""
    enter(table, "a")
    clock.advance(seconds)

    assert gone == names(table.expire())
    assert bool(gone) is (table.find("a") is None)
    assert [] == table.expire()


@pytest.mark.parametrize("lease", [5.0, 60.0])
def test_renewal(table: Table, clock: FakeClock, lease: float) -> None:
    """After a renewal an entry lives for the lease from then on, longer or shorter than before."""
    entry = enter(table, "a")
    for _ in range(3):
        clock.advance(4.9)
        assert [] == table.expire()
        assert table.renew(entry.uuid, lease)
    clock.advance(lease - 0.1)
    assert [] == table.expire()
    clock.advance(0.1)

    assert [entry] == table.expire()
    assert not table.renew(entry.uuid, lease)


def test_expired_entry_makes_room(table: Table, clock: FakeClock) -> None:
    """Name and address of an expired entry are free."""
    enter(table, "a", "tcp://h:1")
    clock.advance(20)
    table.expire()

    entry, removed = table.register("camera", "tcp://h:1", "a")
    assert ("a", []) == (entry.name, removed)


def test_entries_expire_in_order(table: Table, clock: FakeClock) -> None:
    """Entries go in the order in which their leases end."""
    leases = {"a": 30, "b": 10, "c": 20}
    for name, lease in leases.items():
        table.renew(enter(table, name).uuid, lease)
    clock.advance(30)

    assert ["b", "c", "a"] == names(table.expire())
    assert table.next_end() is None


def test_next_end(table: Table, clock: FakeClock) -> None:
    """The table tells when it has to be looked at next."""
    assert table.next_end() is None
    entry = enter(table, "a")
    assert clock.now + 20 == table.next_end()
    table.renew(entry.uuid, 5)

    assert clock.now + 5 == table.next_end()


@pytest.mark.parametrize("lease", [0, -1, math.nan, math.inf, 7 * 86400 + 1])
def test_bad_lease(table: Table, clock: FakeClock, lease: float) -> None:
    """A lease that is no positive number, or longer than a week, is refused and changes nothing."""
    entry = enter(table, "a")
    with pytest.raises(ValueError, match="a lease is a number of seconds"):
        table.renew(entry.uuid, lease)
    clock.advance(20)

    assert [entry] == table.expire()


@pytest.mark.parametrize("uuid", ["", "unknown"])
def test_unknown_uuid(table: Table, uuid: str) -> None:
    """An unknown uuid can neither be renewed nor unregistered."""
    assert not table.renew(uuid, 10)
    assert table.unregister(uuid) is None


@pytest.mark.parametrize(
    "texts", [("", "a", ""), ("t", "", ""), ("t" * 1025, "a", ""), ("t", "a" * 1025, ""), ("t", "a", "n" * 1025)]
)
def test_bad_texts(table: Table, texts: tuple[str, str, str]) -> None:
    """An empty type or address, or a text of more than 1024 characters, is refused."""
    with pytest.raises(ValueError, match="1 to 1024 characters"):
        table.register(*texts)

    assert [] == table.entries()


@pytest.mark.parametrize("text", ["a\n", "\0", "\u202e", "\x1b[2J", "\ud800", "\u2028"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_texts_that_cannot_be_printed(table: Table, text: str, place: int) -> None:
    """A type, address or name that would confuse a terminal, or cannot be sent, is refused."""
    texts = ["t", "a", "n"]
    texts[place] = text
    with pytest.raises(ValueError, match="device type, address and name are printable texts"):
        table.register(*texts)

    assert [] == table.entries()


def test_full_table(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full table refuses new devices and keeps its entries; one that replaces another is taken."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 2)
    enter(table, "a", "tcp://h:1")
    enter(table, "b", "tcp://h:2")
    with pytest.raises(ValueError, match="full"):
        enter(table, "c", "tcp://h:3")

    assert ["a", "b"] == names(table.entries())
    assert "b" == enter(table, "b", "tcp://h:2").name


def test_renewals_take_no_memory(table: Table, clock: FakeClock) -> None:
    """However often a device renews its lease, little is kept of it."""
    entry = enter(table, "a")
    for _ in range(10_000):
        clock.advance(1)
        table.renew(entry.uuid, 20)
        table.expire()

    assert len(table._due) < 100
    assert [entry] == table.entries()


steps = st.lists(
    st.tuples(st.just("register"), st.sampled_from(["", "a", "a-1", "b"]), st.integers(0, 5), st.booleans())
    | st.tuples(st.just("renew"), st.integers(0, 9), st.sampled_from([1, 15, 60]))
    | st.tuples(st.just("unregister"), st.integers(0, 9))
    | st.tuples(st.just("advance"), st.sampled_from([0, 1, 10, 30])),
    max_size=30,
)


@given(steps)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_table_stays_consistent(steps: list[tuple[object, ...]]) -> None:
    """After any steps names and addresses are unique, everything is found, and only what is alive is listed."""
    clock = FakeClock()
    table, known, ends = Table(clock), [], dict[str, float]()
    for step, *details in steps:
        if step == "register":
            name, address, overwrite = details
            entry, removed = table.register("camera", f"tcp://h:{address}", str(name), bool(overwrite))
            known.append(entry.uuid)
            ends[entry.uuid] = clock.now + 20
            for gone in removed:
                del ends[gone.uuid]
        elif step == "advance":
            clock.advance(float(str(details[0])))
        elif known:
            uuid = known[int(str(details[0])) % len(known)]
            if step == "unregister":
                assert (ends.pop(uuid, None) is not None) is (table.unregister(uuid) is not None)
            elif table.renew(uuid, float(str(details[1]))):
                ends[uuid] = clock.now + float(str(details[1]))
        expired = {uuid for uuid, end in ends.items() if end <= clock.now}
        assert expired == {entry.uuid for entry in table.expire()}
        ends = {uuid: end for uuid, end in ends.items() if uuid not in expired}

        entries = table.entries()
        assert ends.keys() == {entry.uuid for entry in entries}
        assert len(entries) == len({*names(entries)}) == len({entry.address for entry in entries})
        assert entries == [table.find(entry.name) for entry in entries]
        assert min(ends.values(), default=math.inf) >= (table.next_end() or math.inf) or not ends
