"""Scaled JPEG decoding: how little it changes, how much it saves, and that it never cuts or shifts the picture."""

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketdx_runtime._formats import jpeg
from pocketdx_runtime._formats.base import Decoded, Request
from pocketdx_runtime.image import Limits, decode, load, resize


def encode(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def full(data: bytes, size: int) -> np.ndarray:
    """What scaled decoding is measured against: Pillow's full decode, upright, and its antialiased resize."""
    picture = Image.open(io.BytesIO(data))
    turned = picture.convert("RGB")
    if picture.getexif().get(0x0112) == 6:
        turned = turned.transpose(Image.Transpose.ROTATE_270)
    return np.asarray(turned.resize((size, size), Image.Resampling.BILINEAR)).astype(int)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Two real photographs, of a temple and of a flower, 640 x 427."""
    datasets = pytest.importorskip("sklearn.datasets")
    return [Image.fromarray(datasets.load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


@pytest.fixture(scope="module")
def phone_photos(photographs: list[Image.Image]) -> list[bytes]:
    """The same at 12 megapixels."""
    big = [photo.resize((4032, 3024), Image.Resampling.LANCZOS) for photo in photographs]
    return [encode(photo, quality=85) for photo in big]


def test_a_12_megapixel_photo_differs_by_at_most_a_grey_level(phone_photos: list[bytes]) -> None:
    for data in phone_photos:
        difference = np.abs(load(data, 224) - full(data, 224))
        assert difference.mean() < 0.15
        assert difference.max() <= 1


VARIANTS: dict[str, Callable[[Image.Image], bytes]] = {
    "grey": lambda photo: encode(photo.convert("L"), quality=85),
    "CMYK": lambda photo: encode(photo.convert("CMYK"), quality=85),
    "progressive": lambda photo: encode(photo, quality=85, progressive=True),
    "full chroma": lambda photo: encode(photo, quality=85, subsampling=0),
    "half chroma": lambda photo: encode(photo, quality=85, subsampling=1),
    "rough": lambda photo: encode(photo, quality=40),
    "turned": lambda photo: encode(
        photo, quality=85, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    ),
}


@pytest.mark.parametrize("size", [(1600, 1200), (1203, 1159), (2311, 2417)], ids=str)
@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kind_of_jpeg_is_loaded_almost_as_if_decoded_in_full(
    photographs: list[Image.Image], kind: str, size: tuple[int, int]
) -> None:
    """Down to the smallest margin, where the difference is largest; sides that no scale divides included."""
    for photo in photographs:
        data = VARIANTS[kind](photo.resize(size, Image.Resampling.LANCZOS))
        difference = np.abs(load(data, 96) - full(data, 96))
        # Of chroma that was halved across alone, libjpeg makes something coarser than the means of blocks.
        halved = kind == "half chroma"
        assert difference.mean() < (0.4 if halved else 0.3)
        assert (difference > 1).mean() < (0.05 if halved else 0.02)
        assert difference.max() <= (12 if halved else 7)


@pytest.mark.parametrize("size", [(1203, 1159), (1205, 1157), (1201, 1161)], ids=str)
def test_sides_that_the_scale_does_not_divide_shift_nothing(size: tuple[int, int]) -> None:
    """Light along the far edges, where a picture stretched by its last, partly empty blocks is off the most."""
    picture = np.zeros(size[::-1], np.uint8)
    picture[:, -13:] = 255
    picture[-13:, :] = 255
    data = encode(Image.fromarray(picture), quality=95)
    reference = full(data, 96)
    assert np.abs(load(data, 96) - reference).max() <= 5
    stretched = Image.open(io.BytesIO(data)).reduce(4).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(stretched)[:, :, None] - reference).max() > 16, "a shift has to show here"


def scaled(data: bytes, size: int) -> Decoded:
    """What `load` squashes."""
    return jpeg.decode(data, Request(Limits(), size))


def test_a_12_megapixel_photo_is_decoded_at_a_quarter_but_only_to_be_squashed(phone_photos: list[bytes]) -> None:
    decoded = scaled(phone_photos[0], 224)
    assert (decoded.picture.size, decoded.blocks) == ((1008, 756), (4, 4032, 3024))
    assert decode(phone_photos[0]).shape == (3024, 4032, 3)


def test_a_picture_that_is_barely_large_enough_is_decoded_in_full(photographs: list[Image.Image]) -> None:
    data = encode(photographs[0].resize((1000, 575)))
    np.testing.assert_array_equal(load(data, 96), resize(decode(data), 96))
    assert scaled(encode(photographs[0].resize((1000, 576))), 96).blocks == (2, 1000, 576)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), size=st.integers(1, 120))
def test_a_scaled_picture_keeps_three_times_what_is_needed_and_what_is_flat_stays_so(
    width: int, height: int, size: int
) -> None:
    data = encode(Image.new("L", (width, height), 77))
    decoded = scaled(data, size)
    side = decoded.blocks.side if decoded.blocks else 1
    assert decoded.picture.size == (-(-width // side), -(-height // side))
    assert side == 1 or min(width, height) >= 3 * size * side
    assert (load(data, size) == 77).all()


def test_a_12_megapixel_photo_is_loaded_several_times_faster_than_in_full(phone_photos: list[bytes]) -> None:
    data = phone_photos[0]

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    pairs = [(seconds(lambda: full(data, 224)), seconds(lambda: load(data, 224))) for _ in range(7)]
    slow, fast = (min(times) for times in zip(*pairs, strict=True))
    assert slow / fast > 3, f"{slow * 1e3:.0f} ms in full, {fast * 1e3:.0f} ms scaled"
