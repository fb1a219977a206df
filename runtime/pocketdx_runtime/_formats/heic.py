"""HEIC (ISO/IEC 23008-12) through the optional package pi-heif.

It is called directly and not registered with Pillow, whose registry belongs to the host program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from pocketdx_runtime._formats.base import MAX_ITEMS, Decoded, Request, check_size, corrupt, missing_extra, truncated
from pocketdx_runtime._formats.pixels import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "HEIC"


def decode(data: bytes, request: Request) -> Decoded:
    """Decode the primary picture of the file.

    Rotation is a property of the container and applied by libheif. EXIF's orientation only repeats it (iPhones
    write both) and is ignored, as HEIF wants. 10- and 12-bit pictures become 8-bit.
    """
    try:
        import pi_heif
    except ImportError as error:
        raise missing_extra(NAME, "heic") from error

    for size in _coded_sizes(data):
        check_size(request.limits, *size)
    file = pi_heif.open_heif(_without_metadata(data))  # parses boxes only
    picture = file[file.primary_index]
    check_size(request.limits, *picture.size)
    pixels = picture.data  # decodes; fails if the result is not of the size stated
    raw = Image.frombytes(picture.mode, picture.size, pixels, "raw", picture.mode, picture.stride)
    return Decoded(flatten(raw))


def _without_metadata(data: bytes) -> bytes:
    """The file with EXIF, XMP and the like cut loose from its pictures ("content describes" references).

    So they are never parsed, and pi-heif 1.4 cannot crash on one whose type is not valid text.
    """
    parts, done = [], 0
    for start, stop in _meta_boxes(data):
        parts += [data[done:start], data[start:stop].replace(b"cdsc", b"free")]
        done = stop
    return b"".join([*parts, data[done:]])


def _coded_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of every coded picture in the file, before the cropping that its display size hides."""
    for start, stop in _meta_boxes(data):
        at = data.find(b"ispe", start, stop)
        while at >= 0:
            yield int.from_bytes(data[at + 8 : at + 12], "big"), int.from_bytes(data[at + 12 : at + 16], "big")
            at = data.find(b"ispe", at + 4, stop)


def _meta_boxes(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the boxes are that describe the pictures; all the top-level boxes have to be whole."""
    start = 0
    for _ in range(MAX_ITEMS):
        if start + 8 > len(data):
            return
        length = int.from_bytes(data[start : start + 4], "big")
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16], "big")
        stop = len(data) if length == 0 else start + length
        if stop < start + 8:
            break
        if stop > len(data):
            raise truncated(NAME)
        if data[start + 4 : start + 8] == b"meta":
            yield start, stop
        start = stop
    raise corrupt(NAME)
