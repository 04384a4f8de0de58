"""What an interface class declares: its methods, properties and signals. Everything else is derived from this."""

import hashlib
import inspect
import keyword
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from .buffers import may_hold_buffers
from .convert import Load, converter
from .errors import InterfaceError
from .methods import MARK, MethodMark
from .numpy_values import is_array_type
from .properties import RPCProperty
from .signals import RPCSignal

RESERVED = frozenset(
    """
    alive_timeout close context events_lost execute loan name peer_addr port register_interface
    register_method_buffer register_method_json register_to_registry registry_addr serve_forever stats stop_server url
    uuid
    """.split()
)
"""The public attributes of RPCServer and RPCClient, which share their objects with the members of the interface."""

_SCALARS = (str, int, float, bool)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Method:
    """A method of an interface, with the converters of its arguments and of its result.

    With `is_buffer` the result is a buffer with an info; with `carries_buffers` there may be some anywhere in it, with
    `takes_buffers` in the arguments.
    """

    __slots__ = (
        "name", "function", "mark", "is_buffer", "carries_buffers", "takes_buffers", "signature",
        "load_result", "trailing_defaults", "_loads",
        "_exact", "_positional", "_required",
    )  # fmt: skip

    def __init__(self, name: str, function: Any, mark: MethodMark) -> None:
        self.name = name
        self.function = function
        self.mark = mark
        self.is_buffer = mark.kind == "buffer"
        hints = _hints(function, name)
        me, *parameters = inspect.signature(function).parameters.values() or (None,)
        if me is None or me.kind not in _POSITIONAL or not name.isidentifier() or keyword.iskeyword(name):
            raise InterfaceError(f"{name}: a method has a proper name and the parameter self")
        if any(each.name in ("_method_", "_call_") for each in (me, *parameters)):
            raise InterfaceError(f"{name}: a parameter cannot be called _method_ or _call_")
        self.signature = inspect.signature(function).replace(parameters=parameters)
        self._loads = {each.name: _loader(hints.get(each.name, Any), f"{name}(), {each.name}") for each in parameters}
        self.takes_buffers = any(may_hold_buffers(hints.get(each.name, Any)) for each in parameters)
        self.carries_buffers = may_hold_buffers(hints.get("return", Any))
        self.load_result: Load = _loader(hints.get("return", Any), f"{name}()")
        plain = [each for each in parameters if each.kind in _POSITIONAL]
        self._required = sum(each.default is each.empty for each in plain)
        if len(plain) == len(parameters):
            self._positional = [self._loads[each.name] for each in plain]
        else:
            self._positional, self._required = [], len(parameters) + 1
        # The usual case is told apart quickly: as many arguments as there are, of types that JSON has.
        types = tuple(hints.get(each.name) for each in parameters)
        self._exact = types if self._positional and all(each in _SCALARS for each in types) else None
        # The last one first; with *args there is no telling which argument is at its default.
        defaults = [each.default for each in plain[self._required :]]
        self.trailing_defaults = defaults[::-1] if len(plain) == len(parameters) else []

    def parameter_lists(self) -> tuple[str, str, str]:
        """Source text for a function of this signature: the name of self, a list and a dict of the arguments."""
        me = next(iter(inspect.signature(self.function).parameters))
        args, kwargs = [], []
        for name, each in self.signature.parameters.items():
            if each.kind in _POSITIONAL:
                args.append(name)
            elif each.kind is each.VAR_POSITIONAL:
                args.append(f"*{name}")
            else:
                kwargs.append(f"{name!r}: {name}" if each.kind is each.KEYWORD_ONLY else f"**{name}")
        return me, f"[{', '.join(args)}]", f"{{{', '.join(kwargs)}}}"

    def without_keyword_defaults(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments without those that have their defaults."""
        known = self.signature.parameters
        return {
            name: value for name, value in kwargs.items() if name not in known or value is not known[name].default
        }

    def without_defaults(self, args: list[Any]) -> list[Any]:
        """The positional arguments without those at the end that have their defaults.

        They are not sent: the device's own defaults hold, as in a local call.
        """
        for default in self.trailing_defaults:
            if not args or args[-1] is not default:
                break
            args.pop()
        return args

    def bind(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments converted to the annotations.

        Raises
        ------
        TypeError
            On a wrong count, name or type; names the parameter, the expected and the given type.
        """
        if tuple(map(type, args)) == self._exact and not kwargs:
            return args, kwargs
        if not kwargs and self._required <= len(args) <= len(self._positional):
            try:
                return [load(value) for load, value in zip(self._positional, args)], kwargs
            except TypeError:
                pass  # the slower way finds out which argument it was
        return self._bind_any(args, kwargs)

    def _bind_any(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.name}(): {exc}") from exc
        for name, value in bound.arguments.items():
            load, kind = self._loads[name], self.signature.parameters[name].kind
            try:
                if kind is inspect.Parameter.VAR_POSITIONAL:
                    bound.arguments[name] = tuple(map(load, value))
                elif kind is inspect.Parameter.VAR_KEYWORD:
                    bound.arguments[name] = {key: load(item) for key, item in value.items()}
                else:
                    bound.arguments[name] = load(value)
            except TypeError as exc:
                raise TypeError(f"{self.name}(): argument {name!r}: {exc}") from exc
        return list(bound.args), bound.kwargs


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an interface."""

    name: str
    declared: RPCProperty[Any]
    load: Load
    carries_buffers: bool

    @property
    def notify(self) -> str | None:
        """The name of the signal that tells of a change."""
        return self.declared.notify.name if self.declared.notify is not None else None


class Interface:
    """The members that a class and its bases declare.

    Attributes
    ----------
    name : str
        The name of the class.
    methods, properties, signals : mapping
        Members by name.
    """

    def __init__(self, cls: type) -> None:
        self.name = cls.__name__
        self.methods: dict[str, Method] = {}
        self.properties: dict[str, Property] = {}
        self.signals: dict[str, RPCSignal] = {}
        _refuse_forgotten(cls)
        for name, declared in _declarations(cls).items():
            if name.startswith("_"):
                raise InterfaceError(f"{cls.__name__}.{name}: a name that begins with an underscore is never served")
            if isinstance(declared, RPCSignal):
                self.signals[name] = declared
            elif isinstance(declared, RPCProperty):
                self.properties[name] = _property(cls, name, declared)
            else:
                self.methods[name] = Method(name, declared, getattr(declared, MARK))

    @staticmethod
    def of(cls: type) -> "Interface":
        """The interface of a class, made once.

        Raises
        ------
        InterfaceError
            When a declaration cannot be served; the text says which and why.
        """
        return _made(cls)

    def __iter__(self) -> Iterator[str]:
        yield from self.methods
        yield from self.properties
        yield from self.signals

    @cached_property
    def carries_buffers(self) -> bool:
        """Whether there may be arrays or buffers in anything that the device gives or takes."""
        taken = any(each.takes_buffers for each in self.methods.values())
        members: list[Method | Property] = [*self.methods.values(), *self.properties.values()]
        return taken or any(each.carries_buffers for each in members) or bool(self.streamed)

    @cached_property
    def streamed(self) -> frozenset[str]:
        """The signals with an array as an argument, which are streams: a client asks for those it wants."""
        return frozenset(name for name, each in self.signals.items() if any(map(is_array_type, each.arg_types)))

    @cached_property
    def hash(self) -> str:
        """Names, types and kinds of all members in 16 hexadecimal digits: equal for the same class everywhere."""
        lines = [f"{each.mark.kind} {name}{each.signature}" for name, each in self.methods.items()]
        lines += [
            f"property {name} {_property_type(each.declared, name)} {each.declared.fset is not None} {each.notify}"
            for name, each in self.properties.items()
        ]
        lines += [f"signal {name} {each.arg_types}" for name, each in self.signals.items()]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]

    def inventory(self) -> dict[str, Any]:
        """The members as they are told to a client (docs/wire.md, GET_INVENTORY), without the server's name."""
        timeouts = {name: method.mark.timeout for name, method in self.methods.items()}
        return {
            "json_methods": {name: timeouts[name] for name, each in self.methods.items() if not each.is_buffer},
            "buffer_methods": {name: timeouts[name] for name, each in self.methods.items() if each.is_buffer},
            "signals": list(self.signals),
            "properties": list(self.properties),
        }


_made = lru_cache(maxsize=1024)(Interface)


def implemented_by(cls: type, mixin: type) -> Interface:
    """The interface that a device class implements: the first of its bases without `mixin` that has all members."""
    members = set(declared_names(cls))
    for base in cls.__mro__:
        if not issubclass(base, mixin) and members and members == set(declared_names(base)):
            return Interface.of(base)
    return Interface.of(cls)


def refuse_reserved(members: Iterable[str], interface: type) -> None:
    """Raise InterfaceError when a member would hide an attribute that servers or clients need."""
    for name in members:
        if name in RESERVED:
            raise InterfaceError(
                f"{interface.__name__}.{name}: servers and clients have a {name!r} of their own; rename the member"
            )


class UntilInit:
    """Stands on the class for an attribute that `__init__` sets, and says so when it was not called.

    No __getattr__, which would hide every AttributeError of a getter.
    """

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        raise AttributeError(f"{type(instance).__name__}.__init__ has not called super().__init__(context, url)")


def declared_names(cls: type) -> Iterator[str]:
    """The names of the members, without resolving their types."""
    yield from _declarations(cls)


def _declarations(cls: type) -> dict[str, Any]:
    """Member name to its declaration: the nearest one along the MRO, as an override may carry no mark."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, (staticmethod, classmethod)) and (
                hasattr(value, MARK) or hasattr(value.__func__, MARK)
            ):
                raise InterfaceError(f"{base.__name__}.{name}: a static or class method cannot be registered")
            if isinstance(value, (RPCSignal, RPCProperty)) or hasattr(value, MARK):
                found.pop(name, None)
                found[name] = value
            elif name in found:
                _check_override(base, name, found[name], value)
            if name in found and _is_asynchronous(value):
                raise InterfaceError(f"{base.__name__}.{name}: a coroutine cannot be served, only a plain function")
    return found


def _is_asynchronous(value: Any) -> bool:
    functions = (value.fget, value.fset) if isinstance(value, (RPCProperty, property)) else (value,)
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in functions)


def _refuse_forgotten(cls: type) -> None:
    """In a class with members, an abstract method or property without a mark is one that was forgotten."""
    for base in cls.__mro__:
        members = vars(base)
        if not any(isinstance(each, (RPCSignal, RPCProperty)) or hasattr(each, MARK) for each in members.values()):
            continue
        for name, value in members.items():
            if name.startswith("_") or isinstance(value, RPCProperty) or hasattr(value, MARK):
                continue
            if getattr(value, "__isabstractmethod__", False):
                kind = "an RPCProperty" if isinstance(value, property) else "marked by @RPCServer.register_method_json"
                raise InterfaceError(f"{base.__name__}.{name} is abstract, but no member: it must be {kind}")


def _check_override(base: type, name: str, declared: Any, value: Any) -> None:
    if isinstance(declared, RPCProperty):
        ok = isinstance(value, property) and not declared.auto_notify
        wanted = "an RPCProperty (with notify=, auto_notify=True)" if declared.auto_notify else "a property"
    elif isinstance(declared, RPCSignal):
        ok, wanted = False, "an RPCSignal"
    else:
        ok, wanted = callable(value), "a method"
    if not ok:
        raise InterfaceError(f"{base.__name__}.{name} overrides a member of the interface: it must be {wanted}")


def _property(cls: type, name: str, declared: RPCProperty[Any]) -> Property:
    notify = declared.notify
    if notify is not None and len(notify.arg_types) != 1:
        raise InterfaceError(f"{cls.__name__}.{name}: its notify signal {notify.name} must have exactly one argument")
    if notify is not None and not isinstance(getattr(cls, notify.name, None), RPCSignal):
        raise InterfaceError(f"{cls.__name__}.{name}: its notify signal is not declared on the class")
    if declared.fget is None:
        raise InterfaceError(f"{cls.__name__}.{name}: a property needs a getter")
    expected = _nearest_type(cls, name)
    return Property(name, declared, _loader(expected, f"{cls.__name__}.{name}"), may_hold_buffers(expected))


def _nearest_type(cls: type, name: str) -> Any:
    """The type of a property: a device that says nothing of it has that of the interface."""
    for base in cls.__mro__:
        declared = vars(base).get(name)
        if isinstance(declared, property | RPCProperty):
            expected = _property_type(declared, name)
            if expected is not Any:
                return expected
    return Any


def _property_type(declared: "property | RPCProperty[Any]", name: str) -> Any:
    hints = _hints(declared.fget, name) if declared.fget is not None else {}
    if "return" in hints or declared.fset is None:
        return hints.get("return", Any)
    setter_hints = _hints(declared.fset, name)
    # The value comes last; somebody may have annotated self.
    return next((hint for key, hint in reversed(setter_hints.items()) if key != "return"), Any)


def _loader(expected: Any, where: str) -> Load:
    try:
        return converter(expected)
    except TypeError as exc:
        raise InterfaceError(f"{where}: {exc}") from exc


def _hints(function: Any, name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as exc:
        raise InterfaceError(f"{name}: its annotations cannot be resolved: {exc}") from exc
