"""Marks on methods."""

from collections.abc import Callable
from typing import Any

import pytest

from rpc_kit import RPCServer
from rpc_kit.methods import MARK, MethodMark

DECORATORS = {"json": RPCServer.register_method_json, "buffer": RPCServer.register_method_buffer}
each_kind = pytest.mark.parametrize("kind", DECORATORS)


def function() -> Callable[[Any], int]:
    """A fresh function each time, as marks stay."""

    def measure(self: Any) -> int:
        """One value."""
        return 3

    return measure


@each_kind
def test_bare_mark(kind: Any) -> None:
    """A bare mark has a limit of 10 s, and gives the function itself back."""
    method = function()

    assert method is DECORATORS[kind](method)
    assert MethodMark(kind, 10_000) == getattr(method, MARK)
    assert (3, "One value.") == (method(None), method.__doc__)


@each_kind
@pytest.mark.parametrize("timeout", [None, 1, 30_000])
def test_mark_with_timeout(kind: Any, timeout: int | None) -> None:
    """The limit is in ms; None is none."""
    method = function()

    assert method is DECORATORS[kind](timeout=timeout)(method)
    assert MethodMark(kind, timeout) == getattr(method, MARK)


@each_kind
def test_empty_parentheses(kind: Any) -> None:
    """Empty parentheses mean the default."""
    assert MethodMark(kind, 10_000) == getattr(DECORATORS[kind]()(function()), MARK)


@each_kind
@pytest.mark.parametrize("timeout", [0, -1, 1.5, True, "5", float("nan")])
def test_bad_timeout(kind: Any, timeout: Any) -> None:
    """A limit that is no positive number of ms is a TypeError where it is declared."""
    with pytest.raises(TypeError, match="timeout is a positive number"):
        DECORATORS[kind](timeout=timeout)


@each_kind
@pytest.mark.parametrize("thing", [3, "measure", property(len)])
def test_only_methods_can_be_marked(kind: Any, thing: Any) -> None:
    """Marking something else is a TypeError that says what it is."""
    with pytest.raises(TypeError, match=type(thing).__name__):
        DECORATORS[kind](thing)
