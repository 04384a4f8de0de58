"""Arrays and buffers inside values: taken out before a value becomes JSON, and put back afterwards (docs/wire.md)."""

import math
import re
import reprlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, cast, get_args, get_origin

import msgspec

from .compression import decompress
from .convert import to_plain
from .errors import BufferLost, ProtocolError, SerializationError
from .messages import BufferHeader, SlotRef
from .numpy_values import is_array, is_array_type

Bytes = bytes | bytearray | memoryview

REFERENCE = "$buffer"
"""Key of the object that stands in the JSON for a buffer."""
MOST_OF_NOTHING = 1 << 32
"""So large an array without bytes may be, in items if its empty side had one."""
MOST_BUFFERS = 1000
"""So many arrays and buffers a message may hold."""

_MARK = secrets.token_hex(16)
"""Marks a reference while a value is walked through; no key of anybody's value."""

_SCALARS = frozenset((str, int, float, bool, type(None)))
_BYTES = (bytes, bytearray, memoryview)
_SEQUENCES = (list, tuple, set, frozenset)
# Not O, objects: their bytes are addresses of this process. No fractions of units: NumPy dies of "M8[s/0]", and
# of what is done with "M8[0s]".
_DTYPE = re.compile(r"[<>|=]?([biufcSUV]\d{0,10}|[mM]8?(\[([1-9]\d{0,9})?[a-zA-Zμ]+\])?)")
_DEEPEST_DTYPE = 16
_MOST_DIMENSIONS = 64
"""NumPy has no more. The product of a million lengths would take hours."""


class Part:
    """An array or buffer that has left its value: what is said of it, and its bytes.

    Attributes
    ----------
    header : BufferHeader
        Of a frame without compression.
    array : ndarray or None
        The array that the bytes are of, if it is one.
    size : int
        Bytes.
    is_settled : bool
        Nobody will change the bytes any more, whoever may seem to own them.
    """

    __slots__ = ("header", "array", "size", "is_settled", "_data")

    def __init__(self, value: Any) -> None:
        self._data: memoryview | None = None
        self.is_settled = False
        if not is_array(value):
            value = _checked_view(value)
        self.size: int = value.nbytes
        if is_array(value):
            self.array, order = _checked_array(value)
            dtype = self.array.dtype
            # Texts are kept for the next time, but not what others may make as large as they like.
            described = _dtype_text(dtype) if dtype.names is None else dtype_to_json(dtype)
            self.header = BufferHeader(described, self.array.shape, order)
        else:
            self.array = None
            self._data = value
            self.header = BufferHeader(size=self.size)

    @property
    def data(self) -> memoryview:
        """The bytes in one dimension; a copy, which is nobody else's, of an array that is not contiguous."""
        if self._data is None:
            if self.array.flags.forc:
                self._data = flat_bytes(self.array)
            else:
                self._data, self.is_settled = flat_bytes(_in_c_order(self.array)).toreadonly(), True
        return self._data

    def is_fixed(self) -> bool:
        """Whether nobody can change the bytes; a read-only view of what its owner may write to is not fixed."""
        owner: Any = self.data
        while not self.is_settled and owner is not None:
            if is_array(owner):
                if owner.flags.writeable:
                    return False
                owner = owner.base
            elif not isinstance(owner, bytes):
                try:
                    view = owner if isinstance(owner, memoryview) else memoryview(owner)
                except TypeError:
                    return False  # a library that owns memory may write to it
                if not view.readonly:
                    return False
                owner = view.obj if view is owner else None
            else:
                break
        self.is_settled = True
        return True

    def write_to(self, target: Any) -> None:
        """Copy the bytes into an array ``(size,) uint8``."""
        import numpy

        array = self.array
        if array is None or array.flags.forc or array.dtype.names is not None:
            numpy.copyto(target, numpy.frombuffer(self.data, numpy.uint8))
        else:
            numpy.copyto(target.view(array.dtype).reshape(array.shape), array)

    def move(self, data: memoryview) -> None:
        """The same bytes are elsewhere."""
        self.array, self._data, self.is_settled = None, data, True

    def in_c_order(self) -> "Part":
        """Itself, or a copy of an array in Fortran's order."""
        header, array = self.header, self.array
        if header.order == "C":
            return self
        if array is None:
            import numpy

            array = numpy.ndarray(header.shape, dtype_of_json(header.dtype), self.data, order="F")
        return Part(_in_c_order(array))


def flat_bytes(array: Any) -> memoryview:
    """The bytes of an array, contiguous in either order, without a copy."""
    import numpy

    if not array.nbytes:
        return memoryview(b"")
    # By the transpose, which is contiguous in the order that a memoryview can be cast from.
    ordered = array if array.flags.c_contiguous else array.T
    view = memoryview(cast(Any, ordered.reshape(-1).view(numpy.uint8)))
    return view if array.flags.writeable else view.toreadonly()


def _checked_view(value: Bytes) -> Any:
    """A one-dimensional view of bytes; an array when it has items of another kind, or several dimensions."""
    view = memoryview(value)
    if view.format in ("B", "b", "c") and view.ndim == 1 and view.c_contiguous:
        return view.cast("B")
    import numpy

    try:
        return numpy.asarray(view)
    except (TypeError, ValueError) as exc:
        raise SerializationError(f"a memoryview of format {view.format!r} cannot be sent: {exc}") from exc


def _checked_array(array: Any) -> tuple[Any, Literal["C", "F"]]:
    """The array without a class of its own, and the order in which its bytes are sent."""
    import numpy

    if array.dtype.hasobject:
        raise SerializationError(
            f"an array of dtype {array.dtype} cannot be sent, as it holds Python objects: convert it with .astype(...)"
        )
    if type(array) is not numpy.ndarray:
        if isinstance(array, numpy.ma.MaskedArray):
            raise SerializationError("a masked array would lose its mask: send .filled(...), or data and mask")
        array = numpy.asarray(array)
    return array, "F" if array.flags.fnc else "C"


def _in_c_order(array: Any) -> Any:
    """A copy in C order."""
    import numpy

    if array.dtype.names is None:
        return array.copy("C")
    # NumPy copies fields, and leaves between them whatever was in the memory of this process: nobody's business.
    made = numpy.zeros(array.shape, array.dtype)
    made[...] = array
    return made


def dtype_to_json(dtype: Any) -> Any:
    """A dtype as text; a structured one as an object, one with a shape as a list.

    Raises
    ------
    SerializationError
        When it is none of NumPy's own.
    """
    import numpy

    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [dtype_to_json(base), list(shape)]
    if dtype.names is None:
        if numpy.dtype(dtype.str) != dtype:
            raise SerializationError(f"an array of dtype {dtype} cannot be sent: convert it to one of NumPy's own")
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [dtype_to_json(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }


_dtype_text = lru_cache(maxsize=256)(dtype_to_json)


@lru_cache(maxsize=256)
def _dtype_of_text(text: str) -> Any:
    """A dtype without fields; ValueError when it is none of numbers, text or bytes."""
    import numpy

    if not _DTYPE.fullmatch(text):
        raise ValueError("unknown kind")
    return numpy.dtype(text)


def dtype_of_json(described: Any, depth: int = 0) -> Any:
    """The dtype that `dtype_to_json` has described; whatever it is given, never one of objects.

    Raises
    ------
    ProtocolError
        When it is none.
    """
    try:
        if isinstance(described, str):
            return _dtype_of_text(described)
        import numpy

        if depth > _DEEPEST_DTYPE:
            raise ValueError("nested too deep")
        if isinstance(described, dict):
            formats = [dtype_of_json(each, depth + 1) for each in described["formats"]]
            names, offsets = list(map(str, described["names"])), list(map(int, described["offsets"]))
            itemsize = int(described["itemsize"])
            return numpy.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})
        base, shape = described
        return numpy.dtype((dtype_of_json(base, depth + 1), tuple(map(int, shape))))
    except ProtocolError:
        raise
    except Exception as exc:
        raise ProtocolError(f"no dtype of numbers, text or bytes: {reprlib.repr(described)}: {exc}") from exc


def may_hold_buffers(expected: Any) -> bool:
    """Whether a value of an annotated type may hold an array or a buffer; when in doubt, yes."""
    if expected is None or expected is Ellipsis or get_origin(expected) is Literal:
        return False
    if isinstance(expected, type) and issubclass(expected, (str, int, float, Enum, type(None))):
        return False
    if is_array_type(expected):
        return True
    args = get_args(expected)
    return any(map(may_hold_buffers, args)) if args else True


def holds_buffers(value: Any) -> bool:
    """Whether there is an array or a buffer anywhere in a value."""
    kind = type(value)
    if kind in _SCALARS:
        return False
    if kind is list or kind is tuple:
        return any_holds_buffers(value)
    if isinstance(value, _BYTES) or is_array(value):
        return True
    if isinstance(value, dict):
        return any_holds_buffers(value.values())
    if isinstance(value, _SEQUENCES):
        return any_holds_buffers(value)
    names: Iterable[str] = getattr(kind, "__dataclass_fields__", getattr(kind, "__struct_fields__", ()))
    names = names or [each.name for each in getattr(kind, "__attrs_attrs__", ())]
    return any(holds_buffers(getattr(value, name, None)) for name in names)


def any_holds_buffers(values: Iterable[Any]) -> bool:
    """Whether there is an array or a buffer anywhere in any of the values."""
    # Long lists of numbers are looked through at the speed of C.
    return not _SCALARS.issuperset(map(type, values)) and any(map(holds_buffers, values))


def take_out(value: Any) -> tuple[Any, list[Part]]:
    """A value as plain containers with references in the places of its arrays and buffers; and these.

    Raises
    ------
    SerializationError
        When an array cannot be sent; says why.
    """
    if is_array(value):
        return {REFERENCE: 0}, [Part(value)]  # the usual case
    taking = _Taking()
    tree = msgspec.to_builtins(value, builtin_types=_BYTES, enc_hook=taking.plain, str_keys=True)
    walked = taking.walk(tree)
    # Where there is none, after all, nobody looks for references, nor for somebody else's key.
    return walked if taking.parts else tree, taking.parts


class _Taking:
    # No functions within one another: they would hold each other, and the arrays until a garbage collection.

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def reference(self, found: Any, key: str) -> dict[str, int]:
        if len(self.parts) == MOST_BUFFERS:
            raise SerializationError(f"more than {MOST_BUFFERS} arrays and buffers: put them together into fewer")
        self.parts.append(Part(found))
        return {key: len(self.parts) - 1}

    def plain(self, unknown: Any) -> Any:
        return self.reference(unknown, _MARK) if is_array(unknown) else to_plain(unknown)

    def walk(self, tree: Any) -> Any:
        if isinstance(tree, _BYTES):
            return self.reference(tree, REFERENCE)
        if isinstance(tree, dict):
            if _MARK in tree:
                return {REFERENCE: tree[_MARK]}
            walked = {key: self.walk(each) for key, each in tree.items()}
            # Somebody else's key is not to be taken for a reference.
            return {REFERENCE: [walked[REFERENCE]]} if _is_reference(walked) else walked
        return [self.walk(each) for each in tree] if isinstance(tree, (list, tuple)) else tree


def _is_reference(tree: dict[Any, Any]) -> bool:
    return len(tree) == 1 and REFERENCE in tree


def put_back(tree: Any, found: Sequence[Any]) -> Any:
    """The value of which `take_out` has made a tree, with arrays and buffers in the places of the references.

    Raises
    ------
    ProtocolError
        When a reference names none, or the tree is nested too deep.
    """
    try:
        return _put_back(tree, found)
    except RecursionError as exc:
        raise ProtocolError("the value is nested too deep") from exc


def _put_back(tree: Any, found: Sequence[Any]) -> Any:
    if isinstance(tree, dict):
        if not _is_reference(tree):
            return {key: _put_back(each, found) for key, each in tree.items()}
        number = tree[REFERENCE]
        if isinstance(number, list) and len(number) == 1:
            return {REFERENCE: _put_back(number[0], found)}
        if type(number) is not int or not 0 <= number < len(found):
            raise ProtocolError(f"there is no buffer {reprlib.repr(number)}, only {len(found)}")
        return found[number]
    return [_put_back(each, found) for each in tree] if isinstance(tree, list) else tree


def receive(
    headers: Sequence[BufferHeader],
    frames: Sequence[Bytes],
    view: Callable[[SlotRef], Any] | None,
) -> list[Any]:
    """The arrays and memoryviews of a message, read-only, of its frames and of slots in shared memory.

    Parameters
    ----------
    view
        Gives the bytes of a slot as an array ``(N,) uint8``; None without shared memory.

    Raises
    ------
    ProtocolError
        When headers and frames do not fit each other.
    BufferLost
        When a slot holds something else by now.
    """
    if len(headers) > MOST_BUFFERS:
        raise ProtocolError(f"the message has more than {MOST_BUFFERS} buffers")
    if sum(header.slot is None for header in headers) != len(frames):
        raise ProtocolError(f"{len(headers)} buffers are named, {len(frames)} frames came with the message")
    following, found = iter(frames), []
    for header in headers:
        if header.slot is None:
            data = next(following)
        elif view is None:
            raise BufferLost("there is no shared memory")
        else:
            data = view(header.slot)
        found.append(_array(header, data) if header.dtype is not None else _memory(header, data))
    return found


def _memory(header: BufferHeader, data: Any) -> memoryview:
    size = header.size if header.size is not None else -1
    return memoryview(_plain_bytes(header, data, size)).toreadonly()


def _array(header: BufferHeader, data: Any) -> Any:
    import numpy

    dtype, shape = dtype_of_json(header.dtype), header.shape
    if len(shape) > _MOST_DIMENSIONS:
        raise ProtocolError(f"an array has at most {_MOST_DIMENSIONS} dimensions, not {len(shape)}")
    size = dtype.itemsize * math.prod(shape)
    # No bytes for very many items, or rows: they would cost much all the same.
    if not size and math.prod(max(length, 1) for length in shape) > MOST_OF_NOTHING:
        raise ProtocolError(f"an empty array of shape {str(shape)[:100]} is too large")
    data = _plain_bytes(header, data, size)
    try:
        # Nothing is read of no bytes: a view of them would be refused.
        made = numpy.ndarray(shape, dtype, data if size else b"", order=header.order)
    except (TypeError, ValueError) as exc:
        raise ProtocolError(f"no array of {reprlib.repr(header.dtype)} and shape {shape}: {exc}") from exc
    made.flags.writeable = False
    return made


def _plain_bytes(header: BufferHeader, data: Any, size: int) -> Any:
    """The bytes without compression; exactly as many as there are to be."""
    if header.codec:
        return decompress(data, header.dtype, header.shape, size, header.codec)
    if len(data) != size:
        raise ProtocolError(f"a buffer of {size} bytes is announced, {len(data)} have come")
    return data
