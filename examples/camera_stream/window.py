"""Pictures in a window, by OpenCV."""

import os
import subprocess
import sys
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

PROBE = "import cv2; cv2.namedWindow('camera'); cv2.waitKey(1)"
PROBE_LIMIT = 20.0
TITLE_EVERY = 15
QUIT = {27, ord("q")}


class WindowScreen:
    """A window; q, Esc or closing it ends the viewer."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = 0

    def __enter__(self) -> Self:
        cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        return self

    def __exit__(self, *exc_info: object) -> None:
        cv2.destroyAllWindows()

    def show(self, image: NDArray[np.uint8], status: str) -> bool:
        """Show a picture, and the status in the title; False when the user has seen enough."""
        if self._shown == 0:
            cv2.resizeWindow(self._title, image.shape[1], image.shape[0])
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if self._shown % TITLE_EVERY == 0:
            cv2.setWindowTitle(self._title, status)
        self._shown += 1
        key = cv2.waitKey(1) & 0xFF
        return key not in QUIT and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1


def can_show() -> bool:
    """Whether there is a display, and an OpenCV that can use it."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    # In a process of its own: where the display does not answer, the toolkit ends the process.
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=PROBE_LIMIT)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
