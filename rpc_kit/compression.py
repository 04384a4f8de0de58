"""Arrays and buffers compressed for thin links, by JPEG or zlib; JPEG needs the extra ``images``."""

import math
import struct
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any, Literal

import msgspec

from .errors import MessageTooLarge, MissingExtra, ProtocolError, SerializationError

ZLIB_LEVEL = 1
"""The fastest: a photograph of 1080p takes 0.1 s. Level 6 takes twice as long for 0 to 8 % less."""
LONGEST_SIDE = 65500
"""libjpeg compresses no more, pixels."""
HIGHEST_RATIO = 1032
"""zlib reaches no more, and JPEG less: what a small frame cannot hold is not even allocated."""
MOST_SEGMENTS = 1000
"""So many parts of a JPEG's head are looked at; `compress` makes ten."""

_FRAME, _SCAN = 0xFFC0, 0xFFDA
"""Markers of a baseline picture's header, and of a scan's (ITU-T T.81, annex B)."""
_WITHOUT_LENGTH = range(0xFFD0, 0xFFDA)
_BYTE = ("|u1", "u1", "uint8")
_COLOURS = {1: ("Gray", "Gray"), 3: ("RGB", "420")}
"""Channels to the colour space and chroma subsampling of a picture."""


class Codec(msgspec.Struct, frozen=True):
    """How arrays and buffers are compressed.

    ``zlib`` is for anything, without loss. ``jpeg`` is for pictures ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3) uint8``,
    grey or RGB. It is baseline JPEG as cameras make it: the colours, but not the brightness, have half of the
    resolution (chroma subsampling 4:2:0).

    Attributes
    ----------
    name : str
        ``"jpeg"`` or ``"zlib"``.
    quality : int
        Of ``jpeg``, 1 to 100, on libjpeg's scale; 100 is not without loss either.
    """

    name: Literal["jpeg", "zlib"]
    quality: Annotated[int, msgspec.Meta(ge=1, le=100)] = 90


def check(codec: Codec) -> None:
    """Raise unless the codec can be used here.

    Raises
    ------
    ValueError
        When its name is unknown, or its quality no number from 1 to 100.
    MissingExtra
        When it is ``jpeg``, and simplejpeg is not installed.
    """
    if codec.name not in ("jpeg", "zlib"):
        raise ValueError(f"a codec is 'jpeg' or 'zlib', not {codec.name!r}")
    if type(codec.quality) is not int or not 1 <= codec.quality <= 100:
        raise ValueError(f"a quality is an int from 1 to 100, not {codec.quality!r}")
    if codec.name == "jpeg":
        _simplejpeg()


def compress(view: memoryview, dtype: Any, shape: Sequence[int] | None, codec: Codec) -> bytes:
    """The bytes compressed.

    Parameters
    ----------
    view
        Contiguous in C order, flat or not.
    dtype, shape
        As in the header of the buffer; None for what is no array.

    Raises
    ------
    SerializationError
        When ``jpeg`` is for no such array.
    MissingExtra
        When simplejpeg is not installed.
    """
    if codec.name == "zlib":
        return zlib.compress(view, ZLIB_LEVEL)
    picture = _picture(dtype, shape)
    if picture is None or not view.c_contiguous:
        raise SerializationError(
            f"jpeg cannot compress {_named(dtype, shape)}: only uint8 in C order, of shape (H, W), (H, W, 1) or "
            f'(H, W, 3), H and W from 1 to {LONGEST_SIDE}; convert it, or connect with codec="zlib" or without any'
        )
    simplejpeg = _simplejpeg()
    import numpy

    pixels = numpy.frombuffer(view, numpy.uint8).reshape(picture)
    colourspace, subsampling = _COLOURS[picture[2]]
    made: bytes = simplejpeg.encode_jpeg(pixels, codec.quality, colourspace, subsampling)
    return made


def decompress(
    frame: bytes | bytearray | memoryview,
    dtype: Any,
    shape: Sequence[int] | None,
    size: int,
    codec_name: str,
    limit: int | None = None,
) -> bytes | memoryview:
    """The bytes of which `compress` has made a frame, exactly `size`, read-only.

    zlib notices any damage by a checksum. JPEG has none: pixels may be wrong.

    Parameters
    ----------
    limit
        The largest `size`, bytes.

    Raises
    ------
    ProtocolError
        When the frame is damaged, or holds anything else.
    MessageTooLarge
        When it would be larger than the limit.
    MissingExtra
        When simplejpeg is not installed.
    """
    if limit is not None and size > limit:
        raise MessageTooLarge(f"the compressed buffer has {size} bytes, the limit is {limit}")
    if not 0 <= size <= len(frame) * HIGHEST_RATIO:
        raise ProtocolError(f"a compressed frame of {len(frame)} bytes cannot hold {size} bytes")
    if codec_name == "zlib":
        return _inflate(frame, size)
    if codec_name != "jpeg":
        raise ProtocolError(f"unknown codec {codec_name[:100]!r}")
    picture = _picture(dtype, shape)
    if picture is None or math.prod(picture) != size:
        raise ProtocolError(f"a JPEG cannot hold {_named(dtype, shape)} of {size} bytes")
    return _decode(frame, picture)


def _inflate(frame: bytes | bytearray | memoryview, size: int) -> bytes:
    inflating = zlib.decompressobj()
    try:
        # One more: else the end would not be reached, where the checksum is.
        data = inflating.decompress(frame, size + 1)
    except zlib.error as exc:
        raise ProtocolError(f"the frame is not zlib's: {exc}") from exc
    if len(data) > size or inflating.unused_data:
        raise ProtocolError(f"the frame of zlib holds more than {size} bytes")
    if not inflating.eof or len(data) < size:
        raise ProtocolError(f"the frame of zlib gives {len(data)} of {size} bytes")
    return data


def _decode(frame: bytes | bytearray | memoryview, picture: tuple[int, int, int]) -> memoryview:
    simplejpeg = _simplejpeg()
    import numpy

    _check_headers(frame, picture)
    pixels = numpy.empty(math.prod(picture), numpy.uint8)
    try:
        simplejpeg.decode_jpeg(frame, _COLOURS[picture[2]][0], buffer=pixels)
    except ValueError as exc:
        raise ProtocolError(f"the JPEG is damaged: {exc}") from exc
    return pixels.data.toreadonly()


def _check_headers(frame: bytes | bytearray | memoryview, picture: tuple[int, int, int]) -> None:
    """Raise ProtocolError unless it is a baseline JPEG of that shape in one scan.

    A progressive one may have any number of scans: 12 bytes each, for which libjpeg goes through the whole picture.
    """
    height, width, channels = picture
    expected = struct.pack(">BHHB", 8, height, width, channels), bytes([channels])
    found = b""
    position = 2
    for _ in range(MOST_SEGMENTS if bytes(frame[:2]) == b"\xff\xd8" else 0):
        if position + 4 > len(frame):
            break
        marker, length = struct.unpack_from(">HH", frame, position)
        if length < 2 or not 0xFFC0 <= marker <= 0xFFFE or marker in _WITHOUT_LENGTH:
            break
        content = bytes(frame[position + 4 : position + 10])
        if marker == _SCAN and (found, content[:1]) == expected:
            return
        if marker == _FRAME:
            found = content
        position += 2 + length
    raise ProtocolError(f"the frame is no baseline JPEG of {height} × {width} pixels with {channels} channels")


def _picture(dtype: Any, shape: Sequence[int] | None) -> tuple[int, int, int] | None:
    """Height, width and channels of what JPEG can hold."""
    if dtype not in _BYTE or shape is None or len(shape) not in (2, 3):
        return None
    height, width, channels = (*shape, 1)[:3]
    fits = 1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE and channels in _COLOURS
    return (height, width, channels) if fits else None


def _named(dtype: Any, shape: Sequence[int] | None) -> str:
    return f"{str(dtype)[:100]} of shape {str(tuple(shape))[:100]}" if shape is not None else "what is no array"


def _simplejpeg() -> ModuleType:
    try:
        import simplejpeg
    except ImportError as exc:
        raise MissingExtra("simplejpeg is not installed: pip install rpc-kit[images]") from exc
    module: ModuleType = simplejpeg
    return module
