"""TIFF: its many kinds of pixel, and directories that lie."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import Limits, decode

RNG = np.random.default_rng(11)
NOISE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(40) * 3, np.arange(56)).astype(np.uint8)[:, :, None] + np.array([0, 30, 60], np.uint8)
RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data: bytes, limits: Limits | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, limits=limits or Limits(), name="x.bin")
    assert str(caught.value).startswith("x.bin: ")
    assert "\n" not in str(caught.value)
    return caught.value


def tiff(tags: dict[int, tuple[int, list[int]]], data: bytes, order: str = "<", following: int = 0) -> bytes:
    """A TIFF with the pixels at offset 8 and one directory after them; tags as {tag: (type, values)}."""
    sizes = {3: "H", 4: "L"}
    directory, tail = b"", b""
    at = 8 + len(data) + len(data) % 2
    end = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
        if len(packed) > 4:
            packed, tail = struct.pack(f"{order}L", end + len(tail)), tail + packed
        directory += struct.pack(f"{order}HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}L", at) + data + b"\0" * (len(data) % 2)
    return head + struct.pack(f"{order}H", len(tags)) + directory + struct.pack(f"{order}L", following) + tail


def grey_tiff(width: int, height: int, bits: int, data: bytes, order: str = "<", **changes: list[int]) -> bytes:
    tags = {256: [width], 257: [height], 258: [bits], 259: [1], 262: [1], 273: [8], 277: [1], 278: [height]}
    tags |= {279: [len(data)]} | {int(name[1:]): values for name, values in changes.items()}
    return tiff({tag: (4 if max(v) > 65535 else 3, v) for tag, v in tags.items() if v}, data, order)


def tiled_tiff(width: int, height: int, offsets: list[int], length: int, data: bytes, tile: int = 16) -> bytes:
    lengths = [length] * len(offsets)
    strips: dict[str, list[int]] = {"_273": [], "_278": [], "_279": []}
    return grey_tiff(width, height, 8, data, **strips, _322=[tile], _323=[tile], _324=offsets, _325=lengths)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_a_tiff_of_any_mode_and_compression_shows_its_colours(mode: str, compression: str | None) -> None:
    picture = Image.fromarray(NOISE).convert(mode)
    data = encode(picture, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data), np.asarray(picture.convert("RGB")))


def test_a_jpeg_compressed_tiff_shows_its_colours() -> None:
    data = encode(Image.fromarray(SMOOTH), "TIFF", compression="jpeg", quality=95)
    assert np.abs(decode(data).astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_cmyk_tiff_is_not_inverted(compression: str | None) -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (4, 4), level) for level in (0, 255, 255, 0)])
    assert (decode(encode(cmyk, "TIFF", compression=compression)) == (255, 0, 0)).all()


def test_a_tiff_with_its_planes_apart_shows_its_colours() -> None:
    rgb = NOISE[:6, :8]
    data = rgb.transpose(2, 0, 1).tobytes()
    tags = {256: [8], 257: [6], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3], 278: [6], 284: [2]}
    tags |= {273: [8, 8 + 48, 8 + 96], 279: [48, 48, 48]}
    np.testing.assert_array_equal(decode(tiff({t: (3, v) for t, v in tags.items()}, data)), rgb)


def test_a_tiled_tiff_shows_its_picture() -> None:
    grey = RNG.integers(0, 256, (20, 40), dtype=np.uint8)
    padded = np.pad(grey, ((0, 12), (0, 8)))
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    offsets = [8 + 256 * i for i in range(6)]
    data = tiled_tiff(40, 20, offsets, 256, b"".join(tiles))
    np.testing.assert_array_equal(decode(data)[:, :, 0], grey)


@pytest.mark.parametrize(
    "data",
    [
        grey_tiff(2**31, 2**31, 8, bytes(64)),
        tiled_tiff(16, 16, [8], 64, bytes(64), tile=2**30),
    ],
    ids=["picture", "tile"],
)
def test_a_huge_claimed_size_is_refused_before_any_pixel(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert refusal(data).reason is ImageReason.TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_size_of_zero_is_refused() -> None:
    assert refusal(grey_tiff(0, 4, 8, b"")).reason is ImageReason.ZERO_SIZE


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_maps_its_full_range_to_8_bits(order: str) -> None:
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(
        decode(grey_tiff(16, 16, 16, RAMP.astype(f"{order}u2").tobytes(), order))[:, :, 0], expected
    )
    compressed = encode(Image.fromarray(RAMP.astype(np.int32)).convert("I;16"), "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decode(compressed)[:, :, 0], expected)


def test_12_bit_data_left_in_the_low_bits_is_refused_instead_of_shown_almost_black() -> None:
    values = np.linspace(0, 4095, 256).astype(np.uint16)
    error = refusal(grey_tiff(16, 16, 16, values.tobytes()))
    assert error.reason is ImageReason.AMBIGUOUS
    assert "no value above 4095 of 65535" in str(error)


def test_a_tiff_that_declares_12_bits_uses_their_full_range() -> None:
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # 0x000, 0xFFF, 0x800, 0x010
    data = grey_tiff(4, 1, 12, packed)
    assert decode(data)[0, :, 0].tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_16_bit_tiff_whose_white_is_zero_is_not_shown_as_a_negative(order: str) -> None:
    data = grey_tiff(16, 16, 16, RAMP.astype(f"{order}u2").tobytes(), order, _262=[0])
    np.testing.assert_array_equal(decode(data)[:, :, 0], 255 - np.arange(256).reshape(16, 16))


def test_an_8_bit_tiff_whose_white_is_zero_is_not_shown_as_a_negative() -> None:
    assert decode(grey_tiff(2, 1, 8, b"\0\xff", _262=[0]))[0, :, 0].tolist() == [255, 0]


def test_signed_tiff_samples_are_refused() -> None:
    assert refusal(grey_tiff(2, 2, 16, bytes(8), _339=[2])).reason is ImageReason.AMBIGUOUS


def test_a_thumbnail_beside_the_picture_in_a_tiff_is_no_second_picture() -> None:
    page = grey_tiff(2, 2, 8, b"\1\2\3\4")
    thumbnail = grey_tiff(2, 2, 8, b"\1\2\3\4", _254=[1])
    at = int.from_bytes(page[4:8], "little")
    following = at + 2 + 12 * int.from_bytes(page[at : at + 2], "little")
    joined = page[:following] + len(page).to_bytes(4, "little") + page[following + 4 :] + thumbnail[at:]
    np.testing.assert_array_equal(decode(joined)[:, :, 0], [[1, 2], [3, 4]])


def test_a_tiff_whose_directories_go_in_a_circle_ends() -> None:
    page = grey_tiff(2, 2, 8, b"\1\2\3\4")
    at = int.from_bytes(page[4:8], "little")
    following = at + 2 + 12 * int.from_bytes(page[at : at + 2], "little")
    circle = page[:following] + at.to_bytes(4, "little") + page[following + 4 :]
    assert refusal(circle).reason is ImageReason.MULTI_FRAME


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_273": [5_000]}, ImageReason.TRUNCATED),
        ({"_279": [5_000]}, ImageReason.TRUNCATED),
        ({"_278": [1]}, ImageReason.CORRUPT),
        ({"_273": [8, 8, 8]}, ImageReason.CORRUPT),
        ({"_256": [2, 2]}, ImageReason.CORRUPT),
        ({"_259": [4]}, ImageReason.UNSUPPORTED),
        ({"_262": [8]}, ImageReason.UNSUPPORTED),
        ({"_277": [60_000]}, ImageReason.UNSUPPORTED),
        ({"_284": [9]}, ImageReason.UNSUPPORTED),
        ({"_258": [64]}, ImageReason.AMBIGUOUS),
        ({"_257": [3], "_278": [3]}, ImageReason.TRUNCATED),
    ],
    ids=lambda value: str(value),
)
def test_a_tiff_that_contradicts_itself_is_refused(changes: dict[str, list[int]], reason: ImageReason) -> None:
    assert decode(grey_tiff(2, 2, 8, b"\1\2\3\4")).shape == (2, 2, 3)
    assert refusal(grey_tiff(2, 2, 8, b"\1\2\3\4", **changes)).reason is reason


@pytest.mark.filterwarnings("error")
def test_private_and_broken_tags_of_a_tiff_are_never_parsed() -> None:
    data = bytearray(grey_tiff(2, 2, 8, b"\1\2\3\4", _700=[1], _34665=[9], _34853=[9], _65000=[1]))
    at = data.index(struct.pack("<HH", 700, 3))
    data[at + 4 : at + 12] = b"\xff" * 8  # XMP of four thousand million bytes beyond the end
    np.testing.assert_array_equal(decode(bytes(data))[:, :, 0], [[1, 2], [3, 4]])
