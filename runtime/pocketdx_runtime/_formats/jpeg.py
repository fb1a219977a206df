"""JPEG (ITU-T T.81): walked by its markers first, then decoded by libjpeg-turbo at the smallest useful scale.

Only the segments that libjpeg needs are handed on. So no thumbnail, comment, EXIF or XMP is ever parsed, and
nothing after the end of the picture (a phone's motion photo, a second MPO picture) is looked at.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from pocketdx_runtime._formats import exif
from pocketdx_runtime._formats.base import MAX_ITEMS, Decoded, Request, check_size, corrupt, truncated, unsupported
from pocketdx_runtime._formats.blocks import Blocks
from pocketdx_runtime._formats.pixels import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator


NAME = "JPEG"

# Decoding at 1/2, 1/4 or 1/8 gives means of blocks, from which what the pixels would give is estimated (blocks.py).
# Share of values more than one grey level off a full decode, worse of two sharp photographs at 96 px, at 1/2, where it
# is largest: 10 % if twice the pixels that are needed are left, 1.6 % if 2.7 times, 0.7 % if three times.
MARGIN = 3

# Each scan makes the decoder walk the whole picture again, and may be a few bytes long. Real files have about
# ten; libjpeg-turbo advises a limit of 500. 600 KB of scans of 100 megapixels took 9 s without the second limit.
_MAX_SCANS = 100
_MAX_SCANNED_PIXELS = 2_000_000_000

_SOI, _EOI, _SOS, _DQT, _DHT, _DAC, _DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xCC, 0xDD
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_JPEG_LS = 0xF7
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, _DAC, 0xC8}
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_DECODABLE = _SEQUENTIAL | {0xC2, 0xCA}  # progressive; each with Huffman or arithmetic coding
_NEEDED = _FRAMES | {_SOS, _DQT, _DHT, _DAC, _DRI}

# In entropy-coded data 0xFF is followed by a stuffed 0, a restart number or a fill byte; the rest are markers.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class Frame(NamedTuple):
    """What the frame header says."""

    marker: int
    width: int
    height: int
    bits: int
    components: int


class _Layout(NamedTuple):
    frame: Frame
    orientation: int
    scans: int
    needed: list[slice]


def decode(data: bytes, request: Request) -> Decoded:
    """Decode; with ``request.cover``, at a scale that leaves both sides at least 3 * cover."""
    layout = _walk(data)
    frame = layout.frame
    if frame.marker not in _DECODABLE or frame.bits != 8:
        raise unsupported(f"lossless or {frame.bits}-bit JPEG", "save it as an ordinary 8-bit JPEG or PNG")
    check_size(request.limits, frame.width, frame.height)
    if layout.scans * frame.width * frame.height > _MAX_SCANNED_PIXELS:
        raise corrupt(NAME)
    view = memoryview(data)
    stream = b"".join([b"\xff\xd8", *(view[part] for part in layout.needed)])

    from PIL.JpegImagePlugin import JpegImageFile

    picture = JpegImageFile(BytesIO(stream))
    scale = _scale(frame, request)
    picture.draft(None, (frame.width // scale, frame.height // scale))
    picture.decodermaxblock = len(stream)  # one call instead of one per 64 KiB
    picture.load()
    blocks = Blocks(scale, frame.width, frame.height) if scale > 1 else None
    return Decoded(flatten(picture), layout.orientation, blocks)


def _scale(frame: Frame, request: Request) -> int:
    """Divisor of both sides, 1, 2, 4 or 8: the largest that leaves enough of the picture."""
    if request.cover is None:
        return 1
    enough = MARGIN * request.cover
    for scale in (8, 4, 2):
        if min(frame.width, frame.height) >= scale * enough:
            return scale
    return 1


def frame(data: bytes) -> Frame:
    """The frame header of any JPEG (T.81) or JPEG-LS (T.87) stream.

    Raises:
        RefusalError: TRUNCATED or CORRUPT if there is none.
    """
    for marker, body in _segments(data):
        if marker in _FRAMES or marker == _JPEG_LS:
            return _frame(marker, data[body])
        if marker in (_SOS, _EOI):
            break
    raise corrupt(NAME)


def _walk(data: bytes) -> _Layout:
    """Find the frame, the orientation and the parts to decode; refuse a picture that has no end."""
    found: Frame | None = None
    orientation, scans, scanned_from = 1, 0, 0
    needed: list[slice] = []
    for marker, body in _segments(data):
        if scans == 0 and (marker in _NEEDED or _is_colour_hint(marker, data, body)):
            needed.append(slice(body.start - 4, body.stop))
        if marker in _FRAMES:
            if found is not None:
                break
            found = _frame(marker, data[body])
        elif marker == _APP1 and scans == 0 and data.startswith(b"Exif\0\0", body.start):
            orientation = exif.orientation(data[body])
        elif marker == _SOS and found is not None:
            scanned_from = scanned_from or body.stop
            scans += 1
            if found.marker in _SEQUENTIAL and data[body.start] == found.components:
                # All in one scan: libjpeg accepts no second one, and notices itself where the end is missing.
                return _Layout(found, orientation, 1, [*needed, slice(scanned_from, len(data))])
            if scans > _MAX_SCANS:
                break
        elif marker == _EOI and found is not None and scans > 0:
            return _Layout(found, orientation, scans, [*needed, slice(scanned_from, body.stop)])
    raise corrupt(NAME)


def _segments(data: bytes) -> Iterator[tuple[int, slice]]:
    """Markers and where their bodies are, up to and including the end of the picture.

    Like libjpeg, skips fill bytes and junk between segments, and entropy-coded data.
    """
    pos = 2
    for _ in range(MAX_ITEMS):
        match = _MARKER.search(data, pos)
        if match is None:
            raise truncated(NAME)
        marker, start = data[match.start() + 1], match.end()
        if marker == _EOI:
            yield marker, slice(start, start)
            return
        length = int.from_bytes(data[start : start + 2], "big")
        pos = start + length
        if max(pos, start + 2) > len(data):
            raise truncated(NAME)
        if length < 2 or marker == _SOI:
            raise corrupt(NAME)
        yield marker, slice(start + 2, pos)
    raise corrupt(NAME)


def _frame(marker: int, body: bytes) -> Frame:
    if len(body) < 6:
        raise corrupt(NAME)
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return Frame(marker, width, height, bits=body[0], components=body[5])


def _is_colour_hint(marker: int, data: bytes, body: slice) -> bool:
    """Whether libjpeg tells RGB from YCbCr, or CMYK from YCCK, by this segment."""
    start = body.start
    return (marker == _APP0 and data.startswith(b"JFIF\0", start)) or (
        marker == _APP14 and data.startswith(b"Adobe", start)
    )
