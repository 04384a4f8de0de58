"""The registry as its clients meet it: messages byte by byte, names, leases, callbacks, watchers, garbage, floods."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq

from registry import DeviceRegistry, Entry, Registry, callbacks, register_device, send_alive_check, service, table
from registry.stores.memory import MemoryStore
from registry.stores.sqlite import SqliteStore
from registry.table import Change
from rpc_kit import RegistryClient, RPCClient, registration
from rpc_kit.errors import DeviceNotFound, StoreError
from tests.devices import LIMIT, InstrumentServer
from tests.helpers import PROJECT, Peer, call, in_thread, request, wait_until
from tests.registries import Restartable


@RPCClient.register_interface(Registry)
class PlainClient(Registry, RPCClient):
    """A client of the registry as of any other server."""


@pytest.fixture
def peer(context: Any, registry: DeviceRegistry) -> Any:
    """A plain REQ client of the registry."""
    with Peer(context, registry.url, zmq.REQ) as made:
        yield made


def register(peer: Peer, type_: str, addr: str, name: str = "", **more: Any) -> tuple[str, str]:
    """Register over the wire; name and uuid."""
    reply = peer.ask(request("REGISTER", payload={"device_type": type_, "addr": addr, "name": name, **more}))
    assert "REGISTER_ACK" == reply["event"]
    assert {"name", "uuid"} == set(reply["payload"])
    return reply["payload"]["name"], reply["payload"]["uuid"]


def renew(peer: Peer, leases: Mapping[str, float]) -> Any:
    """What the registry says to the renewal of many leases."""
    return peer.ask(request("RENEW", payload={"leases": leases}))


def raw(peer: Peer, frame: bytes) -> bytes:
    """The one frame of a reply as it is."""
    peer.send(frame)
    (reply,) = peer.receive()
    return reply


@pytest.mark.parametrize("more", [{}, {"colour": "red", "nested": {"list": [None, 1.5]}, "": 0}])
def test_messages_of_version_1(peer: Peer, more: dict[str, Any]) -> None:
    """The replies are those of the protocol, byte by byte, also to clients who send keys that nobody knows."""

    def ask(event: str, **payload: Any) -> bytes:
        return raw(peer, request(event, payload={**payload, **more}, **more))

    reply = ask("REGISTER", device_type="scope", addr="tcp://h:1", name="")
    uuid = json.loads(reply)["payload"]["uuid"]
    assert f'{{"event":"REGISTER_ACK","payload":{{"name":"scope-0","uuid":"{uuid}"}}}}'.encode() == reply
    for known, expected in ((uuid, b"true"), ("unknown", b"false")):
        for keys in ({}, {"alive_timeout": 20}, {"alive_timeout": 1.5}):
            acknowledged = b'{"event":"ACK","payload":{"req_event":"CHECK_ALIVE","success":' + expected + b"}}"
            assert acknowledged == ask("CHECK_ALIVE", uuid=known, **keys)
    for expected in (b"true", b"false"):
        acknowledged = b'{"event":"ACK","payload":{"req_event":"UNREGISTER","success":' + expected + b"}}"
        assert acknowledged == ask("UNREGISTER", uuid=uuid)


def test_refusals_of_version_1(peer: Peer) -> None:
    """What is not supported is told byte by byte as ever, with what is wrong behind it."""
    begin = b'{"event":"UNSUPPORTED","payload":{"req_event":"'
    for event in ("NOTHING", "REGISTER", "ACK"):
        reply = raw(peer, request(event))
        assert reply.startswith(begin + event.encode() + b'"},"success":false,"error":"')
        assert reply.endswith(b'","traceback":""}')
    assert raw(peer, b"").startswith(begin + b'"},"success":false,"error":"the request is empty"')


def test_registration_of_version_2(peer: Peer, registry: DeviceRegistry, context: Any) -> None:
    """All that a device says of itself is listed; the same uuid changes that, under the name it had."""
    asked: dict[str, Any] = {
        "addresses": ["tcp://h:1", "tcp://i:1"], "interface": "Camera", "interface_hash": "abc", "epoch": "e1",
        "metadata": {"room": "12", "pid": 7, "gain": 0.5, "cooled": True, "spare": None},
    }  # fmt: skip
    before = time.time()
    name, uuid = register(peer, "camera", "tcp://h:1", "left", **asked)
    with RegistryClient(registry.url, context) as client:
        entry = client.find("left")
        expected = Entry(
            uuid, "left", "camera", "tcp://h:1", ("tcp://h:1", "tcp://i:1"), "Camera", "abc", "e1", asked["metadata"],
            entry.registered,
        )  # fmt: skip
        assert ("left", expected) == (name, entry)
        assert before <= entry.registered <= time.time()
        assert ([entry], []) == (client.list("camera", room="12", pid=7), client.list("camera", room=12))

        assert ("left", uuid) == register(peer, "camera", "tcp://h:2", "other", uuid=uuid, metadata={"room": "13"})
        at = entry.registered
        changed = Entry(uuid, "left", "camera", "tcp://h:2", ("tcp://h:2",), "", "", "", {"room": "13"}, at)
        assert (changed, [changed]) == (client.find("left"), client.list())


def test_unknown_uuid_of_version_2(peer: Peer) -> None:
    """A device that the registry has forgotten is a new one."""
    name, uuid = register(peer, "camera", "tcp://h:1", "left", uuid="forgotten")

    assert ("left", False) == (name, uuid == "forgotten")


def test_lease_of_version_2(peer: Peer, registry: DeviceRegistry) -> None:
    """A device may say how long it lives until its first renewal."""
    register(peer, "camera", "tcp://h:1", "short", alive_timeout=0.05)
    register(peer, "camera", "tcp://h:2", "long", alive_timeout=60)

    wait_until(lambda: ["long"] == list(registry.get_devices()))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"alive_timeout": 0}, "a lease is a number of seconds up to 604800, not 0"),
        ({"alive_timeout": 604801}, "a lease is a number of seconds up to 604800, not 604801"),
        ({"addresses": ["tcp://h:1"] * 33}, "a device has 32 addresses at most, not 33"),
        ({"addresses": "tcp://h:1"}, "Expected `array`, got `str` - at `$.payload.addresses`"),
        ({"metadata": {"a": [1]}}, "- at `$.payload.metadata[...]`"),
        ({"metadata": {"a": "x" * 4096}}, "metadata have 4096 bytes at most, not 4104"),
        ({"metadata": {"a\n": 1}}, "the names of metadata are printable texts"),
        ({"interface": "\x1b[2J"}, "are printable texts"),
        ({"uuid": 7}, "Expected `str`, got `int` - at `$.payload.uuid`"),
    ],
)
def test_wrong_registration_of_version_2(peer: Peer, registry: DeviceRegistry, wrong: Any, error: str) -> None:
    """It is said what is wrong, and nothing is registered."""
    payload = {"device_type": "camera", "addr": "tcp://h:1", "name": "a", **wrong}
    reply = peer.ask(request("REGISTER", payload=payload))

    assert ("UNSUPPORTED", {"req_event": "REGISTER"}, False) == (reply["event"], reply["payload"], reply["success"])
    assert error in reply["error"]
    assert {} == registry.get_devices()


def test_renewal_of_many(peer: Peer, registry: DeviceRegistry) -> None:
    """Known ones live on, each for its own time, unknown ones are named in the order of their uuids."""
    uuids = [register(peer, "camera", f"tcp://h:{port}")[1] for port in range(50)]
    leases = {uuid: 0.05 if number % 2 else 60 for number, uuid in enumerate(uuids)}
    frame = request("RENEW", payload={"leases": {**leases, "unknown": 60, "": 60}})

    acknowledged = b'{"event":"ACK","payload":{"req_event":"RENEW","success":false,"unknown":["","unknown"]}}'
    assert acknowledged == raw(peer, frame)
    wait_until(lambda: [f"camera-{number}" for number in range(0, 50, 2)] == list(registry.get_devices()))
    payload = renew(peer, leases)["payload"]
    assert (False, sorted(uuids[1::2])) == (payload["success"], payload["unknown"])
    known = {uuid: 60.0 for uuid in uuids[::2]}
    assert {"event": "ACK", "payload": {"req_event": "RENEW", "success": True, "unknown": []}} == renew(peer, known)
    assert {"req_event": "RENEW", "success": True, "unknown": []} == renew(peer, {})["payload"]


@pytest.mark.parametrize("lease", [0, -1, 604801, float("nan"), float("inf"), "60", None, True, [60]])
def test_wrong_renewal_of_many(peer: Peer, registry: DeviceRegistry, lease: Any) -> None:
    """With one impossible lease nothing is renewed."""
    first, second = (register(peer, "camera", f"tcp://h:{port}")[1] for port in (1, 2))
    reply = renew(peer, {first: 0.001, second: lease})

    assert ("UNSUPPORTED", {"req_event": "RENEW"}, False) == (reply["event"], reply["payload"], reply["success"])
    assert reply["error"]
    assert renew(peer, {first: 60, second: 60})["payload"]["success"]


def test_names(peer: Peer, registry: DeviceRegistry) -> None:
    """Proposed names, default names, numbers for those that are taken, and who has to make room."""
    names = [
        register(peer, "scope", "tcp://h:1")[0],
        register(peer, "scope", "tcp://h:2")[0],
        register(peer, "scope", "tcp://h:3")[0],
        register(peer, "scope", "tcp://h:4", "left")[0],
        register(peer, "scope", "tcp://h:5", "left")[0],
        register(peer, "laser", "tcp://h:6", "left", overwrite=True)[0],
        register(peer, "laser", "tcp://h:1", "right")[0],
        register(peer, "scope", "tcp://h:7")[0],
    ]

    assert ["scope-0", "scope-1", "scope-2", "left", "left-1", "left", "right", "scope-0"] == names
    assert {
        "scope-1": ("scope", "tcp://h:2"),
        "scope-2": ("scope", "tcp://h:3"),
        "left-1": ("scope", "tcp://h:5"),
        "left": ("laser", "tcp://h:6"),
        "right": ("laser", "tcp://h:1"),
        "scope-0": ("scope", "tcp://h:7"),
    } == registry.get_devices()


@pytest.mark.parametrize(
    ("frame", "req_event"),
    [
        (b"", ""),
        (b"nonsense", ""),
        (b"\xff\xfe", ""),
        (b"[1]", ""),
        (b"null", ""),
        (b"{}", ""),
        (b'{"event": 1}', ""),
        (b'{"event": "NOTHING"}', "NOTHING"),
        (b'{"event": "REGISTER"}', "REGISTER"),
        (b'{"event": "REGISTER", "payload": []}', "REGISTER"),
        (b'{"event": "REGISTER", "payload": {"device_type": 1, "addr": "a", "name": ""}}', "REGISTER"),
        (b'{"event": "REGISTER", "payload": {"device_type": "", "addr": "a", "name": ""}}', "REGISTER"),
        (b'{"event": "REGISTER", "payload": {"device_type": "t", "addr": "", "name": ""}}', "REGISTER"),
        (b'{"event": "REGISTER", "payload": {"device_type": "t", "addr": "a"}}', "REGISTER"),
        (b'{"event": "CHECK_ALIVE", "payload": {}}', "CHECK_ALIVE"),
        (b'{"event": "CHECK_ALIVE", "payload": {"uuid": "u", "alive_timeout": -1}}', "CHECK_ALIVE"),
        (b'{"event": "CHECK_ALIVE", "payload": {"uuid": "u", "alive_timeout": NaN}}', "CHECK_ALIVE"),
        (b'{"event": "CHECK_ALIVE", "payload": {"uuid": "u", "alive_timeout": 1e300}}', "CHECK_ALIVE"),
        (b'{"event": "CHECK_ALIVE", "payload": {"uuid": "u", "alive_timeout": "20"}}', "CHECK_ALIVE"),
        (b'{"event": "UNREGISTER", "payload": {"uuid": null}}', "UNREGISTER"),
        (b'{"event": "ACK"}', "ACK"),
        (b'{"event": "RENEW"}', "RENEW"),
        (b'{"event": "RENEW", "payload": {"leases": [1]}}', "RENEW"),
        (b'{"event": "RENEW", "payload": {"leases": {"a": {}}}}', "RENEW"),
        (b'{"event": "REGISTER", "payload": ' + b"[" * 100_000, ""),
    ],
)
def test_garbage(peer: Peer, registry: DeviceRegistry, frame: bytes, req_event: str) -> None:
    """Whatever is wrong gets UNSUPPORTED with the event as far as it could be read, and an error text."""
    reply = peer.ask(frame)

    assert ("UNSUPPORTED", {"req_event": req_event}, False) == (reply["event"], reply["payload"], reply["success"])
    assert reply["error"]
    assert "scope-0" == register(peer, "scope", "tcp://h:1")[0]


def test_remote_stop_is_refused(peer: Peer) -> None:
    """Nobody stops a registry over the network."""
    assert "not to be stopped remotely" in peer.ask(request("STOP_SERVER"))["error"]
    assert "scope-0" == register(peer, "scope", "tcp://h:1")[0]


def test_lease_ends(peer: Peer, registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that nobody renews goes, a renewed one stays for as long as it asked for."""
    removed = []
    registry.add_device_removed_callback(lambda *device: removed.append(device))
    monkeypatch.setattr(table, "FIRST_LEASE", 0.05)
    register(peer, "scope", "tcp://h:1", "never-renewed")
    monkeypatch.undo()
    _, short = register(peer, "scope", "tcp://h:2", "renewed-for-a-moment")
    _, long = register(peer, "scope", "tcp://h:3", "renewed-for-long")
    for uuid, lease in ((short, 0.1), (long, 60)):
        assert peer.ask(request("CHECK_ALIVE", payload={"uuid": uuid, "alive_timeout": lease}))["payload"]["success"]

    wait_until(lambda: ["never-renewed", "renewed-for-a-moment"] == [name for _, _, name in removed])
    assert ["renewed-for-long"] == list(registry.get_devices())
    assert not peer.ask(request("CHECK_ALIVE", payload={"uuid": short}))["payload"]["success"]


def test_callbacks(peer: Peer, registry: DeviceRegistry) -> None:
    """Each callback hears of each change; who has to make room is removed before the new one is added."""
    heard: list[tuple[str, ...]] = []
    for _ in range(2):
        registry.add_new_device_callback(lambda *device: heard.append(("added", *device)))
        registry.add_device_removed_callback(lambda *device: heard.append(("removed", *device)))
    register(peer, "scope", "tcp://h:1", "left")
    _, uuid = register(peer, "laser", "tcp://h:1", "right")
    peer.ask(request("UNREGISTER", payload={"uuid": uuid}))

    expected = [
        ("added", "scope", "tcp://h:1", "left"),
        ("removed", "scope", "tcp://h:1", "left"),
        ("added", "laser", "tcp://h:1", "right"),
        ("removed", "laser", "tcp://h:1", "right"),
    ]
    wait_until(lambda: len(heard) == 8)
    assert [each for each in expected for _ in range(2)] == heard


def test_callback_that_raises(peer: Peer, registry: DeviceRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the other callbacks and the registry go on."""
    names: list[str] = []
    registry.add_new_device_callback(lambda *device: 1 / 0)
    registry.add_new_device_callback(lambda type_, addr, name: names.append(name))
    register(peer, "scope", "tcp://h:1")
    register(peer, "scope", "tcp://h:2")

    wait_until(lambda: ["scope-0", "scope-1"] == names)
    assert 2 == caplog.text.count("ZeroDivisionError")


def test_callback_that_blocks(peer: Peer, registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that blocks keeps the registry neither from answering nor from ending."""
    monkeypatch.setattr(callbacks, "STOP_TIME", 0.1)
    entered, released = threading.Event(), threading.Event()
    registry.add_new_device_callback(lambda *device: (entered.set(), released.wait(LIMIT)))
    for number in range(50):
        register(peer, "scope", f"tcp://h:{number}")
    assert entered.wait(LIMIT)

    assert 50 == len(registry.get_devices())
    registry.stop()
    registry.join(LIMIT)
    assert not registry._thread.is_alive()
    released.set()


def test_callback_that_asks_the_registry(peer: Peer, registry: DeviceRegistry, context: Any) -> None:
    """A callback may look at the devices, and register one."""
    seen: list[Any] = []

    def callback(type_: str, addr: str, name: str) -> None:
        if type_ == "scope":
            register_device(context, "shadow", addr + "1", "", registry.url)
        seen.append(dict(registry.get_devices()))

    registry.add_new_device_callback(callback)
    register(peer, "scope", "tcp://h:1")

    wait_until(lambda: len(seen) == 2)
    assert ["scope-0", "shadow-0"] == list(seen[1])


def test_callback_that_exits(registry: DeviceRegistry, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """A sys.exit() in a callback is logged, and keeps nothing from the others nor later devices from this one."""
    seen = []
    registry.add_new_device_callback(lambda type_, addr, name: sys.exit(name))
    registry.add_new_device_callback(lambda type_, addr, name: seen.append(name))
    names = [register(peer, "scope", f"tcp://h:{port}")[0] for port in (1, 2)]

    wait_until(lambda: names == seen)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [("SystemExit", name) for name in names] == [(type(each).__name__, str(each)) for each in logged]


def test_callback_that_is_none(registry: DeviceRegistry) -> None:
    """Only what can be called is taken."""
    for add in (registry.add_new_device_callback, registry.add_device_removed_callback):
        with pytest.raises(TypeError, match="a callback is a callable, not str"):
            add("print")  # type: ignore[arg-type]


def test_as_rpc_server(peer: Peer, registry: DeviceRegistry, context: Any) -> None:
    """Every client works on a registry: methods, errors and signals of its interface."""
    heard: list[tuple[Any, ...]] = []
    with PlainClient(context, registry.url) as client:
        client.device_added.connect(lambda entry: heard.append(("added", entry)))
        client.device_changed.connect(lambda entry: heard.append(("changed", entry)))
        client.device_removed.connect(lambda entry, reason: heard.append((reason, entry)))
        register(peer, "scope", "tcp://h:1")
        first = client.find("scope-0")
        _, uuid = register(peer, "laser", "tcp://h:1", "left")

        (second,) = client.list()
        assert ([], [second], second) == (client.list("scope"), client.list("laser"), client.find("left"))
        assert ("left", "laser", "tcp://h:1", uuid) == (second.name, second.device_type, second.address, second.uuid)
        with pytest.raises(DeviceNotFound, match="no device is registered as 'right'"):
            client.find("right")
        register(peer, "laser", "tcp://h:2", "left", uuid=uuid, alive_timeout=60)
        third = client.find("left")
        assert third == client.evict("left")
        with pytest.raises(LookupError, match="no device is registered as 'left'"):
            client.evict("left")
        _, uuid = register(peer, "laser", "tcp://h:3", "left")
        fourth = client.find("left")
        assert peer.ask(request("UNREGISTER", payload={"uuid": uuid}))["payload"]["success"]
        register(peer, "laser", "tcp://h:4", "left", alive_timeout=0.02)

        wait_until(lambda: len(heard) == 9)
        assert [
            ("added", first),
            ("replaced", first),
            ("added", second),
            ("changed", third),
            ("evicted", third),
            ("added", fourth),
            ("unregistered", fourth),
        ] == heard[:7]
        assert ["added", "expired"] == [kind for kind, _ in heard[7:]]


def test_changes_are_for_no_callback(peer: Peer, registry: DeviceRegistry) -> None:
    """A device that moves is neither new nor gone."""
    heard: list[str] = []
    for add in (registry.add_new_device_callback, registry.add_device_removed_callback):
        add(lambda type_, addr, name: heard.append(name))
    _, uuid = register(peer, "scope", "tcp://h:1", "a")
    register(peer, "scope", "tcp://h:2", "a", uuid=uuid)
    register(peer, "scope", "tcp://h:3", "b")

    wait_until(lambda: ["a", "b"] == heard)


def test_evicted_device_registers_again(registry: DeviceRegistry, serve: Any, context: Any) -> None:
    """One that is alive comes back under its name."""
    device = serve(alive_timeout=0.3)
    device.register_to_registry("scope", "left", registry.url)
    with RegistryClient(registry.url, context) as client:
        evicted = client.evict("left")
        assert evicted.uuid != client.wait_for("left", LIMIT).uuid
    assert {"left": ("scope", device.url)} == registry.get_devices()


def test_wait_for(peer: Peer, registry: DeviceRegistry, context: Any) -> None:
    """Who waits for a device gets it at once, when it comes, or is told that it did not come."""
    with RegistryClient(registry.url, context) as client:
        with pytest.raises(DeviceNotFound, match="no device was registered as 'left' in time"):
            client.wait_for("left", 0.05)
        with in_thread(lambda: client.wait_for("left", LIMIT)) as waiting:
            wait_until(lambda: registry._directory._waiters)
            _, uuid = register(peer, "scope", "tcp://h:1", "left")
        assert [uuid] == [entry.uuid for entry in waiting]
        assert uuid == client.wait_for("left", 0.0).uuid
    for timeout in (-1, 3601, float("nan")):
        error = peer.ask(call("wait_for", "left", timeout))["error"]
        assert f"timeout is a number of seconds up to 3600, not {float(timeout)}" == error


def test_many_wait(peer: Peer, registry: DeviceRegistry, context: Any) -> None:
    """Many clients wait while others are served; of one that goes away nobody takes notice."""
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Peer(context, registry.url)) for _ in range(100)]
        vain = stack.enter_context(Peer(context, registry.url))
        for number, each in enumerate(waiting):
            version_2 = {"id": [f"client {number}", 1]} if number % 2 else {}
            each.send(b"", call("wait_for", "late", 60, **version_2))
        vain.send(b"", call("wait_for", "never", 0.1))
        wait_until(lambda: 101 == sum(map(len, registry._directory._waiters.values())))
        for each in waiting[:10]:
            each.socket.close()
        names = [register(peer, "scope", f"tcp://h:{port}")[0] for port in range(20)]
        assert [f"scope-{number}" for number in range(20)] == names
        assert 20 == len(peer.ask(call("list"))["result"])
        assert "no device was registered as 'never' in time" == vain.reply()["error"]
        _, uuid = register(peer, "scope", "tcp://h:99", "late")

        replies = [each.reply() for each in waiting[10:]]
        assert [uuid] * 90 == [reply["result"]["uuid"] for reply in replies]
        ids = [[f"client {number}", 1] if number % 2 else None for number in range(10, 100)]
        assert ids == [reply.get("id") for reply in replies]
    assert 21 == len(peer.ask(call("list"))["result"])


def test_who_waits_at_the_end(context: Any) -> None:
    """A registry that ends tells everybody who waits."""
    made = DeviceRegistry(context, "127.0.0.1", 0)
    made.start()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Peer(context, made.url)) for _ in range(10)]
        for each in waiting:
            each.send(b"", call("wait_for", "never", 60))
        wait_until(lambda: 10 == sum(map(len, made._directory._waiters.values())))
        made.stop()
        assert {"the server is stopping"} == {each.reply()["error"] for each in waiting}
    made.join(LIMIT)


def test_plain_method_call(peer: Peer) -> None:
    """A plain REQ client may call the methods of the registry, too."""
    register(peer, "scope", "tcp://h:1")

    assert "tcp://h:1" == peer.ask(call("find", "scope-0"))["result"]["address"]


def test_watcher_that_blocks(peer: Peer, registry: DeviceRegistry, context: Any) -> None:
    """A watch whose callback blocks keeps neither the registry nor another watch from anything."""
    entered, released = threading.Event(), threading.Event()
    seen: list[str] = []
    with RegistryClient(registry.url, context) as client:
        client.watch(lambda event: (entered.set(), released.wait(LIMIT)))
        client.watch(lambda event: seen.append(f"{event.kind} {event.entry.name}"))
        registry.add_new_device_callback(lambda *device: released.wait(LIMIT))
        register(peer, "scope", "tcp://h:0", "first")
        assert entered.wait(LIMIT)
        wait_until(lambda: ["added first"] == seen)
        for number in range(300):
            _, uuid = register(peer, "scope", f"tcp://h:{number + 1}", f"{number}")
            assert peer.ask(request("UNREGISTER", payload={"uuid": uuid}))["payload"]["success"]
        wait_until(lambda: len(seen) == 601)
        assert [f"{kind} {number}" for number in range(300) for kind in ("added", "removed")] == seen[1:]
        assert ["first"] == [entry.name for entry in client.list()]
        released.set()


class FullStore(MemoryStore):
    """Keeps nothing when it is full."""

    is_full = False

    def save(self, change: Change) -> None:
        self.check()
        super().save(change)

    def renew(self, leases: Mapping[str, float]) -> set[str]:
        self.check()
        return set()

    def check(self) -> None:
        if self.is_full:
            raise StoreError("the disk is full: make room")


def test_what_cannot_be_kept(context: Any) -> None:
    """A device that cannot be kept is refused, with the reason; those that are there stay, renew and may leave."""
    store = FullStore()
    made = DeviceRegistry(context, "127.0.0.1", 0, store)
    made.start()
    with Peer(context, made.url, zmq.REQ) as peer:
        _, uuid = register(peer, "scope", "tcp://h:1")
        store.is_full = True
        reply = peer.ask(request("REGISTER", payload={"device_type": "scope", "addr": "tcp://h:1", "name": ""}))
        assert ("UNSUPPORTED", {"req_event": "REGISTER"}, "the disk is full: make room") == (
            reply["event"],
            reply["payload"],
            reply["error"],
        )
        assert ("", "") == register_device(context, "scope", "tcp://h:2", "", made.url)
        assert {"scope-0": ("scope", "tcp://h:1")} == made.get_devices()
        assert renew(peer, {uuid: 60})["payload"]["success"]
        assert peer.ask(request("CHECK_ALIVE", payload={"uuid": uuid}))["payload"]["success"]
        assert uuid == peer.ask(call("find", "scope-0"))["result"]["uuid"]
        assert peer.ask(request("UNREGISTER", payload={"uuid": uuid}))["payload"]["success"]
        store.is_full = False
        assert "scope-0" == register(peer, "scope", "tcp://h:3")[0]
    made.stop()
    made.join(LIMIT)


class SlowStore(MemoryStore):
    """Asks over a network, and waits for the answer until it is released."""

    is_remote = True

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def save(self, change: Change) -> None:
        self.entered.set()
        assert self.released.wait(LIMIT)
        super().save(change)


@contextlib.contextmanager
def slow_registry(context: Any) -> Iterator[tuple[DeviceRegistry, SlowStore, list[Peer]]]:
    """A registry whose store does not answer, and some peers, of which the first waits for that."""
    store = SlowStore()
    made = DeviceRegistry(context, "127.0.0.1", 0, store)
    made.start()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(context, made.url)) for _ in range(4)]
        peers[0].send(b"", registration_of(0))
        assert store.entered.wait(LIMIT)
        yield made, store, peers
    store.released.set()
    made.stop()
    made.join(LIMIT)
    assert not made._thread.is_alive()


def registration_of(number: int) -> bytes:
    return request("REGISTER", payload={"device_type": "scope", "addr": f"tcp://h:{number}", "name": f"{number}"})


def test_others_are_answered_while_the_store_is_slow(context: Any) -> None:
    """Whatever needs no store is answered at once, and the change is made when the store has kept it."""
    with slow_registry(context) as (made, store, peers):
        assert [] == peers[1].ask(call("list"))["result"]
        assert "rpc_kit.errors.DeviceNotFound" == peers[1].ask(call("find", "0", id=["c", 1]))["error_type"]
        assert peers[1].ask(request("PING"))["success"]
        store.released.set()
        assert "REGISTER_ACK" == peers[0].reply()["event"]
        assert ["0"] == list(made.get_devices())


def test_too_much_waits_for_the_store(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes when too many changes wait is refused at once; later there is room again."""
    monkeypatch.setattr(service, "MOST_PENDING", 2)
    with slow_registry(context) as (made, store, peers):
        peers[1].send(b"", registration_of(1))
        wait_until(lambda: made._room._value == 0)
        refused = peers[2].ask(registration_of(2))
        text = "2 changes wait for the store; nothing was changed"
        assert (False, text) == (refused["success"], refused["error"])
        assert ("", "") == register_device(context, "scope", "tcp://h:4", "", made.url)
        store.released.set()
        assert ["REGISTER_ACK"] * 2 == [each.reply()["event"] for each in peers[:2]]
        assert "REGISTER_ACK" == peers[3].ask(registration_of(3))["event"]
        assert ["0", "1", "3"] == sorted(made.get_devices())


def test_what_waits_too_long_for_the_store(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change for whose answer nobody waits any more is not made, and that is told."""
    monkeypatch.setattr(service, "WORKERS", 1)
    monkeypatch.setattr(service, "PATIENCE", 0.05)
    with slow_registry(context) as (made, store, peers):
        peers[1].send(b"", registration_of(1))
        wait_until(lambda: made._room._value == service.MOST_PENDING - 2)
        sent = time.monotonic()
        wait_until(lambda: time.monotonic() > sent + 2 * service.PATIENCE)
        store.released.set()
        late = peers[1].reply()
        assert ("UNSUPPORTED", False) == (late["event"], late["success"])
        assert "the store took too long; nothing was changed" == late["error"]
        assert "REGISTER_ACK" == peers[0].reply()["event"]
        assert ["0"] == list(made.get_devices())


def test_largest_request(peer: Peer, registry: DeviceRegistry) -> None:
    """Who has more to say than any device is not listened to; just below the limit he is."""
    leases = {"x" * 1000 + f"{number}": 1.0 for number in range(1000)}
    rest = service.LARGEST_REQUEST - len(request("RENEW", payload={"leases": leases}, more=""))
    refused = peer.ask(request("RENEW", payload={"leases": leases}, more="x" * (rest + 1)))

    assert f"the request has {(1 << 20) + 1} bytes, the limit is {1 << 20}" == refused["error"]
    assert 1000 == len(peer.ask(request("RENEW", payload={"leases": leases}, more="x" * rest))["payload"]["unknown"])


def test_restart_with_a_file(context: Any, tmp_path: Path) -> None:
    """Devices are known by the uuids that they had, and nobody notices more than a pause."""
    restartable = Restartable(context, lambda: SqliteStore(tmp_path / "registry.sqlite"))
    with Peer(context, restartable.url) as peer, RegistryClient(restartable.url, context) as client:
        events: queue.Queue[Any] = queue.Queue()
        client.watch(events.put)
        _, uuid = register(peer, "scope", "tcp://h:1", "left", alive_timeout=60)
        assert ("added", "left") == ((event := events.get(timeout=LIMIT)).kind, event.entry.name)
        restartable.stop()
        restartable.start()

        assert peer.ask(request("CHECK_ALIVE", payload={"uuid": uuid}))["payload"]["success"]
        assert uuid == client.find("left").uuid
        assert "left-1" == register(peer, "scope", "tcp://h:2", "left")[0]
        assert ("added", "left-1") == ((event := events.get(timeout=LIMIT)).kind, event.entry.name)
    restartable.stop()


FLOOD = """
import contextlib, random, socket, sys, threading, time
import zmq

URL, SECONDS = sys.argv[1], float(sys.argv[2])
HOST, _, PORT = URL.removeprefix("tcp://").rpartition(":")
VALID = [
    b'{"event": "REGISTER", "payload": {"device_type": "junk", "addr": "tcp://junk:1", "name": "", "metadata": {}}}',
    b'{"event": "RENEW", "payload": {"leases": {"a": 1, "b": 2.5}}}',
    b'{"event": "CHECK_ALIVE", "payload": {"uuid": "a", "alive_timeout": 20}}',
    b'{"event": "UNREGISTER", "payload": {"uuid": "a"}}',
    b'{"event": "METHOD_CALL", "method": "find", "params": {"args": ["junk-0"]}, "id": ["a", 1]}',
    b'{"event": "METHOD_CALL", "method": "wait_for", "params": {"args": ["junk", 0.01]}}',
]
end = time.monotonic() + SECONDS
print("flooding", flush=True)

def garbage(chance):
    if chance.random() < 0.5:
        return chance.randbytes(chance.choice([0, 1, 10, 1000]))
    frame = bytearray(chance.choice(VALID))
    for _ in range(chance.randrange(4)):
        frame[chance.randrange(len(frame))] = chance.randrange(256)
    return bytes(frame)

def flood(seed):
    chance = random.Random(seed)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer, context.socket(zmq.REQ) as req:
        for made in (dealer, req):
            made.linger, made.sndtimeo = 0, 100
            made.connect(URL)
        while time.monotonic() < end:
            with contextlib.suppress(zmq.ZMQError):
                dealer.send_multipart([garbage(chance) for _ in range(chance.choice([1, 1, 2, 3, 100]))])
                req.send(garbage(chance), zmq.NOBLOCK)

def connect(seed):
    chance = random.Random(seed)
    while time.monotonic() < end:
        greeting = chance.choice([b"", b"\\xff" + bytes(8) + b"\\x7f"])
        with contextlib.suppress(OSError), socket.create_connection((HOST, int(PORT)), 1) as made:
            made.sendall(greeting + chance.randbytes(chance.randrange(2000)))

seed = int(sys.argv[3])
for target in (flood, flood, connect):
    seed += 1
    threading.Thread(target=target, args=(seed,)).start()
"""


@contextlib.contextmanager
def flooded(url: str, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Some processes that send nonsense for some time, each from several threads."""
    with contextlib.ExitStack() as stack:
        flooding = []
        for seed in (100, 200):
            process = subprocess.Popen(
                [sys.executable, "-c", FLOOD, url, str(seconds), str(seed)],
                cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None and "flooding\n" == process.stdout.readline()
            flooding.append(process)
        yield flooding


def test_flood_of_garbage(registry: DeviceRegistry, peer: Peer, context: Any) -> None:
    """While others send nonsense as fast as they can, a hundred devices with short leases stay registered."""
    lost: list[str] = []
    registry.add_device_removed_callback(lambda type_, addr, name: lost.append(name) if type_ == "scope" else None)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(InstrumentServer(context, "tcp://127.0.0.1:0", alive_timeout=3)) for _ in range(10)
        ]
        for server in servers:
            server.register_to_registry("scope", "", registry.url, overwrite=False)
        uuids = {server.uuid for server in servers}
        leases = {register(peer, "scope", f"tcp://h:{port}", alive_timeout=3)[1]: 3.0 for port in range(90)}
        slowest = 0.0
        with flooded(registry.url, 5.0) as flooding:
            while any(process.poll() is None for process in flooding):
                began = time.monotonic()
                assert renew(peer, leases)["payload"]["success"]
                assert 100 <= len(peer.ask(call("list", "scope"))["result"])
                slowest = max(slowest, time.monotonic() - began)
            assert [(0, "")] * 2 == [(process.returncode, process.communicate()[1]) for process in flooding]

        listed = [entry.uuid for entry in registry._directory.entries("scope")]
        assert uuids | leases.keys() == {*listed}
        assert uuids == {server.uuid for server in servers}
        assert ([], 100) == (lost, len(listed))
        assert slowest < registration.REGISTRY_TIMEOUT


def test_two_registries_in_one_context(context: Any, registry: DeviceRegistry) -> None:
    """They share nothing."""
    other = DeviceRegistry(context, "127.0.0.1", "0")
    other.start()
    register_device(context, "scope", "tcp://h:1", "", registry.url)
    register_device(context, "laser", "tcp://h:1", "", other.url)
    listed = (list(registry.get_devices()), list(other.get_devices()))
    other.stop()
    other.join(LIMIT)

    assert (["scope-0"], ["laser-0"]) == listed
    assert not other._thread.is_alive()


def test_port_in_use(context: Any, registry: DeviceRegistry) -> None:
    """The error names the address."""
    port = registry.url.rpartition(":")[2]

    with pytest.raises(OSError, match=f"cannot bind to tcp://127.0.0.1:{port}"):
        DeviceRegistry(context, "127.0.0.1", port)


@pytest.mark.parametrize("addr", ["*", "127.0.0.1", "localhost", "::1", "[::1]"])
def test_addresses(context: Any, addr: str) -> None:
    """A registry listens on everything, a host name, IPv4 or IPv6."""
    made = DeviceRegistry(context, addr, 0)
    made.start()
    url = made.url.replace("*", "127.0.0.1")
    name, uuid = register_device(context, "scope", "tcp://h:1", "", url)
    state = send_alive_check(context, uuid, url)
    made.stop()
    made.join(LIMIT)

    assert ("scope-0", "ok") == (name, state)


def test_never_started(context: Any) -> None:
    """A registry that was never started can be stopped, as often as one likes."""
    made = DeviceRegistry(context, "127.0.0.1", 0)
    made.stop()
    made.stop()


def test_stopped_at_once(context: Any) -> None:
    """A registry may be stopped before its thread has got anywhere."""
    for _ in range(20):
        made = DeviceRegistry(context, "127.0.0.1", 0)
        made.start()
        made.stop()
        made.join(LIMIT)

        assert not made._thread.is_alive()
