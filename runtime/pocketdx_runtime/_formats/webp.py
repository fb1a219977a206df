"""WebP (RFC 9649): the size is read before libwebp is asked, because opening one allocates its canvas."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from pocketdx_runtime._formats import exif
from pocketdx_runtime._formats.base import (
    MAX_ITEMS,
    Decoded,
    RefusalError,
    Request,
    check_size,
    corrupt,
    truncated,
)
from pocketdx_runtime._formats.pixels import flatten
from pocketdx_runtime.errors import ImageReason

if TYPE_CHECKING:
    from collections.abc import Iterator


NAME = "WebP"

_ANIMATED, _HAS_EXIF = 0x02, 0x08


def decode(data: bytes, request: Request) -> Decoded:
    """Decode the one picture of the file."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) or len(data) < 30:
        raise truncated(NAME)
    check_size(request.limits, *_size(data))
    extended = data[12:16] == b"VP8X"
    if extended and data[20] & _ANIMATED:
        raise RefusalError(ImageReason.MULTI_FRAME, "animated WebP; save the frame to look at by itself")
    orientation = 1
    if extended and data[20] & _HAS_EXIF:
        orientation = next((exif.orientation(data[body]) for kind, body in _chunks(data) if kind == b"EXIF"), 1)

    from PIL.WebPImagePlugin import WebPImageFile

    picture = WebPImageFile(BytesIO(data))
    picture.load()
    return Decoded(flatten(picture), orientation)


def _size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return width, height
    raise corrupt(NAME)


def _chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    start = 12
    for _ in range(MAX_ITEMS):
        if start + 8 > len(data):
            return
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        yield data[start : start + 4], slice(start + 8, start + 8 + length)
        start += 8 + length + length % 2
    raise corrupt(NAME)
