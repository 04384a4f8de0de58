"""A camera as a process of its own: simulated, the pictures of a folder, or one of Video4Linux."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import zmq

from examples.camera.photographs import PhotographError
from examples.camera_stream.device import CameraError, CameraServer
from examples.camera_stream.folder import FolderCamera
from examples.camera_stream.packages import hint
from examples.camera_stream.simulated import SimulatedCamera
from rpc_kit.errors import RPCError


def make_camera(context: zmq.Context[Any], options: argparse.Namespace) -> CameraServer:
    """The camera that was asked for."""
    if options.v4l2 is not None:
        # Here, as OpenCV is only needed for this one.
        from examples.camera_stream.v4l2 import V4L2Camera

        source = int(options.v4l2) if options.v4l2.isdecimal() else Path(options.v4l2).expanduser()
        return V4L2Camera(context, options.listen, source, options.rate)
    rate = 30.0 if options.rate is None else options.rate
    if options.folder is not None:
        return FolderCamera(context, options.listen, options.folder.expanduser(), options.size, rate)
    return SimulatedCamera(context, options.listen, options.size, rate)


def size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    if not (0 < width <= 8192 and 0 < height <= 8192):
        raise ValueError
    return width, height


def main() -> int:
    parser = argparse.ArgumentParser(prog="camera", description="Serve a camera that streams.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--folder", type=Path, help="show the pictures of a folder")
    which.add_argument("--v4l2", metavar="N", help="the camera /dev/video<N>, or a video file")
    parser.add_argument("--rate", type=float, metavar="FPS", help="frames/s, default 30, or those of the video")
    parser.add_argument("--size", type=size, metavar="WxH", default=(640, 480), help="default 640x480; not for --v4l2")
    parser.add_argument("--listen", metavar="URL", default="tcp://127.0.0.1", help="default %(default)s")
    parser.add_argument("--registry", metavar="URL", help="registry to register with")
    parser.add_argument("--name", default="camera-0", help="name in the registry, default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(format="camera: %(message)s")
    try:
        with zmq.Context() as context, make_camera(context, options) as camera:
            if options.registry:
                camera.register_to_registry("camera", options.name, options.registry)
            print(f"{camera.name} {camera.url}", flush=True)
            camera.serve_forever()
    except ModuleNotFoundError as exc:
        print(f"camera: {hint(exc)}", file=sys.stderr)
        return 1
    except (CameraError, PhotographError, RPCError, ValueError, OSError) as exc:
        print(f"camera: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
