"""TIFF 6.0: one page, 8- or 16-bit (or fewer), with the compressions in use for photographs and scans.

The first directory is read here and written anew behind the file's bytes with nothing but the tags that
pixels need, so Pillow and libtiff never parse names, EXIF, GPS, XMP or private data.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from pocketdx_runtime._formats import exif
from pocketdx_runtime._formats.base import (
    Decoded,
    Limits,
    RefusalError,
    Request,
    check_size,
    corrupt,
    pillow_limits,
    truncated,
    unsupported,
)
from pocketdx_runtime._formats.pixels import flatten, high_byte, no_known_white
from pocketdx_runtime.errors import ImageReason

NAME = "TIFF"

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_FILL_ORDER, _PREDICTOR, _PALETTE, _EXTRA, _JPEG_TABLES = 266, 317, 320, 338, 347
_YCBCR = (529, 530, 531, 532)  # coefficients, subsampling, positioning, reference black and white
_NEEDED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT),
    *(_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES),
    *(_FILL_ORDER, _PREDICTOR, _PALETTE, _EXTRA, _JPEG_TABLES, *_YCBCR),
}
_SINGLE = {
    *(_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _STRIP_ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT),
    *(_FILL_ORDER, _PREDICTOR),
}
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_PLAIN, _JPEG = 1, 7
_COMPRESSIONS = {_PLAIN, 5, _JPEG, 8, 32946, 32773}  # also LZW, deflate (twice), PackBits
_WHITE_IS_ZERO, _GREY, _RGB, _INDEXED, _CMYK, _YCC = 0, 1, 2, 3, 5, 6
_THUMBNAIL_OR_MASK = 0b101
_MAX_PAGES = 64
_MAX_SAMPLES = 6


class _Directory:
    """One directory: its entries, their values on demand, and where the next directory is (0: nowhere)."""

    def __init__(self, data: bytes, order: exif.ByteOrder, offset: int) -> None:
        self.data, self.order = data, order
        self.entries: dict[int, exif.Entry] = {}
        for entry in exif.directory(data, order, offset):
            self.entries.setdefault(entry.tag, entry)
        after = offset + 2 + 12 * int.from_bytes(data[offset : offset + 2], order)
        self.is_cut = after + 4 > len(data)
        self.next = int.from_bytes(data[after : after + 4], order)

    def array(self, tag: int) -> npt.NDArray[np.int64]:
        """All values of an integer tag; empty if absent."""
        entry = self.entries.get(tag)
        if entry is None:
            return np.empty(0, np.int64)
        self.check(entry)
        if entry.type not in (1, 3, 4):
            raise corrupt(NAME)
        size = _TYPE_SIZES[entry.type]
        start, length = int.from_bytes(entry.value, self.order), entry.length * size
        raw = entry.value[:length] if length <= 4 else self.data[start : start + length]
        return np.frombuffer(raw, f"{'<' if self.order == 'little' else '>'}u{size}").astype(np.int64)

    def number(self, tag: int, default: int) -> int:
        """First value of an integer tag."""
        values = self.array(tag)
        return int(values[0]) if values.size else default

    def check(self, entry: exif.Entry) -> None:
        """Refuse an entry of unknown type, with too few or too many values, or values outside the file."""
        size = _TYPE_SIZES.get(entry.type)
        if size is None or entry.length == 0 or (entry.tag in _SINGLE and entry.length != 1):
            raise corrupt(NAME)
        length = entry.length * size
        if length > 4 and int.from_bytes(entry.value, self.order) + length > len(self.data):
            raise truncated(NAME)

    @property
    def bits(self) -> int:
        """Bits per sample; of the widest, should they differ."""
        return int(self.array(_BITS).max(initial=1))

    @property
    def planes_and_bits(self) -> tuple[int, int]:
        """How many planes follow each other in the file, and bits per pixel in each."""
        samples, bits = self.number(_SAMPLES, 1), self.array(_BITS)
        if self.number(_PLANAR, 1) == 2:
            return samples, self.bits
        return 1, int(bits.sum()) if bits.size == samples else samples * self.bits

    @property
    def is_deep_negative(self) -> bool:
        """More than 8 bits with white at 0, which Pillow reads as if black were, or not at all."""
        return self.number(_PHOTOMETRIC, _GREY) == _WHITE_IS_ZERO and self.bits > 8


def decode(data: bytes, request: Request) -> Decoded:
    """Decode the one picture of the file."""
    order = exif.byte_order(data)
    if order is None:
        raise corrupt(NAME)
    page = _Directory(data, order, int.from_bytes(data[4:8], order))
    if page.is_cut:
        raise truncated(NAME)
    if not {_WIDTH, _HEIGHT} <= page.entries.keys():
        raise corrupt(NAME)
    _check_kind(page)
    _check_layout(page, request.limits)
    _check_single_page(page)

    from PIL.TiffImagePlugin import TiffImageFile

    try:
        picture = TiffImageFile(BytesIO(_with_needed_tags_only(page)))
    except SyntaxError as error:  # Pillow's word for a combination of tags it has no reader for
        raise unsupported("TIFF with this layout of samples", "save it as 8-bit grey or RGB") from error
    picture.load()
    oriented = page.entries.get(exif.ORIENTATION)
    turn = 1 if oriented is None else exif.orientation_of(oriented, order)
    flat = _deep_to_grey(picture, page) if picture.mode.startswith("I") else flatten(picture)
    return Decoded(flat, turn)


def _check_layout(page: _Directory, limits: Limits) -> None:
    """Sizes within the limits; strips or tiles as many and as long as the picture needs, all inside the file."""
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    limits = pillow_limits(limits)
    check_size(limits, width, height)
    if _TILE_OFFSETS in page.entries:
        across, rows = page.number(_TILE_WIDTH, 0), page.number(_TILE_HEIGHT, 0)
        check_size(limits, across, rows)
        if across % 16 or rows % 16:  # TIFF 6.0 §15
            raise corrupt(NAME)
        heights = np.full(-(-width // across) * -(-height // rows), rows)
        offsets, lengths = page.array(_TILE_OFFSETS), page.array(_TILE_BYTES)
    else:
        across, rows = width, min(page.number(_STRIP_ROWS, height), height)
        if rows < 1:
            raise corrupt(NAME)
        heights = np.full(-(-height // rows), rows)
        heights[-1] = height - rows * (heights.size - 1)
        offsets, lengths = page.array(_STRIP_OFFSETS), page.array(_STRIP_BYTES)
    planes, bits = page.planes_and_bits
    needed = np.tile(heights * ((across * bits + 7) // 8), planes)
    if offsets.size != needed.size or lengths.size not in (0, needed.size):
        raise corrupt(NAME)
    if page.number(_COMPRESSION, _PLAIN) != _PLAIN:
        needed = np.ones_like(needed)
    if lengths.size == 0:
        lengths = needed
    if np.any(lengths < needed) or np.any(offsets + lengths > len(page.data)):
        raise truncated(NAME)


def _check_kind(page: _Directory) -> None:
    if page.number(_COMPRESSION, _PLAIN) not in _COMPRESSIONS:
        raise unsupported("TIFF with this compression", "save it uncompressed, or as PNG or JPEG")
    colours = page.number(_PHOTOMETRIC, _GREY)
    subsampled = colours == _YCC and page.number(_COMPRESSION, _PLAIN) != _JPEG
    if colours not in (_WHITE_IS_ZERO, _GREY, _RGB, _INDEXED, _CMYK, _YCC) or subsampled:
        raise unsupported("TIFF in this colour space", "save it as 8-bit grey or RGB")
    if (
        page.number(_SAMPLES, 1) > _MAX_SAMPLES
        or page.number(_PLANAR, 1) not in (1, 2)
        or page.number(_PREDICTOR, 1) not in (1, 2)
        or page.number(_FILL_ORDER, 1) not in (1, 2)
    ):
        raise unsupported("TIFF with this layout of samples", "save it as 8-bit grey or RGB")
    if any(page.array(_SAMPLE_FORMAT) != 1) or page.bits > 16:
        raise no_known_white(f"signed, floating-point or {page.bits}-bit TIFF")


def _check_single_page(page: _Directory) -> None:
    """Refuse a second page (which one is meant is for the user to say), unless a thumbnail or a mask."""
    seen: set[int] = set()
    while page.next and page.next not in seen and len(seen) < _MAX_PAGES:
        seen.add(page.next)
        page = _Directory(page.data, page.order, page.next)
        if page.entries and not page.number(_SUBFILE, 0) & _THUMBNAIL_OR_MASK:
            detail = "TIFF of several pages; save the page to look at as a file of its own"
            raise RefusalError(ImageReason.MULTI_FRAME, detail)


def _with_needed_tags_only(page: _Directory) -> bytes:
    """The same file with one directory, at its end, that holds the tags for pixels and no others."""
    entries = [entry for tag, entry in sorted(page.entries.items()) if tag in _NEEDED]
    for entry in entries:
        page.check(entry)
    raw = [_as_grey(entry, page.order) if page.is_deep_negative else entry.raw for entry in entries]
    padding = b"\0" * (len(page.data) % 2)
    offset = len(page.data) + len(padding)
    header = page.data[:4] + offset.to_bytes(4, page.order)
    count = len(entries).to_bytes(2, page.order)
    return b"".join([header, memoryview(page.data)[8:], padding, count, *raw, b"\0\0\0\0"])


def _as_grey(entry: exif.Entry, order: exif.ByteOrder) -> bytes:
    """The entry; if it is the photometric interpretation, the one that says black is 0."""
    if entry.tag != _PHOTOMETRIC:
        return entry.raw
    return entry.raw[:8] + _GREY.to_bytes(_TYPE_SIZES[entry.type], order).ljust(4, b"\0")


def _deep_to_grey(picture: Image.Image, page: _Directory) -> Image.Image:
    values = np.asarray(picture).astype(np.uint16)
    if page.is_deep_negative:
        values = np.uint16(2**page.bits - 1) - values
    # 12-bit samples say that they are 12-bit, so here their full range is known.
    return Image.fromarray((values >> 4).astype(np.uint8) if page.bits == 12 else high_byte(values))
