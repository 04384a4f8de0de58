"""The one description of the camera, shared by the device and its clients."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rpc_kit import RPCProperty, RPCServer, RPCSignal


class ColorMode(Enum):
    GREY = "grey"
    COLOR = "color"


@dataclass(frozen=True)
class Picture:
    """What is known of a picture before it is taken."""

    name: str
    width: int
    height: int
    mode: ColorMode


class Camera(ABC):
    """A camera that looks at a series of scenes."""

    exposure_changed = RPCSignal(float)
    resolution_changed = RPCSignal(tuple[int, int])
    picture_taken = RPCSignal(str)

    @RPCProperty(notify=exposure_changed, auto_notify=True)
    @abstractmethod
    def exposure(self) -> float:
        """Exposure time, s."""

    @exposure.setter
    @abstractmethod
    def _set_exposure(self, value: float) -> None: ...

    @RPCProperty(notify=resolution_changed, auto_notify=True)
    @abstractmethod
    def resolution(self) -> tuple[int, int]:
        """Width and height of every image, pixels."""

    @resolution.setter
    @abstractmethod
    def _set_resolution(self, value: tuple[int, int]) -> None: ...

    @RPCServer.register_method_json
    @abstractmethod
    def list_pictures(self) -> list[str]:
        """Names of the pictures, in the order of their index."""

    @RPCServer.register_method_json(timeout=5000)
    @abstractmethod
    def describe_picture(self, index: int) -> Picture:
        """Size and colours of a picture as it lies on disk."""

    @RPCServer.register_method_buffer(timeout=30000)
    @abstractmethod
    def get_image(self, index: int) -> tuple[memoryview, dict[str, Any]]:
        """Take a picture at the present exposure and resolution.

        Returns
        -------
        buffer
            The pixels, ``(H, W) uint8`` in grey or ``(H, W, 3) uint8`` in colour.
        info
            `name`, `dtype` and `shape`.
        """
