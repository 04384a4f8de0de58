"""A camera without hardware: it pans over photographs, and burns the number of each frame into its pixels."""

import numpy as np
import zmq
from numpy.typing import NDArray

from examples.camera.photographs import NOMINAL_EXPOSURE, sample_photographs, take
from examples.camera_stream.device import CameraServer

SCENES = ("rocket", "coffee", "chelsea", "motorcycle_left", "hubble_deep_field", "astronaut")
STEP = 2
"""So many pixels further with each frame."""
BITS = 32
SQUARE = 8
"""Pixels of the side of a bit: it survives JPEG."""


class SimulatedCamera(CameraServer):
    """A camera that moves slowly from one photograph to the next."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        url: str,
        size: tuple[int, int] = (640, 480),
        frame_rate: float = 30.0,
    ) -> None:
        if size[0] < BITS * SQUARE or size[1] < SQUARE:
            raise ValueError(f"a picture is at least {BITS * SQUARE} x {SQUARE}, not {size[0]} x {size[1]}")
        found = {path.stem: path for path in sample_photographs()}
        self._scenes = [found[name] for name in SCENES]
        self._size = size
        self._apply_exposure(NOMINAL_EXPOSURE)
        super().__init__(context, url, size, frame_rate)

    def _apply_exposure(self, value: float) -> None:
        # Here, so that a frame costs no more than a copy of its pixels.
        scenes = [take(path, self._size, value) for path in self._scenes]
        self._panorama = np.hstack([*scenes, scenes[0]])
        self._way = self._panorama.shape[1] - self._size[0]

    def _take(self, image: NDArray[np.uint8]) -> None:
        left = self._frame_number * STEP % self._way
        image[:] = self._panorama[:, left : left + image.shape[1]]
        burn(image, self._frame_number)


def burn(image: NDArray[np.uint8], number: int) -> None:
    """Write a number into the upper left corner, one square for each bit."""
    bits = (number >> np.arange(BITS) & 1).astype(np.uint8) * np.uint8(255)
    image[:SQUARE, : BITS * SQUARE] = np.repeat(bits, SQUARE)[:, np.newaxis]


def burnt_number(image: NDArray[np.uint8]) -> int:
    """The number that `burn` has written."""
    bits = image[SQUARE // 2, SQUARE // 2 : BITS * SQUARE : SQUARE, 0] > 127
    return int(np.sum(bits * (1 << np.arange(BITS))))
