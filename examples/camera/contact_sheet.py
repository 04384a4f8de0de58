"""All pictures on one sheet."""

from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

COLUMNS = 6
THUMBNAIL = (200, 150)
MARGIN = 16
CAPTION = 24
PAPER, INK = (24, 26, 30), (200, 204, 210)


class ContactSheet:
    """Small copies of pictures with their names."""

    def __init__(self) -> None:
        self._thumbnails: list[tuple[str, Image.Image]] = []

    def add(self, name: str, image: NDArray[np.uint8]) -> None:
        """Keep a small copy of an image, ``(H, W) uint8`` or ``(H, W, 3) uint8``."""
        self._thumbnails.append((name, ImageOps.pad(Image.fromarray(image).convert("RGB"), THUMBNAIL, color=PAPER)))

    def save(self, path: Path) -> None:
        columns = min(COLUMNS, len(self._thumbnails))
        rows = ceil(len(self._thumbnails) / columns)
        step_x, step_y = THUMBNAIL[0] + MARGIN, THUMBNAIL[1] + CAPTION + MARGIN
        sheet = Image.new("RGB", (MARGIN + columns * step_x, MARGIN + rows * step_y), PAPER)
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for place, (name, thumbnail) in enumerate(self._thumbnails):
            x, y = MARGIN + place % columns * step_x, MARGIN + place // columns * step_y
            sheet.paste(thumbnail, (x, y))
            draw.text((x, y + THUMBNAIL[1] + 4), shortened(name, font), INK, font)
        sheet.save(path)


def shortened(name: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The name, cut to the width of a thumbnail."""
    if font.getlength(name) <= THUMBNAIL[0]:
        return name
    while name and font.getlength(f"{name}…") > THUMBNAIL[0]:
        name = name[:-1]
    return f"{name}…"
