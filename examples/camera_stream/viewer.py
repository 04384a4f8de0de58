"""Shows what a camera sees: in a window, in the terminal, or in words."""

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from examples.camera_stream.client import (
    CameraClient,
    NoFrames,
    add_arguments,
    connected,
    end_like_ctrl_c,
    frames_of,
    path_of,
    patience,
)
from examples.camera_stream.packages import hint
from examples.camera_stream.report import Meter, Report
from examples.camera_stream.terminal import TerminalScreen
from rpc_kit.errors import RPCError

LINE_EVERY = 1.0


class Screen(Protocol):
    """Where pictures are shown."""

    def show(self, image: NDArray[np.uint8], status: str) -> bool:
        """Show a picture and a line of text; False when the user has seen enough."""


class TextScreen:
    """A line each second, for those who see no pictures."""

    def __init__(self) -> None:
        self._due = 0.0

    def show(self, image: NDArray[np.uint8], status: str) -> bool:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + LINE_EVERY
            print(status, flush=True)
        return True


def make_screen(view: str, title: str) -> AbstractContextManager[Screen]:
    """What was asked for; else the best that there is."""
    if view == "window" or view == "auto":
        try:
            from examples.camera_stream.window import WindowScreen, can_show

            if can_show():
                return WindowScreen(title)
        except ModuleNotFoundError as exc:
            if view == "window":
                raise NoFrames(hint(exc)) from exc
        if view == "window":
            raise NoFrames('there is no display, or an OpenCV without windows: pip install "rpc-kit[viewer]"')
    if view == "terminal" or (view == "auto" and sys.stdout.isatty()):
        # What is printed may go elsewhere, and the pictures still to the terminal.
        return TerminalScreen(sys.stdout if sys.stdout.isatty() else sys.stderr)
    return nullcontext(TextScreen())


def watch(camera: CameraClient, screen: Screen, limit: int | None) -> Report:
    """Show frames until there were enough, the user has seen enough, or Ctrl-C."""
    meter = Meter()
    dropped = 0
    # The newest frame only: a viewer that is slow must not lag behind.
    with camera.frames.stream(policy="latest", timeout=patience(camera)) as stream:
        try:
            camera.start()
            for image, number, _ in frames_of(camera, stream):
                meter.count()
                dropped = stream.dropped
                what = f"{camera.name} {image.shape[1]}x{image.shape[0]}, frame {number}"
                status = f"{what}, {meter.rate:.1f}/s, {dropped} dropped, by {path_of(camera)}"
                if not screen.show(image, status) or meter.frames == limit:
                    break
        except KeyboardInterrupt:
            pass  # the usual end
    return meter.report(dropped, path_of(camera))


def main() -> int:
    parser = argparse.ArgumentParser(prog="viewer", description="Show what a camera sees.")
    add_arguments(parser)
    parser.add_argument("--view", choices=("auto", "window", "terminal", "text"), default="auto")
    options = parser.parse_args()
    end_like_ctrl_c()
    try:
        with connected(options) as camera:
            made = make_screen(options.view, camera.name)
            print(f"watching {camera.name} at {camera.url}", flush=True)
            with made as screen:
                report = watch(camera, screen, options.frames)
            print(report, flush=True)
    except KeyboardInterrupt:
        return 130  # before the first frame
    except (NoFrames, RPCError, ValueError, OSError) as exc:
        print(f"viewer: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
