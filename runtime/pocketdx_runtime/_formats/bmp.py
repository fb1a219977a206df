"""BMP (Windows bitmap, uncompressed)."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from pocketdx_runtime._formats.base import Limits, check_size, truncated, unsupported
from pocketdx_runtime._formats.pixels import flatten

if TYPE_CHECKING:
    from PIL import Image

NAME = "BMP"
HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})

_PLAIN, _BIT_FIELDS = 0, 3


def decode(data: bytes, limits: Limits, cover: int | None) -> Image.Image:  # noqa: ARG001 (nothing to scale by)
    """Picture, mode ``L`` or ``RGB``."""
    header_size = int.from_bytes(data[14:18], "little")
    if len(data) < 14 + header_size:
        raise truncated(NAME)
    if header_size == 12:
        width, height, compression = _u16(data, 18), _u16(data, 20), _PLAIN
    else:
        width, height, compression = _i32(data, 18), abs(_i32(data, 22)), _i32(data, 30)  # < 0: top row first
    check_size(limits, width, height)
    if compression not in (_PLAIN, _BIT_FIELDS):
        raise unsupported("compressed BMP")

    from PIL.BmpImagePlugin import BmpImageFile

    picture = BmpImageFile(BytesIO(data))
    picture.load()
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
        return picture.convert("RGB")  # many writers leave the fourth byte 0; Windows shows these as opaque
    return flatten(picture)


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)
