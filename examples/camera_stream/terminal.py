"""Pictures in a terminal: two pixels for each character, in 24-bit colour."""

import os
import time
from typing import Self, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FASTEST = 30.0
"""More pictures per second nobody sees, and drawing takes time from others."""
CELL = "\x1b[38;2;%d;%d;%d;48;2;%d;%d;%dm▀"
OPEN = "\x1b[?1049h\x1b[?25l\x1b[2J"
CLOSE = "\x1b[0m\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN, PLAIN = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[0m"


class TerminalScreen:
    """Draws on the alternate screen of a terminal, and leaves what was there before."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._due = 0.0

    def __enter__(self) -> Self:
        self._write(OPEN)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._write(CLOSE)

    def show(self, image: NDArray[np.uint8], status: str) -> bool:
        """Draw a picture and a line below it."""
        began = time.monotonic()
        if began >= self._due:
            columns, lines = terminal_size(self._terminal)
            drawn = half_blocks(fitted(image, columns, 2 * (lines - 1)))
            rows = "".join(f"{row}{PLAIN}{REST_OF_LINE}\n" for row in drawn)
            self._write(f"{HOME}{rows}{REST_OF_SCREEN}{status[: columns - 1]}")
            # Half of the time at most, also where the terminal is slow.
            self._due = began + max(1 / FASTEST, 2 * (time.monotonic() - began))
        return True

    def _write(self, text: str) -> None:
        self._terminal.write(text)
        self._terminal.flush()


def terminal_size(terminal: TextIO) -> tuple[int, int]:
    """Columns and lines; those of the oldest terminals when it does not know, or is none."""
    try:
        columns, lines = os.get_terminal_size(terminal.fileno())
    except (OSError, ValueError):
        columns = lines = 0
    return (columns, lines) if columns > 1 and lines > 1 else (80, 24)


def fitted(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture scaled to fit, with an even number of lines."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = max(1, round(image.shape[1] * scale)), max(2, round(image.shape[0] * scale) // 2 * 2)
    return np.asarray(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BOX))


def half_blocks(image: NDArray[np.uint8]) -> list[str]:
    """A line of text for two of pixels, ``(2 N, W, 3) uint8``: the colour of a character, and of its background."""
    pairs = np.concatenate([image[::2], image[1::2]], axis=2)
    return ["".join([CELL % (*pair,) for pair in row]) for row in pairs.tolist()]
