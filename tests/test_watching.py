"""Whoever watches a registry knows what is in it: every change, lost registries, callbacks of any kind."""

import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from registry import DeviceRegistry, register_device, unregister_device
from registry.stores.memory import MemoryStore
from registry.stores.sqlite import SqliteStore
from rpc_kit import registrar, registration, server_engine, subscriber, watching
from rpc_kit.lookup import RegistryClient
from rpc_kit.messages import Entry, EventType, Registration
from rpc_kit.registration import exchange
from rpc_kit.watching import RegistryEvent, RegistryWatch
from tests.devices import LIMIT
from tests.helpers import PROJECT, wait_until
from tests.registries import ScriptedRegistry, restartable

Watcher = Callable[..., RegistryWatch]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices find out soon what their registry does."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", 0.5)
    monkeypatch.setattr(registrar, "FIRST_BACKOFF", 0.05)


@pytest.fixture
def watch(context: Any) -> Iterator[Watcher]:
    """Makes watches of registries."""
    made = []

    def start(callback: Callable[[RegistryEvent], object], *urls: str) -> RegistryWatch:
        made.append(RegistryWatch(context, urls, callback))
        return made[-1]

    yield start
    for each in made:
        each.close()
    wait_until(lambda: [] == watches())


def watches() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "rpc-registry-watch"]


class Replay:
    """What a callback heard, and what is there according to that."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.there: dict[str, Entry] = {}

    def __call__(self, event: RegistryEvent) -> None:
        name = event.entry.name
        if event.kind == "removed":
            assert self.there.pop(name) == event.entry
        else:
            assert (event.kind == "changed") == (name in self.there)
            self.there[name] = event.entry
        self.heard.append((event.kind, name, event.reason) if event.reason else (event.kind, name))


@pytest.fixture
def replay() -> Replay:
    return Replay()


def enter(context: Any, url: str, name: str, port: int = 1, **more: Any) -> str:
    """Register a device; its uuid."""
    asked = Registration("scope", f"tcp://h:{port}", name, **more)
    reply = exchange(context, url, EventType.REGISTER, asked, LIMIT)
    assert reply is not None
    return str(reply["uuid"])


def test_every_change(registry: DeviceRegistry, context: Any, watch: Watcher, replay: Replay) -> None:
    """First what is there, then each change with its reason, in order."""
    first = enter(context, registry.url, "first", 1)
    enter(context, registry.url, "second", 2)
    watch(replay, registry.url)
    wait_until(lambda: len(replay.heard) == 2)
    second = enter(context, registry.url, "third", 3, alive_timeout=60.0)
    enter(context, registry.url, "third", 3, uuid=second, metadata={"room": 1})
    unregister_device(context, first, registry.url)
    registry.evict("second")
    enter(context, registry.url, "fourth", 3)
    enter(context, registry.url, "fifth", 5, alive_timeout=0.05)
    wait_until(lambda: len(replay.heard) == 10)

    assert [
        ("added", "first"), ("added", "second"),
        ("added", "third"), ("changed", "third"),
        ("removed", "first", "unregistered"), ("removed", "second", "evicted"),
        ("removed", "third", "replaced"), ("added", "fourth"), ("added", "fifth"), ("removed", "fifth", "expired"),
    ] == replay.heard  # fmt: skip
    assert registry.list() == list(replay.there.values())


def test_what_is_told(registry: DeviceRegistry, context: Any, watch: Watcher) -> None:
    """An event has the whole entry; one of a change as it is now, one of a removal as it was."""
    events: list[RegistryEvent] = []
    watch(events.append, registry.url)
    enter(context, registry.url, "first", 9)
    wait_until(lambda: events)
    events.clear()
    uuid = enter(context, registry.url, "left", metadata={"room": 1})
    before = registry.find("left")
    enter(context, registry.url, "left", 2, uuid=uuid, addresses=["tcp://other:2"])
    after = registry.find("left")
    registry.evict("left")
    wait_until(lambda: len(events) == 3)

    assert [
        RegistryEvent("added", before), RegistryEvent("changed", after), RegistryEvent("removed", after, "evicted"),
    ] == events  # fmt: skip
    assert ({"room": 1}, ("tcp://h:2", "tcp://other:2"), uuid) == (before.metadata, after.addresses, after.uuid)


def test_addresses_of_device_change(
    registry: DeviceRegistry, serve: Any, watch: Watcher, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose host gets other addresses is changed, and nothing else."""
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["192.0.2.7"])
    device = serve(url="tcp://*:0", alive_timeout=0.3)
    device.register_to_registry("scope", "left", registry.url)
    watch(replay, registry.url)
    wait_until(lambda: replay.heard)
    monkeypatch.setattr(server_engine, "own_addresses", lambda ipv6: ["198.51.100.8"])
    wait_until(lambda: len(replay.heard) == 2)

    assert [("added", "left"), ("changed", "left")] == replay.heard
    assert f"tcp://198.51.100.8:{device.port}" in replay.there["left"].addresses


def test_of_a_client(registry: DeviceRegistry, context: Any, replay: Replay) -> None:
    """A client of registries watches, too; its watches end with it, or with their own block."""
    enter(context, registry.url, "left")
    with RegistryClient(registry.url, context) as client:
        with client.watch(replay), client.watch(print):
            wait_until(lambda: [("added", "left")] == replay.heard)
            assert 2 == len(watches())
        assert [] == watches()
        client.watch(replay)
    assert [] == watches()


def test_callback_that_is_none(registry: DeviceRegistry, context: Any) -> None:
    """Only what can be called is taken, and nothing is left of the rest."""
    with pytest.raises(TypeError, match="a callback is a callable, not str"):
        RegistryWatch(context, [registry.url], "print")  # type: ignore[arg-type]
    assert [] == watches()


@pytest.mark.parametrize("fault", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_callback_that_raises(
    registry: DeviceRegistry, context: Any, watch: Watcher, caplog: pytest.LogCaptureFixture,
    fault: type[BaseException],
) -> None:  # fmt: skip
    """What a callback raises, SystemExit included, is logged; it hears of the next device all the same."""
    names: list[str] = []

    def callback(event: RegistryEvent) -> None:
        names.append(event.entry.name)
        if fault is SystemExit:
            sys.exit(1)
        raise fault

    watch(callback, registry.url)
    for number in range(3):
        enter(context, registry.url, f"scope-{number}", number)
        wait_until(lambda: f"scope-{number}" in names)  # noqa: B023

    assert ["scope-0", "scope-1", "scope-2"] == names
    wait_until(lambda: 3 == caplog.text.count("failed for device"))
    assert 3 == caplog.text.count(f"\n{fault.__name__}")


def test_callback_that_blocks(registry: DeviceRegistry, context: Any, watch: Watcher, replay: Replay) -> None:
    """A callback that blocks holds up nobody else, and gets what it missed afterwards."""
    entered, released, names = threading.Event(), threading.Event(), []

    def callback(event: RegistryEvent) -> None:
        names.append(event.entry.name)
        entered.set()
        released.wait(LIMIT)

    watch(callback, registry.url)
    watch(replay, registry.url)
    enter(context, registry.url, "first", 0)
    assert entered.wait(LIMIT)
    for number in range(1, 50):
        enter(context, registry.url, f"scope-{number}", number)
    wait_until(lambda: len(replay.heard) == 50)

    assert ["first"] == names
    released.set()
    wait_until(lambda: len(names) == 50)


def test_close_while_callback_blocks(registry: DeviceRegistry, context: Any, watch: Watcher) -> None:
    """Closing waits for a callback that runs; then no other event is told."""
    entered, released, names = threading.Event(), threading.Event(), []

    def callback(event: RegistryEvent) -> None:
        entered.set()
        released.wait(LIMIT)
        names.append(event.entry.name)

    watched = watch(callback, registry.url)
    for number in range(2):
        enter(context, registry.url, f"scope-{number}", number)
    assert entered.wait(LIMIT)
    closing = threading.Thread(target=watched.close)
    closing.start()
    wait_until(watched._stopped.is_set)
    assert closing.is_alive()
    released.set()
    closing.join(LIMIT)

    assert (["scope-0"], False, []) == (names, closing.is_alive(), watches())


@pytest.mark.parametrize("what", ["watch", "client"])
def test_close_by_callback(registry: DeviceRegistry, context: Any, what: str) -> None:
    """A callback may close its own watch, and the client of it; it hears no more then."""
    for number in range(3):
        enter(context, registry.url, f"scope-{number}", number)
    names: list[str] = []
    made: "queue.Queue[Any]" = queue.Queue()
    with RegistryClient(registry.url, context) as client:

        def callback(event: RegistryEvent) -> None:
            names.append(event.entry.name)
            made.get(timeout=LIMIT).close()

        watched = client.watch(callback)
        made.put(watched if what == "watch" else client)
        wait_until(lambda: [] == watches())

    assert ["scope-0"] == names


def test_close_without_registry(nobody: str, context: Any, watch: Watcher, replay: Replay) -> None:
    """A watch that has found no registry yet is closed within a limited time, any number of times."""
    watched = watch(replay, nobody)
    began = time.monotonic()
    for _ in range(3):
        watched.close()

    assert time.monotonic() - began < watching.REGISTRY_LIVENESS + 2
    assert ([], []) == (watches(), replay.heard)


def test_context_is_terminated(registry: DeviceRegistry, replay: Replay) -> None:
    """A watch ends with its context."""
    own: Any = zmq.Context()
    watched = RegistryWatch(own, [registry.url], replay)
    enter(own, registry.url, "left")
    wait_until(lambda: replay.heard)
    ending = threading.Thread(target=own.term)
    ending.start()
    ending.join(LIMIT)
    wait_until(lambda: [] == watches())
    watched.close()

    assert not ending.is_alive()


def test_registry_comes_later(context: Any, watch: Watcher, replay: Replay) -> None:
    """A watch waits for its registry, however often it has to try; nothing is left of the tries."""
    with restartable(context) as restarted:
        restarted.stop()
        watch(replay, restarted.url)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 2 * watching.REGISTRY_LIVENESS)
        restarted.start()
        enter(context, restarted.url, "left")
        wait_until(lambda: [("added", "left")] == replay.heard)


@pytest.mark.parametrize("is_kept", [True, False], ids=["sqlite", "memory"])
def test_registry_restarted(
    context: Any, serve: Any, watch: Watcher, replay: Replay, tmp_path: Path, is_kept: bool
) -> None:
    """After a restart what is still there is no news; what a registry has forgotten is gone until it is back."""
    with restartable(context, lambda: SqliteStore(tmp_path / "file") if is_kept else MemoryStore()) as restarted:
        devices = [serve(alive_timeout=1.5) for _ in range(3)]
        for number, device in enumerate(devices):
            device.register_to_registry("scope", f"scope-{number}", restarted.url)
        watch(replay, restarted.url)
        wait_until(lambda: len(replay.heard) == 3)
        restarted.stop()
        restarted.start()
        enter(context, restarted.url, "later")
        wait_until(lambda: ("added", "later") in replay.heard)
        wait_until(lambda: list(replay.there.values()) == restarted.registry.list() and len(replay.there) == 4)
        heard = replay.heard[3:]
        for device in devices:
            device.stop_server()
            assert device._rpc.finished.wait(LIMIT)
        wait_until(lambda: ["later"] == list(replay.there))

    if is_kept:
        assert [("added", "later")] == heard
    else:
        names = [f"scope-{number}" for number in range(3)]
        assert [("removed", name, "gone") for name in names] == [each for each in heard if each[0] == "removed"]
        assert ["later", *names] == sorted(name for kind, name, *_ in heard if kind == "added")
    assert 3 == sum(each[2:] == ("unregistered",) for each in replay.heard)


def test_changes_during_restart(context: Any, watch: Watcher, replay: Replay, tmp_path: Path) -> None:
    """What is changed while the registry is not watched is told afterwards."""
    with restartable(context, lambda: SqliteStore(tmp_path / "file")) as restarted:
        stays = enter(context, restarted.url, "stays", 1)
        changes = enter(context, restarted.url, "changes", 2)
        goes = enter(context, restarted.url, "goes", 3)
        enter(context, restarted.url, "is replaced", 4)
        watch(replay, restarted.url)
        wait_until(lambda: len(replay.heard) == 4)
        before = restarted.registry.url
        restarted.stop()
        # At another url, so that it is not seen.
        unseen = DeviceRegistry(context, "127.0.0.1", 0, SqliteStore(tmp_path / "file"))
        unseen.start()
        enter(context, unseen.url, "changes", 2, uuid=changes, metadata={"room": 1})
        unregister_device(context, goes, unseen.url)
        enter(context, unseen.url, "is replaced", 4)
        enter(context, unseen.url, "comes", 5)
        unseen.stop()
        unseen.join(LIMIT)
        restarted.start()
        wait_until(lambda: len(replay.heard) >= 9)

        assert before == restarted.url
        assert {
            ("changed", "changes"), ("removed", "goes", "gone"), ("removed", "is replaced", "gone"),
            ("added", "is replaced"), ("added", "comes"),
        } == set(replay.heard[4:])  # fmt: skip
        assert restarted.registry.list() == sorted(replay.there.values(), key=lambda entry: entry.registered)
        assert stays == replay.there["stays"].uuid


def test_silent_registry(context: Any, watch: Watcher, replay: Replay, caplog: pytest.LogCaptureFixture) -> None:
    """A registry that is silent is left for the next one; what that does not know is gone."""
    with ScriptedRegistry(context) as silent, restartable(context) as restarted:
        silent.is_silent = True
        enter(context, restarted.url, "left")
        watch(replay, silent.url, restarted.url)
        wait_until(lambda: [("added", "left")] == replay.heard)

    assert f"{silent.url} is not watched" in caplog.text


def test_hanging_registry(registry: DeviceRegistry, spawn: Any, context: Any, watch: Watcher, replay: Replay) -> None:
    """A registry whose process hangs is noticed though its connections stay open, and watched again later."""
    program = spawn("registry", "serve", "--addr", "127.0.0.1", "--port", "0", "--store", "memory", "--no-announce")
    register_device(context, "scope", "tcp://h:1", "left", program.line)
    register_device(context, "scope", "tcp://h:2", "right", registry.url)
    watch(replay, program.line, registry.url)
    wait_until(lambda: ["left"] == list(replay.there))
    program.send_signal(signal.SIGSTOP)
    wait_until(lambda: ["right"] == list(replay.there))
    program.send_signal(signal.SIGCONT)

    assert [("added", "left"), ("removed", "left", "gone"), ("added", "right")] == replay.heard


def test_other_error_of_registry(
    context: Any, watch: Watcher, replay: Replay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails, as a want of file descriptors, the watch tries again."""
    failures = [zmq.ZMQError(24), LookupError("nothing"), OSError(24, "Too many open files")]

    def fail(*args: Any, made: Any = watching.Calls) -> Any:
        if failures:
            raise failures.pop()
        return made(*args)

    monkeypatch.setattr(watching, "Calls", fail)
    with restartable(context) as restarted:
        enter(context, restarted.url, "left")
        watch(replay, restarted.url)
        wait_until(lambda: [("added", "left")] == replay.heard)

    # The first of an outage is a warning.
    assert ["WARNING"] == [each.levelname for each in caplog.records if "is not watched" in each.getMessage()]


def test_overflow(
    registry: DeviceRegistry, context: Any, watch: Watcher, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When more happens than can be kept for a callback that blocks, it knows what is there afterwards."""
    monkeypatch.setattr(watching, "LONGEST_BACKLOG", 5)
    entered, released = threading.Event(), threading.Event()

    def callback(event: RegistryEvent) -> None:
        entered.set()
        released.wait(LIMIT)
        replay(event)

    watched = watch(callback, registry.url)
    enter(context, registry.url, "first", 99)
    assert entered.wait(LIMIT)
    uuids = [enter(context, registry.url, f"scope-{number}", number) for number in range(10)]
    wait_until(watched._outdated.is_set)
    for uuid in uuids:
        unregister_device(context, uuid, registry.url)
    enter(context, registry.url, "last")
    released.set()

    wait_until(lambda: ["first", "last"] == list(replay.there))
    enter(context, registry.url, "after", 2)
    wait_until(lambda: ["first", "last", "after"] == list(replay.there))
    assert registry.list() == list(replay.there.values())


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence(
    registry: DeviceRegistry, context: Any, watch: Watcher, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever happens in whatever order, each watcher ends with what the registry has, slow ones included."""
    monkeypatch.setattr(watching, "LONGEST_BACKLOG", 3)
    chance, replays = random.Random(seed), [Replay() for _ in range(3)]
    pause, pauses = threading.Event(), random.Random(seed)

    def slow(event: RegistryEvent) -> None:
        pause.wait(pauses.choice([0.0, 0.002, 0.02]))
        replays[0](event)

    for callback in (slow, replays[1]):
        watch(callback, registry.url)
    uuids: list[str] = []

    def change() -> None:
        name, port = f"scope-{chance.randrange(6)}", chance.randrange(1, 12)
        action = chance.choice(["enter", "take", "change", "leave", "evict", "expire"])
        if action == "enter":
            uuids.append(enter(context, registry.url, name, port))
        elif action == "take":
            uuids.append(enter(context, registry.url, name, port, overwrite=True))
        elif action == "expire":
            uuids.append(enter(context, registry.url, name, port, alive_timeout=0.01))
        elif action == "change" and uuids:
            metadata = {"room": chance.randrange(100)}
            enter(context, registry.url, name, port, uuid=chance.choice(uuids), metadata=metadata)
        elif action == "leave" and uuids:
            unregister_device(context, chance.choice(uuids), registry.url)
        elif action == "evict" and registry.get_devices():
            registry.evict(chance.choice(list(registry.get_devices())))

    for number in range(150):
        if number == 75:
            watch(replays[2], registry.url)
        change()

    for replay in replays:
        wait_until(lambda: replay.there == {entry.name: entry for entry in registry.list()})  # noqa: B023


def test_several_restarts(context: Any, serve: Any, watch: Watcher, replay: Replay, tmp_path: Path) -> None:
    """Across restarts, with and without a memory, a watcher ends with what the registry has."""
    file = tmp_path / "file"
    stores = iter([SqliteStore(file), SqliteStore(file), MemoryStore(), SqliteStore(file)])
    with restartable(context, lambda: next(stores)) as restarted:
        for number in range(3):
            serve(alive_timeout=0.6).register_to_registry("scope", f"scope-{number}", restarted.url)
        watch(replay, restarted.url)
        for number in range(3):
            enter(context, restarted.url, f"laser-{number}", number, alive_timeout=0.5)
            restarted.stop()
            restarted.start()
        expected = [f"scope-{number}" for number in range(3)]
        wait_until(lambda: expected == sorted(restarted.registry.get_devices()), 2 * LIMIT)

        wait_until(lambda: replay.there == {entry.name: entry for entry in restarted.registry.list()}, 2 * LIMIT)


LEAVE = """
import random, sys, threading, time, zmq
from rpc_kit import RegistryClient

chance, pause, took = random.Random(1), threading.Event(), []
for _ in range(15):
    with zmq.Context() as context:
        client = RegistryClient(sys.argv[1], context)
        for _ in range(3):
            client.watch(lambda event: None)
        pause.wait(chance.uniform(0, 0.2))
        began = time.monotonic()
    client.close()
    took.append(time.monotonic() - began)
print("left" if max(took) < 3.0 else took)
"""


def test_context_is_left_while_watching(registry: DeviceRegistry, context: Any) -> None:
    """A ``with`` of a context ends at whatever moment it is left, though watches are open."""
    for number in range(200):
        enter(context, registry.url, f"scope-{number}", number)
    ran = subprocess.run(
        [sys.executable, "-c", LEAVE, registry.url], cwd=PROJECT, capture_output=True, text=True, timeout=6 * LIMIT
    )

    assert (0, "left\n", "") == (ran.returncode, ran.stdout, ran.stderr)


def test_closed_watches_are_not_kept(registry: DeviceRegistry, context: Any, replay: Replay) -> None:
    """A client that lives long forgets the watches that were closed, and closes the others."""
    with RegistryClient(registry.url, context) as client:
        for _ in range(5):
            client.watch(print).close()
        client.watch(replay)
        assert 1 == len(client._watches) == len(watches())
    assert [] == watches()


@pytest.mark.parametrize("answer", [{"success": True, "epoch": "e", "event_port": 1}, None], ids=["lost", "silent"])
def test_close_before_signals_come(context: Any, watch: Watcher, replay: Replay, answer: Any) -> None:
    """A watch is closed soon though its registry answers, and never says that it publishes."""
    with ScriptedRegistry(context) as scripted:
        scripted.answers["PING"] = {"success": True, "epoch": "e", "busy": None, "queued": 0}
        scripted.answers["INIT_SIGNALS_HANDLING"] = answer
        watched = watch(replay, scripted.url)
        wait_until(lambda: scripted.count("INIT_SIGNALS_HANDLING"))
        began = time.monotonic()
        watched.close()

        assert time.monotonic() - began < 2.5 < subscriber.HANDSHAKE_TIMEOUT
        assert [] == watches()
