"""The client side of the registry: registries that restart, vanish or talk nonsense."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import pytest
import zmq

from registry import (
    AliveCheckState,
    DeviceRegistry,
    find_device,
    register_device,
    send_alive_check,
    unregister_device,
)
from rpc_kit import registration
from rpc_kit.errors import DeviceNotFound, RegistryUnreachable
from rpc_kit.registration import Registrar
from tests.devices import LIMIT, InstrumentServer
from tests.helpers import Peer, call, in_thread, wait_until

ADDRESS = "tcp://127.0.0.1:9000"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that does not answer is given up soon."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", 0.3)
    monkeypatch.setattr(registration, "FIRST_BACKOFF", 0.01)


class ScriptedRegistry:
    """Counts the messages that come, and answers what it is told to; None is silence."""

    def __init__(self, context: Any) -> None:
        self.seen: Counter[str] = Counter()
        self.payloads: dict[str, Any] = {}
        self.answers: dict[str, bytes | None] = {}
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.rcvtimeo = 20
        self.url = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        self._thread.join(LIMIT)
        self._socket.close()

    def _run(self) -> None:
        while not self._ended:
            try:
                message = json.loads(self._socket.recv())
            except zmq.Again:
                continue
            event = message["event"]
            self.payloads[event] = message.get("payload")
            self.seen[event] += 1
            answer = self.answers.get(event, acknowledge(event))
            self._socket.send(b"" if answer is None else answer)


def acknowledge(event: str, success: bool = True) -> bytes:
    if event == "REGISTER":
        return b'{"event": "REGISTER_ACK", "payload": {"name": "scope-1", "uuid": "some-uuid"}}'
    return json.dumps({"event": "ACK", "payload": {"req_event": event, "success": success}}).encode()


@pytest.fixture
def scripted(context: Any) -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry(context) as made:
        yield made


@pytest.fixture
def silent(context: Any) -> Iterator[str]:
    """The url of something that never answers."""
    with context.socket(zmq.ROUTER) as made:
        made.linger = 0
        yield f"tcp://127.0.0.1:{made.bind_to_random_port('tcp://127.0.0.1')}"


def test_helpers(registry: DeviceRegistry, context: Any) -> None:
    """Register, renew, find, unregister."""
    name, uuid = register_device(context, "scope", ADDRESS, "", registry.url)

    assert {"scope-0": ("scope", ADDRESS)} == registry.get_devices()
    assert ("scope-0", ADDRESS) == (name, find_device(context, "scope-0", registry.url))
    assert AliveCheckState.ok == send_alive_check(context, uuid, registry.url)
    assert unregister_device(context, uuid, registry.url)
    assert not unregister_device(context, uuid, registry.url)
    assert AliveCheckState.unknown == send_alive_check(context, uuid, registry.url)
    with pytest.raises(DeviceNotFound, match="no device is registered as 'scope-0'"):
        find_device(context, "scope-0", registry.url)


def test_helpers_without_registry(silent: str, context: Any) -> None:
    """Nobody answers: each helper says so in its way, within its limit."""
    assert ("", "") == register_device(context, "scope", ADDRESS, "", silent)
    assert not unregister_device(context, "uuid", silent)
    assert AliveCheckState.unreachable == send_alive_check(context, "uuid", silent)
    with pytest.raises(RegistryUnreachable, match=f"the registry at {silent} did not answer within 0.1 s"):
        find_device(context, "scope-0", silent, timeout=0.1)


@pytest.mark.parametrize("nonsense", [b"", b"\xff", b"[]", b"{}", b'{"payload": 1}', b'{"event": "UNSUPPORTED"}'])
def test_helpers_with_nonsense(scripted: ScriptedRegistry, context: Any, nonsense: bytes) -> None:
    """An answer that is none counts as no answer."""
    scripted.answers = dict.fromkeys(("REGISTER", "UNREGISTER", "CHECK_ALIVE", "METHOD_CALL"), nonsense)

    assert ("", "") == register_device(context, "scope", ADDRESS, "", scripted.url)
    assert not unregister_device(context, "uuid", scripted.url)
    assert AliveCheckState.unreachable == send_alive_check(context, "uuid", scripted.url)
    with pytest.raises(ValueError, match="the registry at .* gave no address|not a reply"):
        find_device(context, "scope-0", scripted.url)


def test_device_registers(registry: DeviceRegistry, serve: Any) -> None:
    """A served device has the name that the registry accepted, and is unregistered at its end."""
    device = serve()
    accepted = device.register_to_registry("scope", "left", registry.url)

    assert ("left", "left", registry.url) == (accepted, device.name, device.registry_addr)
    assert {"left": ("scope", device.url)} == registry.get_devices()
    assert device.uuid
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)
    assert {} == registry.get_devices()


def test_wildcard_is_registered_by_address(registry: DeviceRegistry, serve: Any, connect: Any) -> None:
    """A device that listens everywhere is registered by an address that can be connected to, with one port."""
    device = serve(url="tcp://*:0")
    device.register_to_registry("scope", "", registry.url)
    address = registry.get_devices()["scope-0"][1]

    assert (f"tcp://127.0.0.1:{device.port}", address) == (address, device.peer_addr)
    assert 3 == connect(address).add(1, 2)


def test_register_twice(registry: DeviceRegistry, serve: Any) -> None:
    """A device registers once."""
    device = serve()
    device.register_to_registry("scope", "", registry.url)

    with pytest.raises(RuntimeError, match="is registered"):
        device.register_to_registry("scope", "", registry.url)


def test_register_without_registry(silent: str, serve: Any, connect: Any) -> None:
    """The device says that there is none, serves nevertheless, and may register later."""
    device = serve()
    with pytest.raises(RegistryUnreachable, match=f"no registry answered at {silent} within"):
        device.register_to_registry("scope", "", silent)

    assert ("InstrumentServer", "", "") == (device.name, device.uuid, device.registry_addr)
    assert 3 == connect(device.url).add(1, 2)


def test_lease_is_renewed(scripted: ScriptedRegistry, context: Any) -> None:
    """The first renewal comes at once, the next ones every third of the lease."""
    device = InstrumentServer(context, "tcp://127.0.0.1:0", alive_timeout=0.15)
    with device:
        assert "scope-1" == device.register_to_registry("scope", "scope", scripted.url)
        wait_until(lambda: scripted.seen["CHECK_ALIVE"] >= 4)

    assert {"uuid": "some-uuid", "alive_timeout": 0.15} == scripted.payloads["CHECK_ALIVE"]
    assert {"device_type": "scope", "addr": device.url, "name": "scope", "overwrite": True} == (
        scripted.payloads["REGISTER"]
    )
    assert (1, 1) == (scripted.seen["REGISTER"], scripted.seen["UNREGISTER"])


def test_request_path_does_not_ask_registry(scripted: ScriptedRegistry, serve: Any, connect: Any) -> None:
    """Calls cost no question to the registry."""
    device = serve()
    device.register_to_registry("scope", "scope", scripted.url)
    wait_until(lambda: scripted.seen["CHECK_ALIVE"] == 1)
    client = connect(device.url)
    for number in range(50):
        assert number + 1 == client.add(number)

    assert {"REGISTER": 1, "CHECK_ALIVE": 1} == scripted.seen
    assert "scope-1" == client.name


def test_forgotten_device_registers_again(scripted: ScriptedRegistry, context: Any) -> None:
    """A registry that does not know the device any more gets it again under the accepted name."""
    scripted.answers["CHECK_ALIVE"] = acknowledge("CHECK_ALIVE", False)
    registrar = Registrar(context, "scope", ADDRESS, "scope", scripted.url, False, 60)
    wait_until(lambda: scripted.seen["REGISTER"] >= 2)
    assert "scope-1" == scripted.payloads["REGISTER"]["name"]
    registrar.stop()
    registrar.stop()

    assert 1 == scripted.seen["UNREGISTER"]


def test_registry_that_vanishes(scripted: ScriptedRegistry, serve: Any, connect: Any) -> None:
    """A device goes on serving without its registry, and is renewed when that is back."""
    device = serve(alive_timeout=0.15)
    device.register_to_registry("scope", "scope", scripted.url)
    client = connect(device.url)
    scripted.answers["CHECK_ALIVE"] = b"nonsense"
    before = scripted.seen["CHECK_ALIVE"]
    wait_until(lambda: scripted.seen["CHECK_ALIVE"] >= before + 3)
    assert 3 == client.add(1, 2)
    del scripted.answers["CHECK_ALIVE"]
    before = scripted.seen["CHECK_ALIVE"]
    wait_until(lambda: scripted.seen["CHECK_ALIVE"] >= before + 3)

    assert 1 == scripted.seen["REGISTER"]


def test_registry_restarted(context: Any, serve: Any, connect: Any) -> None:
    """After a restart of the registry on the same port every device is there again under its name."""
    first = DeviceRegistry(context, "127.0.0.1", 0)
    first.start()
    devices = [serve(alive_timeout=0.3) for _ in range(3)]
    names = [device.register_to_registry("scope", "", first.url, overwrite=False) for device in devices]
    url = first.url
    first.stop()
    first.join(LIMIT)
    for device in devices:
        assert 3 == connect(device.url).add(1, 2)
    port = int(url.rpartition(":")[2])
    second: Any = None

    def rebound() -> bool:
        nonlocal second
        try:
            second = DeviceRegistry(context, "127.0.0.1", port)
        except OSError:  # the old socket is let go in the background
            return False
        return True

    wait_until(rebound)
    second.start()
    wait_until(lambda: len(second.get_devices()) == 3)
    found = {device.name: ("scope", device.url) for device in devices}
    listed = second.get_devices()
    for device in devices:
        device.stop_server()
        assert device._rpc.finished.wait(LIMIT)
    gone = second.get_devices()
    second.stop()
    second.join(LIMIT)

    assert (["scope-0", "scope-1", "scope-2"], found, {}) == (names, listed, gone)
    assert set(names) == set(listed)


def test_killed_device_is_forgotten(registry: DeviceRegistry, spawn: Any) -> None:
    """A process that dies without a word is removed when its lease ends; its successor gets its name."""
    arguments = ("tests.instrument", "serve", "tcp://127.0.0.1:0", "--registry", registry.url, "--lease", "0.5")
    removed = []
    registry.add_device_removed_callback(lambda *device: removed.append(device))
    first = spawn(*arguments, "--name", "left")
    # Until the first renewal a new entry lives for 20 s.
    wait_until(lambda: registry._server._table.next_end() < time.monotonic() + 1)
    first.kill()
    wait_until(lambda: [("instrument", first.line, "left")] == removed)
    second = spawn(*arguments, "--name", "left")

    assert {"left": ("instrument", second.line)} == registry.get_devices()


def test_registry_answers_during_calls_of_device(registry: DeviceRegistry, serve: Any, context: Any) -> None:
    """A device whose method takes longer than its lease stays registered."""
    device = serve(alive_timeout=0.2)
    device.register_to_registry("scope", "left", registry.url)
    with Peer(context, device.url) as peer:
        peer.send(b"", call("pause", 0.7))

        assert peer.reply()["success"]
    assert ["left"] == list(registry.get_devices())


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_context_of_registered_device_is_terminated(
    scripted: ScriptedRegistry, context: Any, caplog: pytest.LogCaptureFixture, busy: bool
) -> None:
    """The server ends, with a warning that it could not be unregistered, and leaves no thread."""
    own: Any = zmq.Context()
    device = InstrumentServer(own, "tcp://127.0.0.1:0", alive_timeout=0.15)
    device.register_to_registry("scope", "scope", scripted.url)
    with in_thread(device.serve_forever) as served, Peer(context, device.url) as peer:
        wait_until(lambda: scripted.seen["CHECK_ALIVE"] >= 2)
        peer.ask(call("count"))
        if busy:
            peer.send(b"", call("block"))
            assert device.entered.wait(LIMIT)
        with in_thread(own.term) as ended:
            wait_until(lambda: busy or ended)
            device.released.set()

    assert ([None], [None]) == (served, ended)
    assert "scope-1 could not be unregistered" in caplog.text
    assert [] == [thread for thread in threading.enumerate() if thread.name in ("rpc-registrar", "rpc-standby")]
