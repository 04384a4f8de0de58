"""The demo of a stream: a camera, a viewer and a recorder, in three processes."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from examples.camera_stream.client import end_like_ctrl_c
from examples.camera_stream.packages import hint
from examples.camera_stream.report import Report
from examples.camera_stream.simulated import burnt_number
from examples.services import Service, ServiceError, Services

END_LIMIT = 30.0
# At once, also into a pipe, in order with what the other processes print.
say = partial(print, flush=True)


class DemoError(RuntimeError):
    """The demo saw something that should not be."""


def check(path: Path) -> int:
    """Compare each frame of a recording with the number that the camera has burnt into it; gives how many there are."""
    import h5py

    with h5py.File(path) as file:
        for image, number in zip(file["frames"], file["number"], strict=True):
            if burnt_number(image) != number:
                raise DemoError(f"frame {number} of {path} is frame {burnt_number(image)}")
        return len(file["number"])


def report_of(service: Service) -> Report:
    """What a viewer or a recorder has said at its end."""
    try:
        return Report.parse(service.last_line())
    except ValueError as exc:
        raise DemoError(f"the {service.name} gave {exc}") from exc


def print_table(reports: dict[str, Report]) -> None:
    say(f"  {'':<10}{'frames':>8}{'frames/s':>10}{'dropped':>9}  path")
    for name, report in reports.items():
        say(f"  {name:<10}{report.frames:>8}{report.rate:>10.1f}{report.dropped:>9}  {report.path}")


def run(output: Path, rate: float, seconds: float) -> None:
    """Start everything, let it run, end everything."""
    output.mkdir(parents=True, exist_ok=True)
    path = (output / "camera-stream.h5").resolve()
    programs = "examples.camera_stream"
    with Services() as services:
        camera = services.start("camera", f"{programs}.server", "--rate", str(rate))
        _, url = camera.wait_until_ready().split()
        say(f"camera at {url}: {rate:g} frames/s")
        # The pictures go to the terminal by stderr, as stdout is for the report.
        view = "terminal" if sys.stdout.isatty() and sys.stderr.isatty() else "text"
        viewer = services.start("viewer", f"{programs}.viewer", url, "--view", view)
        viewer.wait_until_ready()
        count = str(max(1, round(rate * seconds)))
        recorder = services.start(
            "recorder", f"{programs}.recorder", url, str(path), "--frames", count, "--overwrite", "--quiet"
        )
        recorder.wait_until_ready()
        recorder.wait_until_ended(seconds + END_LIMIT)
        for service in (viewer, camera):
            service.terminate()
            service.wait_until_ended()
        reports: dict[str, Any] = {each.name: report_of(each) for each in (viewer, recorder)}
    print_table(reports)
    say(f"each of {check(path)} recorded frames bears its number: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Watch and record a camera from two other processes.")
    parser.add_argument("--rate", type=float, metavar="FPS", default=30.0, help="default 30; try 200")
    parser.add_argument("--seconds", type=float, default=4.0, help="default %(default)s")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("demo-output"))
    options = parser.parse_args()
    end_like_ctrl_c()
    try:
        run(options.output.expanduser(), options.rate, options.seconds)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as exc:
        print(f"demo: {hint(exc)}", file=sys.stderr)
        return 1
    except (DemoError, ServiceError, OSError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
