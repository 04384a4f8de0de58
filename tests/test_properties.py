"""Properties that notify."""

import logging
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pytest

from rpc_kit import RPCProperty, RPCSignal


class Camera:
    """A property in the usual form, one in the form that mypy understands, and one that notifies by itself."""

    exposure_changed = RPCSignal(float)
    gain_changed = RPCSignal(object)
    mode_changed = RPCSignal(str)

    def __init__(self) -> None:
        self._exposure = 1.0
        self._gain: Any = 1
        self._mode = "grey"

    @RPCProperty(notify=exposure_changed, auto_notify=True)
    def exposure(self) -> float:
        """Exposure time, s."""
        return self._exposure

    @exposure.setter
    def exposure(self, value: float) -> None:
        if value < 0:
            raise ValueError("negative")
        self._exposure = min(value, 10.0)

    @RPCProperty(notify=gain_changed, auto_notify=True)
    def gain(self) -> Any:
        """Any value."""
        return self._gain

    @gain.setter
    def _set_gain(self, value: Any) -> None:
        self._gain = value

    @RPCProperty(notify=mode_changed)
    def mode(self) -> str:
        """Emitted by the setter."""
        return self._mode

    @mode.setter
    def mode(self, value: str) -> None:
        self._mode = value
        self.mode_changed.emit(value.upper())

    @RPCProperty
    def serial(self) -> str:
        """Read-only."""
        return "A1"


def heard(signal: Any) -> list[Any]:
    """What the signal is going to emit."""
    values: list[Any] = []
    signal.connect(values.append)
    return values


def test_auto_notify_tells_of_changes_only() -> None:
    """A set that changes the value, as read back, emits the signal with it, once."""
    camera = Camera()
    values = heard(camera.exposure_changed)

    for value in (1.0, 2.0, 2.0, 20.0, 30.0):
        camera.exposure = value

    assert [2.0, 10.0] == values


def test_typed_setter_completes_its_property() -> None:
    """A setter under a name of its own leaves nothing under that name."""
    camera = Camera()
    values = heard(camera.gain_changed)

    camera.gain = 2

    assert (2, [2]) == (camera.gain, values)
    assert not hasattr(Camera, "_set_gain")
    assert Camera.gain.fset is not None
    assert ("gain", "gain_changed", True) == (Camera.gain.name, Camera.gain.notify.name, Camera.gain.auto_notify)


def test_without_auto_notify_the_setter_emits() -> None:
    """Nothing is emitted but what the setter emits by itself."""
    camera = Camera()
    values = heard(camera.mode_changed)

    camera.mode = "grey"

    assert ["GREY"] == values


def test_accessors_keep_notify() -> None:
    """getter, setter and deleter give copies that keep notify and auto_notify, and leave the original alone."""
    signal = RPCSignal(int)
    original = RPCProperty(lambda self: 1, notify=signal, auto_notify=True)
    for made in (original.getter(len), original.setter(setattr), original.deleter(len)):
        assert (signal, True) == (made.notify, made.auto_notify)
    assert (None, None) == (original.fset, original.fdel)


@pytest.mark.parametrize(
    ("value", "expected"), [(np.array([1, 2]), 0), (np.array([1, 3]), 1), (np.array([1, 2, 3]), 1), ([1, 2], 0)]
)
def test_arrays_are_compared_as_a_whole(value: Any, expected: int) -> None:
    """An array that equals the value before is no change."""
    camera = Camera()
    camera.gain = np.array([1, 2])
    values = heard(camera.gain_changed)

    camera.gain = value

    assert expected == len(values)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((np.zeros(2), 1), (np.zeros(2), 1), 1),
        (math.nan, 1.0, 1),
        (np.float64(1), 1, 0),
        ([1, [2]], [1, [2]], 0),
        (None, 0, 1),
        ("1", 1, 1),
    ],
    ids=str,
)
def test_change_of_other_values(before: Any, after: Any, expected: int) -> None:
    """Values are compared by ==; those that cannot be compared count as changed."""
    camera = Camera()
    camera.gain = before
    values = heard(camera.gain_changed)

    camera.gain = after

    assert expected == len(values)


@pytest.mark.parametrize("kept", [[0, 0], np.zeros(2), bytearray(2), {0: 0, 1: 0}], ids=lambda kept: type(kept))
def test_change_in_place_is_a_change(kept: Any) -> None:
    """A setter that writes into the object that the getter returns notifies, too."""

    class Stage:
        moved = RPCSignal(object)

        @RPCProperty(notify=moved, auto_notify=True)
        def target(self) -> Any:
            return kept

        @target.setter
        def target(self, value: int) -> None:
            kept[0] = value

    stage = Stage()
    values = heard(stage.moved)
    stage.target = 0
    stage.target = 3

    assert 1 == len(values)


def test_failing_notification_does_not_break_the_setter(caplog: pytest.LogCaptureFixture) -> None:
    """A listener that raises, or a value that does not fit the signal, is logged and the value is set."""
    camera = Camera()
    camera.exposure_changed.connect(lambda value: 1 / 0)

    camera.exposure = 3.0

    assert 3.0 == camera.exposure
    assert [(logging.ERROR, "notification exposure_changed of Camera failed")] == [
        (record.levelno, record.getMessage()) for record in caplog.records
    ]


def test_error_of_setter_reaches_the_caller() -> None:
    """A setter that raises changes nothing and emits nothing."""
    camera = Camera()
    values = heard(camera.exposure_changed)

    with pytest.raises(ValueError, match="negative"):
        camera.exposure = -1.0

    assert (1.0, []) == (camera.exposure, values)


def test_property_that_cannot_be_read_yet_can_be_set() -> None:
    """A getter that raises before the first set counts as a change."""

    class Stage:
        moved = RPCSignal(int)

        @RPCProperty(notify=moved, auto_notify=True)
        def target(self) -> int:
            return self._target

        @target.setter
        def target(self, value: int) -> None:
            self._target = value

    stage = Stage()
    values = heard(stage.moved)
    stage.target = 3

    assert [3] == values


def test_missing_accessors() -> None:
    """As of property: AttributeError for what has no setter, deleter or getter."""
    camera = Camera()
    with pytest.raises(AttributeError, match="'serial' of 'Camera' object has no setter"):
        camera.serial = "B2"
    with pytest.raises(AttributeError, match="'serial' of 'Camera' object has no deleter"):
        del camera.serial
    write_only = type("Lamp", (), {"power": RPCProperty(fset=setattr)})
    with pytest.raises(AttributeError, match="'power' of 'Lamp' object has no getter"):
        write_only().power  # noqa: B018


def test_deleter() -> None:
    """The deleter is called with the object."""
    deleted: list[Any] = []
    lamp = type("Lamp", (), {"power": RPCProperty(lambda self: 1, fdel=deleted.append)})()

    del lamp.power

    assert [lamp] == deleted


def test_docstring() -> None:
    """The getter's docstring is the property's, unless another one is given."""
    assert "Exposure time, s." == Camera.exposure.__doc__
    assert "Other." == RPCProperty(Camera.exposure.fget, doc="Other.").setter(setattr).__doc__
    assert "Other." == RPCProperty(doc="Other.")(Camera.exposure.fget).__doc__


def test_auto_notify_needs_a_signal() -> None:
    """auto_notify without notify is a TypeError."""
    with pytest.raises(TypeError, match="auto_notify needs a signal"):
        RPCProperty(auto_notify=True)


def test_complete_property_is_not_callable() -> None:
    """A second getter cannot be given by calling."""
    with pytest.raises(TypeError, match="not callable"):
        Camera.serial(len)


def test_subclass_overrides_one_accessor() -> None:
    """A setter made from the base's property keeps its getter and signal, in both forms; the base is unchanged."""

    class Doubling(Camera):
        @Camera.exposure.setter
        def exposure(self, value: float) -> None:
            self._exposure = 2 * value

        @Camera.gain.setter
        def _set_gain(self, value: Any) -> None:
            self._gain = 2 * value

    camera = Doubling()
    exposures, gains = heard(camera.exposure_changed), heard(camera.gain_changed)
    camera.exposure = 3.0
    camera.gain = 4
    base = Camera()
    base.exposure = 3.0

    assert ([6.0], [8], 3.0) == (exposures, gains, base.exposure)


def test_subclass_redeclares_the_signal() -> None:
    """The signal that is emitted is the one that the device's class has under that name."""

    class Other(Camera):
        exposure_changed = RPCSignal(float)

    camera = Other()
    values = heard(camera.exposure_changed)
    camera.exposure = 3.0

    assert [3.0] == values


def test_devices_do_not_share_notifications() -> None:
    """A set on one device is not told by another."""
    values = heard(Camera().exposure_changed)

    Camera().exposure = 3.0

    assert [] == values


def test_abstract_property() -> None:
    """An abstract property keeps its class abstract until getter and setter are there."""

    class Lamp(ABC):
        @RPCProperty
        @abstractmethod
        def power(self) -> float: ...

        @power.setter
        @abstractmethod
        def _set_power(self, value: float) -> None: ...

    class ReadOnly(Lamp):
        @Lamp.power.getter
        def power(self) -> float:
            return 1.0

    class Complete(ReadOnly):
        @ReadOnly.power.setter
        def power(self, value: float) -> None: ...

    assert [{"power"}, {"power"}, set()] == [set(each.__abstractmethods__) for each in (Lamp, ReadOnly, Complete)]
    assert 1.0 == Complete().power
