"""Real sockets: envelopes of every kind of peer, urls of every kind, and both ways to wake a thread."""

import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq

from rpc_kit import sockets
from rpc_kit.addresses import RANDOM_PORTS, Address
from rpc_kit.sockets import (
    HARD_LIMIT,
    PORT_ATTEMPTS,
    ZERO_COPY,
    Waker,
    Watch,
    ask_once,
    bind_beside,
    client_socket,
    readable,
    receive_request,
    receive_rest,
    send_reply,
    send_tracked,
    server_socket,
    server_socket_beside,
)
from rpc_kit.wire import MAX_FRAMES
from tests.devices import LIMIT, InstrumentClient
from tests.helpers import Peer, wait_until

LOOPBACK = Address.parse("tcp://127.0.0.1:0")


@pytest.fixture
def router(context: Any) -> Any:
    made, address = server_socket(context, zmq.ROUTER, LOOPBACK)
    made.rcvtimeo = int(LIMIT * 1000)
    with made:
        yield made, str(address)


@pytest.mark.parametrize(
    ("kind", "sent", "envelope", "body"),
    [
        (zmq.REQ, [b"body"], [b""], [b"body"]),
        (zmq.REQ, [b"body", b"more"], [b""], [b"body", b"more"]),
        (zmq.DEALER, [b"", b"body"], [b""], [b"body"]),
        (zmq.DEALER, [b"id", b"", b"body"], [b"id", b""], [b"body"]),
        (zmq.DEALER, [b"body"], [], [b"body"]),
        (zmq.DEALER, [b"body", b"more", b"", b"rest"], [], [b"body", b"more", b"", b"rest"]),
        (zmq.DEALER, [b""], [], [b""]),
        (zmq.DEALER, [b"", b""], [b""], [b""]),
        (zmq.DEALER, [b"id", b""], [b"id", b""], []),
    ],
)
def test_envelope(
    router: Any, context: Any, kind: int, sent: list[bytes], envelope: list[bytes], body: list[bytes]
) -> None:
    """The envelope of every kind of peer is told from the body, and a reply finds its way back."""
    with Peer(context, router[1], kind) as peer:
        peer.send(*sent)
        received, frames = receive_request(router[0])
        send_reply(router[0], received, [b"head", b"payload"])

        assert envelope == received[1:]
        assert body == [bytes(frame) for frame in frames]
        assert [*([] if kind == zmq.REQ else envelope), b"head", b"payload"] == peer.receive()


def test_envelope_with_correlation(router: Any, context: Any) -> None:
    """The frame that REQ_CORRELATE adds is echoed."""
    with Peer(context, router[1], zmq.REQ) as peer:
        peer.socket.setsockopt(zmq.REQ_CORRELATE, 1)
        peer.socket.setsockopt(zmq.REQ_RELAXED, 1)
        for number in (b"1", b"2"):
            peer.send(number)
            envelope, frames = receive_request(router[0])
            send_reply(router[0], envelope, frames)

            assert 3 == len(envelope)
            assert [number] == peer.receive()


def test_too_many_frames_are_not_kept(router: Any, context: Any) -> None:
    """Of thousands of frames only a few more than allowed are kept, and the next request is read as usual."""
    with Peer(context, router[1]) as peer:
        peer.send(*[b"x"] * 5 * MAX_FRAMES)
        peer.send(b"", b"next")

        assert MAX_FRAMES < len(receive_request(router[0])[1]) < 2 * MAX_FRAMES
        assert b"next" == receive_request(router[0])[1][0]


@pytest.mark.parametrize("size", [0, 1, ZERO_COPY - 1, ZERO_COPY, 1 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_reply_of_any_size(router: Any, context: Any, size: int, kind: Any) -> None:
    """Small and large replies arrive; what is small the sender may change at once."""
    with Peer(context, router[1], zmq.REQ) as peer:
        peer.send(b"")
        payload = kind(b"x" * size)
        send_reply(router[0], receive_request(router[0])[0], [b"head", payload])
        if 0 < size < ZERO_COPY and not memoryview(payload).readonly:
            memoryview(payload)[:1] = b"y"

        assert [b"head", b"x" * size] == peer.receive()


def test_received_buffers_are_read_only(context: Any) -> None:
    """The frames after the first are read-only views."""
    with context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        one.send_multipart([b"head", b"a", b"b"])
        one.send(b"single")

        assert b"head" == other.recv()
        received = receive_rest(other)
        assert [(b"a", True), (b"b", True)] == [(bytes(each), each.readonly) for each in received]
        assert b"single" == other.recv()
        assert [] == receive_rest(other)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_tracked_request(router: Any, context: Any, kind: Any) -> None:
    """All frames arrive; what is large is not copied, and free when its tracker is done."""
    frames = [b"head", kind(b"a" * (ZERO_COPY - 1)), kind(b"b" * ZERO_COPY), b"", kind(b"c" * (1 << 20)), b"tail"]
    with client_socket(context, zmq.REQ, router[1]) as made:
        trackers = send_tracked(made, frames)
        envelope, received = receive_request(router[0])
        assert [bytes(frame) for frame in frames] == [bytes(frame) for frame in received]
        del received
        for tracker in trackers:
            tracker.wait(LIMIT)
        send_reply(router[0], envelope, [b"reply"])

        assert (2, b"reply") == (len(trackers), made.recv())


def test_tracked_request_is_not_copied(context: Any) -> None:
    """What nobody has taken yet is still the sender's memory."""
    with context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        large, small = bytearray(ZERO_COPY), bytearray(ZERO_COPY - 1)
        (tracker,) = send_tracked(one, [large, small])
        large[0] = small[0] = 1

        assert not tracker.done
        assert [1, 0] == [frame[0] for frame in other.recv_multipart()]
        tracker.wait(LIMIT)


def test_beside(context: Any) -> None:
    """A server on tcp is reached by ipc as well, while it is there; the second of that name is not."""
    made, address = server_socket(context, zmq.ROUTER, LOOPBACK)
    assert not (address.beside or address).is_here
    with made:
        beside = bind_beside(made, address)
        assert beside is not None
        assert (beside, True) == (address.beside, beside.is_here)
        with context.socket(zmq.ROUTER) as other:
            assert bind_beside(other, address) is None
        for url in (str(beside), str(address)):
            with Peer(context, url, zmq.REQ) as peer:
                peer.send(url.encode())
                envelope, frames = receive_request(made)
                send_reply(made, envelope, frames)

                assert [url.encode()] == peer.receive()
    wait_until(lambda: not beside.is_here)


@pytest.mark.parametrize("url", ["inproc://device", "ipc://{}/device"])
def test_nothing_is_beside(context: Any, tmp_path: Path, url: str) -> None:
    """Only tcp has something faster beside it."""
    made, address = server_socket(context, zmq.ROUTER, Address.parse(url.format(tmp_path)))
    with made:
        assert bind_beside(made, address) is None


@pytest.mark.parametrize(
    ("url", "expected"), [("inproc://device", "inproc://device.what"), ("ipc://{}/device", "ipc://{}/device.what")]
)
def test_socket_beside_a_server(context: Any, tmp_path: Path, url: str, expected: str) -> None:
    """Without ports a further socket of a server has a name of its own."""
    server = Address.parse(url.format(tmp_path))
    made, address = server_socket_beside(context, zmq.PUB, server, [], "what")
    with made:
        assert expected.format(tmp_path) == str(address)


def test_socket_beside_a_server_on_several_hosts(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further socket has one port on all hosts of the server; one that is taken on a host is given up."""
    hosts = [Address.parse(f"tcp://127.0.0.{number}:9") for number in (1, 2, 3)]
    given_up: list[Address] = []

    def bind_also(made: Any, address: Address, bind: Any = sockets.bind_also) -> Address:
        if len(given_up) < 3 and address.host == "127.0.0.3":
            given_up.append(address)
            raise OSError("taken")
        return bind(made, address)  # type: ignore[no-any-return]

    monkeypatch.setattr(sockets, "bind_also", bind_also)
    made, address = server_socket_beside(context, zmq.ROUTER, hosts[0], hosts[1:], "what")
    with made:
        assert (3, "127.0.0.1") == (len(given_up), address.host)
        assert address.port not in {9, *(each.port for each in given_up)}
        for host in hosts:
            with Peer(context, str(host.with_port(address.port or 0)), zmq.REQ) as peer:
                peer.send(b"")
                envelope, _ = receive_request(made)
                send_reply(made, envelope, [b"reply"])

                assert [b"reply"] == peer.receive()


def test_no_port_for_a_socket_beside_a_server(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many ports it is the error of the last, and nothing is left open."""
    tried: list[Address] = []

    def bind_also(made: Any, address: Address) -> Address:
        tried.append(address)
        raise OSError(f"cannot bind to {address}")

    monkeypatch.setattr(sockets, "bind_also", bind_also)
    with pytest.raises(OSError, match="cannot bind to tcp://127.0.0.2:"):
        server_socket_beside(context, zmq.PUB, LOOPBACK, [Address.parse("tcp://127.0.0.2:9")], "what")
    assert PORT_ATTEMPTS == len(tried)


def test_reply_to_peer_that_left(router: Any, context: Any) -> None:
    """A reply to nobody is lost without an error."""
    send_reply(router[0], [b"nobody", b""], [b"reply"])


def urls(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """What a server listens on, and the host that clients connect to."""
    return {
        "ipv4": ("tcp://127.0.0.1:0", "127.0.0.1"),
        "localhost": ("tcp://localhost:0", "localhost"),
        "host name": (f"tcp://{socket.gethostname()}:0", socket.gethostname()),
        "every": ("tcp://*:0", "127.0.0.1"),
        "zeros": ("tcp://0.0.0.0:0", "127.0.0.1"),
        "star port": ("tcp://127.0.0.1:*", "localhost"),
        "no port": ("tcp://127.0.0.1", "127.0.0.1"),
        "ipv6": ("tcp://[::1]:0", "[::1]"),
        "every ipv6": ("tcp://[::]:0", "127.0.0.1"),
        "ipc": (f"ipc://{tmp_path}/socket-1", ""),
        "inproc": ("inproc://some-name", ""),
    }


@pytest.mark.parametrize("kind", list(urls(Path())))
def test_urls(serve: Any, context: Any, tmp_path: Path, kind: str) -> None:
    """Calls and signals work over every kind of url."""
    url, host = urls(tmp_path)[kind]
    device = serve(url=url)
    reached = f"tcp://{host}:{device.port}" if host else device.url
    ticks: list[int] = []

    with InstrumentClient(context, reached) as client:
        client.ticked.connect(ticks.append)
        client.tick(1, 3)

        assert 5 == client.add(2, 3)
        wait_until(lambda: [1, 2, 3] == ticks)
    assert (device.port is None) == (host == "")
    assert kind != "no port" or device.port in RANDOM_PORTS


def test_host_name_with_dash(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name with dashes is resolved before the socket is bound, and stays in the url."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve(host.replace("lab-pc-3", "localhost"), *rest, **more)
    )
    made, address = server_socket(context, zmq.ROUTER, Address.parse("tcp://lab-pc-3:0"))
    with made:
        assert f"tcp://lab-pc-3:{address.port}" == str(address)
        assert address.port


def test_random_port_that_is_taken(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a port the next free one of the range is taken."""
    first, taken = server_socket(context, zmq.ROUTER, Address.parse("tcp://127.0.0.1"))
    with first:
        monkeypatch.setattr(random, "sample", lambda *_: [taken.port, taken.port, 0])
        second, address = server_socket(context, zmq.ROUTER, Address.parse("tcp://127.0.0.1"))
        second.close()
        monkeypatch.setattr(random, "sample", lambda *_: [taken.port])

        assert address.port not in (0, taken.port)
        with pytest.raises(OSError, match=f"cannot bind to {taken}: Address already in use"):
            server_socket(context, zmq.ROUTER, Address.parse("tcp://127.0.0.1"))


@pytest.mark.parametrize("url", ["tcp://192.0.2.1:0", "tcp://no-such-host.invalid:0", "ipc:///no/such/folder/socket"])
def test_address_that_cannot_be_bound(context: Any, url: str) -> None:
    """The error names the address."""
    with pytest.raises(OSError, match=f"cannot bind to {url}"):
        server_socket(context, zmq.ROUTER, Address.parse(url))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("tcp://*:9000", "put the server's host name in the place of '\\*'"),
        ("tcp://0.0.0.0:9000", "put the server's host name"),
        ("tcp://[::]:9000", "put the server's host name"),
        ("tcp://localhost", "has no port"),
        ("tcp://localhost:0", "has no port"),
        ("localhost:9000", "is no url"),
        ("http://localhost:9000", "is no url"),
        ("tcp://::1:9000", "stands in brackets"),
        ("tcp://localhost:99999", "no proper port"),
        ("", "is no url"),
    ],
)
def test_url_that_cannot_be_connected_to(context: Any, url: str, text: str) -> None:
    """The error says what is wrong with the url."""
    with pytest.raises(ValueError, match=text):
        client_socket(context, zmq.REQ, url)


def test_context_terminated_while_connecting(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that is terminated at any moment is no fault of the url."""
    own: Any = zmq.Context()
    ending = threading.Thread(target=own.term)

    def end_after_making(*arguments: Any, make: Any = sockets.make_socket) -> Any:
        made = make(*arguments)
        ending.start()
        wait_until(lambda: is_terminated(made))
        return made

    monkeypatch.setattr(sockets, "make_socket", end_after_making)
    with pytest.raises(zmq.ContextTerminated):
        client_socket(own, zmq.REQ, "tcp://127.0.0.1:9000")
    ending.join(LIMIT)
    assert not ending.is_alive()


def is_terminated(made: Any) -> bool:
    try:
        made.getsockopt(zmq.EVENTS)
    except zmq.ContextTerminated:
        return True
    return False


def test_ask_once(router: Any, context: Any) -> None:
    """One question, one answer; without an answer a TimeoutError."""

    def answer() -> None:
        envelope, frames = receive_request(router[0])
        send_reply(router[0], envelope, [bytes(frames[0]).upper()])

    thread = threading.Thread(target=answer)
    thread.start()

    assert b"WORD" == ask_once(context, router[1], b"word", LIMIT)
    thread.join()
    with pytest.raises(TimeoutError, match=f"no reply from {router[1]} within 0.05 s"):
        ask_once(context, router[1], b"word", 0.05)


def test_limits_of_server_socket(router: Any) -> None:
    """What one peer may send is bounded, and closing never waits."""
    assert (HARD_LIMIT, 0) == (router[0].getsockopt(zmq.MAXMSGSIZE), router[0].linger)


def test_waker(waker_kind: str) -> None:
    """A wake-up ends a wait at once, any number of them count as one, and closing gives the descriptors back."""
    before = len(os.listdir("/proc/self/fd"))
    waker = Waker()
    watch = Watch(waker)
    for _ in range(1000):
        waker.wake()
    watch.wait(LIMIT)  # clears them all
    threading.Timer(0.01, waker.wake).start()
    watch.wait(LIMIT)
    waker.clear()
    watch.close()
    waker.close()

    assert before == len(os.listdir("/proc/self/fd"))


def test_waker_with_very_many_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waking never blocks, however many wake-ups are pending."""
    monkeypatch.delattr(os, "eventfd", raising=False)
    waker = Waker()
    for _ in range(300_000):
        waker.wake()
    waker.clear()
    waker.close()


def test_watch_sees_messages(waker_kind: str, router: Any, context: Any) -> None:
    """A message ends the wait for a socket that is watched."""
    waker = Waker()
    watch = Watch(waker).add(router[0])
    with Peer(context, router[1]) as peer:
        peer.send(b"", b"body")
        wait_until(lambda: watch.wait(0.1) or readable(router[0]))
        receive_request(router[0])

        assert not readable(router[0])
    watch.remove(router[0])
    watch.close()
    waker.close()


def test_only_one_module_makes_sockets() -> None:
    """All sockets come from where their limits are set."""
    folder = Path(sockets.__file__).parent

    assert ["sockets.py"] == [path.name for path in folder.glob("*.py") if "context.socket(" in path.read_text()]
