"""Exceptions that can hardly be told: one failure reply each."""

import json
from typing import Any

import pytest

from rpc_kit import RPCServer
from rpc_kit.dispatch import Dispatcher
from rpc_kit.errors import RemoteError
from rpc_kit.interface import Interface
from rpc_kit.wire import ReplyWriter, parse_request
from tests.helpers import call


class Untellable:
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UntellableError(Untellable, Exception): ...


class UntellableExit(Untellable, BaseException): ...


def named(**attributes: Any) -> Exception:
    """An exception whose class says something odd of itself."""
    kind = type("OddError", (Exception,), {})
    for name, value in attributes.items():
        setattr(kind, name, value)
    made: Exception = kind("text")
    return made


def remote(error_type: Any) -> Exception:
    error = RemoteError("text")
    error.error_type = error_type
    return error


CANNOT = "(its text cannot be made)"
ODD = {
    "error without text": (UntellableError(), CANNOT, "UntellableError"),
    "exit without text": (UntellableExit(), CANNOT, "UntellableExit"),
    "exit with an object without text": (SystemExit(Untellable()), f"SystemExit: {CANNOT}", "SystemExit"),
    "surrogate in the module": (named(__module__="\udc80"), "text", "\\udc80.OddError"),
    "surrogate in the name": (named(__qualname__="\udc80", __module__="m"), "text", "m.\\udc80"),
    "module that is no text": (named(__module__=5), "text", "5.OddError"),
    "type that is no text": (remote(["a"]), "text", "['a']"),
    "type without text": (remote(Untellable()), "the call failed with 'RemoteError'", None),
}


class Device:
    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    @RPCServer.register_method_json
    def fail(self) -> None:
        raise self.raised


@pytest.mark.parametrize("name", list(ODD))
def test_exception_that_can_hardly_be_told(name: str) -> None:
    """There is one reply, with as much as can be said."""
    raised, text, error_type = ODD[name]
    dispatcher = Dispatcher(Device(raised), Interface.of(Device), Any, ReplyWriter("epoch"), None)
    frames = dispatcher.answer(parse_request([call("fail", id=["me", 1])], 1000))
    (reply,) = map(json.loads, frames)

    assert (False, ["me", 1]) == (reply["success"], reply["id"])
    assert text in reply["error"]
    assert error_type is None or reply["error_type"].endswith(error_type)
