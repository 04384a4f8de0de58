"""The camera demo, run as a user runs it."""

import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
import pytest
from PIL import Image

from examples.camera.photographs import NOMINAL_EXPOSURE, PhotographError, open_photograph, take

PROJECT = Path(__file__).parents[1]
LIMIT = 100
MARK = "RPC_KIT_DEMO_TEST"


class Demo:
    """Runs the demo with temporary files and processes that can be told from others."""

    def __init__(self, tmp_path: Path) -> None:
        self.output = tmp_path / "output"
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        self.mark = uuid4().hex

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "examples.camera.demo", "--output", self.output, *arguments],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": str(self.temporary), MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=LIMIT)
        return process.returncode, output, errors

    def processes(self) -> list[str]:
        return [" ".join(process.cmdline()) for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:
            return False


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Whatever the demo did, no process and no temporary file is left."""
    demo = Demo(tmp_path)
    yield demo
    assert [] == demo.processes()
    assert [] == list(demo.temporary.iterdir())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a grey, a coloured and a transparent picture."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, shape in {"grey.png": (40, 60), "color.png": (70, 50, 3), "transparent.png": (30, 30, 4)}.items():
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / name)
    return folder


def test_demo_with_sample_photographs(demo: Demo) -> None:
    """Without arguments the photographs of scikit-image are fetched and a contact sheet is written."""
    status, output, errors = demo.run()

    assert (0, "") == (status, errors)
    assert int(re.findall(r"identical to their source +(\d+)", output)[0]) >= 10
    assert f"contact sheet: {demo.output / 'camera-contact-sheet.png'}" == output.splitlines()[-1]


def test_demo_with_own_pictures(demo: Demo, pictures: Path) -> None:
    """Every picture of a folder arrives, and signals tell of both settings and of each picture."""
    status, output, errors = demo.run("--images", pictures)

    assert (0, "") == (status, errors)
    assert ["3 (1 grey)"] == re.findall(r"identical to their source +(.+)", output)
    assert ["206"] == re.findall(r"signals received +(\d+)", output)
    with Image.open(demo.output / "camera-contact-sheet.png") as sheet:
        assert ("PNG", 664) == (sheet.format, sheet.width)


@pytest.mark.parametrize("fault", ["not a picture", "damaged"])
def test_demo_skips_unreadable_file(demo: Demo, pictures: Path, fault: str) -> None:
    """A file that is no picture, or is cut off, is named and left out."""
    content = b"text" if fault == "not a picture" else (pictures / "color.png").read_bytes()[:-4000]
    (pictures / "broken.png").write_bytes(content)

    status, output, errors = demo.run("--images", pictures)

    assert 0 == status
    assert ["3 (1 grey)"] == re.findall(r"identical to their source +(.+)", output)
    assert ["broken.png"] == re.findall(r"skipped: (\S+) is", errors)


@pytest.mark.parametrize(
    ("name", "dtype", "bits"), [("x.tif", np.uint16, 16), ("x.png", np.uint16, 16), ("x.tif", np.float32, 32)]
)
def test_demo_skips_file_of_more_bits(
    demo: Demo, pictures: Path, name: str, dtype: type[np.generic], bits: int
) -> None:
    """A picture with more than 8 bits per channel is named and left out, not flattened."""
    Image.fromarray(np.linspace(0, 50_000, 1200).reshape(30, 40).astype(dtype)).save(pictures / name)

    status, _, errors = demo.run("--images", pictures)

    assert 0 == status
    assert f"skipped: {name} has {bits} bits per channel; only 8 are supported" == errors.strip()


def test_coloured_picture_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow cuts such a picture to 8 bits by itself; the camera does not take it."""
    lines = b"".join(b"\0" + np.full((4, 3), 40_000, ">u2").tobytes() for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "x.png").write_bytes(content)

    with pytest.raises(PhotographError, match="x.png has 16 bits per channel"):
        open_photograph(tmp_path / "x.png")


@pytest.mark.parametrize("fault", ["missing", "empty", "a file", "unreadable"])
def test_demo_with_bad_folder(demo: Demo, tmp_path: Path, fault: str) -> None:
    """A folder without a readable picture gives one line and exit status 1."""
    folder = tmp_path / "folder"
    if fault == "a file":
        folder.write_text("text")
    elif fault != "missing":
        folder.mkdir()
    if fault == "unreadable":
        (folder / "broken.png").write_text("text")

    status, _, errors = demo.run("--images", folder)

    assert 1 == status
    assert 1 == len([line for line in errors.splitlines() if line.startswith("demo: ")])
    assert "Traceback" not in errors
    assert not demo.output.joinpath("camera-contact-sheet.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", ["registry at", "camera registered", "exposure set"])
def test_demo_interrupted(demo: Demo, pictures: Path, line: str, number: signal.Signals) -> None:
    """Ctrl-C at any moment ends the registry and the camera too."""
    with demo.start("--images", pictures) as process:
        assert process.stdout is not None
        while line not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT)

    assert 130 == process.returncode
    assert "demo: interrupted" == errors.strip()


def test_demo_when_camera_dies(demo: Demo, pictures: Path) -> None:
    """When the camera's process is killed the demo says so in one line and ends the registry."""
    with demo.start("--images", pictures) as process:
        assert process.stdout is not None
        while "camera registered" not in process.stdout.readline():
            assert process.poll() is None
        for child in psutil.Process(process.pid).children():
            if "examples.camera.server" in child.cmdline():
                child.kill()
        _, errors = process.communicate(timeout=LIMIT)

    assert 1 == process.returncode
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["grey.png", "color.png"])
def test_picture_is_unchanged_at_its_own_size(pictures: Path, name: str) -> None:
    """At the nominal exposure and its own resolution a picture is what the file holds."""
    with Image.open(pictures / name) as source:
        expected = np.asarray(source)
        size = source.size

    assert np.array_equal(expected, take(pictures / name, size, NOMINAL_EXPOSURE))


def test_exposure_scales_and_saturates(pictures: Path) -> None:
    """Twice the exposure is twice as bright, up to 255."""
    once = take(pictures / "grey.png", (60, 40), NOMINAL_EXPOSURE)

    twice = take(pictures / "grey.png", (60, 40), 2 * NOMINAL_EXPOSURE)

    assert np.array_equal(np.minimum(once.astype(int) * 2, 255), twice)
