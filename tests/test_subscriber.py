"""Signals at the client: each event exactly once, whatever happens to connections, servers and listeners."""

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakMethod

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from rpc_kit import RPCClient, RPCServer, RPCSignal, publisher, sockets, subscriber
from tests.devices import LIMIT, Identified, InstrumentClient, Mode, Point, Scan
from tests.helpers import Relay, in_thread, wait_until


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt after a lost connection comes soon."""
    monkeypatch.setattr(subscriber, "SHORTEST_PAUSE", 0.02)


def collect(signal_: Any) -> list[Any]:
    """The arguments of the events that come from now on."""
    received: list[Any] = []
    signal_.connect(received.append)
    return received


def test_each_listener_of_each_client_gets_each_event_once(device: Any, connect: Any) -> None:
    """Five clients with three listeners each get five hundred events, each once and in order."""
    clients = [connect(device.url) for _ in range(5)]
    received = []
    for client in clients:
        for _ in range(3):
            events: list[int] = []
            client.ticked.connect(lambda number, events=events: events.append(number))
            received.append(events)
    for number in range(500):
        device.ticked.emit(number)

    wait_until(lambda: all(events[-1:] == [499] for events in received))
    assert 15 * [list(range(500))] == received
    assert 0 == sum(client.events_lost for client in clients)


def test_nothing_is_lost_between_connect_and_first_event(device: Any, connect: Any) -> None:
    """An event right after a listener was connected arrives, for every new client."""
    for number in range(20):
        ticks = collect(connect(device.url).ticked)
        device.ticked.emit(number)

        wait_until(lambda ticks=ticks, number=number: [number] == ticks)


def test_events_of_earlier_times_are_no_gap(device: Any, connect: Any) -> None:
    """What was emitted before the client came is neither delivered nor counted as lost."""
    for number in range(10):
        device.ticked.emit(number)
    client = connect(device.url)
    ticks = collect(client.ticked)
    device.ticked.emit(10)

    wait_until(lambda: [10] == ticks)
    assert 0 == client.events_lost


def test_arguments_are_converted(device: Any, client: Any) -> None:
    """A dataclass comes as the dataclass, with what it contains."""
    scans = collect(client.scanned)
    scan = Scan(Mode.EXACT, [Point(1.5, float("inf"))], datetime.now(UTC), None)
    device.scanned.emit(scan)

    wait_until(lambda: [scan] == scans)


def test_notification_of_property(device: Any, connect: Any) -> None:
    """A set that changes the value notifies every client once, a set of the same value nobody."""
    clients = [connect(device.url) for _ in range(3)]
    received = [collect(client.level_changed) for client in clients]
    clients[0].level = 2.5
    clients[1].level = 2.5
    clients[2].level = 3.5

    wait_until(lambda: all(levels[-1:] == [3.5] for levels in received))
    assert 3 * [[2.5, 3.5]] == received


def test_listener_that_raises(device: Any, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others and later events go on."""
    ticks: list[int] = []
    client.ticked.connect(lambda number: 1 / 0)
    client.ticked.connect(ticks.append)
    device.ticked.emit(1)
    device.ticked.emit(2)

    wait_until(lambda: [1, 2] == ticks)
    assert 2 == caplog.text.count("ZeroDivisionError: division by zero")


def test_event_that_does_not_fit(device: Any, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An event of another type than the interface's is logged and skipped."""
    ticks = collect(client.ticked)
    device._rpc.publisher._publish("ticked", ("no number",))
    device.ticked.emit(2)

    wait_until(lambda: [2] == ticks)
    assert "does not fit the interface" in caplog.text


def test_listener_that_calls_the_server(device: Any, client: Any) -> None:
    """A listener may call the device, read a property, and disconnect itself."""
    results: list[Any] = []

    def listener(number: int) -> None:
        results.append((client.add(number, 1), client.level))
        client.ticked.disconnect(listener)

    client.ticked.connect(listener)
    client.tick(1, 3)

    wait_until(lambda: [(2, 1.0)] == results)


def test_listener_that_closes_the_client(device: Any, client: Any) -> None:
    """A listener may close the client; the receiver ends."""
    client.ticked.connect(lambda number: client.close())
    device.ticked.emit(1)

    wait_until(lambda: "rpc-receiver" not in [thread.name for thread in threading.enumerate()])


def test_weak_listener(device: Any, client: Any) -> None:
    """A weak method does not keep its object alive, and is passed over when that is gone."""

    class Display:
        def __init__(self) -> None:
            self.shown: list[int] = []

        def show(self, number: int) -> None:
            self.shown.append(number)

    displays = [Display()]
    client.ticked.connect(WeakMethod(displays[0].show))
    ticks = collect(client.ticked)
    device.ticked.emit(1)
    wait_until(lambda: [1] == displays[0].shown)
    displays.clear()
    device.ticked.emit(2)

    wait_until(lambda: [1, 2] == ticks)


def test_gap_is_counted_and_property_read_again(device: Any, client: Any) -> None:
    """After lost events the client gets the present value of the property, and says how many were lost."""
    levels, ticks = collect(client.level_changed), collect(client.ticked)
    device.level = 2.0
    device._rpc.publisher._seqs["level_changed"] += 5  # as if five events had not come through
    device.level = 3.0
    device.ticked.emit(1)

    wait_until(lambda: [2.0, 3.0, 3.0] == levels)
    wait_until(lambda: [1] == ticks)
    assert 5 == client.events_lost


def test_gap_of_overflow(serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a flood that a listener cannot follow what is not delivered is counted."""
    monkeypatch.setattr(sockets, "EVENT_BACKLOG", 50)
    monkeypatch.setattr(subscriber, "QUIET_TIME", 0.05)
    device = serve()
    client = connect(device.url)
    go_on, received = threading.Event(), []

    def listener(text: str) -> None:
        received.append(text[:3])
        assert go_on.wait(LIMIT)

    client.noted.connect(listener)
    for _ in range(1000):
        device.noted.emit("x" * 50_000)
    wait_until(lambda: received)
    go_on.set()

    wait_until(lambda: device._rpc.publisher._seqs["noted"] == len(received) + client.events_lost)
    assert client.events_lost > 500


def test_connection_that_breaks(device: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events emitted while the connection is broken are counted, those after it arrive, and the property is read."""
    with Relay(device._rpc.open_signals(2)["event_port"]) as relay:
        monkeypatch.setattr(device._rpc, "open_signals", lambda version: {"event_port": relay.own_port})
        client = connect(device.url)
        levels, ticks = collect(client.level_changed), collect(client.ticked)
        device.ticked.emit(1)
        wait_until(lambda: [1] == ticks)
        with device._rpc.publisher._lock:  # nothing is confirmed meanwhile
            relay.cut()
            device._level = 7.0
            device._rpc.publisher._seqs["level_changed"] += 1
            device._rpc.publisher._seqs["ticked"] += 2
        wait_until(lambda: 3 == client.events_lost)
        device.ticked.emit(2)

        wait_until(lambda: [1, 2] == ticks)
        wait_until(lambda: [7.0] == levels)
        client.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_restarted_on_same_port(spawn: Any, connect: Any, number: int) -> None:
    """After a crash the client subscribes to the new server and reads the properties again, without being asked."""
    first = spawn("tests.instrument", "serve", "tcp://127.0.0.1:0")
    client = connect(first.line)
    levels, ticks = collect(client.level_changed), collect(client.ticked)
    client.level = 5.0
    wait_until(lambda: [5.0] == levels)
    first.send_signal(number)
    first.end()
    second = spawn("tests.instrument", "serve", first.line)
    assert first.line == second.line

    wait_until(lambda: [5.0, 1.0] == levels)
    client.tick(1, 3)
    wait_until(lambda: [1, 2, 3] == ticks)
    assert 1.0 == client.level


@pytest.mark.parametrize("failures", [1, 5])
def test_no_socket_to_subscribe_again(
    spawn: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    """A want of file descriptors while the client subscribes again ends nothing: it tries until it can."""
    first = spawn("tests.instrument", "serve", "tcp://127.0.0.1:0")
    client = connect(first.line)
    levels, ticks = collect(client.level_changed), collect(client.ticked)
    client.level = 5.0
    wait_until(lambda: [5.0] == levels)
    left = failures * [zmq.ZMQError(24)]

    def fail(*args: Any, made: Any = subscriber.client_socket) -> Any:
        if left:
            raise left.pop()
        return made(*args)

    monkeypatch.setattr(subscriber, "client_socket", fail)
    first.kill()
    spawn("tests.instrument", "serve", first.line)
    wait_until(lambda: [5.0, 1.0] == levels)
    client.tick(1, 3)

    wait_until(lambda: [1, 2, 3] == ticks)
    assert failures == caplog.text.count(f"no signals from {first.line}: Too many open files; next try in")


def test_client_without_signals(device: Any, context: Any) -> None:
    """A client of an interface without signals needs no thread."""

    @RPCClient.register_interface(Identified)
    class IdentifiedClient(Identified, RPCClient):
        pass

    with IdentifiedClient(context, device.url) as client:
        assert ("SN-1", 6.5) == (client.serial, client.total(1, 2, more=3.5))
        assert 0 == client.events_lost
        assert "rpc-receiver" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether events are missing is verified soon after the last one."""
    monkeypatch.setattr(subscriber, "QUIET_TIME", 0.05)


def test_loss_at_the_end_of_a_storm(quick: None, device: Any, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Lost events are noticed though no later one comes, and the property is read again."""
    levels = collect(client.level_changed)
    with device._rpc.publisher._lock:  # nothing is confirmed meanwhile
        device.level = 2.0
        device._level = 7.0
        device._rpc.publisher._seqs["level_changed"] += 5  # as if the last five events had not come through

    wait_until(lambda: [2.0, 7.0] == levels)
    assert 5 == client.events_lost
    assert "5 events of signal level_changed of " in caplog.text


@pytest.fixture
def confirmations(client: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The confirmations that the client has got since it was made."""
    receiver, seen = client._rpc.receiver, list[Any]()

    def note(name: str, event: Any, on_message: Any = receiver._on_message) -> None:
        on_message(name, event)
        if not name:
            seen.append(event)

    monkeypatch.setattr(receiver, "_on_message", note)
    return seen


def test_each_storm_is_verified(quick: None, device: Any, client: Any, confirmations: list[Any]) -> None:
    """After every storm it is verified anew that nothing is missing; nothing is asked for while there are no events."""
    ticks, publisher = collect(client.ticked), device._rpc.publisher
    for storm in range(1, 4):
        with publisher._lock:
            for number in range(10):
                device.ticked.emit(number)
            publisher._seqs["ticked"] += 2

        wait_until(lambda storm=storm: storm == len(confirmations))
        assert 2 * storm == client.events_lost
    assert 3 * list(range(10)) == ticks
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 4 * subscriber.QUIET_TIME)
    assert 3 == len(confirmations)


def test_verification_finds_nothing(quick: None, device: Any, client: Any, confirmations: list[Any]) -> None:
    """When nothing was lost, nothing is counted and no property is read."""
    levels = collect(client.level_changed)
    device.level = 2.0

    wait_until(lambda: confirmations)
    assert ([2.0], 0) == (levels, client.events_lost)


def test_resync_while_device_is_busy(quick: None, device: Any, connect: Any) -> None:
    """A property that cannot be read again, as a method runs for long, is read until that succeeds."""
    client, other = connect(device.url, timeout=50), connect(device.url)
    levels, ticks = collect(client.level_changed), collect(client.ticked)
    failed, resync = [], client._rpc.receiver._resync
    client._rpc.receiver._resync = lambda names: failed.append(resync(names)) or failed[-1]
    with in_thread(other.block):
        assert device.entered.wait(LIMIT)
        device._level = 7.0
        device._rpc.publisher._seqs["level_changed"] += 1
        device.ticked.emit(1)
        wait_until(lambda: [{"level_changed"}, {"level_changed"}] == failed[:2])
        assert ([], [1]) == (levels, ticks)
        device.released.set()

    wait_until(lambda: [7.0] == levels)
    wait_until(lambda: set() == failed[-1])
    assert 1 == client.events_lost


def test_listener_that_blocks_for_ever(
    device: Any, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing a client leaves its thread behind after a while, and says so; it ends when the listener does."""
    monkeypatch.setattr(subscriber, "JOIN_TIME", 0.05)
    entered, go_on = threading.Event(), threading.Event()
    client.ticked.connect(lambda number: entered.set() or go_on.wait(LIMIT))
    device.ticked.emit(1)
    assert entered.wait(LIMIT)
    began = time.monotonic()
    client.close()
    elapsed = time.monotonic() - began
    text = f"a listener of a signal of {device.url} blocks: its thread is left behind"

    assert (1, True) == (caplog.text.count(text), elapsed < 2.0)
    go_on.set()
    wait_until(lambda: "rpc-receiver" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.parametrize("server_ends_first", [False, True])
def test_context_terminated(serve: Any, server_ends_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The thread ends with the context, also while it looks for a server that has gone."""
    device, own = serve(), zmq.Context()
    client = InstrumentClient(own, device.url)
    if server_ends_first:
        device.stop_server()
        wait_until(lambda: "no signals from" in caplog.text)
    with in_thread(own.term) as ended:
        wait_until(lambda: "rpc-receiver" not in [thread.name for thread in threading.enumerate()])
        client.close()

    assert [None] == ended


@dataclass
class Shot:
    image: NDArray[np.uint8]
    number: int


class Noting:
    """Signals that are no streams, as no argument is an array, and yet may carry some."""

    noted = RPCSignal(Any)
    taken = RPCSignal(Shot)


class NotingServer(Noting, RPCServer):
    pass


@RPCClient.register_interface(Noting)
class NotingClient(Noting, RPCClient):
    pass


@pytest.fixture
def noting(serve: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    device = serve(NotingServer)
    with NotingClient(context, device.url) as client:
        yield device, client


def test_arrays_in_events(noting: tuple[Any, Any]) -> None:
    """They arrive as they were when they were emitted, at each place, and are read-only."""
    device, client = noting
    notes, shots = collect(client.noted), collect(client.taken)
    image = np.arange(200_000, dtype=np.uint8)
    device.noted.emit({"images": [image, image[::2]], "$buffer": 3})
    device.taken.emit(Shot(image, 7))
    image[:] = 0
    device.noted.emit(b"raw")
    device.noted.emit("plain")
    wait_until(lambda: len(notes) == 3 and shots)
    first, second = notes[0]["images"]

    assert (3, b"raw", "plain", 7) == (notes[0]["$buffer"], bytes(notes[1]), notes[2], shots[0].number)
    expected = np.arange(200_000, dtype=np.uint8)
    assert np.array_equal(expected, first) and np.array_equal(expected[::2], second)
    assert (Shot, True, False) == (type(shots[0]), np.array_equal(expected, shots[0].image), first.flags.writeable)
    assert 0 == client.events_lost


@pytest.mark.parametrize("frames", [[], [b"1", b"2"], [b"12"]], ids=["none", "two", "another size"])
def test_event_with_other_buffers(
    noting: tuple[Any, Any], frames: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An event whose buffers are not those that it names is logged, and those that follow arrive."""
    device, client = noting
    notes = collect(client.noted)
    with monkeypatch.context() as patch:
        make = publisher.event_frames
        patch.setattr(publisher, "event_frames", lambda *args: [*make(*args)[:2], *frames])
        device.noted.emit(b"1")
    wait_until(lambda: "no signals from" in caplog.text)
    wait_until(lambda: device.noted.emit("after") or notes)

    assert "after" == notes[0]
