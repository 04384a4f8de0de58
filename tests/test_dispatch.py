"""One request in, one reply out; without sockets."""

import json
import math
import re
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from rpc_kit import RPCProperty, RPCServer, RPCSignal
from rpc_kit.dispatch import Dispatcher, Pending
from rpc_kit.interface import Interface
from rpc_kit.messages import AnyRequest, GetInventory, Malformed, MethodCall, Params, Ping, Register, Registration
from rpc_kit.transfer import ServerTransfer
from rpc_kit.wire import Frames, ReplyWriter, parse_request

LIMIT = 1 << 20
method = RPCServer.register_method_json
buffer = RPCServer.register_method_buffer


class Mode(Enum):
    FAST = "fast"


@dataclass
class Setting:
    mode: Mode
    size: tuple[int, int]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise SystemExit("in __str__")


class HostileError(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise KeyboardInterrupt


class Device:
    """Members of every kind, some of which fail."""

    moved = RPCSignal(float)

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.raises: BaseException = ValueError("too dark")
        self.returns: Any = None
        self._position = 0.0

    @RPCProperty(notify=moved, auto_notify=True)
    def position(self) -> float:
        return self._position

    @position.setter
    def position(self, value: float) -> None:
        if value < 0:
            raise ValueError("negative")
        self._position = value

    @RPCProperty
    def raw(self) -> Any:
        return self.returns

    @RPCProperty
    def broken(self) -> float:
        raise self.raises

    @method(timeout=None)
    def add(self, a: int, b: int = 1) -> int:
        self.calls.append((a, b))
        return a + b

    @method
    def configure(self, setting: Setting, *modes: Mode, flag: bool = False) -> Setting:
        self.calls.append((setting, modes, flag))
        return setting

    @method
    def fail(self) -> None:
        raise self.raises

    @method
    def give(self) -> Any:
        return self.returns

    @method
    def descend(self, depth: int) -> None:
        if not depth:
            raise self.raises
        self._deeper(depth - 1)

    def _deeper(self, depth: int) -> None:
        # Two functions in turn, as Python shortens the traceback of one that calls itself.
        if not depth:
            raise self.raises
        self.descend(depth - 1)

    @method
    def chain(self) -> None:
        try:
            self.descend(50)
        except ValueError as exc:
            raise RuntimeError("cannot move") from exc

    @buffer(timeout=500)
    def image(self) -> Any:
        return self.returns

    def undeclared(self) -> None:
        self.calls.append("undeclared")

    def _stop(self) -> None:
        self.calls.append("_stop")


class Host:
    """A server that cannot be stopped."""

    max_request = LIMIT

    def server_name(self) -> str:
        return "stage-0"

    def open_signals(self, version: int) -> dict[str, Any]:
        return {"signal_port": 9000 + version}

    def open_streams(self) -> dict[str, Any]:
        return {"stream_port": 9003}

    def local_routes(self) -> dict[str, Any]:
        return {"ipc": "ipc://@stage", "shm": {"path": "/dev/shm/stage"}}

    def load(self) -> dict[str, Any]:
        return {"streams": [{"signal": "moved"}]}

    def request_stop(self) -> None:
        raise PermissionError("not to be stopped")

    def current_call(self) -> tuple[dict[str, Any] | None, int]:
        return {"member": "add", "seconds": 1.5}, 2


class StoppableHost(Host):
    """A server that notes that it was stopped."""

    stopped = False

    def request_stop(self) -> None:
        self.stopped = True


def make(device: Device, host: Host | None = None) -> Dispatcher:
    writer = ReplyWriter("e0", ServerTransfer(0).load)
    return Dispatcher(device, Interface.of(type(device)), host or Host(), writer)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def dispatcher(device: Device) -> Dispatcher:
    return make(device)


def ask(dispatcher: Dispatcher, text: str | bytes) -> bytes:
    """The one frame of the reply to the JSON of a request."""
    (frame,) = dispatcher.answer(parse_request([text.encode() if isinstance(text, str) else text], LIMIT))
    return bytes(frame)


def call(dispatcher: Dispatcher, name: str, *args: Any, **keys: Any) -> dict[str, Any]:
    """The reply to a method call; `keys` are those of the request."""
    request = {"event": "METHOD_CALL", "method": name, "params": {"args": args}, **keys}
    found: dict[str, Any] = json.loads(ask(dispatcher, json.dumps(request)))
    return found


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ('{"event":"METHOD_CALL","method":"add","params":{"args":[2,3],"kwargs":{}}}', '{"success":true,"result":5}'),
        ('{"event":"METHOD_CALL","method":"add","params":{"kwargs":{"b":3,"a":2}}}', '{"success":true,"result":5}'),
        ('{"event":"METHOD_CALL","method":"give"}', '{"success":true,"result":null}'),
        ('{"event":"PROPERTY_GET","property":"position"}', '{"success":true,"value":0.0}'),
        ('{"event":"PROPERTY_SET","property":"position","value":3}', '{"success":true}'),
        ('{"event":"INIT_SIGNALS_HANDLING"}', '{"success":true,"signal_port":9001}'),
        ('{"event":"METHOD_CALL","method":"X"}', '{"success":false,"error":"Method X not implemented","traceback":""}'),
        (
            '{"event":"PROPERTY_GET","property":"X"}',
            '{"success":false,"error":"Property X not implemented","traceback":""}',
        ),
        (
            '{"event":"PROPERTY_SET","property":"X","value":1}',
            '{"success":false,"error":"Property X not implemented","traceback":""}',
        ),
        ('{"event":"NEW"}', """{"success":false,"error":"unknown event 'NEW'","traceback":""}"""),
        ('[]', '{"success":false,"error":"a request is a JSON object, got list","traceback":""}'),
        (
            '{"event":"GET_INVENTORY"}',
            '{"json_methods":{"add":null,"configure":10000,"fail":10000,"give":10000,"descend":10000,"chain":10000},'
            '"buffer_methods":{"image":500},"signals":["moved"],"properties":["position","raw","broken"],'
            '"name":"stage-0"}',
        ),
    ],
)  # fmt: skip
def test_version_1_is_byte_exact(dispatcher: Dispatcher, request_: str, expected: str) -> None:
    """Plain clients get the replies of docs/wire.md, byte for byte."""
    assert sorted_keys(expected) == sorted_keys(ask(dispatcher, request_).decode())


def sorted_keys(inventory: str) -> str:
    """The order of members in the inventory is that of their declaration, which the protocol leaves open."""
    return json.dumps(json.loads(inventory), sort_keys=True) if "json_methods" in inventory else inventory


def test_buffer_reply(dispatcher: Dispatcher, device: Device) -> None:
    """Two frames: the info as it is, and the payload."""
    device.returns = (b"pixels", {"shape": [2, 3], "error": "none"})

    assert [b'{"shape":[2,3],"error":"none"}', b"pixels"] == dispatcher.answer(MethodCall(method="image"))


def test_version_2(dispatcher: Dispatcher) -> None:
    """With an id, id and epoch come back, and failures have a type."""
    shared = {"id": ["c", 1], "epoch": "e0"}

    assert {"success": True, "result": 3, **shared} == call(dispatcher, "add", 1, 2, id=["c", 1])
    failure = call(dispatcher, "fail", id=["c", 1])
    assert {"success": False, "error": "too dark", "error_type": "ValueError", **shared} == {
        key: value for key, value in failure.items() if key != "traceback"
    }
    inventory = json.loads(ask(dispatcher, '{"event":"GET_INVENTORY","id":["c",1]}'))
    local = {"ipc": "ipc://@stage", "shm": {"path": "/dev/shm/stage"}}
    assert {"name": "stage-0", "max_request": LIMIT, **local, **shared} == {
        key: inventory[key] for key in ("name", "max_request", *local, *shared)
    }
    assert {"success": True, "signal_port": 9002, **shared} == json.loads(
        ask(dispatcher, '{"event":"INIT_SIGNALS_HANDLING","id":["c",1]}')
    )
    assert {"success": True, "stream_port": 9003, **shared} == json.loads(
        ask(dispatcher, '{"event":"INIT_STREAMS","id":["c",1]}')
    )


def test_ping(dispatcher: Dispatcher) -> None:
    """PING tells what runs, how many wait, what the server gives away, and what became of a call."""
    facts = {"success": True, "epoch": "e0", "busy": {"member": "add", "seconds": 1.5}, "queued": 2}
    facts["streams"] = [{"signal": "moved"}]
    assert dispatcher.journal.begin(("c", 1))
    dispatcher.journal.clock = lambda: 7.5

    assert facts == json.loads(ask(dispatcher, '{"event":"PING"}'))
    assert {**facts, "call": "pending", "clock": 7.5} == json.loads(ask(dispatcher, '{"event":"PING","call":["c",1]}'))
    assert {**facts, "call": "unknown", "clock": 7.5} == json.loads(ask(dispatcher, '{"event":"PING","call":["c",2]}'))


def test_stop_server(device: Device) -> None:
    """STOP_SERVER reaches the server, or is refused by it."""
    host = StoppableHost()

    assert b'{"success":true}' == ask(make(device, host), '{"event":"STOP_SERVER"}')
    assert host.stopped
    assert "not to be stopped" == json.loads(ask(make(device), '{"event":"STOP_SERVER"}'))["error"]


@pytest.mark.parametrize(
    "name", ["undeclared", "_stop", "__class__", "__init__", "__dict__", "_position", "calls", "position", "moved", ""]
)
def test_only_declared_methods_are_reachable(dispatcher: Dispatcher, device: Device, name: str) -> None:
    """Private and undeclared names, and members of another kind, are no methods."""
    expected = {"success": False, "error": f"Method {name} not implemented", "traceback": ""}

    assert expected == call(dispatcher, name)
    assert [] == device.calls


@pytest.mark.parametrize("name", ["calls", "returns", "_position", "__class__", "__dict__", "add", "moved", ""])
@pytest.mark.parametrize("event", ["PROPERTY_GET", "PROPERTY_SET"])
def test_only_declared_properties_are_reachable(dispatcher: Dispatcher, device: Device, name: str, event: str) -> None:
    """Other attributes can neither be read nor set."""
    reply = json.loads(ask(dispatcher, json.dumps({"event": event, "property": name, "value": 1})))

    assert {"success": False, "error": f"Property {name} not implemented", "traceback": ""} == reply
    assert vars(Device()).keys() == vars(device).keys()


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("add", [], "add(): missing a required argument: 'a'"),
        ("add", [1, 2, 3], "add(): too many positional arguments"),
        ("add", ["1"], "add(): argument 'a': expected int, got str ('1')"),
        ("add", [1, True], "add(): argument 'b': expected int, got bool (True)"),
        ("add", [1, math.nan], "add(): argument 'b': expected int, got float (nan)"),
        ("configure", [{"mode": "fast", "size": [1]}], f"argument 'setting': expected {__name__}.Setting, got dict"),
        ("configure", [{"mode": "fast", "size": [1, 2]}, "slow"], f"argument 'modes': expected {__name__}.Mode"),
    ],
)
def test_wrong_arguments_do_not_reach_the_device(
    dispatcher: Dispatcher, device: Device, name: str, args: list[Any], error: str
) -> None:
    """A wrong argument is a TypeError before the device is called, with parameter, expected and given type."""
    reply = call(dispatcher, name, *args, id=["c", 1])

    assert error in reply["error"]
    assert ("TypeError", "") == (reply["error_type"], reply["traceback"])
    assert [] == device.calls


@pytest.mark.parametrize("key", ["self", "unknown", "a"])
def test_wrong_keywords_do_not_reach_the_device(dispatcher: Dispatcher, device: Device, key: str) -> None:
    """Unknown, repeated and tricky names are refused."""
    params = {"args": [1], "kwargs": {key: 1}}

    reply = json.loads(ask(dispatcher, json.dumps({"event": "METHOD_CALL", "method": "add", "params": params})))

    assert not reply["success"]
    assert [] == device.calls


def test_arguments_are_converted(dispatcher: Dispatcher, device: Device) -> None:
    """The device gets the types of its annotations, and its result is sent."""
    reply = call(dispatcher, "configure", {"mode": "fast", "size": [1, 2]}, "fast")

    assert [(Setting(Mode.FAST, (1, 2)), (Mode.FAST,), False)] == device.calls
    assert {"mode": "fast", "size": [1, 2]} == reply["result"]


def test_property_set_is_converted_and_checked(dispatcher: Dispatcher, device: Device) -> None:
    """A value of the wrong type, one that the setter refuses, and a missing setter are errors of the caller."""

    def put(name: str, value: Any) -> Any:
        request = {"event": "PROPERTY_SET", "property": name, "value": value, "id": ["c", 1]}
        reply = json.loads(ask(dispatcher, json.dumps(request)))
        return reply["success"] or (reply["error_type"], reply["error"])

    assert put("position", 3) is True
    assert ("TypeError", "position: expected float, got str ('far')") == put("position", "far")
    assert ("ValueError", "negative") == put("position", -1)
    assert ("AttributeError", "property 'raw' of 'Device' object has no setter") == put("raw", 1)
    assert (3.0, float) == (device.position, type(device.position))


RAISED = [
    (ValueError("too dark"), "ValueError", "too dark"),
    (KeyError("name"), "KeyError", "'name'"),
    (OSError(2, "no file"), "FileNotFoundError", "[Errno 2] no file"),
    (AssertionError(), "AssertionError", ""),
    (StopIteration(3), "StopIteration", "3"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "UnicodeDecodeError", "'utf-8' codec can't decode byte 0x78"),
    (ExceptionGroup("both", [ValueError("a"), TypeError("b")]), "ExceptionGroup", "both (2 sub-exceptions)"),
    (ValueError("\ud800"), "ValueError", "\\ud800"),
    (SystemExit(3), "SystemExit", "SystemExit: 3"),
    (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
    (GeneratorExit(), "GeneratorExit", "GeneratorExit"),
    (BaseExceptionGroup("x", [SystemExit()]), "BaseExceptionGroup", "BaseExceptionGroup: x (1 sub-exception)"),
    (MemoryError(), "MemoryError", ""),
    (RecursionError("deep"), "RecursionError", "deep"),
    (UnprintableError(), f"{__name__}.UnprintableError", "UnprintableError (its text cannot be made)"),
    (HostileError("look"), f"{__name__}.HostileError", "look"),
]


@pytest.mark.parametrize("request_", ['"METHOD_CALL","method":"fail"', '"PROPERTY_GET","property":"broken"'])
@pytest.mark.parametrize(("exc", "error_type", "error"), RAISED, ids=lambda each: type(each).__name__)
def test_device_may_raise_anything(
    dispatcher: Dispatcher, device: Device, request_: str, exc: BaseException, error_type: str, error: str
) -> None:
    """Whatever a device raises, SystemExit included, is a failure reply with type and text, and the next call works."""
    device.raises = exc

    reply = json.loads(ask(dispatcher, f'{{"event":{request_},"id":["c",1]}}'))

    assert (False, error_type) == (reply["success"], reply["error_type"])
    assert reply["error"].startswith(error)
    assert 3 == call(dispatcher, "add", 1, 2)["result"]


def frames_of(traceback: str) -> int:
    return len(re.findall(r'^ *\|? *File "', traceback, re.MULTILINE))


@pytest.mark.parametrize(("depth", "expected"), [(0, 1), (5, 6), (9, 10), (500, 10)])
def test_traceback_has_at_most_ten_frames(dispatcher: Dispatcher, depth: int, expected: int) -> None:
    """The innermost frames are kept; those of the server itself are left out."""
    traceback = call(dispatcher, "descend", depth)["traceback"]

    assert expected == frames_of(traceback)
    assert traceback.endswith("raise self.raises\nValueError: too dark\n")
    assert "rpc_kit" not in traceback


def test_traceback_of_a_cause(dispatcher: Dispatcher) -> None:
    """The cause is told too, with at most ten frames of its own."""
    traceback = call(dispatcher, "chain")["traceback"]

    assert 11 == frames_of(traceback)
    assert "ValueError: too dark" in traceback
    assert traceback.endswith("RuntimeError: cannot move\n")


def test_traceback_is_of_limited_length(dispatcher: Dispatcher, device: Device) -> None:
    """A chain of thousands of causes is cut off."""
    for number in range(3000):
        cause, device.raises = device.raises, ValueError(f"{number}" * 20)
        device.raises.__cause__ = cause

    assert 100_000 == len(call(dispatcher, "fail")["traceback"])


@pytest.mark.parametrize(
    ("returns", "text"),
    [
        (object(), "give(): its result of type object: a value of type object cannot be sent"),
        ({"a": [1, 1j]}, "give(): its result of type dict: a value of type complex cannot be sent"),
        (np.array([None]), "give(): its result of type ndarray: an array of dtype object cannot be sent, as it holds"),
        (np.ma.zeros(3), "give(): its result of type MaskedArray: a masked array would lose its mask"),
        (["\ud800"], "give(): its result of type list: 'utf-8' codec"),
        (10**5000, "give(): its result of type int: Exceeds the limit"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_result_that_cannot_be_sent(dispatcher: Dispatcher, device: Device, returns: Any, text: str) -> None:
    """The error names the member and the type."""
    device.returns = returns

    reply = call(dispatcher, "give", id=["c", 1])

    assert reply["error"].startswith(text)
    assert "rpc_kit.errors.SerializationError" == reply["error_type"]


def test_result_that_contains_itself(dispatcher: Dispatcher, device: Device) -> None:
    """Endless nesting is an error, too."""
    device.returns = []
    device.returns.append(device.returns)

    assert call(dispatcher, "give")["error"].startswith("give(): its result of type list: ")


@pytest.mark.parametrize("keys", ["", ',"id":["c",1]'])
def test_property_that_cannot_be_sent(dispatcher: Dispatcher, device: Device, keys: str) -> None:
    """The error names the property and the type, also when the value contains itself."""
    device.returns = {1, 1j}
    read = '{"event":"PROPERTY_GET","property":"raw"%s}' % keys
    assert "raw: its value of type set: a value of type complex cannot be sent as JSON" == (
        json.loads(ask(dispatcher, read))["error"]
    )
    device.returns = [1]
    device.returns.append(device.returns)
    assert json.loads(ask(dispatcher, read))["error"].startswith("raw: its value of type list: ")


@pytest.mark.parametrize("keys", [{}, {"id": ["c", 1]}])
def test_info_that_contains_itself(dispatcher: Dispatcher, device: Device, keys: dict[str, Any]) -> None:
    """So does that of an info."""
    info: dict[str, Any] = {}
    info["info"] = info
    device.returns = (b"x", info)

    assert call(dispatcher, "image", **keys)["error"].startswith("image(): its info: ")


def test_arrays_of_version_1_are_lists(dispatcher: Dispatcher, device: Device) -> None:
    """Without an id an array is a list of numbers, or an error that says what to do."""
    device.returns = {"a": np.array([[1, 2]], ">u2")}
    assert {"a": [[1, 2]]} == call(dispatcher, "give")["result"]
    device.returns = np.zeros((1 << 20) + 1, bool)
    assert "is not sent as a list: use a client of protocol version 2" in call(dispatcher, "give")["error"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [None, math.nan], {"a": np.float32("nan")}])
def test_non_finite_results(dispatcher: Dispatcher, device: Device, value: Any) -> None:
    """NaN and infinities are sent as such, as result and as value."""
    device.returns = value

    expected = repr(value).replace("np.float32(nan)", "nan")

    assert expected == repr(call(dispatcher, "give")["result"])
    assert expected == repr(json.loads(ask(dispatcher, '{"event":"PROPERTY_GET","property":"raw"}'))["value"])


@pytest.mark.parametrize(
    "payload",
    [
        b"pixels", bytearray(b"pixels"), memoryview(b"pixels"), b"", bytearray(), np.arange(6, dtype=np.uint8),
        np.arange(6.0).reshape(2, 3), np.array(3), np.zeros((0, 3)), np.zeros((2, 0)), np.ones(3, complex),
        np.ones(3, ">u2"), np.ones(3, np.float16), np.ones(3, bool), np.zeros(2, [("a", "i4"), ("b", "f8")]),
        np.arange(6.0).reshape(2, 3).data,
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_any_contiguous_buffer_is_sent(dispatcher: Dispatcher, device: Device, payload: Any) -> None:
    """Buffers of every type and shape, empty ones too, travel as their bytes."""
    device.returns = (payload, {})

    head, body = dispatcher.answer(MethodCall(method="image"))

    assert (b"{}", memoryview(payload).tobytes()) == (head, bytes(body))


@pytest.mark.parametrize("request_id", [UNSET, ("c", 1)])
@pytest.mark.parametrize("is_writable", [True, False])
def test_buffer_is_sent_as_it_was(
    dispatcher: Dispatcher, device: Device, request_id: Any, is_writable: bool
) -> None:
    """What the device may write to again, while the reply is on its way, is copied, also of a view of it."""
    image = np.zeros((512, 512), np.uint8)
    device.returns = (image.view(), {})
    device.returns[0].flags.writeable = is_writable

    _, body = dispatcher.answer(MethodCall(method="image", id=request_id))
    image[0, 0] = 1

    assert bytes(1 << 18) == bytes(body)


@pytest.mark.parametrize("request_id", [UNSET, ("c", 1)])
def test_fixed_buffer_is_not_copied(dispatcher: Dispatcher, device: Device, request_id: Any) -> None:
    """What nobody can write to is sent from where it lies."""
    image = np.frombuffer(bytes(1 << 18), np.uint8).reshape(512, 512)
    device.returns = (image, {})

    _, body = dispatcher.answer(MethodCall(method="image", id=request_id))

    assert np.shares_memory(image, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("returns", "text"),
    [
        (None, "image(): a buffer method returns (buffer, dict), not NoneType"), (b"x", "not bytes"),
        ((b"x",), "not tuple"), ((b"x", {}, 1), "not tuple"), ((b"x", None), "not tuple"), ([b"x", {}], "not list"),
        (("text", {}), "image(): str is no C-contiguous buffer"), ((3, {}), "int is no C-contiguous buffer"),
        ((np.zeros((4, 4)).T[::2], {}), "ndarray is no C-contiguous buffer"),
        ((np.array([None, 1]), {}), "ndarray is no C-contiguous buffer: it holds Python objects"),
        ((np.array([None]).data, {}), "memoryview is no C-contiguous buffer: it holds Python objects"),
        ((np.zeros(2, "M8[s]"), {}), "ndarray is no C-contiguous buffer"),
        ((b"x", {"a": 1j}), "image(): its info: a value of type complex cannot be sent"),
        ((b"x", {1j: 1}), "image(): its info: "),
    ],
)  # fmt: skip
def test_buffer_that_cannot_be_sent(dispatcher: Dispatcher, device: Device, returns: Any, text: str) -> None:
    """One frame says what a buffer method has to return, or what of it cannot be sent."""
    device.returns = returns

    assert text in call(dispatcher, "image")["error"]


def test_only_calls_need_the_device(dispatcher: Dispatcher) -> None:
    """Whatever is no declared member is answered at once, by any thread."""
    requests = {
        '{"event":"METHOD_CALL","method":"add"}': True,
        '{"event":"METHOD_CALL","method":"X"}': False,
        '{"event":"PROPERTY_GET","property":"position"}': True,
        '{"event":"PROPERTY_SET","property":"position","value":"wrong"}': True,
        '{"event":"PROPERTY_GET","property":"X"}': False,
        '{"event":"GET_INVENTORY"}': False,
        '{"event":"PING"}': False,
        '{"event":"NEW"}': False,
    }

    assert requests == {text: dispatcher.is_call(parse_request([text.encode()], LIMIT)) for text in requests}


def test_expired_call(dispatcher: Dispatcher, device: Device) -> None:
    """A call whose time ran out in the queue is told so."""
    (frame,) = dispatcher.expired(MethodCall(method="add", id=("c", 1)))
    reply = json.loads(frame)

    assert ("rpc_kit.errors.CallExpired", "add: the caller's time ran out in the queue") == (
        reply["error_type"],
        reply["error"],
    )


def test_further_messages(device: Device) -> None:
    """A server may answer more messages, and other than usual; a handler that raises is a failure reply."""

    def register(request: Register) -> Frames:
        return [request.payload.name.encode()]

    control = {Register: register, GetInventory: lambda request: 1 / 0, Malformed: lambda request: [b"unsupported"]}
    dispatcher = Dispatcher(device, Interface.of(Device), Host(), ReplyWriter("e0"), control)

    assert [b"a"] == dispatcher.answer(Register(payload=Registration("t", "tcp://h:1", "a")))
    assert b"unsupported" == ask(dispatcher, "[]")
    assert "division by zero" == json.loads(ask(dispatcher, '{"event":"GET_INVENTORY"}'))["error"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
request_ids = st.just(UNSET) | st.tuples(st.text(max_size=64), st.integers())
requests = st.one_of(
    st.binary(max_size=40).map(lambda frame: parse_request([frame], LIMIT)),
    json_values.map(lambda value: parse_request([json.dumps(value).encode()], LIMIT)),
    st.builds(
        MethodCall,
        id=request_ids,
        method=st.sampled_from(["add", "configure", "give", "image", "fail", "chain", "_stop"]) | st.text(max_size=4),
        params=st.builds(
            Params,
            st.lists(json_values, max_size=3),
            st.dictionaries(st.sampled_from(["a", "setting", "flag", "self"]) | st.text(), json_values, max_size=3),
        ),
    ),
    st.builds(Ping, id=request_ids, call=request_ids),
    st.sampled_from(["PROPERTY_GET", "PROPERTY_SET"]).flatmap(
        lambda event: st.fixed_dictionaries(
            {
                "event": st.just(event),
                "property": st.sampled_from(["position", "raw", "broken", "x"]),
                "value": json_values,
            }
        ).map(lambda value: parse_request([json.dumps(value).encode()], LIMIT))
    ),
)


@given(requests, json_values)
@settings(derandomize=True, deadline=None, max_examples=300)
@example(parse_request([b'{"event":"METHOD_CALL","method":"x","id":["\\ud800",1],"y":NaN}'], LIMIT), None)
def test_any_request_gets_one_reply(request_: AnyRequest, returns: Any) -> None:
    """Whatever is asked, the answer is one reply of JSON, and never an exception."""
    device = Device()
    device.returns = returns
    frames = make(device).answer(request_)

    assert 1 == len(frames)
    reply = json.loads(bytes(frames[0]))
    assert isinstance(reply.get("success", True), bool)


def later(dispatcher: Dispatcher, device: Device, name: str = "give", **keys: Any) -> tuple[Any, Pending, Future[Any]]:
    """A call whose method returns a future: its request, its pending reply, and the future."""
    device.returns = Future()
    request_ = MethodCall(method=name, **keys)
    pending = dispatcher.answer(request_)
    assert isinstance(pending, Pending)
    return request_, pending, device.returns


def test_future(dispatcher: Dispatcher, device: Device) -> None:
    """The reply to a method that returns a future is made of the future's result."""
    request_, pending, future = later(dispatcher, device)
    future.set_result({"a": 1})

    assert [b'{"success":true,"result":{"a":1}}'] == dispatcher.settle(request_, pending)


def test_future_in_version_2(dispatcher: Dispatcher, device: Device) -> None:
    """Id and epoch come back as with any other reply."""
    request_, pending, future = later(dispatcher, device, id=("c", 1))
    future.set_result(None)

    assert [b'{"success":true,"result":null,"id":["c",1],"epoch":"e0"}'] == dispatcher.settle(request_, pending)


@pytest.mark.parametrize(("exc", "error_type", "error"), RAISED, ids=lambda each: type(each).__name__)
def test_future_that_fails(
    dispatcher: Dispatcher, device: Device, exc: BaseException, error_type: str, error: str
) -> None:
    """What the future fails with is a failure reply, as what the method raises."""
    request_, pending, future = later(dispatcher, device, id=("c", 1))
    future.set_exception(exc)
    reply = json.loads(bytes(dispatcher.settle(request_, pending)[0]))

    assert (False, error_type) == (reply["success"], reply["error_type"])
    assert reply["error"].startswith(error)


def test_future_that_is_cancelled(dispatcher: Dispatcher, device: Device) -> None:
    """That is a failure, too."""
    request_, pending, future = later(dispatcher, device, id=("c", 1))
    assert future.cancel()
    reply = json.loads(bytes(dispatcher.settle(request_, pending)[0]))

    assert (False, "concurrent.futures._base.CancelledError") == (reply["success"], reply["error_type"])


@pytest.mark.parametrize("result", [object(), {1: 1j}, "\ud800"])
def test_result_of_future_that_cannot_be_sent(dispatcher: Dispatcher, device: Device, result: Any) -> None:
    """The error names the member and the type."""
    request_, pending, future = later(dispatcher, device, id=("c", 1))
    future.set_result(result)
    reply = json.loads(bytes(dispatcher.settle(request_, pending)[0]))

    assert reply["error"].startswith(f"give(): its result of type {type(result).__name__}: ")
    assert "rpc_kit.errors.SerializationError" == reply["error_type"]


def test_future_of_buffer_method(dispatcher: Dispatcher, device: Device) -> None:
    """A buffer method may return a future of what it returns otherwise."""
    request_, pending, future = later(dispatcher, device, "image")
    future.set_result((b"pixels", {"shape": [2, 3]}))
    assert [b'{"shape":[2,3]}', b"pixels"] == dispatcher.settle(request_, pending)
    request_, pending, future = later(dispatcher, device, "image")
    future.set_result(b"pixels")

    assert b"image(): a buffer method returns (buffer, dict), not bytes" in dispatcher.settle(request_, pending)[0]


def test_future_of_property(dispatcher: Dispatcher, device: Device) -> None:
    """A property has a value, not a future."""
    device.returns = Future()
    reply = json.loads(ask(dispatcher, '{"event":"PROPERTY_GET","property":"raw","id":["c",1]}'))

    assert reply["error"].startswith("raw: its value of type Future: ")
    assert "rpc_kit.errors.SerializationError" == reply["error_type"]


def test_future_in_result(dispatcher: Dispatcher, device: Device) -> None:
    """Nor has a result futures inside."""
    device.returns = [Future()]

    assert call(dispatcher, "give")["error"].startswith("give(): its result of type list: ")
