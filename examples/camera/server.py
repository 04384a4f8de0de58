"""The camera as a device: a process of its own that serves photographs."""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import zmq

from examples.camera.interface import Camera, ColorMode, Picture
from examples.camera.photographs import (
    NOMINAL_EXPOSURE,
    PhotographError,
    find_photographs,
    is_grey,
    open_photograph,
    sample_photographs,
    take,
)
from rpc_kit import RPCProperty, RPCServer
from rpc_kit.errors import RPCError

LARGEST = 4096
# The last image shot again, which is what a live view does, needs no second look at the file.
take_cached = lru_cache(maxsize=1)(take)


class CameraServer(Camera, RPCServer):
    """A simulated camera; its scenes are picture files.

    Parameters
    ----------
    photographs
        The picture files, in the order of their index.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str, photographs: list[Path]) -> None:
        self._photographs = photographs
        self._exposure = NOMINAL_EXPOSURE
        self._resolution = (320, 240)
        super().__init__(context, url)

    @RPCProperty(notify=Camera.exposure_changed, auto_notify=True)
    def exposure(self) -> float:
        return self._exposure

    @exposure.setter
    def _set_exposure(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"the exposure is between 0 and 1 s, not {value}")
        self._exposure = value

    @RPCProperty(notify=Camera.resolution_changed, auto_notify=True)
    def resolution(self) -> tuple[int, int]:
        return self._resolution

    @resolution.setter
    def _set_resolution(self, value: tuple[int, int]) -> None:
        width, height = value
        if not (1 <= width <= LARGEST and 1 <= height <= LARGEST):
            raise ValueError(f"the resolution is at most {LARGEST} x {LARGEST}, not {width} x {height}")
        self._resolution = (width, height)

    def list_pictures(self) -> list[str]:
        return [path.name for path in self._photographs]

    def describe_picture(self, index: int) -> Picture:
        path = self._photographs[index]
        with open_photograph(path) as photograph:
            mode = ColorMode.GREY if is_grey(photograph) else ColorMode.COLOR
            return Picture(path.name, photograph.width, photograph.height, mode)

    def get_image(self, index: int) -> tuple[memoryview, dict[str, Any]]:
        path = self._photographs[index]
        image = take_cached(path, self._resolution, self._exposure)
        self.picture_taken.emit(path.name)
        return image.data, {"name": path.name, "dtype": str(image.dtype), "shape": image.shape}


def main() -> int:
    parser = argparse.ArgumentParser(prog="camera", description="Serve a folder of pictures as a camera.")
    parser.add_argument("--registry", required=True, metavar="URL", help="url of the registry to register with")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="default: photographs of scikit-image")
    parser.add_argument("--name", default="camera-0", help="name in the registry, default %(default)s")
    options = parser.parse_args()
    try:
        photographs = find_photographs(options.images) if options.images else sample_photographs()
        with zmq.Context() as context, CameraServer(context, "tcp://127.0.0.1", photographs) as camera:
            name = camera.register_to_registry("camera", options.name, options.registry)
            print(f"{name} {camera.url}", flush=True)
            camera.serve_forever()
    except (PhotographError, RPCError, OSError) as exc:
        print(f"camera: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
