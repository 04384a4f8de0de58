"""Properties that notify."""

import copy
import logging
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

from .numpy_values import is_array, same_arrays
from .signals import BoundSignal

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")


class RPCProperty(Generic[T]):
    """A property of an interface, with the signal that tells of its changes.

    Used like ``property``, bare or with arguments::

        @RPCProperty(notify=exposure_changed, auto_notify=True)
        def exposure(self) -> float: ...

        @exposure.setter
        def exposure(self, value: float) -> None: ...

    The function of the setter may have a name of its own (``_set_exposure``), the form that mypy understands: it
    completes the property that it was made from, and nothing stays under that name.

    Parameters
    ----------
    fget, fset, fdel, doc
        As of ``property``.
    notify : RPCSignal, default None
        The signal, of one argument, that is emitted with the new value. An override without it has the notification
        of the property that it overrides, `auto_notify` included.
    auto_notify : bool, default False
        Emit `notify` by itself when a set has changed the value, as read back from the getter. A notification that
        fails is logged and never breaks the setter. Without it the setter emits.
    """

    @overload
    def __init__(
        self,
        fget: Callable[[Any], T],
        fset: Callable[[Any, T], None] | None = None,
        fdel: Callable[[Any], None] | None = None,
        doc: str | None = None,
        notify: BoundSignal | None = None,
        auto_notify: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self: "RPCProperty[Any]",
        fget: None = None,
        fset: None = None,
        fdel: None = None,
        doc: str | None = None,
        notify: BoundSignal | None = None,
        auto_notify: bool = False,
    ) -> None: ...
    def __init__(
        self,
        fget: Callable[[Any], T] | None = None,
        fset: Callable[[Any, T], None] | None = None,
        fdel: Callable[[Any], None] | None = None,
        doc: str | None = None,
        notify: BoundSignal | None = None,
        auto_notify: bool = False,
    ) -> None:
        if auto_notify and notify is None:
            raise TypeError("auto_notify needs a signal: RPCProperty(notify=..., auto_notify=True)")
        self.fget, self.fset, self.fdel = fget, fset, fdel
        self.notify, self.auto_notify = notify, auto_notify
        self._doc = doc
        self.__doc__ = doc if doc is not None else getattr(fget, "__doc__", None)
        self.name = getattr(fget, "__name__", "")

    @property
    def __isabstractmethod__(self) -> bool:
        return any(getattr(part, "__isabstractmethod__", False) for part in (self.fget, self.fset, self.fdel))

    def __call__(self, fget: Callable[[Any], S]) -> "RPCProperty[S]":
        """Complete ``@RPCProperty(notify=...)`` with the getter."""
        if self.fget is not None:
            raise TypeError(f"the property {self.name} is not callable")
        return RPCProperty(fget, None, None, self._doc, self.notify, self.auto_notify)

    def __set_name__(self, owner: type, name: str) -> None:
        getter_name = getattr(self.fget, "__name__", name)
        if name != getter_name and self.fset is not None and self.fset.__name__ == name:
            # The typed form: `def _set_x` under `@x.setter` completes the property x.
            setattr(owner, getter_name, self)
            delattr(owner, name)
            name = getter_name
        self.name = name
        self._inherit_notification(owner)

    def _inherit_notification(self, owner: type) -> None:
        """A device that says nothing of notification has that of the interface."""
        if self.notify is not None:
            return
        for base in owner.__mro__[1:]:
            declared = vars(base).get(self.name)
            if isinstance(declared, RPCProperty):
                self.notify, self.auto_notify = declared.notify, declared.auto_notify
                return

    @overload
    def __get__(self, device: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, device: object, owner: type | None = None) -> T: ...
    def __get__(self, device: object | None, owner: type | None = None) -> Any:
        if device is None:
            return self
        if self.fget is None:
            raise AttributeError(f"property {self.name!r} of {type(device).__name__!r} object has no getter")
        return self.fget(device)

    def __set__(self, device: object, value: T) -> None:
        if self.fset is None:
            raise AttributeError(f"property {self.name!r} of {type(device).__name__!r} object has no setter")
        if not self.auto_notify:
            self.fset(device, value)
            return
        before = _kept(self._read(device))
        self.fset(device, value)
        after = self._read(device)
        if after is not _UNREADABLE and not _same(before, after):
            self._notify(device, after)

    def __delete__(self, device: object) -> None:
        if self.fdel is None:
            raise AttributeError(f"property {self.name!r} of {type(device).__name__!r} object has no deleter")
        self.fdel(device)

    def getter(self, fget: Callable[[Any], T]) -> "RPCProperty[T]":
        """A copy with another getter."""
        return self._copy(fget=fget)

    def setter(self, fset: Callable[[Any, T], None]) -> "RPCProperty[T]":
        """A copy with this setter, keeping `notify` and `auto_notify`."""
        return self._copy(fset=fset)

    def deleter(self, fdel: Callable[[Any], None]) -> "RPCProperty[T]":
        """A copy with this deleter."""
        return self._copy(fdel=fdel)

    def _copy(self, **changed: Any) -> "RPCProperty[T]":
        parts: dict[str, Any] = {"fget": self.fget, "fset": self.fset, "fdel": self.fdel, "doc": self._doc}
        return type(self)(**{**parts, **changed}, notify=self.notify, auto_notify=self.auto_notify)

    def _read(self, device: object) -> Any:
        """The value, or a mark: a device that cannot be read before its first set can still be set."""
        try:
            return self.fget(device) if self.fget is not None else _UNREADABLE
        except Exception:
            logger.debug("%s.%s cannot be read to compare", type(device).__name__, self.name, exc_info=True)
            return _UNREADABLE

    def _notify(self, device: object, value: Any) -> None:
        assert self.notify is not None
        try:
            getattr(device, self.notify.name).emit(value)
        except Exception:
            logger.exception("notification %s of %s failed", self.notify.name, type(device).__name__)


_UNREADABLE = object()
_CONTAINERS = (list, dict, set, bytearray)


def _kept(value: Any) -> Any:
    """The value as it is now: a setter may change a container in place."""
    try:
        return copy.deepcopy(value) if isinstance(value, _CONTAINERS) or is_array(value) else value
    except Exception:
        return _UNREADABLE


def _same(before: object, after: object) -> bool:
    if before is after:
        return True
    if is_array(before) or is_array(after):
        return same_arrays(before, after)
    try:
        return bool(before == after)
    except Exception:
        return False  # what cannot be compared is taken as changed
