"""The client as its user sees it: the interface's own signatures, types, errors and buffers."""

import inspect
import math
import pydoc
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from rpc_kit import RPCServer, RPCSignal, connect
from rpc_kit.convert import is_instance_of_generic
from rpc_kit.errors import ClientClosed, RemoteError
from tests.devices import Identified, Instrument, InstrumentClient, InstrumentServer, Mode, Point, Scan, pattern
from tests.helpers import wait_until

MEMBERS = ["add", "scale", "total", "pair", "scan", "buffer", "count"]
NOW = datetime(2026, 3, 4, 5, 6, 7, 89, UTC)


@pytest.mark.parametrize("name", MEMBERS)
def test_signature_and_docstring(name: str) -> None:
    """A client's method has the name, signature, annotations and docstring of the interface's."""
    declared, stub = getattr(Instrument, name), getattr(InstrumentClient, name)

    assert inspect.signature(declared) == inspect.signature(stub)
    assert (declared.__doc__, declared.__name__) == (stub.__doc__, stub.__name__)
    assert inspect.getfullargspec(declared) == inspect.getfullargspec(stub)


def test_help() -> None:
    """``help`` shows what the interface says."""
    text = pydoc.plain(pydoc.render_doc(InstrumentClient.add))

    assert "add(self, a: int, b: int = 1) -> int" in text
    assert "Sum of two numbers." in text
    assert "Level, V." in pydoc.plain(pydoc.render_doc(InstrumentClient))


def test_client_is_the_interface(client: Any) -> None:
    """A client is an instance of the interface, and nothing of it is abstract."""
    assert isinstance(client, Instrument)
    assert isinstance(client, Identified)
    assert not inspect.isabstract(InstrumentClient)


def test_calls(client: Any) -> None:
    """Positional and named arguments, defaults, variadic ones."""
    assert (3, 6, 9, 9) == (client.add(2), client.add(2, 4), client.add(a=4, b=5), client.add(4, b=5))
    assert (0, 6, 7.5) == (client.total(), client.total(1, 2, 3), client.total(1, 2, x=1.5, y=3))


def test_device_decides_on_defaults(serve: Any, context: Any) -> None:
    """What is left at its default is not sent: the device's own default holds, as in a local call."""

    class Other(InstrumentServer):
        def add(self, a: int, b: int = 100) -> int:
            return a + b

    with InstrumentClient(context, serve(Other).url) as client:
        assert (101, 102, 1) == (client.add(1), client.add(1, 101), client.add(1, 0))


@pytest.mark.parametrize("args", [(), (1, 2, 3)])
def test_wrong_count_is_found_at_the_client(device: Any, client: Any, args: tuple[int, ...]) -> None:
    """As with a local object a wrong number of arguments is a TypeError at once."""
    with pytest.raises(TypeError, match=r"add\(\)") as caught:
        client.add(*args)

    assert not isinstance(caught.value, RemoteError)


def test_properties(device: Any, client: Any) -> None:
    """Read, write, and the errors of getters and setters."""
    client.level = 2.5

    assert (2.5, 2.5, "SN-1") == (device.level, client.level, client.serial)
    with pytest.raises(ValueError, match="the level is not negative: -1"):
        client.level = -1.0
    with pytest.raises(OSError, match="the sensor is gone"):
        _ = client.broken
    assert 2.5 == client.level


def test_read_only_property(client: Any) -> None:
    """A property without a setter has none at the client either."""
    with pytest.raises(AttributeError, match="property 'serial' of 'InstrumentClient' object has no setter"):
        client.serial = "SN-2"
    assert (None, True) == (InstrumentClient.serial.fset, InstrumentClient.level.fset is not None)


@pytest.mark.parametrize("value", ["high", [1], None])
def test_property_of_wrong_type(device: Any, client: Any, value: Any) -> None:
    """A value of a wrong type never reaches the setter."""
    with pytest.raises(TypeError, match=f"level: expected float, got {type(value).__name__}"):
        client.level = value
    assert 1.0 == device.level


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("pair", (3, 4)),
        ("mode", Mode.EXACT),
        ("scan", Scan(Mode.FAST, [Point(1.5, -0.0)], NOW, "note")),
        ("scan", Scan(Mode.EXACT, [], NOW)),
        ("choice", "quick"),
        ("choice", 3),
        ("moment", NOW),
        ("moment", datetime(2026, 1, 2)),
        ("moment", datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2)))),
        ("maybe", None),
        ("maybe", Point(1.0, 2.0)),
        ("nested", {"a": [(Mode.FAST, Point(1.0, 2.0))], "": []}),
        ("echo", {"a": [1, 2.5, None, True, "ü€😀", {}]}),
        ("echo", 2**63),
        ("echo", ""),
    ],
)
def test_types_round_trip(device: Any, client: Any, method: str, value: Any) -> None:
    """The device gets, and the client gets back, what was sent, of the annotated type."""
    hint = inspect.signature(getattr(Instrument, method)).return_annotation
    result = getattr(client, method)(value)

    assert (value, value) == (device.last, result)
    assert type(value) is type(result)
    assert is_instance_of_generic(result, hint)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324, 1.7976931348623157e308])
def test_floats_survive(client: Any, value: float) -> None:
    """Every float survives, alone and in containers, as argument, result, property and signal."""
    received: list[float] = []
    client.level_changed.connect(received.append)
    results = [client.scale(value, 1.0), client.echo(value)]
    results += [client.echo([value, None])[0], client.echo({"a": value})["a"]]

    assert [repr(value)] * 4 == [repr(result) for result in results]
    if not value < 0:
        client.level = value
        assert repr(value) == repr(client.level)
        wait_until(lambda: [repr(value)] == [repr(each) for each in received])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(2.5), 5.0),
        (np.float32(0.5), 1.0),
        (np.int16(3), 6.0),
        (np.float64("nan"), math.nan),
        (3, 6.0),
    ],
)
def test_numpy_scalars(client: Any, value: Any, expected: float) -> None:
    """NumPy scalars are taken for numbers."""
    result = client.scale(value)

    assert (repr(expected), float) == (repr(result), type(result))
    assert 5 == client.add(np.int64(2), np.uint8(3))
    assert (1, 2) == client.pair((np.int32(1), np.int64(2)))
    assert [1, 2.5, True] == client.echo([np.int8(1), np.float64(2.5), np.bool_(True)])


def test_execute(device: Any, client: Any) -> None:
    """By name: the result, or error and traceback."""
    assert (True, 3) == client.execute("add", {"args": [1, 2]})
    assert (True, 5) == client.execute("add", {"args": [1], "kwargs": {"b": 4}})
    assert (True, (3, 4)) == client.execute("pair", {"args": [[3, 4]]})
    assert (True, 1) == client.execute("count", {})
    assert (False, ("Method nothing not implemented", "")) == client.execute("nothing", {})
    success, (error, remote) = client.execute("fail", {"args": ["ValueError", "no"]})
    assert (False, "no", True) == (success, error, "FAULTS" in remote)
    success, (payload, info) = client.execute("buffer", {"args": ["bytes", 3]})
    assert (True, b"\0\1\2", 3) == (success, bytes(payload), info["size"])
    with pytest.raises(TimeoutError):
        client.execute("impatient", {})
    device.released.set()


@pytest.mark.parametrize("size", [0, 2, 100_000, 30 << 20])
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "array"])
def test_buffers(client: Any, kind: str, size: int) -> None:
    """Buffers of every kind and size arrive as read-only memoryviews of bytes, with their info."""
    payload, info = client.buffer(kind, size)

    assert {"size": size, "error": None} == info
    assert (memoryview, True, "B", size) == (type(payload), payload.readonly, payload.format, payload.nbytes)
    assert np.array_equal(pattern(size), np.frombuffer(payload, np.uint8))


class Scope(ABC):
    """An interface whose values look like references to buffers."""

    noted = RPCSignal(dict[str, Any])

    @RPCServer.register_method_buffer
    @abstractmethod
    def trace(self, info: dict[str, Any], size: int) -> tuple[bytes, dict[str, Any]]: ...

    @RPCServer.register_method_json
    @abstractmethod
    def note(self, value: dict[str, Any]) -> dict[str, Any]: ...


class ScopeServer(Scope, RPCServer):
    """Gives back what it gets."""

    def trace(self, info: dict[str, Any], size: int) -> tuple[bytes, dict[str, Any]]:
        return bytes(size), info

    def note(self, value: dict[str, Any]) -> dict[str, Any]:
        self.noted.emit(value)
        return value


@pytest.mark.parametrize(
    "value", [{"$buffer": 0}, {"$buffer": [7]}, {"$buffer": [b"seven"]}, {"a": {"$buffer": 9}, "b": b"seven"}]
)
def test_keys_that_look_like_references(serve: Any, context: Any, value: dict[str, Any]) -> None:
    """A user's own key is never taken for a reference to a buffer, nor changed, by whatever way it goes."""
    client: Any = connect(serve(ScopeServer).url, Scope, context=context)
    with client, client.noted.stream("all", timeout=5.0) as events:
        assert value == client.note(value) == next(events)
        assert [value, value] == [client.trace(value, size)[1] for size in (10, 100_000)]


def test_buffer_of_array_with_shape(client: Any) -> None:
    """An array of any shape arrives as its bytes, in C order."""
    assert pattern(100).tobytes() == bytes(client.buffer("2d", 100)[0])


@pytest.mark.parametrize("kind", ["strided", "text"])
def test_buffer_that_is_none(client: Any, kind: str) -> None:
    """What is no contiguous buffer is an error that names method and type."""
    with pytest.raises(TypeError, match=r"buffer\(\): .* is no C-contiguous buffer"):
        client.buffer(kind, 100)
    assert 3 == client.add(1, 2)


def test_attributes(device: Any, client: Any) -> None:
    """What a client tells of its server."""
    assert ("InstrumentServer", device.url, 0) == (client.name, client.url, client.events_lost)


def test_context_manager(device: Any, context: Any) -> None:
    """Leaving the block closes the client; closing again changes nothing."""
    with InstrumentClient(context, device.url) as client:
        assert 3 == client.add(1, 2)
    client.close()
    for use in (lambda: client.add(1, 2), lambda: client.level, client.stop_server):
        with pytest.raises(ClientClosed):
            use()
