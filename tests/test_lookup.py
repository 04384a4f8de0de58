"""Devices by their names: registries that fail, clients that follow a device wherever it goes."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from registry import DeviceRegistry, Entry, register_device
from rpc_kit import RPCClient, RPCServer, calls, discovery, lookup, registrar, registration, watching
from rpc_kit.errors import (
    ClientClosed,
    DeviceNotFound,
    InterfaceMismatch,
    NoRegistry,
    RegistryUnreachable,
    ServerLost,
    ServerStopping,
)
from rpc_kit.lookup import RegistryClient
from rpc_kit.messages import EventType, Ping, Registration
from rpc_kit.registration import exchange
from tests.devices import LIMIT, Instrument, InstrumentClient, InstrumentServer
from tests.helpers import Relay, in_thread, wait_until
from tests.registries import Restartable, ScriptedRegistry, restartable

SLACK = 2.0
"""How much longer than its limit anything may take on a busy machine, s."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices find out soon what their registry does, and clients look soon where their device is."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", 0.5)
    monkeypatch.setattr(registrar, "FIRST_BACKOFF", 0.05)
    monkeypatch.setattr(calls, "QUIET", 0.0)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No registry is configured on this host, and none is announced."""
    monkeypatch.delenv("RPC_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def nothing(timeout: float) -> list[str]:
        raise NoRegistry("none")

    monkeypatch.setattr(discovery, "_urls_of_mdns", nothing)


@pytest.fixture
def silent(context: Any) -> Iterator[ScriptedRegistry]:
    """A registry that takes everything and says nothing."""
    with ScriptedRegistry(context) as made:
        made.is_silent = True
        yield made


@pytest.fixture
def look(context: Any) -> Iterator[Callable[..., RegistryClient]]:
    """Makes clients of registries."""
    made = []

    def start(registries: Any, **options: Any) -> RegistryClient:
        made.append(RegistryClient(registries, context, **options))
        return made[-1]

    yield start
    for client in made:
        client.close()


@pytest.fixture
def dial(context: Any) -> Iterator[Callable[..., Any]]:
    """Connects to devices by their names."""
    made = []

    def start(name: str, interface: Any = Instrument, **options: Any) -> Any:
        made.append(lookup.connect(name, interface, context=context, **options))
        return made[-1]

    yield start
    for client in made:
        client.close()


def registered(serve: Any, url: str, name: str = "left", **options: Any) -> Any:
    """An instrument that is served and registered."""
    device = serve(alive_timeout=0.6, **options)
    assert name == device.register_to_registry("scope", name, url)
    return device


def ended(device: Any) -> None:
    """Stop a server, and wait for its end."""
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)


def timed(function: Callable[[], Any]) -> float:
    """How long it takes, s."""
    began = time.monotonic()
    function()
    return time.monotonic() - began


def refused(function: Callable[[], Any], error: type[Exception], text: str | None = None) -> float:
    """How long it takes to fail so, s."""

    def fail() -> None:
        with pytest.raises(error, match=text) as caught:
            function()
        assert error is caught.type

    return timed(fail)


def test_list_and_find(registry: DeviceRegistry, context: Any, look: Any, serve: Any) -> None:
    """All devices, those of a type, those with some metadata, the one of a name."""
    for number in range(2):
        register_device(context, "laser", f"tcp://h:{number}", f"laser-{number}", registry.url)
    device = serve()
    device.register_to_registry("scope", "left", registry.url, metadata={"room": 3})
    client = look(registry.url)

    assert ["laser-0", "laser-1", "left"] == [entry.name for entry in client.list()]
    assert (["laser-0", "laser-1"], []) == ([entry.name for entry in client.list("laser")], client.list("camera"))
    assert (["left"], []) == ([entry.name for entry in client.list(room=3)], client.list("scope", room=4))
    found = client.find("left")
    assert ("left", "scope", device.url, device.uuid) == (found.name, found.device_type, found.address, found.uuid)
    assert (os.getpid(), False, found) == (found.metadata["pid"], found.stale, client.list()[2])


def test_unknown_name(registry: DeviceRegistry, look: Any) -> None:
    """A name that nobody has is a LookupError that says so."""
    client = look(registry.url)
    for ask in (client.find, client.evict, lambda name: client.wait_for(name, 0.05)):
        refused(lambda: ask("left"), DeviceNotFound, "no device (is|was) registered as 'left'")  # noqa: B023
    assert issubclass(DeviceNotFound, LookupError)


def test_wait_for(registry: DeviceRegistry, context: Any, look: Any) -> None:
    """A device that is there is found at once, another one as soon as it comes."""
    client = look(registry.url)
    with in_thread(lambda: client.wait_for("left", LIMIT)) as outcome:
        wait_until(lambda: registry._directory._waiters)
        assert [] == outcome
        _, uuid = register_device(context, "scope", "tcp://h:1", "left", registry.url)

    assert [uuid, uuid] == [outcome[0].uuid, client.wait_for("left", LIMIT).uuid]


def test_evict(registry: DeviceRegistry, context: Any, look: Any) -> None:
    """Who is evicted is told, and not there any more."""
    _, uuid = register_device(context, "scope", "tcp://h:1", "left", registry.url)
    client = look(registry.url)

    assert (uuid, {}) == (client.evict("left").uuid, registry.get_devices())


def test_error_of_the_registry(registry: DeviceRegistry, look: Any) -> None:
    """What a registry refuses to do no other one is asked for."""
    with pytest.raises(ValueError, match="timeout is a number of seconds up to 3600"):
        look(registry.url).wait_for("left", 4000)


@pytest.mark.parametrize("form", ["text", "list", "environment", "file"])
def test_where_registries_are_named(
    registry: DeviceRegistry, nobody: str, look: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """Urls are given as text or list, in the environment or in a file."""
    given: Any = None
    if form == "environment":
        monkeypatch.setenv("RPC_REGISTRY", f"{nobody},{registry.url}")
    elif form == "file":
        (tmp_path / "rpc-kit").mkdir()
        (tmp_path / "rpc-kit" / "config.toml").write_text(f'registry = ["{nobody}", "{registry.url}"]\n')
    else:
        given = f"{nobody}, {registry.url}" if form == "text" else [nobody, registry.url]
    client = look(given)

    assert ([nobody, registry.url], []) == (client.urls, client.list())


def test_no_registry_is_named(look: Any, dial: Any) -> None:
    """Nothing to ask is an error of its own."""
    refused(lambda: look(None), NoRegistry)
    refused(lambda: dial("left"), NoRegistry)


def test_one_url_of_several_is_wrong(context: Any) -> None:
    """What nobody can connect to is told, and nothing is left open."""
    with pytest.raises(ValueError, match="cannot be connected to"):
        RegistryClient(["tcp://127.0.0.1:1", "ipc://" + "x" * 200], context)
    gc.collect()


@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_first_registry_does_not_answer(
    registry: DeviceRegistry, silent: ScriptedRegistry, nobody: str, look: Any, kind: str
) -> None:
    """After a second the next one is asked; it is the first to be asked from then on."""
    client = look([nobody if kind == "dead" else silent.url, registry.url])
    first = timed(client.list)
    asked = silent.count("METHOD_CALL")
    for _ in range(20):
        assert [] == client.list()

    assert lookup.SHARE <= first < lookup.SHARE + SLACK
    assert (1 if kind == "silent" else 0) == asked == silent.count("METHOD_CALL")


def test_registry_is_lost_and_comes_back(restarted: Restartable, registry: DeviceRegistry, look: Any) -> None:
    """When the one in use is lost the other one is used, and stays in use."""
    client = look([restarted.url, registry.url])
    assert ([], restarted.url) == (client.list(), client._preferred)
    restarted.stop()
    assert ([], registry.url) == (client.list(), client._preferred)
    restarted.start()

    assert ([], registry.url) == (client.list(), client._preferred)


def test_not_found_is_final(registry: DeviceRegistry, silent: ScriptedRegistry, look: Any) -> None:
    """A registry that does not know a device has answered: no other one is asked."""
    refused(lambda: look([registry.url, silent.url]).find("left"), DeviceNotFound)

    assert [] == silent.heard


@pytest.mark.parametrize("error", ["StoreError", "ServerBusy", "ServerStopping", "ReplyLost", "ProtocolError"])
def test_registry_that_is_in_trouble(
    registry: DeviceRegistry, silent: ScriptedRegistry, context: Any, look: Any, error: str
) -> None:
    """What another registry may do better it is asked for; one that is alone is asked again, but not all the time."""
    register_device(context, "scope", "tcp://h:1", "left", registry.url)
    reply = {"success": False, "error": "no, thanks", "error_type": f"rpc_kit.errors.{error}"}
    silent.is_silent, silent.answers["METHOD_CALL"] = False, reply

    assert "left" == look([silent.url, registry.url]).find("left").name
    elapsed = refused(lambda: look(silent.url, timeout=1.0).find("left"), RegistryUnreachable, "no, thanks")
    assert 1.0 <= elapsed < 1.0 + SLACK
    assert 5 < silent.count("METHOD_CALL") < 1.0 / lookup.PAUSE + 3


def test_slow_registry_behind_a_silent_one(registry: DeviceRegistry, silent: ScriptedRegistry, look: Any) -> None:
    """The first one does not use up the time of the others: who answers after 0.3 s is found, too."""
    with Relay(registry.port or 0) as relay:
        relay.seconds_per_byte = 0.001

        assert [] == look([silent.url, relay.url], timeout=1.0).list()


@pytest.mark.parametrize("count", [1, 3])
def test_limit_of_time(silent: ScriptedRegistry, nobody: str, look: Any, count: int) -> None:
    """When no registry answers that is told in time, and for a while it is not waited for so long again."""
    client = look([silent.url, nobody, silent.url.replace("127.0.0.1", "localhost")][:count], timeout=1.2)
    first = refused(client.list, RegistryUnreachable, f"no registry answers at {silent.url}")
    second = refused(lambda: client.find("left"), RegistryUnreachable)

    assert (True, True) == (1.2 <= first < 1.2 + SLACK, 0.5 <= second < 0.5 + 0.6)
    assert issubclass(RegistryUnreachable, ConnectionError)


def names(entries: list[Entry]) -> list[tuple[str, bool]]:
    return [(entry.name, entry.stale) for entry in entries]


def test_outage(restarted: Restartable, look: Any, serve: Any) -> None:
    """While no registry answers what was found is given as stale; when one is back it is not any more."""
    left, right = registered(serve, restarted.url), registered(serve, restarted.url, "right")
    client = look(restarted.url, timeout=1.0)
    assert [("left", False), ("right", False)] == names(client.list())
    restarted.stop()

    assert [("left", True), ("right", True)] == names(client.list())
    assert [("right", True)] == names([client.find("right")])
    assert (left.uuid, right.url) == (client.find("left").uuid, client.find("right").address)
    refused(lambda: client.find("middle"), RegistryUnreachable)
    restarted.start()
    wait_until(lambda: len(restarted.registry.get_devices()) == 2)
    wait_until(lambda: [("left", False), ("right", False)] == sorted(names(client.list())))
    assert [("left", False)] == names([client.find("left")])


def test_filters_during_outage(restarted: Restartable, look: Any, serve: Any) -> None:
    """What is remembered is looked through as a registry does it."""
    serve().register_to_registry("scope", "left", restarted.url, metadata={"room": 3})
    serve().register_to_registry("laser", "right", restarted.url, metadata={"room": 3, "line": None})
    client = look(restarted.url, timeout=0.3)
    client.list()
    restarted.stop()

    assert ["left", "right"] == [entry.name for entry in client.list(room=3)]
    assert ["right"] == [entry.name for entry in client.list("laser")]
    assert ["right"] == [entry.name for entry in client.list(line=None)]
    assert [] == client.list("laser", room=4)


def test_what_was_never_asked(restarted: Restartable, look: Any, serve: Any) -> None:
    """A list is given during an outage only when all devices were listed before; single ones are no list."""
    registered(serve, restarted.url)
    registered(serve, restarted.url, "right")
    client = look(restarted.url, timeout=0.3)
    client.find("left")
    client.list("scope")
    restarted.stop()

    refused(client.list, RegistryUnreachable)
    refused(lambda: client.list("scope"), RegistryUnreachable)
    assert [("left", True)] == names([client.find("left")])
    refused(lambda: client.evict("left"), RegistryUnreachable)


def test_what_was_gone_is_forgotten(restarted: Restartable, look: Any, serve: Any) -> None:
    """A device that was known to be gone before the outage is not remembered."""
    device = registered(serve, restarted.url)
    client = look(restarted.url, timeout=0.3)
    client.list()
    ended(device)
    refused(lambda: client.find("left"), DeviceNotFound)
    restarted.stop()

    refused(lambda: client.find("left"), RegistryUnreachable)


def test_wait_for_across_restart(restarted: Restartable, context: Any, look: Any) -> None:
    """Who waits for a device goes on waiting when the registry is restarted meanwhile."""
    client = look(restarted.url)
    with in_thread(lambda: client.wait_for("left", 2 * LIMIT)) as outcome:
        wait_until(lambda: restarted.registry._directory._waiters)
        restarted.stop()
        restarted.start()
        wait_until(lambda: restarted.registry._directory._waiters)
        assert [] == outcome
        _, uuid = register_device(context, "scope", "tcp://h:1", "left", restarted.url)

    assert [uuid] == [entry.uuid for entry in outcome]


def test_wait_for_behind_silent_registry(
    registry: DeviceRegistry, silent: ScriptedRegistry, context: Any, look: Any
) -> None:
    """A registry that is silent is noticed during the wait."""
    client = look([silent.url, registry.url])
    with in_thread(lambda: client.wait_for("left", LIMIT)) as outcome:
        wait_until(lambda: registry._directory._waiters)
        register_device(context, "scope", "tcp://h:1", "left", registry.url)

    assert ["left"] == [entry.name for entry in outcome]


def test_wait_for_without_registry(silent: ScriptedRegistry, look: Any) -> None:
    """When no registry answered in all the time, that is what is told."""
    elapsed = refused(lambda: look(silent.url).wait_for("left", 1.0), RegistryUnreachable)

    assert 1.0 <= elapsed < 1.0 + watching.REGISTRY_LIVENESS + SLACK


def test_many_threads(registry: DeviceRegistry, context: Any, look: Any) -> None:
    """One client serves many threads, and each gets what it asked for."""
    wanted = [f"scope-{number}" for number in range(8)]
    for name in wanted:
        register_device(context, "scope", f"tcp://h:{name}", name, registry.url)
    client = look(registry.url)

    def work(name: str) -> set[str]:
        return {client.find(name).name for _ in range(50)} | {client.list()[wanted.index(name)].name}

    with ThreadPoolExecutor(8) as pool:
        assert [{name} for name in wanted] == list(pool.map(work, wanted))


def test_close(registry: DeviceRegistry, look: Any) -> None:
    """A closed client, with all its watches, does nothing any more."""
    with look(registry.url) as client:
        client.watch(print)
    client.close()

    refused(client.list, ClientClosed)
    assert "rpc-registry-watch" not in [thread.name for thread in threading.enumerate()]


def test_forgotten_client(registry: DeviceRegistry, context: Any) -> None:
    """A client that nobody holds any more closes itself, with all its watches."""
    client = RegistryClient(registry.url, context)
    client.watch(print)
    client.list()
    del client
    gc.collect()

    wait_until(lambda: "rpc-registry-watch" not in [thread.name for thread in threading.enumerate()])


def test_connect_by_interface(registry: DeviceRegistry, dial: Any, serve: Any) -> None:
    """A name and an interface make a client, with methods, properties and signals."""
    device = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    levels: list[float] = []
    client.level_changed.connect(levels.append)
    client.level = 3.0

    assert (3, 3.0, "left", device.url) == (client.add(1, 2), client.level, client.name, client.url)
    assert isinstance(client, Instrument) and isinstance(client, RPCClient)
    assert ("InstrumentClient", type(client)) == (type(client).__name__, lookup.client_class(Instrument))
    wait_until(lambda: [3.0] == levels)


def test_connect_by_client_class(registry: DeviceRegistry, dial: Any, serve: Any) -> None:
    """A client class is used as it is, with the options of clients."""
    registered(serve, registry.url)
    client = dial("left", InstrumentClient, registry=registry.url, timeout=500, on_error="return")

    assert InstrumentClient is type(client)
    assert not client.fail("ValueError")


def test_connect_by_url(device: Any, dial: Any) -> None:
    """A url needs no registry."""
    assert 3 == dial(device.url).add(1, 2)


@pytest.mark.parametrize("form", ["environment", "file"])
def test_connect_by_configuration(
    registry: DeviceRegistry, dial: Any, serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """Without a url of a registry the environment and the file are looked at."""
    registered(serve, registry.url)
    if form == "environment":
        monkeypatch.setenv("RPC_REGISTRY", registry.url)
    else:
        (tmp_path / "rpc-kit").mkdir()
        (tmp_path / "rpc-kit" / "config.toml").write_text(f'registry = "{registry.url}"\n')

    assert 3 == dial("left").add(1, 2)


def test_connect_and_wait(registry: DeviceRegistry, dial: Any, serve: Any) -> None:
    """A device that is not there yet can be waited for, for a limited time."""
    refused(lambda: dial("left", registry=registry.url, wait=0.1), DeviceNotFound)
    with in_thread(lambda: dial("left", registry=registry.url, wait=LIMIT).add(1, 2)) as outcome:
        wait_until(lambda: registry._directory._waiters)
        registered(serve, registry.url)

    assert [3] == outcome


@pytest.mark.parametrize("interface", ["Instrument", None, 3, RPCClient])
def test_connect_with_wrong_interface(registry: DeviceRegistry, dial: Any, serve: Any, interface: Any) -> None:
    """What is neither an interface nor a client class is told so."""
    registered(serve, registry.url)
    with pytest.raises(TypeError, match="the second argument is an interface class, not|is abstract: decorate it"):
        dial("left", interface, registry=registry.url)


def test_connect_with_other_interface(registry: DeviceRegistry, dial: Any, serve: Any) -> None:
    """A device that lacks members is refused, and nothing is left open."""

    class Other(Instrument):
        @RPCServer.register_method_json
        def focus(self) -> None: ...

    registered(serve, registry.url)
    refused(lambda: dial("left", Other, registry=registry.url), InterfaceMismatch, "does not serve focus of Other")


def test_connect_to_unknown_device(registry: DeviceRegistry, dial: Any) -> None:
    """A name that nobody has is told at once."""
    assert refused(lambda: dial("left", registry=registry.url), DeviceNotFound) < SLACK


def test_connect_without_answer_of_registry(silent: ScriptedRegistry, nobody: str, dial: Any) -> None:
    """When no registry answers that is told after 5 s."""
    elapsed = refused(lambda: dial("left", registry=[silent.url, nobody]), RegistryUnreachable)

    assert elapsed < lookup.LOOK_UP_TIME + SLACK


def test_connect_to_dead_device(
    registry: DeviceRegistry, silent: ScriptedRegistry, nobody: str, context: Any, dial: Any
) -> None:
    """A device that is registered but dead, or hangs, is told within a second or two."""
    for url in (nobody, silent.url):
        register_device(context, "scope", url, "left", registry.url, overwrite=True)
        elapsed = refused(
            lambda: dial("left", registry=registry.url), ServerLost, f"left is registered, but does not .* {url}"
        )

        assert calls.PROBE_TIME <= elapsed < calls.PROBE_TIME + SLACK


def enter(context: Any, registry_url: str, device: Any, *addresses: str, name: str = "left") -> None:
    """Register a device as if its host had these addresses."""
    asked = Registration("scope", addresses[0], name, True, list(addresses), epoch=device._rpc.epoch)
    assert exchange(context, registry_url, EventType.REGISTER, asked, LIMIT) is not None


def test_device_with_several_addresses(
    registry: DeviceRegistry, nobody: str, silent: ScriptedRegistry, serve: Any, context: Any, dial: Any
) -> None:
    """The address that answers is taken, unless it is that of another device; also when that has the same name."""
    with restartable(context) as elsewhere:
        stranger, namesake, device = serve(), registered(serve, elsewhere.url), registered(serve, registry.url)
        addresses = [nobody, "tcp://no-such-host.invalid:9000", stranger.url, silent.url, namesake.url, device.url]
        enter(context, registry.url, device, *addresses)
        client = dial("left", registry=registry.url)

        assert (1, device.url, "left") == (client.count(), client.url, client.name)
        assert (0, 0, 1) == (stranger.counted, namesake.counted, device.counted)
        ended(namesake)


def test_none_of_several_addresses_is_the_device(
    registry: DeviceRegistry, nobody: str, serve: Any, context: Any, dial: Any
) -> None:
    """When only other devices answer, the one that is asked for is lost."""
    stranger, device = serve(), serve()
    enter(context, registry.url, device, stranger.url, nobody)
    ended(device)

    refused(lambda: dial("left", registry=registry.url), ServerLost, f"does not answer at {stranger.url}, {nobody}")
    assert 0 == stranger.counted


def test_device_of_version_1(registry: DeviceRegistry, device: Any, context: Any, dial: Any) -> None:
    """An entry that says nothing of the run of its server is taken as it is."""
    register_device(context, "scope", device.url, "left", registry.url)

    assert 3 == dial("left", registry=registry.url).add(1, 2)


def move(serve: Any, registry_url: str, device: Any, **options: Any) -> Any:
    """End a device, and serve one under its name elsewhere."""
    ended(device)
    return registered(serve, registry_url, **options)


def test_idle_client_follows(registry: DeviceRegistry, serve: Any, dial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has not called for a second finds its device where it is now; a call is executed once."""
    monkeypatch.setattr(calls, "QUIET", 1.0)
    first = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    assert 1 == client.count()
    called = time.monotonic()
    second = move(serve, registry.url, first)
    wait_until(lambda: time.monotonic() > called + 1.1)

    assert (1, 2, 8.0) == (client.count(), client.count(), client.scale(4.0))
    assert (1, 2, second.url) == (first.counted, second.counted, client.url)


def test_idle_client_stays_on_the_nearest_way(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """A client that finds its device where it was goes on by ipc; one whose device has moved does so after a call."""
    device = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    assert [1, 2] == [client.count(), client.count()]
    assert {"count": {"ipc": 2}} == client.stats().paths
    move(serve, registry.url, device)
    assert [1, 2] == [client.count(), client.count()]

    assert {"count": {"ipc": 4}} == client.stats().paths


def test_properties_and_control_follow(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """Whatever is asked first goes to where the device is."""
    device = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    device = move(serve, registry.url, device)
    assert 1.0 == client.level
    device = move(serve, registry.url, device)
    client.level = 5.0
    assert 5.0 == device.level
    device = move(serve, registry.url, device)
    assert (True, 3) == client.execute("add", {"args": [1, 2]})
    device = move(serve, registry.url, device)
    client.stop_server()

    assert device._rpc.finished.wait(LIMIT)


def test_device_is_killed_during_call(registry: DeviceRegistry, spawn: Any, dial: Any) -> None:
    """The call that runs is lost within `liveness`; the next one works as soon as the device is anywhere."""
    arguments = ("tests.instrument", "serve", "tcp://127.0.0.1:0", "--registry", registry.url, "--name", "left")
    first = spawn(*arguments)
    client = dial("left", registry=registry.url)
    with in_thread(lambda: client.pause(60.0)) as outcome:
        wait_until(lambda: client._rpc.calls.ask(Ping(), 1.0, "PING").busy)
        killed = time.monotonic()
        first.kill()
        wait_until(lambda: outcome)
        elapsed = time.monotonic() - killed
    second = spawn(*arguments)

    assert (ServerLost, True) == (type(outcome[0]), elapsed < 3.0 + SLACK)
    assert (1, second.line) == (client.count(), client.url)


def test_call_when_device_stops(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """Who is told that the device stops finds it at its new place with the next call, however soon that comes."""
    first = registered(serve, registry.url)
    client, other = dial("left", registry=registry.url), dial(first.url)
    with in_thread(other.block):
        assert first.entered.wait(LIMIT)
        with in_thread(client.count) as outcome:
            wait_until(lambda: first._rpc.current_call()[1] == 1)
            first.stop_server()
        first.released.set()
    assert isinstance(outcome[0], ServerStopping)
    second = move(serve, registry.url, first)

    assert (1, 1) == (client.count(), second.counted)


def test_signals_follow(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """Signals come from where the device is, though the client calls nothing; its properties are read again."""
    first = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    ticks: list[int] = []
    levels: list[float] = []
    client.ticked.connect(ticks.append)
    client.level_changed.connect(levels.append)
    first.ticked.emit(1)
    wait_until(lambda: [1] == ticks)
    second = move(serve, registry.url, first)
    second._level = 7.0
    wait_until(lambda: second.ticked.emit(2) or len(ticks) > 1)

    assert {1, 2} == set(ticks)
    wait_until(lambda: [7.0] == levels)


def test_device_moves_without_registry(restarted: Restartable, serve: Any, dial: Any) -> None:
    """While no registry can be asked a device that moved is lost, in time; when one is back it is found."""
    first = registered(serve, restarted.url)
    client = dial("left", registry=restarted.url)
    restarted.stop()
    ended(first)
    second = serve(alive_timeout=0.6)
    assert "" == second.register_to_registry("scope", "left", restarted.url)
    elapsed = refused(client.count, ServerLost, "nor where the registry says; not executed")
    assert elapsed < 3.0 + 2 * calls.PROBE_TIME + SLACK
    restarted.start()
    wait_until(lambda: second.name == "left")

    assert (1, 1, second.url) == (client.count(), second.counted, client.url)


def at_same_url(serve: Any, url: str, **options: Any) -> Any:
    """An instrument at the url of one that has ended."""
    made: list[Any] = []

    def is_bound() -> bool:
        try:
            made.append(serve(url=url, alive_timeout=0.6, **options))
        except OSError:  # the old socket is let go in the background
            return False
        return True

    wait_until(is_bound)
    return made[0]


@pytest.mark.parametrize("is_known", [True, False], ids=["registered", "not registered"])
def test_device_is_restarted_where_it_was(
    restarted: Restartable, serve: Any, dial: Any, is_known: bool
) -> None:
    """A device that is restarted at its url is used again, whether or not there is a registry to say so."""
    first = registered(serve, restarted.url)
    client = dial("left", registry=restarted.url)
    assert 1 == client.count()
    ended(first)
    if not is_known:
        restarted.stop()
    second = at_same_url(serve, first.url)
    if is_known:
        second.register_to_registry("scope", "left", restarted.url)

    assert ([1, 2, 3], 3) == ([client.count() for _ in range(3)], second.counted)
    assert first.url == client.url


def test_other_device_at_the_url(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """A device that has taken the url of the one that moved is not taken for it."""
    first = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    ended(first)
    stranger = at_same_url(serve, first.url)
    second = registered(serve, registry.url)

    assert ([1, 2], 0) == ([client.count(), client.count()], stranger.counted)
    assert (2, second.url) == (second.counted, client.url)


def test_other_device_at_the_url_of_busy_client(
    registry: DeviceRegistry, serve: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that calls too often to look where its device is has nothing executed by another one either."""
    monkeypatch.setattr(calls, "QUIET", 60.0)
    first = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    assert 1 == client.count()
    ended(first)
    stranger = at_same_url(serve, first.url)
    second = registered(serve, registry.url)
    client.level = 5.0

    assert ([1, 2], 0, 1.0) == ([client.count(), client.count()], stranger.counted, stranger.level)
    assert (2, 5.0, second.url) == (second.counted, second.level, client.url)


@pytest.mark.parametrize("is_during_call", [False, True], ids=["between calls", "during a call"])
def test_other_device_at_the_url_of_killed_one(
    registry: DeviceRegistry, spawn: Any, serve: Any, dial: Any, monkeypatch: pytest.MonkeyPatch, is_during_call: bool
) -> None:
    """When a device is killed, and another one is there at once, that one executes nothing until the device is back."""
    monkeypatch.setattr(calls, "QUIET", 1.0)
    first = spawn("tests.instrument", "serve", "tcp://127.0.0.1:0", "--registry", registry.url, "--name", "left")
    client = dial("left", registry=registry.url)
    is_over = threading.Event()
    failures: set[type[Exception]] = set()
    succeeded = 0

    def work() -> None:
        nonlocal succeeded
        while not is_over.is_set():
            try:
                client.count()
                succeeded += 1
            except ConnectionError as exc:
                failures.add(type(exc))

    with in_thread(work) as outcome:
        wait_until(lambda: succeeded > 20)
        with in_thread(lambda: client.pause(60.0) if is_during_call else None):
            if is_during_call:
                wait_until(lambda: (client._rpc.calls.ask(Ping(), 1.0, "PING").busy or {}).get("member") == "pause")
            first.kill()
            stranger = at_same_url(serve, first.line)
            second = registered(serve, registry.url)
        try:
            wait_until(lambda: second.counted > 20)
        finally:
            is_over.set()

    assert ([None], True) == (outcome, failures <= {ServerLost})
    assert (0, second.url) == (stranger.counted, client.url)


def test_other_device_answers_for_killed_one(registry: DeviceRegistry, spawn: Any, serve: Any, dial: Any) -> None:
    """A device that says during a call that it knows nothing of it is not taken for the one that was called."""
    first = spawn("tests.instrument", "serve", "tcp://127.0.0.1:0", "--registry", registry.url, "--name", "left")
    client = dial("left", registry=registry.url)
    with in_thread(lambda: client.pause(60.0)) as outcome:
        wait_until(lambda: client._rpc.calls.ask(Ping(), 1.0, "PING").busy)
        first.kill()
        stranger = at_same_url(serve, first.line)
        wait_until(lambda: outcome)
    refused(client.count, ServerLost, "not executed")
    second = registered(serve, registry.url)

    assert (ServerLost, 1, second.url) == (type(outcome[0]), client.count(), client.url)
    assert (0, 1) == (stranger.counted, second.counted)


def test_socket_to_the_old_place(
    registry: DeviceRegistry, serve: Any, context: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that ends after the client has followed gives back a socket that no other call uses."""
    first, second = serve(), serve()
    enter(context, registry.url, first, first.url)
    client = dial("left", registry=registry.url)
    with in_thread(client.block) as outcome:
        assert first.entered.wait(LIMIT)
        registry.evict("left")
        enter(context, registry.url, second, second.url)
        # As if the first one hung for a while.
        monkeypatch.setattr(calls, "answering", lambda context, urls, *_: second.url if second.url in urls else None)
        assert (1, second.url) == (client.count(), client.url)
        first.released.set()
    monkeypatch.setattr(calls, "QUIET", 60.0)

    assert (["released"], [2, 3, 4, 5]) == (outcome, [client.count() for _ in range(4)])
    assert 1 == first.counted


def test_only_other_device_at_the_url(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """When the device is gone, and another one has its url, the call is lost."""
    first = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    ended(first)
    stranger = at_same_url(serve, first.url)
    stranger.register_to_registry("scope", "right", registry.url)

    refused(client.count, ServerLost, "not executed")
    assert 0 == stranger.counted


def test_registry_is_not_flooded(silent: ScriptedRegistry, serve: Any, context: Any, dial: Any) -> None:
    """A client whose device is gone asks for it now and then, not all the time."""
    device = serve()
    entry = {"uuid": "u", "name": "left", "device_type": "scope", "address": device.url, "epoch": device._rpc.epoch}
    silent.is_silent = False
    silent.answers["METHOD_CALL"] = {"success": True, "result": entry}
    client = dial("left", registry=silent.url, liveness=1.0)
    silent.answers["METHOD_CALL"] = {
        "success": False, "error": "none", "error_type": "rpc_kit.errors.DeviceNotFound",
    }  # fmt: skip
    ended(device)
    before = silent.count("METHOD_CALL")
    refused(client.count, ServerLost)

    assert silent.count("METHOD_CALL") - before < 20


def test_call_after_close(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """A client that is closed says so at once, though its device is gone; and it has closed its own registry client."""
    device = registered(serve, registry.url)
    client = dial("left", registry=registry.url)
    ended(device)
    client.close()
    client.close()

    assert refused(lambda: client.add(1, 2), ClientClosed) < calls.PROBE_TIME
    refused(client._rpc.calls._locate._registries.list, ClientClosed)


def test_close_while_following(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """A call that looks for its device ends when the client is closed."""
    device = registered(serve, registry.url)
    client = dial("left", registry=registry.url, liveness=30.0)
    ended(device)
    with in_thread(client.count) as outcome:
        wait_until(lambda: registry._rpc.endpoint._serial)
        closed = time.monotonic()
        client.close()
        wait_until(lambda: outcome)

    assert isinstance(outcome[0], ClientClosed)
    assert time.monotonic() - closed < 2 * calls.PROBE_TIME + SLACK


def test_context_is_terminated(registry: DeviceRegistry, serve: Any) -> None:
    """An idle client whose context is gone says so."""
    own: Any = zmq.Context()
    registered(serve, registry.url)
    client: Any = lookup.connect("left", Instrument, registry=registry.url, context=own)
    with in_thread(own.term):
        wait_until(lambda: refused_with(client) is ClientClosed)
        client.close()

    refused(client.count, ClientClosed)


def refused_with(client: Any) -> type[Exception] | None:
    try:
        client.add(1, 2)
    except Exception as exc:
        return type(exc)
    return None


def test_idle_client_after_fork(registry: DeviceRegistry, spawn: Any, serve: Any) -> None:
    """In a forked process a client that was found by name is unusable, and that is said at once."""
    registered(serve, registry.url)
    forked = spawn("tests.lookup_fork", registry.url)

    assert "ClientClosed 3" == forked.line
    assert (0, "") == forked.end()


def test_many_threads_follow(registry: DeviceRegistry, serve: Any, dial: Any) -> None:
    """All threads of a client find the device after it moved, and each call that succeeded was executed once."""
    devices = [registered(serve, registry.url)]
    client = dial("left", registry=registry.url)
    is_over = threading.Event()

    def work() -> int:
        succeeded = 0
        while not is_over.is_set():
            try:
                client.count()
            except ConnectionError:
                continue
            succeeded += 1
        return succeeded

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work) for _ in range(4)]
        for _ in range(3):
            wait_until(lambda: devices[-1].counted > 20)
            devices.append(move(serve, registry.url, devices[-1]))
        wait_until(lambda: devices[-1].counted > 20)
        is_over.set()
        succeeded = sum(each.result() for each in working)

    assert sum(device.counted for device in devices) == succeeded
    assert isinstance(devices[0], InstrumentServer)
