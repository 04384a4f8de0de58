"""The example of a stream: its cameras, its programs as a user runs them, and their files."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import isnan
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import cv2
import h5py
import numpy as np
import psutil
import pytest
from PIL import Image

from examples.camera.photographs import NOMINAL_EXPOSURE, PhotographError, take
from examples.camera_stream import client as clients
from examples.camera_stream.client import CameraClient, NoFrames, frames_of
from examples.camera_stream.device import CameraError, CameraServer
from examples.camera_stream.folder import FolderCamera
from examples.camera_stream.report import Meter, Report
from examples.camera_stream.simulated import SimulatedCamera, burn, burnt_number
from examples.camera_stream.terminal import fitted, half_blocks, terminal_size
from examples.camera_stream.v4l2 import V4L2Camera
from tests.devices import LIMIT
from tests.helpers import wait_until

PROJECT = Path(__file__).parents[1]
RUN_LIMIT = 60.0
MARK = "RPC_KIT_STREAM_TEST"
URL = "tcp://127.0.0.1:0"
PICTURES = {"a.png": (200, 30, 10), "b.png": (10, 200, 30), "c.png": (90, 90, 90)}


class Programs:
    """Starts programs of the example, as processes that can be told from others."""

    def __init__(self) -> None:
        self.mark = uuid4().hex

    def start(self, program: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"examples.camera_stream.{program}", *map(str, arguments)]
        return self.popen(command, **options)

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=PROJECT, env={**environment, MARK: self.mark}, text=True, **pipes)

    def run(self, program: str, *arguments: str | Path) -> tuple[int, str, str]:
        return self.finish(self.start(program, *arguments))

    def run_without(self, package: str, program: str, *arguments: str | Path) -> tuple[int, str, str]:
        """As if a package were not installed."""
        module = f"examples.camera_stream.{program}"
        code = f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_module({module!r}, run_name='__main__')"
        return self.finish(self.popen([sys.executable, "-c", code, *map(str, arguments)]))

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        with process:
            try:
                output, errors = process.communicate(timeout=RUN_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, output, errors

    def left(self) -> list[str]:
        return [" ".join(process.cmdline()) for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:
            return False


@pytest.fixture
def programs() -> Iterator[Programs]:
    """Whatever happened, no process is left."""
    made = Programs()
    yield made
    assert [] == made.left()


@pytest.fixture
def serve(context: Any) -> Iterator[Callable[..., Any]]:
    """Serves cameras, each on a thread."""
    with ExitStack() as stack:

        def start(make: Callable[..., CameraServer], *arguments: Any, **options: Any) -> CameraServer:
            camera = stack.enter_context(make(context, URL, *arguments, **options))
            thread = threading.Thread(target=camera.serve_forever)
            stack.callback(thread.join, LIMIT)
            thread.start()
            stack.callback(camera.stop_server)
            wait_until(lambda: camera._rpc.serving is not None)
            return camera

        yield start


@pytest.fixture
def connect(context: Any) -> Iterator[Callable[[CameraServer], CameraClient]]:
    """Makes clients."""
    with ExitStack() as stack:
        yield lambda camera: stack.enter_context(CameraClient(context, camera.url, timeout=5000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of one colour each, the last one grey."""
    path = tmp_path / "my pictures"
    path.mkdir()
    for name, color in PICTURES.items():
        picture = Image.new("RGB", (40, 30), color)
        (picture.convert("L") if name == "c.png" else picture).save(path / name)
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Ten frames, the n-th of the brightness 20 n, at 25 frames/s."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), (number * 20, 10, 200), np.uint8))
    writer.release()
    return path


def decoded(video: Path) -> list[Any]:
    """What OpenCV gives of a video, as RGB."""
    capture = cv2.VideoCapture(str(video))
    found = []
    while (read := capture.read())[0]:
        found.append(read[1][:, :, ::-1])
    return found


def first(client: CameraClient, count: int) -> list[Any]:
    """The first frames of a stream of all."""
    with client.frames.stream(policy="all", timeout=LIMIT) as stream:
        client.start()
        return [event for event, _ in zip(stream, range(count))]


def test_burnt_number_is_read() -> None:
    """What is burnt into a picture can be read again, also after JPEG."""
    image = np.zeros((48, 256, 3), np.uint8)
    burn(image, 0xC0FFEE)
    _, jpeg = cv2.imencode(".jpg", image)

    assert 0xC0FFEE == burnt_number(image)
    assert 0xC0FFEE == burnt_number(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)))


def test_simulated_camera_streams(serve: Callable[..., Any], connect: Callable[..., Any]) -> None:
    """Frames come one after another, at the frame rate, each bearing its number."""
    client = connect(serve(SimulatedCamera, (320, 240), frame_rate=100.0))

    events = first(client, 20)

    numbers = [number for _, number, _ in events]
    assert list(range(numbers[0], numbers[0] + 20)) == numbers
    assert numbers == [burnt_number(image) for image, _, _ in events]
    assert {(240, 320, 3)} == {image.shape for image, _, _ in events}
    assert 0.1 < events[-1][2] - events[0][2] < 2
    assert len(numbers) == len({crc32(image[20:]) for image, _, _ in events})


def test_simulated_camera_takes_single_pictures(serve: Callable[..., Any], connect: Callable[..., Any]) -> None:
    """A picture can be had without streaming, and is as bright as the exposure says."""
    client = connect(serve(SimulatedCamera))

    once = client.get_image()
    client.exposure = 2 * NOMINAL_EXPOSURE
    twice = client.get_image()

    assert (480, 640, 3) == once.shape
    assert np.array_equal(np.minimum(once[20:].astype(int) * 2, 255), twice[20:])
    assert 0 == client.frame_number


def test_settings_are_told_and_checked(serve: Callable[..., Any], connect: Callable[..., Any]) -> None:
    """Changes of both settings are notified; bad values are refused."""
    client = connect(serve(SimulatedCamera))
    told: list[tuple[str, float]] = []
    client.exposure_changed.connect(lambda value: told.append(("exposure", value)))
    client.frame_rate_changed.connect(lambda value: told.append(("frame_rate", value)))

    client.exposure = 0.02
    client.frame_rate = 50.0

    wait_until(lambda: len(told) == 2)
    assert [("exposure", 0.02), ("frame_rate", 50.0)] == told
    for name, value in {"exposure": 0.0, "frame_rate": 0.0}.items():
        with pytest.raises(ValueError, match="is between 0 and"):
            setattr(client, name, value)


def test_stop_and_start(serve: Callable[..., Any], connect: Callable[..., Any]) -> None:
    """After stop no frame comes; after start they go on, however often it is called."""
    client = connect(serve(SimulatedCamera, frame_rate=200.0))
    last = first(client, 3)[-1][1]

    client.stop()
    stopped_at = client.frame_number
    with client.frames.stream(timeout=0.1) as stream, pytest.raises(TimeoutError):
        next(stream)
    client.start()
    client.start()

    assert stopped_at >= last
    assert first(client, 1)[0][1] > stopped_at


def test_folder_camera(serve: Callable[..., Any], connect: Callable[..., Any], folder: Path) -> None:
    """The pictures of a folder come in the order of their names, grey ones in three channels, and then again."""
    client = connect(serve(FolderCamera, folder, (40, 30), frame_rate=200.0))

    images = [image for image, _, _ in first(client, 7)]

    expected = [np.full((30, 40, 3), color, np.uint8) for color in PICTURES.values()]
    seen = [next(number for number, each in enumerate(expected) if np.array_equal(each, image)) for image in images]
    assert [(seen[0] + number) % 3 for number in range(7)] == seen


def test_folder_camera_scales(serve: Callable[..., Any], connect: Callable[..., Any], folder: Path) -> None:
    """A picture is seen as the camera of the other example sees it."""
    client = connect(serve(FolderCamera, folder, (64, 48)))

    assert np.array_equal(take(folder / "a.png", (64, 48), NOMINAL_EXPOSURE), client.get_image())


def test_folder_camera_skips_unreadable_file(
    serve: Callable[..., Any], connect: Callable[..., Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no picture is named once, and left out."""
    (folder / "a.png").write_text("text")
    client = connect(serve(FolderCamera, folder, (40, 30)))

    colors = [tuple(client.get_image()[0, 0]) for _ in range(4)]

    assert [PICTURES["b.png"], PICTURES["c.png"]] * 2 == colors
    assert ["skipped: a.png is not a picture"] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("fault", ["missing", "empty"])
def test_folder_camera_without_pictures(context: Any, tmp_path: Path, fault: str) -> None:
    """A folder without pictures makes no camera."""
    path = tmp_path / fault
    if fault == "empty":
        path.mkdir()

    with pytest.raises(PhotographError, match=f"{path}"):
        FolderCamera(context, URL, path)


def test_v4l2_camera_shows_video(serve: Callable[..., Any], connect: Callable[..., Any], video: Path) -> None:
    """A video file is decoded as OpenCV does it, at its own frame rate, and begins again at its end."""
    client = connect(serve(V4L2Camera, video))
    assert 25.0 == client.frame_rate
    assert isnan(client.exposure)
    client.frame_rate = 200.0

    images = [client.get_image() for _ in range(12)]

    expected = decoded(video)
    assert 10 == len(expected)
    assert [crc32(image.tobytes()) for image in expected + expected[:2]] == [crc32(image) for image in images]


def test_v4l2_camera_streams(serve: Callable[..., Any], connect: Callable[..., Any], video: Path) -> None:
    """Frames of a video are written in place into what is streamed."""
    client = connect(serve(V4L2Camera, video, 200.0))

    images = [image for image, _, _ in first(client, 5)]

    known = [crc32(image.tobytes()) for image in decoded(video)]
    at = known.index(crc32(images[0]))
    assert [known[(at + number) % 10] for number in range(5)] == [crc32(image) for image in images]


def test_video_has_no_exposure(serve: Callable[..., Any], connect: Callable[..., Any], video: Path) -> None:
    """The exposure of a video cannot be set."""
    with pytest.raises(ValueError, match="film.avi is a video: its exposure cannot be set"):
        connect(serve(V4L2Camera, video)).exposure = 0.01


@pytest.mark.parametrize("fault", ["missing", "text", "no camera"])
def test_v4l2_camera_that_cannot_be_opened(context: Any, tmp_path: Path, fault: str) -> None:
    """What is not there, or is no video, makes no camera."""
    path = tmp_path / "film.avi"
    if fault == "text":
        path.write_text("text")
    source = 9999 if fault == "no camera" else path

    with pytest.raises(CameraError, match="/dev/video9999" if fault == "no camera" else f"{path}"):
        V4L2Camera(context, URL, source)


def test_camera_that_fails_says_why(
    serve: Callable[..., Any], connect: Callable[..., Any], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that gives no more pictures stops; whoever streams is told why, and start tries again."""
    camera = serve(V4L2Camera, video, 200.0)
    client = connect(camera)
    first(client, 1)
    working = camera._read
    monkeypatch.setattr(clients, "PATIENCE", 0.2)

    def unplugged() -> Any:
        raise CameraError("film.avi gives no pictures")

    camera._read = unplugged
    with pytest.raises(NoFrames, match="film.avi gives no pictures"):
        with client.frames.stream(timeout=0.5) as stream:
            for _ in frames_of(client, stream):
                pass
    camera._read = working
    client.start()  # opens the file again

    assert "" == client.fault
    assert 1 == len(first(client, 1))


def test_report_is_read_again() -> None:
    """The last line of viewer and recorder means what they counted."""
    report = Report(118, 3.97, 29.5, 2, "shared memory")

    assert report == Report.parse(str(report))
    with pytest.raises(ValueError, match="no report: ''"):
        Report.parse("")


def test_meter_without_frames() -> None:
    """Who has got nothing, or one frame, has no rate."""
    meter = Meter()
    assert 0.0 == meter.report(0, "x").rate
    meter.count()
    assert (1, 0.0) == (meter.report(0, "x").frames, meter.report(0, "x").rate)


@pytest.mark.parametrize(
    ("shape", "expected"), [((480, 640, 3), (46, 61, 3)), ((10, 1000, 3), (2, 80, 3)), ((480, 640), (46, 61, 3))]
)
def test_picture_is_fitted(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """A picture keeps its proportions in 80 columns and 23 lines of two pixels each."""
    assert expected == fitted(np.zeros(shape, np.uint8), 80, 46).shape


def test_half_blocks() -> None:
    """The upper pixel is the colour of the character, the lower one that of its background."""
    image = np.array([[[1, 2, 3]], [[4, 5, 6]]], np.uint8)

    assert ["\x1b[38;2;1;2;3;48;2;4;5;6m▀"] == half_blocks(image)


def test_terminal_of_unknown_size(tmp_path: Path) -> None:
    """What is no terminal is drawn as on the oldest ones."""
    with (tmp_path / "x").open("w") as file:
        assert (80, 24) == terminal_size(file)


def test_recording_is_what_was_emitted(serve: Callable[..., Any], programs: Programs, tmp_path: Path) -> None:
    """Pixels, numbers and times of all frames are in the file, and what is to be known of them."""
    camera = serve(SimulatedCamera, (640, 480), frame_rate=100.0)
    emitted: dict[int, tuple[int, float]] = {}
    camera.frames.connect(lambda image, number, when: emitted.update({number: (crc32(image), when)}))
    path = tmp_path / "frames.h5"

    status, output, errors = programs.run("recorder", camera.url, path, "--frames", "50")

    assert (0, "") == (status, errors)
    report = Report.parse(output.splitlines()[-1])
    assert (50, 0, "shared memory") == (report.frames, report.dropped, report.path)
    with h5py.File(path) as file:
        numbers = file["number"][:].tolist()
        assert list(range(numbers[0], numbers[0] + 50)) == numbers
        recorded = zip(file["frames"], file["time"], strict=True)
        assert [emitted[number] for number in numbers] == [(crc32(image), when) for image, when in recorded]
        assert (1, 480, 640, 3) == file["frames"].chunks
        attributes = dict(file.attrs)
    assert "T" in attributes.pop("started")
    assert attributes == {
        "camera": "SimulatedCamera",
        "url": camera.url,
        "exposure": NOMINAL_EXPOSURE,
        "frame_rate": 100.0,
        "frames": 50,
        "dropped": 0,
        "path": "shared memory",
    }


def test_recorder_reports_missing_frames(serve: Callable[..., Any], programs: Programs, tmp_path: Path) -> None:
    """Frames whose numbers are missing are reported, wherever they were lost."""
    camera = serve(SimulatedCamera, (320, 240), frame_rate=100.0)

    def lose(image: Any, number: int, when: float) -> None:
        if number == 10:
            camera._frame_number += 7

    camera.frames.connect(lose)
    path = tmp_path / "frames.h5"

    status, output, errors = programs.run("recorder", camera.url, path, "--frames", "30")

    assert (0, "") == (status, errors)
    assert 7 == Report.parse(output.splitlines()[-1]).dropped
    with h5py.File(path) as file:
        assert 7 == file.attrs["dropped"]


def test_interrupted_recording_is_complete(serve: Callable[..., Any], programs: Programs, tmp_path: Path) -> None:
    """Ctrl-C ends a recording in order: what has come is in the file."""
    camera = serve(SimulatedCamera, (320, 240), frame_rate=100.0)
    path = tmp_path / "frames.h5"

    with programs.start("recorder", camera.url, path) as recorder:
        assert recorder.stdout is not None
        recorder.stdout.readline()
        wait_until(lambda: camera.frame_number > 20)
        recorder.send_signal(signal.SIGINT)
        output, errors = recorder.communicate(timeout=LIMIT)

    assert (0, "") == (recorder.returncode, errors)
    frames = Report.parse(output.splitlines()[-1]).frames
    with h5py.File(path) as file:
        assert [frames] * 4 == [*(len(file[name]) for name in ("frames", "number", "time")), file.attrs["frames"]]
        assert file["number"][:].tolist() == [burnt_number(image) for image in file["frames"]]


def test_killed_recorder_leaves_readable_file(serve: Callable[..., Any], programs: Programs, tmp_path: Path) -> None:
    """Of a recorder that is killed, all but what came after the last flush can be read."""
    camera = serve(SimulatedCamera, (320, 240), frame_rate=100.0)
    path = tmp_path / "frames.h5"

    with programs.start("recorder", camera.url, path) as recorder:
        wait_until(lambda: camera.frame_number > 250)
        recorder.kill()

    with h5py.File(path) as file:
        assert len(file["number"]) >= 100
        assert file["number"][:].tolist() == [burnt_number(image) for image in file["frames"]]


def test_recording_of_killed_camera(programs: Programs, tmp_path: Path) -> None:
    """When the camera dies that is said, and the file has what came before."""
    path = tmp_path / "frames.h5"

    with programs.start("server", "--size", "320x240", "--rate", "200") as camera:
        assert camera.stdout is not None
        url = camera.stdout.readline().split()[1]
        with programs.start("recorder", url, path) as recorder:
            wait_until(lambda: path.exists() and path.stat().st_size > 1 << 20)
            camera.kill()
            _, errors = recorder.communicate(timeout=RUN_LIMIT)

    assert 1 == recorder.returncode
    (frames,) = re.findall(r"^recorder: .+; (\d+) frames were recorded\n$", errors)
    with h5py.File(path) as file:
        assert [int(frames)] * 2 == [len(file["frames"]), file.attrs["frames"]]


def test_recorder_keeps_existing_file(serve: Callable[..., Any], programs: Programs, tmp_path: Path) -> None:
    """A file that is there is overwritten only when that is said."""
    camera = serve(SimulatedCamera, (320, 240), frame_rate=100.0)
    path = tmp_path / "frames.h5"
    path.write_text("precious")

    status, _, errors = programs.run("recorder", camera.url, path, "--frames", "2")

    assert (1, "precious") == (status, path.read_text())
    assert f"recorder: {path} is there already: choose another name, or say --overwrite\n" == errors
    assert 0 == programs.run("recorder", camera.url, path, "--frames", "2", "--overwrite")[0]


def test_viewer_in_terminal(serve: Callable[..., Any], programs: Programs, folder: Path) -> None:
    """In a terminal the picture is drawn as wide or high as that, with a status line, and what was there comes back."""
    camera = serve(FolderCamera, folder, (400, 300), frame_rate=50.0)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 100, 0, 0))

    with programs.start("viewer", camera.url, "--frames", "20", stdout=theirs, stderr=theirs) as viewer:
        os.close(theirs)
        text = read_all(ours)

    assert 0 == viewer.returncode
    before, _, rest = text.partition("\x1b[?1049h")
    drawn, _, after = rest.partition("\x1b[?1049l")
    assert "watching FolderCamera" in before
    assert (20, "shared memory") == (Report.parse(after.strip()).frames, Report.parse(after.strip()).path)
    pictures = drawn.split("\x1b[H")[1:]
    assert {10} == {picture.count("\n") for picture in pictures}
    cells = {re.findall(r"\x1b\[38;2;([\d;]+);48;2;([\d;]+)m▀", picture)[0] for picture in pictures}
    colors = {";".join(map(str, color)) for color in PICTURES.values()}
    assert cells <= {(color, color) for color in colors}
    # 20 lines of pixels are 26.7 columns wide.
    assert {27 * 10} == {picture.count("▀") for picture in pictures}
    assert re.search(r"FolderCamera 400x300, frame \d+, [\d.]+/s, \d+ dropped, by shared memory", pictures[-1])


def read_all(descriptor: int) -> str:
    """What is written to a terminal until its last user ends."""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:  # so a pseudo-terminal says that nobody has it any more
        pass
    os.close(descriptor)
    # A picture whose drawing was interrupted may end within a character.
    return b"".join(parts).decode(errors="replace")


def test_viewer_restores_terminal_on_sigterm(serve: Callable[..., Any], programs: Programs, folder: Path) -> None:
    """The terminal is left in order when the viewer is told to end."""
    camera = serve(FolderCamera, folder, (400, 300), frame_rate=50.0)
    ours, theirs = pty.openpty()

    with programs.start("viewer", camera.url, stdout=theirs, stderr=theirs) as viewer:
        os.close(theirs)
        start = b""
        while b"\x1b[H" not in start:
            start += os.read(ours, 1 << 16)
        viewer.terminate()
        text = read_all(ours)

    assert 0 == viewer.returncode
    assert "\x1b[?25h\x1b[?1049l" in text


def test_viewer_without_terminal(serve: Callable[..., Any], programs: Programs) -> None:
    """Into a pipe go words."""
    camera = serve(SimulatedCamera, (320, 240), frame_rate=100.0)

    status, output, errors = programs.run("viewer", camera.url, "--frames", "20")

    assert (0, "") == (status, errors)
    lines = output.splitlines()
    assert f"watching SimulatedCamera at {camera.url}" == lines[0]
    assert lines[1].startswith("SimulatedCamera 320x240, frame ")
    assert 20 == Report.parse(lines[-1]).frames
    assert "\x1b" not in output


def test_viewer_without_window(serve: Callable[..., Any], programs: Programs) -> None:
    """A window that cannot be is refused, with what to install."""
    camera = serve(SimulatedCamera)

    status, _, errors = programs.run("viewer", camera.url, "--view", "window")

    assert 1 == status
    assert 'viewer: there is no display, or an OpenCV without windows: pip install "rpc-kit[viewer]"\n' == errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--v4l2", "9999"), "there is no camera /dev/video9999"),
        (("--v4l2", "nowhere.avi"), "there is no video nowhere.avi"),
        (("--folder", "nowhere"), "cannot read the folder nowhere: No such file or directory"),
        (("--rate", "0"), "the frame rate is between 0 and 1000 frames/s, not 0"),
        (("--size", "10x10"), "a picture is at least 256 x 8, not 10 x 10"),
        (("--listen", "nonsense"), "nonsense"),
    ],
)
def test_camera_that_cannot_be_served(programs: Programs, arguments: tuple[str, ...], expected: str) -> None:
    """What keeps a camera from being served is said in one line."""
    status, output, errors = programs.run("server", *arguments)

    assert (1, "", 1) == (status, output, len(errors.splitlines()))
    assert errors.startswith("camera: ")
    assert expected in errors


@pytest.mark.parametrize(
    ("package", "program", "arguments", "expected"),
    [
        ("cv2", "server", ("--v4l2", "0"), 'camera: OpenCV is missing: pip install "rpc-kit[viewer]"\n'),
        ("h5py", "recorder", ("URL", "frames.h5"), 'recorder: h5py is missing: pip install "rpc-kit[examples]"\n'),
        ("cv2", "viewer", ("URL", "--view", "window"), 'viewer: OpenCV is missing: pip install "rpc-kit[viewer]"\n'),
    ],
)
def test_missing_package(
    serve: Callable[..., Any],
    programs: Programs,
    package: str,
    program: str,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    """A package that is missing is named, with the way to get it."""
    url = serve(SimulatedCamera).url

    status, _, errors = programs.run_without(package, program, *(url if each == "URL" else each for each in arguments))

    assert (1, expected) == (status, errors)


def test_viewer_needs_no_opencv(serve: Callable[..., Any], programs: Programs) -> None:
    """Without OpenCV the viewer does without a window."""
    url = serve(SimulatedCamera, (320, 240)).url

    status, output, _ = programs.run_without("cv2", "viewer", url, "--frames", "2")

    assert (0, 2) == (status, Report.parse(output.splitlines()[-1]).frames)


@pytest.mark.parametrize("program", ["viewer", "recorder"])
def test_no_camera(programs: Programs, tmp_path: Path, program: str) -> None:
    """When nothing answers at the url, that is said in one line."""
    file = [tmp_path / "frames.h5"] if program == "recorder" else []

    status, _, errors = programs.run(program, "tcp://127.0.0.1:1", *file)

    assert (1, 1) == (status, len(errors.splitlines()))
    assert errors.startswith(f"{program}: ")
    assert "tcp://127.0.0.1:1" in errors
    assert [] == list(tmp_path.iterdir())


def test_demo(programs: Programs, tmp_path: Path) -> None:
    """The demo watches and records 2 s, loses nothing of the recording, and compares it with what was burnt in."""
    status, output, errors = programs.run("demo", "--seconds", "2", "--output", tmp_path)

    assert (0, "") == (status, errors)
    rows = dict(re.findall(r"^  (viewer|recorder) +(\d+ +[\d.]+ +\d+  .+)$", output, re.MULTILINE))
    frames, rate, dropped, path = rows["recorder"].split(maxsplit=3)
    assert ("60", "0", "shared memory") == (frames, dropped, path)
    assert 10 < float(rate) < 40
    assert int(rows["viewer"].split()[0]) > 20
    path = tmp_path / "camera-stream.h5"
    assert f"each of 60 recorded frames bears its number: {path}" == output.splitlines()[-1]


def test_demo_interrupted(programs: Programs, tmp_path: Path) -> None:
    """Ctrl-C ends all processes."""
    with programs.start("demo", "--seconds", "60", "--output", tmp_path) as demo:
        assert demo.stdout is not None
        while not (tmp_path / "camera-stream.h5").exists():
            assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=LIMIT)

    assert 130 == demo.returncode
    assert "demo: interrupted" == errors.strip()
