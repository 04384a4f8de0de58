"""Signals without a network."""

import gc
import logging
import threading
from typing import Any
from weakref import WeakMethod

import pytest

from rpc_kit import RPCSignal
from rpc_kit.signals import BoundSignal


class Device:
    """Has two signals."""

    moved = RPCSignal(float)
    imaged = RPCSignal(str, tuple[int, int])


class Listener:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def hear(self, *args: Any) -> None:
        self.heard.append(args)


def test_listeners_are_called_in_order_of_connection() -> None:
    """Each listener gets the arguments, the first connected first."""
    signal, heard = RPCSignal(int), []
    signal.connect(lambda value: heard.append(("first", value)))
    signal.connect(lambda value: heard.append(("second", value)))

    signal.emit(3)

    assert [("first", 3), ("second", 3)] == heard


def test_connecting_again_changes_nothing() -> None:
    """A listener, function or method, is called once however often it was connected."""
    signal, listener = RPCSignal(), Listener()
    for _ in range(2):
        signal.connect(listener.hear)
        signal.connect(WeakMethod(listener.hear))

    assert [listener.hear, WeakMethod(listener.hear)] == signal.connections


@pytest.mark.parametrize("conn", [None, 3, "text", [print]])
def test_connecting_something_else_is_a_type_error(conn: Any) -> None:
    """Only callables and weak methods can be connected."""
    with pytest.raises(TypeError, match=type(conn).__name__):
        RPCSignal().connect(conn)


def test_disconnect() -> None:
    """One listener, or all of them, can be disconnected; an unknown one is a ValueError."""
    signal, first, second = RPCSignal(), Listener(), Listener()
    signal.connect(first.hear)
    signal.connect(WeakMethod(second.hear))

    signal.disconnect(first.hear)
    assert [WeakMethod(second.hear)] == signal.connections
    with pytest.raises(ValueError, match="not connected"):
        signal.disconnect(first.hear)
    signal.disconnect()
    assert [] == signal.connections
    signal.disconnect()


def test_dead_weak_method_is_skipped() -> None:
    """A weak method does not keep its object alive, and is passed over when that is gone."""
    signal, dead, living = RPCSignal(int), Listener(), Listener()
    signal.connect(WeakMethod(dead.hear))
    signal.connect(WeakMethod(living.hear))
    del dead
    gc.collect()

    signal.emit(3)

    assert [(3,)] == living.heard


def test_exception_of_listener_reaches_emit() -> None:
    """What a listener raises comes out of emit."""
    signal = RPCSignal()
    signal.connect(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        signal.emit()


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_deliver_logs_what_listeners_raise(caplog: pytest.LogCaptureFixture, kind: type[BaseException]) -> None:
    """On a client a listener that raises, or exits, is logged and keeps nothing from the others."""
    signal, listener = RPCSignal(int), Listener()

    def fail(value: int) -> None:
        raise kind

    signal.connect(fail)
    signal.connect(listener.hear)

    signal.deliver((3,))

    assert [(3,)] == listener.heard
    assert [(logging.ERROR, kind)] == [
        (record.levelno, record.exc_info and record.exc_info[0]) for record in caplog.records
    ]


def test_emit_coerces() -> None:
    """Arguments reach the listeners in the declared types."""
    device, listener = Device(), Listener()
    device.imaged.connect(listener.hear)
    device.moved.connect(listener.hear)

    device.imaged.emit("a", [3, 4])
    device.moved.emit(3)

    assert [("a", (3, 4)), (3.0,)] == listener.heard
    assert float is type(listener.heard[1][0])


def test_validate_args_without_coercion() -> None:
    """Arguments of the right types are given back as a tuple, unchanged."""
    assert ("a", (3, 4)) == Device().imaged.validate_args("a", (3, 4))


@pytest.mark.parametrize("coerce", [False, True])
@pytest.mark.parametrize("args", [(), ("a",), ("a", (1, 2), 3)])
def test_wrong_number_of_arguments(args: tuple[Any, ...], coerce: bool) -> None:
    """A wrong count is a RuntimeError that says both counts."""
    with pytest.raises(RuntimeError, match=f"imaged takes 2 arguments, got {len(args)}"):
        Device().imaged.validate_args(*args, coerce=coerce)


@pytest.mark.parametrize(
    ("args", "coerce"), [(("a", [1, 2]), False), ((3, (1, 2)), False), (("a", (1, 2, 3)), True), ((3, (1, 2)), True)]
)
def test_wrong_type_of_argument(args: tuple[Any, ...], coerce: bool) -> None:
    """A wrong type is a TypeError, also where the types are converted when that is not possible."""
    with pytest.raises(TypeError):
        Device().imaged.validate_args(*args, coerce=coerce)


def test_text_of_wrong_argument() -> None:
    """The error of an emission names the signal."""
    with pytest.raises(TypeError) as caught:
        Device().moved.emit("far")

    assert "signal moved: expected float, got str ('far')" == str(caught.value)


def test_signal_of_a_base_class_takes_subclasses() -> None:
    """An instance of a subclass is passed on as it is."""
    signal, listener, error = RPCSignal(Exception, object), Listener(), ValueError("x")
    signal.connect(listener.hear)

    signal.emit(error, 3)

    assert [(error, 3)] == listener.heard


def test_devices_do_not_share_connections() -> None:
    """Each device object has its own signal, always the same one."""
    one, other, listener = Device(), Device(), Listener()
    one.moved.connect(listener.hear)

    other.moved.emit(1.0)

    assert one.moved is one.moved
    assert [] == listener.heard
    assert [] == other.moved.connections


def test_class_gives_the_declaration() -> None:
    """On the class a signal can be looked at, but neither connected nor emitted."""
    assert isinstance(Device.moved, RPCSignal)
    assert ("moved", (float,)) == (Device.moved.name, Device.moved.arg_types)
    assert ("moved", (float,)) == (Device().moved.name, Device().moved.arg_types)
    with pytest.raises(TypeError, match="Device.moved is only the declaration"):
        Device.moved.connect(print)
    with pytest.raises(TypeError, match="Device.moved is only the declaration"):
        Device.moved.emit(1.0)


def test_published_before_listeners_are_called() -> None:
    """Remote clients are served first, so that a listener that raises keeps nothing from them."""
    signal, published = Device().moved, []
    signal.publish_to(published.append)
    signal.connect(lambda value: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        signal.emit(2)
    signal.publish_to(None)
    with pytest.raises(ZeroDivisionError):
        signal.emit(3)

    assert [(2.0,)] == published


def test_wrong_arguments_are_not_published() -> None:
    """What cannot be converted reaches nobody."""
    signal, published = Device().moved, []
    signal.publish_to(published.append)

    with pytest.raises(TypeError):
        signal.emit("far")

    assert [] == published


def test_listener_may_disconnect_itself() -> None:
    """Changing the connections during an emission does not disturb it."""
    signal, listener = RPCSignal(), Listener()

    def once() -> None:
        signal.disconnect(once)
        listener.hear("once")

    signal.connect(once)
    signal.connect(listener.hear)
    signal.emit()
    signal.emit()

    assert [("once",), (), ()] == listener.heard


def test_first_use_from_many_threads() -> None:
    """Threads that use a device's signal for the first time at once get one and the same."""
    device, barrier, found = Device(), threading.Barrier(8), []

    def use() -> None:
        barrier.wait(10)
        found.append(device.moved)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [device.moved] * 8 == found


def test_emission_from_many_threads() -> None:
    """Every emission of every thread arrives."""
    signal, heard = BoundSignal(int), []
    signal.connect(heard.append)
    threads = [threading.Thread(target=lambda: [signal.emit(value) for value in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted([*range(200)] * 4) == sorted(heard)
