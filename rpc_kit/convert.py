"""Values between Python's types and JSON: conversion by annotation, and an encoding that keeps NaN and infinities."""

import collections.abc
import datetime
import json
import secrets
import types
from collections.abc import Callable, Iterable
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

import msgspec

from . import numpy_values

Load = Callable[[Any], Any]
T = TypeVar("T")

_UNIONS = (Union, types.UnionType)
_SEQUENCES: dict[Any, Callable[[Iterable[Any]], Any]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.MutableSequence: list,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
}
_PLAIN: tuple[type[Any], ...] = (int, float, str, dict, list)
_NO_TEXT = (
    bytes, bytearray, memoryview, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, UUID, Decimal,
)  # fmt: skip
"""Text on the wire, but not taken for a str here."""
_ARRAY = secrets.token_hex(16)
"""Stands for an array while a value is converted; no key of anybody's value."""
_REFUSED = (TypeError, ValueError, OverflowError, AttributeError)
"""What msgspec raises of a value that is no such thing; of an array that is to be a dict it asks for keys."""
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def is_instance_of_generic(value: Any, expected: Any) -> bool:
    """Whether `value` is of the type `expected`, contents included.

    Parameters
    ----------
    expected
        A class, Any, None, a union, a Literal, generics of list, set, frozenset, dict, tuple (fixed or ``...``) and of
        the abstract collections, nested at will; or a tuple of such types, meaning any of them. A str is no sequence.
    """
    expected = _resolved(expected)
    if expected is Any or isinstance(expected, TypeVar):
        return True
    if expected is None:
        return value is None
    if isinstance(expected, tuple):
        return any(is_instance_of_generic(value, arm) for arm in expected)
    origin, args = get_origin(expected), get_args(expected)
    if origin is None:
        return isinstance(value, expected)
    if origin is Annotated:
        return is_instance_of_generic(value, args[0])
    if origin in _UNIONS:
        return any(is_instance_of_generic(value, arm) for arm in args)
    if origin is Literal:
        return any(type(value) is type(arm) and value == arm for arm in args)
    if not isinstance(value, origin) or isinstance(value, (str, bytes)):
        return False
    if numpy_values.is_array_type(expected):
        return numpy_values.is_of_type(expected, value)
    if origin is tuple:
        if args[-1:] == (...,):
            return all(is_instance_of_generic(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(is_instance_of_generic, value, args))
    if origin in _SEQUENCES:
        return all(is_instance_of_generic(item, args[0]) for item in value)
    if origin in _MAPPINGS:
        return all(
            is_instance_of_generic(key, args[0]) and is_instance_of_generic(item, args[1])
            for key, item in value.items()
        )
    return True


def coerce_to_generic(value: Any, expected: Any) -> Any:
    """`value` as an `expected`: itself when it is one already, else converted without loss.

    A list becomes a tuple or a set, an int a float, a NumPy scalar a Python one, the value of an Enum its member, a
    dict a dataclass, ISO 8601 text a datetime. Text is never taken for a number or a list, nor a bool for an int.

    Parameters
    ----------
    expected
        As of `is_instance_of_generic`; also dataclasses, TypedDicts, named tuples, msgspec Structs, Enums, dates.

    Raises
    ------
    TypeError
        When it cannot be done; the text has the expected and the given type.
    """
    return converter(expected)(value)


def converter(expected: Any) -> Load:
    """The function that converts to `expected`, compiled once for each type."""
    try:
        return _cached_converter(expected)
    except TypeError:
        if _hashable(expected):
            raise
        return _compile(expected)


def _hashable(expected: Any) -> bool:
    try:
        hash(expected)
    except TypeError:
        return False
    return True


def _resolved(expected: Any) -> Any:
    """What a ``type`` alias of Python 3.12 stands for; NDArray is one in newer releases of NumPy."""
    alias = getattr(get_origin(expected) or expected, "__value__", None)
    args = get_args(expected)
    return expected if alias is None else alias[args] if args else alias


def _compile(expected: Any) -> Load:
    expected = _resolved(expected)
    if expected is Any or isinstance(expected, TypeVar):
        return _as_it_is
    if isinstance(expected, tuple):
        return _union(expected, expected)
    if numpy_values.is_array_type(expected) or expected is memoryview:
        return _array_like(expected)
    try:
        # A type in a Struct is compiled by msgspec once; a bare type is analysed anew at every conversion.
        box: Any = msgspec.defstruct("Box", [("value", expected)], array_like=True)
        msgspec.json.Decoder(box)
    except (TypeError, NotImplementedError):
        return _compile_generic(expected)

    def load(value: Any) -> Any:
        if type(value) is expected:
            return value
        try:
            return msgspec.convert((value,), box, str_keys=True, dec_hook=_from_plain).value
        except _REFUSED as exc:
            first = exc
        try:
            arrays: list[Any] = []
            tree = msgspec.to_builtins(value, enc_hook=partial(_without_arrays, arrays), builtin_types=_NO_TEXT)
        except (*_REFUSED, RecursionError):
            raise _mismatch(expected, value, str(first)) from first
        # Arrays stay arrays, unless that does not do.
        for restored in (arrays, [numpy_values.Items.of(each) for each in arrays]) if arrays else ([],):
            try:
                plain = _with_arrays(tree, restored)
                return msgspec.convert((plain,), box, str_keys=True, dec_hook=_from_plain).value
            except (*_REFUSED, RecursionError):
                continue
        raise _mismatch(expected, value, str(first)) from first

    return load


def _without_arrays(arrays: list[Any], value: Any) -> Any:
    """What is plain of a value; an array goes to the others, and leaves its number."""
    if not numpy_values.is_array(value):
        return to_plain(value)
    arrays.append(value)
    return {_ARRAY: len(arrays) - 1}


def _with_arrays(tree: Any, arrays: list[Any]) -> Any:
    """The tree with those arrays in the places of their numbers."""
    if not arrays:
        return tree
    if isinstance(tree, dict):
        if _ARRAY in tree:
            return arrays[tree[_ARRAY]]
        return {key: _with_arrays(each, arrays) for key, each in tree.items()}
    return [_with_arrays(each, arrays) for each in tree] if isinstance(tree, (list, tuple)) else tree


_cached_converter = lru_cache(maxsize=4096)(_compile)


def _compile_generic(expected: Any) -> Load:
    """For what msgspec does not take, such as a union of two list-like types."""
    origin, args = get_origin(expected), get_args(expected)
    if isinstance(expected, type) and issubclass(expected, Enum):
        return _enum(expected)
    if origin is Annotated:
        return converter(args[0])
    if origin in _UNIONS:
        return _union(expected, args)
    if origin in _SEQUENCES and args:
        make, item = _SEQUENCES[origin], converter(args[0])
        return _container(expected, lambda value: make(map(item, value)))
    if origin is tuple and args[-1:] == (...,):
        item = converter(args[0])
        return _container(expected, lambda value: tuple(map(item, value)))
    if origin is tuple:
        loads = [converter(arg) for arg in args]
        return _container(expected, lambda value: tuple(load(item) for load, item in zip(loads, value, strict=True)))
    if origin in _MAPPINGS and args:
        key, item = converter(args[0]), converter(args[1])
        return _container(expected, lambda value: {key(name): item(each) for name, each in value.items()})
    return _plain_class(expected)


def _container(expected: Any, build: Load) -> Load:
    def load(value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            raise _mismatch(expected, value)
        try:
            return build(value)
        except (TypeError, ValueError, AttributeError) as exc:
            raise _mismatch(expected, value, str(exc)) from exc

    return load


def _union(expected: Any, arms: tuple[Any, ...]) -> Load:
    loads = [converter(arm) for arm in arms]

    def load(value: Any) -> Any:
        if is_instance_of_generic(value, arms):
            return value
        for arm in loads:
            try:
                return arm(value)
            except TypeError:
                continue
        raise _mismatch(expected, value)

    return load


def _enum(expected: type[Enum]) -> Load:
    """For values that msgspec does not take: floats, tuples, or of several types."""
    loads = [(converter(type(member.value)), member) for member in expected]

    def load(value: Any) -> Any:
        if isinstance(value, expected):
            return value
        for arm, member in loads:
            try:
                if arm(value) == member.value:
                    return member
            except (TypeError, ValueError):  # arrays do not say whether they are equal
                continue
        raise _mismatch(expected, value)

    return load


def _plain_class(expected: Any) -> Load:
    if not isinstance(get_origin(expected) or expected, type):
        raise TypeError(f"{expected!r} is no type: an annotation says what a value is, such as float or np.ndarray")

    def load(value: Any) -> Any:
        if is_instance_of_generic(value, expected):
            return value
        raise _mismatch(expected, value)

    return load


def _array_like(expected: Any) -> Load:
    is_memoryview = expected is memoryview
    make = numpy_values.to_memoryview if is_memoryview else partial(numpy_values.to_array, expected)
    usual: Any = memoryview if is_memoryview else numpy_values.array_class()
    item = None if is_memoryview else numpy_values.item_type(expected)

    def load(value: Any) -> Any:
        if type(value) is usual and (item is None or issubclass(value.dtype.type, item)):
            return value
        try:
            return make(value)
        except (TypeError, ValueError) as exc:
            raise TypeError(f"{_mismatch(expected, value)}: {exc}") from exc

    return load


def _as_it_is(value: Any) -> Any:
    return value


def type_text(expected: Any) -> str:
    """How an annotation is written in an error text."""
    if isinstance(expected, tuple):
        return " or ".join(map(type_text, expected))
    if numpy_values.is_array_type(expected):
        return numpy_values.array_text(expected)
    if isinstance(expected, type) and get_origin(expected) is None:
        return expected.__qualname__ if expected.__module__ == "builtins" else _qualified(expected)
    return str(expected).replace("typing.", "")


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _mismatch(expected: Any, value: Any, detail: str = "") -> TypeError:
    text = f"expected {type_text(expected)}, got {type_text(type(value))}"
    if "$[0]" in detail and "$[0]`" not in detail:
        # msgspec says where in a nested value the fault is.
        text += f" ({detail.replace('$[0]', 'value')})"
    elif isinstance(value, (str, int, float)) and _is_short(value):
        text += f" ({value!r})"
    return TypeError(text)


def _is_short(value: str | int | float) -> bool:
    # Python refuses to write integers of thousands of digits.
    return value.bit_length() <= 128 if isinstance(value, int) else len(str(value)) <= 40


def to_plain(value: Any) -> Any:
    """What msgspec does not know by itself: NumPy's values, and subclasses of the plain types."""
    plain = numpy_values.plain(value)
    if type(plain) is not type(value):
        return plain
    for kind in _PLAIN:
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a value of type {type_text(type(value))} cannot be sent as JSON")


def _from_plain(expected: Any, value: Any) -> Any:
    """What msgspec does not make by itself: NumPy scalars, and instances of classes that it does not know."""
    if is_instance_of_generic(value, expected):
        return value
    if numpy_values.is_array_type(expected):
        return numpy_values.to_array(expected, value)
    if numpy_values.is_scalar_type(expected) and isinstance(value, (bool, int, float, str)):
        made = numpy_values.to_scalar(expected, value)
        if made is not None:
            return made
    raise TypeError(f"expected {type_text(expected)}, got {type_text(type(value))}")


encode_null = msgspec.json.Encoder(enc_hook=to_plain).encode
"""As encode_json, for values without floats: a non-finite one would become null."""


def encode_json(value: Any) -> bytes:
    """JSON text of `value`; NaN and infinities are written as Python's json module writes them.

    Raises
    ------
    TypeError
        When some part of it has no JSON form.
    ValueError
        When it is nested too deep, or holds text that is not Unicode.
    """
    try:
        text = encode_null(value)
        # msgspec writes a non-finite float as null: where there is a null, the slower way finds out which it was.
        if b"null" not in text:
            return text
        return json.dumps(msgspec.to_builtins(value, enc_hook=to_plain, str_keys=True)).encode()
    except RecursionError as exc:
        raise ValueError("the value is nested too deep, or contains itself") from exc


def decode_json(text: bytes | bytearray | memoryview, decoder: "msgspec.json.Decoder[T]") -> T:
    """What `decoder` makes of `text`, NaN and infinities included.

    Raises
    ------
    ValueError
        When it is not JSON, nested too deep, or not of the decoder's type.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        raw = bytes(text)
        if b"NaN" not in raw and b"Infinity" not in raw:
            raise
        converted: T = msgspec.convert(_loads(raw), decoder.type, str_keys=True)
        return converted
    except RecursionError as exc:
        raise ValueError("the JSON text is nested too deep") from exc


def _loads(raw: bytes) -> Any:
    try:
        found = json.loads(str(raw, "utf-8"))  # bytes would be taken for UTF-16 or 32, and surrogates let pass
        if b"\\u" in raw:
            # Half of a surrogate pair, which msgspec refuses, could not be sent back.
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except RecursionError as exc:
        raise ValueError("the JSON text is nested too deep") from exc
