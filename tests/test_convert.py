"""Conversion by annotation, and JSON that keeps NaN and infinities."""

import collections
import decimal
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar, Union

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rpc_kit.convert import coerce_to_generic, decode_json, encode_json, is_instance_of_generic, type_text

T = TypeVar("T")
NAN, INF = math.nan, math.inf
ANYTHING = msgspec.json.Decoder()


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Binning(IntEnum):
    ONE = 1
    TWO = 2


class Trigger(Flag):
    RISING = 1
    FALLING = 2


class Status(IntFlag):
    READY = 1
    BUSY = 2


class Unit(StrEnum):
    METRE = "m"


class Gain(Enum):
    HALF = 0.5
    TWICE = 2.0


class Odd(Enum):
    PAIR = (1, 2)
    NUMBER = 3
    TEXT = "three"


@dataclass
class Point:
    x: float
    cell: tuple[int, int] = (0, 0)
    color: Color = Color.RED
    when: datetime | None = None


@dataclass(frozen=True, slots=True)
class Path:
    points: list[Point] = field(default_factory=list)
    by_id: dict[int, Point] = field(default_factory=dict)
    trigger: Trigger = Trigger.RISING
    raw: bytes = b"\xff"
    axes: set[Literal["x", "y"]] = field(default_factory=set)
    kids: "list[Path]" = field(default_factory=list)


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("negative")


class Pair(NamedTuple):
    number: int
    text: str = "x"


class Options(TypedDict):
    number: int
    text: NotRequired[str]


class Record(msgspec.Struct):
    number: int


class Plain:
    """Knows nothing of JSON."""


def through_json(value: Any, expected: Any) -> Any:
    """What arrives at the other end, converted there."""
    return coerce_to_generic(decode_json(encode_json(value), ANYTHING), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, int), (True, bool), (1.5, float), ("1", str), (None, None), (None, type(None)), (b"\xff\0", bytes),
        (bytearray(b"a"), bytearray), (-0.0, float), (5e-324, float), (0.1 + 0.2, float), (2**64 - 1, int),
        (-(2**70), int),
        ((1, "a"), tuple[int, str]), ((), tuple[()]), ((1, 2, 3), tuple[int, ...]),
        ([(1, 2), (3, 4)], list[tuple[int, int]]),
        ({1, 2}, set[int]), (frozenset({1}), frozenset[int]), ([1.0], Sequence[float]),
        ({"a": 1.0}, Mapping[str, float]),
        ({1: 2.0}, dict[int, float]), ({1.5: 2}, dict[float, int]), ({Color.RED: 2}, dict[Color, int]),
        ({Binning.TWO: (1, 2)}, dict[Binning, tuple[int, int]]),
        ({"a": [{"b": (1, Color.RED)}]}, dict[str, list[dict[str, tuple[int, Color]]]]),
        (Color.BLUE, Color), (Binning.TWO, Binning), (Trigger.RISING | Trigger.FALLING, Trigger),
        (Trigger(0), Trigger),
        (Status.READY | Status.BUSY, Status), (Unit.METRE, Unit), (Gain.HALF, Gain), (Gain.TWICE, Gain | None),
        (Odd.PAIR, Odd), (Odd.NUMBER, Odd), (Odd.TEXT, Odd), ({"a": [Odd.PAIR]}, dict[str, list[Odd]]),
        (Point(1.0, (1, 2), Color.BLUE, datetime(2020, 1, 2, 3, 4, 5, 678)), Point), (Point(2.0), Point | None),
        (Point(2.0), int | Point),
        (Path([Point(1.0)], {3: Point(2.0)}, Trigger.FALLING, b"\0", {"x"}, [Path()]), Path),
        (Box((1, 2)), Box[tuple[int, int]]),
        (Pair(1, "b"), Pair), ([Pair(1)], list[Pair]), ({"number": 1}, Options), (Record(3), Record),
        (datetime(2020, 1, 1, tzinfo=timezone.utc), datetime),
        (datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime),
        (date(2020, 1, 1), date), (time(1, 2, 3), time), (timedelta(seconds=1.5), timedelta),
        (timedelta(microseconds=-1), timedelta),
        (uuid.UUID(int=3), uuid.UUID), (decimal.Decimal("1.50"), decimal.Decimal),
        ("a", Literal["a", "b"]), (1, Literal[1, "a"]), (None, Literal[None, "a"]), (True, Literal[True]),
        (1, int | str), ("1", int | str), (None, Optional[int]), ("1", Union[int, None, str]),
        (datetime(2020, 1, 1), float | datetime),
        ([1, 2], list[int] | None), ((1, 2), tuple[int, int] | None), ([None, "null"], list[str | None]),
        (3, Annotated[int, "metres"]), (3, Annotated[int, msgspec.Meta(ge=1)]), ({"a": [1, None]}, Any),
        ([1, "a"], list), ({"a": 1}, dict), (3, object),
    ],
)  # fmt: skip
def test_round_trip(value: Any, expected: Any) -> None:
    """A value that is encoded, decoded and converted to its annotation is what it was, in type too."""
    found = through_json(value, expected)

    assert value == found
    assert type(value) is type(found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NAN, float), (INF, float), (-INF, float | None), ([1.0, NAN, None], list[float | None]),
        ((NAN, INF), tuple[float, float]),
        ({"a": NAN, "b": None}, dict[str, float | None]), ({1: NAN}, dict[int, float]),
        ({Binning.ONE: -INF}, dict[Binning, float]),
        (Point(NAN), Point), (Point(INF, when=datetime(2020, 1, 1)), Point),
        (Path([Point(-INF)], {2: Point(NAN)}), Path), (Box([NAN]), Box[list[float]]),
        ({"number": 1, "text": "NaN"}, Options), ("null", str), (["null", "NaN", NAN], list[Any]),
        ({"null": NAN}, dict[str, float]),
        (Gain.HALF, Gain), ({"a": {"b": [NAN]}}, Any),
    ],
)  # fmt: skip
def test_non_finite_floats_survive(value: Any, expected: Any) -> None:
    """NaN and infinities, wherever they stand, do not become null; texts that look like them stay as they are."""
    assert repr(value) == repr(through_json(value, expected))


def test_non_finite_floats_are_written_as_by_json() -> None:
    """The tokens are those of Python's json module, which reads them."""
    assert b"[NaN, Infinity, -Infinity, null]" == encode_json([NAN, INF, -INF, None])
    assert "[nan, inf, -inf, None]" == repr(json.loads(encode_json([NAN, INF, -INF, None])))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(1.5), b"1.5"), (np.float32(0.5), b"0.5"), (np.int8(-3), b"-3"),
        (np.uint64(2**64 - 1), b"18446744073709551615"),
        (np.bool_(True), b"true"), (np.str_("a"), b'"a"'), (np.float32(NAN), b"NaN"),
        ([np.float64(INF)], b"[Infinity]"),
        ((np.int16(1), {"a": np.float32(2)}), b'[1,{"a":2.0}]'),
        (
            Point(np.float32(NAN), (np.int8(1), np.int8(2))),
            b'{"x": NaN, "cell": [1, 2], "color": "red", "when": null}',
        ),
        ({np.int64(1): 2}, b'{"1":2}'), (collections.OrderedDict(a=1), b'{"a":1}'),
        (collections.Counter("a"), b'{"a":1}'), (np.zeros((1, 2)), b"[[0.0,0.0]]"), (np.array(NAN), b"NaN"),
        ({"a": np.array(["b"])}, b'{"a":["b"]}'), ([np.array([True])], b"[[true]]"),
    ],
)  # fmt: skip
def test_numpy_values_and_subclasses_are_encoded(value: Any, expected: bytes) -> None:
    """NumPy's scalars and arrays, nested too, and subclasses of the plain types are written as what they stand for."""
    assert expected == encode_json(value)


@pytest.mark.parametrize(
    ("value", "expected", "converted"),
    [
        (1, float, 1.0), (2**70, float, 2.0**70), ([1, 2], tuple[int, int], (1, 2)),
        ((1, 2), list[int], [1, 2]), ([1, 1], set[int], {1}),
        ([1, [2, 3]], tuple[float, tuple[int, ...]], (1.0, (2, 3))), ({"1": 2}, dict[int, int], {1: 2}),
        ("red", Color, Color.RED),
        (1, Binning, Binning.ONE), (3, Trigger, Trigger.RISING | Trigger.FALLING), (Binning.TWO, int, 2),
        (2, Gain, Gain.TWICE), ([1, 2], Odd, Odd.PAIR),
        ({"x": 1}, Point, Point(1.0)), ({"x": 1, "unknown": 2}, Point, Point(1.0)),
        ([1, "b"], Pair, Pair(1, "b")), ("PT5S", timedelta, timedelta(seconds=5)),
        ("2020-01-02T03:04:05", datetime, datetime(2020, 1, 2, 3, 4, 5)), ([1], (tuple[int], str), (1,)),
        (1, bool | float, 1.0),
        (np.float32(0.5), float, 0.5), (np.int64(2), int, 2), (np.int64(2), float, 2.0),
        (np.bool_(True), bool, True), ([np.int8(1)], tuple[int], (1,)),
        (1.5, np.float32, np.float32(1.5)), (0.1, np.float32, np.float32(0.1)), (INF, np.float32, np.float32(INF)),
        (True, np.bool_, np.True_), (7, np.int16, np.int16(7)),
        ({"a": np.int8(1)}, dict[str, int], {"a": 1}),
    ],
)  # fmt: skip
def test_coercion(value: Any, expected: Any, converted: Any) -> None:
    """A value of another type is converted where nothing is lost by it."""
    found = coerce_to_generic(value, expected)

    assert converted == found
    assert type(converted) is type(found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, int), (True, float), (1, bool), (0, bool), (np.bool_(True), int), (1.0, int), (1.5, int),
        (np.float64(2), int), ("1", int), ("1.5", float), (1, str),
        (b"1", str), (datetime(2020, 1, 1), str), (uuid.UUID(int=3), str), (10**400, float), (None, int), (1, None),
        ("", None), ("ab", list[str]), ("ab", list),
        ("ab", set[str]), ("ab", tuple[str, str]), ("ab", Sequence[str]),
        ("ab", Iterable[str]), (b"ab", list[int]), ([1], dict[str, int]), ({"a": 1}, list[str]),
        ([1, "a"], list[int]), ([1], tuple[int, int]), ([1, 2, 3], tuple[int, int]),
        ([1, ["a"]], tuple[int, list[int]]), ({"x": 1}, dict[int, int]), ({1: 2}, dict[str, int]),
        ({"a": "b"}, dict[str, int]), ([[1]], set[list[int]]),
        ("green", Color), ("RED", Color), (3, Binning), (True, Binning), (1.0, Binning), (4, Trigger),
        (0.25, Gain), ("0.5", Gain), ([1, 3], Odd), (True, Odd),
        ({}, Point), ({"x": "1"}, Point), ({"x": 1, "cell": [1]}, Point), ([1.0], Point),
        ({"value": -1}, Positive), ({"content": "a"}, Box[int]),
        ({"text": "a"}, Options), ([1, 2], Pair), ({"number": 1}, Pair), ("2020-01-01", datetime),
        ("soon", datetime), (5, datetime), (5.0, timedelta), (date(2020, 1, 1), datetime),
        ("a", Optional[int]), (True, int | str), (True, Optional[int]), ("c", Literal["a", "b"]),
        (True, Literal[1]), (1, Literal[True]), (1.0, Literal[1]), (1.5, (int, str)),
        (0, Annotated[int, msgspec.Meta(ge=1)]), (1, Plain), (np.zeros(2), list[int]), ([1, [2, 3]], np.ndarray),
        (70_000, np.int16), (1.5, np.int16), (True, np.int16), (1, np.bool_),
        ("1.5", np.float64), (1e300, np.float32), (NAN, np.int16), (10**400, np.float64), (1, np.str_),
    ],
)  # fmt: skip
def test_what_cannot_be_coerced_is_a_type_error(value: Any, expected: Any) -> None:
    """Text is never a number or a list, a bool no int, and nothing is cut off; the error has both types."""
    with pytest.raises(TypeError) as caught:
        coerce_to_generic(value, expected)

    assert str(caught.value).startswith(f"expected {type_text(expected)}, got {type_text(type(value))}")


@pytest.mark.parametrize("expected", [str, list[int], float, Color, Point, str | Plain])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_integer_of_wrong_type(expected: Any, sign: int) -> None:
    """An integer that Python refuses to write is a TypeError like any other."""
    with pytest.raises(TypeError, match="got int$"):
        coerce_to_generic(sign * 10**5000, expected)


@pytest.mark.parametrize(
    ("value", "expected", "text"),
    [
        ("x", int, "expected int, got str ('x')"),
        (3, Color, f"expected {__name__}.Color, got int (3)"),
        ([1, "a"], list[int], "expected list[int], got list (Expected `int`, got `str` - at `value[1]`)"),
        ({"cell": [1]}, Options, f"expected {__name__}.Options, got dict"),
        ("x" * 100, int, "expected int, got str"),
        (None, int | str, "expected int | str, got NoneType"),
        (None, (int, list[int]), "expected int or list[int], got NoneType"),
        (3, NDArray[np.uint8], "expected NDArray[numpy.uint8], got int (3): it is no array"),
        (np.zeros(1), NDArray[np.uint8], "expected NDArray[numpy.uint8], got numpy.ndarray: its dtype is float64"),
        (3, np.ndarray, "expected numpy.ndarray, got int (3): it is no array"),
    ],
)  # fmt: skip
def test_text_of_mismatch(value: Any, expected: Any, text: str) -> None:
    """The text says what was expected and what came, and where in a nested value the fault is."""
    with pytest.raises(TypeError) as caught:
        coerce_to_generic(value, expected)

    assert text == str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Plain(), Plain), (type("Sub", (Plain,), {})(), Plain), (pathlib.Path("/a"), pathlib.Path),
        (ValueError("x"), Exception), (len, Callable), (len, Callable[[Any], int]),
        (Plain, type), (Plain, type[Plain]), (np.zeros(2), np.ndarray), (1 + 2j, complex),
        (Plain(), int | Plain), (print, Any), (Plain(), object), (print, T),
        (Point("no check of what is one already"), Point), (Color.RED, Color), (lambda: 1, object),
    ],
)  # fmt: skip
def test_what_is_one_already_stays_itself(value: Any, expected: Any) -> None:
    """A value that is an instance is given back itself, also of classes that have no JSON form."""
    assert value is coerce_to_generic(value, expected)


@pytest.mark.parametrize("expected", [Any, list])
def test_value_that_contains_itself(expected: Any) -> None:
    """A list that contains itself is a list, but is not encoded."""
    value: list[Any] = []
    value.append(value)

    assert value is coerce_to_generic(value, expected)
    with pytest.raises(ValueError, match="contains itself|recursion"):
        encode_json(value)


@pytest.mark.parametrize(
    ("value", "expected", "holds"),
    [
        (1, int, True), ("1", int, False), (1, Any, True), (1, T, True), (None, None, True), (0, None, False),
        (None, Optional[int], True), ("a", int | str, True),
        (1.5, int | str, False), (1, (int, str), True), (1.5, (int, str), False), ([1], (str, list[int]), True),
        (["a"], (str, list[int]), False), (1, (), False),
        ([], list[int], True), ([1, "a"], list[int], False), ((1,), list[int], False), ([1], list, True),
        ({1}, set[int], True), ({"a"}, set[int], False), (frozenset({1}), frozenset[int], True),
        ({"a": 1}, dict[str, int], True), ({1: 1}, dict[str, int], False), ({"a": "b"}, dict[str, int], False),
        ({"a": [1]}, dict[str, list[int]], True), ({"a": ["b"]}, dict[str, list[int]], False),
        ((1, "a"), tuple[int, str], True), ((1,), tuple[int, str], False), ((1, 2), tuple[int, str], False),
        ((1, 2, 3), tuple[int, ...], True), ((), tuple[int, ...], True), ((1, "a"), tuple[int, ...], False),
        ((), tuple[()], True), ((1,), tuple[()], False), ([1, 2], tuple[int, int], False),
        ([[1], ["a"]], list[list[int] | list[str]], True), ([[1, "a"]], list[list[int] | list[str]], False),
        ("ab", Sequence[str], False), ("ab", Iterable[str], False), (b"ab", Sequence[int], False),
        ((1, 2), Sequence[int], True), ([1], Iterable[int], True), ({"a": 1}, Mapping[str, int], True),
        ("a", Literal["a", "b"], True), ("c", Literal["a"], False), (True, Literal[1], False),
        (1, Annotated[int, "x"], True), (Color.RED, Color, True), ("red", Color, False), (Point(1.0), Point, True),
        (np.zeros(2), np.ndarray, True), (len, Callable[[Any], int], True), (Plain, type[Plain], True),
    ],
)  # fmt: skip
def test_is_instance_of_generic(value: Any, expected: Any, holds: bool) -> None:
    """The check includes the contents, and never converts."""
    assert holds is is_instance_of_generic(value, expected)


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (Plain(), "Plain"), ([{"a": (Plain(),)}], "Plain"), (Box(Plain()), "Plain"), (1 + 2j, "complex"),
        ({"a": range(3)}, "range"),
        (print, "builtin_function_or_method"), (ValueError("x"), "ValueError"),
        ((each for each in ()), "generator"),
    ],
)  # fmt: skip
def test_what_has_no_json_form(value: Any, culprit: str) -> None:
    """The error names the type that cannot be sent, however deep it stands."""
    with pytest.raises(TypeError, match=f"a value of type (.*\\.)?{culprit} cannot be sent as JSON"):
        encode_json(value)


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, 10**5000], ids=["text", "key", "digits"])
def test_what_json_cannot_write(value: Any) -> None:
    """Half of a surrogate pair, and integers of thousands of digits, are a ValueError."""
    with pytest.raises(ValueError):
        encode_json(value)


def nested(depth: int, core: bytes = b"") -> bytes:
    return b"[" * depth + core + b"]" * depth


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"nul", b"\xff", b"[1,]", b'"a', b"'a'", b"01", b"[NaN", b"NaN NaN",
        b"-NaN", nested(100_000), nested(100_000, b"NaN"), b"[" * 100_000,
        b'["\\ud800"]', b'["\\ud800", NaN]', b'{"\\ud800": NaN}', b'["\\udc00\\ud800", NaN]',
        b"9" * 5000, b"[NaN, " + b"9" * 5000 + b"]", b"\xef\xbb\xbf1", "NaN".encode("utf-16"),
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_what_is_not_json(text: bytes) -> None:
    """Text that is not JSON, nested too deep, or not Unicode, is a ValueError, with NaN in it or without."""
    with pytest.raises(ValueError):
        decode_json(text, ANYTHING)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decode_takes_any_buffer(kind: Callable[[bytes], Any]) -> None:
    """Frames need not be copied to bytes; escapes next to NaN are read."""
    assert '["é😀", nan]' == repr(decode_json(kind(b'["\\u00e9\\ud83d\\ude00", NaN]'), ANYTHING)).replace("'", '"')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
@settings(derandomize=True, deadline=None)
def test_any_json_value_round_trips(value: Any) -> None:
    """Whatever JSON can hold comes back the same, and the standard library reads the same."""
    text = encode_json(value)

    assert repr(value) == repr(decode_json(text, ANYTHING))
    assert repr(value) == repr(json.loads(text))


TYPES = [
    int, float, str, list[int], tuple[int, ...], dict[str, float], Color, Gain, Point, Pair, datetime, Optional[bool],
    Literal[1, "a"], set[str], list[str] | tuple[int, int],
]  # fmt: skip


@given(JSON, st.sampled_from(TYPES))
@settings(derandomize=True, deadline=None)
def test_any_json_value_is_converted_or_refused(value: Any, expected: Any) -> None:
    """A conversion ends with a value of the type, or with a TypeError."""
    try:
        found = coerce_to_generic(value, expected)
    except TypeError:
        return
    assert is_instance_of_generic(found, expected)


def test_alias_of_an_array_type() -> None:
    """NDArray, an alias of Python's own from NumPy 2.5 on, means an array."""
    array = np.zeros(3, np.uint8)

    assert array is coerce_to_generic(array, NDArray[np.uint8])
    assert (True, False) == tuple(is_instance_of_generic(value, NDArray[np.uint8]) for value in (array, [0]))


U1 = NDArray[np.uint8]


@dataclass
class Shot:
    image: np.ndarray
    gain: float = 1.0
    histogram: list[int] = field(default_factory=list)
    mask: NDArray[np.bool_] | None = None


class Frame(msgspec.Struct):
    image: U1


class Scanned(TypedDict):
    lines: dict[str, list[U1]]


IMAGE = np.arange(6, dtype=np.uint8).reshape(2, 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (IMAGE, np.ndarray), (IMAGE, U1), (IMAGE, U1 | None), (IMAGE, Optional[np.ndarray]), (IMAGE, int | U1),
        (IMAGE, list[int] | U1), (IMAGE, NDArray[np.float64] | U1), (IMAGE, (int, U1)), (IMAGE, Any), (IMAGE, object),
        (IMAGE, Annotated[U1, "an image"]), (IMAGE, NDArray[np.integer]), (IMAGE, np.ndarray[Any, np.dtype[np.uint8]]),
        (IMAGE, np.ndarray[tuple[int, int], np.dtype[Any]]),
    ],
)  # fmt: skip
def test_array_stays_itself(value: Any, expected: Any) -> None:
    """An array of the annotated dtype is not copied, in a union too."""
    assert value is coerce_to_generic(value, expected)
    assert is_instance_of_generic(value, expected)


@pytest.mark.parametrize(
    ("value", "expected", "where"),
    [
        ([IMAGE, IMAGE], list[U1], lambda made: made[1]), ((IMAGE, 1), tuple[U1, int], lambda made: made[0]),
        ({"a": [IMAGE]}, dict[str, list[U1]], lambda made: made["a"][0]),
        ([IMAGE], list[U1 | None], lambda made: made[0]), ({"image": IMAGE}, Shot, lambda made: made.image),
        ({"image": IMAGE}, Frame, lambda made: made.image),
        ({"lines": {"a": [IMAGE]}}, Scanned, lambda made: made["lines"]["a"][0]),
        ([{"image": IMAGE}], list[Shot | None], lambda made: made[0].image),
        ([IMAGE, "a"], list[U1 | str], lambda made: made[0]),
        ({"image": IMAGE, "gain": np.float32(2)}, Shot, lambda made: made.image),
        ({"image": IMAGE, "histogram": np.arange(3)}, Shot, lambda made: made.image),
        ({"image": IMAGE, "histogram": [np.int8(1)]}, Shot, lambda made: made.image),
        ([IMAGE, np.float32(1), IMAGE], tuple[Any, float, U1], lambda made: made[0]),
    ],
)  # fmt: skip
def test_array_stays_itself_in_others(value: Any, expected: Any, where: Callable[[Any], Any]) -> None:
    """Nor is it in a container, whatever has to be done for what stands next to it."""
    assert IMAGE is where(coerce_to_generic(value, expected))


def test_array_for_a_list() -> None:
    """Where a list is annotated an array becomes one, and only there."""
    made = coerce_to_generic({"image": IMAGE, "histogram": np.arange(3, dtype=np.int8)}, Shot)

    assert (IMAGE.dtype, [0, 1, 2], int) == (made.image.dtype, made.histogram, type(made.histogram[0]))
    assert [[0, 1, 2], [3, 4, 5]] == coerce_to_generic(IMAGE, list[list[int]])
    assert ((0, 1, 2), {3, 4, 5}) == coerce_to_generic((IMAGE[0], IMAGE[1]), tuple[tuple[int, ...], set[int]])
    assert [0.0, 1.0, 2.0] == coerce_to_generic(IMAGE[0], list[float])


@pytest.mark.parametrize(
    ("value", "expected", "dtype"),
    [
        (IMAGE, NDArray[np.uint16], np.uint16), (IMAGE, NDArray[np.uint16] | None, np.uint16), ([1, 2], U1, np.uint8),
        ({"image": [1, 2]}, Frame, np.uint8), ([[1], [2]], list[NDArray[np.float32]], np.float32),
        ([0.5], NDArray[np.float32], np.float32), ([], U1, np.uint8), (memoryview(b"ab"), U1, np.uint8),
        ({"image": memoryview(b"ab")}, Frame, np.uint8), (IMAGE, int | NDArray[np.float64], np.float64),
        ([1, 2], NDArray[int], np.int64), (IMAGE, NDArray[float], np.float64), ([1, 2], NDArray[float], np.float64),
        ([True], NDArray[bool], np.bool_), ([1j], NDArray[complex] | None, np.complex128),
    ],
)  # fmt: skip
def test_made_into_arrays(value: Any, expected: Any, dtype: Any) -> None:
    """Wider ones are made, and ones of lists."""
    found = coerce_to_generic(value, expected)
    found = found[0] if isinstance(found, list) else getattr(found, "image", found)

    assert (np.ndarray, dtype) == (type(found), found.dtype)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (IMAGE.astype(float), NDArray[int]),
        (IMAGE.astype(int), U1), (IMAGE.astype(int), U1 | None), ({"image": IMAGE.astype(int)}, Frame),
        ({"image": IMAGE, "mask": IMAGE}, Shot), ([IMAGE.astype("f4")], list[U1]), (IMAGE, int), (IMAGE, int | str),
        (IMAGE, bytes), (IMAGE, str), (IMAGE, list[int]), (IMAGE[0], list[str]), (IMAGE[0], dict[str, int]),
        (np.zeros((1 << 20) + 1, np.uint8), list[int]), (np.array(1), list[int]), (np.array(1), int), ("ab", U1),
        (b"ab", U1), ({"a": 1}, U1), (None, U1), (3, U1), ([1, "a"], np.ndarray), ([1, [2]], np.ndarray), ([None], U1),
        (memoryview(b"ab"), str), (memoryview(b"ab"), list[int]), (memoryview(b"ab"), int),
        (np.zeros(2, "M8[s]"), memoryview), (3, memoryview), ("ab", memoryview),
    ],
    ids=lambda each: str(each)[:30].replace("\n", ""),
)  # fmt: skip
def test_what_is_refused_of_arrays(value: Any, expected: Any) -> None:
    """A dtype that would lose something, and values of another kind, are a TypeError; also deep inside."""
    with pytest.raises(TypeError) as caught:
        coerce_to_generic(value, expected)

    assert str(caught.value).startswith(f"expected {type_text(expected)}, got {type_text(type(value))}")
    assert not is_instance_of_generic(value, expected)


@pytest.mark.parametrize(
    ("value", "expected", "holds"),
    [
        (IMAGE, U1, True), (IMAGE, np.ndarray, True), (IMAGE, NDArray[Any], True), (IMAGE, NDArray[np.uint16], False),
        (IMAGE, NDArray[np.integer], True), (IMAGE, NDArray[np.floating], False), ([1], U1, False), (None, U1, False),
        (None, U1 | None, True), (IMAGE, U1 | None, True), (IMAGE.astype("f4"), U1 | None, False),
        ([IMAGE], list[U1], True), ([IMAGE, 1], list[U1], False), ([IMAGE.astype(int)], list[U1], False),
        ({"a": (IMAGE,)}, dict[str, tuple[U1]], True), (IMAGE.view(np.memmap), U1, True), (b"ab", U1, False),
        (IMAGE.astype(">u2"), NDArray[np.uint16], True), (np.zeros(1, "i4,i4"), NDArray[np.void], True),
    ],
    ids=lambda each: str(each)[:30].replace("\n", ""),
)  # fmt: skip
def test_is_instance_of_array_types(value: Any, expected: Any, holds: bool) -> None:
    """The dtype counts, the shape and the byte order do not."""
    assert holds is is_instance_of_generic(value, expected)


@pytest.mark.parametrize("expected", [bytes, bytes | None, bytearray, memoryview, Any])
@pytest.mark.parametrize("value", [b"ab", memoryview(b"ab"), "YWI="])
def test_bytes(value: Any, expected: Any) -> None:
    """Bytes come as a buffer, or as base64 from clients of version 1, and are what is annotated."""
    if isinstance(value, str) and expected in (memoryview, Any):
        return
    found = coerce_to_generic(value, expected)

    assert b"ab" == bytes(found)
    assert expected is Any or isinstance(found, expected)


ANY_TYPES = [
    *TYPES, None, bool, bytes, bytearray, list, dict, tuple, set, frozenset, dict[int, str], Mapping[str, int],
    Sequence[int], Iterable[Any], tuple[()], set[bytes], Trigger, Odd, Path, Record, Options, Frame, Shot, Plain, date,
    time, timedelta, uuid.UUID, decimal.Decimal, U1, np.ndarray, np.uint8, np.float32, memoryview, object, type,
    Callable[[Any], int], NDArray[np.float64] | None, dict[str, U1], list[U1] | dict[str, U1], complex, pathlib.Path,
]
NOT_JSON = [
    IMAGE, IMAGE[0], np.array(3), np.zeros(2, "i4,f8"), np.zeros(2, "i4,f8")[0], np.array(["a"]),
    np.zeros(2, "M8[s]"), np.datetime64(1, "s"), np.void(b"ab"), np.complex64(1), np.array([None]), np.ma.zeros(2),
    memoryview(b"ab"), b"ab", bytearray(b"ab"), np.bytes_(b"ab"), np.recarray(2, "i4,f8"),
]  # fmt: skip


@pytest.mark.parametrize("expected", ANY_TYPES, ids=str)
@pytest.mark.parametrize("place", [lambda made: made, lambda made: [made, 1], lambda made: {"image": made, "a": 1}])
def test_anything_is_converted_or_refused(place: Callable[[Any], Any], expected: Any) -> None:
    """What is no JSON is converted or a TypeError, too, of whatever it is to be and wherever it stands."""
    for value in map(place, NOT_JSON):
        try:
            found = coerce_to_generic(value, expected)
        except TypeError:
            continue
        assert is_instance_of_generic(found, expected)
