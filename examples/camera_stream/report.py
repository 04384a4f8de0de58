"""How many frames have come, how fast, and by which way."""

import re
import time
from dataclasses import dataclass
from typing import Self

SPAN = 1.0
"""The present rate is that of the last second, s."""
LINE = re.compile(r"(\d+) frames in ([\d.]+) s, ([\d.]+)/s, (\d+) dropped, by (.+)")


@dataclass(frozen=True)
class Report:
    """What a viewer or a recorder says at its end; its text is read by the demo."""

    frames: int
    seconds: float
    rate: float
    dropped: int
    path: str

    def __str__(self) -> str:
        count = f"{self.frames} frames in {self.seconds:.2f} s"
        return f"{count}, {self.rate:.1f}/s, {self.dropped} dropped, by {self.path}"

    @classmethod
    def parse(cls, text: str) -> Self:
        found = LINE.fullmatch(text)
        if found is None:
            raise ValueError(f"no report: {text!r}")
        frames, seconds, rate, dropped, path = found.groups()
        return cls(int(frames), float(seconds), float(rate), int(dropped), path)


class Meter:
    """Frames per second: of now, and of all the time."""

    def __init__(self) -> None:
        self._first = self._last = 0.0
        self._span_began, self._span_frames = 0.0, 0
        self.frames = 0
        self.rate = 0.0

    def count(self) -> None:
        """A frame has come."""
        self._last = time.monotonic()
        if not self.frames:
            self._first = self._span_began = self._last
        self.frames += 1
        if self._last - self._span_began >= SPAN:
            self.rate = (self.frames - self._span_frames) / (self._last - self._span_began)
            self._span_began, self._span_frames = self._last, self.frames

    @property
    def seconds(self) -> float:
        """From the first frame to the last one."""
        return self._last - self._first

    def report(self, dropped: int, path: str) -> Report:
        rate = (self.frames - 1) / self.seconds if self.frames > 1 else 0.0
        return Report(self.frames, self.seconds, rate, dropped, path)
