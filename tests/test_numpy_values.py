"""NumPy's values, while NumPy is there and while it is not."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

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
