"""Floods that never end by themselves: the server goes on, and can be stopped."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from rpc_kit import endpoint
from rpc_kit.endpoint import MAX_DUPLICATES
from rpc_kit.sockets import LONGEST_MARK
from tests.devices import LIMIT
from tests.helpers import Peer, Program, call, raw_connection, request

PING = request("PING")
CHUNK = 1 << 18
LARGEST_FLOOD = 32 << 20


@contextlib.contextmanager
def flood(port: int, kind: bytes, frame: bytes) -> Iterator[None]:
    """Meanwhile a peer that reads nothing sends that frame as fast as it can."""
    data = (bytes([0, len(frame)]) + frame) * (CHUNK // len(frame))
    began, ended = threading.Event(), threading.Event()

    def send(made: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):  # the server has ended
            while not ended.is_set() and sent < LARGEST_FLOOD:
                made.sendall(data)
                sent += len(data)
                began.set()

    with raw_connection(port, kind) as made:
        thread = threading.Thread(target=send, args=(made,))
        thread.start()
        try:
            assert began.wait(LIMIT)
            yield
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT)
            assert not thread.is_alive()


def test_pings(process: Program, context: Any) -> None:
    """A flood of pings neither keeps a method from its reply nor the server from its end."""
    with flood(int(process.line.rpartition(":")[2]), b"DEALER", PING), Peer(context, process.line, zmq.REQ) as caller:
        assert {"success": True, "result": 0.05} == caller.ask(call("pause", 0.05))
        process.send_signal(signal.SIGTERM)
        assert (0, "") == process.end()


def test_requests_without_end(device: Any, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests there are to take, the device thread gets its turn to reply."""
    taken = threading.Event()
    with Peer(context, device.url) as caller, monkeypatch.context() as patch:
        caller.send(b"", call("block"))
        assert device.entered.wait(LIMIT)
        patch.setattr(endpoint, "readable", lambda socket: True)
        patch.setattr(endpoint, "receive_request", lambda *arguments: taken.set() or ([b"nobody", b""], [PING]))
        assert taken.wait(LIMIT)
        device.released.set()

        assert {"success": True, "result": "released"} == caller.reply()


def test_subscriptions(process: Program, context: Any) -> None:
    """A flood of subscriptions to confirmations keeps nobody from emitting, and the server not from its end."""
    with Peer(context, process.line, zmq.REQ) as caller:
        port = caller.ask(request("INIT_SIGNALS_HANDLING", id=["me", 1]))["event_port"]
        with flood(port, b"SUB", b"\1\0x"):
            assert {"success": True, "result": None} == caller.ask(call("tick", 1, 10))
            process.send_signal(signal.SIGTERM)
            assert (0, "") == process.end()


def test_repeats_of_pending_call(device: Any, context: Any) -> None:
    """Of the repeats of a call that runs only the last ones are kept, and get its reply."""
    frame = call("block", id=["me", 1])
    with Peer(context, device.url) as first, Peer(context, device.url) as other:
        first.send(b"", frame)
        assert device.entered.wait(LIMIT)
        for _ in range(MAX_DUPLICATES + 20):
            other.send(b"", frame)
        other.ask(PING)
        device.released.set()

        assert ["released"] * (1 + MAX_DUPLICATES) == [
            peer.reply()["result"] for peer in (first, *[other] * MAX_DUPLICATES)
        ]
        assert {"busy": None, "queued": 0} == {key: other.ask(PING)[key] for key in ("busy", "queued")}


def test_large_envelope(peer: Peer) -> None:
    """Only a short frame before the empty one belongs to the envelope, and waits with its call."""
    for size in (LONGEST_MARK, LONGEST_MARK + 1):
        peer.send(b"x" * size, b"", call("add", 1, 2))
    replies = [peer.receive(), peer.receive()]

    assert [b"x" * LONGEST_MARK, b"", b'{"success":true,"result":3}'] == replies[0]
    assert (1, True) == (len(replies[1]), b"the request is not JSON" in replies[1][0])
