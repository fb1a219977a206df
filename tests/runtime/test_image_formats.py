"""Each kind of pixel and container, and the bombs and damage they come with."""

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import Limits, decode, load

RNG = np.random.default_rng(11)
NOISE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(40) * 3, np.arange(56)).astype(np.uint8)[:, :, None] + np.array([0, 30, 60], np.uint8)


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


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND")


def grey_16_png(values: np.ndarray, *extra: bytes) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 0, rows, *extra)


# --- what is not a picture -------------------------------------------------------------------------------------


def test_no_bytes_at_all_is_empty() -> None:
    assert refusal(b"").reason is ImageReason.EMPTY


@pytest.mark.parametrize("data", [b"x", b"hello, this is text\n" * 50, bytes(1000), b"BM is how this text begins" * 9])
def test_other_files_are_not_pictures_and_the_message_says_what_is(data: bytes) -> None:
    error = refusal(data)
    assert error.reason is ImageReason.NOT_AN_IMAGE
    assert "JPEG, PNG" in str(error)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("GIF", b"GIF89a"),
        ("PDF", b"%PDF-1.7"),
        ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0"),
        ("PSD", b"8BPS\0\1"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("AVIF", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
        ("video", b"\0\0\0\x18ftypmp42\0\0\0\0isommp42"),
        ("BigTIFF", b"II+\0\x08\0\0\0"),
        ("SVG or other XML", b'\n<?xml version="1.0"?><svg/>'),
        ("compressed archive", b"PK\x03\x04"),
    ],
)
def test_a_known_format_that_is_not_read_is_called_by_its_name(name: str, head: bytes) -> None:
    error = refusal(head + bytes(300))
    assert error.reason is ImageReason.UNSUPPORTED
    assert str(error) == f"x.bin: {name} is not read; save it as PNG or JPEG"


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA", "ICO", "JPEG2000", "EPS", "PDF"])
def test_formats_that_pillow_could_open_stay_closed(kind: str) -> None:
    assert refusal(encode(Image.fromarray(NOISE), kind)).reason in (
        ImageReason.UNSUPPORTED,
        ImageReason.NOT_AN_IMAGE,
    )


# --- damage ----------------------------------------------------------------------------------------------------

WHOLE = {
    "JPEG": encode(Image.fromarray(NOISE), "JPEG"),
    "progressive JPEG": encode(Image.fromarray(NOISE), "JPEG", progressive=True),
    "PNG": encode(Image.fromarray(NOISE), "PNG"),
    "lossy WebP": encode(Image.fromarray(NOISE), "WEBP"),
    "lossless WebP": encode(Image.fromarray(NOISE), "WEBP", lossless=True),
    "BMP": encode(Image.fromarray(NOISE), "BMP"),
    "palette BMP": encode(Image.fromarray(NOISE).quantize(16), "BMP"),
    "TIFF": encode(Image.fromarray(NOISE), "TIFF"),
    "LZW TIFF": encode(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_picture_cut_anywhere_is_refused(kind: str) -> None:
    data = WHOLE[kind]
    assert decode(data).shape == (40, 56, 3)
    reasons = {refusal(data[:length]).reason for length in range(32, len(data) - 1, max(1, len(data) // 60))}
    assert reasons == {ImageReason.TRUNCATED}


def test_a_truncated_jpeg_is_refused_with_its_name_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "chest.jpg"
    path.write_bytes(WHOLE["JPEG"][:-100])
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert str(caught.value) == f"{path}: truncated JPEG; copy or export it again from its source"
    assert caught.value.reason is ImageReason.TRUNCATED


def test_a_flipped_bit_in_a_png_is_caught_by_its_checksum() -> None:
    data = bytearray(WHOLE["PNG"])
    for at in range(45, len(data) - 20, 211):
        damaged = data.copy()
        damaged[at] ^= 1
        assert refusal(bytes(damaged)).reason in (ImageReason.CORRUPT, ImageReason.TRUNCATED)


# --- sizes that headers claim ----------------------------------------------------------------------------------


def _jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.fromarray(NOISE), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _webp_of(kind: bytes, width: int, height: int) -> bytes:
    body = {
        b"VP8X": b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + (width - 1 & 0x3FFF | (height - 1 & 0x3FFF) << 14).to_bytes(4, "little"),
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF),
    }[kind].ljust(40, b"\0")
    return b"RIFF" + (12 + len(body)).to_bytes(4, "little") + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def _bmp_of(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(64)


HUGE = {
    "JPEG": _jpeg_of(60_000, 60_000),
    "PNG": png(100_000, 100_000, 8, 2, b""),
    "PNG of 2**31": png(2**31 - 1, 2**31 - 1, 16, 6, b""),
    "WebP VP8X": _webp_of(b"VP8X", 2**24, 2**24),
    "WebP VP8L": _webp_of(b"VP8L", 16_384, 16_384),
    "WebP VP8": _webp_of(b"VP8 ", 16_383, 16_383),
    "BMP": _bmp_of(2**31 - 1, 2**31 - 1),
    "BMP upside down": _bmp_of(40_000, -40_000),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_claimed_size_is_refused_before_any_pixel(kind: str) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    try:
        error = refusal(HUGE[kind])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert error.reason is ImageReason.TOO_LARGE
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "data",
    [_jpeg_of(0, 10), _jpeg_of(10, 0), png(0, 10, 8, 2, b""), _bmp_of(0, 5), _bmp_of(5, 0)],
    ids=["JPEG width", "JPEG height", "PNG", "BMP width", "BMP height"],
)
def test_a_size_of_zero_is_refused(data: bytes) -> None:
    assert refusal(data).reason is ImageReason.ZERO_SIZE


def test_a_compressed_text_bomb_in_a_png_is_never_inflated() -> None:
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    extra = [
        chunk(b"iCCP", b"p\0\0" + bomb),
        chunk(b"zTXt", b"Comment\0\0" + bomb),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
    ]
    data = png(1, 1, 8, 2, b"\0\1\2\3", *extra)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        np.testing.assert_array_equal(decode(data), [[[1, 2, 3]]])
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 5


def test_png_pixels_that_inflate_beyond_the_picture_are_not_inflated() -> None:
    data = png(2, 2, 8, 0, b"\0\x09\x09" * 2 + bytes(300 * 2**20))
    started = time.perf_counter()
    assert (decode(data) == 9).all()
    assert time.perf_counter() - started < 5


def test_a_png_of_endless_empty_chunks_is_refused_quickly() -> None:
    data = png(1, 1, 8, 0, b"\0\0", chunk(b"tEXt") * 2_000_000)
    started = time.perf_counter()
    assert refusal(data).reason is ImageReason.CORRUPT
    assert time.perf_counter() - started < 5


# --- pixels of many kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_png_of_any_mode_shows_its_colours(mode: str) -> None:
    picture = Image.fromarray(NOISE).convert(mode)
    np.testing.assert_array_equal(decode(encode(picture, "PNG")), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_spans_black_to_white(bits: int) -> None:
    top = (1 << bits) - 1
    pixels = decode(png(2, 1, bits, 0, bytes([0, top << 8 - 2 * bits])))
    assert pixels[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_black_and_hidden_colours_stay_hidden(kind: str) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :, :3] = (200, 100, 50)
    rgba[:, :4, 3] = 255
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode(encode(Image.fromarray(rgba), kind, **options))
    assert (pixels[:, :4] == (200, 100, 50)).all()
    assert not pixels[:, 4:].any()


def test_half_transparent_pixels_are_halfway_to_black() -> None:
    rgba = Image.new("RGBA", (2, 2), (200, 100, 50, 128))
    assert np.abs(decode(encode(rgba, "PNG"))[0, 0].astype(int) - (100, 50, 25)).max() <= 1


def test_a_transparent_palette_entry_becomes_black() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([250, 10, 10, 10, 250, 10])
    data = encode(palette, "PNG", transparency=0)
    assert decode(data)[0].tolist() == [[0, 0, 0], [10, 250, 10]]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_key_becomes_black(mode: str) -> None:
    picture = Image.new(mode, (2, 1), 90 if mode == "L" else (90, 90, 90))
    picture.putpixel((1, 0), 91 if mode == "L" else (91, 91, 91))
    data = encode(picture, "PNG", transparency=90 if mode == "L" else (90, 90, 90))
    assert decode(data)[0].tolist() == [[0, 0, 0], [91, 91, 91]]


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_32_bit_bmp_whose_fourth_byte_is_unused_is_opaque(alpha: int) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:] = (200, 100, 50, alpha)
    assert (decode(encode(Image.fromarray(rgba), "BMP")) == (200, 100, 50)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_bmp_of_any_mode_shows_its_colours(mode: str) -> None:
    picture = Image.fromarray(NOISE).convert(mode)
    np.testing.assert_array_equal(decode(encode(picture, "BMP")), np.asarray(picture.convert("RGB")))


def test_a_bmp_stored_from_the_top_stands_upright() -> None:
    data = bytearray(encode(Image.fromarray(NOISE), "BMP"))
    data[22:26] = struct.pack("<i", -40)
    np.testing.assert_array_equal(decode(bytes(data)), NOISE[::-1])


def test_a_run_length_bmp_is_refused() -> None:
    data = bytearray(encode(Image.fromarray(NOISE).convert("P"), "BMP"))
    data[30:34] = struct.pack("<i", 1)
    assert refusal(bytes(data)).reason is ImageReason.UNSUPPORTED


def test_webp_decodes_as_pillow_decodes_it() -> None:
    for options in ({}, {"lossless": True}, {"quality": 20}):
        data = encode(Image.fromarray(SMOOTH), "WEBP", **options)
        np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


# --- more than 8 bits ------------------------------------------------------------------------------------------

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_maps_its_full_range_to_8_bits_the_same_from_every_source(order: str) -> None:
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for source in (grey_16_png(RAMP), RAMP.astype(f"{order}u2"), Image.fromarray(RAMP.astype(np.int32))):
        np.testing.assert_array_equal(decode(source)[:, :, 0], expected)


def test_8_bit_values_widened_by_shifting_come_back_exactly() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) << 8
    np.testing.assert_array_equal(decode(values)[:, :, 0], values >> 8)


def test_16_bit_grey_is_not_clipped_when_it_is_loaded_at_a_size() -> None:
    assert load(RAMP, 4)[:, :, 0].tolist()[0][0] < 50
    assert 200 < load(RAMP, 4).max() < 256


@pytest.mark.parametrize("top", [0, 255, 1023, 4095])
def test_12_bit_data_left_in_the_low_bits_is_refused_instead_of_shown_almost_black(top: int) -> None:
    values = np.linspace(0, top, 256).astype(np.uint16).reshape(16, 16)
    for source in (values, grey_16_png(values)):
        with pytest.raises(ImageError) as caught:
            decode(source)
        assert caught.value.reason is ImageReason.AMBIGUOUS
        assert f"no value above {top} of 65535" in str(caught.value)
        assert "multiply by 16" in str(caught.value)
    if top == 4095:
        assert decode(values * 16).max() == 255


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    rows = b"\0" + struct.pack(">HHH", 0xFFFF, 0x80FF, 0x0100)
    assert decode(png(1, 1, 16, 2, rows))[0, 0].tolist() == [255, 128, 1]


def test_a_transparent_16_bit_grey_becomes_black() -> None:
    values = np.array([[60_000, 60_001]], np.uint16)
    data = grey_16_png(values, chunk(b"tRNS", struct.pack(">H", 60_000)))
    assert decode(data)[0, :, 0].tolist() == [0, 234]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_are_refused_because_nobody_said_what_white_is(mode: str) -> None:
    picture = Image.new(mode, (4, 4), 70_000)
    for source in (picture, encode(picture, "TIFF")):
        with pytest.raises(ImageError) as caught:
            decode(source)
        assert caught.value.reason is ImageReason.AMBIGUOUS


# --- several pictures in one file ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "words"), [("PNG", "animated"), ("WEBP", "animated"), ("TIFF", "several pages")])
def test_a_file_of_several_pictures_is_refused_because_it_does_not_say_which_is_meant(kind: str, words: str) -> None:
    others = [Image.fromarray(NOISE[::-1]), Image.fromarray(NOISE[:, ::-1])]
    error = refusal(encode(Image.fromarray(NOISE), kind, save_all=True, append_images=others))
    assert error.reason is ImageReason.MULTI_FRAME
    assert words in str(error)
