"""A client is the interface to mypy: this module has no errors."""

from typing import Any, assert_type

import zmq

from examples.camera.interface import Camera, Picture
from rpc_kit import RPCClient, RPCProperty, RPCServer, RPCSignal
from rpc_kit.signals import BoundSignal


@RPCClient.register_interface(Camera)
class CameraClient(Camera, RPCClient):
    """Everything that a client needs."""


def double_exposure(camera: Camera) -> None:
    """Takes a device or a client."""
    camera.exposure = 2 * camera.exposure


def use(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """All that a user does with a client."""
    with CameraClient(context, "tcp://127.0.0.1:9000", timeout=500, on_error="return", liveness=2.0) as camera:
        assert_type(camera, CameraClient)
        double_exposure(camera)
        assert_type(camera.exposure, float)
        assert_type(camera.resolution, tuple[int, int])
        assert_type(camera.list_pictures(), list[str])
        assert_type(camera.describe_picture(index=3), Picture)
        assert_type(camera.get_image(0), tuple[memoryview, dict[str, Any]])
        assert_type(camera.exposure_changed, BoundSignal)
        camera.exposure = 1
        camera.exposure_changed.connect(print)
        camera.stop_server()


class Stage:
    """The forms of a declaration that mypy understands."""

    moved = RPCSignal(float)

    def __init__(self) -> None:
        self._position = 0.0

    @RPCProperty(notify=moved, auto_notify=True)
    def position(self) -> float:
        """With notification, and a setter below."""
        return self._position

    @position.setter
    def _set_position(self, value: float) -> None:
        self._position = value

    @RPCProperty
    def axes(self) -> list[str]:
        """Bare and read-only."""
        return ["x"]

    @RPCServer.register_method_json
    def home(self, axis: str) -> bool:
        """A bare mark."""
        return axis in self.axes

    @RPCServer.register_method_buffer(timeout=None)
    def trace(self) -> tuple[bytes, dict[str, Any]]:
        """A mark with arguments."""
        return b"", {}


def move(stage: Stage) -> None:
    """Marks and descriptors keep the types of what they decorate."""
    stage.position = 2.0
    assert_type(stage.position, float)
    assert_type(stage.axes, list[str])
    assert_type(stage.home("x"), bool)
    assert_type(stage.trace(), tuple[bytes, dict[str, Any]])
    stage.moved.emit(1.0)
