"""Devices that stay registered: leases, registries that vanish, restart or refuse, many devices, every end."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zmq

from registry import DeviceRegistry
from rpc_kit import registrar, registration, server_engine, sockets
from rpc_kit.errors import RegistryRefused
from rpc_kit.interface import Interface
from rpc_kit.lookup import RegistryClient
from rpc_kit.messages import Registration
from rpc_kit.registrar import Member, Registrar
from tests.devices import LIMIT, Instrument, InstrumentServer
from tests.helpers import Peer, call, in_thread, wait_until
from tests.registries import Restartable, ScriptedRegistry, acknowledge, unsupported

URL = "tcp://127.0.0.1:0"
ANSWER_TIME = 0.4
"""How long registries have to answer here, s."""
LEASE = 0.3
"""Renewed every tenth of a second."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that does not answer is given up, and tried again, soon."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", ANSWER_TIME)
    monkeypatch.setattr(registrar, "FIRST_BACKOFF", 0.01)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """After each test no registrar runs."""
    yield
    wait_until(lambda: [] == registrars())


def registrars() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "rpc-registrar"]


@pytest.fixture
def scripted(context: Any) -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry(context) as made:
        yield made


@pytest.fixture
def other(context: Any) -> Iterator[ScriptedRegistry]:
    """A second one."""
    with ScriptedRegistry(context) as made:
        yield made


def elapse(seconds: float) -> None:
    """Let time pass."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end)


def ended(device: Any) -> None:
    """Stop a server, and wait for its end."""
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)


def test_device_registers(registry: DeviceRegistry, serve: Any) -> None:
    """A served device has the name that the registry accepted, and is unregistered at its end."""
    device = serve()
    accepted = device.register_to_registry("scope", "left", registry.url)

    assert ("left", "left", registry.url) == (accepted, device.name, device.registry_addr)
    assert {"left": ("scope", device.url)} == registry.get_devices()
    assert device.uuid
    ended(device)
    assert {} == registry.get_devices()


def test_what_the_registry_is_told(scripted: ScriptedRegistry, serve: Any) -> None:
    """Type, address and name; interface, run, lease, and what the device wants to be found by besides its host."""
    device = serve(alive_timeout=7)
    device.register_to_registry("scope", "left", scripted.url, metadata={"room": 3, "pid": "mine"})
    (told,) = scripted.payloads("REGISTER")

    assert {"host", "pid", "version", "room"} == told["metadata"].keys()
    assert (3, "mine") == (told["metadata"]["room"], told["metadata"]["pid"])
    assert {
        "device_type": "scope", "addr": device.url, "name": "left", "overwrite": True, "alive_timeout": 7,
        "interface": "Instrument", "interface_hash": Interface.of(Instrument).hash, "epoch": device._rpc.epoch,
    } == {key: value for key, value in told.items() if key not in ("metadata", "addresses")}  # fmt: skip


def test_wildcard_is_registered_by_addresses(
    registry: DeviceRegistry, serve: Any, connect: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that listens everywhere is registered by what can be connected to, all with its one port."""
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["192.0.2.7", "198.51.100.8"])
    device = serve(url="tcp://*:0")
    device.register_to_registry("scope", "", registry.url)
    with RegistryClient(registry.url, context) as client:
        entry = client.find("scope-0")

    assert (f"tcp://127.0.0.1:{device.port}", entry.address) == (entry.address, device.peer_addr)
    assert tuple(f"tcp://{host}:{device.port}" for host in ("127.0.0.1", "192.0.2.7", "198.51.100.8")) == (
        entry.addresses
    )
    assert 3 == connect(entry.address).add(1, 2)


def test_host_of_very_many_addresses(registry: DeviceRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with more addresses than a registry takes, as one of many containers, is no reason to be refused."""
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: [f"192.0.2.{number}" for number in range(100)])
    device = serve(url="tcp://*:0")

    assert "scope-0" == device.register_to_registry("scope", "", registry.url)


def test_register_twice(registry: DeviceRegistry, serve: Any) -> None:
    """A device registers once."""
    device = serve()
    device.register_to_registry("scope", "", registry.url)

    with pytest.raises(RuntimeError, match="is registered"):
        device.register_to_registry("scope", "", registry.url)


@pytest.mark.parametrize("max_missed", [0, -1])
def test_wrong_max_missed(serve: Any, max_missed: int) -> None:
    """Less than one miss makes no sense."""
    with pytest.raises(ValueError, match="max_missed is a positive number or None"):
        serve().register_to_registry("scope", "", "tcp://127.0.0.1:5555", max_missed=max_missed)


@pytest.mark.parametrize(
    ("url", "text"), [("tcp://*:5555", "is no registry"), ("ipc://" + "x" * 200, "cannot be connected to")]
)
def test_wrong_url(serve: Any, registry: DeviceRegistry, url: str, text: str) -> None:
    """A url that nobody can connect to is told at once, and the device may register elsewhere."""
    device = serve()
    with pytest.raises(ValueError, match=text):
        device.register_to_registry("scope", "", url)

    assert "scope-0" == device.register_to_registry("scope", "", registry.url)


def test_lease_is_renewed(scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal comes at every third of the lease, with a jitter of a fifth of that."""
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(registrar.random, "uniform", lambda *limits: drawn.append(limits) or 0.8)
    device = serve(alive_timeout=0.6)
    device.register_to_registry("scope", "left", scripted.url)
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= 3)
    times = scripted.times("REGISTER", "CHECK_ALIVE")

    assert {"uuid": "uuid-1", "alive_timeout": 0.6} == scripted.payloads("CHECK_ALIVE")[-1]
    assert [] == [pair for pair in zip(times, times[1:]) if pair[1] - pair[0] < 0.8 * 0.2 - 0.001]
    assert {(0.8, 1.0)} == set(drawn)
    ended(device)
    assert (1, [{"uuid": "uuid-1"}]) == (scripted.count("REGISTER"), scripted.payloads("UNREGISTER"))


def test_first_renewal_of_long_lease(
    scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a registry of version 1 gives 20 s at first, whatever was asked for, the first renewal comes soon."""
    monkeypatch.setattr(registrar, "FIRST_RENEWAL", 0.05)
    device = serve(alive_timeout=3600)
    device.register_to_registry("scope", "left", scripted.url)
    wait_until(lambda: scripted.count("CHECK_ALIVE") == 1)

    assert {"uuid": "uuid-1", "alive_timeout": 3600} == scripted.payloads("CHECK_ALIVE")[0]


def test_request_path_does_not_ask_registry(
    scripted: ScriptedRegistry, serve: Any, connect: Any
) -> None:
    """Calls cost no question to the registry."""
    device = serve()
    device.register_to_registry("scope", "left", scripted.url)
    client = connect(device.url)
    for number in range(50):
        assert number + 1 == client.add(number)

    assert ["REGISTER"] == [event for _, event, _ in scripted.heard]
    assert "left" == client.name


def test_many_devices(scripted: ScriptedRegistry, serve: Any) -> None:
    """All devices of a process are renewed in one message, each for its own lease."""
    devices = [serve(alive_timeout=LEASE + number) for number in range(5)]
    for number, device in enumerate(devices):
        device.register_to_registry("scope", f"scope-{number}", scripted.url)
    expected = {f"uuid-{number + 1}": LEASE + number for number in range(5)}
    wait_until(lambda: scripted.payloads("RENEW")[-2:] == 2 * [{"leases": expected}])

    assert 5 == scripted.count("REGISTER")
    assert 1 == len(registrars())


def test_very_many_devices(scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message has a limited number of renewals."""
    monkeypatch.setattr(registrar, "MOST_RENEWALS", 2)
    for number in range(5):
        serve(alive_timeout=LEASE).register_to_registry("scope", f"scope-{number}", scripted.url)

    def is_complete() -> bool:
        last = [message[1:] for message in list(scripted.heard)[-3:]]
        return ["RENEW", "RENEW", "CHECK_ALIVE"] == [event for event, _ in last] and [2, 2] == [
            len(payload["leases"]) for _, payload in last[:2]
        ]

    wait_until(is_complete)


def test_devices_of_real_registry(registry: DeviceRegistry, serve: Any) -> None:
    """A registry keeps all devices that are renewed in one message, for longer than their lease."""
    for _ in range(5):
        serve(alive_timeout=1.5).register_to_registry("scope", "", registry.url, overwrite=False)
    removed: list[Any] = []
    registry.add_device_removed_callback(lambda *device: removed.append(device))
    elapse(2.0)

    assert ([f"scope-{number}" for number in range(5)], []) == (list(registry.get_devices()), removed)


def test_one_by_one_at_registry_of_version_1(scripted: ScriptedRegistry, serve: Any) -> None:
    """A registry that does not know RENEW gets a message for each device, and what it says of one concerns that one."""
    scripted.answers["RENEW"] = unsupported("RENEW")
    devices = [serve(alive_timeout=LEASE) for _ in range(3)]
    for number, device in enumerate(devices):
        device.register_to_registry("scope", f"scope-{number}", scripted.url)
    wait_until(lambda: len({payload["uuid"] for payload in scripted.payloads("CHECK_ALIVE")}) == 3)
    assert 3 == scripted.count("REGISTER")
    scripted.answers["CHECK_ALIVE"] = acknowledge("CHECK_ALIVE", False)
    wait_until(lambda: scripted.count("REGISTER") >= 6)

    again = scripted.payloads("REGISTER")[3:6]
    assert [f"scope-{number}" for number in range(3)] == sorted(payload["name"] for payload in again)


def test_unknown_device_registers_again(scripted: ScriptedRegistry, serve: Any) -> None:
    """A registry that does not know a device any more gets it again, under the accepted name."""
    scripted.answers["CHECK_ALIVE"] = acknowledge("CHECK_ALIVE", False)
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "", scripted.url)
    wait_until(lambda: device.uuid == "uuid-2")

    assert ["", "scope-1"] == [payload["name"] for payload in scripted.payloads("REGISTER")[:2]]
    assert "scope-1" == device.name


def test_one_of_many_is_unknown(scripted: ScriptedRegistry, serve: Any) -> None:
    """Of many devices only the one that is unknown registers again."""
    devices = [serve(alive_timeout=LEASE) for _ in range(3)]
    for number, device in enumerate(devices):
        device.register_to_registry("scope", f"scope-{number}", scripted.url)
    scripted.answers["RENEW"] = acknowledge("RENEW", False, unknown=["uuid-2"])
    wait_until(lambda: devices[1].uuid == "uuid-4")

    assert ["uuid-1", "uuid-4", "uuid-3"] == [device.uuid for device in devices]
    assert "scope-1" == scripted.payloads("REGISTER")[3]["name"]


def test_evicted_device_comes_back(registry: DeviceRegistry, serve: Any) -> None:
    """A device that an operator removes while it is alive is there again after a third of its lease."""
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "left", registry.url)
    before = device.uuid
    registry.evict("left")
    wait_until(lambda: registry.get_devices() == {"left": ("scope", device.url)})

    assert before != registry.find("left").uuid
    wait_until(lambda: device.uuid == registry.find("left").uuid)


@pytest.mark.parametrize("unknown", [None, 5, "uuid-1", {"uuid-1": 1}])
def test_nonsense_in_reply(scripted: ScriptedRegistry, serve: Any, unknown: Any) -> None:
    """A registry that says nonsense of the devices does not end their renewals."""
    scripted.answers["RENEW"] = acknowledge("RENEW", True, unknown=unknown)
    for _ in range(2):
        serve(alive_timeout=LEASE).register_to_registry("scope", "", scripted.url)
    wait_until(lambda: scripted.count("RENEW") >= 3)

    assert 2 == scripted.count("REGISTER")


def test_devices_that_come_do_not_put_off_renewals(scripted: ScriptedRegistry, serve: Any) -> None:
    """While one device after the other registers, those that are there already are renewed in time."""
    serve(alive_timeout=0.9).register_to_registry("scope", "", scripted.url)
    began = time.monotonic()
    while time.monotonic() < began + 1.2:
        serve(alive_timeout=0.9).register_to_registry("scope", "", scripted.url)
        elapse(0.05)

    times = [began, *scripted.times("RENEW", "CHECK_ALIVE")]
    assert len(times) > 2
    assert [] == [pair for pair in zip(times, times[1:]) if pair[1] - pair[0] > 0.9]


def test_registry_comes_later(context: Any, serve: Any, connect: Any, restarted: Restartable) -> None:
    """Without a registry a device has no name yet, and serves; when the registry comes it is registered there."""
    restarted.stop()
    device = serve(alive_timeout=LEASE)
    began = time.monotonic()
    assert "" == device.register_to_registry("scope", "left", restarted.url)
    assert time.monotonic() - began < 2 * ANSWER_TIME + 1

    assert ("InstrumentServer", "", "") == (device.name, device.uuid, device.registry_addr)
    assert "not registered" in device._rpc._status()
    assert 3 == connect(device.url).add(1, 2)
    restarted.start()
    wait_until(lambda: device.uuid)
    assert ("left", restarted.url) == (device.name, device.registry_addr)
    assert {"left": ("scope", device.url)} == restarted.registry.get_devices()
    assert "not registered" not in device._rpc._status()


def test_one_of_many_waits_for_silent_registry(
    scripted: ScriptedRegistry, serve: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no registry answers, it is one device in each round that waits for it; then all are registered at once."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", 0.05)
    scripted.is_silent = True
    devices = [serve(alive_timeout=LEASE) for _ in range(10)]
    for device in devices:
        assert "" == device.register_to_registry("scope", "", scripted.url)
    caplog.clear()
    before = scripted.count("REGISTER")
    wait_until(lambda: caplog.text.count("next try in") >= 5)
    assert scripted.count("REGISTER") - before <= caplog.text.count("next try in") + 1
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", ANSWER_TIME)
    scripted.is_silent = False

    wait_until(lambda: all(device.uuid for device in devices))


def test_registry_that_vanishes(scripted: ScriptedRegistry, serve: Any, connect: Any) -> None:
    """A device goes on serving without its registry, and is renewed when that is back."""
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "left", scripted.url)
    client = connect(device.url)
    scripted.is_silent = True
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 2)
    assert 3 == client.add(1, 2)
    scripted.is_silent = False
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 3)

    assert (1, "left") == (scripted.count("REGISTER"), device.name)


def test_registry_restarted(restarted: Restartable, serve: Any, connect: Any) -> None:
    """After a restart of the registry on the same port every device is there again under its name."""
    devices = [serve(alive_timeout=LEASE) for _ in range(3)]
    names = [device.register_to_registry("scope", "", restarted.url, overwrite=False) for device in devices]
    restarted.stop()
    for device in devices:
        assert 3 == connect(device.url).add(1, 2)
    restarted.start()
    expected = {device.name: ("scope", device.url) for device in devices}
    wait_until(lambda: restarted.registry.get_devices() == expected)

    assert ["scope-0", "scope-1", "scope-2"] == names == [device.name for device in devices]
    for device in devices:
        ended(device)
    assert {} == restarted.registry.get_devices()


@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_first_registry_does_not_answer(
    scripted: ScriptedRegistry, registry: DeviceRegistry, nobody: str, serve: Any, kind: str
) -> None:
    """The next one is used, and is the one that is asked from then on."""
    scripted.is_silent = True
    device = serve(alive_timeout=1.2)
    urls = [nobody if kind == "dead" else scripted.url, registry.url]

    assert "left" == device.register_to_registry("scope", "left", urls)
    assert registry.url == device.registry_addr
    elapse(1.3)
    assert {"left": ("scope", device.url)} == registry.get_devices()
    assert (1 if kind == "silent" else 0) == len(scripted.heard)


def test_registry_goes_silent(scripted: ScriptedRegistry, other: ScriptedRegistry, serve: Any) -> None:
    """When the registry is lost the renewals go to the next one, and back when that is lost."""
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "left", f"{scripted.url}, {other.url}")
    assert (scripted.url, []) == (device.registry_addr, other.heard)
    scripted.is_silent = True
    wait_until(lambda: other.count("CHECK_ALIVE") >= 3)

    assert ([("uuid-1", LEASE)], other.url) == (
        list({(each["uuid"], each["alive_timeout"]) for each in other.payloads("CHECK_ALIVE")}),
        device.registry_addr,
    )
    scripted.is_silent, other.is_silent = False, True
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 3)
    assert (scripted.url, 0) == (device.registry_addr, other.count("REGISTER"))


def test_other_registry_does_not_know(scripted: ScriptedRegistry, registry: DeviceRegistry, serve: Any) -> None:
    """At a registry that does not know the devices all of them register again under their names."""
    devices = [serve(alive_timeout=LEASE) for _ in range(3)]
    urls = [scripted.url, registry.url]
    for number, device in enumerate(devices):
        device.register_to_registry("scope", f"scope-{number}", urls)
    scripted.is_silent = True

    wait_until(lambda: ["scope-0", "scope-1", "scope-2"] == sorted(registry.get_devices()))
    wait_until(lambda: {each.uuid for each in registry.list()} == {device.uuid for device in devices})
    assert 3 * [registry.url] == [device.registry_addr for device in devices]


def test_both_registries_lost(scripted: ScriptedRegistry, other: ScriptedRegistry, serve: Any) -> None:
    """When none is there they are tried in turn, and the first that is back is used."""
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "left", [scripted.url, other.url])
    scripted.is_silent = other.is_silent = True
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: other.count("CHECK_ALIVE") >= 2 and scripted.count("CHECK_ALIVE") >= before + 2)
    other.is_silent = False
    before = other.count("CHECK_ALIVE")
    wait_until(lambda: other.count("CHECK_ALIVE") >= before + 3)

    assert ("left", other.url) == (device.name, device.registry_addr)


def test_max_missed(scripted: ScriptedRegistry, serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A server ends when as many renewals were missed as it was told, not before, and not without that."""
    lasting, device = serve(alive_timeout=0.9), serve(alive_timeout=0.9)
    lasting.register_to_registry("scope", "", scripted.url)
    device.register_to_registry("scope", "", scripted.url, max_missed=3)
    wait_until(lambda: scripted.count("RENEW") >= 2)
    scripted.is_silent = True
    answered = scripted.times("RENEW")[-1]
    assert device._rpc.finished.wait(LIMIT)
    elapsed = time.monotonic() - answered

    assert 3 * 0.3 <= elapsed < 3 * 0.3 + 6 * ANSWER_TIME + 1
    assert not lasting._rpc.finished.is_set()
    assert 1 == caplog.text.count("no registry has answered for")


def test_short_outages(scripted: ScriptedRegistry, serve: Any) -> None:
    """Misses count in a row: after each answer they begin anew."""
    device = serve(alive_timeout=1.8)
    device.register_to_registry("scope", "", scripted.url, max_missed=3)
    for _ in range(3):
        scripted.is_silent = True
        elapse(0.9)
        scripted.is_silent = False
        before = scripted.count("CHECK_ALIVE")
        wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 2)  # noqa: B023

    assert not device._rpc.finished.is_set()


def test_max_missed_without_any_registry(nobody: str, serve: Any) -> None:
    """A registry that was never there counts from the start."""
    device = serve(alive_timeout=0.9)
    began = time.monotonic()
    assert "" == device.register_to_registry("scope", "", nobody, max_missed=2)
    assert device._rpc.finished.wait(LIMIT)

    assert time.monotonic() - began >= 0.6


@pytest.mark.parametrize(
    ("type_", "name", "metadata", "text"),
    [
        ("scope", "a\nb", {}, "printable"),
        ("", "left", {}, "device type and addresses are texts"),
        ("scope", "x" * 2000, {}, "texts of 1 to 1024 characters"),
        ("scope", "left", {"note": "x" * 5000}, "metadata have 4096 bytes at most"),
    ],
)
def test_refusal(
    registry: DeviceRegistry, serve: Any, type_: str, name: str, metadata: dict[str, Any], text: str
) -> None:
    """What the registry does not accept is an error at the first try, and the device may register otherwise."""
    device = serve()
    with pytest.raises(RegistryRefused, match=text) as caught:
        device.register_to_registry(type_, name, registry.url, metadata=metadata)

    assert isinstance(caught.value, ValueError)
    assert ("", "", "InstrumentServer") == (device.uuid, device.registry_addr, device.name)
    assert "left" == device.register_to_registry("scope", "left", registry.url)


def test_refusal_of_one_device(scripted: ScriptedRegistry, serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """That one device is refused disturbs no other one, and is not taken for an outage."""
    serve(alive_timeout=LEASE).register_to_registry("scope", "", scripted.url)
    scripted.answers["REGISTER"] = unsupported("REGISTER")
    with pytest.raises(RegistryRefused, match="no, thanks"):
        serve(alive_timeout=LEASE).register_to_registry("scope", "", scripted.url)
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 3)

    assert [] == caplog.messages


def test_refusal_later(scripted: ScriptedRegistry, serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A device that is refused when it comes back is logged, and tried again."""
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "left", scripted.url)
    scripted.answers = {"REGISTER": unsupported("REGISTER"), "CHECK_ALIVE": acknowledge("CHECK_ALIVE", False)}
    wait_until(lambda: scripted.count("REGISTER") >= 3)
    assert "left is not registered: no, thanks" in caplog.messages
    scripted.answers = {}

    wait_until(lambda: device.uuid)
    assert "left" == device.name


def test_two_devices_of_one_name(registry: DeviceRegistry, serve: Any) -> None:
    """Who comes later has the name; who has lost it gets another one, and both stay as they are."""
    first, second = serve(alive_timeout=LEASE), serve(alive_timeout=LEASE)
    for device in (first, second):
        assert "left" == device.register_to_registry("scope", "left", registry.url)
    expected = {"left": ("scope", second.url), "left-1": ("scope", first.url)}
    wait_until(lambda: registry.get_devices() == expected)
    elapse(3 * LEASE)

    assert (expected, "left-1", "left") == (registry.get_devices(), first.name, second.name)


def test_store_that_fails(scripted: ScriptedRegistry, registry: DeviceRegistry, serve: Any) -> None:
    """A registry that cannot keep anything now has refused nothing: the next one is asked, or the same one later."""
    scripted.answers["REGISTER"] = unsupported("REGISTER", error_type="rpc_kit.errors.StoreError")
    elsewhere, device = serve(), serve(alive_timeout=LEASE)
    assert "right" == elsewhere.register_to_registry("scope", "right", [scripted.url, registry.url])
    assert "" == device.register_to_registry("scope", "left", scripted.url)
    scripted.answers.clear()

    wait_until(lambda: device.name == "left")


def test_addresses_change(
    registry: DeviceRegistry, serve: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that gets other addresses is told to the registry, for the same entry under the same name."""
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["192.0.2.7"])
    devices = [serve(url="tcp://*:0", alive_timeout=LEASE) for _ in range(2)]
    for device in devices:
        device.register_to_registry("scope", "left", registry.url, overwrite=False)
    before = registry.list()
    heard: list[Any] = []
    registry.device_changed.connect(heard.append)
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["198.51.100.8"])
    wait_until(lambda: len(heard) == 2)

    expected = [(each.uuid, each.name, (each.address, each.addresses[1].replace("192.0.2.7", "198.51.100.8")))
                for each in before]  # fmt: skip
    assert expected == [(each.uuid, each.name, each.addresses) for each in registry.list()] == [
        (each.uuid, each.name, each.addresses) for each in heard
    ]
    assert [each.uuid for each in before] == [device.uuid for device in devices]


def test_addresses_change_while_registry_is_gone(
    scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that the registry did not answer is told again."""
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["192.0.2.7"])
    device = serve(url="tcp://*:0", alive_timeout=LEASE)
    device.register_to_registry("scope", "left", scripted.url)
    scripted.answers["REGISTER"] = None
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["198.51.100.8"])
    wait_until(lambda: scripted.count("REGISTER") >= 3)
    del scripted.answers["REGISTER"]
    before = scripted.count("REGISTER")
    wait_until(lambda: scripted.count("REGISTER") > before)

    assert 2 * [("uuid-1", "left", [f"tcp://198.51.100.8:{device.port}"])] == [
        (each["uuid"], each["name"], each["addresses"]) for each in scripted.payloads("REGISTER")[1:3]
    ]


def test_stop_while_registry_is_silent(
    scripted: ScriptedRegistry, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A server ends within a limited time, though nobody takes its goodbye, and says so."""
    device = serve(alive_timeout=LEASE)
    device.register_to_registry("scope", "left", scripted.url)
    scripted.is_silent = True
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") > before)
    began = time.monotonic()
    ended(device)

    assert time.monotonic() - began < 2 * ANSWER_TIME + 2
    wait_until(lambda: f"left could not be unregistered at {scripted.url}" in caplog.messages)


def test_stop_of_many_while_registry_is_silent(scripted: ScriptedRegistry, serve: Any) -> None:
    """The same holds for each of many devices."""
    devices = [serve() for _ in range(8)]
    for device in devices:
        device.register_to_registry("scope", "", scripted.url)
    scripted.is_silent = True
    began = time.monotonic()
    for device in devices:
        device.stop_server()
    for device in devices:
        assert device._rpc.finished.wait(LIMIT)

    assert time.monotonic() - began < 2 * ANSWER_TIME + 3


def test_goodbye_goes_to_the_other_registry(
    scripted: ScriptedRegistry, other: ScriptedRegistry, serve: Any
) -> None:
    """When the first registry is lost just before the end, the next one is told."""
    device = serve()
    device.register_to_registry("scope", "left", [scripted.url, other.url])
    scripted.is_silent = True
    ended(device)

    assert [{"uuid": "uuid-1"}] == other.payloads("UNREGISTER")


def test_servers_share_one_thread(scripted: ScriptedRegistry, other: ScriptedRegistry, serve: Any) -> None:
    """Devices of one context and the same registries have one thread, which ends with the last of them."""
    devices = [serve() for _ in range(3)]
    for device in devices:
        device.register_to_registry("scope", "", scripted.url)
    elsewhere = serve()
    elsewhere.register_to_registry("scope", "", other.url)
    assert 2 == len(registrars())
    for device in devices[:2]:
        ended(device)
    assert 2 == len(registrars())
    ended(devices[2])
    wait_until(lambda: 1 == len(registrars()))
    ended(elsewhere)

    wait_until(lambda: 0 == len(registrars()))


def test_register_after_all_have_left(scripted: ScriptedRegistry, serve: Any) -> None:
    """Who comes after the last has left is registered like the first."""
    for number in range(3):
        device = serve()

        assert f"scope-{number}" == device.register_to_registry("scope", f"scope-{number}", scripted.url)
        ended(device)
    assert (3, 3) == (scripted.count("REGISTER"), scripted.count("UNREGISTER"))


def test_coming_and_going(scripted: ScriptedRegistry, context: Any) -> None:
    """However devices come and go at the same moment, each one is registered and unregistered."""

    def come_and_go(number: int) -> list[str]:
        accepted = []
        for turn in range(60):
            name = f"{number}-{turn}"
            member = Member(lambda url: Registration("scope", url, name), 60, None, lambda: None)  # noqa: B023
            Registrar.add(context, [scripted.url], member)
            accepted.append(member.name)
            Registrar.discard(context, [scripted.url], member)
        return accepted

    with ThreadPoolExecutor(3) as pool:
        accepted = list(pool.map(come_and_go, range(3)))

    assert [[f"{number}-{turn}" for turn in range(60)] for number in range(3)] == accepted
    assert (180, 180) == (scripted.count("REGISTER"), scripted.count("UNREGISTER"))


def test_coming_while_the_registrar_ends(
    scripted: ScriptedRegistry, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes at the moment when the last device has left gets a registrar that runs."""
    first, second = (Member(lambda url: Registration("scope", url, "left"), 60, None, lambda: None) for _ in range(2))
    coming = threading.Thread(target=Registrar.add, args=(context, [scripted.url], second))

    def end(self: Registrar, end: Any = Registrar._end) -> None:
        if coming.ident is None:
            coming.start()
            coming.join(0.2)
        end(self)

    monkeypatch.setattr(Registrar, "_end", end)
    Registrar.add(context, [scripted.url], first)
    Registrar.discard(context, [scripted.url], first)
    wait_until(lambda: coming.ident is not None)
    coming.join(LIMIT)

    assert ("left", "uuid-2") == (second.name, second.uuid)
    Registrar.discard(context, [scripted.url], second)


def test_device_that_cannot_say_where_it_is(
    scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All devices are renewed also while one cannot find out its addresses, as without free file descriptors."""
    devices = [serve(alive_timeout=LEASE) for _ in range(2)]
    for device in devices:
        device.register_to_registry("scope", "", scripted.url)

    def fail(url: str) -> Registration:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(devices[0]._rpc.member, "describe", fail)
    wait_until(lambda: "where scope-1 is cannot be told: [Errno 24] Too many open files" in caplog.messages)
    scripted.answers["RENEW"] = acknowledge("RENEW", False, unknown=["uuid-1"])
    wait_until(lambda: "scope-1 is not registered: [Errno 24] Too many open files" in caplog.messages)
    scripted.answers.clear()
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 3)
    assert "uuid-2" == scripted.payloads("CHECK_ALIVE")[-1]["uuid"]
    monkeypatch.undo()
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", ANSWER_TIME)

    wait_until(lambda: devices[0].uuid == "uuid-3")


def test_device_that_cannot_say_where_it_is_at_first(
    scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who registers a device is told why that cannot be done; others are registered all the same."""
    device = serve()
    serve(alive_timeout=LEASE).register_to_registry("scope", "", scripted.url)

    def fail(*args: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(device._rpc, "reachable_at", fail)
        with pytest.raises(OSError, match="Too many open files"):
            device.register_to_registry("scope", "", scripted.url)
    before = scripted.count("CHECK_ALIVE")
    wait_until(lambda: scripted.count("CHECK_ALIVE") >= before + 2)

    assert "left" == device.register_to_registry("scope", "left", scripted.url)


def test_killed_device_is_forgotten(registry: DeviceRegistry, spawn: Any) -> None:
    """A process that dies without a word is removed when its lease ends; its successor gets its name."""
    arguments = ("tests.instrument", "serve", URL, "--registry", registry.url, "--lease", "0.5", "--name", "left")
    removed: list[Any] = []
    registry.add_device_removed_callback(lambda *device: removed.append(device))
    first = spawn(*arguments)
    assert {"left": ("instrument", first.line)} == registry.get_devices()
    first.kill()
    wait_until(lambda: [("instrument", first.line, "left")] == removed)
    second = spawn(*arguments)

    assert {"left": ("instrument", second.line)} == registry.get_devices()


def test_restarted_device_takes_over(registry: DeviceRegistry, spawn: Any) -> None:
    """A device that was killed and comes back before its lease has ended has its name again, at its new address."""
    arguments = ("tests.instrument", "serve", URL, "--registry", registry.url, "--name", "left")
    spawn(*arguments).kill()
    second = spawn(*arguments)

    assert {"left": ("instrument", second.line)} == registry.get_devices()


def test_long_call_of_device(registry: DeviceRegistry, serve: Any, context: Any) -> None:
    """A device whose method takes longer than its lease stays registered."""
    device = serve(alive_timeout=0.9)
    device.register_to_registry("scope", "left", registry.url)
    uuid = device.uuid
    with Peer(context, device.url) as peer:
        peer.send(b"", call("pause", 1.5))

        assert peer.reply()["success"]
    assert ["left"] == list(registry.get_devices())
    assert uuid == registry.find("left").uuid


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_context_of_registered_device_is_terminated(
    scripted: ScriptedRegistry, context: Any, caplog: pytest.LogCaptureFixture, busy: bool
) -> None:
    """The server ends, with a warning that it could not be unregistered, and leaves no thread."""
    own: Any = zmq.Context()
    device = InstrumentServer(own, URL, alive_timeout=LEASE)
    device.register_to_registry("scope", "left", scripted.url)
    with in_thread(device.serve_forever) as served, Peer(context, device.url) as peer:
        wait_until(lambda: scripted.count("CHECK_ALIVE") >= 2)
        peer.ask(call("count"))
        if busy:
            peer.send(b"", call("block"))
            assert device.entered.wait(LIMIT)
        with in_thread(own.term) as terminated:
            wait_until(lambda: busy or terminated)
            device.released.set()

    assert ([None], [None]) == (served, terminated)
    assert "left could not be unregistered" in caplog.text
    assert [] == [thread for thread in threading.enumerate() if thread.name in ("rpc-registrar", "rpc-standby")]


def test_context_is_terminated_while_many_leave(scripted: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists until the registrar has no more use for it: a socket of a context that is gone ends the process."""
    own: Any = zmq.Context()
    told = Registration("scope", "tcp://127.0.0.1:9", "left")
    members = [Member(lambda url: told, 60.0, None, lambda: None) for _ in range(8)]
    for member in members:
        Registrar.add(own, [scripted.url], member)
    scripted.is_silent = True
    asked: list[bool] = []
    ask_once = registration.ask_once
    monkeypatch.setattr(registration, "ask_once", lambda *args: (asked.append(own.closed), ask_once(*args))[1])
    with ThreadPoolExecutor(8) as pool:
        leaving = [pool.submit(Registrar.discard, own, [scripted.url], member) for member in members]
        wait_until(lambda: len(asked) == 2)
        own.term()
        assert 8 * [None] == [each.result(LIMIT) for each in leaving]

    assert all(member.left.is_set() for member in members)
    assert {False} == set(asked)


def test_no_descriptors_for_the_registrar(
    scripted: ScriptedRegistry, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registrar that can make no socket now tries on."""

    def none_left(*args: Any) -> Any:
        raise zmq.ZMQError(errno.EMFILE)

    device = serve(alive_timeout=LEASE)
    with monkeypatch.context() as patch:
        patch.setattr(registrar, "make_socket", none_left)
        patch.setattr(sockets, "make_socket", none_left)
        assert "" == device.register_to_registry("scope", "left", scripted.url)

    wait_until(lambda: device.name == "left")


def test_forgotten_server_is_unregistered(registry: DeviceRegistry, context: Any) -> None:
    """A registered server that nobody holds any more leaves the registry."""
    device = InstrumentServer(context, URL)
    device.register_to_registry("scope", "left", registry.url)
    del device

    wait_until(lambda: {} == registry.get_devices())


def test_device_that_is_collected_by_the_registrar(scripted: ScriptedRegistry, context: Any) -> None:
    """A device may leave on the thread of the registrar itself, as when it is collected there, without waiting."""
    left: list[Callable[[], None]] = []

    def describe(url: str) -> Registration:
        while left:
            left.pop()()
        return Registration("scope", url, "")

    members = [Member(describe, LEASE, None, lambda: None) for _ in range(2)]
    for member in members:
        Registrar.add(context, [scripted.url], member)
    began = time.monotonic()
    left.append(lambda: Registrar.discard(context, [scripted.url], members[0]))
    assert members[0].left.wait(LIMIT)
    elapsed = time.monotonic() - began
    Registrar.discard(context, [scripted.url], members[1])

    assert elapsed < LEASE + 1
    assert 2 == scripted.count("UNREGISTER")


@pytest.mark.parametrize(("registries", "seconds"), [(1, 2.0), (3, 2.0), (4, 1.5), (12, 0.5), (24, 0.25), (1000, 0.25)])
def test_time_for_each(monkeypatch: pytest.MonkeyPatch, registries: int, seconds: float) -> None:
    """Three registries have their usual time, more of them share it, and each has enough for an answer."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", 2.0)

    assert seconds == registrar.time_for_each(registries)


def test_time_for_each_is_not_more_than_usual() -> None:
    """Of very many registries none has longer than a single one."""
    assert ANSWER_TIME >= registrar.time_for_each(1000)
