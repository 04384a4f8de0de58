"""NumPy's values, without importing NumPy: whoever has such a value has imported it already.

NumPy takes half of the time and memory that a program with a client or a server needs to start.
"""

import math
import sys
from typing import Any, get_args, get_origin

LONGEST_LIST = 1 << 20
"""Where a whole array has to be a list, it has at most so many items."""
_NUMBER = "number"


def is_array(value: object) -> bool:
    """Whether the value is an array."""
    numpy = _numpy()
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_array_type(expected: Any) -> bool:
    """Whether an annotation means an array: ``np.ndarray``, or one of a certain kind, such as ``NDArray[np.uint8]``."""
    numpy = _numpy()
    return numpy is not None and (expected is numpy.ndarray or get_origin(expected) is numpy.ndarray)


def array_class() -> Any:
    """The class of arrays; for where an annotation has named it, and so NumPy is there."""
    return _numpy().ndarray


def array_text(expected: Any) -> str:
    """How an annotation of an array is written in an error text."""
    kind = item_type(expected)
    return "numpy.ndarray" if kind is None else f"NDArray[numpy.{kind.__name__}]"


def is_of_type(expected: Any, array: Any) -> bool:
    """Whether an array has the dtype of an annotation."""
    kind = item_type(expected)
    return kind is None or issubclass(array.dtype.type, kind)


def to_array(expected: Any, value: Any) -> Any:
    """An array as it is annotated: itself, one of a wider dtype, or one made of a list.

    Raises
    ------
    TypeError
        When that cannot be done without loss.
    """
    numpy = _numpy()
    if isinstance(value, Items):
        value = value.array
    is_list = isinstance(value, (list, tuple))
    if is_list:
        made = _of_list(value)
    elif isinstance(value, (numpy.ndarray, memoryview)):
        made = numpy.asanyarray(value)
    else:
        raise TypeError("it is no array")
    if is_of_type(expected, made):
        return made
    kind = item_type(expected)
    if kind not in numpy.sctypeDict.values():
        raise TypeError(f"its dtype is {made.dtype}")
    is_empty = is_list and not made.size
    if is_empty or (_kind(made.dtype) == _kind(kind) == _NUMBER and numpy.can_cast(made.dtype, kind, "safe")):
        return made.astype(kind)
    cast = _narrowed(made, kind) if is_list else None
    if cast is None:
        raise TypeError(f"its dtype is {made.dtype}")
    return cast


class Items(list[Any]):
    """The items of an array, for where a list is expected; of too many items none."""

    array: Any

    @classmethod
    def of(cls, array: Any) -> Any:
        """The items of that array; itself when they would be too many."""
        if _rows(array) > LONGEST_LIST or not array.ndim:
            return array
        made = cls(array.tolist())
        made.array = array
        return made


def _rows(array: Any) -> int:
    """How many items there are, or, in an empty array, would be if its empty sides had one: as many lists it makes."""
    return math.prod(max(length, 1) for length in array.shape)


def _of_list(value: Any) -> Any:
    """A list as an array, if it is one of numbers, or of text, or of truth values."""
    numpy = _numpy()
    made = numpy.asarray(value)
    if made.dtype.hasobject:
        raise TypeError("the list is no array of numbers or text")
    types = set(map(type, numpy.asarray(value, dtype=object).ravel()))
    kinds = set(map(_kind, types))
    if len(kinds) > 1:
        raise TypeError("the list holds values of several kinds")
    if kinds == {_NUMBER} and made.dtype.kind == "f" and all(numpy.dtype(each).kind in "iu" for each in types):
        raise TypeError("no array holds integers that are so far apart")
    return made


def _kind(scalar: Any) -> str:
    """What numbers, text, truth values and others are told apart by."""
    kind: str = _numpy().dtype(scalar).kind
    return _NUMBER if kind in "iufc" else kind


def _narrowed(made: Any, kind: Any) -> Any:
    """The numbers of a list, which have no width of their own, in that of an array; None when they are not the same.

    As with single numbers, floats may lose digits, but not become infinite.
    """
    numpy = _numpy()
    target = numpy.dtype(kind).kind
    if made.dtype.kind + target not in ("ii", "iu", "ui", "uu", "if", "uf", "ic", "uc", "ff", "fc", "cc"):
        return None
    with numpy.errstate(all="ignore"):
        cast = made.astype(kind)
    if made.dtype.kind in "iu":
        return cast if numpy.array_equal(cast, made) else None
    return cast if numpy.array_equal(numpy.isfinite(cast), numpy.isfinite(made)) else None


def to_memoryview(value: Any) -> memoryview:
    """A buffer, or the bytes of an array, as a memoryview; without a copy when that is contiguous.

    Raises
    ------
    TypeError
        When it is neither.
    """
    return memoryview(_numpy().ascontiguousarray(value) if is_array(value) else value)


def item_type(expected: Any) -> Any:
    """The class of the items in an annotation; None when it leaves that open."""
    dtype = (get_args(expected) or (None,))[-1]
    kind = (get_args(dtype) or (None,))[0]
    if not isinstance(kind, type) or kind is Any:
        return None
    numpy = _numpy()
    # Python's own numbers stand for the kinds that NumPy makes of them.
    return kind if issubclass(kind, numpy.generic) else numpy.dtype(kind).type


def same_arrays(one: object, other: object) -> bool:
    """Whether two values, one of them an array, are alike in shape and content."""
    numpy = _numpy()
    return bool(numpy.array_equal(numpy.asarray(one), numpy.asarray(other)))


def is_scalar_type(expected: Any) -> bool:
    """Whether an annotation is the class of a NumPy scalar."""
    numpy = _numpy()
    return numpy is not None and isinstance(expected, type) and issubclass(expected, numpy.generic)


def plain(value: object) -> Any:
    """A NumPy scalar as Python's own, an array as lists; every other value as it is.

    Raises
    ------
    TypeError
        When an array is too large for lists, or holds what JSON does not have.
    """
    numpy = _numpy()
    if numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)):
        return value
    if isinstance(value, numpy.ndarray):
        if value.dtype.kind not in "biufU" or _rows(value) > LONGEST_LIST:
            raise TypeError(
                f"an array of {value.size} {value.dtype} is not sent as a list: use a client of protocol version 2"
            )
        return value.tolist()
    return value.item()


def to_scalar(expected: Any, value: bool | int | float | str) -> Any:
    """A plain value as a NumPy scalar; None when it cannot be one without loss.

    A float may lose digits, but not become infinite; all else must stay what it is.
    """
    numpy = _numpy()
    with numpy.errstate(over="ignore"):
        made = expected(value)
        inexact = issubclass(expected, numpy.inexact) and numpy.isfinite(made)
        same = made.item() == value or value != value or inexact
    kinds = ((bool, numpy.bool_), (str, str))
    return made if same and all(isinstance(value, one) is isinstance(made, other) for one, other in kinds) else None


def _numpy() -> Any:
    return sys.modules.get("numpy")
