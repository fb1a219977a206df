"""JPEG: its many kinds, what surrounds the picture in the file, and bombs of scans and segments."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import decode

RNG = np.random.default_rng(11)
NOISE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(40) * 3, np.arange(56)).astype(np.uint8)[:, :, None] + np.array([0, 30, 60], np.uint8)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}, {"quality": 5}])
def test_a_jpeg_decodes_exactly_as_pillow_decodes_it(options: dict[str, object]) -> None:
    for picture in (Image.fromarray(SMOOTH), Image.fromarray(SMOOTH).convert("L")):
        data = encode(picture, "JPEG", **options)
        np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_cmyk_jpeg_with_adobes_inverted_inks_has_the_right_colours() -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (32, 32), level) for level in (0, 255, 255, 0)])
    pixels = decode(encode(cmyk, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


def test_a_jpeg_stored_as_rgb_is_not_taken_for_ycbcr() -> None:
    red = Image.new("RGB", (32, 32), (250, 5, 5))
    data = encode(red, "JPEG", quality=95, keep_rgb=True)
    assert np.abs(decode(data).astype(int) - (250, 5, 5)).max() <= 2


def test_what_follows_the_end_of_a_jpeg_is_ignored() -> None:
    plain = encode(Image.fromarray(NOISE), "JPEG")
    stereo = encode(Image.fromarray(NOISE), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    np.testing.assert_array_equal(decode(plain + RNG.bytes(5_000)), decode(plain))
    np.testing.assert_array_equal(decode(stereo), decode(plain))


def test_segments_without_pixels_are_never_parsed() -> None:
    plain = encode(Image.fromarray(NOISE), "JPEG")
    junk = b"".join(
        b"\xff" + bytes([marker]) + (2 + len(body)).to_bytes(2, "big") + body
        for marker, body in (
            (0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + RNG.bytes(900)),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
            (0xE2, b"ICC_PROFILE\0\1\1" + RNG.bytes(500)),
            (0xE2, b"MPF\0" + RNG.bytes(60)),
            (0xED, b"Photoshop 3.0\0" + b"8BIM" + RNG.bytes(40)),
            (0xFE, b"patient: Jane Doe"),
        )
    )
    np.testing.assert_array_equal(decode(plain[:2] + junk + plain[2:]), decode(plain))


@pytest.mark.parametrize(
    ("marker", "bits", "words"),
    [(0xC3, 8, "lossless or 8-bit JPEG"), (0xC1, 12, "lossless or 12-bit JPEG")],
)
def test_a_lossless_or_12_bit_jpeg_is_refused_as_such(marker: int, bits: int, words: str) -> None:
    data = bytearray(encode(Image.fromarray(NOISE[:, :, 0]), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    error = refusal(bytes(data))
    assert error.reason is ImageReason.UNSUPPORTED
    assert words in str(error)


def test_a_jpeg_that_scans_the_same_picture_a_thousand_times_is_refused_quickly() -> None:
    data = encode(Image.fromarray(NOISE[:, :, 0]), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    end = data.index(b"\xff\xda", scan + 2)
    bomb = data[:scan] + data[scan:end] * 1000 + data[scan:]
    started = time.perf_counter()
    assert refusal(bomb).reason is ImageReason.CORRUPT
    assert time.perf_counter() - started < 5


def test_a_jpeg_of_endless_empty_segments_is_refused_quickly() -> None:
    data = encode(Image.fromarray(NOISE), "JPEG")
    started = time.perf_counter()
    assert refusal(data[:2] + b"\xff\xfe\0\2" * 3_000_000 + data[2:]).reason is ImageReason.CORRUPT
    assert time.perf_counter() - started < 5
