"""Records what a camera sees, every frame of it, into an HDF5 file."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

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
from rpc_kit.errors import RPCError

if TYPE_CHECKING:
    from examples.camera_stream.hdf5 import FrameFile


def describe(camera: CameraClient) -> dict[str, Any]:
    """What is to be known of a recording later."""
    return {
        "camera": camera.name,
        "url": camera.url,
        "exposure": camera.exposure,
        "frame_rate": camera.frame_rate,
        "started": datetime.now(UTC).isoformat(),
    }


def record(camera: CameraClient, file: "FrameFile", limit: int | None, progress: "tqdm[Any]") -> Report:
    """Write frames until there were enough, or Ctrl-C."""
    meter = Meter()
    dropped = last = 0
    # None is left out for being late: they queue up, here and at the server, as long as there is room.
    with camera.frames.stream(policy="all", timeout=patience(camera)) as stream:
        try:
            camera.start()
            for image, number, when in frames_of(camera, stream):
                file.append(image, number, when)
                meter.count()
                # The camera's own numbers tell what is missing, wherever it was lost.
                if meter.frames > 1 and number > last + 1:
                    dropped += number - last - 1
                    progress.set_postfix(dropped=dropped)
                last = number
                progress.update()
                if meter.frames == limit:
                    break
        except KeyboardInterrupt:
            pass  # the usual end
        finally:
            report = meter.report(dropped, path_of(camera))
            file.attributes.update({"frames": report.frames, "dropped": report.dropped, "path": report.path})
    return report


def run(options: argparse.Namespace) -> None:
    # Here, as nobody but recorders needs h5py.
    from examples.camera_stream.hdf5 import FrameFile

    with connected(options) as camera:
        file = FrameFile(options.file, options.overwrite)
        try:
            file.attributes.update(describe(camera))
            print(f"recording {camera.name} at {camera.url}", flush=True)
            # Without a terminal there is no bar.
            with tqdm(total=options.frames, unit=" frames", disable=True if options.quiet else None) as progress:
                report = record(camera, file, options.frames, progress)
        except (NoFrames, RPCError) as exc:
            raise NoFrames(f"{exc}; {file.count} frames were recorded") from exc
        finally:
            file.close()
            if not file.count:
                options.file.unlink(missing_ok=True)
    print(report, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="recorder", description="Record what a camera sees.")
    add_arguments(parser)
    parser.add_argument("file", type=Path, help="the HDF5 file to write")
    parser.add_argument("--overwrite", action="store_true", help="the file, if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    end_like_ctrl_c()
    try:
        run(options)
    except KeyboardInterrupt:
        return 130  # before the first frame
    except ModuleNotFoundError as exc:
        print(f"recorder: {hint(exc)}", file=sys.stderr)
        return 1
    except FileExistsError:
        print(f"recorder: {options.file} is there already: choose another name, or say --overwrite", file=sys.stderr)
        return 1
    except (NoFrames, RPCError, ValueError, OSError) as exc:
        print(f"recorder: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
