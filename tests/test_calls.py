"""Calls over real sockets: deadlines, dead and restarted servers, broken connections, threads, forks."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zmq

from rpc_kit import calls
from rpc_kit.addresses import Address
from rpc_kit.errors import CallTimeout, ClientClosed, MessageTooLarge, ProtocolError, ReplyLost, ServerLost
from rpc_kit.journal import Journal
from rpc_kit.messages import Ping
from tests.devices import LIMIT, InstrumentClient
from tests.helpers import PROJECT, FakeClock, Relay, in_thread, wait_until

LIVENESS = 0.6
"""Short enough for quick tests, long enough for a busy machine, s."""


@pytest.fixture
def device(serve: Any, request: pytest.FixtureRequest) -> Any:
    """An instrument; a test may give it options."""
    return serve(**getattr(request, "param", {}))


by_socket = pytest.mark.parametrize("device", [{"shared_memory": 0}], indirect=True, ids=["by_socket"])


@pytest.fixture
def relay(device: Any) -> Iterator[Relay]:
    """A relay to the device."""
    with Relay(device.port) as made:
        yield made


@pytest.fixture
def relayed(relay: Relay, connect: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client behind the relay, which knows no way around it."""
    monkeypatch.setattr(Address, "is_here", False)
    return connect(relay.url, liveness=LIVENESS)


def test_timeout_never_wedges(device: Any, client: Any) -> None:
    """After every CallTimeout the next call works, and gets its own reply."""
    for number in range(5):
        device.released.clear()
        with pytest.raises(CallTimeout, match="impatient: no reply from .* within 0.1 s: .* may still be running"):
            client.impatient()
        device.released.set()

        assert number + 1 == client.add(number)
        assert number == client.echo(number)


def test_timeout_of_property(device: Any, connect: Any) -> None:
    """Properties and control messages have the client's own limit."""
    client = connect(device.url, timeout=100)
    with in_thread(connect(device.url).block):
        assert device.entered.wait(LIMIT)
        with pytest.raises(TimeoutError):
            _ = client.level
        with pytest.raises(TimeoutError):
            client.level = 3.0
        given_up = time.monotonic()
        wait_until(lambda: time.monotonic() > given_up + 0.1)
        device.released.set()

    # The set had expired in the queue: it was not executed.
    assert 1.0 == client.level


def test_no_limit(device: Any, connect: Any) -> None:
    """A method without a limit is waited for as long as the server answers pings."""
    client = connect(device.url, timeout=50, liveness=0.15)
    with in_thread(client.block) as outcome:
        assert device.entered.wait(LIMIT)
        other = connect(device.url)
        wait_until(lambda: busy(other)["seconds"] > 0.5)
        device.released.set()

    assert ["released"] == outcome


def busy(client: Any) -> Any:
    """What the server is doing."""
    return client._rpc.calls.ask(Ping(), 1.0, "PING").busy


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_server_lost(process: Any, connect: Any, fault: str) -> None:
    """A server that dies or hangs during a long call is noticed within `liveness`, though the call has no limit."""
    client = connect(process.line, liveness=LIVENESS)
    other = connect(process.line)
    with in_thread(lambda: client.pause(60.0)) as outcome:
        wait_until(lambda: busy(other))
        started = time.monotonic()
        os.kill(process.pid, getattr(signal, fault))
        wait_until(lambda: outcome)
        elapsed = time.monotonic() - started

    assert isinstance(outcome[0], ServerLost)
    assert isinstance(outcome[0], ConnectionError)
    assert f"{process.line} has not answered for 0.6 s" in str(outcome[0])
    assert elapsed < LIVENESS + 0.5


def test_stopped_server_that_goes_on(process: Any, connect: Any) -> None:
    """A server that was only halted is usable again by the same client."""
    client = connect(process.line, liveness=0.3)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(ServerLost):
        client.add(1, 2)
    process.send_signal(signal.SIGCONT)

    assert 7 == client.add(3, 4)


@pytest.mark.parametrize("lose", ["request", "reply"])
def test_lost_message_is_repeated(device: Any, relay: Relay, relayed: Any, lose: str) -> None:
    """A request or reply that goes down with its connection is repeated, and executed once."""
    for number in range(3):
        relay.lose = lose

        assert number + 1 == relayed.count()
        assert "" == relay.lose
    assert 3 == device.counted


def test_lost_property_set_is_repeated(device: Any, relay: Relay, relayed: Any) -> None:
    """The same holds for properties."""
    relay.lose = "reply"
    relayed.level = 8.0
    relay.lose = "reply"

    assert 8.0 == relayed.level


def test_connection_cut_during_call(device: Any, relay: Relay, relayed: Any) -> None:
    """A call outlives its connection: its reply comes through another one."""
    with in_thread(relayed.block) as outcome:
        assert device.entered.wait(LIMIT)
        relay.cut()
        device.released.set()

    assert (["released"], 1) == (outcome, device.counted)


@by_socket
def test_slow_connection(device: Any, relay: Relay, relayed: Any) -> None:
    """A large reply over a slow link arrives, though it takes longer than `liveness`."""
    relay.seconds_per_byte = 1.5 / (4 << 20)

    assert 4 << 20 == len(relayed.buffer("bytes", 4 << 20)[0])


@pytest.mark.parametrize(("lose", "executed"), [("request", 0), ("reply", 1)])
def test_lost_message_that_is_forgotten(
    device: Any, relay: Relay, relayed: Any, connect: Any, lose: str, executed: int
) -> None:
    """When other clients push a lost call out of the journal it is ReplyLost, and never executed a second time."""
    loop, other = device._rpc.endpoint, connect(device.url)
    loop._journal = loop._dispatcher.journal = Journal(entries=10)
    relay.lose = lose
    with in_thread(relayed.count) as outcome:
        wait_until(lambda: not relay.lose)
        for number in range(30):
            other.add(number)

    assert isinstance(outcome[0], ReplyLost)
    assert "count: may have been executed" == str(outcome[0])
    assert executed == device.counted


def test_lost_reply_under_load(device: Any, relay: Relay, relayed: Any, connect: Any) -> None:
    """With thousands of other calls meanwhile a lost reply is found again or ReplyLost, and each call executed once."""
    ended, clients = threading.Event(), [connect(device.url) for _ in range(4)]

    def push(client: Any) -> None:
        while not ended.is_set():
            client.add(1)

    with ThreadPoolExecutor(4) as pool:
        pushing = [pool.submit(push, client) for client in clients]
        try:
            for number in range(3):
                relay.lose = "reply"
                try:
                    assert number + 1 == relayed.count()
                except ReplyLost:
                    pass
                assert number + 1 == device.counted
        finally:
            ended.set()

    assert 4 * [None] == [each.result() for each in pushing]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large data is taken for lost soon."""
    monkeypatch.setattr(calls, "PATIENCE", 1.0)


@by_socket
def test_large_reply_that_is_lost(
    impatient: None, device: Any, relay: Relay, relayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that is too large to be kept is waited for, then it is ReplyLost; it is not made again."""
    made = []
    monkeypatch.setattr(device, "buffer", lambda kind, size: made.append(size) or (bytes(size), {}))
    relay.lose = "reply"
    started = time.monotonic()
    with pytest.raises(ReplyLost, match="buffer: was executed; its reply was too large to keep"):
        relayed.buffer("", 1 << 20)

    assert ([1 << 20], True) == (made, time.monotonic() - started > calls.PATIENCE)
    assert b"\0" == relayed.buffer("", 1)[0]


def test_large_request_that_is_lost(impatient: None, device: Any, relay: Relay, relayed: Any) -> None:
    """A large request is waited for, then it is repeated."""
    text = "x" * (calls.LARGE + 1)
    relay.lose = "request"
    started = time.monotonic()

    assert (text, "") == (relayed.echo(text), relay.lose)
    assert time.monotonic() - started > calls.PATIENCE


@pytest.mark.parametrize(
    ("size", "states", "lost"),
    [
        (1, ["unknown"], [True]), (1, ["done"], [True]), (1, ["pending"], [False]), (1, [""], [False]),
        (1, ["sent", "sent", "sent"], [False, False, True]), (1, ["sent", "", "sent"], [False, False, False]),
        (1, ["sent", "sent", "sent", "sent"], [False, False, True, True]),
        (calls.LARGE, ["unknown"], [True]), (calls.LARGE + 1, ["unknown"], [False]),
        (calls.LARGE + 1, ["unknown", "unknown", "unknown"], [False, False, True]),
        (calls.LARGE + 1, ["unknown", "pending", "unknown"], [False, False, False]),
        (calls.LARGE + 1, ["unknown", "done", "sent"], [False, True, True]),
    ],
)  # fmt: skip
def test_what_is_taken_for_lost(
    monkeypatch: pytest.MonkeyPatch, size: int, states: list[str], lost: list[bool]
) -> None:
    """A call is repeated at once, or after so long a time when much data may be under way; 20 s between the answers."""
    clock = FakeClock()
    monkeypatch.setattr(calls.time, "monotonic", clock)
    waiting, seen = calls._Wait(None, 1.0, "epoch", "member", size), []
    for state in states:
        waiting.note(state)
        seen.append(waiting.seems_lost())
        assert not waiting.seems_lost()
        clock.advance(20.0)

    assert lost == seen


@pytest.mark.parametrize("send", ["method", "property", "execute"])
def test_request_over_limit_of_server(serve: Any, connect: Any, send: str) -> None:
    """What the server would refuse is MessageTooLarge at once, though nobody is there any more to be asked."""
    device = serve(max_request=10_000)
    client, text = connect(device.url), "x" * 10_000
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)

    with pytest.raises(MessageTooLarge, match="the request has 10... bytes, the server takes 10000") as caught:
        if send == "method":
            client.echo(text)
        elif send == "property":
            client.level = text
        else:
            client.execute("echo", {"args": [text]})
    assert MessageTooLarge is caught.type


def test_largest_request(serve: Any, connect: Any) -> None:
    """A client that was refused goes on, and what just fits is sent."""
    client = connect(serve(max_request=10_000).url)
    for size in range(9_800, 10_000):
        try:
            assert size == len(client.echo("x" * size))
        except MessageTooLarge as exc:
            assert "echo: the request has 10001 bytes, the server takes 10000" == str(exc)
            break
    else:
        pytest.fail("nothing was too large")

    assert 3 == client.add(1, 2)


def test_restart_during_call(serve: Any, device: Any, relay: Relay, relayed: Any) -> None:
    """A server that was replaced by another one during a call is noticed at once by its epoch."""
    other = serve()
    with in_thread(relayed.block) as outcome:
        assert device.entered.wait(LIMIT)
        relay.redirect(other.port)
        wait_until(lambda: outcome)
        device.released.set()

    assert isinstance(outcome[0], ServerLost)
    assert "was restarted during the call" in str(outcome[0])
    assert 0 == other.counted
    assert 0.5 == relayed.pause(0.5)  # long enough for a ping


def test_restart_between_calls(serve: Any, relay: Relay, relayed: Any) -> None:
    """A server that was replaced between two calls is no reason to fail, however long the next call takes."""
    relay.redirect(serve().port)

    assert 3 == relayed.add(1, 2)
    assert 0.5 == relayed.pause(0.5)


def test_long_call_right_after_restart(serve: Any, relay: Relay, relayed: Any) -> None:
    """The same when the long call is the first."""
    relay.redirect(serve().port)

    assert 0.5 == relayed.pause(0.5)


def test_many_threads(client: Any) -> None:
    """Eight threads on one client: every call gets its own reply."""

    def work(thread: int) -> list[int]:
        return [client.add(thread * 1000, number) for number in range(200)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))

    assert [[thread * 1000 + number for number in range(200)] for thread in range(8)] == results


def test_many_threads_with_timeouts(device: Any, client: Any) -> None:
    """Timeouts in some threads disturb nobody else."""

    def work(thread: int) -> Any:
        if thread % 2:
            with pytest.raises(TimeoutError):
                client.impatient()
            return None
        return [client.add(thread, number) for number in range(20)]

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(work, thread) for thread in range(8)]
        wait_until(lambda: all(results[thread].done() for thread in range(1, 8, 2)))
        device.released.set()
        assert [None if n % 2 else [n + m for m in range(20)] for n in range(8)] == [r.result() for r in results]


def test_close_during_call(device: Any, connect: Any) -> None:
    """Calls that wait in other threads end with ClientClosed, and so does every later one."""
    client = connect(device.url, liveness=LIVENESS)
    with in_thread(client.block) as outcome:
        assert device.entered.wait(LIMIT)
        started = time.monotonic()
        for _ in range(3):
            client.close()
        wait_until(lambda: outcome)
        elapsed = time.monotonic() - started
        device.released.set()

    assert isinstance(outcome[0], ClientClosed)
    assert elapsed < LIVENESS
    with pytest.raises(ClientClosed, match="this client is closed"):
        client.add(1, 2)


def test_context_terminated_during_call(device: Any) -> None:
    """A call whose context is terminated ends with ClientClosed."""
    context: Any = zmq.Context()
    client = InstrumentClient(context, device.url)
    with in_thread(client.block) as outcome:
        assert device.entered.wait(LIMIT)
        ending = threading.Thread(target=context.term)
        ending.start()
        wait_until(lambda: outcome)
        client.close()
        ending.join(LIMIT)
        device.released.set()

    assert isinstance(outcome[0], ClientClosed)
    assert not ending.is_alive()


def test_context_terminated_before_call(device: Any) -> None:
    """A call after the context was terminated is ClientClosed, every time; and so is one after `close`."""
    own: Any = zmq.Context()
    client: Any = InstrumentClient(own, device.url)
    seen: list[type[BaseException]] = []

    def call_once() -> bool:
        try:
            client.add(1, 2)
        except Exception as exc:
            seen.append(type(exc))
        return len(seen) > 2

    with in_thread(own.term) as ended:
        wait_until(call_once)
        call_once()
        client.close()
        call_once()

    assert ([None], {ClientClosed}) == (ended, set(seen))
    assert 0 == device.counted


FORK = """
import os, sys, zmq
from tests.devices import InstrumentClient

client = InstrumentClient(zmq.Context(), sys.argv[1])
if os.fork() == 0:
    try:
        client.add(1, 2)
    except BaseException as exc:
        print(type(exc).__name__, exc, flush=True)
    client.close()
    os._exit(0)
os.wait()
print(client.add(1, 2))
client.close()
client._rpc.calls._context.term()
"""


def test_fork(device: Any) -> None:
    """In a forked process the client is a clear error, in its own it works on."""
    run = [sys.executable, "-W", "ignore", "-c", FORK, device.url]
    done = subprocess.run(run, cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT, check=False)

    assert [
        "ClientClosed this client was made before a fork: make one, with a new context, in each process",
        "3",
    ] == done.stdout.splitlines()
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("answer", [b"nonsense", b"[]", b"{}", b'{"success": true, "id": ["other", 1]}', b"\xff"])
def test_server_that_talks_nonsense(context: Any, answer: bytes) -> None:
    """A reply that is none, or belongs to another request, is a ProtocolError."""
    with context.socket(zmq.REP) as other:
        other.linger = 0
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with in_thread(lambda: InstrumentClient(context, f"tcp://127.0.0.1:{port}")) as outcome:
            assert other.poll(int(LIMIT * 1000))
            other.recv()
            other.send(answer)

    assert isinstance(outcome[0], ProtocolError)
