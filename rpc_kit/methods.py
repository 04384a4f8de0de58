"""Marks on the methods of an interface; the functions themselves stay as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_TIMEOUT = 10_000
"""Time limit of a method that declares none, ms."""

MARK = "__rpc_method__"


@dataclass(frozen=True, slots=True)
class MethodMark:
    """How a method is served; `timeout` in ms, None for no limit."""

    kind: Literal["json", "buffer"]
    timeout: int | None


@overload
def register_method_json(method: F) -> F: ...
@overload
def register_method_json(method: None = None, *, timeout: int | None = DEFAULT_TIMEOUT) -> Callable[[F], F]: ...
def register_method_json(method: F | None = None, *, timeout: int | None = DEFAULT_TIMEOUT) -> F | Callable[[F], F]:
    """Declare a method whose arguments and result travel as JSON.

    Parameters
    ----------
    timeout : int or None, default 10000
        How long a client waits for the result, ms; None for as long as the server lives.
    """
    return _mark("json", method, timeout)


@overload
def register_method_buffer(method: F) -> F: ...
@overload
def register_method_buffer(method: None = None, *, timeout: int | None = DEFAULT_TIMEOUT) -> Callable[[F], F]: ...
def register_method_buffer(method: F | None = None, *, timeout: int | None = DEFAULT_TIMEOUT) -> F | Callable[[F], F]:
    """Declare a method that returns ``(buffer, info)``: bytes, a memoryview or a C-contiguous array, and a dict.

    The buffer travels as a frame of its own, without conversion; the client gets a read-only memoryview.

    Parameters
    ----------
    timeout : int or None, default 10000
        How long a client waits for the result, ms; None for as long as the server lives.
    """
    return _mark("buffer", method, timeout)


def _mark(kind: Literal["json", "buffer"], method: F | None, timeout: int | None) -> F | Callable[[F], F]:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int) or timeout <= 0):
        raise TypeError(f"timeout is a positive number of milliseconds or None, not {timeout!r}")

    def mark(function: F) -> F:
        if not callable(function):
            raise TypeError(f"only a method can be registered, not {type(function).__name__}")
        setattr(function, MARK, MethodMark(kind, timeout))
        return function

    return mark if method is None else mark(method)
