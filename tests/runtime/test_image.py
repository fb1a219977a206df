"""What may be decoded, what comes out, and how inputs are named, limited and refused."""

import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import Limits, decode, load, resize

RNG = np.random.default_rng(7)
RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 180, 30), (30, 30, 200), (240, 240, 240)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(width: int = 48, height: int = 32) -> Image.Image:
    """Four flat quarters, each of its own colour: any turn or swap shows."""
    picture = Image.new("RGB", (width, height))
    for box, colour in (
        ((0, 0, width // 2, height // 2), RED),
        ((width // 2, 0, width, height // 2), GREEN),
        ((0, height // 2, width // 2, height), BLUE),
        ((width // 2, height // 2, width, height), WHITE),
    ):
        picture.paste(colour, box)
    return picture


def refusal(source: object, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


# --- sources ---------------------------------------------------------------------------------------------------


def test_a_path_a_string_bytes_and_a_pil_image_give_the_same_pixels(tmp_path: Path) -> None:
    expected = np.asarray(corners())
    data = encode(corners(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data), corners(), Image.open(path), expected):
        pixels = decode(source)  # type: ignore[arg-type]
        assert pixels.dtype == np.uint8
        assert pixels.shape == (32, 48, 3)
        np.testing.assert_array_equal(pixels, expected)


def test_the_result_is_contiguous_writable_and_not_shared_with_the_input() -> None:
    source = np.zeros((4, 5, 3), np.uint8)
    for pixels in (decode(source), decode(Image.fromarray(source)), load(source, 5), resize(source, 5)):
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        pixels[:] = 255
    assert not source.any()


def test_the_format_is_told_by_the_bytes_not_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(corners(), "PNG"))
    np.testing.assert_array_equal(decode(path), np.asarray(corners()))


def test_a_grey_array_becomes_three_equal_channels() -> None:
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(grey), expected)
    np.testing.assert_array_equal(decode(grey[:, :, None]), expected)


def test_a_bool_array_becomes_black_and_white() -> None:
    np.testing.assert_array_equal(decode(np.array([[True, False]])), [[[255] * 3, [0] * 3]])


def test_a_strided_array_is_read_as_it_looks() -> None:
    rgb = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(rgb[::-1, ::2, ::-1]), rgb[::-1, ::2, ::-1])


def test_an_rgba_array_is_composited_on_black() -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    np.testing.assert_array_equal(decode(rgba), [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_float_array_is_refused_because_its_range_is_a_guess(dtype: type) -> None:
    error = refusal(np.zeros((4, 4, 3), dtype))
    assert error.reason is ImageReason.AMBIGUOUS
    assert "convert the picture to 8-bit" in str(error)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4), np.int16),
        np.zeros((4, 4), object),
        np.array("text"),
    ],
    ids=lambda values: f"{values.dtype}-{'x'.join(map(str, values.shape))}",
)
def test_an_array_of_any_other_shape_or_type_is_refused_with_what_to_pass(values: np.ndarray) -> None:
    error = refusal(values)
    assert error.reason is ImageReason.UNSUPPORTED
    assert error.source == "<array>"
    assert "pass" in str(error)


@pytest.mark.parametrize("source", [None, 7, ["a.jpg"], object()])
def test_something_that_is_no_picture_at_all_is_refused(source: object) -> None:
    assert refusal(source).reason is ImageReason.UNSUPPORTED


def test_a_pil_image_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    path.write_bytes(encode(corners(800, 600), "JPEG", exif=exif))
    picture = Image.open(path)
    assert decode(picture).shape == (800, 600, 3)
    assert picture.size == (800, 600)
    assert picture.getexif()[0x0112] == 6


def test_the_current_frame_of_a_pil_image_is_taken() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    picture = Image.open(io.BytesIO(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])))
    picture.seek(1)
    assert (decode(picture) == 200).all()


def test_a_damaged_pil_image_is_refused_when_it_fails_to_load(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    data = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")
    path.write_bytes(data[: len(data) // 2])
    error = refusal(Image.open(path))
    assert error.reason is ImageReason.CORRUPT
    assert error.source == str(path)


# --- pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    moves: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    data = encode(corners(64, 48), kind, exif=exif, **options)
    expected = moves[orientation](np.asarray(corners(64, 48)))
    pixels = decode(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 3
    square = load(data, 32)
    assert np.abs(square.astype(int) - resize(np.ascontiguousarray(expected), 32)).max() <= 4


@pytest.mark.parametrize("block", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"junk" * 9])
def test_malformed_exif_is_ignored(block: bytes) -> None:
    data = encode(corners(), "JPEG", exif=b"Exif\0\0" + block)
    assert decode(data).shape == (32, 48, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert decode(encode(corners(), "PNG", exif=exif)).shape == (32, 48, 3)


@pytest.mark.parametrize("size", [1, 7, 32, 100])
def test_resize_squashes_to_a_square_as_pillow_does(size: int) -> None:
    rgb = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize(rgb, size), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK", "1"])
def test_load_is_decode_then_resize_to_the_bit(mode: str) -> None:
    source = Image.fromarray(RNG.integers(0, 256, (90, 131, 3), dtype=np.uint8)).convert(mode)
    np.testing.assert_array_equal(load(source, 24), resize(decode(source), 24))


@pytest.mark.parametrize("size", [0, -1])
def test_a_side_that_is_not_positive_is_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        load(corners(), size)


# --- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["max_bytes", "max_pixels", "max_side"])
@pytest.mark.parametrize("value", [0, -5, 1.5, True, None])
def test_limits_must_be_positive_whole_numbers(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})  # type: ignore[arg-type]


def test_limits_are_inclusive() -> None:
    data = encode(corners(), "PNG")
    exact = Limits(max_bytes=len(data), max_pixels=48 * 32, max_side=48)
    assert decode(data, limits=exact).shape == (32, 48, 3)
    for tighter in (
        Limits(max_bytes=len(data) - 1),
        Limits(max_pixels=48 * 32 - 1),
        Limits(max_side=47),
    ):
        assert refusal(data, limits=tighter).reason is ImageReason.TOO_LARGE


def test_limits_hold_for_pil_images_and_arrays_too() -> None:
    for source in (corners(), np.asarray(corners())):
        assert refusal(source, limits=Limits(max_side=40)).reason is ImageReason.TOO_LARGE


def test_a_picture_without_pixels_is_refused() -> None:
    for source in (Image.new("RGB", (0, 5)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0), np.uint8)):
        assert refusal(source).reason is ImageReason.ZERO_SIZE


# --- the process around ----------------------------------------------------------------------------------------


def test_importing_the_decoder_loads_no_format_before_it_is_needed() -> None:
    code = (
        "import sys, pocketdx_runtime.image\n"
        "heavy = {'pydicom', 'pi_heif', 'onnxruntime', 'torch', 'PIL.ImageFile', 'PIL.ImageOps'}\n"
        "print(sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.endswith('ImagePlugin')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_decoding_imports_only_the_reader_of_its_format(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(corners(), "JPEG"))
    code = (
        "import sys\nfrom pocketdx_runtime.image import decode\n"
        f"decode({str(path)!r})\n"
        "print([m for m in sys.modules if m.endswith('ImagePlugin')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['PIL.JpegImagePlugin']"


def test_pillows_global_settings_neither_matter_nor_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    data = {kind: encode(corners(), kind) for kind in ("JPEG", "PNG", "BMP")}
    for each in data.values():
        assert decode(each).shape == (32, 48, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for each in data.values():
        assert decode(each).shape == (32, 48, 3)
        refusal(each[:-20])
    assert Image.MAX_IMAGE_PIXELS is None
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.filterwarnings("error")
def test_a_picture_that_pillow_would_warn_about_gives_no_warning() -> None:
    data = encode(Image.new("1", (9_700, 9_700)), "PNG")  # 94 megapixels; Pillow warns from 89
    assert load(data, 8).shape == (8, 8, 3)


def test_many_threads_decode_many_formats_without_mixing_them_up() -> None:
    pictures = [corners(40 + i, 30 + i) for i in range(6)]
    jobs = [(encode(p, kind), p) for p in pictures for kind in ("PNG", "BMP", "TIFF")] * 8
    with ThreadPoolExecutor(8) as pool:
        for pixels, (_, picture) in zip(pool.map(lambda job: decode(job[0]), jobs), jobs, strict=True):
            np.testing.assert_array_equal(pixels, np.asarray(picture))


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("chest-xray", "*.jpeg"), ("breast-ultrasound", "*.png"), ("blood-smear", "*.jpg")],
)
def test_real_pictures_decode_as_pillow_decodes_them(shared_data: Path, folder: str, pattern: str) -> None:
    for path in sorted((shared_data / folder).rglob(pattern))[::97]:
        reference = Image.open(path).convert("RGB")
        np.testing.assert_array_equal(decode(path), np.asarray(reference))
        small = reference.resize((64, 64), Image.Resampling.BILINEAR)
        if max(reference.size) < 384:  # larger JPEGs are decoded at a smaller scale
            np.testing.assert_array_equal(load(path, 64), np.asarray(small))
