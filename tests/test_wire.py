"""Frames to messages and back."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from rpc_kit import messages, wire
from rpc_kit.compression import Codec
from rpc_kit.errors import (
    MessageTooLarge,
    ProtocolError,
    RemoteError,
    SerializationError,
)
from rpc_kit.messages import EventType, Malformed, MethodCall, Params, PropertyGet, Request, SignalEvent, Subscribed
from rpc_kit.wire import ReplyWriter, parse_request

LIMIT = 1 << 20
DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=300)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
events = st.sampled_from([*map(str, messages.RPCEvents), *map(str, EventType), "", "NO_EVENT", "\ud800"])
ids = st.tuples(st.text(max_size=70), st.integers())
near_requests = st.fixed_dictionaries(
    {"event": events},
    optional={
        "method": st.text(max_size=8) | json_values,
        "property": st.text(max_size=8) | json_values,
        "value": json_values,
        "params": json_values
        | st.fixed_dictionaries({}, optional={"args": st.lists(json_values) | json_values, "kwargs": json_values}),
        "payload": json_values,
        "id": ids | json_values,
        "timeout": st.floats() | json_values,
        "call": ids | json_values,
        "buffers": json_values | st.lists(st.fixed_dictionaries({"size": st.integers()}) | json_values, max_size=3),
        "shm": json_values | st.tuples(st.text(max_size=4), st.integers()),
        "codec": json_values | st.fixed_dictionaries({"name": st.sampled_from(["jpeg", "zlib", "gzip"])}),
    },
)
frames = (
    st.binary(max_size=60)
    | near_requests.map(lambda value: json.dumps(value).encode())
    | near_requests.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | json_values.map(lambda value: json.dumps(value).encode())
)


@given(st.lists(frames, max_size=3) | frames.map(lambda frame: [frame]))
@DETERMINISTIC
@example([b'{"event":"METHOD_CALL","method":"f","id":["\\ud800",1],"params":{"args":[NaN]}}'])
@example([b'{"event":"\\ud800","id":["a",1],"x":NaN}'])
@example([b"[" * 100_000])
@example([b'{"event":"PING","x":[NaN,' + b"[" * 100_000])
@example([b'{"event":"PING","id":["a",' + b"9" * 5000 + b"]}"])
@example([memoryview(b'{"event":"PING"}')])
def test_any_frames_are_a_request_or_malformed(found: list[Any]) -> None:
    """Whatever arrives, parsing gives a request or a Malformed that can be answered, never an exception."""
    request = parse_request(found, LIMIT)

    assert isinstance(request, (Request, Malformed))
    for reply in (*ReplyWriter("epoch").failure(request, "text"), wire.unsupported_frame(request, "text")):
        assert json.loads(reply)["success"] is False


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", "the request is empty"), (b"\xff\xfe", "utf-8"), (b'{"event":"\xff"}', "utf-8"),
        (b"{", "the request is not JSON"), (b"nul", "not JSON"), (b'{"event":', "not JSON"),
        (b'{"event":"PING"}x', "not JSON"), (b"[" * 100_000, "nested too deep"),
        (b"[NaN," * 50_000, "nested too deep"), (b'{"event":"\\ud800","x":NaN}', "surrogates"),
        (b"3", "a request is a JSON object, got int"), (b'"PING"', "got str"), (b"null", "got NoneType"),
        (b"[]", "got list"), (b"NaN", "got float"), (b"true", "got bool"),
        (b"{}", "the request has no event"), (b'{"event":null}', "no event"),
        (b'{"event":["PING"]}', "no event"), (b'{"event":"ping"}', "unknown event 'ping'"),
        (b'{"event":""}', "unknown event ''"),
        (b'{"event":"METHOD_CALL"}', "METHOD_CALL: Object missing required field `method`"),
        (b'{"event":"METHOD_CALL","method":3}', "`$.method`"),
        (b'{"event":"METHOD_CALL","method":"f","params":[]}', "`$.params`"),
        (b'{"event":"METHOD_CALL","method":"f","params":{"args":{}}}', "`$.params.args`"),
        (b'{"event":"METHOD_CALL","method":"f","params":{"kwargs":[]}}', "`$.params.kwargs`"),
        (b'{"event":"METHOD_CALL","method":"f","params":{"args":{},"kwargs":{"a":NaN}}}', "`$.params.args`"),
        (b'{"event":"PROPERTY_GET"}', "missing required field `property`"),
        (b'{"event":"PROPERTY_SET","property":"a"}', "missing required field `value`"),
        (b'{"event":"EMIT_SIGNAL"}', "EMIT_SIGNAL"), (b'{"event":"REGISTER"}', "`payload`"),
        (b'{"event":"CHECK_ALIVE","payload":{}}', "`uuid`"),
        (b'{"event":"PING","timeout":"soon"}', "`$.timeout`"), (b'{"event":"PING","id":3}', "`$.id`"),
        (b'{"event":"PING","id":["a"]}', "`$.id`"), (b'{"event":"PING","id":["a",1.5]}', "`$.id[1]`"),
        (b'{"event":"PING","id":["' + b"a" * 65 + b'",1]}', "`$.id[0]`"),
    ],
)  # fmt: skip
def test_malformed_says_what_is_wrong(frame: bytes, text: str) -> None:
    """The error is a ProtocolError whose text names the fault."""
    request = parse_request([frame], LIMIT)

    assert isinstance(request, Malformed)
    assert isinstance(request.error, ProtocolError)
    assert text in str(request.error)
    assert len(str(request.error)) < 300


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "a request is one frame of JSON and its buffers, got no frames"),
        (2, "the request is one frame of JSON, got 2 frames"),
        (wire.MAX_FRAMES, "the request is one frame of JSON, got 1001 frames"),
        (wire.MAX_FRAMES + 1, "a request is one frame of JSON and its buffers, got more than 1001 frames"),
    ],
)
def test_wrong_number_of_frames(count: int, text: str) -> None:
    """A request that names no buffers is one frame."""
    request = parse_request(([b'{"event":"PING"}'] + [b"x"] * 2000)[:count], LIMIT)

    assert isinstance(request, Malformed)
    assert text == str(request.error)


@pytest.mark.parametrize(("limit", "kind"), [(16, messages.Ping), (15, Malformed)])
def test_request_over_the_limit(limit: int, kind: type) -> None:
    """A request may be as large as the limit; beyond it nothing of it is read."""
    request = parse_request([b'{"event":"PING"}'], limit)

    assert kind is type(request)
    if isinstance(request, Malformed):
        assert isinstance(request.error, MessageTooLarge)
        assert "the request has 16 bytes, the limit is 15" == str(request.error)


@pytest.mark.parametrize(
    ("frame", "event", "request_id"),
    [
        (b'{"event":"NEW","id":["a",1]}', "NEW", ("a", 1)),
        (b'{"event":"METHOD_CALL","id":["a",1]}', "METHOD_CALL", ("a", 1)),
        (b'{"event":"NEW","id":null,"x":NaN}', "NEW", UNSET),
        (b'{"event":"PING","id":"a"}', "PING", UNSET), (b'{"id":["a",1]}', "", ("a", 1)),
        (b'["NEW"]', "", UNSET), (b'{"event":"' + b"x" * 1000 + b'"}', "x" * 100, UNSET),
    ],
)  # fmt: skip
def test_malformed_keeps_what_could_be_read(frame: bytes, event: str, request_id: Any) -> None:
    """Event and id are kept for the reply, the event cut to a length that may be repeated."""
    request = parse_request([frame], LIMIT)

    assert isinstance(request, Malformed)
    assert (event, request_id) == (request.event, request.id)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"event":"METHOD_CALL","method":"f"}', MethodCall(method="f")),
        ('{"event":"METHOD_CALL","method":"f","params":{}}', MethodCall(method="f")),
        (
            '{"event":"METHOD_CALL","method":"f","params":{"args":[1,"é"]}}',
            MethodCall(method="f", params=Params([1, "é"])),
        ),
        (
            '{"params":{"kwargs":{"a":null}},"method":"f","event":"METHOD_CALL"}',
            MethodCall(method="f", params=Params([], {"a": None})),
        ),
        ('{"event":"PROPERTY_GET","property":"x","unknown":1}', PropertyGet(property="x")),
        ('{"event":"PROPERTY_SET","property":"x","value":null}', messages.PropertySet(property="x", value=None)),
        (' {"event": "GET_INVENTORY"} ', messages.GetInventory()),
        ('{"event":"INIT_SIGNALS_HANDLING","id":["a",1]}', messages.InitSignals(id=("a", 1))),
        ('{"event":"STOP_SERVER","timeout":5}', messages.StopServer(timeout=5.0)),
        ('{"event":"PING","call":["a",1]}', messages.Ping(call=("a", 1))),
        (
            '{"event":"REGISTER","payload":{"device_type":"t","addr":"a","name":""}}',
            messages.Register(payload=messages.Registration("t", "a", "")),
        ),
        ('{"event":"UNREGISTER","payload":{"uuid":"u"}}', messages.Unregister(payload=messages.Removal("u"))),
        (
            '{"event":"CHECK_ALIVE","payload":{"uuid":"u","alive_timeout":3}}',
            messages.CheckAlive(payload=messages.Renewal("u", 3.0)),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_requests_of_plain_clients(text: str, expected: Request, kind: Any) -> None:
    """Each request of docs/wire.md is understood, whatever the order of its keys; unknown keys are ignored."""
    assert expected == parse_request([kind(text.encode())], LIMIT)


def test_nan_in_request() -> None:
    """NaN and infinities, as Python writes them, arrive as such."""
    body = b'{"event":"METHOD_CALL","method":"f","params":{"args":[NaN,-Infinity,{"a":Infinity}]}}'

    request = parse_request([body], LIMIT)

    assert isinstance(request, MethodCall)
    assert "[nan, -inf, {'a': inf}]" == repr(request.params.args)


@given(
    st.text(),
    st.lists(json_values),
    st.dictionaries(st.text(), json_values),
    st.just(UNSET) | st.tuples(st.text(max_size=64), st.integers()),
)
@DETERMINISTIC
def test_method_call_round_trips(method: str, args: list[Any], kwargs: dict[str, Any], request_id: Any) -> None:
    """What a client writes a server reads, NaN included."""
    request = MethodCall(method=method, params=Params(args, kwargs), id=request_id, timeout=1.5)

    assert repr(request) == repr(parse_request([wire.request_frame(request)], 1 << 30))


@given(st.text(), json_values)
@DETERMINISTIC
def test_property_set_round_trips(name: str, value: Any) -> None:
    """The value of a property arrives unchanged."""
    request = messages.PropertySet(property=name, value=value)

    assert repr(request) == repr(parse_request([wire.request_frame(request)], 1 << 30))


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (MethodCall(method="f", params=Params([1, {"a": print}])), "f: argument 2: a value of type builtin_function"),
        (MethodCall(method="f", params=Params([], {"b": 1j})), "f: argument 'b': a value of type complex"),
        (messages.PropertySet(property="x", value=range(3)), "x: a value of type range"),
        (MethodCall(method="f", params=Params(["\ud800"])), "f: argument 1: "),
    ],
)  # fmt: skip
def test_argument_that_cannot_be_sent(request_: Request, text: str) -> None:
    """The error names the member, the argument and the type; it is a TypeError, too."""
    with pytest.raises(SerializationError) as caught:
        wire.request_frame(request_)

    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, TypeError)


WRITER = ReplyWriter("e0")
CALL, GET = MethodCall(method="f"), PropertyGet(property="x")
CALL_2, GET_2 = MethodCall(method="f", id=("a", 1)), PropertyGet(property="x", id=("a", 1))
SHARED = {"id": ["a", 1], "epoch": "e0"}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (WRITER.result(CALL, [1, "é"]), '{"success":true,"result":[1,"é"]}'),
        (WRITER.result(CALL, None), '{"success":true,"result":null}'),
        (WRITER.result(CALL, math.nan), '{"success": true, "result": NaN}'),
        (WRITER.value(GET, 1.5), '{"success":true,"value":1.5}'),
        (WRITER.done(GET), '{"success":true}'),
        (WRITER.done(GET, signal_port=9), '{"success":true,"signal_port":9}'),
        (WRITER.inventory(GET, {"signals": []}), '{"signals":[]}'),
        (WRITER.failure(CALL, "dark", "ValueError", "trace"), '{"success":false,"error":"dark","traceback":"trace"}'),
        (WRITER.failure(Malformed(ValueError()), "no"), '{"success":false,"error":"no","traceback":""}'),
        (WRITER.failure(CALL, "\ud800"), r'{"success":false,"error":"\\ud800","traceback":""}'),
    ],
)  # fmt: skip
def test_version_1_replies_are_byte_exact(frames: list[Any], expected: str) -> None:
    """A request without an id is answered with the keys of version 1 and no others."""
    assert [expected.encode()] == frames


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (WRITER.result(CALL_2, 3), {"success": True, "result": 3}),
        (WRITER.result(CALL_2, None), {"success": True, "result": None}),
        (WRITER.value(GET_2, None), {"success": True, "value": None}),
        (WRITER.done(GET_2), {"success": True}),
        (WRITER.inventory(GET_2, {"signals": []}), {"signals": []}),
        (
            WRITER.failure(CALL_2, "no", "ValueError", "t"),
            {"success": False, "error": "no", "traceback": "t", "error_type": "ValueError"},
        ),
        (WRITER.buffer(CALL_2, b"x", {"error": 1})[:1], {"success": True, "info": {"error": 1}}),
    ],
)  # fmt: skip
def test_version_2_replies_have_id_and_epoch(frames: list[Any], expected: dict[str, Any]) -> None:
    """A request with an id gets it back, with the epoch of the server."""
    (frame,) = frames

    assert {**expected, **SHARED} == json.loads(frame)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [(CALL, {"shape": [2, 3]}), (CALL_2, {"success": True, "info": {"shape": [2, 3]}, **SHARED})],
)
def test_buffer_is_not_copied(request_: MethodCall, expected: dict[str, Any]) -> None:
    """The payload is a frame of its own, a view of what was given unless whoever decides how it travels copies it."""
    payload = bytearray(b"pixels")
    writer = ReplyWriter("e0", lambda _, parts: ([part.header for part in parts], [part.data for part in parts]))

    head, body = writer.buffer(request_, payload, {"shape": [2, 3]})

    assert payload is memoryview(body).obj
    assert expected == json.loads(head)


def test_buffer_of_version_1_is_a_frame() -> None:
    """Without an id nobody knows what else to do with it: proof and codec of such a request are none."""
    seen = []

    def load(request: messages.Carrying, parts: Any) -> Any:
        seen.append((request.shm, request.codec))
        return wire.as_frames(request, parts)

    request = MethodCall(method="f", shm=("secret", 1), codec=Codec("zlib"))

    assert [b"{}", b"pixels"] == ReplyWriter("e0", load).buffer(request, b"pixels", {})
    assert [(UNSET, UNSET)] == seen


@given(json_values)
@DETERMINISTIC
def test_results_round_trip(value: Any) -> None:
    """What a server writes a client reads, NaN included."""
    result, found = wire.parse_reply(WRITER.result(CALL_2, value)[0]), wire.parse_reply(WRITER.value(GET_2, value)[0])

    assert (True, ("a", 1), "e0") == (result.success, result.id, result.epoch)
    assert repr(value) == repr(result.result) == repr(found.value)


def test_failure_becomes_an_exception() -> None:
    """The failure that a server writes is the exception that a client raises."""
    error = wire.failure_of(wire.parse_reply(WRITER.failure(CALL_2, "too dark", "ValueError", "trace")[0]))

    assert isinstance(error, RemoteError)
    assert isinstance(error, ValueError)
    assert ("too dark", "ValueError", "trace") == (str(error), error.error_type, error.traceback)


def test_failure_of_version_1_server() -> None:
    """Without a type the error is a plain RemoteError."""
    assert RemoteError is type(wire.failure_of(wire.parse_reply(b'{"success":false,"error":"x","traceback":""}')))


@pytest.mark.parametrize(
    "frame", [b"", b"x", b"[]", b"3", b'{"success":3}', b'{"id":1}', b"\xff", b"[" * 100_000, b'{"error":NaN}']
)
@pytest.mark.parametrize("parse", [wire.parse_reply, wire.parse_facts])
def test_what_is_no_reply(parse: Any, frame: bytes) -> None:
    """A reply that is none is a ProtocolError on the client."""
    with pytest.raises(ProtocolError, match="not a reply"):
        parse(frame)


def test_facts() -> None:
    """The answer to a control message has its facts by name; those that were not sent are UNSET."""
    facts = wire.parse_facts(b'{"success":true,"busy":{"member":"f","seconds":1.5},"queued":2,"unknown":1}')

    assert ({"member": "f", "seconds": 1.5}, 2, UNSET) == (facts.busy, facts.queued, facts.event_port)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), st.lists(json_values))
@DETERMINISTIC
def test_events_round_trip(signal: str, args: list[Any]) -> None:
    """What a publisher writes a subscriber reads."""
    event = SignalEvent("e0", 3, 1.5, args)

    assert repr((signal, event)) == repr(wire.parse_published(*wire.event_frames(signal, event)))


def test_confirmation_round_trips() -> None:
    """A confirmation has no signal's name, and no signal's topic begins with it."""
    topic, subscribed = wire.confirmation_topic("client"), Subscribed("e0", {"moved": 3})

    assert ("", subscribed) == wire.parse_published(*wire.confirmation_frames(topic, subscribed))
    assert not wire.event_topic("client").startswith(topic)


def test_topics_do_not_begin_each_other() -> None:
    """Subscribing to one signal does not bring another whose name begins with it."""
    assert not wire.event_topic("moved_far").startswith(wire.event_topic("moved"))


@pytest.mark.parametrize("topic", [b"", b"moved\0", b"\0client"])
@pytest.mark.parametrize("body", [b"", b"{}", b"x", b"[]", b"\xff", b'{"epoch":"e","seq":"1"}'])
def test_what_is_no_event(topic: bytes, body: bytes) -> None:
    """Anything else on the channel of events is a ProtocolError."""
    with pytest.raises(ProtocolError):
        wire.parse_published(topic, body)


def test_event_of_version_1_is_byte_exact() -> None:
    """One frame, as plain subscribers know it."""
    expected = b'{"event":"EMIT_SIGNAL","signal":"moved","args":[1.5,"a"],"blocking":false}'

    assert [expected] == wire.event_frames_v1("moved", (1.5, "a"))


def test_event_that_cannot_be_sent() -> None:
    """The error names the signal and the type."""
    with pytest.raises(SerializationError, match="signal moved: a value of type complex"):
        wire.event_frames("moved", SignalEvent("e0", 1, 0.0, [1j]))


def test_registry_messages_are_byte_exact() -> None:
    """Registry messages are event and payload."""
    frame = wire.registry_frame(EventType.REGISTER_ACK, {"name": "a", "uuid": "u"})

    assert b'{"event":"REGISTER_ACK","payload":{"name":"a","uuid":"u"}}' == frame
    assert {"name": "a", "uuid": "u"} == wire.parse_registry_reply(frame)


@pytest.mark.parametrize("frame", [b"", b"x", b"[]", b"{}", b'{"payload":3}', b'{"payload":null}'])
def test_what_is_no_reply_of_a_registry(frame: bytes) -> None:
    """Anything else is a ProtocolError."""
    with pytest.raises(ProtocolError):
        wire.parse_registry_reply(frame)


@pytest.mark.parametrize(
    ("request_", "event"),
    [(Malformed(ValueError(), "NEW", ("a", 1)), "NEW"), (messages.GetInventory(id=("a", 1)), "")],
)
def test_unsupported_suits_both_protocols(request_: Any, event: str) -> None:
    """It is a message of the registry protocol and a failure reply, too."""
    expected = {
        "event": "UNSUPPORTED", "payload": {"req_event": event}, "success": False, "error": "no", "traceback": "",
        "id": ["a", 1],
    }  # fmt: skip

    frame = wire.unsupported_frame(request_, "no")

    assert expected == msgspec.json.decode(frame)
    assert ("no", ("a", 1)) == (wire.parse_reply(frame).error, wire.parse_reply(frame).id)
