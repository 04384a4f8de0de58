"""Streams as the server sends them: what is queued, dropped and shared, dead readers, and hostile messages."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from rpc_kit import sockets, stream_sender
from rpc_kit.addresses import Address
from rpc_kit.errors import SerializationError, ServerBusy
from rpc_kit.sockets import Waker
from rpc_kit.stream_reader import WINDOW
from rpc_kit.stream_sender import MOST_CREDIT, MOST_QUEUED
from tests.devices import LIMIT
from tests.helpers import Peer, in_thread, raw_connection, request, wait_until
from tests.imaging import LARGE, SMALL, CameraClient, CameraServer, number_of, picture, tell

MOST = WINDOW + MOST_QUEUED
"""Events that a reader of all can still get that has stopped reading."""


@pytest.fixture
def camera(serve: Callable[..., Any]) -> Any:
    """A camera on a thread."""
    return serve(CameraServer)


@pytest.fixture
def attach(context: Any) -> Iterator[Callable[..., Any]]:
    """Makes clients of a camera."""
    with contextlib.ExitStack() as stack:
        yield lambda device, **options: stack.enter_context(CameraClient(context, device.url, **options))


def states(device: Any) -> list[dict[str, Any]]:
    """What the server says of its streams."""
    found: list[dict[str, Any]] = device.stats().get("streams", [])
    return found


def held(device: Any) -> int:
    usage: int = device.stats()["shm"]["held"]
    return usage


def wait_for_sent(device: Any, *numbers: int) -> None:
    """Until the streams have been sent so many events."""
    wait_until(lambda: list(numbers) == [each["sent"] for each in states(device)])


def read(stream: Any, count: int) -> list[int]:
    """The numbers of the next events."""
    return [number_of(next(stream)) for _ in range(count)]


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_all(camera: Any, attach: Any, size: int) -> None:
    """A reader that keeps up gets every event, in order."""
    stream = attach(camera).frames.stream("all", timeout=LIMIT)
    for first in range(0, 500, 50):
        camera.emit(first, first + 49, size)
        assert list(range(first, first + 50)) == read(stream, 50)

    assert (500, 0) == (stream.received, stream.dropped)
    assert [{"signal": "frames", "policy": "all", "sent": 500, "dropped": 0, "waiting": 0}] == states(camera)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_all_that_are_too_many(camera: Any, attach: Any, size: int) -> None:
    """For a reader that stops reading so many wait, the first ones; the others are dropped, and both sides know it."""
    stream = attach(camera).frames.stream("all", timeout=LIMIT)
    camera.emit(1, WINDOW, size)
    wait_for_sent(camera, WINDOW)
    camera.emit(WINDOW + 1, 300, size, "copied")
    assert (300 - MOST, MOST_QUEUED) == (states(camera)[0]["dropped"], states(camera)[0]["waiting"])
    found = read(stream, MOST)
    camera.emit(301, 301, size)
    found += read(stream, 1)

    assert [*range(1, MOST + 1), 301] == found
    assert (MOST + 1, 300 - MOST) == (stream.received, stream.dropped)
    assert (MOST + 1, 300 - MOST) == (states(camera)[0]["sent"], states(camera)[0]["dropped"])


def test_latest(camera: Any, attach: Any) -> None:
    """Each event is the newest one at that time; those between count as dropped."""
    stream = attach(camera).frames.stream(timeout=LIMIT)
    for first, last in ((1, 10), (11, 11), (12, 30), (31, 32)):
        camera.emit(first, last)
        assert [last] == read(stream, 1)

    assert (4, 28) == (stream.received, stream.dropped)
    assert [{"signal": "frames", "policy": "latest", "sent": 4, "dropped": 28, "waiting": 0}] == states(camera)


def test_latest_that_waits(camera: Any, attach: Any) -> None:
    """Who waits already gets the next event, which is not given twice."""
    stream = attach(camera).frames.stream("latest", timeout=LIMIT)
    for number in range(5):
        with in_thread(lambda: number_of(next(stream))) as outcome:
            wait_until(lambda: camera._rpc.streams._readers and [*camera._rpc.streams._readers.values()][0].credit)
            camera.emit(number, number)
        assert [number] == outcome

    assert (5, 0) == (stream.received, stream.dropped)


@pytest.mark.parametrize("every", [1, 3, 7])
def test_every(camera: Any, attach: Any, every: int) -> None:
    """Each so many-th event from the first on; the others were not wanted, and do not count."""
    stream = attach(camera).frames.stream("every", every=every, timeout=LIMIT)
    camera.emit(1, 60)
    expected = list(range(1, 61, every))

    assert expected == read(stream, len(expected))
    assert (len(expected), 0) == (stream.received, stream.dropped)
    assert len(expected) == states(camera)[0]["sent"]


def test_every_that_are_too_many(camera: Any, attach: Any) -> None:
    """Of the wanted ones too many are dropped, too."""
    stream = attach(camera).frames.stream("every", every=2, timeout=LIMIT)
    camera.emit(1, 2 * WINDOW, SMALL)
    wait_for_sent(camera, WINDOW)
    camera.emit(2 * WINDOW + 1, 300, SMALL)

    assert list(range(1, 2 * MOST + 1, 2)) == read(stream, MOST)
    assert 150 - MOST == stream.dropped == states(camera)[0]["dropped"]


def test_queue_is_bounded_in_bytes(camera: Any, attach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large events for a reader that stops reading do not fill the memory; a single one always has room."""
    monkeypatch.setattr(stream_sender, "MOST_QUEUED_BYTES", 10 * 4 * LARGE)
    stream = attach(camera).frames.stream("all", timeout=LIMIT)
    camera.emit(1, WINDOW)
    wait_for_sent(camera, WINDOW)
    camera.emit(WINDOW + 1, 50)

    assert 10 == states(camera)[0]["waiting"]
    assert list(range(1, WINDOW + 11)) == read(stream, WINDOW + 10)
    monkeypatch.setattr(stream_sender, "MOST_QUEUED_BYTES", 1)
    camera.emit(51, 51)
    assert [51] == read(stream, 1)


def test_slow_reader_holds_up_nobody(camera: Any, attach: Any) -> None:
    """While one reader stops reading, another one gets everything, and the device emits as ever."""
    slow = attach(camera).frames.stream("all", timeout=LIMIT)
    fast = attach(camera).frames.stream("all", timeout=LIMIT)
    for first in range(0, 1000, 50):
        camera.emit(first, first + 49, LARGE if first % 100 else SMALL)
        assert list(range(first, first + 50)) == read(fast, 50)
    assert (0, 0) == (fast.dropped, slow.received)

    assert MOST_QUEUED == max(each["waiting"] for each in states(camera))
    first = read(slow, MOST)
    assert (0, len(first)) == (first[0], len(set(first)))
    assert first == sorted(first)
    assert 1000 == len(first) + max(each["dropped"] for each in states(camera))


def test_readers_share_slots(camera: Any, attach: Any) -> None:
    """A frame lies in one slot, however many read it; the slot is free after the last of them."""
    streams = [attach(camera).frames.stream("all", timeout=LIMIT) for _ in range(4)]
    camera.emit(7, 7, LARGE, "copied")
    frames = [next(stream) for stream in streams]

    assert ([7] * 4, 1, 1) == (list(map(number_of, frames)), held(camera), camera.stats()["shm"]["slots"])
    del frames[1:]
    wait_until(lambda: 1 == held(camera))
    frames.clear()
    wait_until(lambda: 0 == held(camera))


def test_slots_of_dropped_events(camera: Any, attach: Any) -> None:
    """What is dropped takes no slot: a reader of the latest that does not read needs two."""
    stream = attach(camera).frames.stream("latest", timeout=LIMIT)
    camera.emit(0, 200)

    assert (1, True) == (held(camera), camera.stats()["shm"]["slots"] <= 2)
    assert [200] == read(stream, 1)
    wait_until(lambda: 0 == held(camera))


def test_nobody_reads(camera: Any) -> None:
    """An emission costs nothing then: no copy, no slot."""
    camera.emit(0, 100, LARGE, "copied")

    assert {} == camera.stats()


def test_array_that_the_device_uses_again(camera: Any, attach: Any) -> None:
    """The device may write to a plain array as soon as `emit` has returned."""
    for size in (SMALL, 10_000, 40_000, LARGE):
        with attach(camera).frames.stream("all", timeout=LIMIT) as stream:
            image = picture(0, size)
            for number in range(50):
                image[:] = number
                camera.frames.emit(image)
            image[:] = 99
            assert list(range(50)) == read(stream, 50)


@pytest.fixture
def far(serve: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A camera that clients take for one on another host."""
    monkeypatch.setattr(Address, "is_here", False)
    return serve(CameraServer, shared_memory=0)


def test_view_of_an_array_that_the_device_uses_again(far: Any, attach: Any) -> None:
    """A read-only view is copied, as its owner may write to what it shows."""
    stream = attach(far).frames.stream("all", timeout=LIMIT)
    image = picture(0)
    view = image.view()
    view.flags.writeable = False
    for number in range(2 * WINDOW):
        image[:] = number
        far.frames.emit(view)
    image[:] = 99

    assert list(range(2 * WINDOW)) == read(stream, 2 * WINDOW)


def test_array_that_nobody_can_change(far: Any, attach: Any) -> None:
    """It is not copied, however long it waits for its reader."""
    stream = attach(far).frames.stream("all", timeout=LIMIT)
    image = picture(3)
    image.flags.writeable = False
    for _ in range(WINDOW + 1):
        far.frames.emit(image)
    wait_for_sent(far, WINDOW)
    (reader,) = far._rpc.streams._readers.values()

    assert np.shares_memory(image, np.frombuffer(reader.queue[0].parts[0].data, np.uint8))
    assert [3] * (WINDOW + 1) == read(stream, WINDOW + 1)


def test_loan_that_was_emitted(camera: Any, attach: Any) -> None:
    """It is read-only, whether anybody takes it through shared memory or not."""
    stream = attach(camera).frames.stream("all", timeout=LIMIT)
    loan = camera.loan(LARGE, np.uint32)
    loan[:] = 1
    camera.frames.emit(loan[5:])
    with pytest.raises(ValueError, match="read-only"):
        loan[10] = 2

    assert [1] == read(stream, 1)


def test_reader_is_killed(camera: Any, spawn: Any) -> None:
    """A reader that is killed while events come is gone within 2 s, and so is what it held."""
    users = [spawn("tests.imaging", "use", camera.url) for _ in range(2)]
    for user, policy in zip(users, ("all", "latest")):
        tell(user, "stream", policy)
    camera.emit(1, 5)
    assert [1, 5] == [tell(user, "next") for user in users]
    wait_until(lambda: 0 < held(camera))
    stopped = threading.Event()

    def emit() -> None:
        while not stopped.wait(0.01):
            camera.emit(6, 6)

    with in_thread(emit):
        for user in users:
            user.send_signal(signal.SIGKILL)
        try:
            wait_until(lambda: not states(camera), 2.0)
        finally:
            stopped.set()
    wait_until(lambda: 0 == held(camera))


@pytest.mark.parametrize("policy", ["all", "latest"])
def test_reader_is_killed_while_nothing_happens(camera: Any, spawn: Any, policy: str) -> None:
    """What it held is free within 2 s; that it is gone is seen with the next event."""
    user = spawn("tests.imaging", "use", camera.url)
    tell(user, "stream", policy)
    camera.emit(1, 1)
    assert 1 == tell(user, "next")
    user.send_signal(signal.SIGKILL)

    wait_until(lambda: 0 == held(camera), 2.0)
    for _ in range(2):  # the first one may still fit into what the reader has asked for
        camera.emit(2, 2)
    wait_until(lambda: not states(camera), 2.0)
    wait_until(lambda: 0 == held(camera))


def test_reader_is_stopped(camera: Any, spawn: Any, attach: Any) -> None:
    """A reader that hangs costs what waits for it, and goes on where it was."""
    user = spawn("tests.imaging", "use", camera.url)
    tell(user, "stream", "all")
    camera.emit(1, 1)
    assert 1 == tell(user, "next")
    user.send_signal(signal.SIGSTOP)
    other = attach(camera).frames.stream("all", timeout=LIMIT)
    for number in range(2, 30):
        camera.emit(number, number)
        assert [number] == read(other, 1)
    user.send_signal(signal.SIGCONT)

    assert list(range(2, 30)) == [tell(user, "next") for _ in range(28)]


def test_event_that_cannot_be_sent(camera: Any, attach: Any) -> None:
    """The device is told; readers do not notice."""
    stream = attach(camera).marked.stream("all", timeout=LIMIT)
    with pytest.raises(SerializationError, match="signal marked: .*Python objects"):
        camera.marked.emit(np.array([object()]), {})
    with pytest.raises(SerializationError, match="signal marked: "):
        camera.marked.emit(picture(1), {"a": object()})
    camera.marked.emit(picture(2), {"n": 2})

    assert 2 == next(stream)[1]["n"]


def test_emission_in_many_threads(camera: Any, attach: Any) -> None:
    """Events of several threads come all, those of each in their order."""
    stream = attach(camera).marked.stream("all", timeout=LIMIT)

    def emit(thread: int) -> None:
        for number in range(20):
            camera.marked.emit(picture(number, SMALL), {"thread": thread})

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    found: dict[int, list[int]] = {number: [] for number in range(4)}
    for _ in range(80):
        image, info = next(stream)
        found[info["thread"]].append(number_of(image))
    for each in threads:
        each.join()

    assert {number: list(range(20)) for number in range(4)} == found


def stream_port(device: Any, context: Any) -> int:
    """Where the streams of a device are."""
    with Peer(context, device.url) as asking:
        port: int = asking.ask(request("INIT_STREAMS", id=["me", 1]))["stream_port"]
    return port


@pytest.fixture
def stranger(camera: Any, context: Any) -> Iterator[Peer]:
    """A plain peer at the port of the streams."""
    with Peer(context, f"tcp://127.0.0.1:{stream_port(camera, context)}") as made:
        yield made


@pytest.fixture
def healthy(camera: Any, attach: Any) -> Iterator[None]:
    """Whatever a test does, another reader goes on, and new ones come."""
    stream = attach(camera).frames.stream("all", timeout=LIMIT)
    camera.emit(1, 1)
    assert [1] == read(stream, 1)
    yield
    camera.emit(2, 2)
    wait_until(lambda: [2] == read(stream, 1))
    assert 0 == stream.dropped
    second = attach(camera).frames.stream("all", timeout=LIMIT)
    camera.emit(3, 3)
    assert [3] == read(second, 1)


OPEN = {"event": "STREAM", "signal": "frames"}
BAD: dict[str, tuple[list[bytes], str]] = {
    "empty": ([b""], "ProtocolError"),
    "nonsense": ([b"nonsense"], "ProtocolError"),
    "not UTF-8": ([b"\xff\xfe"], "ProtocolError"),
    "deep": ([b"[" * 100_000], "ProtocolError"),
    "a list": ([b"[]"], "ProtocolError"),
    "no event": ([b"{}"], "ProtocolError"),
    "a call": ([request("METHOD_CALL", method="emit", params={"args": [1, 2]})], "ProtocolError"),
    "two frames": ([json.dumps(OPEN).encode(), b"x"], "ProtocolError"),
    "many frames": ([b"x"] * 3000, "ProtocolError"),
    "unknown signal": ([json.dumps({**OPEN, "signal": "nosuch"}).encode()], "UnknownMember"),
    "a method": ([json.dumps({**OPEN, "signal": "emit"}).encode()], "UnknownMember"),
    "private": ([json.dumps({**OPEN, "signal": "__class__"}).encode()], "UnknownMember"),
    "long name": ([json.dumps({**OPEN, "signal": "x" * 1_000_000}).encode()], "UnknownMember"),
    "unknown policy": ([json.dumps({**OPEN, "policy": "some"}).encode()], "ProtocolError"),
    "every 0": ([json.dumps({**OPEN, "policy": "every", "every": 0}).encode()], "ProtocolError"),
    "huge credit": ([json.dumps({**OPEN, "credit": 10**9}).encode()], "ProtocolError"),
    "negative credit": ([json.dumps({**OPEN, "credit": -1}).encode()], "ProtocolError"),
    "unknown codec": ([json.dumps({**OPEN, "codec": {"name": "bomb"}}).encode()], "ProtocolError"),
    "quality 1000": ([json.dumps({**OPEN, "codec": {"name": "jpeg", "quality": 1000}}).encode()], "ProtocolError"),
    "next before open": ([b'{"event":"STREAM_NEXT","credit":1}'], "ProtocolError"),
    "huge next": ([b'{"event":"STREAM_NEXT","credit":10000000000}'], "ProtocolError"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_message(camera: Any, healthy: None, stranger: Peer, name: str) -> None:
    """It is answered with an error, and opens nothing."""
    frames, kind = BAD[name]
    stranger.send(*frames)
    reply = json.loads(stranger.receive()[0])

    assert (f"rpc_kit.errors.{kind}", True) == (reply["error_type"], 0 < len(reply["error"]) < 1000)
    assert 1 == len(states(camera))


def test_opened_twice(camera: Any, healthy: None, stranger: Peer) -> None:
    """The second time is an error, which ends the stream."""
    for _ in range(2):
        stranger.send(json.dumps(OPEN).encode())
    replies = [json.loads(stranger.receive()[0]) for _ in range(2)]

    assert ("error" not in replies[0], True) == (True, "open on this connection already" in replies[1]["error"])
    wait_until(lambda: 1 == len(states(camera)))


@pytest.mark.parametrize("proof", [["", 0], ["0" * 32, 1], ["ü" * 32, -1], ["0" * 32, 1 << 62]])
def test_wrong_proof(camera: Any, healthy: None, stranger: Peer, proof: list[Any]) -> None:
    """Who cannot prove that it has the shared memory gets frames."""
    stranger.send(json.dumps({**OPEN, "shm": proof, "credit": 5}).encode())
    assert "error" not in json.loads(stranger.receive()[0])
    camera.emit(1, 1)
    head, frame = stranger.receive()

    assert ([{"$buffer": 0}], True) == (json.loads(head)["args"], picture(1).tobytes() == frame)


def test_credit_has_a_limit(camera: Any, healthy: None, stranger: Peer) -> None:
    """However much a reader asks for, so many events and no more are on their way to it."""
    stranger.send(json.dumps({**OPEN, "credit": 1000}).encode())
    stranger.receive()
    for _ in range(50):
        stranger.send(b'{"event":"STREAM_NEXT","credit":1000}')
    stranger.send(b'{"event":"STREAM_NEXT"}')
    stranger.receive()
    reader = next(each for each in camera._rpc.streams._readers.values() if each.asked.credit == 1000)

    assert stream_sender.MOST_CREDIT == reader.credit


def test_reader_that_takes_credit_and_reads_nothing(camera: Any, attach: Any, context: Any) -> None:
    """What it has asked for waits in its connection, what comes then in its queue; nobody else notices."""
    stream = attach(camera).frames.stream("all", timeout=LIMIT)
    with raw_connection(stream_port(camera, context)) as made:
        body = json.dumps({**OPEN, "credit": 1000}).encode()
        made.sendall(b"\x02" + len(body).to_bytes(8, "big") + body)
        wait_until(lambda: 2 == len(states(camera)))
        for number in range(1500):
            camera.emit(number, number, SMALL)
            assert [number] == read(stream, 1)
        assert {0, MOST_QUEUED} == {each["waiting"] for each in states(camera)}
        assert {0, 1500 - MOST_CREDIT - MOST_QUEUED} == {each["dropped"] for each in states(camera)}
    wait_until(lambda: 1 == len(states(camera)))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Sockets have little room for what nobody has read; to whom nothing more could be sent."""
    make, send, found = sockets.make_socket, stream_sender.send_reply, list[bytes]()

    def narrow(*given: Any) -> Any:
        made = make(*given)
        made.sndhwm = made.rcvhwm = 100
        made.sndbuf = 4096
        return made

    def note(router: Any, envelope: list[bytes], frames: Any) -> None:
        try:
            send(router, envelope, frames)
        except zmq.Again:
            found.append(envelope[0])
            raise

    monkeypatch.setattr(sockets, "make_socket", narrow)
    monkeypatch.setattr(stream_sender, "send_reply", note)
    return found


@pytest.mark.parametrize("body", [b'{"event":"STREAM_NEXT","credit":0}', b'{"event":"STREAM_NEXT"', b"nonsense"])
def test_questions_whose_answers_nobody_reads(
    refused: list[bytes], serve: Any, attach: Any, context: Any, body: bytes
) -> None:
    """Who asks without end and reads no answer holds up neither other readers nor the end of the server."""
    device = serve(CameraServer)
    stream = attach(device).frames.stream("all", timeout=LIMIT)
    with raw_connection(stream_port(device, context)) as made:
        opening = json.dumps(OPEN).encode()
        made.sendall(b"\0" + bytes([len(opening)]) + opening)
        wait_until(lambda: 2 == len(states(device)))

        def is_full() -> bool:
            made.sendall((b"\0" + bytes([len(body)]) + body) * 1000)
            device.emit(1, 1, SMALL)
            assert [1] == read(stream, 1)
            return bool(refused)

        wait_until(is_full)
        for _ in range(5):
            is_full()
        assert (1, 0) == (len(states(device)), stream.dropped)
        device.stop_server()
        assert device._rpc.finished.wait(LIMIT / 2)


def test_reader_that_is_asked_and_never_answers(
    refused: list[bytes], serve: Any, attach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it was asked, other readers go on, and the server ends in time."""
    monkeypatch.setattr(stream_sender, "PROBE_TIME", 0.0)
    monkeypatch.setattr(stream_sender, "OFTEN", 1)
    device = serve(CameraServer)
    idle = attach(device).frames.stream("all", timeout=LIMIT)
    stream = attach(device).frames.stream("all", timeout=LIMIT)

    def is_full() -> bool:
        device.emit(1, 1, SMALL)
        assert [1] == read(stream, 1)
        return bool(refused)

    wait_until(is_full)
    for _ in range(5):
        is_full()
    assert (0, 0) == (stream.dropped, idle.received)
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT / 2)


def vanish(context: Any, device: Any, count: int) -> None:
    """Open streams, and go without a word."""
    for _ in range(count):
        with Peer(context, f"tcp://127.0.0.1:{stream_port(device, context)}") as peer:
            peer.send(json.dumps(OPEN).encode())
            assert "error" not in json.loads(peer.receive()[0])


def test_place_of_vanished_readers(
    camera: Any, attach: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where as many streams are open as there may be, those are looked for that nobody has any more."""
    monkeypatch.setattr(stream_sender, "MOST_READERS", 3)
    client = attach(camera)
    opened: list[Any] = []

    def is_open() -> bool:
        with contextlib.suppress(ServerBusy):
            opened.append(client.frames.stream("all", timeout=LIMIT))
        return bool(opened)

    vanish(context, camera, 3)
    wait_until(is_open)  # the end of a connection may come after the next one
    camera.emit(1, 1)
    assert [1] == read(opened[0], 1)
    more = [client.frames.stream() for _ in range(3 - len(states(camera)))]
    with pytest.raises(ServerBusy, match="3 streams are open"):
        client.frames.stream()
    del more


def test_vanished_readers_of_a_quiet_signal(camera: Any, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found without any event."""
    monkeypatch.setattr(stream_sender, "IDLE_TIME", 0.05)
    vanish(context, camera, 5)

    wait_until(lambda: [] == states(camera))


def test_emission_while_the_server_ends(
    serve: Any, attach: Any, monkeypatch: pytest.MonkeyPatch, waker_kind: str
) -> None:
    """Threads that emit then notice nothing, and write to no descriptor that belongs to somebody else by now."""
    taken: list[int] = []
    emitting: set[int] = set()
    stopping, stopped = threading.Event(), threading.Event()
    real_wake, real_close = Waker.wake, Waker.close

    def wake(waker: Waker) -> None:
        if stopping.is_set() and threading.get_ident() in emitting:
            stopped.wait(0.02)  # this thread is slow
        real_wake(waker)

    def close(waker: Waker) -> None:
        real_close(waker)
        taken.append(os.memfd_create("taken"))  # gets the number that has become free
        if waker is device._rpc.streams._waker:
            stopped.set()

    def emit() -> None:
        emitting.add(threading.get_ident())
        image = picture(1)
        while not stopped.is_set():
            device.frames.emit(image)
        for _ in range(10):
            device.frames.emit(image)

    monkeypatch.setattr(Waker, "wake", wake)
    monkeypatch.setattr(Waker, "close", close)
    for _ in range(5):
        device = serve(CameraServer)
        streams = [attach(device).frames.stream("all", timeout=LIMIT) for _ in range(2)]
        with in_thread(emit) as one, in_thread(emit) as other:
            try:
                assert [1, 1] == [read(stream, 1)[0] for stream in streams]
                stopping.set()
                device.stop_server()
                assert stopped.wait(LIMIT)
            finally:
                stopped.set()
        assert [[None], [None]] == [one, other]
        stopping.clear()
        stopped.clear()

    assert {0} == {os.fstat(each).st_size for each in taken}
    for each in taken:
        os.close(each)
