"""What viewer and recorder have in common: the camera's client, and how they are told which camera."""

import argparse
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.camera_stream.interface import Camera
from rpc_kit import RPCClient, connect

PATIENCE = 5.0
"""So long without a frame, besides the time between two, is a fault, s."""


class NoFrames(RuntimeError):
    """The camera streams no more."""


@RPCClient.register_interface(Camera)
class CameraClient(Camera, RPCClient):
    """The camera, used from another process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which camera, and how long."""
    parser.add_argument("camera", help="its url, or its name in the registry")
    parser.add_argument("--registry", metavar="URL", help="where to look for the name, default $RPC_REGISTRY")
    parser.add_argument("--codec", choices=("jpeg", "zlib"), help="have frames compressed that come over the network")
    parser.add_argument("--quality", type=int, default=90, help="of jpeg, 1 to 100, default %(default)s")
    parser.add_argument("--frames", type=positive, metavar="N", help="end after N frames; else with Ctrl-C")


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def connected(options: argparse.Namespace) -> CameraClient:
    return connect(
        options.camera,
        CameraClient,
        registry=options.registry,
        timeout=5000,
        codec=options.codec,
        quality=options.quality,
    )


def frames_of(camera: Camera, stream: Any) -> Iterator[tuple[NDArray[np.uint8], int, float]]:
    """The frames of a stream, and in words why there are no more."""
    try:
        yield from stream
    except TimeoutError as exc:
        raise NoFrames(camera.fault or f"no frame for {patience(camera):.1f} s: was the camera stopped?") from exc


def patience(camera: Camera) -> float:
    """How long to wait for a frame, s."""
    return PATIENCE + 1 / camera.frame_rate


def end_like_ctrl_c() -> None:
    """SIGTERM and SIGHUP do what Ctrl-C does: the terminal and the file are left in order."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def path_of(camera: CameraClient) -> str:
    """How frames have come here; with how many each way, when there were several."""
    paths = camera.stats().paths.get("frames", {})
    names = {"shared memory" if path == "shm" else path: count for path, count in paths.items()}
    if len(names) > 1:
        return " and ".join(f"{name} ({count})" for name, count in names.items())
    return next(iter(names), "nothing")
