"""What an interface class declares."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rpc_kit import RPCProperty, RPCServer, RPCSignal
from rpc_kit.errors import InterfaceError
from rpc_kit.interface import RESERVED, Interface, declared_names, implemented_by, refuse_reserved
from tests.devices import Instrument, InstrumentServer
from tests.helpers import PROJECT

TWO, NONE = RPCSignal(int, int), RPCSignal()
method = RPCServer.register_method_json
buffer = RPCServer.register_method_buffer


class Mode(Enum):
    FAST = "fast"


class Movable(ABC):
    """A mixin."""

    moved = RPCSignal(float)

    @RPCProperty(notify=moved, auto_notify=True)
    @abstractmethod
    def position(self) -> float:
        """Where it is."""

    @position.setter
    @abstractmethod
    def position(self, value: float) -> None: ...

    @method(timeout=500)
    @abstractmethod
    def home(self, speed: float = 1.0) -> bool:
        """Go home."""


class Camera(ABC):
    """Another mixin."""

    @RPCProperty
    @abstractmethod
    def modes(self) -> list[Mode]: ...

    @buffer(timeout=None)
    @abstractmethod
    def get_image(self, size: tuple[int, int]) -> tuple[memoryview, dict[str, Any]]: ...

    def not_declared(self) -> int:
        """Carries no mark."""
        return 1


class MovingCamera(Movable, Camera):
    """Both."""


class Device(MovingCamera):
    """Implements it without a mark."""

    exposed = RPCSignal(int)

    def __init__(self) -> None:
        self._position = 0.0

    @RPCProperty(notify=MovingCamera.moved, auto_notify=True)
    def position(self) -> float:
        return self._position

    @position.setter
    def position(self, value: float) -> None:
        self._position = value

    def home(self, speed: Any = None) -> Any:
        return True

    @property
    def modes(self) -> list[Mode]:
        return [Mode.FAST]

    def get_image(self, size: Any) -> Any:
        return b"", {}


def made(**members: Any) -> type:
    """A class with these members."""
    return type("Device", (), members)


def bound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, converted."""
    return Interface.of(made(measure=method(function))).methods["measure"].bind(list(args), kwargs)


@pytest.mark.parametrize(("cls", "signals"), [(MovingCamera, ["moved"]), (Device, ["moved", "exposed"])])
def test_members_of_all_bases_are_found(cls: type, signals: list[str]) -> None:
    """The inventory has what any base declares, and nothing else; overrides need no mark."""
    expected = {
        "json_methods": {"home": 500},
        "buffer_methods": {"get_image": None},
        "signals": signals,
        "properties": ["modes", "position"],
    }

    assert expected == Interface.of(cls).inventory()
    assert {"home", "get_image", "position", "modes", *signals} == {*Interface.of(cls)}


def test_interface_is_made_once() -> None:
    """The same class has the same interface."""
    assert Interface.of(Device) is Interface.of(Device)
    assert "MovingCamera" == Interface.of(MovingCamera).name


def test_override_keeps_the_declared_types() -> None:
    """The annotations of the declaration hold for an override that has none."""
    home = Interface.of(Device).methods["home"]

    assert ([2.0], {}) == home.bind([2], {})
    with pytest.raises(TypeError, match="'speed'"):
        home.bind(["fast"], {})


def test_diamond() -> None:
    """In a diamond the nearest marked declaration along the resolution order counts, once."""

    class Base:
        @method(timeout=1)
        def measure(self) -> int: ...

    class Left(Base):
        def measure(self) -> int: ...

    class Right(Base):
        @method(timeout=2)
        def measure(self) -> int: ...

    class Both(Left, Right):
        pass

    assert {"measure": 2} == Interface.of(Both).inventory()["json_methods"]
    assert {"measure": 1} == Interface.of(Left).inventory()["json_methods"]


def test_mixin_without_marks_overrides() -> None:
    """A plain mixin before the interface implements it."""

    class Mixin:
        def home(self, speed: float = 1.0) -> bool:
            return True

    class Mixed(Mixin, Movable):
        pass

    assert Interface.of(Mixed).methods["home"].function is Movable.home


def test_signal_is_declared_anew() -> None:
    """A subclass may give a signal other types."""

    class Other(Device):
        moved = RPCSignal(str)

    assert (str,) == Interface.of(Other).signals["moved"].arg_types
    assert (str,) == Other().moved.arg_types


def test_devices_do_not_share_state() -> None:
    """Two devices of one class have their own signals and values."""
    one, other, heard = Device(), Device(), []
    one.moved.connect(heard.append)

    other.position = 3.0
    one.position = 2.0

    assert ([2.0], 2.0, 3.0) == (heard, one.position, other.position)


def test_property_knows_type_and_signal() -> None:
    """The type is the getter's annotation, or else the setter's."""

    def write(self: Any, value: tuple[int, int]) -> None: ...

    properties = Interface.of(Device).properties
    untyped = Interface.of(made(size=RPCProperty(lambda self: None, write))).properties["size"]

    assert ("moved", None) == (properties["position"].notify, properties["modes"].notify)
    assert ([Mode.FAST], (1, 2)) == (properties["modes"].load(["fast"]), untyped.load([1, 2]))


def test_property_without_types() -> None:
    """A device's getter and setter without annotations have the type of the interface."""

    class Base:
        @RPCProperty
        def size(self) -> tuple[int, int]: ...

        @RPCProperty
        def mask(self) -> NDArray[np.uint8]: ...

    class Derived(Base):
        @RPCProperty
        def size(self):  # type: ignore[no-untyped-def]
            return (1, 2)

        @size.setter
        def _set_size(self, value):  # type: ignore[no-untyped-def]
            pass

        @property
        def mask(self):  # type: ignore[no-untyped-def]
            return [1]

    properties = Interface.of(Derived).properties

    assert ((1, 2), np.uint8) == (properties["size"].load([1, 2]), properties["mask"].load([1]).dtype)
    assert (False, True) == (properties["size"].carries_buffers, properties["mask"].carries_buffers)


@pytest.mark.parametrize("name", ["_stop", "__private", "__dunder__"])
@pytest.mark.parametrize("member", [method(lambda self: 1), RPCSignal(int), RPCProperty(lambda self: 1)])
def test_private_names_are_refused(name: str, member: Any) -> None:
    """A member whose name begins with an underscore cannot be declared."""
    with pytest.raises(InterfaceError, match=f"Device.{name}: a name that begins with an underscore"):
        Interface.of(made(**{name: member}))


@pytest.mark.parametrize(
    "member",
    [
        staticmethod(method(lambda: 1)), method(staticmethod(lambda: 1)), classmethod(method(lambda cls: 1)),
    ],
)  # fmt: skip
def test_static_and_class_methods_are_refused(member: Any) -> None:
    """Only methods of objects can be declared."""
    with pytest.raises(InterfaceError, match="Device.measure: a static or class method"):
        Interface.of(made(measure=member))


async def coroutine(self: Any, value: Any = None) -> Any: ...


async def generator(self: Any) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("measure", method(coroutine)), ("measure", buffer(coroutine)), ("measure", method(generator)),
        ("size", RPCProperty(coroutine)), ("size", RPCProperty(lambda self: 1, coroutine)),
    ],
)  # fmt: skip
def test_coroutines_are_refused(name: str, member: Any) -> None:
    """What would have to be awaited cannot be declared, as method, getter or setter."""
    with pytest.raises(InterfaceError, match=f"Device.{name}: a coroutine cannot be served, only a plain function"):
        Interface.of(made(**{name: member}))


@pytest.mark.parametrize(("name", "value"), [("home", coroutine), ("modes", property(coroutine))])
def test_override_by_coroutine_is_refused(name: str, value: Any) -> None:
    """Nor may a device implement a plain member by a coroutine."""
    with pytest.raises(InterfaceError, match=f"Device.{name}: a coroutine cannot be served"):
        Interface.of(type("Device", (MovingCamera,), {name: value}))


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"size": RPCProperty()}, "size: a property needs a getter"),
        ({"size": RPCProperty(lambda self: 1, notify=RPCSignal(int))}, "its notify signal is not declared"),
        ({"two": TWO, "size": RPCProperty(lambda self: 1, notify=TWO)}, "its notify signal two must have exactly one"),
        ({"none": NONE, "size": RPCProperty(lambda self: 1, notify=NONE)}, "exactly one argument"),
    ],
)
def test_faults_of_properties(members: dict[str, Any], text: str) -> None:
    """A property that could not be served or notified is refused, and the text says why."""
    with pytest.raises(InterfaceError, match=text):
        Interface.of(made(**members))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("home", 3, "a method"), ("home", None, "a method"), ("home", property(len), "a method"),
        ("moved", 3, "an RPCSignal"), ("moved", print, "an RPCSignal"), ("position", 3, "an RPCProperty"),
        ("position", property(len), r"an RPCProperty \(with notify=, auto_notify=True\)"), ("modes", [], "a property"),
    ],
)  # fmt: skip
def test_override_of_another_kind_is_refused(name: str, value: Any, wanted: str) -> None:
    """An override that would break the member, or silence its signal, is refused and says what it must be."""
    with pytest.raises(InterfaceError, match=f"Broken.{name} overrides a member of the interface: it must be {wanted}"):
        Interface.of(type("Broken", (MovingCamera,), {name: value}))


def test_unknown_annotation_is_refused() -> None:
    """An annotation that cannot be resolved names the member."""

    def measure(self: Any, value: "Undefined") -> None: ...  # noqa: F821

    with pytest.raises(InterfaceError, match="measure: its annotations cannot be resolved: name 'Undefined'"):
        Interface.of(made(measure=method(measure)))


def test_function_as_annotation_is_refused() -> None:
    """An annotation that is no type, as the function that makes arrays, names the member and the remedy."""

    def measure(self: Any, image: np.array) -> None: ...  # type: ignore[valid-type]

    with pytest.raises(InterfaceError, match=r"measure\(\).*is no type: .*np\.ndarray"):
        Interface.of(made(measure=method(measure)))


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_are_refused(name: str) -> None:
    """A member that would hide an attribute of servers or clients is refused when the class is made."""
    with pytest.raises(InterfaceError, match=f"Device.{name}: servers and clients have a '{name}' of their own"):
        type("Device", (RPCServer,), {name: RPCSignal(int)})
    with pytest.raises(InterfaceError, match="rename the member"):
        refuse_reserved(declared_names(made(**{name: method(lambda self: 1)})), Device)


def signature(self: Any, a: int, /, b: float = 1.0, *rest: int, c: Mode = Mode.FAST, **more: tuple[int, int]) -> None:
    """Every kind of parameter."""


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1,), {}, ([1], {})),
        ((1, 2, 3, 4), {}, ([1, 2.0, 3, 4], {})),
        ((1,), {"b": 2}, ([1, 2.0], {})),
        ((1,), {"c": "fast", "d": [1, 2]}, ([1], {"c": Mode.FAST, "d": (1, 2)})),
        ((np.int8(1),), {"a": [1, 2]}, ([1], {"a": (1, 2)})),
    ],
)
def test_arguments_are_converted(args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> None:
    """Positional, named, variadic and keyword-only arguments are converted; defaults are left to the device."""
    assert expected == bound(signature, *args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "measure(): missing a required argument: 'a'"),
        (("x",), {}, "measure(): argument 'a': expected int, got str ('x')"),
        ((1, "x"), {}, "measure(): argument 'b': expected float, got str ('x')"),
        ((1, 2, 3, True), {}, "measure(): argument 'rest': expected int, got bool (True)"),
        ((1,), {"c": "slow"}, f"measure(): argument 'c': expected {__name__}.Mode, got str ('slow')"),
        ((1,), {"d": [1]}, "measure(): argument 'more': expected tuple[int, int], got list"),
        ((1, 2), {"b": 2}, "measure(): multiple values for argument 'b'"),
    ],
)
def test_wrong_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    """The error names the method, the parameter, the expected and the given type."""
    with pytest.raises(TypeError) as caught:
        bound(signature, *args, **kwargs)

    assert text == str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1, 2, 3), {}), ((), {}), ((1,), {"unknown": 1}), ((1,), {"self": 1}), ((1, 2), {"a": 1})]
)
def test_wrong_count_or_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Too many or too few arguments, and unknown names, are a TypeError that names the method."""

    def measure(self: Any, a: int, b: int = 0) -> None: ...

    with pytest.raises(TypeError, match=r"measure\(\): "):
        bound(measure, *args, **kwargs)


def test_unannotated_arguments_stay() -> None:
    """Without annotations everything is passed on as it came."""
    assert ([[1], "x"], {"c": None}) == bound(lambda self, a, b, **more: None, [1], "x", c=None)


def test_trailing_defaults() -> None:
    """Defaults of positional parameters, the last one first; none where an argument must be named."""

    def plain(self: Any, a: int, b: int = 2, c: int = 3) -> None: ...

    methods = Interface.of(made(plain=method(plain), named=method(signature))).methods

    assert ([3, 2], []) == (methods["plain"].trailing_defaults, methods["named"].trailing_defaults)


def test_result_is_converted() -> None:
    """The result has the type of the annotation; without one it stays."""
    results = Interface.of(made(typed=method(signature_of_result), plain=method(lambda self: 1))).methods

    assert ((1, Mode.FAST), [1]) == (results["typed"].load_result([1, "fast"]), results["plain"].load_result([1]))


def signature_of_result(self: Any) -> tuple[int, Mode]:
    raise NotImplementedError


def gives(expected: Any) -> Any:
    """A function with that result."""

    def function(self: Any) -> Any: ...

    function.__annotations__["return"] = expected
    return function


@pytest.mark.parametrize(
    ("members", "carries", "streamed"),
    [
        ({}, False, set()), ({"count": method(gives(int))}, False, set()), ({"moved": RPCSignal(float)}, False, set()),
        ({"noted": RPCSignal(Any)}, False, set()), ({"raw": RPCSignal(bytes)}, False, set()),
        ({"size": RPCProperty(gives(tuple[int, str]))}, False, set()),
        ({"take": method(gives(NDArray[Any]))}, True, set()),
        ({"take": method(gives(list[np.ndarray]))}, True, set()), ({"take": method(lambda self: 1)}, True, set()),
        ({"take": method(gives(Any))}, True, set()),
        ({"take": buffer(gives(tuple[bytes, dict[str, Any]]))}, True, set()),
        ({"mask": RPCProperty(gives(np.ndarray))}, True, set()),
        ({"mask": RPCProperty(gives(bytes | None))}, True, set()),
        ({"frames": RPCSignal(np.ndarray)}, True, {"frames"}),
        ({"frames": RPCSignal(int, NDArray[np.uint8]), "moved": RPCSignal(int)}, True, {"frames"}),
        ({"frames": RPCSignal(NDArray[np.uint8], dict[str, Any])}, True, {"frames"}),
        ({"frames": RPCSignal(list[np.ndarray])}, False, set()),
    ],
)  # fmt: skip
def test_what_carries_buffers(members: dict[str, Any], carries: bool, streamed: set[str]) -> None:
    """Results, values and streams may; a signal is a stream when an array is among its declared arguments."""
    interface = Interface.of(made(**members))

    assert (carries, streamed) == (interface.carries_buffers, interface.streamed)
    for each in (*interface.methods.values(), *interface.properties.values()):
        assert carries is each.carries_buffers


def hash_of(**members: Any) -> str:
    return Interface.of(made(**members)).hash


def measure(self: Any, a: int, b: float = 1.0) -> int:
    raise NotImplementedError


def test_hash() -> None:
    """Two classes with the same members have the same hash, whatever they are called and do."""

    def documented(self: Any, a: int, b: float = 1.0) -> int:
        """It does more than the other one."""
        return a

    one = hash_of(measure=method(measure), size=RPCProperty(lambda self: 1), moved=RPCSignal(int), other=3)
    other = type("Other", (), {"moved": RPCSignal(int), "size": RPCProperty(lambda self: 2), "_more": 1})
    other.measure = method(timeout=5)(documented)  # type: ignore[attr-defined]

    assert one == Interface.of(other).hash
    assert (16, True) == (len(one), set(one) <= set("0123456789abcdef"))


def renamed(self: Any, c: int, b: float = 1.0) -> int:
    raise NotImplementedError


def retyped(self: Any, a: str, b: float = 1.0) -> int:
    raise NotImplementedError


def with_other_default(self: Any, a: int, b: float = 2.0) -> int:
    raise NotImplementedError


def with_other_result(self: Any, a: int, b: float = 1.0) -> str:
    raise NotImplementedError


def number(self: Any) -> int:
    raise NotImplementedError


def text(self: Any) -> str:
    raise NotImplementedError


CHANGED = RPCSignal(int)


def test_hash_tells_members_apart() -> None:
    """Whatever a client can tell apart gives another hash: names, types, defaults, kinds, setters, notifications."""
    variants: list[dict[str, Any]] = [
        {},
        {"measure": method(measure)},
        {"gauge": method(measure)},
        {"measure": buffer(lambda self: (b"", {}))},
        {"measure": method(lambda self: None)},
        {"measure": method(renamed)},
        {"measure": method(retyped)},
        {"measure": method(with_other_default)},
        {"measure": method(with_other_result)},
        {"measure": method(measure), "measure2": method(measure)},
        {"size": RPCProperty(number)},
        {"size": RPCProperty(text)},
        {"size": RPCProperty(number, lambda self, value: None)},
        {"size": RPCProperty(number, notify=CHANGED), "changed": CHANGED},
        {"size": RPCProperty(number), "changed": RPCSignal(int)},
        {"size": RPCSignal(int)},
        {"size": RPCSignal(str)},
        {"size": RPCSignal(int, int)},
        {"size": method(number)},
    ]

    assert len(variants) == len({hash_of(**each) for each in variants})


def test_hash_is_the_same_everywhere() -> None:
    """Another process, in which texts have other hashes, has the same one."""
    imports = "from rpc_kit.interface import Interface; from tests.devices import Instrument"
    command = [sys.executable, "-c", f"{imports}; print(Interface.of(Instrument).hash)"]
    hashes = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(command, cwd=PROJECT, env=environment, check=True, capture_output=True, text=True)
        hashes.add(ran.stdout.strip())

    assert {Interface.of(Instrument).hash} == hashes


class CameraServer(MovingCamera, RPCServer):
    """Adds nothing."""


class TwoInterfaces(Movable, Camera, RPCServer):
    """No class before it has all of its members."""


class WithMore(MovingCamera, RPCServer):
    """Has a member of its own."""

    heated = RPCSignal(float)


class Plain(RPCServer):
    """Declares its members itself."""

    cooled = RPCSignal(float)


class SubServer(CameraServer):
    """A server derived from a server."""


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (CameraServer, MovingCamera), (SubServer, MovingCamera), (TwoInterfaces, TwoInterfaces), (WithMore, WithMore),
        (Plain, Plain), (Device, Device), (InstrumentServer, Instrument), (RPCServer, RPCServer),
    ],
)  # fmt: skip
def test_implemented_by(cls: type, expected: type) -> None:
    """A device implements the first class before it that has all of its members and is no server; or else itself."""
    assert Interface.of(expected) is implemented_by(cls, RPCServer)


def test_hash_of_implementation() -> None:
    """A server says of itself what its clients know of the interface."""
    assert Interface.of(MovingCamera).hash == implemented_by(CameraServer, RPCServer).hash
    assert Interface.of(MovingCamera).hash != Interface.of(WithMore).hash
