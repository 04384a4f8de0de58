"""NumPy's values, while NumPy is there and while it is not."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rpc_kit import numpy_values
from tests.devices import LIMIT
from tests.helpers import PROJECT

WITHOUT = """
import sys, threading, zmq
from rpc_kit import RPCClient, RPCProperty, RPCServer, RPCSignal
import registry

class Stage:
    moved = RPCSignal(float)

    @RPCProperty(notify=moved, auto_notify=True)
    def position(self) -> float:
        return self._position

    @position.setter
    def position(self, value: float) -> None:
        self._position = value

    @RPCServer.register_method_json
    def echo(self, value: list[float]) -> list[float]:
        return value

    @RPCServer.register_method_buffer
    def image(self):
        return b"pixels", {"shape": (2, 3)}

class StageServer(Stage, RPCServer):
    _position = 0.0

@RPCClient.register_interface(Stage)
class StageClient(Stage, RPCClient):
    pass

with zmq.Context() as context, StageServer(context, "tcp://127.0.0.1:0") as device:
    serving = threading.Thread(target=device.serve_forever)
    serving.start()
    with StageClient(context, device.url) as client:
        client.position = 2.5
        print(client.position, client.echo([1, float("nan")]), client.image()[1])
        if sys.argv[1] == "with":
            import numpy as np
            client.position = np.float32(1.5)
            print(client.position, client.echo([np.int8(1), np.float64(2.5)]), client.echo(np.int8(1)))
        else:
            print("numpy" in sys.modules)
    device.stop_server()
    serving.join()
"""


def run(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=3 * LIMIT, check=False
    )
    return done.stdout.splitlines() + done.stderr.splitlines()[-1:]


@pytest.mark.parametrize("package", ["rpc_kit", "registry", "rpc_kit.client, rpc_kit.server, registry.__main__"])
def test_numpy_is_not_imported(package: str) -> None:
    """Whoever imports rpc_kit, or a registry, does not import NumPy with it."""
    assert ["False"] == run("-c", f"import sys, {package}; print('numpy' in sys.modules)")


def test_program_without_numpy() -> None:
    """A program with a server and a client of every kind of member needs no NumPy."""
    assert ["2.5 [1.0, nan] {'shape': [2, 3]}", "False"] == run("-c", WITHOUT, "without")


def test_numpy_that_is_imported_late() -> None:
    """NumPy scalars are taken for numbers when the program imports NumPy after the first call."""
    late = run("-c", WITHOUT, "with")

    assert "2.5 [1.0, nan] {'shape': [2, 3]}" == late[0]
    assert "TypeError: echo(): argument 'value': expected list[float], got int (1)" in late[-1]


@pytest.mark.parametrize("value", [np.zeros(2), np.float32(1.5), 1.5, None, [1]])
@pytest.mark.parametrize("imported", [True, False])
def test_values(value: Any, imported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array is an array, and it and a scalar are made plain, if NumPy was imported; all else stays as it is."""
    if not imported:
        monkeypatch.delitem(sys.modules, "numpy")
    plain = numpy_values.plain(value)
    is_numpy = imported and isinstance(value, (np.generic, np.ndarray))

    assert (imported and isinstance(value, np.ndarray)) is numpy_values.is_array(value)
    assert plain is value or (is_numpy and repr(value.tolist()) == repr(plain))
    assert is_numpy is (plain is not value)


@pytest.mark.parametrize(
    ("expected", "is_array", "is_scalar"),
    [
        (np.ndarray[Any, np.dtype[np.uint8]], True, False),
        (np.uint8, False, True), (np.bool_, False, True), (np.floating, False, True),
        (float, False, False), (list[int], False, False), (Any, False, False), (None, False, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("imported", [True, False])
def test_annotations(
    expected: Any, is_array: bool, is_scalar: bool, imported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations by arrays and by scalars are told from all others."""
    if not imported:
        monkeypatch.delitem(sys.modules, "numpy")

    assert (imported and is_array, imported and is_scalar) == (
        numpy_values.is_array_type(expected),
        numpy_values.is_scalar_type(expected),
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (np.arange(3), np.arange(3), True), (np.arange(3), [0, 1, 2], True), (np.arange(3), np.arange(4), False),
        (np.zeros((2, 2)), np.zeros(4), False), (np.arange(3), None, False), (np.zeros(0), [], True),
    ],
)  # fmt: skip
def test_same_arrays(one: Any, other: Any, same: bool) -> None:
    """Shape and content decide."""
    assert same is numpy_values.same_arrays(one, other)


@pytest.mark.parametrize(
    ("expected", "value", "made"),
    [
        (np.int8, 3, np.int8(3)), (np.uint8, 255, np.uint8(255)), (np.int8, 2.0, np.int8(2)), (np.int8, 2.5, None),
        (np.float32, 0.1, np.float32(0.1)), (np.float32, 1, np.float32(1)), (np.float32, 1e300, None),
        (np.float64, float("inf"), np.float64("inf")), (np.bool_, True, np.bool_(True)), (np.bool_, 1, None),
        (np.int8, True, None), (np.str_, "a", np.str_("a")), (np.str_, 1, None),
    ],
)  # fmt: skip
def test_to_scalar(expected: Any, value: Any, made: Any) -> None:
    """A plain value becomes a scalar if it stays what it is; a float may lose digits."""
    actual = numpy_values.to_scalar(expected, value)

    assert (type(made), made) == (type(actual), actual)


def test_nan_to_scalar() -> None:
    """NaN stays NaN."""
    actual = numpy_values.to_scalar(np.float32, float("nan"))

    assert (np.float32, True) == (type(actual), bool(np.isnan(actual)))


U1, U2, I8, F4, F8 = np.uint8, np.uint16, np.int64, np.float32, np.float64


@pytest.mark.parametrize(
    ("kind", "value", "made"),
    [
        (U1, np.array([1, 2], U1), np.array([1, 2], U1)), (U2, np.array([1, 2], U1), np.array([1, 2], U2)),
        (np.int16, np.array([1, 2], U1), np.array([1, 2], np.int16)), (F4, np.array([1], U2), np.array([1], F4)),
        (F8, np.array([0.5], F4), np.array([0.5])), (np.complex128, np.array([0.5]), np.array([0.5 + 0j])),
        (np.floating, np.array([0.5], F4), np.array([0.5], F4)), (np.number, np.zeros(1, "c8"), np.zeros(1, "c8")),
        (U2, np.array([1], ">u2"), np.array([1], ">u2")), (Any, np.array([None]), np.array([None])),
        (np.datetime64, np.array([1], "M8[s]"), np.array([1], "M8[s]")), (np.str_, ["a"], np.array(["a"])),
        (U1, memoryview(b"ab"), np.array([97, 98], U1)), (U1, [], np.array([], U1)),
        (F4, [[], []], np.zeros((2, 0), F4)), (np.bool_, [], np.array([], bool)), (Any, [], np.array([])),
        (U1, [[1, 255]], np.array([[1, 255]], U1)),
        (U1, (1, 2), np.array([1, 2], U1)), (F8, [1, 2.5], np.array([1.0, 2.5])), (F4, [0.1], np.array([0.1], F4)),
        (F4, [np.nan, np.inf], np.array([np.nan, np.inf], F4)), (np.complex64, [1, 2.5], np.array([1, 2.5], "c8")),
        (F4, [1, 2], np.array([1, 2], F4)), (np.bool_, [True, False], np.array([True, False])),
        (Any, ["a", "bc"], np.array(["a", "bc"])), (Any, [1, 2], np.array([1, 2])), (I8, [np.uint8(3)], np.array([3])),
        (np.uint64, [2**64 - 1], np.array([2**64 - 1], np.uint64)), (Any, [b"a"], np.array([b"a"])),
        (F8, [np.zeros(2, F4), np.ones(2)], np.array([[0.0, 0.0], [1.0, 1.0]])),
    ],
)  # fmt: skip
def test_to_array(kind: Any, value: Any, made: Any) -> None:
    """An array stays itself, or becomes wider; a list is one of the annotated kind if its values allow that."""
    actual = numpy_values.to_array(NDArray[kind], value)

    assert (made.dtype, made.shape) == (actual.dtype, actual.shape)
    assert made.tobytes() == actual.tobytes() or made.dtype.hasobject
    assert actual is value or made.dtype is not getattr(value, "dtype", None)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (U1, np.array([1, 2]), "its dtype is int64"), (F4, np.array([0.5]), "its dtype is float64"),
        (U1, np.array([0.5], F4), "its dtype is float32"), (U1, np.array([True]), "its dtype is bool"),
        (np.bool_, np.array([0, 1]), "its dtype is int64"), (np.str_, np.array([1]), "its dtype is int64"),
        (np.bytes_, np.array([1]), "its dtype is int64"), (np.timedelta64, np.array([1]), "its dtype is int64"),
        (np.object_, np.array([1]), "its dtype is int64"), (np.void, np.array([1]), "its dtype is int64"),
        (F8, np.array([None]), "its dtype is object"), (F8, np.zeros(1, [("a", F8)]), "its dtype is"),
        (np.int8, np.array([1], U1), "its dtype is uint8"), (np.floating, np.array([1]), "its dtype is int64"),
        (U1, [1, 256], "its dtype is int64"), (U1, [-1], "its dtype is int64"), (U1, [1.0], "its dtype is float64"),
        (U1, [True], "its dtype is bool"), (np.bool_, [0, 1], "its dtype is int64"),
        (F4, [1e300], "its dtype is float64"), (F4, [2**24 + 1], "its dtype is int64"),
        (F8, [1 + 2j], "its dtype is complex128"), (U1, [1j], "its dtype is complex128"),
        (np.str_, [1], "its dtype is int64"), (F8, ["1"], "its dtype is"),
        (np.datetime64, ["2026-01-01"], "its dtype is"), (Any, [1, "a"], "values of several kinds"),
        (Any, [True, 1], "values of several kinds"), (Any, ["a", b"a"], "values of several kinds"),
        (Any, [2**63, -1], "integers that are so far apart"), (Any, [2**64], "no array of numbers or text"),
        (Any, [None], "no array of numbers or text"), (Any, [{"a": 1}], "no array of numbers or text"),
        (Any, 3, "it is no array"), (Any, np.float32(3), "it is no array"), (Any, "abc", "it is no array"),
        (Any, b"abc", "it is no array"), (Any, None, "it is no array"), (Any, {1, 2}, "it is no array"),
    ],
)  # fmt: skip
def test_what_is_no_such_array(kind: Any, value: Any, text: str) -> None:
    """Nothing is lost, and numbers, text and truth values are not taken for each other."""
    with pytest.raises(TypeError, match=text):
        numpy_values.to_array(NDArray[kind], value)


def test_ragged_list() -> None:
    """A list of lists of several lengths is none; NumPy says why."""
    with pytest.raises(ValueError, match="inhomogeneous"):
        numpy_values.to_array(np.ndarray, [1, [2, 3]])


@pytest.mark.parametrize("value", [memoryview(b"ab"), np.array([[97], [98]], U1), np.array([97, 0, 98], U1)[::2]])
def test_to_memoryview(value: Any) -> None:
    """A buffer, or the bytes of an array, contiguous."""
    assert b"ab" == bytes(numpy_values.to_memoryview(value))


def test_items() -> None:
    """The items of an array are a list which remembers it; very many, or of no dimension, are none."""
    array = np.array([1, 2], U1)
    made = numpy_values.Items.of(array)
    many, alone = np.zeros(numpy_values.LONGEST_LIST + 1, bool), np.array(3)

    assert ([1, 2], True) == (made, array is numpy_values.to_array(np.ndarray, made))
    assert (True, True) == (many is numpy_values.Items.of(many), alone is numpy_values.Items.of(alone))


@pytest.mark.parametrize(
    "value", [np.zeros(1, complex), np.zeros(1, "M8[s]"), np.array([b"a"]), np.zeros(1, "i4,i4"),
              np.zeros(numpy_values.LONGEST_LIST + 1, bool)],
    ids=lambda each: str(each.dtype),
)  # fmt: skip
def test_array_that_is_no_list(value: Any) -> None:
    """What JSON does not have, or would be very long, is an error that says what to do."""
    with pytest.raises(TypeError, match="is not sent as a list: use a client of protocol version 2"):
        numpy_values.plain(value)
