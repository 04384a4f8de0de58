"""What is easily forgotten or mistaken in declarations is said when the class is made, or does not matter."""

from abc import ABC, abstractmethod
from typing import Any

import pytest

from rpc_kit import RPCClient, RPCProperty, RPCServer, RPCSignal
from rpc_kit.errors import InterfaceError
from rpc_kit.interface import Interface
from tests.devices import Instrument, InstrumentClient, InstrumentServer
from tests.helpers import wait_until

method = RPCServer.register_method_json


class Lamp(ABC):
    """A complete interface."""

    changed = RPCSignal(float)

    @RPCProperty(notify=changed, auto_notify=True)
    @abstractmethod
    def power(self) -> float: ...

    @power.setter
    @abstractmethod
    def _set_power(self, value: float) -> None: ...

    @method
    @abstractmethod
    def switch(self, on: bool, *, fade: Any = None, colour: str = "white") -> tuple[Any, str]: ...


class BareLamp(Lamp, RPCServer):
    """Says nothing of notification, and has defaults of its own."""

    _power = 0.0

    @RPCProperty
    def power(self) -> float:
        return self._power

    @power.setter
    def _set_power(self, value: float) -> None:
        self._power = value

    def switch(self, on: bool, *, fade: Any = 3, colour: str = "red") -> tuple[Any, str]:
        return fade, colour


@RPCClient.register_interface(Lamp)
class LampClient(Lamp, RPCClient):
    pass


def test_notification_is_inherited(serve: Any, context: Any) -> None:
    """A bare property of a device has the notification of the interface, auto_notify included."""
    with LampClient(context, serve(BareLamp).url) as client:
        powers: list[float] = []
        client.changed.connect(powers.append)
        client.power = 2.5

        wait_until(lambda: [2.5] == powers)
    assert (Lamp.changed, True) == (BareLamp.power.notify, BareLamp.power.auto_notify)


def test_device_decides_on_keyword_defaults(serve: Any, context: Any) -> None:
    """Keyword-only arguments that are left at their defaults are not sent."""
    with LampClient(context, serve(BareLamp).url) as client:
        assert (3, "red") == client.switch(True)
        assert (1, "red") == client.switch(True, fade=1)
        assert (3, "blue") == client.switch(True, colour="blue")


@pytest.mark.parametrize(
    ("forgotten", "wanted"),
    [
        (abstractmethod(lambda self: 1), "marked by @RPCServer.register_method_json"),
        (property(abstractmethod(lambda self: 1)), "an RPCProperty"),
    ],
)
def test_forgotten_mark(forgotten: Any, wanted: str) -> None:
    """What is abstract in an interface and no member is an error, for servers and clients alike."""
    interface = type("Odd", (), {"level": forgotten, "changed": RPCSignal(int)})
    text = f"Odd.level is abstract, but no member: it must be {wanted}"
    with pytest.raises(InterfaceError, match=text):
        Interface.of(type("Device", (interface,), {"level": 1}))
    with pytest.raises(InterfaceError, match=text):
        RPCClient.register_interface(interface)(type("Client", (interface, RPCClient), {}))


def test_abstract_bases_of_others() -> None:
    """A base without members, such as a driver's, may be abstract in any way; so may private methods."""

    class Driver(ABC):
        @abstractmethod
        def open(self) -> None: ...

    class Device(Driver):
        changed = RPCSignal(int)

        @abstractmethod
        def _read(self) -> int: ...

    assert ["changed"] == list(Interface.of(Device))


def without_self(*args: int) -> None: ...


def without_any() -> None: ...


def only_by_name(*, this: Any) -> None: ...


@pytest.mark.parametrize("function", [without_self, without_any, only_by_name])
def test_method_without_self(function: Any) -> None:
    """A method without a first positional parameter cannot be called on an object."""
    with pytest.raises(InterfaceError, match="measure: a method has a proper name and the parameter self"):
        Interface.of(type("Odd", (), {"measure": method(function)}))


@pytest.mark.parametrize("name", ["class", "two words", "1st", ""])
def test_improper_name(name: str) -> None:
    """A name that no client could write is refused."""
    with pytest.raises(InterfaceError, match=f"{name}: a method has a proper name"):
        Interface.of(type("Odd", (), {name: method(lambda self: 1)}))


@pytest.mark.parametrize(
    "function",
    [lambda self, _method_: 1, lambda self, *_call_: 1, lambda self, *, _method_=1: 1, lambda _call_: 1],
)
def test_parameters_of_our_own(function: Any) -> None:
    """Names that the client's functions use themselves are refused."""
    with pytest.raises(InterfaceError, match="measure: a parameter cannot be called _method_ or _call_"):
        Interface.of(type("Odd", (), {"measure": method(function)}))


def test_forgotten_init(context: Any) -> None:
    """Whoever does not call super().__init__ is told so at the first use."""

    class Device(InstrumentServer):
        def __init__(self) -> None:
            pass

    @RPCClient.register_interface(Instrument)
    class Client(Instrument, RPCClient):
        def __init__(self) -> None:
            pass

    device, client = Device(), Client()
    for use in (lambda: device.url, device.serve_forever, device.stop_server, device.__enter__().__exit__):
        with pytest.raises(AttributeError, match=r"Device.__init__ has not called super\(\).__init__\(context, url\)"):
            use()
    for use in (lambda: client.url, lambda: client.level, client.count, client.close):
        with pytest.raises(AttributeError, match=r"Client.__init__ has not called super\(\).__init__\(context, url\)"):
            use()


def test_attribute_error_of_getter(serve: Any, context: Any) -> None:
    """What a device misses in a getter is said as it is, here and at the client."""

    class Broken(BareLamp):
        @RPCProperty
        def power(self) -> float:
            return float(self.camera.gain)  # type: ignore[attr-defined]

    device = serve(Broken)
    with LampClient(context, device.url) as client:
        for each in (device, client):
            with pytest.raises(AttributeError, match="'Broken' object has no attribute 'camera'"):
                _ = each.power


def test_unknown_attribute(device: Any, client: Any) -> None:
    """An attribute that is not there is the usual AttributeError, on both sides."""
    for each in (device, client):
        with pytest.raises(AttributeError, match=f"'{type(each).__name__}' object has no attribute 'colour'"):
            _ = each.colour


def test_swapped_arguments(context: Any) -> None:
    """Context and url in the wrong order, or something else in their place, are a TypeError."""
    for make in (InstrumentServer, InstrumentClient):
        with pytest.raises(TypeError, match="the first argument is a zmq.Context, the second a url; got str"):
            make("tcp://127.0.0.1:0", context)  # type: ignore[operator]
        with pytest.raises(TypeError, match="a url is a text such as 'tcp://host:9000', not int"):
            make(context, 9000)  # type: ignore[operator]


def test_decorator_without_parentheses() -> None:
    """The text says how the decorator is written."""
    with pytest.raises(TypeError, match=r"write @RPCClient.register_interface\(Interface\)"):

        @RPCClient.register_interface
        class Client(Instrument, RPCClient):
            pass
