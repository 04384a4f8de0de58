"""Streams as a client reads them: waiting, closing, lost servers, asyncio, listeners, and compressed events."""

import asyncio
import contextlib
import gc
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import zmq

from rpc_kit import sharedmem, transfer
from rpc_kit.addresses import Address
from rpc_kit.errors import CallTimeout, ClientClosed, ServerLost, ServerStopping, UnknownMember
from rpc_kit.messages import InitStreams
from rpc_kit.signals import RPCSignal
from tests.devices import LIMIT
from tests.helpers import Relay, in_thread, wait_until
from tests.imaging import LARGE, SMALL, CameraClient, CameraServer, number_of, picture

PATHS = ("shm", "ipc", "tcp", "inproc")
SOON = 0.05
"""A time to wait for what does not come, s."""


@pytest.fixture
def camera(serve: Callable[..., Any]) -> Any:
    """A camera on a thread."""
    return serve(CameraServer)


@pytest.fixture
def attach(context: Any) -> Iterator[Callable[..., Any]]:
    """Makes clients of a camera."""
    with contextlib.ExitStack() as stack:
        yield lambda device, **options: stack.enter_context(CameraClient(context, device.url, **options))


@pytest.fixture
def client(camera: Any, attach: Any) -> Any:
    """A client of the camera."""
    return attach(camera)


@pytest.fixture
def far(serve: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A camera that clients take for one on another host."""
    monkeypatch.setattr(Address, "is_here", False)
    return serve(CameraServer, shared_memory=0)


def states(device: Any) -> list[dict[str, Any]]:
    """What the server says of its streams."""
    found: list[dict[str, Any]] = device.stats().get("streams", [])
    return found


def read(stream: Any, count: int) -> list[int]:
    """The numbers of the next events."""
    return [number_of(next(stream)) for _ in range(count)]


def next_waits(stream: Any) -> bool:
    """Whether a thread or task waits for the next event."""
    return bool(stream._using.locked())


@pytest.mark.parametrize("kind", ["loan", "copied", "read-only", "strided"])
@pytest.mark.parametrize("path", PATHS)
def test_paths(serve: Any, attach: Any, monkeypatch: pytest.MonkeyPatch, path: str, kind: str) -> None:
    """An event takes the path that is there, and is read-only; a small one takes the socket."""
    url = "inproc://camera" if path == "inproc" else "tcp://127.0.0.1:0"
    if path == "tcp":
        monkeypatch.setattr(Address, "is_here", False)
    device = serve(CameraServer, url, **({} if path == "shm" else {"shared_memory": 0}))
    client = attach(device)
    stream = client.frames.stream("all", timeout=LIMIT)
    device.emit(1, 1, LARGE, kind)
    device.emit(2, 2, SMALL, kind)
    found = [next(stream), next(stream)]

    assert [(1, np.uint32, False), (2, np.uint32, False)] == [
        (number_of(each), each.dtype, each.flags.writeable) for each in found
    ]
    assert {"frames": {"shm": 1, "ipc": 1} if path == "shm" else {path: 2}} == client.stats().paths
    copy = found[0].copy()
    copy[0] = 9
    assert (1, 9) == (found[0][0], copy[0])


def test_several_arguments(camera: Any, client: Any) -> None:
    """They come as a tuple; nested arrays of further arguments, too."""
    stream = client.marked.stream("all", timeout=LIMIT)
    for number in range(5):
        camera.marked.emit(picture(number), {"n": number, "dark": [picture(number + 1), picture(7, 3)], "raw": b"x"})
        image, info = next(stream)

        assert (number, number, [number + 1, 7], b"x") == (
            number_of(image), info["n"], list(map(number_of, info["dark"])), bytes(info["raw"])
        )  # fmt: skip
    assert {"marked": {"shm": 5}} == client.stats().paths


def test_signals_without_arrays(camera: Any, client: Any) -> None:
    """Any signal can be read as a stream, besides its listeners."""
    counts, reports = client.counted.stream("all", timeout=LIMIT), client.reports.stream("all", timeout=LIMIT)
    heard: queue.Queue[int] = queue.Queue()
    client.counted.connect(heard.put)
    for number in range(3):
        camera.counted.emit(number)
        camera.reports.emit({"n": number, "image": picture(number)})

    assert [0, 1, 2] == [next(counts) for _ in range(3)] == [heard.get(timeout=LIMIT) for _ in range(3)]
    assert [0, 1, 2] == [number_of(next(reports)["image"]) for _ in range(3)]


def test_two_streams_of_a_client(camera: Any, client: Any) -> None:
    """Each has its own events, and its own end."""
    latest, every = client.frames.stream(timeout=LIMIT), client.frames.stream("every", every=2, timeout=LIMIT)
    camera.emit(1, 5)
    assert ([5], [1, 3, 5]) == (read(latest, 1), read(every, 3))
    latest.close()
    camera.emit(6, 7)

    assert [7] == read(every, 1)
    assert [] == list(latest)
    assert (4, 0, 4) == (latest.dropped, every.dropped, every.received)


def test_kept_events_never_change(camera: Any, client: Any) -> None:
    """Whoever keeps events and parts of them sees them as they were, however many come afterwards."""
    stream = client.frames.stream("all", timeout=LIMIT)
    kept = []
    for number in range(1000):
        camera.emit(number, number, 150_000, "copied" if number % 2 else "loan")
        frame = next(stream)
        assert number == int(frame[-1])
        if number % 20 == 0:
            kept.append(frame if number % 40 else frame[100:200])
        del frame

    assert list(range(0, 1000, 20)) == list(map(number_of, kept))
    assert {"frames": {"shm": 1000}} == client.stats().paths
    wait_until(lambda: 50 == camera.stats()["shm"]["held"])


def test_with_block(camera: Any, client: Any) -> None:
    """It closes the stream, which then gives nothing more."""
    with client.frames.stream("all", timeout=LIMIT) as stream:
        camera.emit(1, 2)
        for frame in stream:
            assert 1 == number_of(frame)
            break
    with pytest.raises(StopIteration):
        next(stream)
    wait_until(lambda: camera.emit(3, 3) or not states(camera))
    stream.close()


def test_forgotten_stream(camera: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that nobody has any more is closed; what was on its way to it is free after the pick-up time."""
    monkeypatch.setattr(sharedmem, "PICK_UP_TIME", 0.2)
    stream = client.frames.stream("all", timeout=LIMIT)
    camera.emit(1, 1)
    assert [1] == read(stream, 1)
    del stream

    wait_until(lambda: camera.emit(2, 2) or not states(camera))
    wait_until(lambda: 0 == camera.stats()["shm"]["held"])


@pytest.mark.parametrize("policy", ["all", "latest"])
def test_closing_gives_slots_back(camera: Any, client: Any, policy: Any) -> None:
    """Events that are under way, or wait at the server, are not kept until the pick-up time is over."""
    stream = client.frames.stream(policy, timeout=LIMIT)
    camera.emit(0, 0)
    assert [0] == read(stream, 1)
    camera.emit(1, 20)
    assert 0 < camera.stats()["shm"]["held"]
    stream.close()

    wait_until(lambda: 0 == camera.stats()["shm"]["held"], 2.0)
    assert [] == states(camera)


@pytest.mark.parametrize("what", ["stream", "client"])
def test_closed_by_another_thread(camera: Any, attach: Any, what: str) -> None:
    """Closing the stream, or its client, ends a `next` that waits."""
    client = attach(camera)
    stream = client.frames.stream()
    with in_thread(lambda: list(stream)) as outcome:
        wait_until(lambda: next_waits(stream))
        (stream if what == "stream" else client).close()

    assert ([[]], True) == (outcome, stream.closed)
    assert [] == list(stream)
    if what == "client":
        with pytest.raises(ClientClosed):
            client.frames.stream()


def test_context_is_terminated(camera: Any) -> None:
    """The end of the context ends a `next` that waits."""
    context: Any = zmq.Context()
    client = CameraClient(context, camera.url)
    stream = client.frames.stream()
    with in_thread(lambda: next(stream)) as outcome:
        wait_until(lambda: next_waits(stream))
        ending = threading.Thread(target=context.term)
        ending.start()
        wait_until(lambda: outcome)
    assert isinstance(outcome[0], (ClientClosed, StopIteration))
    client.close()
    stream.close()
    ending.join(LIMIT)
    assert not ending.is_alive()


@pytest.mark.parametrize("policy", ["all", "latest"])
def test_timeout(camera: Any, client: Any, policy: Any) -> None:
    """No event in time is a CallTimeout, which is a TimeoutError; the stream goes on."""
    stream = client.frames.stream(policy, timeout=SOON)
    for number in range(3):
        with pytest.raises(CallTimeout, match="no event of frames from tcp://.* within 0.05 s") as raised:
            next(stream)
        assert isinstance(raised.value, TimeoutError)
        camera.emit(number, number)
        assert [number] == read(stream, 1)

    assert (3, 0) == (stream.received, stream.dropped)


def test_one_thread_at_a_time(camera: Any, client: Any) -> None:
    """A second thread is told so; the first one gets its event."""
    stream = client.frames.stream("all", timeout=LIMIT)
    with in_thread(lambda: number_of(next(stream))) as outcome:
        wait_until(lambda: next_waits(stream))
        with pytest.raises(RuntimeError, match="one thread at a time"):
            next(stream)
        camera.emit(1, 1)

    assert [1] == outcome


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "policy": ({"policy": "some"}, "a policy is 'latest', 'all' or 'every', not 'some'"),
    "every 0": ({"policy": "every", "every": 0}, "every is a positive int"),
    "every of all": ({"policy": "all", "every": 2}, "used with the policy 'every'"),
    "every True": ({"policy": "every", "every": True}, "every is a positive int"),
    "every 1.0": ({"policy": "every", "every": 1.0}, "every is a positive int"),
    "timeout 0": ({"timeout": 0}, "timeout is a positive number of seconds or None"),
    "timeout NaN": ({"timeout": float("nan")}, "timeout is a positive number of seconds or None"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_use(client: Any, name: str) -> None:
    """It is an error at once."""
    options, text = WRONG[name]
    with pytest.raises(ValueError, match=text):
        client.frames.stream(**options)


def test_stream_of_the_device_itself(camera: Any) -> None:
    """The device connects to its own signals."""
    with pytest.raises(RuntimeError, match="connect to it"):
        camera.frames.stream()


def test_unknown_signal(camera: Any, client: Any) -> None:
    """What the server does not have is an UnknownMember."""
    client.frames.name = "nosuch"
    with pytest.raises(UnknownMember, match="Signal nosuch not implemented"):
        client.frames.stream()
    client.frames.name = "frames"
    assert client.frames.stream()


def test_event_of_another_type(camera: Any, client: Any) -> None:
    """An event that does not fit the interface is an error; the next one comes."""
    stream = client.counted.stream("all", timeout=LIMIT)
    camera.counted.arg_types = RPCSignal(str).arg_types
    camera.counted.emit("text")
    camera.counted.arg_types, camera.counted._loads = RPCSignal(int).arg_types, ()
    camera.counted.emit(3)
    with pytest.raises(TypeError):
        next(stream)

    assert 3 == next(stream)


@pytest.mark.parametrize("fault", ["kill", "stop"])
@pytest.mark.parametrize("policy", ["all", "latest"])
def test_server_is_lost(context: Any, spawn: Any, policy: Any, fault: str) -> None:
    """It is noticed by a `next` that waits; those after it open the stream anew, when there is a server again."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=0.6) as client:
        stream = client.frames.stream(policy)
        client.emit(1, 1)
        assert [1] == read(stream, 1)
        with in_thread(lambda: next(stream)) as outcome:
            wait_until(lambda: next_waits(stream))
            server.kill() if fault == "kill" else client.stop_server()
            wait_until(lambda: outcome, 3.0)
        assert isinstance(outcome[0], ServerLost if fault == "kill" else ServerStopping)
        with pytest.raises((ConnectionError, CallTimeout)):
            next(stream)
        server.end() if fault == "stop" else None
        server = spawn("tests.imaging", "serve", server.line)
        with in_thread(lambda: until_read(stream)) as outcome:
            wait_until(lambda: until_called(client) or outcome)

        assert [2] == outcome
        assert 2 == client.stats().paths["frames"]["shm"]


def until_read(stream: Any) -> int:
    """The next event, however often the server is not there yet."""
    while True:
        with contextlib.suppress(ConnectionError, CallTimeout):
            return number_of(next(stream))


def until_called(client: Any) -> bool:
    """Emit; never enough, as the stream may not be open yet."""
    with contextlib.suppress(ConnectionError, CallTimeout):
        client.emit(2, 2)
    return False


def test_events_of_the_run_before(context: Any, spawn: Any) -> None:
    """Events that wait unread while the server is restarted never show what the new run has put into its slots."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=2 * LIMIT) as client:
        stream = client.frames.stream("all", timeout=SOON)
        witness = client.frames.stream("all", timeout=LIMIT)  # is served after the other one
        client.emit(1, 6)
        assert list(range(1, 7)) == read(witness, 6)
        witness.close()
        server.kill()
        server = spawn("tests.imaging", "serve", server.line)
        assert 10 == number_of(client.image(10))  # by the memory of the new run
        with CameraClient(context, server.line) as other:
            new = other.frames.stream("all", timeout=LIMIT)
            other.emit(11, 16)
            kept = [next(new) for _ in range(6)]
            with pytest.raises(CallTimeout):
                next(stream)

            assert (0, 6, list(range(11, 17))) == (stream.received, stream.dropped, list(map(number_of, kept)))


def test_dropped_survives_a_restart(context: Any, spawn: Any) -> None:
    """What was dropped before the server was lost counts still."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=0.6) as client:
        stream = client.frames.stream()
        client.emit(1, 5)
        assert ([5], 4) == (read(stream, 1), stream.dropped)
        server.kill()
        with pytest.raises(ServerLost):
            next(stream)
        server = spawn("tests.imaging", "serve", server.line)
        with in_thread(lambda: until_read(stream)) as outcome:
            wait_until(lambda: until_called(client) or outcome)
        client.emit(6, 8)

        assert ([8], True) == (read(stream, 1), stream.dropped >= 4 + 2)


def test_reader_that_the_server_took_for_gone(camera: Any, client: Any) -> None:
    """A stream that the server has forgotten is opened again, without a word."""
    stream = client.frames.stream(timeout=LIMIT)
    camera._rpc.streams._forget([*camera._rpc.streams._readers][0])
    with in_thread(lambda: read(stream, 1)) as outcome:
        wait_until(lambda: states(camera))
        camera.emit(4, 4)

    assert [[4]] == outcome


def test_connection_is_cut(far: Any, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose connection breaks is opened anew."""
    with CameraClient(context, far.url, liveness=0.6) as client:
        port = client._rpc.calls.ask(InitStreams(), LIMIT, "INIT_STREAMS").stream_port
        with Relay(port) as relay:
            monkeypatch.setattr(far._rpc.streams, "open", lambda: {"stream_port": relay.own_port})
            stream = client.frames.stream("all", timeout=LIMIT)
            far.emit(1, 1)
            assert [1] == read(stream, 1)
            relay.cut()
            with in_thread(lambda: until_read(stream)) as outcome:
                wait_until(lambda: far.emit(2, 2) or outcome)

            assert [2] == outcome
            stream.close()


async def numbers(stream: Any, count: int) -> list[int]:
    """The numbers of the next events."""
    return [number_of(await anext(stream)) for _ in range(count)]


def test_async_for(camera: Any, client: Any) -> None:
    """As in a thread; the loop goes on meanwhile."""

    async def run() -> list[int]:
        found = []
        with client.frames.stream("all", timeout=LIMIT) as stream:
            camera.emit(0, 0)
            async for frame in stream:
                found.append(number_of(frame))
                if found[-1] == 20:
                    break
                asyncio.get_running_loop().call_soon(camera.emit, found[-1] + 1, found[-1] + 1)
        return found

    assert list(range(21)) == asyncio.run(run())


def test_two_tasks(camera: Any, attach: Any) -> None:
    """Two readers in one loop get all; a third one of the same stream is refused."""

    async def run() -> Any:
        streams = [attach(camera).frames.stream("all", timeout=LIMIT) for _ in range(2)]
        tasks = [asyncio.create_task(numbers(stream, 50)) for stream in streams]
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task at a time"):
            await anext(streams[0])
        await asyncio.to_thread(camera.emit, 0, 49)
        return await asyncio.gather(*tasks)

    assert [list(range(50))] * 2 == asyncio.run(run())


def test_task_is_cancelled(camera: Any, client: Any) -> None:
    """A cancelled task leaves the stream as it was: the next event is for the next task, and for threads."""

    async def run() -> list[int]:
        for policy in ("all", "latest"):
            stream = client.frames.stream(policy, timeout=LIMIT)
            for _ in range(3):
                task = asyncio.create_task(numbers(stream, 1))
                await asyncio.sleep(SOON)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            camera.emit(1, 1)
            assert [1] == await numbers(stream, 1)
            camera.emit(2, 2)
            assert ([2], 0) == (await asyncio.to_thread(read, stream, 1), stream.dropped)
        return [2]

    assert [2] == asyncio.run(run())


@pytest.mark.parametrize("policy", ["all", "latest"])
def test_cancellation_together_with_events(camera: Any, client: Any, policy: Any) -> None:
    """However closely an event comes before it, no cancellation gets lost."""

    async def consume(stream: Any) -> None:
        async for _ in stream:
            pass

    async def run() -> int:
        cancelled = 0
        with client.frames.stream(policy, timeout=LIMIT) as stream:
            for number in range(200):
                task = asyncio.create_task(consume(stream))
                for _ in range(3):
                    await asyncio.sleep(0)
                camera.emit(number, number, SMALL)
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                task.cancel()
                done, _ = await asyncio.wait([task], timeout=LIMIT)
                cancelled += bool(done) and task.cancelled()
        return cancelled

    assert 200 == asyncio.run(run())


def test_backlog_leaves_time_to_other_tasks(camera: Any, client: Any) -> None:
    """While one event after the other is there already, another task has its turn between any two."""

    async def run() -> list[int]:
        turns, seen = 0, []

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        with client.frames.stream("all", timeout=LIMIT) as stream:
            camera.emit(0, 59, SMALL)
            other = asyncio.create_task(count())
            async for frame in stream:
                seen.append(turns)
                if number_of(frame) == 59:
                    break
            other.cancel()
        return seen

    seen = asyncio.run(run())
    assert (60, 60) == (len(seen), len(set(seen)))


def test_async_timeout(camera: Any, client: Any) -> None:
    """A task gets the same error as a thread, and goes on."""

    async def run() -> list[int]:
        stream = client.frames.stream("all", timeout=SOON)
        with pytest.raises(CallTimeout):
            await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), SOON / 10)
        camera.emit(1, 1)
        return await numbers(stream, 1)

    assert [1] == asyncio.run(run())


@pytest.mark.parametrize("what", ["stream", "client"])
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_async_closing(camera: Any, attach: Any, where: str, what: str) -> None:
    """Closing ends an `async for`, from the loop and from any thread."""
    client = attach(camera)
    stream = client.frames.stream()

    async def wait() -> list[Any]:
        return [frame async for frame in stream]

    async def run() -> list[Any]:
        task = asyncio.create_task(wait())
        await asyncio.sleep(SOON)
        close = (stream if what == "stream" else client).close
        close() if where == "loop" else await asyncio.to_thread(close)
        return await asyncio.wait_for(task, LIMIT)

    assert [] == asyncio.run(run())


def test_async_server_lost(context: Any, spawn: Any) -> None:
    """A task learns of a dead server, too."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=0.6) as client:
        stream = client.frames.stream()

        async def run() -> Any:
            task = asyncio.create_task(numbers(stream, 1))
            await asyncio.sleep(SOON)
            server.kill()
            await task

        with pytest.raises(ServerLost):
            asyncio.run(run())


def test_listeners(camera: Any, attach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first listener opens a stream of all events, before `connect` returns; after the last one it ends."""
    monkeypatch.setattr(sharedmem, "PICK_UP_TIME", 0.2)
    client = attach(camera)
    first: queue.Queue[int] = queue.Queue()
    second: queue.Queue[int] = queue.Queue()
    heard = [lambda frame: first.put(number_of(frame)), lambda frame: second.put(number_of(frame))]
    assert [] == states(camera)
    client.frames.connect(heard[0])
    camera.emit(1, 10)
    assert list(range(1, 11)) == [first.get(timeout=LIMIT) for _ in range(10)]
    client.frames.connect(heard[1])
    camera.emit(11, 11)
    assert [11, 11] == [first.get(timeout=LIMIT), second.get(timeout=LIMIT)]
    assert [("frames", "all")] == [(each["signal"], each["policy"]) for each in states(camera)]
    client.frames.disconnect(heard[0])
    camera.emit(12, 12)
    assert (12, 0) == (second.get(timeout=LIMIT), first.qsize())
    client.frames.disconnect(heard[1])
    wait_until(lambda: camera.emit(13, 13) or not states(camera))
    wait_until(lambda: 0 == camera.stats()["shm"]["held"])
    client.frames.connect(heard[0])
    camera.emit(14, 14)

    assert (14, 0) == (first.get(timeout=LIMIT), second.qsize())


def test_listener_with_several_arguments(camera: Any, client: Any) -> None:
    """It gets them one by one; other clients of the device, without a listener, get nothing."""
    heard: queue.Queue[Any] = queue.Queue()
    client.marked.connect(lambda image, info: heard.put((number_of(image), info["n"])))
    camera.marked.emit(picture(1), {"n": 2})

    assert (1, 2) == heard.get(timeout=LIMIT)
    assert {"marked": {"shm": 1}} == client.stats().paths


def test_listener_that_raises(camera: Any, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the others, and later events, are not affected."""
    heard: queue.Queue[int] = queue.Queue()

    def fail(frame: Any) -> None:
        raise SystemExit if number_of(frame) == 1 else ValueError("as wanted")

    client.frames.connect(fail)
    client.frames.connect(lambda frame: heard.put(number_of(frame)))
    camera.emit(1, 3)

    assert [1, 2, 3] == [heard.get(timeout=LIMIT) for _ in range(3)]
    assert 3 == sum("failed" in each.getMessage() for each in caplog.records)


def test_listener_that_disconnects_itself(camera: Any, client: Any) -> None:
    """A listener may disconnect, connect, and close the client."""
    heard: queue.Queue[int] = queue.Queue()

    def once(frame: Any) -> None:
        client.frames.disconnect(once)
        heard.put(number_of(frame))

    for number in range(3):
        client.frames.connect(once)
        camera.emit(number, number)
        assert number == heard.get(timeout=LIMIT)
    client.frames.connect(lambda frame: heard.put(-1) if client.close() is None else None)
    camera.emit(9, 9)

    assert -1 == heard.get(timeout=LIMIT)


def test_listeners_after_a_restart(context: Any, spawn: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Listeners hear the server that is there after the one that was."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with caplog.at_level(logging.CRITICAL), CameraClient(context, server.line, liveness=0.6) as client:
        heard: queue.Queue[int] = queue.Queue()
        client.frames.connect(lambda frame: heard.put(number_of(frame)))
        client.emit(1, 1)
        assert 1 == heard.get(timeout=LIMIT)
        server.kill()
        server = spawn("tests.imaging", "serve", server.line)
        wait_until(lambda: until_called(client) or heard.qsize())

        assert 2 == heard.get()


def test_notify_signal(camera: Any, client: Any) -> None:
    """The notify signal of a property with an array is a stream like any other."""
    heard: queue.Queue[int] = queue.Queue()
    client.mask_changed.connect(lambda image: heard.put(number_of(image)))
    for number in range(1, 6):
        client.mask = picture(number)
        assert number == heard.get(timeout=LIMIT)


def test_codec_zlib(far: Any, attach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event is compressed once for all who want it so; others get it as it is, in the same order."""
    compressed = []
    real = transfer.compress
    monkeypatch.setattr("rpc_kit.transfer.compress", lambda *given: compressed.append(1) or real(*given))
    clients = [attach(far, codec="zlib"), attach(far, codec="zlib"), attach(far)]
    streams = [client.frames.stream("all", timeout=LIMIT) for client in clients]
    for first in (0, 30):
        far.emit(first, first + 29, LARGE if first else 40_000)
        assert [list(range(first, first + 30))] * 3 == [read(stream, 30) for stream in streams]

    assert [{"frames": {"tcp": 60}}] * 3 == [client.stats().paths for client in clients]
    assert 60 == len(compressed)


def test_codec_jpeg(far: Any, attach: Any) -> None:
    """Pictures come nearly as they are, what is no picture as an error; after it the stream is opened anew."""
    client = attach(far, codec="jpeg", quality=90)
    stream = client.marked.stream("all", timeout=LIMIT)
    image = np.full((480, 640, 3), 100, np.uint8)
    far.marked.emit(image, {"n": 1})
    found, info = next(stream)
    assert (image.shape, np.uint8, True, 1) == (found.shape, found.dtype, abs(int(found.mean()) - 100) < 3, info["n"])
    far.marked.emit(picture(1), {})
    with pytest.raises(TypeError, match=r"jpeg cannot compress .*connect with codec=.zlib."):
        next(stream)
    with in_thread(lambda: next(stream)[1]["n"]) as outcome:
        wait_until(lambda: next_waits(stream) and states(far))
        far.marked.emit(image, {"n": 2})

    assert [2] == outcome
    assert {"tcp": 2} == client.stats().paths["marked"]


def test_codec_on_one_host(camera: Any, attach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nothing is compressed."""
    monkeypatch.setattr("rpc_kit.transfer.compress", partial(pytest.fail, "compressed"))
    client = attach(camera, codec="jpeg")
    stream = client.frames.stream("all", timeout=LIMIT)
    camera.emit(1, 3)

    assert ([1, 2, 3], {"frames": {"shm": 3}}) == (read(stream, 3), client.stats().paths)


def test_compression_delays_nobody(far: Any, attach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an event is being compressed for one reader, another one gets all, and the device emits."""
    going_on = threading.Event()
    real = transfer.compress
    monkeypatch.setattr("rpc_kit.transfer.compress", lambda *given: going_on.wait(LIMIT) and real(*given))
    slow = attach(far, codec="zlib").frames.stream("all", timeout=LIMIT)
    fast = attach(far).frames.stream("all", timeout=LIMIT)
    far.emit(0, 29)

    assert list(range(30)) == read(fast, 30)
    assert 0 == slow.received
    going_on.set()
    assert list(range(30)) == read(slow, 30)


def test_reader_goes_while_its_event_is_compressed(
    far: Any, attach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notices."""
    going_on, begun = threading.Event(), threading.Event()
    real = transfer.compress

    def slow(*given: Any) -> Any:
        begun.set()
        return going_on.wait(LIMIT) and real(*given)

    monkeypatch.setattr("rpc_kit.transfer.compress", slow)
    gone = attach(far, codec="zlib").frames.stream("all", timeout=LIMIT)
    other = attach(far).frames.stream("all", timeout=LIMIT)
    far.emit(0, 0)
    assert begun.wait(LIMIT)
    gone.close()
    going_on.set()
    assert [0] == read(other, 1)
    far.emit(1, 2)

    assert [1, 2] == read(other, 2)
    wait_until(lambda: 1 == len(states(far)))


def test_end_of_the_server_while_readers_wait(serve: Any, attach: Any) -> None:
    """A server with streams ends in time, and gives its memory back."""
    device = serve(CameraServer)
    client = attach(device, liveness=0.6)
    stream = client.frames.stream("all", timeout=LIMIT)
    client.frames.connect(lambda frame: None)
    device.emit(0, 50)
    assert [0, 1] == read(stream, 2)
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)
    device.frames.emit(picture(1))
    client.close()
    gc.collect()

    assert {} == {key: value for key, value in device.stats().items() if key == "streams"}
