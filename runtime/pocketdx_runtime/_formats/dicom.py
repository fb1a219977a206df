"""DICOM (PS3.3, PS3.5) through the optional package pydicom: one frame, as a radiology viewer first shows it.

Only the elements that pixels need are read; names, dates and identifiers never become values. No text of
pydicom's own errors is passed on either, because it can quote them.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pocketdx_runtime._formats import dicom_grey, jpeg
from pocketdx_runtime._formats.base import (
    Decoded,
    Limits,
    RefusalError,
    Request,
    check_size,
    corrupt,
    missing_extra,
    pillow_limits,
    truncated,
    unsupported,
)
from pocketdx_runtime.errors import ImageReason

NAME = "DICOM"

# pydicom inflates the whole of a deflated file at once, whatever comes out. The name of that transfer syntax
# occurs in no other kind of file, so looking for its bytes is a test that no forged header can slip past.
_DEFLATED = b"1.2.840.10008.1.2.1.99"

_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_RLE = "1.2.840.10008.1.2.5"
_LIBJPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}  # 8-bit and, in theory, 12-bit JPEG
_JPEG_FAMILY = _LIBJPEG | {f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 81)}  # lossless JPEG, JPEG-LS
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)}  # and high-throughput JPEG 2000

_GREY = {"MONOCHROME1", "MONOCHROME2"}
_PALETTE = "PALETTE COLOR"
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"}

_PALETTE_TABLES = [
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
]
_ELEMENTS = [
    *(
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
    ),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelData"),
    *_PALETTE_TABLES,
    *dicom_grey.ELEMENTS,
]


def decode(data: bytes, request: Request) -> Decoded:
    """Decode the one frame of an image object; ``dicom_grey`` says how stored values become grey levels.

    A multi-frame object (a cine loop, a volume) is refused: a diagnosis of its first frame, which seldom is
    the one a radiologist would pick, would look like a diagnosis of the whole. Overlays are not burned in,
    pixels are taken as square.
    """
    try:
        import pydicom
    except ImportError as error:
        raise missing_extra(NAME, "dicom") from error
    if _DEFLATED in data:
        raise unsupported("deflated DICOM", "convert it to Explicit VR Little Endian")

    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True, specific_tags=list(_ELEMENTS))
        return Decoded(_picture(dataset, request.limits))
    except (RefusalError, MemoryError):
        raise
    except EOFError:
        raise truncated(NAME) from None
    except Exception:
        raise corrupt(NAME) from None


def _picture(dataset: Any, limits: Limits) -> Image.Image:
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise unsupported("DICOM object without a picture", "choose an image object of the study")
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    check_size(limits, columns, rows)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        detail = "DICOM of several frames; export the frame to look at as an object of its own"
        raise RefusalError(ImageReason.MULTI_FRAME, detail)
    interpretation = str(dataset.PhotometricInterpretation)
    samples, bits = int(dataset.get("SamplesPerPixel", 1)), int(dataset.BitsAllocated)
    if samples != (3 if interpretation in _COLOUR else 1) or bits not in (8, 16):
        raise unsupported(f"DICOM with {samples} samples of {bits} bits a pixel")
    if interpretation not in _GREY | _COLOUR | {_PALETTE}:
        raise unsupported("DICOM in this colour space", "convert it to MONOCHROME2 or RGB")

    stored = _stored_values(dataset, interpretation, limits)
    if interpretation in _GREY:
        return Image.fromarray(dicom_grey.grey(stored, dataset, negative=interpretation == "MONOCHROME1"))
    if interpretation == _PALETTE:
        return Image.fromarray(_look_up(stored, dataset))
    return Image.fromarray(_to_8_bit(stored, int(dataset.BitsStored)))


def _stored_values(dataset: Any, interpretation: str, limits: Limits) -> npt.NDArray[Any]:
    """Values as stored, uint8, int8, uint16 or int16, [H,W] or [H,W,3] (YCbCr already turned to RGB)."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = str(dataset.file_meta.get("TransferSyntaxUID") or _guessed_syntax(dataset))
    options: dict[str, Any] = {
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "number_of_frames": 1,
        "samples_per_pixel": int(dataset.get("SamplesPerPixel", 1)),
        "photometric_interpretation": interpretation,
        "bits_allocated": int(dataset.BitsAllocated),
        "bits_stored": int(dataset.BitsStored),
        "pixel_representation": int(dataset.get("PixelRepresentation", 0)),
        "planar_configuration": int(dataset.get("PlanarConfiguration", 0)),
        "pixel_keyword": "PixelData",
        "pixel_vr": dataset["PixelData"].VR,  # big-endian 8-bit data in words comes byte-swapped
    }
    plane = options["rows"] * options["columns"] * options["bits_allocated"] // 8
    if syntax in _NATIVE:
        length = plane * options["samples_per_pixel"]
        if interpretation == "YBR_FULL_422":  # two pixels share their chroma
            length = length * 2 // 3
        if len(dataset.PixelData) < length:
            raise truncated(NAME)
        source = bytes(dataset.PixelData[: length + length % 2])
    else:
        check_size(pillow_limits(limits), options["columns"], options["rows"])
        source = encapsulate([_checked_frame(dataset, syntax, plane)])
    decoder = get_decoder(UID(syntax))
    if not decoder.is_available:
        raise _not_decompressed()
    return decoder.as_array(source, index=0, **options)[0]


def _guessed_syntax(dataset: Any) -> str:
    """Encoding of a data set that came without file meta information; such files are never compressed."""
    implicit, little = dataset.original_encoding
    if implicit:
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _checked_frame(dataset: Any, syntax: str, plane: int) -> bytes:
    """The compressed frame, once its own header has proved to promise the size that the data set states."""
    from pydicom.encaps import generate_frames

    frame = bytes(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    if syntax in _JPEG_FAMILY:
        found = jpeg.frame(frame)
        if syntax in _LIBJPEG and found.bits != 8:
            raise _not_decompressed()
        size = found.width, found.height
    elif syntax in _JPEG_2000:
        size = _jpeg_2000_size(frame)
    elif syntax == _RLE:
        _check_rle(frame, plane)
        return frame
    else:
        raise _not_decompressed()
    if size != (int(dataset.Columns), int(dataset.Rows)):
        raise corrupt(NAME)
    return frame


def _jpeg_2000_size(frame: bytes) -> tuple[int, int]:
    """Width and height in the SIZ segment, which has to come first (ISO/IEC 15444-1 A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise _not_decompressed()
    right, bottom, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    return right - left, bottom - top


def _not_decompressed() -> RefusalError:
    remedy = "convert it to Explicit VR Little Endian (gdcmconv --raw, dcmdjpeg)"
    return unsupported("DICOM with this compression", remedy)


def _check_rle(frame: bytes, plane: int) -> None:
    """Refuse run lengths (PS3.5 G.3) that unpack to more than the picture; two bytes can make 128."""
    produced, at = 0, 64
    while at < len(frame) and produced <= 3 * plane + 2 * 15:
        control = frame[at]
        if control < 128:
            produced += control + 1
            at += control + 2
        elif control > 128:
            produced += 257 - control
            at += 2
        else:
            at += 1
    if at < len(frame):
        raise corrupt(NAME)


def _look_up(stored: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    if any(table not in dataset for table in _PALETTE_TABLES):  # segmented ones can unpack without bound
        raise unsupported("DICOM with this kind of palette", "convert it to RGB")
    return _to_8_bit(apply_color_lut(stored, dataset)[:, :, :3])


def _to_8_bit(colour: npt.NDArray[Any], bits: int | None = None) -> npt.NDArray[np.uint8]:
    bits = bits or colour.dtype.itemsize * 8
    return np.ascontiguousarray((colour >> max(bits - 8, 0)).astype(np.uint8))
