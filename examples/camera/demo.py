"""The camera demo: a registry, a camera and this client, in three processes."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import zmq
from numpy.typing import NDArray
from tqdm import tqdm

from examples.camera.contact_sheet import ContactSheet
from examples.camera.interface import Camera, ColorMode
from examples.camera.photographs import PhotographError, find_photographs, sample_photographs, take
from examples.services import ServiceError, Services
from rpc_kit import RegistryClient, RPCClient, connect
from rpc_kit.errors import DeviceNotFound, RPCError

SIGNAL_LIMIT = 5.0
EXPOSURE = 0.008
RESOLUTION = (640, 480)
CALLS = 500
FRAMES = 200
# At once, also into a pipe, in order with the progress bar.
say = partial(print, flush=True)


class DemoError(RuntimeError):
    """The demo saw something that should not be."""


@RPCClient.register_interface(Camera)
class CameraClient(Camera, RPCClient):
    """The camera, used from another process."""


class SignalLog:
    """The signals of a camera, in the order of their arrival."""

    def __init__(self, camera: Camera) -> None:
        self._events: list[tuple[str, object]] = []
        self._changed = threading.Condition()
        camera.exposure_changed.connect(partial(self._record, "exposure_changed"))
        camera.resolution_changed.connect(partial(self._record, "resolution_changed"))
        camera.picture_taken.connect(partial(self._record, "picture_taken"))

    def _record(self, name: str, value: object) -> None:
        # Runs on the client's receiver thread.
        with self._changed:
            self._events.append((name, value))
            self._changed.notify_all()

    def wait_for_event(self, name: str, value: object) -> None:
        self._wait(lambda: (name, value) in self._events, f"signal {name}({value!r})")

    def wait_for_count(self, count: int) -> int:
        self._wait(lambda: len(self._events) >= count, f"{count} signals")
        return len(self._events)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, SIGNAL_LIMIT):
                raise DemoError(f"no {what} within {SIGNAL_LIMIT:.0f} s")


@dataclass
class Results:
    """What the table shows."""

    identical: int
    grey: int
    skipped: int
    call: float
    frames_per_second: float
    bytes_per_second: float
    signals: int

    def print_table(self) -> None:
        rows = {
            "pictures, identical to their source": f"{self.identical} ({self.grey} grey)",
            "pictures skipped": f"{self.skipped}",
            "small call (read a property), median": f"{self.call * 1e6:.0f} µs",
            f"frames {RESOLUTION[0]} x {RESOLUTION[1]}": f"{self.frames_per_second:.0f} /s",
            "pixels": f"{self.bytes_per_second / 1e6:.0f} MB/s",
            "signals received": f"{self.signals}",
        }
        for label, value in rows.items():
            print(f"  {label:<38}{value:>16}")


def fetch(camera: Camera, index: int) -> NDArray[np.uint8]:
    """Take a picture and see the buffer as an array, without a copy."""
    buffer, info = camera.get_image(index)
    return np.frombuffer(buffer, info["dtype"]).reshape(info["shape"])


def adjust(camera: Camera, log: SignalLog) -> None:
    """Set the properties, see that everybody is told, and that a bad value is refused."""
    camera.exposure = EXPOSURE
    log.wait_for_event("exposure_changed", EXPOSURE)
    say(f"exposure set to {EXPOSURE} s; notified")
    camera.resolution = RESOLUTION
    log.wait_for_event("resolution_changed", RESOLUTION)
    say(f"resolution set to {RESOLUTION[0]} x {RESOLUTION[1]}; notified")
    try:
        camera.exposure = -1.0
    except ValueError as exc:
        say(f"exposure of -1 s refused: {exc}")
    else:
        raise DemoError("the camera took an exposure of -1 s")


def compare(camera: Camera, sources: dict[str, Path], sheet: ContactSheet) -> list[int]:
    """Fetch every picture and compare it, pixel by pixel, with its source; gives the indices of the good ones."""
    good = []
    names = camera.list_pictures()
    for index, name in enumerate(tqdm(names, "pictures", unit="", file=sys.stdout, ncols=80)):
        try:
            source = take(sources[name], RESOLUTION, EXPOSURE)
        except PhotographError as exc:
            tqdm.write(f"skipped: {exc}", sys.stderr)
            continue
        image = fetch(camera, index)
        if not np.array_equal(source, image):
            raise DemoError(f"{name} is not what the camera should have seen")
        sheet.add(name, image)
        good.append(index)
    if not good:
        raise PhotographError("not one of the pictures is readable")
    return good


def measure_call(camera: Camera) -> float:
    """Median duration of a small call, s."""
    durations = []
    for _ in range(CALLS):
        start = perf_counter()
        _ = camera.exposure
        durations.append(perf_counter() - start)
    return median(durations)


def measure_frames(camera: Camera, index: int) -> tuple[float, float]:
    """Frames and bytes per second of one picture, fetched again and again."""
    size = fetch(camera, index).nbytes
    start = perf_counter()
    for _ in range(FRAMES):
        fetch(camera, index)
    frames_per_second = FRAMES / (perf_counter() - start)
    return frames_per_second, frames_per_second * size


def use(camera: Camera, sources: dict[str, Path], sheet: ContactSheet) -> Results:
    """Everything that the demo does with the camera."""
    log = SignalLog(camera)
    adjust(camera, log)
    good = compare(camera, sources, sheet)
    modes = [camera.describe_picture(index).mode for index in good]
    call = measure_call(camera)
    frames_per_second, bytes_per_second = measure_frames(camera, good[0])
    # Two properties were set; each picture told that it was taken.
    signals = log.wait_for_count(2 + len(good) + 1 + FRAMES)
    return Results(
        identical=len(good),
        grey=modes.count(ColorMode.GREY),
        skipped=len(sources) - len(good),
        call=call,
        frames_per_second=frames_per_second,
        bytes_per_second=bytes_per_second,
        signals=signals,
    )


def see_that_it_is_gone(registry: RegistryClient) -> None:
    """A camera that has ended is no longer in the registry."""
    try:
        entry = registry.find("camera-0")
    except DeviceNotFound:
        say("camera-0 stopped, and gone from the registry")
    else:
        raise DemoError(f"the registry still has camera-0 at {entry.address}")


def run(images: Path | None, output: Path) -> None:
    """Start the services, use the camera, end everything."""
    photographs = find_photographs(images) if images else sample_photographs()
    output.mkdir(parents=True, exist_ok=True)
    sheet = ContactSheet()
    folder = ["--images", str(images)] if images else []
    # In no `with` block: an interrupt while libzmq makes a socket loses it, and the context would wait for it for ever.
    context = zmq.Context()
    with Services() as services:
        # A registry for this demo only: on this host, in memory.
        flags = "serve --addr 127.0.0.1 --port 0 --store memory --no-announce --log-level warning"
        registry = services.start("registry", "registry", *flags.split())
        registry_url = registry.wait_until_ready()
        say(f"registry at {registry_url}")
        device = services.start("camera", "examples.camera.server", "--registry", registry_url, *folder)
        say(f"camera registered: {device.wait_until_ready()}")
        with connect("camera-0", CameraClient, registry=registry_url, context=context, timeout=5000) as camera:
            say(f"camera-0 found at {camera.url}")
            results = use(camera, {path.name: path for path in photographs}, sheet)
            camera.stop_server()
        device.wait_until_ended()
        with RegistryClient(registry_url, context) as directory:
            see_that_it_is_gone(directory)
        registry.terminate()
        registry.wait_until_ended()
    context.destroy()
    results.print_table()
    path = output / "camera-contact-sheet.png"
    sheet.save(path)
    print(f"contact sheet: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Use a camera that runs in another process.")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="default: photographs of scikit-image")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("demo-output"))
    options = parser.parse_args()
    images = options.images.expanduser().resolve() if options.images else None
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        run(images, options.output.expanduser())
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    except (DemoError, PhotographError, ServiceError, RPCError, OSError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
