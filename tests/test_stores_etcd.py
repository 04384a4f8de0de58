"""Registries that share a real etcd: what one is told all know, and members, connections and registries may fail."""

import itertools
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from etcd3gw.exceptions import ConnectionTimeoutError

import registry.stores
from registry.directory import LONGEST_LAG, Directory, Kind
from registry.stores import etcd, etcd_client
from registry.stores.base import Conflict
from registry.stores.etcd import EtcdStore
from registry.stores.etcd_client import Cluster, Member
from registry.stores.etcd_mirror import Kept
from registry.table import Change, Reason
from rpc_kit.errors import DeviceNotFound, MissingExtra, StoreError
from rpc_kit.messages import Entry, Registration
from tests.devices import LIMIT
from tests.helpers import Relay, in_thread, wait_until
from tests.real.etcd import EtcdCluster, ask, free_ports

numbers = itertools.count(1)


class Station(Directory):
    """The directory of a registry on an etcd; `news` are what it announced."""

    def __init__(self, endpoints: list[str], prefix: str, timeout: float = 1.0) -> None:
        self.news: list[tuple[Kind, str, Reason | None]] = []
        self.store = EtcdStore(endpoints, prefix, timeout)
        super().__init__(self.store, lambda kind, entry, reason: self.news.append((kind, entry.name, reason)))

    def enter(self, name: str = "camera", address: str = "", **fields: Any) -> Entry:
        """Register a device."""
        return self.register(Registration("camera", address or f"tcp://h:{next(numbers)}", name, **fields))

    def names(self) -> list[str]:
        return [entry.name for entry in self.entries()]


@pytest.fixture(scope="module")
def node() -> Iterator[EtcdCluster]:
    """One node for all tests that do it no harm."""
    with EtcdCluster(1) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    """Keys of its own for each test."""
    return f"/test/{next(numbers)}/"


@pytest.fixture
def station(node: EtcdCluster, prefix: str) -> Iterator[Callable[..., Station]]:
    """Makes directories; no thread of theirs is left at the end."""
    made: list[Station] = []

    def start(endpoints: list[str] | None = None, **options: Any) -> Station:
        made.append(Station(endpoints or node.endpoints, prefix, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()
    left = [each.name for each in threading.enumerate() if each.name.startswith("etcd")]
    assert [] == left


@pytest.fixture
def pair(station: Callable[..., Station]) -> tuple[Station, Station]:
    """Two directories with the same entries."""
    return station(), station()


def encoded(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def put(cluster: EtcdCluster, key: str, value: str | bytes, lease: str = "0") -> int:
    """Write as another program; the revision."""
    body = {"key": encoded(key), "value": encoded(value), "lease": lease}
    return int(ask(f"{cluster.endpoints[0]}/v3/kv/put", body)["header"]["revision"])


def delete(cluster: EtcdCluster, key: str) -> None:
    ask(f"{cluster.endpoints[0]}/v3/kv/deleterange", {"key": encoded(key)})


def leases(cluster: EtcdCluster) -> dict[str, int]:
    """All leases with the seconds they were granted for."""
    url = f"{cluster.endpoints[0]}/v3/lease"
    found = [each["ID"] for each in ask(f"{url}/leases", {}).get("leases", [])]
    told = [ask(f"{url}/timetolive", {"ID": each}) for each in found]
    return {each["ID"]: int(each["grantedTTL"]) for each in told if "grantedTTL" in each}


def test_device_is_kept(station: Callable[..., Station]) -> None:
    """A registry that comes later knows everything of the devices, in the order of their registration."""
    first = station()
    entries = [
        first.enter("tür/1 ß", addresses=["tcp://[::1]:5"], interface="Camera", interface_hash="ab", epoch="e",
                    metadata={"room": 5, "hot": True, "gain": 1.5, "note": None, "name": "x"}),
        first.enter("b"),
        first.enter("a"),
    ]  # fmt: skip
    second = station()

    assert entries == first.entries() == second.entries()
    assert [] == second.news


def test_change_is_announced_by_all(pair: tuple[Station, Station]) -> None:
    """What one registry is told another announces, too."""
    first, second = pair
    entry = first.enter()
    wait_until(lambda: second.news)
    moved = second.enter(uuid=entry.uuid, address="tcp://h:moved", overwrite=True)
    wait_until(lambda: first.names() and first.find("camera") == moved)

    assert [("added", "camera", None), ("changed", "camera", None)] == first.news == second.news
    assert (entry.uuid, "tcp://h:moved") == (moved.uuid, moved.address)


@pytest.mark.parametrize("reason", ["unregistered", "evicted"])
def test_reason_arrives(pair: tuple[Station, Station], reason: Reason) -> None:
    """Another registry knows why a device is gone."""
    first, second = pair
    first.remove(first.enter().uuid, reason)
    wait_until(lambda: len(second.news) == 2)

    assert ("removed", "camera", reason) == first.news[1] == second.news[1]
    assert [] == first.names() == second.names()


def test_device_expires(pair: tuple[Station, Station]) -> None:
    """A device that does not renew its lease is gone from all registries."""
    first, second = pair
    first.enter(alive_timeout=0.5)
    wait_until(lambda: len(first.news) == len(second.news) == 2)

    assert ("removed", "camera", "expired") == first.news[1] == second.news[1]


def test_overwriting_takes_the_name(pair: tuple[Station, Station]) -> None:
    """A device takes the name of one that another registry was told of, which is replaced."""
    first, second = pair
    old = first.enter()
    wait_until(lambda: second.news)
    new = second.enter(overwrite=True)
    wait_until(lambda: len(first.news) == 3)

    assert [("removed", "camera", "replaced"), ("added", "camera", None)] == first.news[1:] == second.news[1:]
    assert new == first.find("camera") == second.find("camera")
    assert {old.uuid} == first.renew({old.uuid: 20.0})


def test_address_belongs_to_one(pair: tuple[Station, Station], node: EtcdCluster, prefix: str) -> None:
    """A device at the address of another one takes its place, whatever its name."""
    first, second = pair
    first.enter("old", "tcp://h:same")
    wait_until(lambda: second.news)
    second.enter("new", "tcp://h:same")
    wait_until(lambda: first.names() == ["new"])
    found = ask(f"{node.endpoints[0]}/v3/kv/range", {"key": encoded(prefix + "addresses/tcp://h:same")})

    assert [encoded("new")] == [each["value"] for each in found["kvs"]]
    assert ["new"] == second.names()


def test_names_are_unique(station: Callable[..., Station]) -> None:
    """Devices that want the same name at the same time, at several registries, get different ones without a gap."""
    stations = [station(), station()]
    count = 5
    start = threading.Barrier(8)
    got: list[str] = []

    def crowd(number: int) -> None:
        start.wait(LIMIT)
        for _ in range(count):
            got.append(stations[number % 2].enter("camera").name)

    threads = [threading.Thread(target=crowd, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LIMIT)
    expected = {"camera", *(f"camera-{number}" for number in range(1, 8 * count))}
    wait_until(lambda: len(stations[0].names()) == len(stations[1].names()) == 8 * count)

    assert sorted(expected) == sorted(got) == sorted(stations[0].names()) == sorted(stations[1].names())


def test_renewal_keeps_alive(pair: tuple[Station, Station], node: EtcdCluster) -> None:
    """A device lives as long as one registry hears of it; nothing else is announced."""
    first, second = pair
    entry = first.enter(alive_timeout=1.0)
    other = first.enter("other", alive_timeout=1.0)
    wait_until(lambda: len(second.news) == 2)
    renewals = 0

    def renew() -> bool:
        nonlocal renewals
        assert set() == (second if renewals % 2 else first).renew({entry.uuid: 1.0})
        renewals += 1
        return len(first.news) == len(second.news) == 3

    wait_until(renew)

    assert [("removed", "other", "expired")] == first.news[2:] == second.news[2:]
    assert {other.uuid, "nobody"} == first.renew({entry.uuid: 1.0, other.uuid: 1.0, "nobody": 1.0})


def test_renewal_with_another_lease(pair: tuple[Station, Station], node: EtcdCluster) -> None:
    """A lease may become longer or shorter with a renewal at any registry; the device stays as it is."""
    first, second = pair
    before = leases(node)
    entry = first.enter(alive_timeout=500.0)
    wait_until(lambda: second.names() == ["camera"])
    for seconds, at in ((1000.0, second), (700.2, first), (700.5, second), (50.0, second)):
        assert set() == at.renew({entry.uuid: seconds})
    wait_until(lambda: leases(node).keys() - before.keys() != set())
    wait_until(lambda: [50] == [leases(node)[each] for each in leases(node).keys() - before.keys()])

    assert [("added", "camera", None)] == first.news == second.news
    assert [entry] == first.entries() == second.entries()


def test_many_renewals_at_once(pair: tuple[Station, Station]) -> None:
    """Devices whose leases change, and those whose do not, are renewed together, at two registries at once."""
    first, second = pair
    entries = [first.enter(f"device{number}", alive_timeout=20.0 + number % 2) for number in range(40)]
    wait_until(lambda: len(second.names()) == 40)
    wanted = {entry.uuid: 20.0 for entry in entries}
    with in_thread(lambda: second.renew(wanted)) as outcome:
        assert {"nobody"} == first.renew({**wanted, "nobody": 20.0})

    assert [set()] == outcome
    assert 40 == len(first.names()) == len(second.names()) == len(first.news) == len(second.news)


def test_gone_lease_is_unknown(pair: tuple[Station, Station], node: EtcdCluster) -> None:
    """A device whose lease somebody has ended is told so, and gets its old name when it comes again."""
    first, second = pair
    before = leases(node).keys()
    entry = first.enter()
    (lease,) = leases(node).keys() - before
    ask(f"{node.endpoints[0]}/v3/lease/revoke", {"ID": lease})

    assert {entry.uuid} == first.renew({entry.uuid: 20.0})
    assert "camera" == first.enter().name


def test_device_moves_between_leases(pair: tuple[Station, Station]) -> None:
    """A registry that has not heard of a new lease yet finds it."""
    first, second = pair
    entry = first.enter(alive_timeout=20.0)
    wait_until(lambda: second.names() == ["camera"])
    with second.store._news:
        # It hears of nothing meanwhile.
        first.renew({entry.uuid: 30.0})
        first.store._pool.submit(int).result(LIMIT)
        late = second.store._mirror.get(entry.uuid)
    assert late is not None

    assert set() == second.renew({entry.uuid: 20.0})
    assert set() == second.renew({entry.uuid: 30.0})
    assert [entry] == first.entries() == second.entries()


def test_conflict_is_planned_again(pair: tuple[Station, Station]) -> None:
    """A change that was planned on what is not so any more is refused, and nothing is changed."""
    first, second = pair
    entry = first.enter()
    wait_until(lambda: second.names() == ["camera"])
    first.remove(entry.uuid, "unregistered")
    wait_until(lambda: second.names() == [])
    with pytest.raises(Conflict):
        second.store.save(Change((entry,), "evicted"))
    first.enter("camera", "tcp://h:taken")
    with pytest.raises(Conflict):
        second.store.save(Change(added=Entry("u", "camera", "camera", "tcp://h:free"), lease=20.0))

    assert ["tcp://h:taken"] == [each.address for each in second.entries()]


def test_removal_by_two(pair: tuple[Station, Station]) -> None:
    """A device that is removed by two at once is removed once."""
    first, second = pair
    entry = first.enter()
    wait_until(lambda: second.names() == ["camera"])
    with in_thread(lambda: second.remove(entry.uuid, "evicted")) as outcome:
        removed = first.remove(entry.uuid, "unregistered")

    assert [True, False] == sorted([removed, *outcome], reverse=True)
    assert [] == first.names() == second.names()


@pytest.mark.parametrize("path", ["kv/txn", "lease/grant"])
def test_lost_reply_is_no_failure(pair: tuple[Station, Station], monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """When etcd did what it was asked but its reply got lost, the device is registered once and removed once."""
    first, second = pair
    real, lost = Member.post, list[str]()

    def post(member: Member, url: str, *args: Any, **options: Any) -> Any:
        reply = real(member, url, *args, **options)
        if url.endswith(path) and not lost:
            lost.append(url)
            raise ConnectionTimeoutError("lost")
        return reply

    monkeypatch.setattr(Member, "post", post)
    entry = first.enter()
    wait_until(lambda: second.news)
    assert ["camera"] == first.names() == second.names()
    lost.clear()

    assert first.remove(entry.uuid, "unregistered")
    wait_until(lambda: len(second.news) == 2)
    assert [("added", "camera", None), ("removed", "camera", "unregistered")] == first.news == second.news


def test_nonsense_is_skipped(station: Callable[..., Station], node: EtcdCluster, prefix: str) -> None:
    """What another program writes below the prefix is no device, before and after; a device may take its place."""
    value = msgspec.json.encode(Kept(Entry("u", "good", "camera", "tcp://h:good"), 20))
    other = msgspec.json.encode(Kept(Entry("v", "strange", "camera", "tcp://h:strange"), 20))
    put(node, prefix + "devices/camera", "nonsense")
    put(node, prefix + "addresses/tcp://h:1", b"\xff")
    put(node, prefix + "devices/good", value)
    first = station()
    put(node, prefix + "devices/wrong", other)
    put(node, prefix + "removal", "nonsense")
    delete(node, prefix + "devices/good")
    wait_until(lambda: first.news)
    put(node, prefix + "devices/good", value)
    wait_until(lambda: len(first.news) == 2)

    assert [("removed", "good", "expired"), ("added", "good", None)] == first.news
    assert set() == first.renew({"u": 20.0})
    assert "camera" == first.enter("camera", "tcp://h:1").name
    assert ["good", "camera"] == first.names() == station().names()


def test_other_keys_do_not_hold_up(pair: tuple[Station, Station], node: EtcdCluster, prefix: str) -> None:
    """Changes of other programs elsewhere in etcd are not waited for."""
    first, second = pair
    entry = first.enter()
    wait_until(lambda: second.names() == ["camera"])
    with second.store._news:
        first.remove(entry.uuid, "unregistered")
        put(node, "/elsewhere", "1")
        wanted = second.store._mirror.transaction(Change((entry,)), 0, 0)
    began = time.monotonic()
    outcome, _ = second.store._cluster.transact(wanted)
    second.store._wait_until_heard(outcome, wanted.keys)

    assert (False, []) == (outcome.succeeded, second.names())
    assert time.monotonic() - began < etcd.HEARING_TIME


def test_many_revisions_of_others(
    station: Callable[..., Station],
    node: EtcdCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When other programs have changed much else everything is read again instead, and nothing is lost."""
    monkeypatch.setattr(etcd, "FAR", 5)
    caplog.set_level(logging.INFO, "registry.stores.etcd")
    first, second = station(), station()
    for number in range(10):
        put(node, "/elsewhere", str(number))
    wait_until(lambda: "revisions ahead" in caplog.text)
    first.enter()
    wait_until(lambda: second.names() == ["camera"])

    assert [("added", "camera", None)] == first.news == second.news


def test_listing_in_pages(station: Callable[..., Station], node: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many devices are read in several pages, of one moment, also when etcd is compacted meanwhile."""
    monkeypatch.setattr(etcd_client, "PAGE", 4)
    first = station()
    entries = [first.enter(f"device{number}") for number in range(10)]
    real, pages = Member.ask, list[str]()

    def ask_member(member: Member, path: str, request: Any, kind: Any) -> Any:
        if path == "kv/range":
            pages.append(path)
            if len(pages) == 2:
                revision = put(node, "/elsewhere", "1")
                ask(f"{node.endpoints[0]}/v3/kv/compaction", {"revision": revision})
        return real(member, path, request, kind)

    monkeypatch.setattr(Member, "ask", ask_member)

    assert entries == station().entries()
    assert 2 + 6 == len(pages)


@pytest.fixture
def relay(node: EtcdCluster) -> Iterator[Relay]:
    """The way to the node, which can be cut."""
    with Relay(int(node.endpoints[0].rpartition(":")[2])) as made:
        yield made


class Cut:
    """Closes a relay meanwhile."""

    def __init__(self, relay: Relay) -> None:
        self._relay, self._port = relay, relay.port

    def __enter__(self) -> None:
        (self._relay.port,) = free_ports(1)
        self._relay.cut()

    def __exit__(self, *exc_info: object) -> None:
        self._relay.port = self._port


def test_watch_goes_on_after_a_cut(station: Callable[..., Station], relay: Relay) -> None:
    """What happened while a registry was cut off is announced afterwards, with reasons, in order, once."""
    near, far = station(), station([relay.url.replace("tcp", "http")])
    near.enter("a")
    with Cut(relay):
        near.enter("b")
        near.evict("a")
        near.enter("c")
    wait_until(lambda: len(far.news) >= 4)

    assert near.news == far.news
    assert ["b", "c"] == far.names()


def test_compaction_while_cut_off(station: Callable[..., Station], relay: Relay, node: EtcdCluster) -> None:
    """When etcd has forgotten what happened meanwhile, what differs is announced."""
    near, far = station(), station([relay.url.replace("tcp", "http")])
    near.enter("gone")
    near.enter("same")
    near.enter("taken")
    wait_until(lambda: len(far.news) == 3)
    with Cut(relay):
        near.evict("gone")
        near.enter("taken", overwrite=True)
        near.enter("new")
        revision = put(node, "/elsewhere", "1")
        ask(f"{node.endpoints[0]}/v3/kv/compaction", {"revision": revision})
    wait_until(lambda: sorted(far.entries(), key=str) == sorted(near.entries(), key=str))
    expected = [
        ("added", "new", None),
        ("added", "taken", None),
        ("removed", "gone", "expired"),
        ("removed", "taken", "replaced"),
    ]

    assert expected == sorted(far.news[3:], key=str)
    assert "x" == far.enter("x").name


def test_cut_off_registry_says_so(station: Callable[..., Station], relay: Relay) -> None:
    """A registry that cannot reach etcd refuses changes in time, and soon look-ups, too, until it hears of it again."""
    far = station([relay.url.replace("tcp", "http")])
    entry = far.enter()
    with Cut(relay):
        began = time.monotonic()
        with pytest.raises(StoreError, match=f"cannot be reached: http://127.0.0.1:{relay.own_port} "):
            far.enter("other")
        assert 2.5 < time.monotonic() - began < 4.0
        assert ["camera"] == far.names()
        with pytest.raises(StoreError, match="cannot be reached"):
            far.renew({entry.uuid: 20.0})
        wait_until(lambda: far.store.lag() > LONGEST_LAG)
        with pytest.raises(StoreError, match="not been heard of"):
            far.find("camera")
    wait_until(lambda: far.store.lag() < 1.0)

    assert entry == far.find("camera")
    assert "other" == far.enter("other").name


def test_lag_is_small(pair: tuple[Station, Station]) -> None:
    """Etcd is heard of all the time, though nothing happens."""
    first, _ = pair
    longest = 0.0
    heard = {first.store._heard}

    def look() -> bool:
        nonlocal longest
        longest = max(longest, first.store.lag())
        heard.add(first.store._heard)
        return len(heard) > 3

    wait_until(look)

    assert 0.5 < longest < 2.0


def test_unreachable_etcd() -> None:
    """A store whose etcd is not there cannot be opened, which takes three seconds; the text has the endpoints."""
    urls = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        EtcdStore(urls).open(lambda change: None)

    reasons = [f"{url} Connection refused" for url in sorted(urls)]
    assert f"etcd cannot be reached: {'; '.join(reasons)}" == str(caught.value)
    assert 2.5 < time.monotonic() - began < 4.0


def test_silent_etcd() -> None:
    """Something that takes connections and says nothing is no etcd."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = EtcdStore([f"http://127.0.0.1:{silent.getsockname()[1]}"])
        began = time.monotonic()
        with pytest.raises(StoreError, match="does not answer in time"):
            store.open(lambda change: None)

    assert 2.5 < time.monotonic() - began < 4.5


@pytest.mark.parametrize(
    ("value", "text"),
    [("2", "format 2, this version of rpc-kit knows 1"), ("x", "another program"), ("", "another program")],
)
def test_unknown_format(station: Callable[..., Station], node: EtcdCluster, prefix: str, value: str, text: str) -> None:
    """Data of a later version, or of another program, are left as they are."""
    put(node, prefix + "format", value)
    with pytest.raises(StoreError, match=text):
        station()
    (kept,) = ask(f"{node.endpoints[0]}/v3/kv/range", {"key": encoded(prefix + "format")})["kvs"]

    assert encoded(value) == kept.get("value", "")


def test_refusal_is_told(station: Callable[..., Station]) -> None:
    """What etcd refuses is an error with its words."""
    first = station()

    with pytest.raises(StoreError, match="refuses: .*lease not found"):
        first.store._cluster.ask("lease/revoke", {"ID": 4711}, dict)


@pytest.mark.parametrize(
    "endpoints",
    [[], ["localhost"], ["tcp://h:2379"], ["http://"], ["http://h:1/x"], ["http://h:x"], ["http://u:p@h:1"]],
)
def test_wrong_endpoints(endpoints: list[str]) -> None:
    """An endpoint is the url of a member."""
    with pytest.raises(ValueError, match="(?i)endpoint|port"):
        EtcdStore(endpoints)


def test_empty_prefix() -> None:
    """All keys of etcd are not those of a registry."""
    with pytest.raises(ValueError, match="prefix"):
        EtcdStore(["http://localhost:2379"], "")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without etcd3gw the error says what to install."""
    monkeypatch.setitem(sys.modules, "etcd3gw", None)
    monkeypatch.delitem(sys.modules, "registry.stores.etcd_client")
    monkeypatch.delattr(registry.stores, "etcd_client")

    with pytest.raises(MissingExtra, match=re.escape("pip install rpc-kit[etcd]")):
        EtcdStore(["http://localhost:2379"])


def test_tls_files_are_used() -> None:
    """Files for TLS are those of the connections; the environment has no say."""
    cluster = Cluster(["https://h"], 1.0, {"ca_cert": "/ca", "cert_cert": "/cert", "cert_key": "/key"})
    _, member = cluster.connect(1.0)

    assert ("https://h:2379", "/ca", ("/cert", "/key"), False) == (
        member.base_url, member.session.verify, member.session.cert, member.session.trust_env
    )  # fmt: skip


def test_closed_store(station: Callable[..., Station]) -> None:
    """A closed store refuses everything at once; closing again does nothing."""
    first = station()
    entry = first.enter()
    first.close()
    first.store.close()
    began = time.monotonic()

    with pytest.raises(StoreError, match="closed"):
        first.enter("other")
    with pytest.raises(StoreError, match="closed"):
        first.renew({entry.uuid: 20.0})
    with pytest.raises(StoreError, match="closed"):
        first.remove(entry.uuid, "evicted")
    assert time.monotonic() - began < 1.0


def test_closing_does_not_wait_for_etcd(station: Callable[..., Station], relay: Relay) -> None:
    """A registry ends soon, also while etcd is away and somebody waits for it."""
    far = station([relay.url.replace("tcp", "http")])
    with Cut(relay), in_thread(lambda: far.enter()) as outcome:
        wait_until(lambda: far.store.lag() > 1.0)
        began = time.monotonic()
        far.close()
        took = time.monotonic() - began

    assert [StoreError] == [type(each) for each in outcome]
    assert took < 2.0


def test_failure_of_the_table_is_logged(node: EtcdCluster, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """When a change cannot be applied the thread that hears of changes goes on."""
    heard: list[Change] = []

    def apply(change: Change) -> None:
        heard.append(change)
        if len(heard) == 1:
            raise ZeroDivisionError

    store = EtcdStore(node.endpoints, prefix)
    store.open(apply)
    store.follow()
    for number in range(2):
        entry = Entry(f"u{number}", f"camera{number}", "camera", f"tcp://h:{number}")
        store.save(Change(added=entry, lease=20.0))
    store.close()

    assert ["camera0", "camera1"] == [each.added.name for each in heard if each.added is not None]
    assert "ZeroDivisionError" in caplog.text


class Renewer:
    """Renews devices and looks them up all the time; `longest` are the longest interruptions, s."""

    def __init__(self, directory: Station, entries: list[Entry]) -> None:
        self._directory, self._entries = directory, [*entries]
        self._ending = threading.Event()
        self.longest = {"renew": 0.0, "find": 0.0}
        self.renewals = 0
        self.lost: set[str] = set()
        self._threads = [threading.Thread(target=self._renew), threading.Thread(target=self._find)]

    def __enter__(self) -> "Renewer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(LIMIT)

    def _renew(self) -> None:
        last = time.monotonic()
        while not self._ending.is_set():
            try:
                self.lost |= self._directory.renew({entry.uuid: 5.0 for entry in self._entries})
                self.renewals += 1
                last = self._note("renew", last)
            except StoreError:
                self._note("renew", last)

    def _find(self) -> None:
        last = time.monotonic()
        while not self._ending.is_set():
            for entry in self._entries:
                try:
                    assert entry == self._directory.find(entry.name)
                except DeviceNotFound:
                    self.lost.add(entry.uuid)
            last = self._note("find", last)
            self._ending.wait(0.001)

    def _note(self, what: str, last: float) -> float:
        now = time.monotonic()
        self.longest[what] = max(self.longest[what], now - last)
        return now

    def renews_again(self) -> None:
        """Wait for some more renewals."""
        before = self.renewals
        wait_until(lambda: self.renewals > before + 3)


def test_leader_is_killed(etcd_cluster: EtcdCluster, station: Callable[..., Station]) -> None:
    """Without its leader etcd forgets no device, and interrupts renewals for three seconds at most, look-ups never."""
    first, second = station(etcd_cluster.endpoints), station(etcd_cluster.endpoints)
    entries = [first.enter(f"device{number}", alive_timeout=5.0) for number in range(20)]
    with Renewer(first, entries) as renewer, Renewer(second, []):
        renewer.renews_again()
        etcd_cluster.kill(etcd_cluster.leader())
        renewer.renews_again()
        new = first.enter("new")
        wait_until(lambda: "new" in second.names())

    assert set() == renewer.lost
    assert renewer.longest["renew"] < 3.0
    assert renewer.longest["find"] < 0.5
    assert [*entries, new] == first.entries() == second.entries()
    assert [("added", entry.name, None) for entry in [*entries, new]] == first.news == second.news


def test_each_member_is_down_once(etcd_cluster: EtcdCluster, station: Callable[..., Station]) -> None:
    """Each member may be down and come again; whatever is changed meanwhile is known, and no device is lost."""
    first, second = station(etcd_cluster.endpoints), station(etcd_cluster.endpoints[::-1])
    entries = [first.enter(alive_timeout=5.0)]
    with Renewer(first, entries) as renewer:
        for number in range(3):
            etcd_cluster.kill(number)
            entries.append(second.enter(f"while{number}", alive_timeout=60.0))
            renewer.renews_again()
            etcd_cluster.start(number)
            entries.append(first.enter(f"after{number}", alive_timeout=60.0))
            renewer.renews_again()
    wait_until(lambda: len(second.names()) == len(entries))

    assert set() == renewer.lost
    assert entries == first.entries() == second.entries()


def test_member_hangs(etcd_cluster: EtcdCluster, station: Callable[..., Station]) -> None:
    """A member that hangs, without a word, is given up for another one; what happens is still heard of in time."""
    hanging = (etcd_cluster.leader() + 1) % 3
    process = etcd_cluster._nodes[hanging]
    assert process is not None
    first = station([etcd_cluster.endpoints[hanging], etcd_cluster.endpoints[hanging - 1]])
    second = station([etcd_cluster.endpoints[hanging - 1]])
    entries = [first.enter(alive_timeout=5.0)]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with Renewer(first, entries) as renewer:
            second.enter("new")
            began = time.monotonic()
            wait_until(lambda: "new" in first.names())
            took = time.monotonic() - began
            renewer.renews_again()
    finally:
        os.kill(process.pid, signal.SIGCONT)

    assert set() == renewer.lost
    assert renewer.longest["renew"] < 3.0
    assert took < 3.0


def test_minority_is_not_believed(etcd_cluster: EtcdCluster, station: Callable[..., Station]) -> None:
    """A member without most of the others is not asked what it remembers; when there are more again all is well."""
    leader = etcd_cluster.leader()
    left, *others = [(leader + 1) % 3, (leader + 2) % 3, leader]
    first = station([etcd_cluster.endpoints[left]])
    entry = first.enter(alive_timeout=20.0)
    for index in others:
        etcd_cluster.kill(index)
    with pytest.raises(StoreError, match=etcd_cluster.endpoints[left]):
        first.renew({entry.uuid: 20.0})
    wait_until(lambda: first.store.lag() > LONGEST_LAG)
    etcd_cluster.start(*others)
    wait_until(lambda: first.store.lag() < 1.0)

    assert set() == first.renew({entry.uuid: 20.0})
    assert entry == first.find("camera")


def test_whole_cluster_is_down(station: Callable[..., Station]) -> None:
    """Without etcd changes fail in time while look-ups go on; when it is back, with its data, so is everything."""
    with EtcdCluster(1) as cluster:
        first, second = station(cluster.endpoints), station(cluster.endpoints)
        entry = first.enter(alive_timeout=20.0)
        wait_until(lambda: second.names() == ["camera"])
        cluster.kill(0)
        began = time.monotonic()
        with pytest.raises(StoreError, match="Connection refused"):
            first.renew({entry.uuid: 20.0})
        assert time.monotonic() - began < 4.0
        wait_until(lambda: first.store.lag() > 3.0)
        assert ["camera"] == first.names() == second.names()
        cluster.start(0)
        wait_until(lambda: first.store.lag() < 1.0)

        assert set() == second.renew({entry.uuid: 20.0})
        new = first.enter("new")
        wait_until(lambda: second.entries() == [entry, new])


def test_etcd_begins_anew(station: Callable[..., Station]) -> None:
    """When etcd comes back with older data, or none, that is what holds."""
    with EtcdCluster(1) as cluster:
        first = station(cluster.endpoints)
        entry = first.enter()
        cluster.kill(0)
        shutil.rmtree(cluster._folder / "node0")
        cluster.start(0)
        wait_until(lambda: first.names() == [])

        assert [("added", "camera", None), ("removed", "camera", "expired")] == first.news
        assert {entry.uuid} == first.renew({entry.uuid: 20.0})
        assert "camera" == first.enter().name
