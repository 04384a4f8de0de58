"""The error tree."""

import copy
import inspect
import pickle
import traceback

import pytest

from rpc_kit import errors
from rpc_kit.errors import DeviceExit, NoResult, RemoteError, RPCError, remote_error, type_name

TREE = {
    "ProtocolError": ValueError,
    "MessageTooLarge": ValueError,
    "UnknownMember": AttributeError,
    "SerializationError": TypeError,
    "CallTimeout": TimeoutError,
    "CallExpired": TimeoutError,
    "ServerLost": ConnectionError,
    "ServerReplaced": ConnectionError,
    "ServerBusy": ConnectionError,
    "ServerStopping": ConnectionError,
    "ReplyLost": ConnectionError,
    "BufferLost": ConnectionError,
    "ClientClosed": RuntimeError,
    "InterfaceError": TypeError,
    "InterfaceMismatch": TypeError,
    "DeviceNotFound": LookupError,
    "RegistryUnreachable": ConnectionError,
    "RegistryRefused": ValueError,
    "StoreError": OSError,
    "NoRegistry": LookupError,
    "MissingExtra": ImportError,
}


class DriverError(Exception):
    """An exception of a device."""


@pytest.mark.parametrize(("name", "builtin"), TREE.items())
def test_error_is_a_builtin_too(name: str, builtin: type[Exception]) -> None:
    """Each error is an RPCError, and the builtin that a user would catch."""
    kind = getattr(errors, name)

    assert issubclass(kind, RPCError)
    assert issubclass(kind, builtin)


def test_every_error_is_in_the_tree() -> None:
    """No exception class stands outside the tree."""
    found = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}

    assert {*TREE, "RPCError", "RemoteError", "DeviceExit"} == found


@pytest.mark.parametrize(
    "kind",
    [ValueError, KeyError, OSError, FileNotFoundError, UnicodeDecodeError, ZeroDivisionError, TimeoutError, Exception],
)
def test_remote_builtin_is_caught_as_builtin(kind: type[Exception]) -> None:
    """A remote builtin exception is a RemoteError and that builtin."""
    with pytest.raises(kind) as caught:
        raise remote_error("too dark", kind.__name__, "trace")

    error = caught.value
    assert isinstance(error, RemoteError)
    assert ("too dark", kind.__name__, "trace") == (str(error), error.error_type, error.traceback)


@pytest.mark.parametrize("name", ["UnknownMember", "SerializationError", "CallExpired", "ServerStopping"])
def test_remote_error_of_ours_is_caught_as_itself(name: str) -> None:
    """Errors that a server raises on its own account are rebuilt, too."""
    assert isinstance(remote_error("x", f"rpc_kit.errors.{name}"), getattr(errors, name))


@pytest.mark.parametrize(
    "error_type",
    [
        "", "camera.DriverError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException", "StopIteration",
        "StopAsyncIteration", "ExceptionGroup", "BaseExceptionGroup", "print", "os.system", "__import__",
    ],
)  # fmt: skip
def test_other_remote_types_are_plain(error_type: str) -> None:
    """What is no builtin exception, or would end the client's loop or process, is a plain RemoteError."""
    error = remote_error("x", error_type)

    assert RemoteError is type(error)
    assert error_type == error.error_type


def test_remote_traceback_is_shown() -> None:
    """A printed RemoteError has the remote traceback below its own."""
    printed = "".join(traceback.format_exception(remote_error("too dark", "ValueError", "  in set_exposure\n")))

    assert printed.endswith("RemoteValueError: too dark\nRemote traceback:\n  in set_exposure\n")


@pytest.mark.parametrize("error_type", ["ValueError", "KeyError", "UnicodeDecodeError", "camera.DriverError"])
def test_remote_error_can_be_copied(error_type: str) -> None:
    """Pickling and copying keep type, text and traceback."""
    error = remote_error("too dark", error_type, "trace")

    for copied in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(error) is type(copied)
        assert ("too dark", error_type, "trace") == (str(copied), copied.error_type, copied.traceback)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (ValueError("x"), "ValueError"),
        (DriverError("x"), f"{__name__}.DriverError"),
        (errors.UnknownMember("x"), "rpc_kit.errors.UnknownMember"),
        (remote_error("x", "camera.DriverError"), "camera.DriverError"),
        (DeviceExit(SystemExit(3)), "SystemExit"),
    ],
)
def test_type_name(exc: Exception, expected: str) -> None:
    """Types travel by name: builtins plain, others qualified, remote ones as they came."""
    assert expected == type_name(exc)


@pytest.mark.parametrize(
    ("cause", "expected"), [(SystemExit(3), "SystemExit: 3"), (KeyboardInterrupt(), "KeyboardInterrupt")]
)
def test_device_exit_says_what_was_raised(cause: BaseException, expected: str) -> None:
    """The text names the exception even when it has none of its own."""
    assert expected == str(DeviceExit(cause))


def test_no_result_is_falsy() -> None:
    """NoResult is false and keeps text and traceback."""
    result = NoResult("too dark", "trace")

    assert not result
    assert ("too dark", "trace", "NoResult('too dark')") == (result.error, result.traceback, repr(result))
