"""The one description of a camera that streams, shared by the devices and their clients."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from rpc_kit import RPCProperty, RPCServer, RPCSignal


class Camera(ABC):
    """A camera that gives pictures one by one, or a stream of them."""

    # The picture, (H, W, 3) uint8 RGB; its number, one more than that of the picture before; Unix time, s.
    frames = RPCSignal(NDArray[np.uint8], int, float)
    exposure_changed = RPCSignal(float)
    frame_rate_changed = RPCSignal(float)

    @RPCProperty(notify=exposure_changed, auto_notify=True)
    @abstractmethod
    def exposure(self) -> float:
        """Exposure time, s."""

    @exposure.setter
    @abstractmethod
    def _set_exposure(self, value: float) -> None: ...

    @RPCProperty(notify=frame_rate_changed, auto_notify=True)
    @abstractmethod
    def frame_rate(self) -> float:
        """Frames per second while the camera streams."""

    @frame_rate.setter
    @abstractmethod
    def _set_frame_rate(self, value: float) -> None: ...

    @RPCProperty
    @abstractmethod
    def frame_number(self) -> int:
        """Number of the last frame; 0 before the first one."""

    @RPCProperty
    @abstractmethod
    def fault(self) -> str:
        """Why the camera has stopped by itself; empty when it has not."""

    @RPCServer.register_method_json
    @abstractmethod
    def start(self) -> None:
        """Stream, if it does not yet."""

    @RPCServer.register_method_json
    @abstractmethod
    def stop(self) -> None:
        """Do not stream any more, for nobody."""

    @RPCServer.register_method_json(timeout=10000)
    @abstractmethod
    def get_image(self) -> NDArray[np.uint8]:
        """Take one picture, ``(H, W, 3) uint8``, whether the camera streams or not."""
