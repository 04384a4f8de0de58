"""Frames compressed by zlib and JPEG: exact or close, and hostile ones refused in little memory and time."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from rpc_kit.compression import HIGHEST_RATIO, Codec, check, compress, decompress
from rpc_kit.errors import MessageTooLarge, MissingExtra, ProtocolError, SerializationError

JPEG, ZLIB = Codec("jpeg"), Codec("zlib")
DATA = Path(str(files("skimage"))) / "data"
SMALL = 100_000
"""What allocations besides the asked ones may take, bytes."""


def photograph(name: str, mode: str = "RGB") -> NDArray[np.uint8]:
    """A photograph of scikit-image, (H, W, 3) or (H, W)."""
    with Image.open(DATA / name) as opened:
        return np.array(opened.convert(mode))


def encoded(picture: NDArray[Any], codec: Codec = JPEG) -> bytes:
    return compress(picture.data, picture.dtype.str, picture.shape, codec)


def decoded(frame: Any, picture: NDArray[Any], codec: str = "jpeg") -> NDArray[Any]:
    """A frame as an array with the dtype and shape of the picture."""
    found = decompress(frame, picture.dtype.str, picture.shape, picture.nbytes, codec)
    return np.ndarray(picture.shape, picture.dtype, found)


def quality(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio, dB."""
    error = float(np.mean((one.astype(float) - other) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else np.inf


def as_jpeg(picture: NDArray[np.uint8], mode: str | None = None, **options: Any) -> bytes:
    """A JPEG that Pillow has made."""
    file = io.BytesIO()
    image = Image.fromarray(picture)
    image.convert(mode or image.mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_header(frame: bytes, height: int, width: int, channels: int) -> bytes:
    """A baseline JPEG whose header says that it has another size."""
    position = frame.index(b"\xff\xc0") + 5
    return frame[:position] + struct.pack(">HHB", height, width, channels) + frame[position + 5 :]


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Fails when more memory than that is allocated at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A cat."""
    return photograph("chelsea.png")


@given(st.binary(max_size=2000))
def test_bytes_by_zlib(data: bytes) -> None:
    """Any bytes come back from zlib."""
    frame = compress(memoryview(data), None, None, ZLIB)

    assert data == decompress(frame, None, None, len(data), "zlib", limit=len(data))


@given(
    arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), arrays.array_dtypes()).filter(lambda dtype: dtype.kind not in "mM"),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    )
)
def test_arrays_by_zlib(array: NDArray[Any]) -> None:
    """Arrays of every dtype and shape come back from zlib bit for bit."""
    data = array.tobytes()
    frame = compress(memoryview(data), array.dtype.str, array.shape, ZLIB)

    assert data == decompress(frame, array.dtype.str, array.shape, len(data), "zlib")


def test_photograph_by_zlib(picture: NDArray[np.uint8]) -> None:
    """A photograph comes back from zlib bit for bit, and takes less on the way."""
    frame = encoded(picture, ZLIB)

    assert np.array_equal(picture, decoded(frame, picture, "zlib"))
    assert len(frame) < 0.9 * picture.nbytes


@pytest.mark.parametrize(
    ("name", "mode", "least", "most"),
    [
        ("astronaut.png", "RGB", 36, 0.10),
        ("coffee.png", "RGB", 35, 0.12),
        ("chelsea.png", "RGB", 38, 0.10),
        ("retina.jpg", "RGB", 47, 0.05),
        ("hubble_deep_field.jpg", "RGB", 33, 0.12),
        ("camera.png", "L", 39, 0.25),
        ("coins.png", "L", 41, 0.33),
        ("moon.png", "L", 45, 0.15),
        ("brick.png", "L", 44, 0.20),
    ],
)
def test_photographs_by_jpeg(name: str, mode: str, least: float, most: float) -> None:
    """Photographs in colour and grey stay close to the original (dB) and shrink to a fraction."""
    original = photograph(name, mode)
    frame = encoded(original)

    assert quality(original, decoded(frame, original)) >= least
    assert len(frame) <= most * original.nbytes


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 1), (1, 1, 3), (7, 13), (17, 33, 3), (299, 1, 3), (1, 299), (8, 16, 1)]
)
def test_odd_sizes_by_jpeg(picture: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    """Pictures of any height and width keep them, with or without an axis of channels."""
    height, width = shape[:2]
    cut = picture[-height:, -width:]
    original = np.ascontiguousarray(cut if shape[2:] == (3,) else cut[..., 1]).reshape(shape)

    assert quality(original, decoded(encoded(original), original)) >= 30


@pytest.mark.parametrize("shape", [(1, 65500), (65500, 1, 3)])
def test_longest_sides(shape: tuple[int, ...]) -> None:
    """A picture may be as long as libjpeg can."""
    original = np.full(shape, 99, np.uint8)

    assert np.array_equal(original, decoded(encoded(original), original))


def test_channels_keep_their_order(picture: NDArray[np.uint8]) -> None:
    """Red stays the first channel, also for other programs."""
    red = np.zeros_like(picture)
    red[..., 0] = 255
    frame = encoded(red)

    assert [254, 0, 0] == decoded(frame, red)[0, 0].tolist()
    with Image.open(io.BytesIO(frame)) as opened:
        assert (254, 0, 0) == opened.getpixel((0, 0))


@pytest.mark.parametrize("level", [1, 10, 50, 75, 90, 100])
def test_quality_is_that_of_libjpeg(picture: NDArray[np.uint8], level: int) -> None:
    """The quality means the same as in other programs, and the colours have half of the resolution."""
    with (
        Image.open(io.BytesIO(encoded(picture, Codec("jpeg", level)))) as ours,
        Image.open(io.BytesIO(as_jpeg(picture, quality=level, subsampling="4:2:0"))) as theirs,
    ):
        assert theirs.quantization == ours.quantization  # type: ignore[attr-defined]
        assert [(2, 2), (1, 1), (1, 1)] == [each[1:3] for each in ours.layer]  # type: ignore[attr-defined]


def test_more_quality_takes_more_bytes(picture: NDArray[np.uint8]) -> None:
    """The better, the larger."""
    frames = [encoded(picture, Codec("jpeg", level)) for level in (1, 25, 50, 75, 90, 100)]
    found = [quality(picture, decoded(frame, picture)) for frame in frames]

    assert sorted(frames, key=len) == frames
    assert sorted(found) == found


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"optimize": True}, {"restart_marker_rows": 1}]
)
def test_jpegs_of_others(picture: NDArray[np.uint8], options: dict[str, Any]) -> None:
    """Baseline JPEGs of other encoders are read."""
    frame = as_jpeg(picture, quality=90, comment="x" * 1000, **options)

    assert quality(picture, decoded(frame, picture)) >= 35


@pytest.mark.parametrize("codec", [JPEG, ZLIB])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_in_and_a_read_only_one_out(picture: NDArray[np.uint8], codec: Codec, kind: Any) -> None:
    """A frame may be any bytes-like; what is made of it is flat and cannot be written to."""
    picture.flags.writeable = False
    frame = kind(encoded(picture, codec))
    found = decompress(frame, "|u1", picture.shape, picture.nbytes, codec.name)

    assert (picture.nbytes, True) == (len(found), memoryview(found).readonly)


def test_flat_view(picture: NDArray[np.uint8]) -> None:
    """The view may be flat: the shape says what it is."""
    flat = compress(memoryview(picture.tobytes()), "|u1", list(picture.shape), JPEG)

    assert encoded(picture) == flat


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((4, 4), "<u2"), "<u2 of shape (4, 4)"),
        (np.zeros((4, 4), "i1"), "|i1 of shape (4, 4)"),
        (np.zeros((4, 4), "?"), "|b1 of shape (4, 4)"),
        (np.zeros((4, 4, 3), "<f4"), "<f4 of shape (4, 4, 3)"),
        (np.zeros((), "u1"), "|u1 of shape ()"),
        (np.zeros(4, "u1"), "|u1 of shape (4,)"),
        (np.zeros((4, 4, 2), "u1"), "|u1 of shape (4, 4, 2)"),
        (np.zeros((4, 4, 4), "u1"), "|u1 of shape (4, 4, 4)"),
        (np.zeros((4, 4, 0), "u1"), "|u1 of shape (4, 4, 0)"),
        (np.zeros((2, 4, 4, 3), "u1"), "|u1 of shape (2, 4, 4, 3)"),
        (np.zeros((0, 4), "u1"), "|u1 of shape (0, 4)"),
        (np.zeros((4, 0, 3), "u1"), "|u1 of shape (4, 0, 3)"),
        (np.zeros((1, 65501), "u1"), "|u1 of shape (1, 65501)"),
        (np.zeros((65501, 1, 3), "u1"), "|u1 of shape (65501, 1, 3)"),
        (np.zeros((4, 5), "u1", order="F"), "|u1 of shape (4, 5)"),
    ],
)
def test_what_jpeg_cannot_compress(array: NDArray[Any], expected: str) -> None:
    """The error names what it got, what there could be, and what to do."""
    with pytest.raises(SerializationError) as caught:
        encoded(array)

    assert (
        f"jpeg cannot compress {expected}: only uint8 in C order, of shape (H, W), (H, W, 1) or (H, W, 3), H and W "
        'from 1 to 65500; convert it, or connect with codec="zlib" or without any'
    ) == str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (None, None, "what is no array"),
        ({"names": ["a"], "formats": ["|u1"]}, [4, 4], "{'names': ['a'], 'formats': ['|u1']} of shape (4, 4)"),
        (["|u1", [4]], [4], "['|u1', [4]] of shape (4,)"),
    ],
)
def test_jpeg_of_other_headers(dtype: Any, shape: Any, expected: str) -> None:
    """Bytes and structured arrays are no pictures."""
    with pytest.raises(SerializationError) as caught:
        compress(memoryview(bytes(16)), dtype, shape, JPEG)

    assert str(caught.value).startswith(f"jpeg cannot compress {expected}: only uint8")


@pytest.mark.parametrize("codec", [JPEG, ZLIB])
@pytest.mark.parametrize("kept", [0, 1, 2, 3, 20, 300, 0.5, 0.9, -100, -2, -1])
def test_truncated(picture: NDArray[np.uint8], codec: Codec, kept: float) -> None:
    """A frame that ends too soon is refused, wherever it ends."""
    frame = encoded(picture, codec)
    end = int(kept * len(frame)) if isinstance(kept, float) else int(kept)
    with pytest.raises(ProtocolError):
        decoded(frame[:end], picture, codec.name)


@given(st.data())
def test_damaged_zlib(data: st.DataObject) -> None:
    """Any changed bit is noticed."""
    original = np.arange(256, dtype=np.uint8).repeat(4)
    frame = bytearray(encoded(original, ZLIB))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        decoded(frame, original, "zlib")


@given(st.data())
def test_damaged_jpeg(data: st.DataObject) -> None:
    """Changed bytes make another picture of the same size or are refused."""
    original = np.arange(24 * 40 * 3, dtype=np.uint8).reshape(24, 40, 3)
    frame = bytearray(encoded(original))
    for _ in range(data.draw(st.integers(1, 5))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decoded(frame, original)
    except ProtocolError:
        return

    assert original.shape == found.shape


@given(st.binary(max_size=300), st.sampled_from(["jpeg", "zlib", "", "lz4"]), st.booleans())
def test_any_frame(frame: bytes, codec: str, begun: bool) -> None:
    """Whatever comes is refused by a ProtocolError."""
    start = b"\xff\xd8" if codec == "jpeg" else b"\x78\x01"
    with pytest.raises(ProtocolError):
        decompress(start * begun + frame, "|u1", [40, 41], 1640, codec)


def test_more_than_announced_by_zlib() -> None:
    """Exactly as many bytes come out as were announced, and nothing follows."""
    frame = zlib.compress(bytes(1000))
    for size in (0, 1, 999, 1001):
        with pytest.raises(ProtocolError, match="the frame of zlib"):
            decompress(frame, None, None, size, "zlib")
    with pytest.raises(ProtocolError, match="holds more than 1000 bytes"):
        decompress(frame + b"x", None, None, 1000, "zlib")


def test_bomb_of_zlib() -> None:
    """A frame that would become 256 MiB takes no more than twice what was announced, and once itself."""
    frame = zlib.compress(bytes(1 << 28), 9)
    size = 1_000_000
    with little_memory(2 * size + len(frame) + SMALL), pytest.raises(ProtocolError, match="more than 1000000 bytes"):
        decompress(frame, None, None, size, "zlib")


@pytest.mark.parametrize("codec", ["jpeg", "zlib"])
def test_size_that_the_frame_cannot_have(picture: NDArray[np.uint8], codec: str) -> None:
    """What is announced is not allocated when the frame is too small for it."""
    frames = {"zlib": zlib.compress(bytes(1000)), "jpeg": with_header(encoded(picture[:8, :8].copy()), 65000, 65000, 3)}
    frame = frames[codec]
    with little_memory(SMALL), pytest.raises(ProtocolError, match="cannot hold 12675000000 bytes"):
        decompress(frame, "|u1", [65000, 65000, 3], 65000 * 65000 * 3, codec)
    with pytest.raises(ProtocolError, match="cannot hold -1 bytes"):
        decompress(frame, None, None, -1, codec)


def test_highest_ratio_of_zlib() -> None:
    """The limit of the ratio refuses nothing that zlib can make."""
    frame = zlib.compress(bytes(30_000_000), 9)

    assert 1000 < 30_000_000 / len(frame) < HIGHEST_RATIO
    assert 30_000_000 == len(decompress(frame, None, None, 30_000_000, "zlib"))


def test_highest_ratio_of_jpeg() -> None:
    """Nor anything that libjpeg can make."""
    black = np.zeros((4000, 4000, 3), np.uint8)
    frames = [encoded(black, Codec("jpeg", 1)), as_jpeg(black, quality=1, subsampling="4:2:0", optimize=True)]

    assert [0, 0] == [int(np.ptp(decoded(frame, black))) for frame in frames]


@pytest.mark.parametrize("codec", [JPEG, ZLIB])
def test_limit(picture: NDArray[np.uint8], codec: Codec) -> None:
    """What would be larger than the receiver allows is refused before anything is done."""
    frame = encoded(picture, codec)
    size = picture.nbytes
    with little_memory(SMALL), pytest.raises(MessageTooLarge, match=f"has {size} bytes, the limit is {size - 1}"):
        decompress(frame, "|u1", picture.shape, size, codec.name, size - 1)

    assert size == len(decompress(frame, "|u1", picture.shape, size, codec.name, size))


@pytest.mark.parametrize(
    ("height", "width", "channels"),
    [(301, 451, 3), (300, 450, 3), (451, 300, 3), (65500, 65500, 3), (0, 451, 3), (300, 451, 1)],
)
def test_jpeg_of_another_size(picture: NDArray[np.uint8], height: int, width: int, channels: int) -> None:
    """A JPEG that says another size than announced is refused before it is decoded."""
    frame = with_header(encoded(picture), height, width, channels)
    expected = "the frame is no baseline JPEG of 300 × 451 pixels with 3 channels"
    with little_memory(SMALL), pytest.raises(ProtocolError, match=expected):
        decoded(frame, picture)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("L", {"progressive": True})],
)
def test_jpeg_of_another_kind(picture: NDArray[np.uint8], mode: str, options: dict[str, Any]) -> None:
    """Neither other numbers of channels are decoded, nor progressive JPEGs."""
    with little_memory(SMALL + picture.nbytes), pytest.raises(ProtocolError, match="no baseline JPEG"):
        decoded(as_jpeg(picture, mode, quality=90, **options), picture)


def test_many_scans(picture: NDArray[np.uint8]) -> None:
    """A JPEG that keeps the decoder busy by scans without content is refused at once."""
    frame = as_jpeg(np.zeros_like(picture), quality=90, progressive=True)
    scan = frame[frame.rindex(b"\xff\xda") : -2]
    disguised = frame.replace(b"\xff\xc2", b"\xff\xc0", 1)
    for each in (frame, disguised):
        with pytest.raises(ProtocolError, match="no baseline JPEG|the JPEG is damaged"):
            decoded(each[:-2] + 1_000_000 * scan + b"\xff\xd9", picture)


def test_scan_of_one_channel(picture: NDArray[np.uint8]) -> None:
    """A baseline JPEG has one scan for all channels, else it could have many."""
    frame = encoded(picture)
    position = frame.index(b"\xff\xda") + 4
    with pytest.raises(ProtocolError, match="no baseline JPEG"):
        decoded(frame[:position] + b"\1" + frame[position + 1 :], picture)


@pytest.mark.parametrize(
    "inserted",
    [
        b"\xff\xff\0\2",
        b"\xff\xd0\0\2",
        b"\xff\xd8\0\2",
        b"\xff\x01\0\2",
        b"\xff\xfe\0\0",
        b"\xff\xfe\0\1",
        b"\xff\xfe\xff\xff",
        b"\0\0\0\0",
        b"\xff\xfe\0\2" * 1_000_000,
    ],
)
def test_odd_segments(picture: NDArray[np.uint8], inserted: bytes) -> None:
    """What others might read otherwise than we do, or what only keeps us busy, is refused."""
    frame = encoded(picture)
    with pytest.raises(ProtocolError, match="no baseline JPEG"):
        decoded(frame[:2] + inserted + frame[2:], picture)


def test_second_header(picture: NDArray[np.uint8]) -> None:
    """A JPEG has one header: of two, libjpeg takes none."""
    frame = encoded(picture)
    start = frame.index(b"\xff\xc0")
    header = frame[start : start + 19]
    with pytest.raises(ProtocolError, match="the JPEG is damaged"):
        decoded(frame[:start] + with_header(header, 8, 8, 3) + frame[start:], picture)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "expected"),
    [
        (None, None, 405900, "what is no array of 405900 bytes"),
        ("<u2", [300, 451, 3], 405900, "<u2 of shape (300, 451, 3) of 405900 bytes"),
        ("|u1", [300, 451, 3], 405899, "|u1 of shape (300, 451, 3) of 405899 bytes"),
        ("|u1", [300, 451, 4], 405900, "|u1 of shape (300, 451, 4) of 405900 bytes"),
        ("|u1", [-300, -451, 3], 405900, "|u1 of shape (-300, -451, 3) of 405900 bytes"),
        (["|u1", [3]], [300, 451], 405900, "['|u1', [3]] of shape (300, 451) of 405900 bytes"),
    ],
)
def test_jpeg_as_something_else(picture: NDArray[np.uint8], dtype: Any, shape: Any, size: int, expected: str) -> None:
    """The header of the message must be of a picture, too."""
    with pytest.raises(ProtocolError) as caught:
        decompress(encoded(picture), dtype, shape, size, "jpeg")

    assert f"a JPEG cannot hold {expected}" == str(caught.value)


@pytest.mark.parametrize("name", ["png", "", "JPEG", None, 1, ["jpeg"]])
def test_unknown_names(name: Any) -> None:
    """There are two codecs."""
    with pytest.raises(ValueError) as caught:
        check(Codec(name))

    assert f"a codec is 'jpeg' or 'zlib', not {name!r}" == str(caught.value)


@pytest.mark.parametrize("codec", ["jpeg", "zlib"])
@pytest.mark.parametrize("level", [0, 101, -1, 90.0, "90", None, True, float("nan")])
def test_wrong_qualities(codec: Any, level: Any) -> None:
    """A quality is a number from 1 to 100, also where it has no meaning."""
    with pytest.raises(ValueError) as caught:
        check(Codec(codec, level))

    assert f"a quality is an int from 1 to 100, not {level!r}" == str(caught.value)


@pytest.mark.parametrize("codec", [JPEG, ZLIB, Codec("jpeg", 1), Codec("jpeg", 100)])
def test_right_codecs(codec: Codec) -> None:
    """What is right passes, here and on the wire."""
    check(codec)

    assert codec == msgspec.json.decode(msgspec.json.encode(codec), type=Codec)


@pytest.mark.parametrize(
    "text", ['{"name":"png"}', '{"name":"jpeg","quality":0}', '{"name":"jpeg","quality":101}', "{}"]
)
def test_wrong_codecs_on_the_wire(text: str) -> None:
    """What a client may not ask for, a server does not decode."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Codec)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, picture: NDArray[np.uint8]) -> None:
    """Without simplejpeg the error says what to install; zlib works."""
    frame = encoded(picture)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    check(ZLIB)

    for action in (lambda: check(JPEG), lambda: encoded(picture), lambda: decoded(frame, picture)):
        with pytest.raises(MissingExtra) as caught:
            action()
        assert "simplejpeg is not installed: pip install rpc-kit[images]" == str(caught.value)
    assert np.array_equal(picture, decoded(encoded(picture, ZLIB), picture, "zlib"))


def test_nothing_is_imported_for_zlib() -> None:
    """Neither the module nor zlib imports NumPy or simplejpeg."""
    program = (
        "import sys; from rpc_kit.compression import Codec, check, compress, decompress; codec = Codec('zlib'); "
        "check(codec); frame = compress(memoryview(b'123'), None, None, codec); "
        "assert b'123' == decompress(frame, None, None, 3, 'zlib'); "
        "print({'numpy', 'simplejpeg'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert "set()\n" == ended.stdout


def test_encoder_makes_what_the_decoder_accepts() -> None:
    """simplejpeg and we agree on headers: random sizes and contents at all qualities."""
    random = np.random.default_rng(1)
    for level in range(1, 101, 9):
        shape = (*random.integers(1, 70, 2).tolist(), int(random.choice([1, 3])))
        original = random.integers(0, 256, shape, np.uint8)
        frame = encoded(original, Codec("jpeg", level))
        expected = simplejpeg.decode_jpeg(frame, "RGB" if shape[2] == 3 else "Gray")

        assert np.array_equal(expected, decoded(frame, original))
