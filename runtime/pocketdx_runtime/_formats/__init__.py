"""The picture formats: one table, one small module each. Private: the public face is ``image``.

A format is recognised by its first bytes alone, never by the name of a file or by trying decoders in turn.
Pillow's reader classes are called directly, each by the format that owns it: no other reader can ever run,
and neither Pillow's global settings nor its registry is changed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from pocketdx_runtime._formats import bmp, dicom, heic, jpeg, png, tiff, webp
from pocketdx_runtime._formats.base import Decoded, RefusalError, Request, corrupt, truncated, unsupported
from pocketdx_runtime.errors import ImageReason

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Format:
    """A format that is decoded: its name, its mark, its decoder."""

    name: str
    matches: Callable[[bytes], bool]
    decode: Callable[[bytes, Request], Decoded]


def _is_webp(head: bytes) -> bool:
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def _is_bmp(head: bytes) -> bool:
    return head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in bmp.HEADER_SIZES


def _brands(head: bytes) -> set[bytes]:
    """Brands of an ISO base media file: what it claims to be, main claim and others."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}


def _is_heic(head: bytes) -> bool:
    brands = _brands(head)
    return bool(brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}) or (
        bool(brands & {b"mif1", b"msf1"}) and not _is_avif(head)
    )


def _is_avif(head: bytes) -> bool:
    return bool(_brands(head) & {b"avif", b"avis"})


_BARE_DICOM = (
    *(b"\x02\0\0\0UL", b"\x02\0\0\0\x04\0\0\0"),  # group length of the file meta information
    *(b"\x08\0" + bytes([element]) + b"\0" for element in (0x00, 0x01, 0x05, 0x08, 0x16)),
)


def _is_dicom(head: bytes) -> bool:
    """With the 128-byte preamble; or without it and all else before the data, as some archives export."""
    return head[128:132] == b"DICM" or head.startswith(_BARE_DICOM)


FORMATS = (
    Format(dicom.NAME, _is_dicom, dicom.decode),  # first: its preamble may be made to look like a TIFF
    Format(jpeg.NAME, lambda head: head.startswith(b"\xff\xd8\xff"), jpeg.decode),
    Format(png.NAME, lambda head: head.startswith(png.SIGNATURE), png.decode),
    Format(webp.NAME, _is_webp, webp.decode),
    Format(bmp.NAME, _is_bmp, bmp.decode),
    Format(tiff.NAME, lambda head: head.startswith((b"II*\0", b"MM\0*")), tiff.decode),
    Format(heic.NAME, _is_heic, heic.decode),
)

# Recognised only to say so.
_NOT_READ: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("AVIF", _is_avif),
    ("video", lambda head: bool(_brands(head))),
    ("GIF", lambda head: head.startswith(b"GIF8")),
    ("JPEG 2000", lambda head: head.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"))),
    ("JPEG XL", lambda head: head.startswith((b"\0\0\0\x0cJXL ", b"\xff\x0a"))),
    ("BigTIFF", lambda head: head.startswith((b"II+\0", b"MM\0+"))),
    ("PDF", lambda head: head.startswith(b"%PDF")),
    ("PostScript", lambda head: head.startswith(b"%!PS")),
    ("PSD", lambda head: head.startswith(b"8BPS")),
    ("SVG or other XML", lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<svg", b"<?xml"))),
    ("compressed archive", lambda head: head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"7z\xbc\xaf"))),
)

_HEAD = 256


def decode(data: bytes, request: Request) -> Decoded:
    """The picture in the bytes of a file.

    Raises:
        RefusalError: the only exception that an input can cause.
    """
    head = data[:_HEAD]
    for known in FORMATS:
        if known.matches(head):
            return _guarded(known, data, request)
    for name, matches in _NOT_READ:
        if matches(head):
            raise unsupported(name)
    raise RefusalError(ImageReason.NOT_AN_IMAGE, "not a picture; use JPEG, PNG, WebP, BMP, TIFF, HEIC or DICOM")


def _guarded(known: Format, data: bytes, request: Request) -> Decoded:
    """Decode; turn whatever a decoder throws at damaged bytes into a refusal."""
    try:
        return known.decode(data, request)
    except RefusalError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        detail = f"{known.name} needs more memory than there is; scale it down"
        raise RefusalError(ImageReason.TOO_LARGE, detail) from error
    except (EOFError, struct.error) as error:
        raise truncated(known.name) from error
    except Exception as error:
        raise (truncated if "truncated" in str(error).lower() else corrupt)(known.name) from error
