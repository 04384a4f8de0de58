"""The server's signals as plain SUB sockets of both protocol versions see them."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from rpc_kit import sockets
from rpc_kit.addresses import Address
from rpc_kit.publisher import Publisher
from rpc_kit.signals import BoundSignal
from rpc_kit.stream_sender import StreamSender
from rpc_kit.transfer import ServerTransfer
from tests.devices import LIMIT, Mode, Point, Scan
from tests.helpers import Peer, request, wait_until

CONFIRMATION = b"\0me"


def subscriber(context: Any, url: str, *topics: bytes) -> Any:
    """A plain SUB socket."""
    made = context.socket(zmq.SUB)
    made.linger = 0
    made.rcvtimeo = int(LIMIT * 1000)
    made.connect(url)
    for topic in topics:
        made.subscribe(topic)
    return made


def handshake(context: Any, url: str, **keys: Any) -> Any:
    with Peer(context, url, zmq.REQ) as peer:
        return peer.ask(request("INIT_SIGNALS_HANDLING", **keys))


def confirmed(context: Any, device: Any, *topics: bytes) -> tuple[Any, Any]:
    """A plain SUB socket of version 2, and the confirmation of its subscription."""
    port = handshake(context, device.url, id=["me", 1])["event_port"]
    made = subscriber(context, f"tcp://127.0.0.1:{port}", *topics, CONFIRMATION)
    topic, body = made.recv_multipart()
    assert CONFIRMATION == topic
    return made, json.loads(body)


def numbers(made: Any, count: int) -> list[Any]:
    """The first arguments of the next events of version 2, in the order of their numbers."""
    events = [json.loads(made.recv_multipart()[1]) for _ in range(count)]
    assert sorted(event["seq"] for event in events) == [event["seq"] for event in events]
    return [event["args"][0] for event in events]


def test_version_1(device: Any, context: Any) -> None:
    """However many clients shake hands, a plain SUB socket gets one frame for each event."""
    replies = [handshake(context, device.url) for _ in range(20)]
    port = replies[0]["signal_port"]

    assert 20 * [{"success": True, "signal_port": port}] == replies
    with subscriber(context, f"tcp://127.0.0.1:{port}", b"") as made:
        # A PUB socket confirms nothing: only an event shows that the subscription has come.
        wait_until(lambda: device.ticked.emit(0) or made.poll(20))
        device.noted.emit("end")
        frames = made.recv_multipart()
        while b'"end"' not in frames[0]:
            assert {"event": "EMIT_SIGNAL", "signal": "ticked", "args": [0], "blocking": False} == json.loads(frames[0])
            frames = made.recv_multipart()
        device.scanned.emit(Scan(Mode.FAST, [Point(1, 2)], "2026-01-01T00:00:00", None))
        device.ticked.emit(1)

        assert b'{"event":"EMIT_SIGNAL","signal":"noted","args":["end"],"blocking":false}' == frames[0]
        event = json.loads(made.recv())
        assert {"mode": "fast", "points": [{"x": 1.0, "y": 2.0}], "started": "2026-01-01T00:00:00", "note": None} == (
            event["args"][0]
        )
        assert [1] == json.loads(made.recv())["args"]
        assert not made.poll(0)


def test_version_2(device: Any, context: Any) -> None:
    """Topic, number, epoch and time of each event; numbers count from 1 for each signal."""
    for _ in range(3):
        handshake(context, device.url, id=["other", 1])
    device.ticked.emit(7)
    made, welcome = confirmed(context, device, b"ticked\0")
    with made:
        device.noted.emit("not subscribed")
        device.ticked.emit(8)
        device.ticked.emit(9)
        topic, body = made.recv_multipart()
        event = json.loads(body)

        assert {"ticked": 1, "noted": 0, "level_changed": 0, "scanned": 0} == welcome["seqs"]
        assert (b"ticked\0", welcome["epoch"], 2, [8]) == (topic, event["epoch"], event["seq"], event["args"])
        assert abs(time.time() - event["time"]) < LIMIT
        assert [9] == numbers(made, 1)
        assert not made.poll(0)


def test_versions_do_not_disturb_each_other(device: Any, context: Any) -> None:
    """Each version's handshake names its own port only."""
    assert {"success", "signal_port"} == set(handshake(context, device.url))
    assert {"success", "event_port", "id", "epoch"} == set(handshake(context, device.url, id=["me", 1]))


def test_confirmation_is_repeated(device: Any, context: Any) -> None:
    """A client that subscribes again, as after a lost connection, is confirmed again."""
    made, _ = confirmed(context, device, b"ticked\0")
    with made:
        for _ in range(3):
            made.unsubscribe(CONFIRMATION)
            made.subscribe(CONFIRMATION)

            assert CONFIRMATION == made.recv_multipart()[0]


def test_garbage_from_subscriber(device: Any, context: Any) -> None:
    """What a subscriber sends that is no subscription harms nobody."""
    made, _ = confirmed(context, device, b"ticked\0")
    url = f"tcp://127.0.0.1:{handshake(context, device.url, id=['me', 1])['event_port']}"
    with made, context.socket(zmq.XSUB) as other:
        other.linger = 0
        other.connect(url)
        for garbage in (b"", b"\x01", b"\x00", b"\x07abc", b"\x01\x00\xff\xff", b"x" * 10_000):
            other.send(garbage)
            other.send_multipart([garbage, b"more"])
        device.ticked.emit(1)

        assert [1] == numbers(made, 1)


def test_emit_from_many_threads(device: Any, context: Any) -> None:
    """Events emitted by eight threads at once all arrive, each once, in the order of their numbers."""
    made, _ = confirmed(context, device, b"ticked\0")
    with made:
        threads = [
            threading.Thread(target=lambda start=start: [device.ticked.emit(start + n) for n in range(250)])
            for start in range(0, 2000, 250)
        ]
        for thread in threads:
            thread.start()
        received = numbers(made, 2000)
        for thread in threads:
            thread.join(LIMIT)

        assert list(range(2000)) == sorted(received)
        assert not made.poll(0)


def test_listener_that_emits(device: Any, context: Any) -> None:
    """A listener may emit another signal, and the same one."""
    made, _ = confirmed(context, device, b"ticked\0")
    device.ticked.connect(lambda number: number and device.ticked.emit(number - 1))
    with made:
        device.ticked.emit(3)

        assert [3, 2, 1, 0] == numbers(made, 4)


def test_stopped_subscriber_does_not_starve_others(
    serve: Any, spawn: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber that hangs costs neither the emitter time nor the others an event."""
    monkeypatch.setattr(sockets, "EVENT_BACKLOG", 100)
    device = serve()
    listener = spawn("tests.instrument", "listen", device.url)
    assert "listening" == listener.line
    made, _ = confirmed(context, device, b"noted\0", b"ticked\0")
    text = "x" * 20_000
    with made:
        listener.send_signal(signal.SIGSTOP)
        for number in range(1000):
            device.noted.emit(text)
            device.ticked.emit(number)
            if number % 25 == 24:
                received = [json.loads(made.recv_multipart()[1])["args"][0] for _ in range(50)]
                assert list(range(number - 24, number + 1)) == received[1::2]


@pytest.mark.parametrize("url", ["ipc://{}/device", "inproc://device"])
def test_other_transports(serve: Any, context: Any, tmp_path: Any, url: str) -> None:
    """Version 2 publishes on the transport of the server, version 1 on a port of this host."""
    device = serve(url=url.format(tmp_path))

    assert device.url + ".events" == handshake(context, device.url, id=["me", 1])["event_url"]
    with subscriber(context, f"tcp://127.0.0.1:{handshake(context, device.url)['signal_port']}", b"") as made:
        wait_until(lambda: device.ticked.emit(5) or made.poll(20))

        assert [5] == json.loads(made.recv())["args"]


@contextlib.contextmanager
def publishing(
    context: Any, url: str, streamed: frozenset[str] = frozenset(), **signals: BoundSignal
) -> Iterator[Publisher]:
    """A publisher without a device."""
    address = Address.parse(url)
    streams = StreamSender(context, address, "epoch", list(signals), ServerTransfer(0))
    publisher = Publisher(context, address, "epoch", signals, streams, streamed)
    yield publisher
    publisher.close()
    streams.close()


def test_closed_publisher(context: Any) -> None:
    """After the end emitting does nothing, and nothing is opened."""
    ticked = BoundSignal(int)
    with publishing(context, "tcp://127.0.0.1:0", ticked=ticked) as publisher:
        publisher.open(1)
        publisher.open(2)
    publisher.close()
    ticked.emit(1)

    with pytest.raises(RuntimeError, match="the server is closed"):
        publisher.open(2)


def test_port_that_cannot_be_bound(context: Any) -> None:
    """When no socket can be made the error is the handshake's, and the next one tries again."""
    with publishing(context, "tcp://192.0.2.1:0", ticked=BoundSignal(int)) as publisher:
        for version in (1, 2, 2):
            with pytest.raises(OSError, match="cannot bind"):
                publisher.open(version)


def until_one(made: Any) -> list[list[bytes]]:
    """The events up to that with the argument 1."""
    events = [made.recv_multipart()]
    while [1] != json.loads(events[-1][-1])["args"]:
        events.append(made.recv_multipart())
    return events


@pytest.mark.parametrize("array", [np.zeros((1, 2)), np.zeros((1 << 20) + 1)], ids=["small", "large"])
def test_streamed_signals_are_not_published(context: Any, array: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Arrays of a stream go to those who read it; to all of version 1 as lists, if they are small enough."""
    shown, ticked = BoundSignal(np.ndarray), BoundSignal(int)
    with (
        publishing(context, "tcp://127.0.0.1:0", frozenset({"shown"}), shown=shown, ticked=ticked) as publisher,
        subscriber(context, f"tcp://127.0.0.1:{publisher.open(2)['event_port']}", b"", CONFIRMATION) as made,
        subscriber(context, f"tcp://127.0.0.1:{publisher.open(1)['signal_port']}", b"") as plain,
    ):
        assert CONFIRMATION == made.recv()
        assert made.recv()
        wait_until(lambda: ticked.emit(0) or plain.poll(20))
        shown.emit(array)
        ticked.emit(1)
        events, plain_events = until_one(made), until_one(plain)

    assert {b"ticked\0"} == {each[0] for each in events}
    lists = [each["args"] for (frame,) in plain_events if (each := json.loads(frame))["signal"] == "shown"]
    assert ([[[[0.0, 0.0]]]] if array.size == 2 else []) == lists


def test_arrays_of_other_signals(device: Any, context: Any) -> None:
    """An array in a signal of any arguments is a frame of the event, as it was when it was emitted."""
    frame = np.arange(6, dtype=np.uint8)
    shown = BoundSignal(Any)
    with (
        publishing(context, "tcp://127.0.0.1:0", shown=shown) as publisher,
        subscriber(context, f"tcp://127.0.0.1:{publisher.open(2)['event_port']}", b"shown", CONFIRMATION) as made,
    ):
        assert CONFIRMATION == made.recv()
        assert made.recv()
        shown.emit({"frame": frame, "number": 3})
        frame[:] = 0
        topic, body, data = made.recv_multipart()

    event = json.loads(body)
    assert (b"shown\0", [{"frame": {"$buffer": 0}, "number": 3}]) == (topic, event["args"])
    assert ([{"dtype": "|u1", "shape": [6]}], bytes(range(6))) == (event["buffers"], data)
