"""NumPy's values, without importing NumPy: whoever has such a value has imported it already.

NumPy takes half of the time and memory that a program with a client or a server needs to start.
"""

import sys
from typing import Any, get_origin


def is_array(value: object) -> bool:
    """Whether the value is an array."""
    numpy = _numpy()
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_array_type(expected: Any) -> bool:
    """Whether an annotation means an array of a certain kind, such as ``NDArray[np.uint8]``."""
    numpy = _numpy()
    return numpy is not None and get_origin(expected) is numpy.ndarray


def same_arrays(one: object, other: object) -> bool:
    """Whether two values, one of them an array, are alike in shape and content."""
    numpy = _numpy()
    return bool(numpy.array_equal(numpy.asarray(one), numpy.asarray(other)))


def is_scalar_type(expected: Any) -> bool:
    """Whether an annotation is the class of a NumPy scalar."""
    numpy = _numpy()
    return numpy is not None and isinstance(expected, type) and issubclass(expected, numpy.generic)


def plain(value: object) -> Any:
    """A NumPy scalar as Python's own; every other value as it is."""
    numpy = _numpy()
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


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
