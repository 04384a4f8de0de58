"""Whatever a client sends: one clear error reply, and the server, in another process, goes on serving others."""

import secrets
from typing import Any

import pytest
import zmq

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
