"""The loop of a server: answers while a method runs, queues and their limits, repeated ids, every way to stop."""

import json
import re
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import zmq

from rpc_kit import connections, endpoint
from rpc_kit.journal import Journal
from rpc_kit.messages import Registration
from rpc_kit.registrar import Member, Registrar
from rpc_kit.sockets import Watch, readable
from rpc_kit.wire import MAX_FRAMES
from tests.devices import LIMIT, InstrumentServer
from tests.helpers import FakeClock, Peer, call, in_thread, raw_connection, request, wait_until

PING = request("PING")


@pytest.fixture
def peer(context: Any, device: Any) -> Any:
    """A plain DEALER connected to the device."""
    with Peer(context, device.url) as made:
        yield made


@pytest.fixture
def blocked(device: Any, peer: Peer) -> Any:
    """The device while it executes a method that lasts until it is released."""
    peer.send(b"", call("block"))
    assert device.entered.wait(LIMIT)
    return device


def queue(context: Any, device: Any, *frames: bytes) -> Peer:
    """A peer whose calls are in the queue behind the running one."""
    peer = Peer(context, device.url)
    with Peer(context, device.url) as other:
        before = other.ask(PING)["queued"]
        for frame in frames:
            peer.send(b"", frame)
        wait_until(lambda: other.ask(PING)["queued"] == before + len(frames))
    return peer


@pytest.mark.parametrize(
    ("frame", "key", "value"),
    [
        (PING, "queued", 0),
        (request("GET_INVENTORY"), "name", "InstrumentServer"),
        (request("INIT_SIGNALS_HANDLING"), "success", True),
        (request("METHOD_CALL", method="nothing"), "error", "Method nothing not implemented"),
        (b"nonsense", "success", False),
    ],
)
def test_answered_while_method_runs(
    waker_kind: str, blocked: Any, context: Any, frame: bytes, key: str, value: Any
) -> None:
    """Whatever needs no device is answered at once during a long call."""
    with Peer(context, blocked.url) as other:
        assert value == other.ask(frame)[key]


def test_ping_tells_what_runs(context: Any, blocked: Any) -> None:
    """A ping says which member runs for how long, how many calls wait, and what became of a call."""
    first = ["client", 1]
    waiting = queue(context, blocked, call("count", id=first), call("count"))
    with waiting, Peer(context, blocked.url) as other:
        reply = other.ask(request("PING", call=first))

        assert ("block", 2, "pending") == (reply["busy"]["member"], reply["queued"], reply["call"])
        assert 0 < reply["busy"]["seconds"] < LIMIT
        blocked.released.set()
        assert [2, 3] == [waiting.reply()["result"], waiting.reply()["result"]]
        reply = other.ask(request("PING", call=first))
        assert (None, 0, "done") == (reply["busy"], reply["queued"], reply["call"])
        assert "unknown" == other.ask(request("PING", call=["client", 2]))["call"]


def test_signals_are_opened_while_method_runs(blocked: Any, connect: Any) -> None:
    """A client can be made, and gets signals, during a long call of another one."""
    client = connect(blocked.url)
    levels: list[float] = []
    client.level_changed.connect(levels.append)
    blocked.level = 4.0

    wait_until(lambda: [4.0] == levels)


def test_expired_in_queue(context: Any, blocked: Any, peer: Peer) -> None:
    """A call whose caller has given up meanwhile is not executed."""
    with queue(context, blocked, call("count", id=["c", 1], timeout=1), call("count", id=["c", 2])) as waiting:
        sent = time.monotonic()
        wait_until(lambda: time.monotonic() > sent + 0.01)
        blocked.released.set()
        expired = waiting.reply()

        assert (False, "rpc_kit.errors.CallExpired") == (expired["success"], expired["error_type"])
        assert {"success": True, "result": 2, "id": ["c", 2], "epoch": expired["epoch"]} == waiting.reply()


def test_repeated_id(peer: Peer) -> None:
    """A repeated id gets the reply of the first and is executed once; other ids are."""
    first = peer.ask(call("count", id=["c", 1]))

    assert first == peer.ask(call("count", id=["c", 1]))
    assert [2, 3] == [peer.ask(call("count", id=["c", 2]))["result"], peer.ask(call("count", id=["d", 1]))["result"]]


def test_repeated_id_of_failure(device: Any, peer: Peer) -> None:
    """Failures are remembered as results are."""
    first = peer.ask(call("fail", "ValueError", "no", id=["c", 1]))

    assert (first, "no") == (peer.ask(call("fail", "ValueError", "no", id=["c", 1])), first["error"])


def test_repeated_id_while_running(context: Any, blocked: Any, peer: Peer) -> None:
    """An id that is repeated while the first is running or queued is answered together with it."""
    frame = call("count", id=["c", 1])
    with queue(context, blocked, frame) as first, Peer(context, blocked.url) as second:
        second.send(b"", frame)
        second.send(b"", frame)
        second.ask(PING)
        blocked.released.set()
        replies = [first.reply(), second.reply(), second.reply()]

        assert [2, 2, 2] == [reply["result"] for reply in replies]


def test_repeated_id_of_large_reply(peer: Peer) -> None:
    """A reply that is too large to be kept is not made again: the error says that the call was executed."""
    frame = call("buffer", "bytes", 1 << 20, id=["c", 1])
    peer.send(b"", frame)
    assert 1 << 20 == len(peer.receive()[2])
    lost = peer.ask(frame)

    assert "sent" == peer.ask(request("PING", call=["c", 1]))["call"]
    assert "rpc_kit.errors.ReplyLost" == lost["error_type"]
    assert "buffer: was executed; its reply was too large to keep" == lost["error"]


def test_repeated_id_of_reused_buffer(
    device: Any, peer: Peer, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that fills its buffer again does not change a reply that is repeated."""
    pixels = bytearray(1000)

    def expose(kind: str, size: int) -> Any:
        pixels[:] = bytes([size]) * len(pixels)
        return memoryview(pixels).toreadonly(), {}

    monkeypatch.setattr(device, "buffer", expose)
    replies = []
    for number in (1, 2, 1):
        peer.send(b"", call("buffer", "", number, id=["c", number]))
        replies.append(peer.receive()[2])

    assert [bytes([number]) * 1000 for number in (1, 2, 1)] == replies


@pytest.fixture
def short_memory(device: Any) -> FakeClock:
    """The clock of the device's journal, which knows the last two ids at least."""
    clock = FakeClock()
    journal = Journal(entries=2, clock=clock)
    device._rpc.endpoint._journal = device._rpc.endpoint._dispatcher.journal = journal
    return clock


def sent_now(peer: Peer) -> list[Any]:
    """What a repeat says of a request that was sent at this moment."""
    reply = peer.ask(request("PING", id=["p", 1], call=["c", 0]))
    return [reply["epoch"], reply["clock"]]


def test_repeat_of_what_never_came(device: Any, peer: Peer, short_memory: FakeClock) -> None:
    """A repeat whose first sending got lost is executed, and once however often it is repeated."""
    short_memory.advance(1.0)
    frame = call("count", id=["c", 1], since=sent_now(peer))

    assert [1, 1] == [peer.ask(frame)["result"], peer.ask(frame)["result"]]
    assert 1 == device.counted


def test_repeat_of_what_is_forgotten(device: Any, peer: Peer, short_memory: FakeClock) -> None:
    """A repeat that is older than what the journal knows is not executed, as it may have been before."""
    short_memory.advance(1.0)
    since = sent_now(peer)
    first = peer.ask(call("count", id=["c", 1]))
    for number in range(2, 8):
        short_memory.advance(1.0)
        peer.ask(call("add", number, id=["c", number]))
    lost = peer.ask(call("count", id=["c", 1], since=since))

    assert "unknown" == peer.ask(request("PING", call=["c", 1]))["call"]
    assert (1, False, "rpc_kit.errors.ReplyLost") == (first["result"], lost["success"], lost["error_type"])
    assert ("count: may have been executed", 1) == (lost["error"], device.counted)


def test_repeat_from_another_run(device: Any, peer: Peer, short_memory: FakeClock) -> None:
    """A request that was sent to an earlier run of the server may have been executed by that."""
    short_memory.advance(1.0)
    lost = peer.ask(call("count", id=["c", 1], since=["other", short_memory()]))

    assert ("count: may have been executed", 0) == (lost["error"], device.counted)


@pytest.mark.parametrize("since", [["", -1e9], ["", 1e9]])
def test_repeat_that_is_pending_or_done(context: Any, blocked: Any, since: Any) -> None:
    """A known id is answered by its own reply, whenever it was sent."""
    frame, repeat = call("count", id=["c", 1]), call("count", id=["c", 1], since=since)
    with queue(context, blocked, frame) as first, Peer(context, blocked.url) as second:
        second.send(b"", repeat)
        second.ask(PING)
        blocked.released.set()

        assert [2, 2, 2] == [first.reply()["result"], second.reply()["result"], second.ask(repeat)["result"]]


@pytest.mark.parametrize(("limit", "value"), [("MAX_QUEUED", 2), ("MAX_QUEUED_BYTES", 250)])
def test_busy(context: Any, blocked: Any, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """A queue that is full refuses further calls, and takes some again later."""
    monkeypatch.setattr(endpoint, limit, value)
    frame = call("count", id=["c", 1])
    with queue(context, blocked, frame, call("add", 1)) as waiting, Peer(context, blocked.url) as late:
        refused = late.ask(call("echo", "x" * 100, id=["late", 1]))

        assert (False, "rpc_kit.errors.ServerBusy") == (refused["success"], refused["error_type"])
        blocked.released.set()
        assert [2, 2] == [waiting.reply()["result"], waiting.reply()["result"]]
        assert "again" == late.ask(call("echo", "again", id=["late", 2]))["result"]


@pytest.mark.parametrize(
    ("frames", "told"), [(2, "2"), (MAX_FRAMES, str(MAX_FRAMES)), (MAX_FRAMES + 1, f"more than {MAX_FRAMES}")]
)
def test_too_many_frames(peer: Peer, frames: int, told: str) -> None:
    """The error says how many frames there were, and the device is not called."""
    reply = peer.ask(call("count"), *[b"x"] * (frames - 1))

    assert reply["error"].endswith(f", got {told} frames")
    assert 1 == peer.ask(call("count"))["result"]


def test_request_over_limit(serve: Any, context: Any) -> None:
    """A request over the server's limit is refused by size, one just below it is not."""
    device = serve(max_request=10_000)
    with Peer(context, device.url) as peer:
        empty = len(call("echo", ""))
        refused = peer.ask(call("echo", "x" * (10_001 - empty)))

        assert "the request has 10001 bytes, the limit is 10000" == refused["error"]
        assert peer.ask(call("echo", "x" * (10_000 - empty)))["success"]


def test_standby_sleeps_and_wakes(waker_kind: str, serve: Any, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that fell asleep for want of calls is there again when a method runs, every time."""
    monkeypatch.setattr(endpoint, "QUIET_TICKS", 1)
    device = serve()
    with Peer(context, device.url) as peer, Peer(context, device.url) as other:
        for _ in range(3):
            wait_until(lambda: device._rpc.endpoint._asleep)
            device.entered.clear()
            device.released.clear()
            peer.send(b"", call("block"))
            assert device.entered.wait(LIMIT)

            assert "block" == other.ask(PING)["busy"]["member"]
            device.released.set()
            assert "released" == peer.reply()["result"]


def test_many_callers_of_slow_and_fast_methods(serve: Any, context: Any, waker_kind: str) -> None:
    """With the socket given back and forth between two threads, every caller gets its own reply."""
    device = serve()
    peers = [Peer(context, device.url) for _ in range(8)]
    for number in range(150):
        for index, peer in enumerate(peers):
            peer.send(b"", call("pause", 0.002) if (number + index) % 40 == 0 else call("add", number, index))
    for number in range(150):
        for index, peer in enumerate(peers):
            expected = 0.002 if (number + index) % 40 == 0 else number + index
            assert expected == peer.reply()["result"]
    for peer in peers:
        peer.socket.close()


def test_standby_does_not_spin(
    waker_kind: str, context: Any, blocked: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that end while a method runs are logged, and then the standby waits as before."""
    waits = []

    def counted(watch: Watch, seconds: float | None = None, wait: Any = Watch.wait) -> Any:
        waits.append(seconds)
        return wait(watch, seconds)

    monkeypatch.setattr(Watch, "wait", counted)
    caplog.set_level("DEBUG", connections.__name__)
    for _ in range(3):
        with Peer(context, blocked.url) as leaving:
            leaving.ask(PING)
    wait_until(lambda: caplog.text.count("a connection ended") == 3)
    waits.clear()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.3)

    # One a second, and one for whatever was under way.
    assert len(waits) <= 3
    blocked.released.set()


@pytest.mark.parametrize("frame", [call("count", id=["c", 1]), call("count"), PING, request("GET_INVENTORY")])
def test_request_after_end_of_serving(
    device: Any, peer: Peer, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes while the registry is being told gets ServerStopping, too."""
    entered, go_on = threading.Event(), threading.Event()

    def discard(*_: Any) -> None:
        entered.set()
        assert go_on.wait(LIMIT)

    device._rpc.member = Member(lambda url: Registration("scope", url, ""), 60, None, device.stop_server)
    monkeypatch.setattr(Registrar, "discard", discard)
    loop = device._rpc.endpoint

    def has_come() -> bool:
        with loop._own:
            return readable(loop._socket)

    device.stop_server()
    assert entered.wait(LIMIT)
    with loop._own:
        while readable(loop._socket):  # the bell, when it was not needed
            loop._socket.recv_multipart()
    peer.send(b"", frame)
    wait_until(has_come)
    go_on.set()

    assert "the server is stopping; nothing was executed" == peer.reply()["error"]
    assert 0 == device.counted


@pytest.mark.parametrize("way", ["local", "remote"])
def test_stop_turns_queued_calls_away(context: Any, blocked: Any, peer: Peer, way: str) -> None:
    """The running call is finished; those that wait, or come meanwhile, are told that they were not executed."""
    with queue(context, blocked, call("count", id=["c", 1]), call("count")) as waiting:
        with Peer(context, blocked.url) as other:
            if way == "local":
                blocked.stop_server()
            else:
                assert {"success": True} == other.ask(request("STOP_SERVER"))
            other.send(b"", call("count", id=["c", 2]))
            other.send(b"", PING)
            late = [other.reply(), other.reply()]
            blocked.released.set()

            assert "released" == peer.reply()["result"]
            assert 2 * [False] == [reply["success"] for reply in late]
            assert "rpc_kit.errors.ServerStopping" == late[0]["error_type"]
        replies = [waiting.reply(), waiting.reply()]
        assert "rpc_kit.errors.ServerStopping" == replies[0]["error_type"]
        assert {"success": False, "error": replies[0]["error"], "traceback": ""} == replies[1]
    assert 1 == blocked.counted


def test_stop_from_many_threads(device: Any) -> None:
    """An idle server that is stopped by several threads at once ends."""
    threads = [threading.Thread(target=device.stop_server) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    assert device._rpc.finished.wait(LIMIT)


def test_stop_by_own_method(device: Any, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of the device may stop the server, and its reply still arrives."""
    monkeypatch.setattr(device, "count", lambda: device.stop_server())

    assert {"success": True, "result": None} == peer.ask(call("count"))
    assert device._rpc.finished.wait(LIMIT)


def test_remote_stop_refused(serve: Any, context: Any) -> None:
    """A server may refuse to be stopped remotely."""
    device = serve(remote_stop=False)
    with Peer(context, device.url) as peer:
        assert "this server is not to be stopped remotely" == peer.ask(request("STOP_SERVER"))["error"]
        assert 1 == peer.ask(call("count"))["result"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_stop_by_signal(process: Any, context: Any, number: int, busy: bool) -> None:
    """SIGTERM and Ctrl-C end a process with status 0 after the running call."""
    with Peer(context, process.line) as peer, Peer(context, process.line) as other:
        other.ask(PING)
        if busy:
            peer.send(b"", call("pause", 0.3))
            wait_until(lambda: other.ask(PING)["busy"])
        process.send_signal(number)

        assert (0, "") == process.end()
        assert not busy or {"success": True, "result": 0.3} == peer.reply()


def test_stop_remotely(process: Any, connect: Any) -> None:
    """A client ends the process of a server with status 0."""
    connect(process.line).stop_server()

    assert (0, "") == process.end()


def test_context_terminated(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A server whose context is terminated ends, and says so."""
    own: Any = zmq.Context()
    device = InstrumentServer(own, "tcp://127.0.0.1:0")
    with in_thread(device.serve_forever) as outcome, Peer(context, device.url) as peer:
        peer.ask(PING)
        own.term()

    assert ([None], True) == (outcome, "the context was terminated" in caplog.text)


@pytest.fixture
def futures(device: Any, monkeypatch: pytest.MonkeyPatch) -> "deque[Future[Any]]":
    """The futures that the device's methods `count` and `buffer` have returned."""
    made: deque[Future[Any]] = deque()

    def promise(*args: Any) -> "Future[Any]":
        made.append(Future())
        return made[-1]

    monkeypatch.setattr(device, "count", promise)
    monkeypatch.setattr(device, "buffer", promise)
    return made


def postponed(device: Any, count: int) -> None:
    """Wait until so many calls wait for their futures."""
    wait_until(lambda: len(device._rpc.endpoint._postponed._waiting) == count)


def test_future(device: Any, peer: Peer, context: Any, futures: "deque[Future[Any]]") -> None:
    """The reply comes when the future is done; others are served meanwhile, also the same caller."""
    peer.send(b"", call("count", id=["c", 1]))
    peer.send(b"", call("add", 1, 2))
    assert 3 == peer.reply()["result"]
    with Peer(context, device.url) as other:
        assert 5 == other.ask(call("add", 2, 3))["result"]
        reply = other.ask(request("PING", call=["c", 1]))
        assert ("pending", None) == (reply["call"], reply["busy"])
        futures[0].set_result("later")
        assert ("later", ["c", 1]) == ((reply := peer.reply())["result"], reply["id"])
        assert "done" == other.ask(request("PING", call=["c", 1]))["call"]


def test_future_while_method_runs(blocked: Any, context: Any, futures: "deque[Future[Any]]", peer: Peer) -> None:
    """It is replied to also when it is done during a long call, and in the order in which futures are done."""
    blocked.released.set()
    assert "released" == peer.reply()["result"]
    blocked.entered.clear()
    blocked.released.clear()
    with Peer(context, blocked.url) as other:
        for number in range(3):
            other.send(b"", call("count", id=["c", number]))
        postponed(blocked, 3)
        peer.send(b"", call("block"))
        assert blocked.entered.wait(LIMIT)
        for number in (2, 0, 1):
            futures[number].set_result(number)
            assert number == other.reply()["result"]
        blocked.released.set()
    assert "released" == peer.reply()["result"]


@pytest.mark.parametrize("way", ["fails", "is cancelled", "is done already"])
def test_how_futures_end(device: Any, peer: Peer, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Whatever becomes of a future is told, once, and the next call works."""
    future: Future[Any] = Future()
    monkeypatch.setattr(device, "count", lambda: future)
    if way == "is done already":
        future.set_result(7)
    peer.send(b"", call("count", id=["c", 1]))
    if way == "fails":
        postponed(device, 1)
        future.set_exception(ValueError("no"))
    elif way == "is cancelled":
        postponed(device, 1)
        future.cancel()
    reply = peer.reply()

    assert {
        "fails": (False, "ValueError", "no"),
        "is cancelled": (False, "concurrent.futures._base.CancelledError", ""),
        "is done already": (True, None, None),
    }[way] == (reply["success"], reply.get("error_type"), reply.get("error"))
    assert (3, {}) == (peer.ask(call("add", 1, 2))["result"], device._rpc.endpoint._postponed._waiting)


def test_future_of_buffer_method(device: Any, peer: Peer, futures: "deque[Future[Any]]") -> None:
    """Buffers may come later, too."""
    peer.send(b"", call("buffer", "", 1, id=["c", 1]))
    postponed(device, 1)
    futures[0].set_result((b"x" * 1_000_000, {"size": 1}))
    _, head, payload = peer.receive()

    assert ({"size": 1}, b"x" * 1_000_000) == (json.loads(head)["info"], payload)


def test_property_that_is_a_future(device: Any, peer: Peer) -> None:
    """A property has a value at once, or an error."""
    device._level = Future()

    assert "level: its value of type Future: " in peer.ask(request("PROPERTY_GET", property="level"))["error"]
    device._level = 1.0


def test_future_of_client(device: Any, client: Any, futures: "deque[Future[Any]]") -> None:
    """A client waits for it as for a method that takes long."""
    with in_thread(client.count) as outcome:
        postponed(device, 1)
        assert 3 == client.add(1, 2)
        futures[0].set_result(5)

    assert [5] == outcome


def test_repeated_id_of_future(device: Any, peer: Peer, context: Any, futures: "deque[Future[Any]]") -> None:
    """An id that is repeated while the future is pending, or later, gets the same reply; nothing is executed twice."""
    frame = call("count", id=["c", 1])
    with Peer(context, device.url) as other:
        for each in (peer, other, other):
            each.send(b"", frame)
        assert "pending" == other.ask(request("PING", call=["c", 1]))["call"]
        futures[0].set_result("once")
        replies = [peer.reply(), other.reply(), other.reply(), peer.ask(frame)]

    assert (4 * [replies[0]], "once", 1) == (replies, replies[0]["result"], len(futures))


def test_future_when_client_is_gone(
    device: Any, peer: Peer, context: Any, futures: "deque[Future[Any]]"
) -> None:
    """Nobody is there to be told: the others notice nothing."""
    with Peer(context, device.url) as leaving:
        leaving.send(b"", call("count"))
        postponed(device, 1)
    wait_until(lambda: device._rpc.endpoint._connections.clients() == {"127.0.0.1": 1})
    futures[0].set_result(1)

    postponed(device, 0)
    assert 3 == peer.ask(call("add", 1, 2))["result"]


def test_future_that_is_done_by_a_method(
    device: Any, peer: Peer, futures: "deque[Future[Any]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's own thread may finish a future."""
    monkeypatch.setattr(device, "add", lambda a, b=1: futures.popleft().set_result(a))
    peer.send(b"", call("count"))
    peer.send(b"", call("add", 7))

    assert {7, None} == {peer.reply()["result"], peer.reply()["result"]}


def finish(futures: "deque[Future[Any]]", count: int, first: int = 0) -> None:
    """Finish so many futures from four threads, each with its number."""

    def work(part: int) -> None:
        for number in range(first + part, first + count, 4):
            futures[number].set_result(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_many_futures(
    device: Any, context: Any, futures: "deque[Future[Any]]", busy: bool
) -> None:
    """Thousands of futures that are done by many threads at once: each caller gets its own reply, once."""
    count = 4000
    peers = [Peer(context, device.url) for _ in range(4)]
    for number in range(count):
        peers[number % 4].send(b"", call("count", id=["c", number]))
    postponed(device, count)
    with Peer(context, device.url) as blocking:
        if busy:
            blocking.send(b"", call("block"))
            assert device.entered.wait(LIMIT)
        finish(futures, count)
        device.released.set()
        replies = [[peer.reply() for _ in range(count // 4)] for peer in peers]
        last = [peer.ask(call("add", 1, 2))["result"] for peer in peers]
    for peer in peers:
        peer.socket.close()
    found = {reply["id"][1]: reply["result"] for part in replies for reply in part}

    assert ([3, 3, 3, 3], count) == (last, len(found))
    # Their order is that of the calls, which of several peers is left open.
    assert sorted(found.values()) == list(range(count))


def test_stop_while_futures_are_pending(device: Any, peer: Peer, futures: "deque[Future[Any]]") -> None:
    """A server that is stopped waits for no future, and whatever becomes of it does no harm."""
    for number in range(3):
        peer.send(b"", call("count", id=["c", number]))
    postponed(device, 3)
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)
    replies = [peer.reply() for _ in range(3)]
    futures[0].set_result(1)
    futures[1].set_exception(ValueError("no"))
    futures[2].cancel()

    assert 3 * ["rpc_kit.errors.ServerStopping"] == [reply["error_type"] for reply in replies]
    assert {"the server is stopping"} == {reply["error"] for reply in replies}


@pytest.mark.parametrize("round_", range(5))
def test_futures_that_are_done_while_the_server_ends(
    serve: Any, context: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, round_: int
) -> None:
    """Each caller gets one reply, be it the result or that the server is stopping, and no thread fails."""
    device, futures, count = serve(), deque[Future[Any]](), 400
    monkeypatch.setattr(device, "count", lambda: futures.append(Future()) or futures[-1])
    with Peer(context, device.url) as peer:
        for number in range(count):
            peer.send(b"", call("count", id=["c", number]))
        postponed(device, count)
        with in_thread(lambda: finish(futures, count)):
            wait_until(lambda: futures[(round_ * count) // 5].done())
            device.stop_server()
        assert device._rpc.finished.wait(LIMIT)
        replies = [peer.reply() for _ in range(count)]
        assert 0 == peer.socket.poll(50)

    assert list(range(count)) == sorted(reply["id"][1] for reply in replies)
    assert {None, "rpc_kit.errors.ServerStopping"} >= {reply.get("error_type") for reply in replies}
    assert [] == caplog.messages


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """A server that is stopped gives its method half a second."""
    monkeypatch.setattr(endpoint, "STOP_TIME", 0.5)
    return 0.5


def test_method_that_does_not_end(
    waker_kind: str, context: Any, blocked: Any, peer: Peer, impatient: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits behind it is told at once, its caller after the limit; serving ends when the method does."""
    with queue(context, blocked, call("count", id=["c", 1])) as waiting:
        stopped = time.monotonic()
        blocked.stop_server()
        assert "rpc_kit.errors.ServerStopping" == waiting.reply()["error_type"]
        told = time.monotonic() - stopped
        reply = peer.reply()
        given_up = time.monotonic() - stopped
        late = waiting.ask(call("count", id=["c", 2]))

        assert told < impatient <= given_up < impatient + 2
        assert "block did not end within 0.5 s of the server's stop; it may still end" == reply["error"]
        assert "the server is stopping; nothing was executed" == late["error"]
    assert "block has not ended within 0.5 s of the stop: it is left behind" in caplog.messages
    assert not blocked._rpc.finished.is_set()
    blocked.released.set()
    assert blocked._rpc.finished.wait(LIMIT)
    assert (0, 1) == (peer.socket.poll(50), blocked.counted)


def test_method_that_ends_in_time(blocked: Any, peer: Peer, impatient: float) -> None:
    """A method that ends within the limit is answered as usual."""
    blocked.stop_server()
    blocked.released.set()

    assert "released" == peer.reply()["result"]


def test_method_that_ends_with_a_future_too_late(
    device: Any, peer: Peer, impatient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose caller has been told is not replied to again."""
    entered, released = threading.Event(), threading.Event()
    monkeypatch.setattr(device, "count", lambda: entered.set() or released.wait(LIMIT) and Future())
    peer.send(b"", call("count"))
    assert entered.wait(LIMIT)
    device.stop_server()
    assert "did not end within" in peer.reply()["error"]
    released.set()

    assert device._rpc.finished.wait(LIMIT)
    assert 0 == peer.socket.poll(50)


def test_device_that_is_left_behind_is_unregistered(
    registry: Any, serve: Any, context: Any, impatient: float
) -> None:
    """When a method does not end the device leaves the registry all the same."""
    device = serve()
    device.register_to_registry("scope", "left", registry.url)
    with Peer(context, device.url) as peer:
        peer.send(b"", call("block"))
        assert device.entered.wait(LIMIT)
        device.stop_server()
        assert ["left"] == list(registry.get_devices())
        wait_until(lambda: {} == registry.get_devices())

        assert not device._rpc.finished.is_set()
        assert not peer.reply()["success"]
    device.released.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_method_that_does_not_end(spawn: Any, context: Any, registry: Any, number: int) -> None:
    """SIGTERM ends the process as it usually does, after the limit; SIGINT the method; callers and registry know."""
    program = spawn("tests.stubborn", "0.5", "--registry", registry.url)
    with Peer(context, program.line) as peer, Peer(context, program.line) as other:
        peer.send(b"", call("block"))
        wait_until(lambda: other.ask(PING)["busy"])
        began = time.monotonic()
        program.send_signal(number)
        reply = peer.reply()
        assert time.monotonic() - began >= 0.5
        status, errors = program.end()

        assert "block did not end within 0.5 s of the server's stop" in reply["error"]
        assert (-signal.SIGTERM if number == signal.SIGTERM else 0) == status
        assert time.monotonic() - began < 0.5 + 2
        assert 0 == peer.socket.poll(50)
    assert {} == registry.get_devices()
    assert "Traceback" not in errors


def test_signal_during_method_that_hangs_in_c(spawn: Any, context: Any, registry: Any) -> None:
    """Where no signal handler can run SIGTERM ends the process all the same; callers and registry know."""
    program = spawn("tests.stubborn", "0.2", "--registry", registry.url)
    with Peer(context, program.line) as peer, Peer(context, program.line) as other:
        peer.send(b"", call("hang"))
        wait_until(lambda: other.ask(PING)["busy"])
        program.send_signal(signal.SIGTERM)

        assert "hang did not end within 0.2 s of the server's stop" in peer.reply()["error"]
        assert 128 + signal.SIGTERM == program.end()[0]
    assert {} == registry.get_devices()


def test_stop_during_method_that_does_not_end(spawn: Any, context: Any) -> None:
    """Without a signal the process goes on, and serve_forever returns when the method has ended."""
    program = spawn("tests.stubborn", "0.2", "--stop-after", "0", "--release-after", "0.6")
    with Peer(context, program.line) as peer:
        peer.send(b"", call("block"))

        assert "did not end within 0.2 s" in peer.reply()["error"]
        assert ["releasing", "served"] == [program.output.readline().strip() for _ in range(2)]
        assert (0, "block has not ended within 0.2 s of the stop: it is left behind\n") == program.end()


def test_status(serve: Any, context: Any) -> None:
    """A person is told who is connected, what was called, and what runs."""
    device = serve()
    status = device._rpc.endpoint.status
    assert "clients: none; calls: 0, 0 waiting; idle" == status()
    with Peer(context, device.url) as peer, Peer(context, device.url) as other:
        peer.ask(call("count"))
        other.ask(PING)
        wait_until(lambda: "clients: 127.0.0.1 (2); calls: 1, 0 waiting; idle" == status())
        peer.send(b"", call("block"))
        assert device.entered.wait(LIMIT)
        with queue(context, device, call("count")) as waiting:
            expected = r"clients: 127\.0\.0\.1 \(3\); calls: 2, 1 waiting; in block for \d+ s"
            wait_until(lambda: re.fullmatch(expected, status()))
            device.released.set()
            waiting.reply()
    wait_until(lambda: "clients: none; calls: 3, 0 waiting; idle" == status())


def test_status_of_clients_that_came_early(context: Any) -> None:
    """Who connected before the server was served is seen when it is."""
    with InstrumentServer(context, "tcp://127.0.0.1:0") as device:
        with raw_connection(device.port or 0), in_thread(device.serve_forever):
            wait_until(lambda: "clients: 127.0.0.1; calls: 0, 0 waiting; idle" == device._rpc.endpoint.status())
            device.stop_server()


def test_status_before_serving(context: Any) -> None:
    """A server that is not served yet knows of nobody, and one that never was leaves nothing."""
    with InstrumentServer(context, "tcp://127.0.0.1:0") as device:
        with raw_connection(device.port or 0):
            assert "clients: none; calls: 0, 0 waiting; idle" == device._rpc.endpoint.status()


@pytest.mark.parametrize(
    "keys",
    [
        {"event": "METHOD_CALL", "method": "count"},
        {"event": "PROPERTY_SET", "property": "level", "value": 7.0},
        {"event": "PROPERTY_GET", "property": "level"},
    ],
    ids=lambda keys: keys["event"],
)
def test_call_for_another_server(device: Any, peer: Peer, keys: Any) -> None:
    """What was meant for another run of this server, or for another one, is not executed; sent anew it is."""
    refused = peer.ask(request(**keys, id=["c", 1], epoch="other"))

    assert (False, "rpc_kit.errors.ServerReplaced") == (refused["success"], refused["error_type"])
    assert (["c", 1], device._rpc.epoch, True) == (refused["id"], refused["epoch"], bool(refused["error"]))
    assert (0, 1.0) == (device.counted, device.level)
    assert peer.ask(request(**keys, id=["c", 1], epoch=device._rpc.epoch))["success"]
    assert peer.ask(request(**keys))["success"]
    assert (2 if "method" in keys else 0, keys.get("value", 1.0)) == (device.counted, device.level)


def test_call_for_another_server_while_method_runs(context: Any, blocked: Any) -> None:
    """It is refused at once, and takes no place in the queue; nor is it taken for a repeat."""
    with Peer(context, blocked.url) as other:
        since = [blocked._rpc.epoch, 0.0]
        for keys in ({}, {"since": since}):
            refused = other.ask(call("count", id=["c", 1], epoch="other", **keys))
            assert "rpc_kit.errors.ServerReplaced" == refused["error_type"]
        assert 0 == other.ask(PING)["queued"]
        assert "unknown" == other.ask(request("PING", call=["c", 1]))["call"]
    assert 1 == blocked.counted


def test_plain_call_without_epoch(device: Any, context: Any) -> None:
    """Requests of protocol version 1 are executed by whoever gets them."""
    with Peer(context, device.url, zmq.REQ) as plain:
        assert {"success": True, "result": 1} == plain.ask(call("count"))


def test_control_message_that_hangs(device: Any, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not get done with what needs no device is stuck, until it has; a long call is no sign."""
    monkeypatch.setattr(endpoint, "CONTROL_TIME", 0.05)
    hangs, released = threading.Event(), threading.Event()
    is_stuck = device._rpc.endpoint.is_stuck

    def hang() -> str:
        hangs.set()
        assert released.wait(LIMIT)
        return "late"

    monkeypatch.setattr(device._rpc, "server_name", hang)
    assert not is_stuck()
    peer.send(b"", request("GET_INVENTORY"))
    assert hangs.wait(LIMIT)
    wait_until(is_stuck)
    released.set()
    assert "late" == peer.reply()["name"]
    assert not is_stuck()
    peer.send(b"", call("block"))
    assert device.entered.wait(LIMIT)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.1)
    assert not is_stuck()
