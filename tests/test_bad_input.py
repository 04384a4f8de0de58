"""Whatever a client sends: one clear error reply, and the server, in another process, goes on serving others."""

import json
import secrets
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from rpc_kit import RPCServer
from rpc_kit.sharedmem import RingClient
from rpc_kit.wire import LONGEST_LOOK, MAX_FRAMES
from tests.helpers import Peer, Program, call, request


def nested(depth: int, inner: str = "") -> bytes:
    return b'{"event": "METHOD_CALL", "method": "echo", "params": {"args": [' + (
        b"[" * depth + inner.encode() + b"]" * depth + b"]}}"
    )


BAD_FRAMES = {
    "empty": (b"", "the request is empty"),
    "not JSON": (b"hello", "the request is not JSON"),
    "cut off": (b'{"event": "GET_INVENTORY"', "the request is not JSON"),
    "two values": (b"{}{}", "the request is not JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "utf-8' codec can't decode byte 0xff in position 0"),
    "not UTF-8 in a text": (b'{"event": "METHOD_CALL", "method": "\xff"}', "the request is not UTF-8"),
    "UTF-16": ('{"event": "GET_INVENTORY"}'.encode("utf-16"), "the request is not "),
    "null": (b"null", "a request is a JSON object, got NoneType"),
    "true": (b"true", "a request is a JSON object, got bool"),
    "number": (b"1.5", "a request is a JSON object, got float"),
    "NaN": (b"NaN", "a request is a JSON object, got float"),
    "huge number": (b"9" * 10_000, "the request is not JSON|a request is a JSON object"),
    "text": (b'"GET_INVENTORY"', "a request is a JSON object, got str"),
    "list": (b'["GET_INVENTORY"]', "a request is a JSON object, got list"),
    "no event": (b"{}", "the request has no event"),
    "event of wrong type": (b'{"event": ["GET_INVENTORY"]}', "the request has no event"),
    "unknown event": (request("NOTHING"), "unknown event 'NOTHING'"),
    "event in lower case": (request("get_inventory"), "unknown event 'get_inventory'"),
    "event of servers": (request("EMIT_SIGNAL", signal="ticked", args=[1]), "EMIT_SIGNAL"),
    "event of registries": (request("REGISTER", payload={"device_type": "t", "addr": "a", "name": ""}), "REGISTER"),
    "reply": (b'{"success": true, "result": 3}', "the request has no event"),
    "no method": (request("METHOD_CALL"), "METHOD_CALL: .*method"),
    "method of wrong type": (request("METHOD_CALL", method=1), "METHOD_CALL: .*method"),
    "no property": (request("PROPERTY_GET"), "PROPERTY_GET: .*property"),
    "no value": (request("PROPERTY_SET", property="level"), "PROPERTY_SET: .*value"),
    "params of wrong type": (request("METHOD_CALL", method="add", params=[1, 2]), "METHOD_CALL: .*params"),
    "args of wrong type": (request("METHOD_CALL", method="add", params={"args": "12"}), "METHOD_CALL: .*args"),
    "kwargs of wrong type": (request("METHOD_CALL", method="add", params={"kwargs": [1]}), "METHOD_CALL: .*kwargs"),
    "id of wrong type": (call("add", 1, id="x"), "METHOD_CALL: .*id"),
    "long id": (call("add", 1, id=["x" * 65, 1]), "METHOD_CALL: .*id"),
    "timeout of wrong type": (call("add", 1, timeout="soon"), "METHOD_CALL: .*timeout"),
    "unknown property": (request("PROPERTY_GET", property="colour"), "Property colour not implemented"),
    "set unknown property": (request("PROPERTY_SET", property="colour", value=1), "Property colour not implemented"),
    "set read-only property": (request("PROPERTY_SET", property="serial", value="x"), "has no setter"),
    "set property of wrong type": (
        request("PROPERTY_SET", property="level", value="x"),
        "level: expected float, got str",
    ),
    "too few arguments": (call("add"), r"add\(\): missing a required argument: 'a'"),
    "too many arguments": (call("add", 1, 2, 3), r"add\(\): too many positional arguments"),
    "unknown argument": (
        request("METHOD_CALL", method="add", params={"args": [1], "kwargs": {"c": 1}}),
        r"add\(\): got an unexpected keyword argument 'c'",
    ),
    "argument twice": (
        request("METHOD_CALL", method="add", params={"args": [1], "kwargs": {"a": 1}}),
        r"add\(\): multiple values for argument 'a'",
    ),
    "self as argument": (request("METHOD_CALL", method="add", params={"kwargs": {"self": 1, "a": 1}}), "self"),
    "argument of wrong type": (call("add", "1"), r"add\(\): argument 'a': expected int, got str"),
    "integer too large": (b'{"event": "METHOD_CALL", "method": "add", "params": {"args": [1e400, 1]}}', "."),
    "nesting": (b"[" * 1_000_000, "the request is not JSON|nested too deep"),
    "nested arguments": (nested(100_000), "nested too deep"),
    "nested arguments with NaN": (nested(100_000, "NaN"), "nested too deep"),
    "nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "half a surrogate in an id": (b'{"event":"PING","x":NaN,"id":["\xed\xa0\x80",1]}', "the request is not UTF-8"),
    "half a surrogate in UTF-16": (
        '{"event":"PING","x":"\u614e\u004e","id":["\ud800",1]}'.encode("utf-16-le", "surrogatepass"),
        "the request is not UTF-8",
    ),
    "large and no request": (b"[" + b"[]," * (LONGEST_LOOK // 3) + b"1]", "not a request: "),
    "half a surrogate": (b'{"event": "\\ud800"}', "not JSON|unknown event|not UTF-8"),
    "zeros": (b"\0" * 1000, "the request is not JSON"),
}


@pytest.mark.parametrize("name", list(BAD_FRAMES))
@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER], ids=["REQ", "DEALER"])
def test_bad_frame(peer: Peer, server: Program, own_context: Any, name: str, kind: int) -> None:
    """The sender gets one reply that says what was wrong, and may go on."""
    frame, text = BAD_FRAMES[name]
    with Peer(own_context, server.line, kind) as sender:
        reply = sender.ask(frame)

        assert (False, {"success", "error", "traceback"}) == (reply["success"], set(reply))
        with pytest.raises(ValueError, match=f"(?s){text}"):
            raise ValueError(reply["error"])
        assert len(reply["error"]) < 1000
        assert {"success": True, "result": 3} == sender.ask(call("add", 1, 2))


UNDECLARED = [
    "_stop", "__class__", "__init__", "__dict__", "_rpc", "_level", "stop_server", "serve_forever",
    "register_to_registry", "context", "url", "uuid", "entered", "counted", "echo.__globals__",
    "level_changed", "ticked", "_set_level", "", "\0", "é", "x" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("name", UNDECLARED)
def test_undeclared_name(peer: Peer, name: str) -> None:
    """What the interface does not declare is neither called, read nor written, whatever it is in Python."""
    expected = {"success": False, "error": f"Method {name[:100]} not implemented", "traceback": ""}

    assert expected == peer.ask(request("METHOD_CALL", method=name))
    for frame in (request("PROPERTY_GET", property=name), request("PROPERTY_SET", property=name, value=1)):
        assert expected["error"].replace("Method", "Property") == peer.ask(frame)["error"]


@pytest.mark.parametrize("name", ["add", "buffer", "ticked"])
def test_wrong_kind_of_member(peer: Peer, name: str) -> None:
    """A method is no property, a property no method."""
    assert f"Property {name} not implemented" == peer.ask(request("PROPERTY_GET", property=name))["error"]
    assert "Method level not implemented" == peer.ask(request("METHOD_CALL", method="level"))["error"]


@pytest.mark.parametrize("version", [{}, {"id": ["me", 1]}], ids=["version 1", "version 2"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("object", r"unsendable\(\): its result of type object: .*object"),
        ("lock", r"unsendable\(\): its result of type lock: .*lock"),
        ("deep", r"unsendable\(\): its result of type list: .*(nested too deep|recursion)"),
        ("half a surrogate", r"unsendable\(\): its result of type str: .*surrogate"),
        ("key", r"unsendable\(\): its result of type dict: "),
    ],
)
def test_result_that_cannot_be_sent(peer: Peer, version: dict[str, Any], kind: str, text: str) -> None:
    """The error names the member and the type."""
    keys = {**version, "id": [secrets.token_hex(4), 1]} if version else {}
    reply = peer.ask(call("unsendable", kind, **keys))

    with pytest.raises(TypeError, match=text):
        raise TypeError(reply["error"])
    assert reply.get("error_type", "rpc_kit.errors.SerializationError") == "rpc_kit.errors.SerializationError"


@pytest.mark.parametrize("kind", ["ValueError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "DeviceFault"])
@pytest.mark.parametrize("text", ["", "text", "half a surrogate", "x" * 100_000])
def test_device_that_raises(peer: Peer, kind: str, text: str) -> None:
    """Whatever a device raises, BaseException included, ends the call and not the server."""
    reply = peer.ask(call("fail", kind, text, id=[secrets.token_hex(4), 1]))

    assert (False, True) == (reply["success"], reply["error_type"].endswith(kind))
    assert text.replace("half a surrogate", "\\ud800") in reply["error"]
    assert reply["traceback"]


def test_over_limit(peer: Peer) -> None:
    """A message over the limit for requests gets an error reply, and the connection is kept."""
    peer.send(b"", b"x" * ((64 << 20) + 1))

    assert f"the request has {(64 << 20) + 1} bytes, the limit is {64 << 20}" == peer.reply()["error"]
    assert 3 == peer.ask(call("add", 1, 2))["result"]


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (2, "the request is one frame of JSON, got 2 frames"),
        (MAX_FRAMES, f"the request is one frame of JSON, got {MAX_FRAMES} frames"),
        (MAX_FRAMES + 1, f"a request is one frame of JSON and its buffers, got more than {MAX_FRAMES} frames"),
        (5000, f"a request is one frame of JSON and its buffers, got more than {MAX_FRAMES} frames"),
    ],
)
def test_too_many_frames(peer: Peer, frames: int, text: str) -> None:
    """A valid request that names no buffers has no further frames, and none has more than there may be buffers."""
    assert text == peer.ask(call("count"), *[b"x"] * (frames - 1))["error"]


def echo(**keys: Any) -> bytes:
    """A call of `echo` with a buffer, in version 1."""
    return request("METHOD_CALL", **{"method": "echo", "params": {"args": [{"$buffer": 0}]}, **keys})


def with_id() -> dict[str, Any]:
    return {"id": [secrets.token_hex(4), 1]}


def answered(peer: Peer, body: bytes, *frames: bytes) -> Any:
    """The one reply to a request; another request, which may be faster, is answered as well."""
    peer.send(b"", body, *frames)
    peer.send(b"", request("PING", id=["ping", 1]))
    replies = [json.loads(peer.receive()[1]) for _ in range(2)]
    (ping,) = [each for each in replies if each.get("id") == ["ping", 1]]
    replies.remove(ping)
    assert (True, 0) == (ping["success"], peer.socket.poll(5))
    return replies[0]


LOST = "rpc_kit.errors.BufferLost"
EIGHT = bytes(8)
U1 = {"dtype": "|u1", "shape": [8]}
ONE_OF_OBJECTS = {"names": ["a"], "formats": ["|O"], "offsets": [0], "itemsize": 8}
SLOT = [0, 1, 0, 8, -1]
BAD_BUFFERS: dict[str, tuple[dict[str, Any], list[bytes], str]] = {
    "no list": ({"buffers": 3}, [EIGHT], "buffers"), "null": ({"buffers": None}, [EIGHT], "buffers"),
    "no header": ({"buffers": ["u1"]}, [EIGHT], "buffers"), "empty header": ({"buffers": [{}]}, [EIGHT], "-1 bytes"),
    "a frame too many": ({"buffers": [U1]}, [EIGHT, EIGHT], "1 buffers are named, 2 frames came"),
    "a frame too few": ({"buffers": [U1, U1]}, [EIGHT], "2 buffers are named, 1 frames came"),
    "no frames": ({"buffers": [U1]}, [], "1 buffers are named, 0 frames came"),
    "no buffers": ({"buffers": []}, [EIGHT], "0 buffers are named, 1 frames came"),
    "empty list": ({"buffers": []}, [], "there is no buffer 0, only 0"),
    "very many": ({"buffers": [{"size": 0}] * 1001}, [], "more than 1000 buffers"),
    "very many frames": ({"buffers": [{"size": 0}] * 2000}, [b""] * 2000, "more than 1001 frames"),
    "objects": ({"buffers": [{"dtype": "|O", "shape": [1]}]}, [EIGHT], "no dtype of numbers, text or bytes"),
    "objects inside": ({"buffers": [{"dtype": ONE_OF_OBJECTS, "shape": [1]}]}, [EIGHT], "no dtype of numbers"),
    "division by zero": ({"buffers": [{"dtype": "<M8[s/0]", "shape": [1]}]}, [EIGHT], "no dtype of numbers"),
    "no time at all": ({"buffers": [{"dtype": "<m8[0s]", "shape": [1]}]}, [EIGHT], "no dtype of numbers"),
    "unknown dtype": ({"buffers": [{"dtype": "quaternion", "shape": [1]}]}, [EIGHT], "no dtype of numbers"),
    "long dtype": ({"buffers": [{"dtype": "u1" * 100_000, "shape": [8]}]}, [EIGHT], "no dtype of numbers"),
    "overflow": ({"buffers": [{"dtype": "u1", "shape": [1 << 62, 4]}]}, [EIGHT], "bytes is announced, 8 have come"),
    "huge": ({"buffers": [{"dtype": "u1", "shape": [1 << 40]}]}, [EIGHT], "a buffer of 1099511627776 bytes"),
    "negative": ({"buffers": [{"dtype": "u1", "shape": [-8]}]}, [EIGHT], "shape"),
    "bool": ({"buffers": [{"dtype": "u1", "shape": [True, 8]}]}, [EIGHT], "shape"),
    "float": ({"buffers": [{"dtype": "u1", "shape": [8.0]}]}, [EIGHT], "shape"),
    "many dimensions": ({"buffers": [{"dtype": "u1", "shape": [1 << 62] * 100_000}]}, [EIGHT], "at most 64 dimensions"),
    "many empty rows": ({"buffers": [{"dtype": "u1", "shape": [(1 << 32) + 1, 0]}]}, [b""], "empty array of shape"),
    "empty row of many": ({"buffers": [{"dtype": "u1", "shape": [0, 1 << 16, 1 << 17]}]}, [b""], "is too large"),
    "wrong size": ({"buffers": [{"size": 7}]}, [EIGHT], "a buffer of 7 bytes is announced, 8 have come"),
    "order": ({"buffers": [{**U1, "order": "K"}]}, [EIGHT], "order"),
    "compressed": ({"buffers": [{**U1, "codec": "zlib"}]}, [EIGHT], "are not compressed"),
    "bomb": ({"buffers": [{"dtype": "u1", "shape": [1 << 30], "codec": "zlib"}]}, [EIGHT], "are not compressed"),
    "unknown codec of a buffer": ({"buffers": [{**U1, "codec": "gzip"}]}, [EIGHT], "codec"),
    "slot without proof": ({"buffers": [{**U1, "slot": SLOT}]}, [], "shared memory"),
    "slot and frame": ({"buffers": [{**U1, "slot": SLOT}]}, [EIGHT], "1 buffers are named, 1 frames came"),
    "slot with a wrong proof": ({"buffers": [{**U1, "slot": SLOT}], "shm": ["0" * 32, 1]}, [], "shared memory"),
    "slot with no proof": ({"buffers": [{**U1, "slot": SLOT}], "shm": ["é", -1]}, [], "shared memory"),
    "short slot": ({"buffers": [{**U1, "slot": [0, 1]}]}, [], "slot"),
    "slot of floats": ({"buffers": [{**U1, "slot": [0, 1, 0, 8, 0.5]}]}, [], "slot"),
    "reference beyond": ({"buffers": [U1], "params": {"args": [{"$buffer": 1}]}}, [EIGHT], "there is no buffer 1"),
    "reference before": ({"buffers": [U1], "params": {"args": [{"$buffer": -1}]}}, [EIGHT], "there is no buffer -1"),
    "float reference": ({"buffers": [U1], "params": {"args": [{"$buffer": 0.0}]}}, [EIGHT], "there is no buffer 0.0"),
    "bool reference": ({"buffers": [U1], "params": {"args": [{"$buffer": False}]}}, [EIGHT], "no buffer False"),
    "text reference": ({"buffers": [U1], "params": {"kwargs": {"value": {"$buffer": "0"}}}}, [EIGHT], "no buffer '0'"),
    "proof that is none": ({"shm": "secret"}, [], "shm"), "proof of floats": ({"shm": ["a", 0.5]}, [], "shm"),
    "proof of many": ({"shm": ["a", 1, 2]}, [], "shm"), "codec that is none": ({"codec": "zlib"}, [], "codec"),
    "unknown codec": ({"codec": {"name": "gzip"}}, [], "codec"), "no codec": ({"codec": {}}, [], "codec"),
    "quality": ({"codec": {"name": "jpeg", "quality": 0}}, [], "quality"),
    "large quality": ({"codec": {"name": "jpeg", "quality": 101}}, [], "quality"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BUFFERS)
def test_bad_buffers(peer: Peer, kind: str) -> None:
    """Whatever is said of buffers, shared memory and compression: one error reply that names the fault."""
    keys, frames, text = BAD_BUFFERS[kind]
    keys = {"params": {"args": [{"$buffer": 0}]}, **keys}
    reply = answered(peer, echo(**keys, **with_id()), *frames)

    assert (False, True) == (reply["success"], text in reply["error"]), reply["error"][:500]
    assert reply.get("error_type", LOST) in ("rpc_kit.errors.ProtocolError", LOST)
    assert len(reply["error"]) < 1000
    assert reply["error"] == answered(peer, echo(**keys), *frames)["error"]
    for value in keys["params"].get("args", []):
        put = request("PROPERTY_SET", property="level", value=value, **keys, **with_id())
        assert not answered(peer, put, *frames)["success"]


@pytest.mark.parametrize("event", ["PING", "GET_INVENTORY", "INIT_SIGNALS_HANDLING", "INIT_STREAMS"])
def test_buffers_where_there_are_none(peer: Peer, event: str) -> None:
    """Other requests have none: keys are ignored as all that are unknown, frames are not."""
    keys = {"buffers": [U1], "shm": 3, "codec": 3}
    assert answered(peer, request(event, **keys, **with_id())).get("success", True)
    assert "the request is one frame of JSON, got 2 frames" == answered(peer, request(event, **keys), EIGHT)["error"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, 2.5], r"add\(\): argument 'a': expected int, got numpy.ndarray"), (3, "expected int, got numpy.ndarray"),
    ],
)  # fmt: skip
def test_array_where_none_is_expected(peer: Peer, value: Any, text: str) -> None:
    """An array is no number, also when it has only one."""
    array = np.array(value)
    header = {"dtype": array.dtype.str, "shape": list(array.shape)}
    reply = answered(peer, echo(method="add", buffers=[header], **with_id()), array.tobytes())

    assert "TypeError" == reply["error_type"]
    with pytest.raises(TypeError, match=text):
        raise TypeError(reply["error"])


class Averaging(RPCServer):
    """Takes lists of numbers."""

    @RPCServer.register_method_json
    def mean(self, values: list[float]) -> float:
        return sum(values) / len(values)

    @RPCServer.register_method_json
    def means(self, rows: list[list[float]]) -> list[float]:
        return list(map(self.mean, rows))


@pytest.mark.parametrize(("method", "expected"), [("mean", "list[float]"), ("means", "list[list[float]]")])
def test_rows_of_nothing(serve: Any, context: Any, method: str, expected: str) -> None:
    """Millions of empty rows, which take no bytes to send, do not become millions of lists."""
    body = echo(method=method, buffers=[{"dtype": "<f8", "shape": [1 << 24, 0]}], **with_id())
    with Peer(context, serve(Averaging).url) as peer:
        tracemalloc.start()
        try:
            reply = answered(peer, body, b"")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert ("TypeError", True) == (reply["error_type"], f"expected {expected}, got numpy.ndarray" in reply["error"])
    assert peak < 20 << 20


@pytest.fixture
def ring(peer: Peer) -> Iterator[RingClient]:
    """The shared memory of the server."""
    made = RingClient.open(peer.ask(request("GET_INVENTORY", **with_id()))["shm"])
    assert made is not None
    yield made
    made.close()


@pytest.mark.parametrize(
    "slot",
    [
        (255, 1, 0, 8, -1), (254, 1, 0, 8, -1), (-1, 1, 0, 8, -1), (1 << 70, 1, 0, 8, -1), (0, 0, 0, 8, -1),
        (0, -1, 0, 8, -1), (0, 1 << 70, 0, 8, -1), (0, 1, 1 << 40, 8, -1), (0, 1, -8, 8, -1), (0, 1, 0, 1 << 40, -1),
        (0, 1, 0, -8, -1), (0, 1, 1 << 70, 1 << 70, 1 << 70), (0, 1, 0, 8, 1 << 70), (0, 1, 0, 8, 1024),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_used", [False, True])
def test_bad_slots(peer: Peer, ring: RingClient, slot: tuple[int, ...], is_used: bool) -> None:
    """Who maps the shared memory may name whatever place in it: it is lost, or refused."""
    if is_used:
        body = call("buffer", "bytes", 300_000, shm=ring.proof, **with_id())
        number, generation, *_ = peer.ask(body)["buffers"][0]["slot"]
        # The slot of that reply, as far as it is not the fault.
        slot = (slot[0] or number, generation if slot[1] == 1 else slot[1], *slot[2:])
    reply = answered(peer, echo(buffers=[{**U1, "slot": slot}], shm=ring.proof, **with_id()))

    # Of a request nobody looks at the ticket.
    assert reply["success"] is (is_used and slot[2:4] == (0, 8) and slot[:2] == (number, generation))
    assert reply["success"] or reply["error_type"] in ("rpc_kit.errors.ProtocolError", LOST)


def test_codec_for_what_it_cannot_compress(peer: Peer) -> None:
    """A result that the wanted codec does not suit is an error that says what does, and the next call is answered."""
    header = {"dtype": "<f8", "shape": [1000]}
    reply = answered(peer, echo(buffers=[header], codec={"name": "jpeg"}, **with_id()), bytes(8000))

    assert "rpc_kit.errors.SerializationError" == reply["error_type"]
    assert "echo(): its result of type ndarray: jpeg cannot compress <f8 of shape (1000,)" in reply["error"]
    peer.send(b"", echo(buffers=[header], codec={"name": "zlib"}, **with_id()), bytes(8000))
    _, head, frame = peer.receive()
    assert ("zlib", bytes(8000)) == (json.loads(head)["buffers"][0]["codec"], zlib.decompress(frame))
