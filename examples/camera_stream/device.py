"""What all cameras have in common: a thread that takes pictures and emits them."""

import logging
import time
from abc import abstractmethod
from threading import Event, Lock, Thread

import numpy as np
import zmq
from numpy.typing import NDArray

from examples.camera.photographs import NOMINAL_EXPOSURE
from examples.camera_stream.interface import Camera
from rpc_kit import RPCProperty, RPCServer

FASTEST = 1000.0
LONGEST_EXPOSURE = 1.0
END_LIMIT = 5.0

logger = logging.getLogger(__name__)


class CameraError(RuntimeError):
    """A camera that is not there, or gives no more pictures."""


class CameraServer(Camera, RPCServer):
    """A camera of which only the pictures are missing.

    Parameters
    ----------
    size
        Width and height of every picture, pixels.
    frame_rate
        Frames per second.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], url: str, size: tuple[int, int], frame_rate: float
    ) -> None:
        self._shape = (size[1], size[0], 3)
        self._exposure = NOMINAL_EXPOSURE
        self._frame_rate = checked_frame_rate(frame_rate)
        self._frame_number = 0
        self._fault = ""
        # Held while a picture is taken: drivers do not like to be set at the same time.
        self._taking = Lock()
        self._stopping = Event()
        self._thread: Thread | None = None
        super().__init__(context, url)

    @abstractmethod
    def _take(self, image: NDArray[np.uint8]) -> None:
        """Write the next picture into `image`."""

    def _apply_exposure(self, value: float) -> None:
        """Tell the hardware."""

    def _apply_frame_rate(self, value: float) -> None:
        """Tell the hardware."""

    def _seconds_to_next(self, due: float) -> float:
        """How long to wait for the next picture; a driver that waits by itself says 0."""
        return due - time.monotonic()

    @RPCProperty
    def exposure(self) -> float:
        return self._exposure

    @exposure.setter
    def _set_exposure(self, value: float) -> None:
        if not 0 < value <= LONGEST_EXPOSURE:
            raise ValueError(f"the exposure is between 0 and {LONGEST_EXPOSURE:g} s, not {value:g}")
        with self._taking:
            self._apply_exposure(value)
            self._exposure = value

    @RPCProperty
    def frame_rate(self) -> float:
        return self._frame_rate

    @frame_rate.setter
    def _set_frame_rate(self, value: float) -> None:
        checked_frame_rate(value)
        with self._taking:
            self._apply_frame_rate(value)
            self._frame_rate = value

    @RPCProperty
    def frame_number(self) -> int:
        return self._frame_number

    @RPCProperty
    def fault(self) -> str:
        return self._fault

    def start(self) -> None:
        if self._thread is not None and self._thread.is_alive() and not self._stopping.is_set():
            return
        self.stop()
        self._fault = ""
        self._stopping.clear()
        self._thread = Thread(target=self._acquire, name="acquisition", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(END_LIMIT)
            if self._thread.is_alive():
                raise CameraError(f"the camera still takes a picture after {END_LIMIT:g} s")
            self._thread = None

    def get_image(self) -> NDArray[np.uint8]:
        # A slot of shared memory, if clients can see it: the picture is written where they will read it.
        image: NDArray[np.uint8] = self.loan(self._shape)
        with self._taking:
            self._take(image)
        return image

    def _acquire(self) -> None:
        due = time.monotonic()
        try:
            while not self._stopping.wait(max(0.0, self._seconds_to_next(due))):
                image: NDArray[np.uint8] = self.loan(self._shape)
                with self._taking:
                    self._frame_number += 1
                    number, now = self._frame_number, time.time()
                    self._take(image)
                self.frames.emit(image, number, now)
                # One that is late goes on from now, and does not take all that it has missed at once.
                due = max(due + 1 / self._frame_rate, time.monotonic())
        except Exception as exc:
            self._fault = str(exc) or repr(exc)
            logger.error("stopped: %s", self._fault, exc_info=not isinstance(exc, CameraError))

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop()
        finally:
            super().__exit__(*exc_info)


def checked_frame_rate(value: float) -> float:
    if not 0 < value <= FASTEST:
        raise ValueError(f"the frame rate is between 0 and {FASTEST:g} frames/s, not {value:g}")
    return value
