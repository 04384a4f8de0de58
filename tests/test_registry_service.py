"""The registry as its clients meet it: messages byte by byte, names, leases, callbacks, garbage."""

import sys
import threading
from typing import Any

import pytest
import zmq

from registry import DeviceRegistry, Entry, Registry, register_device, send_alive_check, service, table
from rpc_kit import RPCClient
from tests.devices import LIMIT
from tests.helpers import Peer, call, request, wait_until


@RPCClient.register_interface(Registry)
class RegistryClient(Registry, RPCClient):
    pass


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


def test_messages_of_version_1(peer: Peer) -> None:
    """The replies are those of the protocol, byte by byte."""
    _, uuid = register(peer, "scope", "tcp://h:1")

    for success, expected in ((uuid, b"true"), ("unknown", b"false")):
        peer.send(request("CHECK_ALIVE", payload={"uuid": success}))
        assert b'{"event":"ACK","payload":{"req_event":"CHECK_ALIVE","success":' + expected + b"}}" == peer.receive()[0]
    for expected in (b"true", b"false"):
        peer.send(request("UNREGISTER", payload={"uuid": uuid}))
        assert b'{"event":"ACK","payload":{"req_event":"UNREGISTER","success":' + expected + b"}}" == peer.receive()[0]


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
    monkeypatch.setattr(service, "STOP_TIME", 0.1)
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
    heard: list[tuple[str, ...]] = []
    with RegistryClient(context, registry.url) as client:
        client.device_added.connect(lambda *device: heard.append(("added", *device)))
        client.device_removed.connect(lambda *device: heard.append(("removed", *device)))
        _, uuid = register(peer, "scope", "tcp://h:1")
        register(peer, "laser", "tcp://h:1", "left")

        (entry,) = client.list()
        assert ([], [entry], entry) == (client.list("scope"), client.list("laser"), client.find("left"))
        assert Entry(entry.uuid, "left", "laser", "tcp://h:1") == entry
        with pytest.raises(LookupError, match="no device is registered as 'right'"):
            client.find("right")
        wait_until(lambda: len(heard) == 3)
        assert [("removed", "scope", "tcp://h:1", "scope-0"), ("added", "laser", "tcp://h:1", "left")] == heard[1:]


def test_plain_method_call(peer: Peer) -> None:
    """A plain REQ client may call the methods of the registry, too."""
    register(peer, "scope", "tcp://h:1")

    assert "tcp://h:1" == peer.ask(call("find", "scope-0"))["result"]["address"]


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
