"""Peers that speak bad ZeroMQ or none, and frames that Hypothesis makes up: the server goes on serving others."""

import contextlib
import json
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc_kit import RPCClient, connections
from rpc_kit.interface import Interface
from rpc_kit.sockets import HARD_LIMIT
from tests.devices import LIMIT, Identified
from tests.helpers import Peer, Program, call, in_thread, raw_connection, request, wait_until


def port_of(server: Program) -> int:
    return int(server.line.rpartition(":")[2])


def test_over_hard_limit(peer: Peer, server: Program) -> None:
    """The connection of a peer that announces a frame over the hard limit is closed."""
    with raw_connection(port_of(server)) as made:
        made.sendall(b"\x02" + struct.pack(">Q", HARD_LIMIT + 1) + b"x" * 1000)
        with contextlib.suppress(ConnectionResetError):
            assert b"" == made.recv(1)


def test_hard_limit_is_logged(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells that a connection was ended, and why that may be."""
    caplog.set_level("DEBUG", connections.__name__)
    with raw_connection(serve().port) as made:
        made.sendall(b"\x02" + struct.pack(">Q", HARD_LIMIT + 1))
        wait_until(lambda: f"one with a frame of over {HARD_LIMIT} bytes is ended by us" in caplog.text)


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\0" * 1000, b"\xff" + b"\0" * 8 + b"\x7f"]
)
def test_strangers(peer: Peer, server: Program, data: bytes) -> None:
    """Connections that do not speak ZeroMQ, or stop in the middle, harm nobody."""
    made = [socket.create_connection(("127.0.0.1", port_of(server)), LIMIT) for _ in range(20)]
    for each in made:
        each.sendall(data)
    for each in made[:10]:
        each.close()
    assert 3 == peer.ask(call("add", 1, 2))["result"]
    for each in made[10:]:
        each.close()


def test_frame_that_stops_in_the_middle(peer: Peer, server: Program) -> None:
    """A peer that dies in the middle of a message harms nobody."""
    with raw_connection(port_of(server)) as made:
        made.sendall(b"\x01\x00\x02" + struct.pack(">Q", 1000) + b'{"event":')

    assert 3 == peer.ask(call("add", 1, 2))["result"]


def test_flood_of_connections_during_call(serve: Any, context: Any) -> None:
    """Thousands of connections that come and go during a long call neither block nor deafen the server."""
    device = serve()
    with Peer(context, device.url) as caller, Peer(context, device.url) as other:
        caller.send(b"", call("block"))
        assert device.entered.wait(LIMIT)
        for _ in range(2500):
            with socket.create_connection(("127.0.0.1", device.port), LIMIT) as made:
                made.sendall(b"GET / HTTP/1.1\r\n\r\n")

        assert "block" == other.ask(request("PING"))["busy"]["member"]
        device.released.set()
        assert "released" == caller.reply()["result"]


VALID = [call("add", 1, 2), request("GET_INVENTORY"), request("PING"), request("PROPERTY_GET", property="level")]
FRAME = st.one_of(
    st.binary(max_size=300),
    st.just(b""),
    st.text(max_size=50).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"event": st.sampled_from(["METHOD_CALL", "PROPERTY_GET", "PROPERTY_SET", "PING", "INIT_SIGNALS_HANDLING"])},
        optional={
            "method": st.sampled_from(["add", "fail", "nothing", "__class__"]) | st.integers(),
            "property": st.sampled_from(["level", "broken", "serial", "_rpc"]) | st.none(),
            "value": st.integers() | st.text(max_size=5) | st.floats(),
            "params": st.fixed_dictionaries(
                {}, optional={"args": st.lists(st.integers() | st.text(max_size=3), max_size=4) | st.none()}
            ),
            "id": st.tuples(st.text(max_size=5), st.integers()) | st.integers(),
            "buffers": st.lists(st.fixed_dictionaries({"size": st.integers(-1, 3)}), max_size=3) | st.integers(),
            "shm": st.tuples(st.text(max_size=5), st.integers()) | st.integers(),
            "codec": st.fixed_dictionaries({"name": st.sampled_from(["zlib", "jpeg", "gzip"])}) | st.integers(),
            "timeout": st.integers() | st.floats() | st.text(max_size=3),
            "payload": st.none(),
        },
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(VALID),
)


@pytest.fixture(scope="module")
def dealer(server: Program, own_context: Any) -> Iterator[Peer]:
    """One DEALER sends all that Hypothesis finds."""
    with Peer(own_context, server.line) as made:
        yield made


@settings(deadline=None, max_examples=1000)
@example([b"", b"", b""])
@given(st.lists(FRAME, min_size=1, max_size=6) | st.lists(st.binary(max_size=3), min_size=1, max_size=80))
def test_any_frames(dealer: Peer, frames: list[bytes]) -> None:
    """Any list of frames of a DEALER gets exactly one reply, and the next valid call works."""
    unique = secrets.token_hex(8)
    dealer.send(*frames)
    reply = dealer.receive()
    dealer.send(b"", call("echo", unique))

    # Were there no reply, or a second one, the next one would not be that to the call.
    assert {"success": True, "result": unique} == dealer.reply()
    assert isinstance(json.loads(reply[-1]), dict)


ROUTES: list[dict[str, Any]] = [
    {"ipc": ""}, {"ipc": "x"}, {"ipc": "ipc://"}, {"ipc": "tcp://127.0.0.1:1"}, {"ipc": "ipc:///etc/passwd"},
    {"ipc": "ipc://@rpc-kit-nobody-1"}, {"shm": {}}, {"shm": {"path": 3}}, {"shm": {"path": "/etc/passwd"}},
    {"shm": {"path": "/dev/shm/rpc-kit-0123456789abcdef"}, "ipc": "ipc://@"},
]  # fmt: skip


@RPCClient.register_interface(Identified)
class IdentifiedClient(Identified, RPCClient):
    """A client without signals."""


@pytest.mark.parametrize("routes", ROUTES, ids=str)
def test_faster_ways_that_are_none(context: Any, routes: dict[str, Any]) -> None:
    """A client goes on by the address that it has when the server names faster ways that are none."""
    answers = {
        "GET_INVENTORY": {**Interface.of(Identified).inventory(), "name": "scope", **routes},
        "METHOD_CALL": {"result": 3.0},
    }
    with context.socket(zmq.ROUTER) as made:
        made.linger = 0
        url = f"tcp://127.0.0.1:{made.bind_to_random_port('tcp://127.0.0.1')}"

        def answer() -> None:
            event = ""
            while event != "METHOD_CALL":
                *envelope, body = made.recv_multipart()
                asked = json.loads(body)
                event = asked["event"]
                reply = {"success": True, "id": asked["id"], "epoch": "e", **answers[event]}
                made.send_multipart([*envelope, json.dumps(reply).encode()])

        with in_thread(answer) as ended, IdentifiedClient(context, url) as client:
            assert 3.0 == client.total(1, 2)
            assert {"total": {"tcp": 1}} == client.stats().paths
        assert [None] == ended
