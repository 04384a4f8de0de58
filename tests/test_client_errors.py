"""Errors as the client's user sees them: of arguments, of the device, of urls and options."""

import pickle
import subprocess
import sys
import traceback
from typing import Any

import pytest

from rpc_kit import NoResult, RPCClient, RPCProperty, RPCServer, RPCSignal
from rpc_kit.errors import ClientClosed, InterfaceMismatch, RemoteError, RPCError, SerializationError
from tests.devices import LIMIT, Identified, Instrument, InstrumentClient
from tests.helpers import PROJECT


@pytest.mark.parametrize(
    ("method", "args", "text"),
    [
        ("add", ("1", 2), r"add\(\): argument 'a': expected int, got str"),
        ("add", (1, 2.5), r"add\(\): argument 'b': expected int, got float"),
        ("add", (True, 2), r"add\(\): argument 'a': expected int, got bool"),
        ("scale", (None,), r"scale\(\): argument 'value': expected float, got NoneType"),
        ("pair", ((1, 2, 3),), r"pair\(\): argument 'value': expected tuple\[int, int\], got list"),
        ("pair", ("12",), r"pair\(\): argument 'value': expected tuple\[int, int\], got str"),
        ("mode", ("slow",), r"mode\(\): argument 'value': expected .*Mode, got str"),
        ("choice", ("fast",), r"choice\(\): argument 'value': expected .*'slow', 'quick', 3.*, got str"),
        ("scan", ({"mode": "fast"},), r"scan\(\): argument 'value': expected .*Scan, got dict"),
        ("nested", ({"a": [("fast", 1)]},), r"nested\(\): argument 'value': expected dict\[str, .*, got dict"),
        ("moment", ("yesterday",), r"moment\(\): argument 'value': expected datetime.datetime, got str"),
        ("total", (1, "2"), r"total\(\): argument 'values': expected int, got str"),
    ],
)
def test_wrong_type(device: Any, client: Any, method: str, args: Any, text: str) -> None:
    """A wrong argument is a TypeError that names parameter, expected and given type; the device is not called."""
    with pytest.raises(TypeError, match=text):
        getattr(client, method)(*args)
    assert device.last is None


def test_what_cannot_be_sent(client: Any) -> None:
    """An argument without a JSON form is found before anything is sent."""
    with pytest.raises(SerializationError, match="echo: argument 1: a value of type object cannot be sent as JSON"):
        client.echo(object())
    with pytest.raises(SerializationError, match="echo: argument 1: .*(nested too deep|recursion depth)"):
        loop: list[Any] = []
        loop.append(loop)
        client.echo(loop)
    assert 3 == client.add(1, 2)


@pytest.mark.parametrize(
    ("kind", "text", "builtin", "name"),
    [
        ("ValueError", "no such range", ValueError, "ValueError"),
        ("KeyError", "missing", KeyError, "KeyError"),
        ("UnicodeDecodeError", "", UnicodeDecodeError, "UnicodeDecodeError"),
        ("DeviceFault", "overheated", RPCError, "tests.devices.DeviceFault"),
        ("SystemExit", "3", RPCError, "SystemExit"),
        ("KeyboardInterrupt", "", RPCError, "KeyboardInterrupt"),
        ("GeneratorExit", "", RPCError, "GeneratorExit"),
    ],
)
def test_remote_error(client: Any, kind: str, text: str, builtin: type, name: str) -> None:
    """What a device raises is a RemoteError, and the builtin if it was one, with text, type and traceback."""
    with pytest.raises(builtin) as caught:
        client.fail(kind, text)
    error = caught.value

    assert isinstance(error, RemoteError)
    assert (name, True) == (error.error_type, text in str(error))
    assert "raise FAULTS[kind]" in error.traceback or kind == "UnicodeDecodeError"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), name, error.traceback) == (type(copy), str(copy), copy.error_type, copy.traceback)
    assert 3 == client.add(1, 2)


def test_remote_traceback_is_printed(client: Any) -> None:
    """A printed error shows where in the device it happened."""
    with pytest.raises(ValueError, match="no such range") as caught:
        client.fail("ValueError", "no such range")
    printed = "".join(traceback.format_exception(caught.value))

    assert "Remote traceback:" in printed
    assert "devices.py" in printed.partition("Remote traceback:")[2]
    assert "rpc_kit" not in caught.value.traceback


def test_on_error_return(device: Any, connect: Any) -> None:
    """With on_error="return" a failed call or read gives a falsy NoResult; a failed set still raises."""
    client = connect(device.url, on_error="return")
    result, read = client.fail("ValueError", "no such range"), client.broken

    assert isinstance(result, NoResult)
    assert (False, "no such range", True) == (bool(result), result.error, "FAULTS" in result.traceback)
    assert ("the sensor is gone", 3) == (read.error, client.add(1, 2))
    assert "within 0.1 s" in client.impatient().error
    device.released.set()
    with pytest.raises(ValueError, match="not negative"):
        client.level = -1.0
    client.close()
    with pytest.raises(ClientClosed):
        client.add(1, 2)


def test_no_server(context: Any) -> None:
    """Where nobody listens the error says what was tried for how long."""
    text = "no inventory from tcp://127.0.0.1:1 within 0.05 s: is a server running there"
    with pytest.raises(TimeoutError, match=text):
        InstrumentClient(context, "tcp://127.0.0.1:1", timeout=50)


@pytest.mark.parametrize("url", ["tcp://*:9000", "tcp://localhost", "localhost:9000", "tcp://localhost:x", ""])
def test_wrong_url(context: Any, url: str) -> None:
    """A url that cannot be connected to is a ValueError at once."""
    with pytest.raises(ValueError, match="tcp://|no url"):
        InstrumentClient(context, url)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"liveness": 0}, {"timeout": -1}, {"on_error": "ignore"}])
def test_wrong_options(device: Any, context: Any, options: dict[str, Any]) -> None:
    """A limit that makes no sense is refused."""
    with pytest.raises(ValueError, match="positive numbers|on_error"):
        InstrumentClient(context, device.url, **options)


def test_server_of_another_interface(device: Any, context: Any) -> None:
    """Members that the server lacks are found at once, and listed."""

    class Newer(Instrument):
        colour_changed = RPCSignal(str)

        @RPCServer.register_method_json
        def blink(self) -> None: ...

        @RPCServer.register_method_buffer
        def film(self) -> Any: ...

        @RPCProperty
        def colour(self) -> str:
            raise NotImplementedError

    client = RPCClient.register_interface(Newer)(type("NewerClient", (Newer, RPCClient), {}))
    with pytest.raises(InterfaceMismatch) as caught:
        client(context, device.url)

    missing = f"{device.url} (InstrumentServer) does not serve blink, film, colour, colour_changed of Newer"
    assert (missing, True, True) == (
        str(caught.value), isinstance(caught.value, RPCError), isinstance(caught.value, TypeError)
    )  # fmt: skip


def test_server_with_more_members(device: Any, context: Any) -> None:
    """A client of a part of the interface is welcome."""
    client = RPCClient.register_interface(Identified)(type("PartClient", (Identified, RPCClient), {}))
    with client(context, device.url) as made:
        assert "SN-1" == made.serial


@pytest.mark.parametrize("name", ["add", "ticked", "buffer"])
def test_assignment_to_member(client: Any, name: str) -> None:
    """Methods and signals cannot be assigned to: a typing error would make the member unusable without a word."""
    with pytest.raises(AttributeError, match=f"{name} is a member of the interface, and nothing to assign to"):
        setattr(client, name, 3)
    client.note = "an attribute of the user's own"
    assert (3, "an attribute of the user's own") == (client.add(1, 2), client.note)


LEAVE = """
import sys, threading, zmq
from tests.devices import InstrumentClient

with zmq.Context() as context:
    client = InstrumentClient(context, sys.argv[1])
    client.ticked.connect(print)
    print(client.add(1, 2))
print([thread.name for thread in threading.enumerate()])
"""


def test_context_is_left_before_client_is_closed(device: Any) -> None:
    """Leaving `with zmq.Context()` ends the thread of an open client, and nobody complains."""
    for _ in range(5):
        run = [sys.executable, "-c", LEAVE, device.url]
        done = subprocess.run(run, cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT, check=False)

        assert ("3\n['MainThread']\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_class_that_is_no_client(context: Any) -> None:
    """Both bases are needed, and the decorator."""
    for bases in ((Instrument,), (RPCClient,), (object,)):
        with pytest.raises(RuntimeError, match="must inherit from Instrument and from RPCClient"):
            RPCClient.register_interface(Instrument)(type("Half", bases, {}))
    with pytest.raises(TypeError, match="is abstract"):
        RPCClient(context, "tcp://127.0.0.1:9000")
