"""The class of a device: found by its name, and what its constructor takes."""

import contextlib
import importlib
import inspect
import logging
import operator
import os
import sys
import tomllib
import traceback
import typing
from collections.abc import Mapping
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import msgspec

from ..convert import converter
from ..errors import InterfaceError
from ..interface import Interface, implemented_by
from ..server import RPCServer
from . import UsageError, one_line

logger = logging.getLogger(__name__)

_IMPORTERS = ("<frozen importlib", importlib.__file__)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def load_class(text: str) -> type[RPCServer]:
    """The class ``package.module:ClassName``.

    Raises
    ------
    UsageError
        When there is none, or it cannot be served; says why.
    """
    module_name, _, class_name = text.partition(":")
    if not all(part.isidentifier() for part in f"{module_name}.{class_name}".split(".")):
        raise UsageError(f"a class is given as package.module:ClassName, not {text!r}")
    with contextlib.suppress(FileNotFoundError):
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:
        logger.debug("%s cannot be imported", module_name, exc_info=exc)
        where = f"by {sys.executable} in {os.getcwd()}"
        raise UsageError(f"{module_name} cannot be imported: {_import_error(exc)}; {where}") from exc
    try:
        found = operator.attrgetter(class_name)(module)
    except AttributeError:
        raise UsageError(f"{module_name} has no class {class_name}") from None
    if not isinstance(found, type) or not issubclass(found, RPCServer) or found is RPCServer:
        raise UsageError(f"{text} is no subclass of RPCServer")
    if inspect.isabstract(found):
        lacking: frozenset[str] = getattr(found, "__abstractmethods__")  # noqa: B009 - mypy does not know it
        raise UsageError(f"{text} is abstract: it lacks {', '.join(sorted(lacking))}")
    try:
        Interface.of(found)
    except InterfaceError as exc:
        raise UsageError(str(exc)) from exc
    return found


def _import_error(error: BaseException) -> str:
    """What failed, and the last line of the program that it came from: often it is another import."""
    text = one_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {one_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)[1:]
    places = [f"{each.filename}:{each.lineno}" for each in frames if not each.filename.startswith(_IMPORTERS)]
    return f"{text} ({places[-1]})" if places else text


def type_of(cls: type[RPCServer]) -> str:
    """The device type: the name of the interface, or else of the class, in lower case and without "server"."""
    name = implemented_by(cls, RPCServer).name.lower()
    return name.removesuffix("server") or name


def convert_settings(cls: type[RPCServer], given: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments for the class, converted to the annotations of its constructor.

    Parameters
    ----------
    given
        Values by name.
    texts
        The same from the command line, each a value in TOML or a plain text; they win.

    Raises
    ------
    UsageError
        When the class does not take one, or lacks one.
    """
    known, takes_any = _parameters(cls)
    converted = {}
    for name in {**given, **texts}:
        if name not in known and not takes_any:
            settings = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise UsageError(f"{cls.__name__} has no setting {name!r}; {settings}")
        expected = _annotation(*known[name]) if name in known else Any
        try:
            converted[name] = _from_text(texts[name], expected) if name in texts else _convert(given[name], expected)
        except TypeError as exc:
            raise UsageError(f"setting {name!r}: {one_line(exc)}") from exc
    try:
        inspect.signature(cls.__init__).bind("self", "context", "url", **converted)
    except TypeError as exc:
        raise UsageError(f"{cls.__name__} cannot be made with these settings: {exc}") from exc
    return converted


def _parameters(cls: type[RPCServer]) -> tuple[dict[str, tuple[Any, inspect.Parameter]], bool]:
    """What constructors take after context and url, each with its function, and whether they take anything else too.

    What a class takes as ``**options`` it may pass on to the next one.
    """
    known: dict[str, tuple[Any, inspect.Parameter]] = {}
    passes_on: list[bool] = []
    for function in (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)):
        _, *parameters = inspect.signature(function).parameters.values()
        positional = [each for each in parameters if each.kind in _POSITIONAL]
        named = [*positional[2:], *(each for each in parameters if each.kind is each.KEYWORD_ONLY)]
        for each in named:
            known.setdefault(each.name, (function, each))
        passes_on.append(any(each.kind is each.VAR_KEYWORD for each in parameters))
        if not passes_on[-1]:
            break
    return known, passes_on[0]


def _annotation(function: Any, parameter: inspect.Parameter) -> Any:
    """The type of one parameter; that of others may be known to type checkers only."""
    if parameter.annotation is parameter.empty:
        return Any
    holder: Any = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)[parameter.name]
    except Exception as exc:
        raise UsageError(f"the annotation of {parameter.name!r} cannot be resolved: {one_line(exc)}") from exc


def _from_text(text: str, expected: Any) -> Any:
    """A text is taken as it is where it is no value in TOML, or where such a value does not fit."""
    if expected is str:
        return text
    try:
        value = _toml_value(text)
    except ValueError:
        return _convert(text, expected)
    try:
        return _convert(value, expected)
    except TypeError:
        with contextlib.suppress(TypeError):
            return _convert(text, expected)
        raise


def scalar_of(text: str) -> Any:
    """The number or truth value that a text is in TOML; else the text."""
    try:
        value = _toml_value(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def _toml_value(text: str) -> Any:
    """The value that a text is in TOML; ValueError when it is none."""
    table = tomllib.loads(f"value = {text}")
    if len(table) > 1:
        raise ValueError(f"more than one value: {text!r}")
    return table["value"]


def _convert(value: Any, expected: Any) -> Any:
    try:
        return converter(expected)(value)
    except TypeError as exc:
        first = exc
    try:
        return msgspec.convert(value, expected, dec_hook=_path)
    except (TypeError, ValueError):
        raise first from None


def _path(expected: Any, value: Any) -> Any:
    """Paths are no values of JSON, but of settings."""
    if isinstance(expected, type) and issubclass(expected, PurePath) and isinstance(value, str):
        return expected(value)
    raise TypeError
