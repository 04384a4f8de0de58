"""A table with its store: what is kept is applied and told, whatever the store does."""

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from registry import directory as module
from registry.directory import Directory
from registry.stores.base import Apply, Conflict
from registry.stores.memory import MemoryStore
from registry.table import Change
from rpc_kit.errors import DeviceNotFound, ServerBusy, StoreError
from rpc_kit.messages import Entry, Registration
from tests.devices import LIMIT
from tests.helpers import in_thread, wait_until


class OddStore(MemoryStore):
    """Fails, is overtaken by others, or blocks when it is told to."""

    def __init__(self, remote: bool = False) -> None:
        super().__init__()
        self.is_remote = remote  # type: ignore[misc]
        self.saved: list[Change] = []
        self.failures: list[StoreError] = []
        self.by_others: list[Change] = []
        self.kept: list[Entry] = []
        self.forgotten: set[str] = set()
        self.entered, self.released = threading.Event(), threading.Event()
        self.released.set()
        self.seconds_behind = 0.0
        self.closed = 0

    def open(self, apply: Apply) -> None:
        super().open(apply)
        self.fail()
        for entry in self.kept:
            apply(Change(added=entry, lease=60.0))

    def save(self, change: Change) -> None:
        self.entered.set()
        assert self.released.wait(LIMIT)
        self.saved.append(change)
        self.fail()
        super().save(change)

    def renew(self, leases: Mapping[str, float]) -> set[str]:
        self.fail()
        return self.forgotten & leases.keys()

    def fail(self) -> None:
        if not self.failures:
            return
        failure = self.failures.pop(0)
        if isinstance(failure, Conflict) and self.by_others:
            self._apply(self.by_others.pop(0))
        raise failure

    def lag(self) -> float:
        return self.seconds_behind

    def close(self) -> None:
        self.closed += 1


Kept = tuple[Directory, OddStore, list[Any]]


def keep(store: OddStore) -> Kept:
    """A directory with that store, and what its listener hears."""
    heard: list[Any] = []
    made = Directory(store, lambda kind, entry, reason: heard.append((kind, entry.name, reason)))
    return made, store, heard


@pytest.fixture
def kept() -> Kept:
    """A directory with a store on this host, and what its listener hears."""
    return keep(OddStore())


@pytest.fixture
def timed(kept: Kept) -> Iterator[Kept]:
    """The same, with its time kept."""
    with keeping_time(kept[0]):
        yield kept


@contextlib.contextmanager
def keeping_time(directory: Directory) -> Iterator[None]:
    with in_thread(directory.keep_time) as outcome:
        yield
        directory.close()
    assert [None] == outcome


def camera(name: str = "a", address: str = "", **more: Any) -> Registration:
    return Registration("camera", address or f"tcp://h:{name}", name, **more)


def entry_of(name: str) -> Entry:
    """An entry that somebody else has made."""
    return Entry(f"uuid of {name}", name, "camera", f"tcp://i:{name}", (f"tcp://i:{name}",))


def names(directory: Directory) -> list[str]:
    return [entry.name for entry in directory.entries()]


def test_each_change_is_kept_applied_and_told(kept: Kept) -> None:
    """Whoever has to make room is removed before the new one is added; an update is a change."""
    directory, store, heard = kept
    first = directory.register(camera("a", "tcp://h:1"))
    second = directory.register(camera("b", "tcp://h:1"))
    changed = directory.register(camera("c", "tcp://h:2", uuid=second.uuid))
    third = directory.register(camera("b", "tcp://h:3", overwrite=True))

    assert directory.remove(third.uuid, "unregistered")
    assert [
        ("added", "a", None),
        ("removed", "a", "replaced"),
        ("added", "b", None),
        ("changed", "b", None),
        ("removed", "b", "replaced"),
        ("added", "b", None),
        ("removed", "b", "unregistered"),
    ] == heard
    assert [
        Change((), "replaced", first, 20.0),
        Change((first,), "replaced", second, 20.0),
        Change((), "replaced", changed, 20.0),
        Change((changed,), "replaced", third, 20.0),
        Change((third,), "unregistered"),
    ] == store.saved


def test_look_ups(kept: Kept) -> None:
    """Entries are found by name, type and metadata."""
    directory, *_ = kept
    first = directory.register(camera("a", metadata={"room": 1}))
    second = directory.register(Registration("laser", "tcp://h:2", "b", metadata={"room": 1}))

    assert ([first, second], first) == (directory.entries(), directory.find("a"))
    assert ([second], [first, second], []) == (
        directory.entries("laser"),
        directory.entries(None, {"room": 1}),
        directory.entries("laser", {"room": 2}),
    )
    with pytest.raises(DeviceNotFound, match="no device is registered as 'c'"):
        directory.find("c")


def test_evict(kept: Kept) -> None:
    """An entry is removed by its name, for that reason; one that is not there cannot be."""
    directory, _, heard = kept
    entry = directory.register(camera())

    assert entry == directory.evict("a")
    assert ([], ("removed", "a", "evicted")) == (names(directory), heard[-1])
    with pytest.raises(DeviceNotFound, match="no device is registered as 'a'"):
        directory.evict("a")
    assert not directory.remove(entry.uuid, "unregistered")


def test_what_was_kept_is_no_news() -> None:
    """Entries that the store has from before are there, and nobody is told."""
    store = OddStore()
    store.kept = [entry_of("a"), entry_of("b")]
    directory, _, heard = keep(store)

    assert (store.kept, []) == (directory.entries(), heard)


def test_store_that_cannot_be_opened() -> None:
    """There is no directory then."""
    store = OddStore()
    store.failures = [StoreError("not today")]
    with pytest.raises(StoreError, match="not today"):
        keep(store)


def test_registration_that_is_not_kept(kept: Kept) -> None:
    """It fails, nothing is changed and nobody is told, also of an entry that would have made room."""
    directory, store, heard = kept
    first = directory.register(camera("a", "tcp://h:1"))
    for asked in (camera("b"), camera("b", "tcp://h:1"), camera("a", "tcp://h:2", uuid=first.uuid)):
        store.failures = [StoreError("the disk is full")]
        with pytest.raises(StoreError, match="the disk is full"):
            directory.register(asked)

    assert ([first], [("added", "a", None)]) == (directory.entries(), heard)
    assert "b" == directory.register(camera("b")).name


def test_registration_that_is_wrong(kept: Kept) -> None:
    """It fails before anything is kept."""
    directory, store, _ = kept
    with pytest.raises(ValueError, match="1 to 1024 characters"):
        directory.register(Registration("", "tcp://h:1", "a"))

    assert [] == store.saved


def test_removal_that_is_not_kept(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """The entry is gone all the same; it goes from the store with the next change that is kept."""
    directory, store, heard = kept
    entries = [directory.register(camera(name)) for name in "abc"]
    store.failures = [StoreError("the disk is full") for _ in range(3)]
    assert directory.remove(entries[0].uuid, "unregistered")
    assert entries[1] == directory.evict("b")
    with pytest.raises(StoreError, match="the disk is full"):
        directory.register(camera("d"))
    assert ["c"] == names(directory)

    after = directory.register(camera("a"))
    directory.remove(after.uuid, "unregistered")
    assert [((entries[0], entries[1]), after), ((after,), None)] == [
        (change.removed, change.added) for change in store.saved[-2:]
    ]
    assert [("removed", "a", "unregistered"), ("removed", "b", "evicted"), ("added", "a", None)] == heard[3:-1]
    assert 2 == caplog.text.count("a removal is not kept: the disk is full")


def test_removal_that_a_remote_store_does_not_keep() -> None:
    """The entry stays, as others see it."""
    directory, store, heard = keep(OddStore(remote=True))
    entry = directory.register(camera())
    store.failures = [StoreError("nobody answers")]
    with pytest.raises(StoreError, match="nobody answers"):
        directory.remove(entry.uuid, "unregistered")

    assert ([entry], [("added", "a", None)]) == (directory.entries(), heard)


def test_name_that_another_registry_was_faster_to_give(kept: Kept) -> None:
    """The registration is planned again on what is there by now."""
    directory, store, heard = kept
    store.failures = [Conflict("too late"), Conflict("too late")]
    store.by_others = [Change(added=entry_of("a")), Change(added=entry_of("a-1"))]

    assert "a-2" == directory.register(camera()).name
    assert [("added", name, None) for name in ("a", "a-1", "a-2")] == heard


def test_entry_that_another_registry_was_faster_to_remove(kept: Kept) -> None:
    """A removal is planned again, and there may be nothing left to do."""
    directory, store, heard = kept
    first, second = directory.register(camera("a")), directory.register(camera("b"))
    store.failures = [Conflict("too late"), Conflict("too late")]
    store.by_others = [Change((first,), "evicted"), Change(added=replace(second, epoch="later"))]

    assert not directory.remove(first.uuid, "unregistered")
    assert directory.remove(second.uuid, "unregistered")
    assert ((replace(second, epoch="later"),), []) == (store.saved[-1].removed, names(directory))
    assert ("removed", "a", "evicted") in heard


def test_conflicts_without_end(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is planned so many times, and then given up."""
    monkeypatch.setattr(module, "MOST_ATTEMPTS", 20)
    directory, store, _ = kept
    entry = directory.register(camera())
    attempts: tuple[Callable[[], object], ...] = (
        lambda: directory.register(camera("b")),
        lambda: directory.remove(entry.uuid, "unregistered"),
    )
    for attempt in attempts:
        store.saved, store.failures = [], [Conflict("too late") for _ in range(100)]
        with pytest.raises(StoreError, match="other registries change the same"):
            attempt()
        assert 20 == len(store.saved)
    store.failures = []

    assert ["a"] == names(directory)


def test_renewal(timed: Kept) -> None:
    """Known entries live on, unknown ones are told."""
    directory, _, heard = timed
    first, second = (directory.register(camera(name, alive_timeout=60.0)) for name in "ab")

    assert {"unknown"} == directory.renew({first.uuid: 60.0, "unknown": 60.0, second.uuid: 0.02})
    wait_until(lambda: ["a"] == names(directory))
    assert ("removed", "b", "expired") == heard[-1]
    assert {second.uuid} == directory.renew({second.uuid: 1.0})
    assert set() == directory.renew({})


@pytest.mark.parametrize("lease", [0.0, -1.0, math.nan, math.inf, 604801.0])
def test_wrong_renewal(kept: Kept, lease: float) -> None:
    """One impossible lease, and none is renewed."""
    directory, *_ = kept
    first, second = (directory.register(camera(name, alive_timeout=60.0)) for name in "ab")
    before = directory._table.next_end()
    with pytest.raises(ValueError, match="a lease is a number of seconds"):
        directory.renew({first.uuid: 1.0, second.uuid: lease})

    assert before == directory._table.next_end()


def test_renewal_that_is_not_kept(timed: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """The lease is renewed all the same, as a device is alive that is not to be lost."""
    directory, store, _ = timed
    entry = directory.register(camera(alive_timeout=60.0))
    store.failures = [StoreError("the disk is full")]

    assert {"unknown"} == directory.renew({entry.uuid: 0.02, "unknown": 1.0})
    wait_until(lambda: [] == names(directory))
    assert "leases are not kept: the disk is full" in caplog.text


def test_renewal_that_a_remote_store_does_not_keep() -> None:
    """The device is told that it failed; what the store does not know is unknown."""
    directory, store, _ = keep(OddStore(remote=True))
    first, second = directory.register(camera("a")), directory.register(camera("b"))
    store.failures = [StoreError("nobody answers")]
    with pytest.raises(StoreError, match="nobody answers"):
        directory.renew({first.uuid: 10.0})
    store.forgotten = {second.uuid}

    assert {second.uuid} == directory.renew({first.uuid: 10.0, second.uuid: 10.0})


def test_ends_of_leases(timed: Kept) -> None:
    """Entries go when their leases end, in that order, and a shorter one is seen in time."""
    directory, store, heard = timed
    for name, lease in (("a", 0.06), ("b", 60.0), ("c", 0.03)):
        directory.register(camera(name, alive_timeout=lease))

    wait_until(lambda: [("removed", "c", "expired"), ("removed", "a", "expired")] == heard[3:])
    assert ["b"] == names(directory)
    assert {"expired"} == {change.reason for change in store.saved if change.added is None}


def test_ends_of_leases_that_are_not_kept(timed: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """Entries go all the same."""
    directory, store, heard = timed
    directory.register(camera("a", alive_timeout=0.1))
    store.failures = [StoreError("the disk is full")]

    wait_until(lambda: ("removed", "a", "expired") == heard[-1])
    assert "a removal is not kept: the disk is full" in caplog.text
    assert "a" == directory.register(camera("a")).name


def test_ends_of_leases_with_conflicts(kept: Kept) -> None:
    """What another registry has changed meanwhile lives on, and the others go."""
    directory, store, heard = kept
    first, _ = (directory.register(camera(name, alive_timeout=1e-6)) for name in "ab")
    store.failures = [Conflict("too late"), Conflict("too late")]
    store.by_others = [Change(added=replace(first, epoch="later"), lease=60.0)]
    with keeping_time(directory):
        wait_until(lambda: ("removed", "b", "expired") == heard[-1])

    assert ["a"] == names(directory)


def test_wait_for_what_is_there(kept: Kept) -> None:
    """There is nothing to wait for."""
    directory, *_ = kept
    entry = directory.register(camera())

    assert entry == directory.wait_for("a", 0.0).result(0)


def test_wait_for_what_comes(timed: Kept) -> None:
    """All who wait for a name get its entry, and nobody else."""
    directory, *_ = timed
    waiting = [directory.wait_for("a", 60.0) for _ in range(5)]
    other = directory.wait_for("b", 60.0)
    directory.register(camera("c"))
    entry = directory.register(camera("a"))

    assert [entry] * 5 == [future.result(LIMIT) for future in waiting]
    assert not other.done()
    assert {"b"} == directory._waiters.keys()


@pytest.mark.parametrize("timeout", [0.0, 0.03])
def test_wait_in_vain(timed: Kept, timeout: float) -> None:
    """When the time is over nobody has come, and nothing is kept of the one who waited."""
    directory, *_ = timed
    long = directory.wait_for("a", 60.0)
    with pytest.raises(DeviceNotFound, match="no device was registered as 'a' in time"):
        directory.wait_for("a", timeout).result(LIMIT)

    assert (False, 1) == (long.done(), len(directory._waiters["a"]))
    entry = directory.register(camera())
    assert (entry, {}) == (long.result(LIMIT), directory._waiters)


@pytest.mark.parametrize("timeout", [-0.1, math.nan, math.inf, 3600.1])
def test_wait_for_an_impossible_time(kept: Kept, timeout: float) -> None:
    """Nobody waits for less than no time, or for longer than an hour."""
    with pytest.raises(ValueError, match="timeout is a number of seconds up to 3600, not"):
        kept[0].wait_for("a", timeout)


def test_wait_for_an_impossible_name(kept: Kept) -> None:
    """A name that no device can have is not kept."""
    with pytest.raises(ValueError, match="no device has a name of 100000 characters"):
        kept[0].wait_for("x" * 100_000, 1.0)


def test_too_many_wait(timed: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes last is refused, until somebody has what he waited for."""
    monkeypatch.setattr(module, "MOST_WAITERS", 3)
    directory, *_ = timed
    waiting = [directory.wait_for(name, 60.0) for name in "aab"]
    with pytest.raises(ServerBusy, match="3 others wait for devices already"):
        directory.wait_for("c", 60.0)
    entry = directory.register(camera("b"))

    assert (entry, entry) == (waiting[2].result(LIMIT), directory.wait_for("b", 60.0).result(0))
    assert not directory.wait_for("c", 60.0).done()


def test_who_waits_no_more(timed: Kept) -> None:
    """A future that was cancelled harms nobody."""
    directory, *_ = timed
    cancelled, vain, waiting = (directory.wait_for("a", timeout) for timeout in (60.0, 0.02, 60.0))
    assert (True, True) == (cancelled.cancel(), vain.cancel())
    with pytest.raises(DeviceNotFound):
        directory.wait_for("b", 0.03).result(LIMIT)
    entry = directory.register(camera())

    assert entry == waiting.result(LIMIT)


def test_look_ups_go_on_while_a_change_is_kept(timed: Kept) -> None:
    """However long the store takes, whoever looks up waits for nothing; others who change wait for their turn."""
    directory, store, _ = timed
    entry = directory.register(camera("a"))
    store.entered.clear()
    store.released.clear()
    with in_thread(lambda: directory.register(camera("b"))) as first, in_thread(
        lambda: directory.renew({entry.uuid: 60.0})
    ) as second:
        assert store.entered.wait(LIMIT)

        waited_for = directory.wait_for("a", 0.0)
        with in_thread(lambda: [*directory.entries(), directory.find("a"), waited_for.result(0)]) as seen:
            wait_until(lambda: seen)
        assert [[entry] * 3] == seen
        waiting: Future[Entry] = directory.wait_for("b", 60.0)
        assert ([], [], False) == (first, second, waiting.done())
        store.released.set()
    assert ([waiting.result(0)], [set()]) == (first, second)


def test_close(kept: Kept) -> None:
    """It ends the keeping of time, whatever that waits for, and closes the store once."""
    directory, store, _ = kept
    directory.register(camera(alive_timeout=60.0))
    with in_thread(directory.keep_time) as outcome:
        vain = directory.wait_for("b", 60.0)
        directory.close()
        directory.close()
    assert ([None], 1, False) == (outcome, store.closed, vain.done())
    directory.keep_time()


def test_close_while_a_change_is_kept(timed: Kept) -> None:
    """The store is closed after that."""
    directory, store, _ = timed
    store.entered.clear()
    store.released.clear()
    with in_thread(lambda: directory.register(camera())) as registered, in_thread(directory.close) as closed:
        assert store.entered.wait(LIMIT)
        wait_until(lambda: directory._closed)
        assert ([], 0) == (closed, store.closed)
        store.released.set()
    assert ("a", [None], 1) == (registered[0].name, closed, store.closed)


def test_store_that_hears_nothing(kept: Kept) -> None:
    """After five seconds without news of what others do nobody is told what may not be so any more."""
    directory, store, _ = kept
    entry = directory.register(camera())
    store.seconds_behind = 4.9
    assert [entry] == directory.entries()
    store.seconds_behind = 7.0
    look_ups: tuple[Callable[[], object], ...] = (
        directory.entries,
        lambda: directory.find("a"),
        lambda: directory.wait_for("a", 1.0),
    )
    for look_up in look_ups:
        with pytest.raises(StoreError, match="the store has not been heard of for 7 s: ask another registry"):
            look_up()


def test_many_threads(timed: Kept) -> None:
    """Changes of many threads are planned one after the other: each device gets a name of its own."""
    directory, store, heard = timed

    numbers = itertools.count()

    def work() -> None:
        host = next(numbers)
        for turn in range(20):
            entry = directory.register(camera("a", f"tcp://h{host}:{turn}"))
            assert set() == directory.renew({entry.uuid: 60.0})
            if turn % 2:
                assert directory.remove(entry.uuid, "unregistered")

    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(work)) for _ in range(8)]
    assert [[None]] * 8 == outcomes
    assert 80 == len(names(directory)) == len({*names(directory)})
    assert (160, 80) == tuple(sum(kind == wanted for kind, *_ in heard) for wanted in ("added", "removed"))
    assert 240 == len(store.saved)


def test_who_has_what_he_waited_for_counts_no_more(timed: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many have waited, with success or in vain, so many may wait as ever."""
    monkeypatch.setattr(module, "MOST_WAITERS", 3)
    directory, *_ = timed
    for number in range(10):
        waiting = [directory.wait_for(f"{number}", 60.0) for _ in range(3)]
        entry = directory.register(camera(f"{number}"))
        assert 3 * [entry] == [each.result(LIMIT) for each in waiting]
    for each in [directory.wait_for("never", 0.01) for _ in range(3)]:
        with pytest.raises(DeviceNotFound):
            each.result(LIMIT)
    waiting = [directory.wait_for("later", 60.0) for _ in range(3)]
    with pytest.raises(ServerBusy):
        directory.wait_for("later", 60.0)

    assert [False] * 3 == [each.done() for each in waiting]


def test_what_is_kept_of_those_who_waited(kept: Kept) -> None:
    """Of waits that have ended long before their time next to nothing is kept; of others all."""
    directory, *_ = kept
    vain = [directory.wait_for("never", 0.0) for _ in range(5)]
    for number in range(1000):
        waiting = directory.wait_for(f"{number}", 3600.0)
        directory.register(camera(f"{number}"))
        assert waiting.done()

    assert len(directory._patience) < 100
    assert {"never"} == directory._waiters.keys()
    directory._give_up()
    assert [True] * 5 == [each.done() for each in vain]
