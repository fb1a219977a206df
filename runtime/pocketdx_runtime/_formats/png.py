"""PNG (ISO/IEC 15948): its chunks are walked and checksummed, then only those with pixels are decoded.

So compressed text and colour profiles, where decompression bombs live, are never inflated.
"""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import TYPE_CHECKING

from pocketdx_runtime._formats import exif
from pocketdx_runtime._formats.base import (
    MAX_ITEMS,
    Decoded,
    Limits,
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


NAME = "PNG"
SIGNATURE = b"\x89PNG\r\n\x1a\n"

_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def decode(data: bytes, request: Request) -> Decoded:
    """Decode the one picture of the file."""
    view = memoryview(data)
    orientation = 1
    stream: list[bytes | memoryview] = [SIGNATURE]
    for kind, start, stop in _chunks(data):
        body = slice(start + 8, stop - 4)
        if len(stream) == 1:
            _check_header(kind, data[body], request.limits)
        if kind == b"acTL" and int.from_bytes(data[body][:4], "big") > 1:
            raise RefusalError(ImageReason.MULTI_FRAME, "animated PNG; save the frame to look at as a PNG of its own")
        if kind == b"eXIf":
            orientation = exif.orientation(data[body])
        if kind in _NEEDED:
            if zlib.crc32(view[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
                raise corrupt(NAME)
            stream.append(view[start:stop])

    from PIL.PngImagePlugin import PngImageFile

    picture = PngImageFile(BytesIO(b"".join(stream)))
    picture.load()
    return Decoded(flatten(picture), orientation)


def _check_header(kind: bytes, body: bytes, limits: Limits) -> None:
    if kind != b"IHDR" or len(body) != 13:
        raise corrupt(NAME)
    check_size(limits, int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big"))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and stop (length, kind, body and checksum included) of each chunk up to the last."""
    start = len(SIGNATURE)
    for _ in range(MAX_ITEMS):
        kind = data[start + 4 : start + 8]
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if stop > len(data):
            raise truncated(NAME)
        yield kind, start, stop
        if kind == b"IEND":
            return
        start = stop
    raise corrupt(NAME)
