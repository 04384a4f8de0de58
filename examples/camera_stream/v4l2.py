"""A camera of Video4Linux, or a video file in its place, by OpenCV."""

from math import nan
from pathlib import Path

import cv2
import numpy as np
import zmq
from numpy.typing import NDArray

from examples.camera_stream.device import CameraError, CameraServer

EXPOSURE_UNIT = 1e-4
"""Of V4L2_CID_EXPOSURE_ABSOLUTE, s (camera control reference of the kernel's documentation)."""
MANUAL_EXPOSURE = 1
"""V4L2_EXPOSURE_MANUAL."""


class V4L2Camera(CameraServer):
    """A webcam, or whatever else OpenCV opens.

    Parameters
    ----------
    source
        The number n of ``/dev/video<n>``; or a video file, which begins again when it is over.
    frame_rate
        Frames per second; unless it is given, those of the camera or the file.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        url: str,
        source: int | Path,
        frame_rate: float | None = None,
    ) -> None:
        self._given = source
        self._is_file = isinstance(source, Path)
        self._source = str(source) if isinstance(source, Path) else f"/dev/video{source}"
        self._capture = opened(source, self._source)
        if frame_rate is not None and not self._is_file:
            self._capture.set(cv2.CAP_PROP_FPS, frame_rate)
            frame_rate = None
        height, width = self._read().shape[:2]
        if self._is_file:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        # What a driver does not know is 0 or -1.
        own_rate = max(0.0, self._capture.get(cv2.CAP_PROP_FPS)) or 30.0
        own_exposure = 0.0 if self._is_file else self._capture.get(cv2.CAP_PROP_EXPOSURE) * EXPOSURE_UNIT
        super().__init__(context, url, (width, height), own_rate if frame_rate is None else frame_rate)
        self._exposure = own_exposure if own_exposure > 0 else nan

    def start(self) -> None:
        if self._fault:
            # It may have been unplugged.
            self._capture.release()
            self._capture = opened(self._given, self._source)
        super().start()

    def _take(self, image: NDArray[np.uint8]) -> None:
        picture = self._read()
        if picture.shape != image.shape:
            raise CameraError(f"{self._source} gives pictures of the shape {picture.shape}, not {image.shape} any more")
        cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=image)

    def _read(self) -> NDArray[np.uint8]:
        there, picture = self._capture.read()
        if not there and self._is_file:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            there, picture = self._capture.read()
        if not there:
            raise CameraError(f"{self._source} gives no pictures")
        return np.asarray(picture, np.uint8)

    def _seconds_to_next(self, due: float) -> float:
        # The driver of a camera waits by itself.
        return super()._seconds_to_next(due) if self._is_file else 0.0

    def _apply_exposure(self, value: float) -> None:
        if self._is_file:
            raise ValueError(f"{self._source} is a video: its exposure cannot be set")
        self._capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL_EXPOSURE)
        if not self._capture.set(cv2.CAP_PROP_EXPOSURE, round(value / EXPOSURE_UNIT)):
            raise ValueError(f"{self._source} does not take an exposure of {value:g} s")

    def _apply_frame_rate(self, value: float) -> None:
        if not self._is_file and not self._capture.set(cv2.CAP_PROP_FPS, value):
            raise ValueError(f"{self._source} does not take {value:g} frames/s")

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._capture.release()


def opened(source: int | Path, name: str) -> cv2.VideoCapture:
    """OpenCV's access to a camera or a file."""
    if isinstance(source, Path):
        if not source.is_file():
            raise CameraError(f"there is no video {source}")
        capture = cv2.VideoCapture(str(source))
        fault = "is not a video that OpenCV can read"
    else:
        cameras = sorted(str(path) for path in Path("/dev").glob("video*"))
        if name not in cameras:
            raise CameraError(f"there is no camera {name}; cameras here: {', '.join(cameras) or 'none'}")
        capture = cv2.VideoCapture(source, cv2.CAP_V4L2)
        fault = "cannot be opened: it is in use, or you are not in the group video"
    if not capture.isOpened():
        raise CameraError(f"{name} {fault}")
    return capture
