"""A camera without hardware: it shows the pictures of a folder, one after another."""

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import zmq
from numpy.typing import NDArray

from examples.camera.photographs import PhotographError, find_photographs, take
from examples.camera_stream.device import CameraError, CameraServer

KEPT = 32
"""So many pictures are decoded once only."""

logger = logging.getLogger(__name__)


class FolderCamera(CameraServer):
    """A camera that sees the pictures of a folder in the order of their names, and then again.

    Parameters
    ----------
    folder
        One that is missing, or has no picture, is a `PhotographError`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        url: str,
        folder: Path,
        size: tuple[int, int] = (640, 480),
        frame_rate: float = 30.0,
    ) -> None:
        self._pictures = find_photographs(folder)
        self._folder = folder
        self._next = 0
        self._size = size
        self._take_cached = lru_cache(maxsize=KEPT)(take)
        super().__init__(context, url, size, frame_rate)

    def _take(self, image: NDArray[np.uint8]) -> None:
        while self._pictures:
            path = self._pictures[self._next % len(self._pictures)]
            try:
                picture = self._take_cached(path, self._size, self._exposure)
            except PhotographError as exc:
                logger.warning("skipped: %s", exc)
                self._pictures.remove(path)
                continue
            image[:] = picture if picture.ndim == 3 else picture[:, :, np.newaxis]
            self._next = (self._next + 1) % len(self._pictures)
            return
        raise CameraError(f"no picture in {self._folder} is readable")
