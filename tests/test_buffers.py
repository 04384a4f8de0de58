"""Arrays and buffers inside values: what leaves a value comes back bit for bit; whatever else comes is refused."""

import array
import ctypes
import gc
import json
import math
import subprocess
import sys
import tracemalloc
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, TypeVar

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rpc_kit.buffers import (
    MOST_BUFFERS,
    Part,
    dtype_of_json,
    dtype_to_json,
    flat_bytes,
    holds_buffers,
    may_hold_buffers,
    put_back,
    receive,
    take_out,
)
from rpc_kit.convert import decode_json, encode_json
from rpc_kit.errors import BufferLost, ProtocolError, SerializationError
from rpc_kit.messages import BufferHeader, Malformed, MethodCall, Params, PropertySet
from rpc_kit.wire import parse_request, request_frame, take_buffers
from tests.devices import LIMIT
from tests.helpers import PROJECT

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
ANYTHING = msgspec.json.Decoder()
HEADERS = msgspec.json.Decoder(list[BufferHeader])

NUMBERS = [
    "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", np.dtype(np.longdouble).str,
    np.dtype(np.clongdouble).str,
]  # fmt: skip
UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "25s", "7D"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)

simple_dtypes = (
    st.sampled_from(NUMBERS)
    | st.sampled_from(["M8", "m8", *(f"{kind}[{unit}]" for kind in ("M8", "m8") for unit in UNITS)])
    | st.tuples(st.sampled_from("SUV"), st.integers(1, 5)).map(lambda found: f"{found[0]}{found[1]}")
).flatmap(lambda text: st.sampled_from("<>=").map(lambda order: np.dtype(text).newbyteorder(order)))


@st.composite
def structured(draw: Any, inner: Any) -> Any:
    """Fields in the order of their offsets or not, aligned, with gaps, and with shapes of their own."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    formats = [draw(inner) for _ in names]
    shapes = [tuple(draw(st.lists(st.integers(1, 2), max_size=2))) for _ in names]
    fields: list[Any] = [np.dtype((base, shape)) if shape else base for base, shape in zip(formats, shapes)]
    layout = draw(st.sampled_from(["packed", "aligned", "gaps", "turned"]))
    if layout in ("packed", "aligned"):
        return np.dtype(list(zip(names, fields)), align=layout == "aligned")
    gaps = [draw(st.integers(0, 3)) for _ in names]
    ends = np.cumsum([each.itemsize + gap for each, gap in zip(fields, gaps)])
    offsets = [int(end) - each.itemsize for end, each in zip(ends, fields)]
    turn = -1 if layout == "turned" else 1
    described = {"names": names[::turn], "formats": fields[::turn], "offsets": offsets[::turn]}
    return np.dtype({**described, "itemsize": int(ends[-1]) + draw(st.integers(0, 3))})


dtypes = st.recursive(simple_dtypes, structured, max_leaves=4)

LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "C": lambda made: made,
    "Fortran": np.asfortranarray,
    "transposed": lambda made: made.T,
    "axes moved": lambda made: np.moveaxis(made, 0, -1) if made.ndim else made,
    "every second": lambda made: np.repeat(made, 2, axis=-1)[..., ::2] if made.ndim else made,
    "backwards": lambda made: made[(slice(None, None, -1),) * made.ndim + (...,)],
    "broadcast": lambda made: np.broadcast_to(made, (2, *made.shape)),
    "broadcast inside": lambda made: np.broadcast_to(made[..., None], (*made.shape, 3)),
    "read-only": lambda made: np.broadcast_to(made, made.shape),
    "records": lambda made: made.view(np.recarray) if made.dtype.names else made,
}


def array_of(dtype: Any, shape: tuple[int, ...], content: bytes) -> Any:
    """An array of any bits."""
    size = dtype.itemsize * math.prod(shape)
    return np.ndarray(shape, dtype, bytearray((content * (1 + size // len(content)))[:size]) if size else b"")


arrays = st.builds(
    lambda layout, *facts: LAYOUTS[layout](array_of(*facts)),
    st.sampled_from(list(LAYOUTS)),
    dtypes,
    st.lists(st.integers(0, 3) | st.just(1), max_size=5).map(tuple),
    st.binary(min_size=1, max_size=9),
)


def arrive(value: Any) -> Any:
    """What comes of a value at the other end."""
    tree, parts = take_out(value)
    headers = HEADERS.decode(encode_json([part.header for part in parts]))
    found = receive(headers, [bytes(part.data) for part in parts], None)
    return put_back(decode_json(encode_json(tree), ANYTHING), found)


def copied(made: Any) -> Any:
    """In C order, with nothing between fields."""
    found = np.zeros(made.shape, made.dtype)
    found[...] = made
    return found


def facts(found: Any) -> Any:
    """All that makes an array, or a buffer, what it is."""
    if isinstance(found, np.ndarray):
        order = "F" if found.flags.f_contiguous and not found.flags.c_contiguous else "C"
        if not found.flags.forc:
            # Of what lies between fields there are no bytes in a copy.
            found = copied(found)
        return dtype_to_json(found.dtype), found.shape, order, found.tobytes("A")
    return bytes(found)


@given(arrays)
@DETERMINISTIC
@example(np.array(3, np.float32))
@example(np.zeros((0, 3, 0), ">c16"))
@example(np.zeros(3, "V0"))
@example(np.zeros(3, []))
@example(np.array(["", "é", "\U0010ffff"]))
@example(np.array("NaT", "M8[ns]"))
@example(np.asfortranarray(np.zeros((3, 1, 2))))
@example(np.zeros((1,) * 32))
@example(np.zeros((4, 4), "i2").diagonal())
@example(np.lib.stride_tricks.sliding_window_view(np.arange(9), 3))
def test_arrays_come_back(made: Any) -> None:
    """Any dtype, shape, memory order and content, read-only."""
    found = arrive(made)

    assert facts(made) == facts(found)
    assert (np.ndarray, False) == (type(found), found.flags.writeable)


@given(dtypes)
@DETERMINISTIC
def test_dtypes_come_back(dtype: Any) -> None:
    """A dtype is the same with all its fields, offsets and gaps, also when it travels within another one."""
    found = dtype_of_json(json.loads(json.dumps(dtype_to_json(dtype))))

    assert (dtype, dtype.itemsize, dtype.fields) == (found, found.itemsize, found.fields)
    assert dtype_to_json(dtype) == dtype_to_json(found)


def test_header_of_an_array() -> None:
    """Byte for byte what docs/wire.md says."""
    expected = [
        b'{"dtype":"|u1","shape":[2,3]}', b'{"dtype":">f8","shape":[2,3],"order":"F"}', b'{"dtype":"<M8[ns]"}',
        b'{"size":3}',
        b'{"dtype":{"names":["a","b"],"formats":["|i1",["<u2",[2]]],"offsets":[0,2],"itemsize":8},"shape":[1]}',
    ]  # fmt: skip
    described = {"names": ["a", "b"], "formats": ["i1", ("<u2", (2,))], "offsets": [0, 2], "itemsize": 8}
    values = [
        np.zeros((2, 3), np.uint8), np.zeros((2, 3), ">f8", order="F"), np.array("NaT", "M8[ns]"), b"abc",
        np.zeros(1, np.dtype(described)),
    ]  # fmt: skip

    assert expected == [msgspec.json.encode(Part(value).header) for value in values]


@dataclass
class Shot:
    image: Any
    raw: Any = b""
    more: list[Any] = field(default_factory=list)


class Record(msgspec.Struct):
    image: Any
    name: str = "a"


class Frugal(msgspec.Struct, omit_defaults=True):
    raw: bytes = b""


class Pair(NamedTuple):
    left: Any
    right: Any


def plain(value: Any) -> Any:
    """A value as it arrives where nothing says what it is."""
    if isinstance(value, (Shot, Record)):
        names = ("image", "raw", "more") if isinstance(value, Shot) else ("image", "name")
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    return facts(value) if isinstance(value, (np.ndarray, bytes, bytearray, memoryview)) else value


buffers = st.binary(max_size=5) | st.binary(max_size=5).map(bytearray) | st.binary(max_size=5).map(memoryview)
keys = st.sampled_from(["$buffer", "$buffers", "a", "", "0"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | arrays | buffers,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=2).map(OrderedDict)
        | st.frozensets(st.binary(max_size=3) | st.integers(), max_size=1)
        | st.builds(Shot, inner, inner, st.lists(inner, max_size=2))
        | st.builds(Record, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


@given(values)
@DETERMINISTIC
@example({"$buffer": np.zeros(2)})
@example({"$buffer": 0, "a": b"x"})
@example([{"$buffer": 0}, b"x"])
@example([{"$buffer": [0]}, {"$buffer": [[{"$buffer": b"y"}]]}, b"x"])
@example([{"$buffer": {"$buffer": None}}, b"x"])
@example({b"x"})
def test_values_come_back(value: Any) -> None:
    """Arrays and buffers stand anywhere in a value, next to keys that look like references to them."""
    assume(holds_buffers(value))

    assert repr(plain(value)) == repr(plain(arrive(value)))


@given(values)
@DETERMINISTIC
def test_what_holds_buffers(value: Any) -> None:
    """It is the same as that something is taken out."""
    assert holds_buffers(value) is bool(take_out(value)[1])


def test_nothing_is_marked_where_nothing_is_taken_out() -> None:
    """A default that is left out is no buffer, though it looked like one; so nobody will look for references."""
    tree, parts = take_out([Frugal(), {"$buffer": 0}])

    assert ([{}, {"$buffer": 0}], []) == (tree, parts)


def test_attrs() -> None:
    """Classes of attrs are looked into as well."""
    attrs = pytest.importorskip("attrs")

    assert holds_buffers(attrs.make_class("Shot", ["image"])(np.zeros(2)))


def test_arrays_are_not_copied() -> None:
    """What is contiguous in either order stays where it is; so do bytes."""
    image, raw = np.zeros((3, 2)), bytearray(b"abc")
    shared = [
        np.shares_memory(np.frombuffer(each, np.uint8), np.frombuffer(Part(each).data, np.uint8))
        for each in (image, image[1:].data, raw)
    ]

    assert 3 * [True] == shared
    assert np.shares_memory(image, np.frombuffer(Part(image.T).data, np.uint8))
    assert not np.shares_memory(image, np.frombuffer(Part(image[:, 0]).data, np.uint8))


class Library:
    """Owns memory that NumPy only looks at."""

    def __init__(self) -> None:
        self._memory = np.arange(5)
        described = self._memory.__array_interface__
        self.__array_interface__ = {**described, "data": (described["data"][0], True)}


def read_only(made: Any) -> Any:
    made.flags.writeable = False
    return made


@pytest.mark.parametrize(
    ("value", "fixed"),
    [
        (np.arange(5), False), (np.arange(5)[1:], False), (read_only(np.arange(5)[1:]), False),
        (read_only(np.arange(5)), True), (read_only(np.arange(5))[1:], True), (read_only(np.arange(5)).data, True),
        (np.arange(5).data.toreadonly(), False), (read_only(np.arange(5).reshape(5, 1)).T, False), (b"abc", True),
        (np.frombuffer(b"abc", np.uint8), True), (np.frombuffer(bytearray(b"abc"), np.uint8), False),
        (read_only(np.frombuffer(bytearray(b"abc"), np.uint8)), False), (memoryview(b"abc"), True),
        (memoryview(bytearray(b"abc")).toreadonly(), False), (bytearray(b"abc"), False),
        (np.broadcast_to(np.arange(5), (5,)), False), (np.asarray(Library()), False),
        (np.lib.stride_tricks.as_strided(np.arange(5), writeable=False), False),
        (np.lib.stride_tricks.sliding_window_view(read_only(np.arange(5)), 5), False), (np.arange(9)[::2], True),
    ],
)  # fmt: skip
def test_what_is_fixed(value: Any, fixed: bool) -> None:
    """Only what nobody can write to any more; the copy of what is not contiguous is nobody's."""
    assert fixed is Part(value).is_fixed()


@pytest.mark.parametrize("has_moved", [True, False])
def test_part_in_c_order(has_moved: bool) -> None:
    """An array in Fortran's order is copied, also when its bytes have gone elsewhere; others are as they are."""
    made = np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))
    part, other = Part(made), Part(made.T)
    if has_moved:
        part.move(memoryview(bytes(part.data)))
    turned = part.in_c_order()

    assert ((2, 3), "C", made.tobytes()) == (turned.header.shape, turned.header.order, bytes(turned.data))
    assert other is other.in_c_order()


def test_nothing_of_this_process_lies_between_fields() -> None:
    """A copy of a structured array has zeros where no field is, not what was in that memory before."""
    made = np.zeros(2000, {"names": ["a"], "formats": ["u1"], "offsets": [0], "itemsize": 64})[::2]
    for _ in range(5):
        before = np.full(64_000, 255, np.uint8)
        del before

        assert {0} == set(Part(made).data)


def test_memory_mapped_file(tmp_path: Path) -> None:
    """A memmap travels as an array; one that is read-only is sent without a copy."""
    made = np.memmap(tmp_path / "frames", np.uint16, "w+", shape=(3, 4))
    made[:] = np.arange(12).reshape(3, 4)
    made.flush()
    opened = np.memmap(tmp_path / "frames", np.uint16, "r", shape=(3, 4))

    assert [facts(opened)] * 2 == [facts(arrive(made)), facts(arrive(opened))]
    data = Part(opened).data
    assert (True, True) == (np.shares_memory(opened, np.frombuffer(data, np.uint8)), data.readonly)


@pytest.mark.parametrize(
    ("view", "dtype", "shape"),
    [
        (memoryview(array.array("d", [1.5, 2.5])), "<f8", (2,)), (memoryview(array.array("H", [1])), "<u2", (1,)),
        (memoryview(bytes(12)).cast("I", (3, 1)), "<u4", (3, 1)),
        (memoryview(bytes(6)).cast("B", (2, 3)), "|u1", (2, 3)),
        (memoryview(b"abcdef")[::2], "|u1", (3,)), (memoryview(b"abc")[::-1], "|u1", (3,)),
        (memoryview((ctypes.c_int16 * 3)(1, 2, 3)), "<i2", (3,)), (memoryview(np.zeros((2, 2), ">f4")), ">f4", (2, 2)),
        (memoryview(np.array(3, "?")), "|b1", ()), (memoryview(np.zeros(2, "i4,f8")), None, (2,)),
        (memoryview(np.array(["ab"])), "<U2", (1,)),
    ],
)  # fmt: skip
def test_memoryviews_with_items(view: memoryview, dtype: str | None, shape: tuple[int, ...]) -> None:
    """A memoryview of items, or with a shape, is an array at the other end."""
    found = arrive(view)

    assert (shape, view.tobytes()) == (found.shape, found.tobytes())
    assert dtype in (None, found.dtype.str)


@pytest.mark.parametrize(
    "value", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(bytearray(b"abc")).cast("c"),
              memoryview(b"abc").cast("b")],
)  # fmt: skip
def test_plain_bytes(value: Any) -> None:
    """Bytes of every kind arrive as a read-only memoryview."""
    found = arrive(value)

    assert (memoryview, "B", True, bytes(value)) == (type(found), found.format, found.readonly, bytes(found))


@pytest.mark.parametrize("made", [np.zeros((2, 3), ">i2"), np.zeros((2, 3), order="F"), np.zeros(3, "V0"), np.array(1)])
@pytest.mark.parametrize("is_writable", [True, False])
def test_flat_bytes(made: Any, is_writable: bool) -> None:
    """One dimension of bytes in the order of the memory, writable as the array is."""
    made.flags.writeable = is_writable
    found = flat_bytes(made)

    assert ("B", 1, made.tobytes("A")) == (found.format, found.ndim, bytes(found))
    assert found.readonly is (not is_writable or not made.nbytes)


STRING_DTYPE = getattr(getattr(np, "dtypes", None), "StringDType", lambda: object)()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([None, {}]), "of dtype object cannot be sent, as it holds Python objects: convert it with .astype"),
        (np.zeros(2, [("a", "i4"), ("b", [("c", object)])]), "as it holds Python objects"),
        (np.zeros(2, [("a", object, (2,))]), "as it holds Python objects"),
        (np.zeros(2, STRING_DTYPE), "as it holds Python objects"),
        (np.ma.zeros(2), "a masked array would lose its mask: send .filled(...), or data and mask"),
        (np.ma.masked, "a masked array"), (np.zeros(2, object)[:0], "as it holds Python objects"),
        (memoryview(np.array([None])), "as it holds Python objects"),
        ([b"x"] * (MOST_BUFFERS + 1), "more than 1000 arrays and buffers"),
        ([np.zeros(1)] * 600 + [b"x"] * 401, "more than 1000 arrays and buffers"),
        (memoryview(ctypes.create_string_buffer(8)).cast("B").cast("P"), "a memoryview of format 'P' cannot be sent"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [lambda value: value, lambda value: {"a": [value]}, Shot])
def test_what_cannot_be_sent(value: Any, text: str, place: Callable[[Any], Any]) -> None:
    """The error, a TypeError too, says why and what to do, wherever it stands."""
    with pytest.raises(SerializationError) as caught:
        take_out(place(value))

    assert text in str(caught.value)


def test_dtype_of_others() -> None:
    """A dtype that another package has registered looks like bytes, and is refused."""
    rational = pytest.importorskip("numpy._core._rational_tests").rational
    for made in (np.zeros(2, rational), np.zeros(2, [("a", rational)])):
        with pytest.raises(SerializationError, match="an array of dtype rational cannot be sent: convert it to one of"):
            take_out(made)


def test_most_buffers() -> None:
    """A thousand there may be."""
    value = [np.array([number]) for number in range(MOST_BUFFERS)]

    assert list(range(MOST_BUFFERS)) == [int(found[0]) for found in arrive(value)]


def test_value_that_contains_itself() -> None:
    """A RecursionError it is, and no crash."""
    value: list[Any] = [1, 2.5]
    value.append(value)
    for look in (holds_buffers, take_out):
        with pytest.raises(RecursionError):
            look(value)


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Without the garbage collector, which finds what refers to itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "place",
    [
        lambda made: made, lambda made: [made, {"$buffer": made}], Shot, Record, lambda made: (made[::2], made.data),
        lambda made: {"a": [Shot([made], made.T)]},
    ],
)  # fmt: skip
def test_array_is_free_at_once(no_gc: None, place: Callable[[Any], Any]) -> None:
    """Nothing that was made for an array refers to itself: it goes when the last who needs it forgets it."""
    made = np.zeros((4, 4))
    gone = weakref.ref(made)
    tree, parts = take_out(place(made))
    headers, frames = [part.header for part in parts], [part.data for part in parts]
    found = put_back(tree, receive(headers, frames, None))
    del made, tree, parts, headers, frames
    assert gone() is not None
    del found

    assert gone() is None


def test_refused_array_is_free_at_once(no_gc: None) -> None:
    """The same after an error, when that is forgotten."""
    made = np.zeros(4)
    gone = weakref.ref(made)
    try:
        take_out([made, np.array([None])])
    except SerializationError:
        pass
    del made

    assert gone() is None


def read(header: dict[str, Any], *frames: Any) -> Any:
    """What comes of one buffer with that header."""
    return receive(decode_json(json.dumps([header]).encode(), HEADERS), frames, None)[0]


@pytest.mark.parametrize(
    "dtype",
    [
        "O", "|O", "O8", "object", "T", "?", "P", "", "i", "i3", "i4 ", " i4", "i4\n", "i4,i4", "3i4", "(2,)i4", "a8",
        "float64", "StringDType", "V2147483648", "U536870912", "S99999999999", "i" * 1000, "<M8[s/0]", "<M8[s/2]",
        "M8[0s]", "m8[-1s]", "M8[99999999999s]", "M8[", "M8[]", "M8[x]", "i8[s]", "μ", "i4", True, 3, 1.5, [],
        ["i8"], ["i8", [2], 1], ["O", [1]], ["i8", 1], ["i8", [-1]], ["i8", [1 << 31]], ["i8", [1 << 70]],
        ["i8", [1 << 20, 1 << 20]], ["u1", [8.5, None]], ["u1", ["x"]], ["u1", [1] * 100], {}, {"names": ["a"]},
    ],
    ids=lambda each: repr(each)[:30],
)  # fmt: skip
def test_hostile_dtypes(dtype: Any) -> None:
    """What describes no dtype of numbers, text or bytes, of the size of the frame, is a ProtocolError."""
    with pytest.raises(ProtocolError) as caught:
        read({"dtype": dtype, "shape": [1]}, bytes(8))

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"formats": ["O"]}, {"formats": [["O", [2]]]}, {"formats": "O"}, {"formats": []}, {"formats": None},
        {"formats": [{"names": ["a"], "formats": ["O"], "offsets": [0], "itemsize": 8}]}, {"formats": ["i4", "O"]},
        {"names": None}, {"names": ["a", "b"]}, {"names": ["a", "a"], "formats": ["i4", "i4"]},
        {"offsets": [-4]}, {"offsets": [6]}, {"offsets": [1 << 31]}, {"offsets": [1 << 70]}, {"offsets": ["x"]},
        {"offsets": []}, {"offsets": 0}, {"offsets": [1e400]}, {"offsets": ["9" * 5000]}, {"itemsize": 3},
        {"itemsize": -8}, {"itemsize": 1 << 40}, {"itemsize": None}, {"itemsize": 1e400}, {"itemsize": 7},
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
def test_hostile_structures(change: dict[str, Any]) -> None:
    """Fields lie inside their item, do not clash, and are no objects."""
    described = {"names": ["a"], "formats": ["i4"], "offsets": [0], "itemsize": 8, **change}
    with pytest.raises(ProtocolError):
        read({"dtype": described, "shape": [1]}, bytes(8))


@pytest.mark.parametrize(("depth", "is_refused"), [(17, False), (18, True), (400, True)])
@pytest.mark.parametrize("kind", ["fields", "shapes"])
def test_depth_of_dtypes(kind: str, depth: int, is_refused: bool) -> None:
    """A dtype is nested up to a limit."""
    dtype: Any = "i8"
    for _ in range(depth):
        fields = {"names": ["a"], "formats": [dtype], "offsets": [0], "itemsize": 8}
        dtype = fields if kind == "fields" else [dtype, [1]]
    header = {"dtype": dtype, "shape": [1]}
    if is_refused:
        with pytest.raises(ProtocolError):
            read(header, bytes(8))
    else:
        assert 8 == read(header, bytes(8)).nbytes


@pytest.mark.parametrize(
    "header",
    [
        {"dtype": "u1", "shape": [9]}, {"dtype": "u1", "shape": [7]}, {"dtype": "u1", "shape": []}, {"dtype": "u1"},
        {"dtype": "u1", "shape": [0]}, {"dtype": "u1", "shape": [1 << 62, 1 << 62]},
        {"dtype": "u1", "shape": [1 << 80]},
        {"dtype": "u1", "shape": [1 << 62, 0, 1 << 62]}, {"dtype": "u1", "shape": [1] * 64 + [8]},
        {"dtype": "u1", "shape": [1 << 32, 1 << 32, 8]}, {"dtype": "u1", "shape": [1 << 62] * 1_000_000},
        {"dtype": "u1", "shape": [1 << 61], "codec": "zlib"}, {"dtype": "u1", "shape": [8], "codec": "zlib"},
        {"dtype": "u1", "shape": [2, 4], "codec": "jpeg"}, {"size": 9}, {"size": 7}, {"size": -1}, {"size": 1 << 80},
        {"size": 0}, {}, {"shape": [8]}, {"order": "F"}, {"size": 1 << 62, "codec": "zlib"},
        {"size": 8, "codec": "jpeg"}, {"codec": "zlib"},
    ],
    ids=lambda each: str(each)[:60],
)  # fmt: skip
def test_hostile_sizes(header: dict[str, Any]) -> None:
    """What is not exactly the size of its frame is a ProtocolError, without any memory for it, and soon."""
    found = HEADERS.decode(json.dumps([header]))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as caught:
            receive(found, [bytes(8)], None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "header",
    [
        {"dtype": "u1", "shape": [-8]}, {"dtype": "u1", "shape": [-2, -4]}, {"dtype": "u1", "shape": [8.0]},
        {"dtype": "u1", "shape": [True, 8]}, {"dtype": "u1", "shape": ["8"]}, {"dtype": "u1", "shape": [None, 8]},
        {"dtype": "u1", "shape": [[8]]}, {"dtype": "u1", "shape": 8}, {"dtype": "u1", "shape": None},
        {"dtype": "u1", "shape": [8], "order": "A"}, {"dtype": "u1", "shape": [8], "order": None}, {"size": 8.0},
        {"size": True}, {"size": "8"}, {"size": [8]}, {"size": 8, "codec": "gzip"}, {"size": 8, "codec": 1},
        {"size": 8, "slot": []}, {"size": 8, "slot": [1, 2, 3, 4]}, {"size": 8, "slot": [1, 2, 3, 4, 5.5]},
        {"size": 8, "slot": {"slot": 1}}, 3, None, [], "u1",
    ],
    ids=str,
)  # fmt: skip
def test_headers_of_other_types(header: Any) -> None:
    """A key of a wrong type is refused before anything is looked at; a request with it is malformed."""
    with pytest.raises(msgspec.ValidationError):
        HEADERS.decode(json.dumps([header]))
    request = {"event": "METHOD_CALL", "method": "f", "id": ["c", 1], "buffers": [header]}
    found = parse_request([json.dumps(request).encode(), bytes(8)], 1000)

    assert isinstance(found, Malformed)
    assert (ProtocolError, ("c", 1)) == (type(found.error), found.id)


@pytest.mark.parametrize(
    ("headers", "frames"),
    [(1, 0), (0, 1), (2, 1), (1, 2), (MOST_BUFFERS + 1, MOST_BUFFERS + 1), (3, 1000)],
)
def test_wrong_number_of_frames(headers: int, frames: int) -> None:
    """There is a frame for each header."""
    with pytest.raises(ProtocolError):
        receive([BufferHeader(size=1)] * headers, [b"x"] * frames, None)


def test_without_shared_memory() -> None:
    """A slot without shared memory is lost; one has no frame."""
    header = BufferHeader(size=1, slot=(0, 1, 0, 1, -1))
    with pytest.raises(BufferLost, match="there is no shared memory"):
        receive([header], [], None)
    with pytest.raises(ProtocolError, match="1 buffers are named, 1 frames came with the message"):
        receive([header], [b"x"], None)


def test_slots_and_frames() -> None:
    """Slots are asked for in the order of the headers, and have to be of the announced size, too."""
    asked: list[Any] = []

    def view(ref: Any) -> Any:
        asked.append(ref)
        return np.full(ref[3], ref[0], np.uint8)

    ref = (7, 1, 0, 2, -1)
    headers = [BufferHeader("|u1", (2,), slot=ref), BufferHeader("|u1", (1,)), BufferHeader(size=2, slot=ref)]
    found = receive(headers, [b"\1"], view)
    assert [b"\7\7", b"\1", b"\7\7"] == [bytes(each) for each in found]
    assert ([ref, ref], False) == (asked, found[0].flags.writeable)
    with pytest.raises(ProtocolError, match="a buffer of 3 bytes is announced, 2 have come"):
        receive([BufferHeader(size=3, slot=ref)], [], view)


@pytest.mark.parametrize("number", [2, -1, 1 << 70, 0.0, 1.5, True, False, "0", "", None, [], [0, 1], {}, {"a": 0}])
@pytest.mark.parametrize("place", [lambda found: found, lambda found: [[found]], lambda found: {"a": {"b": found}}])
def test_hostile_references(number: Any, place: Callable[[Any], Any]) -> None:
    """What refers to no buffer is a ProtocolError."""
    with pytest.raises(ProtocolError, match="there is no buffer .*, only 2$"):
        put_back(place({"$buffer": number}), [b"a", b"b"])


def test_references_may_be_repeated_and_left_out() -> None:
    """Buffers need not be referred to once each."""
    tree = [{"$buffer": 1}, {"a": {"$buffer": 1}, "$buffer": 1}]

    assert [b"b", {"a": b"b", "$buffer": 1}] == put_back(tree, [b"a", b"b"])


def test_tree_that_is_too_deep() -> None:
    """A ProtocolError, too."""
    tree: Any = {"$buffer": 0}
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(ProtocolError, match="nested too deep"):
        put_back(tree, [b"a"])
    while isinstance(tree, list):
        tree = tree.pop()  # or Python would end on the way down


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(NUMBERS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
lengths = st.integers(-1, 9) | st.sampled_from([1 << 31, 1 << 62, 1 << 64])
near_dtypes = st.recursive(
    st.from_regex(r"[<>|=]?[biufcmMSUVO][0-9]{0,3}(\[[0-9]{0,2}[a-zA-Z]{0,2}(/[0-9])?\])?", fullmatch=True) | junk,
    lambda inner: st.fixed_dictionaries(
        {
            "names": st.lists(st.text(max_size=1), max_size=2),
            "formats": st.lists(inner, max_size=2),
            "offsets": st.lists(lengths, max_size=2),
            "itemsize": lengths,
        }
    )
    | st.tuples(inner, st.lists(lengths, max_size=2)),
    max_leaves=4,
)
near_headers = st.fixed_dictionaries(
    {},
    optional={
        "dtype": near_dtypes,
        "shape": st.lists(lengths, max_size=3),
        "size": lengths,
        "order": st.sampled_from("CF"),
        "codec": st.sampled_from(["", "zlib", "jpeg"]),
        "slot": st.lists(lengths, min_size=5, max_size=5),
    },
)


@given(st.lists(near_headers, max_size=2), st.lists(st.binary(max_size=9), max_size=2))
@settings(DETERMINISTIC, max_examples=1000)
@example([{"dtype": "<M8[s]", "shape": [1]}], [bytes(8)])
def test_any_headers_are_read_or_refused(headers: list[Any], frames: list[bytes]) -> None:
    """Whatever arrives gives arrays within their frames, or a ProtocolError; never anything else."""
    try:
        found = receive(HEADERS.decode(json.dumps(headers)), frames, lambda ref: np.zeros(min(99, abs(ref[3])), "u1"))
    except (ProtocolError, msgspec.ValidationError):
        return
    for each in found:
        assert each.nbytes <= 99
        assert repr(each)
        assert facts(each)


references = st.recursive(
    junk | st.integers(-1, 2).map(lambda number: {"$buffer": number}),
    lambda inner: st.lists(inner, max_size=2) | inner.map(lambda found: {"$buffer": [found]}),
    max_leaves=4,
)


@given(st.lists(near_headers | junk, max_size=2) | junk, st.lists(st.binary(max_size=9), max_size=2), references)
@DETERMINISTIC
def test_any_request_is_read_or_malformed(headers: Any, frames: list[bytes], value: Any) -> None:
    """So does a request with them; it is never an exception."""
    body = json.dumps({"event": "PROPERTY_SET", "property": "x", "value": value, "buffers": headers})
    request = parse_request([body.encode(), *frames], 10_000)

    assert isinstance(request, (PropertySet, Malformed))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"buffers": [{"size": 3, "codec": "zlib"}]}, "the buffers of a request are not compressed"),
        ({"buffers": [{"dtype": "u1", "shape": [1, 3], "codec": "jpeg"}]}, "of a request are not compressed"),
        ({"buffers": []}, "0 buffers are named, 1 frames came with the message"),
        ({"buffers": [{"size": 3}, {"size": 3}]}, "2 buffers are named, 1 frames"),
        ({"buffers": [{"size": 3, "slot": [0, 1, 0, 3, -1]}]}, "1 buffers are named, 1 frames"),
        ({"buffers": [{"size": 2}]}, "a buffer of 2 bytes is announced, 3 have come"),
        ({"buffers": [{"size": 3}], "params": {"args": [{"$buffer": 1}]}}, "there is no buffer 1, only 1"),
        ({"buffers": [{"size": 3}], "params": {"kwargs": {"a": {"$buffer": -1}}}}, "there is no buffer -1, only 1"),
        ({}, "the request is one frame of JSON, got 2 frames"), ({"event": "PING"}, "the request is one frame of JSON"),
        ({"event": "PING", "buffers": [{"size": 3}]}, "the request is one frame of JSON"),
        (
            {"event": "PROPERTY_SET", "property": "a", "value": {"$buffer": "x"}, "buffers": [{"size": 3}]},
            "there is no buffer 'x', only 1",
        ),
        ({"buffers": [{"size": 3}] * 1001}, "more than 1000 buffers"),
    ],
)  # fmt: skip
def test_buffers_of_requests_that_are_refused(keys: dict[str, Any], text: str) -> None:
    """The reply has the id, and says what is wrong."""
    body = json.dumps({"event": "METHOD_CALL", "method": "f", "id": ["c", 1], **keys}).encode()
    found = parse_request([body, b"abc"], 1 << 20)

    assert isinstance(found, Malformed)
    assert (ProtocolError, ("c", 1)) == (type(found.error), found.id)
    assert text in str(found.error)


def test_slot_of_a_request_without_shared_memory() -> None:
    """It is lost, and the client will send frames."""
    body = b'{"event":"METHOD_CALL","method":"f","buffers":[{"size":3,"slot":[0,1,0,3,-1]}]}'
    found = parse_request([body], 1000)

    assert isinstance(found, Malformed)
    assert BufferLost is type(found.error)


@given(values, st.dictionaries(keys, values, max_size=2))
@DETERMINISTIC
def test_requests_come_back(value: Any, kwargs: dict[str, Any]) -> None:
    """What a client takes out of a request the server puts back into it."""
    request = MethodCall(method="f", params=Params([value, 1], kwargs))
    parts = take_buffers(request)
    if parts:
        request.buffers = [part.header for part in parts]
    found = parse_request([request_frame(request), *(bytes(part.data) for part in parts)], 1 << 20)

    assert isinstance(found, MethodCall), found
    assert repr(plain([[value, 1], kwargs])) == repr(plain([found.params.args, found.params.kwargs]))


T = TypeVar("T")


class Mode(Enum):
    FAST = "fast"


@pytest.mark.parametrize(
    ("expected", "may"),
    [
        (int, False), (str, False), (float, False), (bool, False), (None, False), (type(None), False), (Mode, False),
        (Literal["a"], False), (list[int], False), (dict[str, list[float]], False), (tuple[int, ...], False),
        (Optional[int], False), (int | str | None, False), (np.ndarray, True), (NDArray[np.uint8], True),
        (list[NDArray[np.uint8]], True), (NDArray[np.uint8] | None, True), (dict[str, NDArray[Any]], True),
        (bytes, True), (memoryview, True), (tuple[memoryview, dict[str, Any]], True), (Any, True), (list, True),
        (dict, True), (Shot, True), (Record, True), (object, True), (T, True), (list[Any], True), (list[Shot], True),
    ],
)  # fmt: skip
def test_may_hold_buffers(expected: Any, may: bool) -> None:
    """Only what cannot hold any in whatever depth says no."""
    assert may is may_hold_buffers(expected)


WITHOUT_NUMPY = """
import sys
from rpc_kit.buffers import holds_buffers, may_hold_buffers, put_back, receive, take_out
tree, parts = take_out({"a": [b"abc", 1]})
found = receive([part.header for part in parts], [part.data for part in parts], None)
print(bytes(put_back(tree, found)["a"][0]), holds_buffers([1]), may_hold_buffers(int), "numpy" in sys.modules)
"""


def test_bytes_need_no_numpy() -> None:
    """Bytes travel without NumPy, in a program that does not use it."""
    command = [sys.executable, "-c", WITHOUT_NUMPY]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=3 * LIMIT, check=False)

    assert ("b'abc' False False False\n", "") == (done.stdout, done.stderr)
