"""DICOM: the sample objects of many makers that come with pydicom."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import decode

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut  # noqa: E402

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.parametrize("other", ["MR_small_RLE", "MR_small_implicit", "MR_small_bigendian", "MR_small_jp2klossless"])
def test_every_compression_of_the_same_scan_gives_the_same_picture(other: str) -> None:
    np.testing.assert_array_equal(decode(SAMPLES / f"{other}.dcm"), decode(SAMPLES / "MR_small.dcm"))


def test_a_preamble_that_looks_like_a_tiff_is_still_dicom() -> None:
    data = (SAMPLES / "CT_small.dcm").read_bytes()
    assert data.startswith(b"II*\0")
    assert decode(data).shape == (128, 128, 3)


COLOURS = (
    *("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n2", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_jpeg_dcmtk"),
    *("SC_rgb_rle", "SC_rgb_rle_16bit", "SC_rgb_gdcm_KY", "SC_ybr_full_422_uncompressed"),
)


@pytest.mark.parametrize("name", COLOURS)
def test_colour_objects_show_the_same_colours_however_they_are_stored(name: str) -> None:
    pixels = decode(SAMPLES / f"{name}.dcm").astype(int)
    reference = pydicom.dcmread(SAMPLES / "SC_rgb_rle.dcm").pixel_array
    assert np.abs(pixels - reference).mean() < 4


def test_big_endian_8_bit_colour_in_words_is_not_swapped() -> None:
    expected = decode(SAMPLES / "SC_rgb_small_odd.dcm")
    np.testing.assert_array_equal(decode(SAMPLES / "SC_rgb_small_odd_big_endian.dcm"), expected)


def test_palette_colour_is_looked_up() -> None:
    dataset = pydicom.dcmread(SAMPLES / "examples_palette.dcm")
    expected = apply_color_lut(dataset.pixel_array, dataset) >> 8
    np.testing.assert_array_equal(decode(SAMPLES / "examples_palette.dcm"), expected)


@pytest.mark.parametrize("name", ["JPEG-lossy", "MR_small_jpeg_ls_lossless", "image_dfl"])
def test_a_compression_that_is_not_decoded_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(SAMPLES / f"{name}.dcm")
    assert caught.value.reason is ImageReason.UNSUPPORTED
    assert "convert it to Explicit VR Little Endian" in str(caught.value)


@pytest.mark.parametrize("name", ["reportsi", "rtplan", "waveform_ecg"])
def test_an_object_without_a_picture_is_refused_as_such(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(SAMPLES / f"{name}.dcm")
    assert caught.value.reason is ImageReason.UNSUPPORTED
    assert "without a picture" in str(caught.value)


def test_a_deflated_object_is_not_inflated() -> None:
    started = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        decode(SAMPLES / "image_dfl.dcm")
    assert caught.value.reason is ImageReason.UNSUPPORTED
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_real_objects_are_shown_as_pydicom_computes_them(name: str, function: str) -> None:
    dataset = pydicom.dcmread(SAMPLES / name)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 300, 700, function
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = _black_and_white(dataset)
    expected = (shown - low) / (high - low) * 255
    if "PixelPaddingValue" in dataset:
        expected[dataset.pixel_array == dataset.PixelPaddingValue] = 0
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert np.abs(decode(buffer.getvalue())[:, :, 0] - expected).max() <= 1


def _black_and_white(dataset: Any) -> tuple[float, float]:
    """What pydicom calls black and white: the range of the stored values in modality units."""
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return low * slope + intercept, high * slope + intercept
