"""BMP (Windows bitmap, uncompressed)."""

from __future__ import annotations

from io import BytesIO

from pocketdx_runtime._formats.base import Decoded, Request, check_size, truncated, unsupported
from pocketdx_runtime._formats.pixels import flatten

NAME = "BMP"
HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})

_PLAIN, _BIT_FIELDS = 0, 3


def decode(data: bytes, request: Request) -> Decoded:
    """Decode the one picture of the file."""
    header_size = int.from_bytes(data[14:18], "little")
    if len(data) < 14 + header_size:
        raise truncated(NAME)
    if header_size == 12:
        width, height, bits, compression = _u16(data, 18), _u16(data, 20), _u16(data, 24), _PLAIN
    else:
        width, height = _i32(data, 18), abs(_i32(data, 22))  # negative: top row first
        bits, compression = _u16(data, 28), _i32(data, 30)
    check_size(request.limits, width, height)
    if compression not in (_PLAIN, _BIT_FIELDS):
        raise unsupported("compressed BMP")
    row = (width * bits + 31) // 32 * 4
    if _i32(data, 10) + row * height > len(data):
        raise truncated(NAME)

    from PIL.BmpImagePlugin import BmpImageFile

    picture = BmpImageFile(BytesIO(data))
    picture.load()
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
        return Decoded(picture.convert("RGB"))  # many writers leave the fourth byte 0; Windows shows it opaque
    return Decoded(flatten(picture))


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)
