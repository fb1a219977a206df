"""DICOM: the grey-scale pipeline, colour, compression, privacy, and headers that lie."""

import io
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import Limits, decode

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def dicom(
    pixels: np.ndarray | bytes,
    *,
    syntax: str = ExplicitVRLittleEndian,
    shape: tuple[int, int] = (0, 0),
    **elements: Any,
) -> bytes:
    """A minimal image object; ``elements`` are set last and may contradict the pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "SECRET-4711"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = shape if isinstance(pixels, bytes) else pixels.shape[:2]
    colour = not isinstance(pixels, bytes) and pixels.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 if isinstance(pixels, bytes) else pixels.dtype.itemsize * 8
    dataset.BitsStored = 12 if dataset.BitsAllocated == 16 else dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(not isinstance(pixels, bytes) and pixels.dtype.kind == "i")
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = pixels if isinstance(pixels, bytes) else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    wide = dataset.get("BitsAllocated") == 16
    if "PixelData" not in elements:
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW" if wide else "OB"
        dataset["PixelData"].is_undefined_length = meta.TransferSyntaxUID.is_encapsulated
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def grey(data: bytes) -> np.ndarray:
    pixels = decode(data)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


def refusal(data: bytes, limits: Limits | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, limits=limits or Limits(), name="IM000001")
    assert str(caught.value).startswith("IM000001: ")
    return caught.value


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def words(values: Iterable[int]) -> bytes:
    return np.array(list(values), "<u2").tobytes()


# --- the grey-scale pipeline -----------------------------------------------------------------------------------


def test_without_a_window_the_picture_spans_black_to_white() -> None:
    pixels = grey(dicom(RAMP + 100, BitsStored=16, HighBit=15))
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_array_equal(pixels.ravel(), np.arange(256))


def test_a_flat_picture_without_a_window_is_black() -> None:
    assert not grey(dicom(np.full((4, 4), 700, np.uint16))).any()


@pytest.mark.parametrize(
    ("function", "expected"),
    [("LINEAR", [0, 0, 127, 255, 255]), ("LINEAR_EXACT", [0, 0, 128, 255, 255]), ("SIGMOID", [5, 30, 128, 225, 250])],
)
def test_the_window_follows_the_formula_of_the_standard(function: str, expected: list[int]) -> None:
    stored = np.array([[0, 500, 1000, 1500, 2000]], np.uint16)
    pixels = grey(dicom(stored, WindowCenter=1000, WindowWidth=1000, VOILUTFunction=function))
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1: ((x - (c - .5)) / (w - 1) + .5) between c - .5 -+ (w - 1) / 2
        expected = [0, 0, round((0.5 / 999 + 0.5) * 255), 255, 255]
    assert np.abs(pixels[0].astype(int) - expected).max() <= 1


def test_the_window_is_in_hounsfield_units_not_in_stored_values() -> None:
    stored = np.array([[0, 984, 1024, 1064, 2000]], np.uint16)  # air, fat edge, water, soft tissue, bone
    data = dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=81)
    assert grey(data)[0].tolist() == [0, 2, 129, 255, 255]


def test_the_first_of_several_windows_is_used() -> None:
    data = dicom(RAMP, WindowCenter=[2048, 100], WindowWidth=[4096, 10])
    assert np.abs(grey(data).ravel().astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    "elements", [{"WindowWidth": 0}, {"WindowWidth": -4}, {"WindowCenter": None, "WindowWidth": 9}]
)
def test_a_meaningless_window_counts_as_none(elements: dict[str, Any]) -> None:
    elements = {"WindowCenter": 10} | elements
    if elements["WindowCenter"] is None:
        del elements["WindowCenter"]
    np.testing.assert_array_equal(grey(dicom(RAMP, **elements)), grey(dicom(RAMP)))


def test_monochrome1_is_inverted_after_its_window() -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 1000}
    positive = grey(dicom(RAMP, **window))
    negative = grey(dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **window))
    assert np.abs(negative.astype(int) - (255 - positive.astype(int))).max() <= 1
    assert negative[0, 0] == 255
    assert negative[-1, -1] == 0


def test_signed_values_keep_their_order() -> None:
    stored = np.array([[-2000, -1000, 0, 1000]], np.int16)
    data = dicom(stored, BitsStored=16, HighBit=15)
    assert grey(data)[0].tolist() == [0, 85, 170, 255]


def test_a_falling_rescale_slope_turns_dark_into_light() -> None:
    pixels = grey(dicom(RAMP, RescaleSlope=-1, RescaleIntercept=4095))
    assert pixels[0, 0] == 255
    assert pixels[-1, -1] == 0


def test_bits_above_those_stored_are_ignored() -> None:
    np.testing.assert_array_equal(grey(dicom(RAMP | 0x8000)), grey(dicom(RAMP)))


def test_padding_is_black_and_does_not_spoil_the_range() -> None:
    stored = RAMP // 2 + 1000
    stored[0] = 4000
    pixels = grey(dicom(stored.astype(np.uint16), PixelPaddingValue=4000))
    assert not pixels[0].any()
    assert (pixels[1, 0], pixels[-1, -1]) == (0, 255)


def test_signed_and_ranged_padding_is_black_also_in_a_negative() -> None:
    stored = np.array([[-2000, -1990, 0, 500]], np.int16)
    data = dicom(
        stored,
        BitsStored=16,
        HighBit=15,
        PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1985,
        PhotometricInterpretation="MONOCHROME1",
    )
    assert grey(data)[0].tolist() == [0, 0, 255, 0]


def test_a_voi_table_goes_before_a_window_and_inverts_later() -> None:
    table = item(LUTDescriptor=[4096, 0, 8], LUTData=words(min(255, n // 8) for n in range(4096)))
    data = dicom(RAMP, VOILUTSequence=[table], WindowCenter=1, WindowWidth=1)
    np.testing.assert_array_equal(grey(data), np.minimum(RAMP // 8, 255))


def test_a_modality_table_is_applied_before_the_window() -> None:
    table = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US", LUTData=words(n * 10 for n in range(4096)))
    with_table = dicom(RAMP, ModalityLUTSequence=[table], WindowCenter=20480, WindowWidth=40960)
    without = dicom(RAMP, WindowCenter=2048, WindowWidth=4096)
    assert np.abs(grey(with_table).astype(int) - grey(without)).max() <= 1


def test_a_table_that_starts_at_a_negative_value_is_read_as_signed() -> None:
    stored = np.array([[-100, -1, 0, 155]], np.int16)
    table = item(LUTDescriptor=[256, -100, 8], LUTData=words(range(256)))
    data = dicom(stored, BitsStored=16, HighBit=15, VOILUTSequence=[table])
    assert grey(data)[0].tolist() == [0, 99, 100, 255]


def test_the_window_of_an_enhanced_object_is_found_in_its_functional_groups() -> None:
    groups = item(
        FrameVOILUTSequence=[item(WindowCenter=1000, WindowWidth=1000)],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-50)],
    )
    enhanced = dicom(RAMP, NumberOfFrames=1, PerFrameFunctionalGroupsSequence=[groups])
    plain = dicom(RAMP, WindowCenter=1000, WindowWidth=1000, RescaleSlope=2, RescaleIntercept=-50)
    np.testing.assert_array_equal(grey(enhanced), grey(plain))


# --- encodings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_uncompressed_encoding_gives_the_same_picture(syntax: str) -> None:
    np.testing.assert_array_equal(grey(dicom(RAMP, syntax=syntax)), grey(dicom(RAMP)))


def test_an_object_without_preamble_is_recognised() -> None:
    data = dicom(RAMP)
    np.testing.assert_array_equal(decode(data[132:]), decode(data))


def test_a_data_set_without_any_file_header_is_recognised() -> None:
    data = dicom(RAMP)
    at = data.index(b"\x08\0\x16\0UI")
    np.testing.assert_array_equal(decode(data[at:]), decode(data))


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_by_pixel_and_by_plane_is_the_same(planar: int) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    stored = rgb if planar == 0 else rgb.transpose(2, 0, 1)
    data = dicom(rgb, PlanarConfiguration=planar, PixelData=stored.tobytes())
    np.testing.assert_array_equal(decode(data), rgb)


def test_video_is_refused() -> None:
    data = dicom(encapsulate([b"\0\0\1\xb3" + bytes(60)]), syntax=MPEG2MPML, shape=(4, 4))
    assert refusal(data).reason is ImageReason.UNSUPPORTED


# --- what has no one picture -----------------------------------------------------------------------------------


def test_several_frames_are_refused_because_the_first_is_not_the_diagnosis() -> None:
    error = refusal(dicom(np.zeros((2, 4, 4), np.uint8), Rows=4, Columns=4, NumberOfFrames=2, SamplesPerPixel=1))
    assert error.reason is ImageReason.MULTI_FRAME
    assert "several frames" in str(error)


def test_without_the_extra_dicom_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    error = refusal(bytes(128) + b"DICM")
    assert error.reason is ImageReason.MISSING_EXTRA
    assert str(error) == "IM000001: DICOM needs an optional package: pip install 'pocketdx[dicom]'"


# --- headers that lie ------------------------------------------------------------------------------------------


def test_the_size_is_checked_before_any_pixel_is_touched() -> None:
    error = refusal(dicom(RAMP, Rows=60_000, Columns=60_000))
    assert error.reason is ImageReason.TOO_LARGE
    assert refusal(dicom(RAMP), Limits(max_side=15)).reason is ImageReason.TOO_LARGE
    assert refusal(dicom(RAMP, Rows=0)).reason is ImageReason.ZERO_SIZE


def test_fewer_pixels_than_claimed_are_truncated() -> None:
    assert refusal(dicom(RAMP, Rows=17)).reason is ImageReason.TRUNCATED
    assert refusal(dicom(RAMP)[:-40]).reason is ImageReason.TRUNCATED


def test_more_pixels_than_claimed_are_ignored() -> None:
    np.testing.assert_array_equal(grey(dicom(RAMP, Rows=8, WindowCenter=9, WindowWidth=9)).shape, (8, 16))


def _jpeg_2000(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), 9).save(buffer, "JPEG2000", no_jp2=True)
    return buffer.getvalue()


def _jpeg(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), 9).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(("make", "syntax"), [(_jpeg_2000, JPEG2000Lossless), (_jpeg, JPEGBaseline8Bit)])
def test_a_compressed_frame_larger_than_its_object_says_is_not_decoded(make: Any, syntax: str) -> None:
    honest = dicom(encapsulate([make(16)]), syntax=syntax, shape=(16, 16), WindowCenter=128, WindowWidth=256)
    assert np.abs(grey(honest).astype(int) - 9).max() <= 1
    assert refusal(dicom(encapsulate([make(64)]), syntax=syntax, shape=(16, 16))).reason is ImageReason.CORRUPT


def test_a_compressed_frame_that_claims_to_be_gigantic_is_not_decoded() -> None:
    frame = bytearray(_jpeg_2000(16))
    frame[8:16] = struct.pack(">II", 2**31, 2**31)
    data = dicom(encapsulate([bytes(frame)]), syntax=JPEG2000Lossless, shape=(16, 16))
    assert refusal(data).reason is ImageReason.CORRUPT


def test_run_lengths_that_unpack_beyond_the_picture_are_not_unpacked() -> None:
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 4_000_000  # to 512 MB
    data = dicom(encapsulate([frame]), syntax=RLELossless, shape=(16, 16))
    started = time.perf_counter()
    assert refusal(data).reason is ImageReason.CORRUPT
    assert time.perf_counter() - started < 5


def test_a_lossless_jpeg_that_no_installed_package_reads_is_refused() -> None:
    frame = bytearray(_jpeg(16))
    frame[frame.index(b"\xff\xc0") + 1] = 0xC3
    data = dicom(encapsulate([bytes(frame)]), syntax=JPEGLosslessSV1, shape=(16, 16))
    assert refusal(data).reason in (ImageReason.UNSUPPORTED, ImageReason.CORRUPT)


@pytest.mark.parametrize(
    "elements",
    [
        {"BitsAllocated": 32},
        {"BitsAllocated": 1},
        {"SamplesPerPixel": 3},
        {"SamplesPerPixel": 4},
        {"PhotometricInterpretation": "HSV"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"BitsStored": 0},
        {"BitsStored": 40},
        {"PixelRepresentation": 7},
        {"PhotometricInterpretation": None},
        {"BitsAllocated": None},
    ],
    ids=str,
)
def test_contradictory_attributes_are_refused(elements: dict[str, Any]) -> None:
    assert refusal(dicom(RAMP, **elements)).reason in (ImageReason.UNSUPPORTED, ImageReason.CORRUPT)


# --- privacy ---------------------------------------------------------------------------------------------------


def test_no_error_quotes_the_patient(capsys: pytest.CaptureFixture[str]) -> None:
    data = dicom(RAMP)
    for broken in (
        data[:-50],
        data.replace(b"MONOCHROME2", b"Doe^Jane^^ "),
        data.replace(b"MONOCHROME2", b"SECRET-4711"),
    ):
        error = refusal(broken)
        chain: BaseException | None = error
        while chain is not None:
            assert "Doe" not in str(chain)
            assert "SECRET" not in str(chain)
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert "Doe" not in "".join(capsys.readouterr())
