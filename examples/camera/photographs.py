"""Photographs on disk, and how the camera sees them."""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

NOMINAL_EXPOSURE = 0.01
"""The exposure time at which a picture keeps its own brightness, s."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
TEST_CHARTS = {
    "chessboard_GRAY.png",
    "chessboard_RGB.png",
    "color.png",
    "horse.png",
    "logo.png",
    "multipage.tif",
    "multipage_rgb.tif",
    "phantom.png",
}
GREY_MODES = {"1", "L", "LA"}
DEEP_MODES = {"I": 32, "I;16": 16, "I;16L": 16, "I;16B": 16, "I;16N": 16, "F": 32}
"""Pillow's modes of more than 8 bits per channel, and how many."""


class PhotographError(ValueError):
    """A folder or a file that gives no picture."""


def sample_photographs() -> list[Path]:
    """The photographs that scikit-image brings along."""
    folder = Path(str(files("skimage"))) / "data"
    return [path for path in find_photographs(folder) if path.name not in TEST_CHARTS]


def find_photographs(folder: Path) -> list[Path]:
    """The picture files of a folder in the order of their names, whether they are readable or not."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as exc:
        raise PhotographError(f"cannot read the folder {folder}: {exc.strerror}") from exc
    if not found:
        raise PhotographError(f"no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def open_photograph(path: Path) -> Image.Image:
    """Open a file of 8 bits per channel and read its header; the pixels are read when they are used."""
    try:
        photograph = Image.open(path)
    except UnidentifiedImageError as exc:
        raise PhotographError(f"{path.name} is not a picture") from exc
    except Exception as exc:  # Pillow's decoders raise whatever a broken file drives them to
        raise PhotographError(f"{path.name} is not readable: {exc}") from exc
    bits = bits_per_channel(photograph)
    if bits > 8:
        photograph.close()
        raise PhotographError(f"{path.name} has {bits} bits per channel; only 8 are supported")
    return photograph


def bits_per_channel(photograph: Image.Image) -> int:
    """The bits of a channel in the file, as far as they are more than 8."""
    # Pillow has no mode for colours of 16 bits, and cuts them to 8: only how the file is decoded tells of them.
    decoders = " ".join(str(tile[3]) for tile in getattr(photograph, "tile", ()))
    if re.search(r"\b(RGB|RGBA|RGBX|RGBa|LA|CMYK|[RGBACMYKX]);16", decoders):
        return 16
    return DEEP_MODES.get(photograph.mode, 8)


def is_grey(photograph: Image.Image) -> bool:
    return photograph.mode in GREY_MODES


def take(path: Path, resolution: tuple[int, int], exposure: float) -> NDArray[np.uint8]:
    """The picture cut and scaled to (width, height), as bright as the exposure makes it, saturating at 255."""
    with open_photograph(path) as photograph:
        try:
            upright = ImageOps.exif_transpose(photograph.convert("L" if is_grey(photograph) else "RGB"))
        except Exception as exc:
            raise PhotographError(f"{path.name} is damaged: {exc}") from exc
    pixels = np.asarray(ImageOps.fit(upright, resolution))
    brightness = np.minimum(np.arange(256) * (exposure / NOMINAL_EXPOSURE), 255).astype(np.uint8)
    image: NDArray[np.uint8] = brightness[pixels]
    return image
