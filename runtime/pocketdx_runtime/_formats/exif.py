"""The one EXIF tag that changes pixels: orientation. Everything else in EXIF is never parsed.

EXIF 2.32 §4.6.4; an EXIF block is a little TIFF file, so this also reads the directories of TIFF itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

ORIENTATION = 274

_MAX_ENTRIES = 1024  # real directories have a few dozen

ByteOrder = Literal["little", "big"]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Entry(NamedTuple):
    """One entry of a TIFF directory, still undecoded."""

    tag: int
    type: int
    length: int
    """Number of values."""
    value: bytes
    """Four bytes: the value itself, or where it is."""
    raw: bytes
    """All twelve bytes."""


def byte_order(tiff: bytes) -> ByteOrder | None:
    """Byte order by the first four bytes of a TIFF or EXIF block; None if it is neither."""
    if tiff.startswith(b"II*\0"):
        return "little"
    if tiff.startswith(b"MM\0*"):
        return "big"
    return None


def directory(tiff: bytes, order: ByteOrder, offset: int) -> Iterator[Entry]:
    """Entries of the directory at ``offset``; ends early where the bytes do."""
    count = int.from_bytes(tiff[offset : offset + 2], order)
    for start in range(offset + 2, offset + 2 + 12 * min(count, _MAX_ENTRIES), 12):
        raw = tiff[start : start + 12]
        if len(raw) < 12:
            return
        yield Entry(
            int.from_bytes(raw[:2], order),
            int.from_bytes(raw[2:4], order),
            int.from_bytes(raw[4:8], order),
            raw[8:],
            raw,
        )


def orientation(block: bytes) -> int:
    """Orientation, 1 to 8, of an EXIF block, with or without its prefix; 1 if absent or malformed."""
    block = block.removeprefix(b"Exif\0\0")
    order = byte_order(block)
    if order is None:
        return 1
    for entry in directory(block, order, int.from_bytes(block[4:8], order)):
        if entry.tag == ORIENTATION:
            return orientation_of(entry, order)
    return 1


def orientation_of(entry: Entry, order: ByteOrder) -> int:
    """Orientation, 1 to 8, in its directory entry; 1 if malformed. Some writers use LONG instead of SHORT."""
    width = {3: 2, 4: 4}.get(entry.type, 0)
    value = int.from_bytes(entry.value[:width], order)
    return value if 1 <= value <= 8 else 1


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror the picture so that it stands as it was taken."""
    move = _UPRIGHT.get(orientation)
    return picture if move is None else picture.transpose(move)
