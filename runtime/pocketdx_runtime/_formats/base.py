"""What all picture formats share: the limits, the refusal, the guard on sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from PIL import Image

from pocketdx_runtime._formats.blocks import Blocks
from pocketdx_runtime.errors import ImageReason

# A file cut into more parts (segments, chunks) than this is refused: no writer does that, and walking 64 MiB
# of empty parts takes seconds.
MAX_ITEMS = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused before a single pixel is decoded.

    Attributes:
        max_bytes: size of the encoded file.
        max_pixels: width x height, as the header states them (not as a scaled decode would shrink them).
        max_side: width, and height, in pixels.

    Raises:
        ValueError: a limit is not a positive whole number.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000
    max_side: int = 32_768

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"Limits.{field.name} must be a positive whole number, not {value!r}")


@dataclass(frozen=True, slots=True)
class Request:
    """What a format is asked for.

    Attributes:
        limits: what is refused unread.
        cover: side of the square that the picture is going to be squashed to; None if every pixel is wanted. A
            format that can decode at a smaller scale for less work may, as long as enough is left to squash.
    """

    limits: Limits
    cover: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a format gives back.

    Attributes:
        picture: loaded, mode ``L`` or ``RGB``, not yet turned.
        orientation: 1 to 8, as EXIF counts: how to turn it.
        blocks: what the pixels of ``picture`` are the means of, if it was decoded at a smaller scale.
    """

    picture: Image.Image
    orientation: int = 1
    blocks: Blocks | None = None


class RefusalError(Exception):
    """A picture is refused; ``image.decode`` adds the name of the input and raises ImageError."""

    def __init__(self, reason: ImageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def pillow_limits(limits: Limits) -> Limits:
    """The limits, within the size from which Pillow warns: for readers that ask it about sizes themselves."""
    if Image.MAX_IMAGE_PIXELS is None:
        return limits
    return replace(limits, max_pixels=max(1, min(limits.max_pixels, int(Image.MAX_IMAGE_PIXELS))))


def truncated(what: str) -> RefusalError:
    """RefusalError of a file that ends too early."""
    return RefusalError(ImageReason.TRUNCATED, f"truncated {what}; copy or export it again from its source")


def corrupt(what: str) -> RefusalError:
    """RefusalError of a damaged or self-contradicting file."""
    return RefusalError(ImageReason.CORRUPT, f"damaged {what}; copy or export it again from its source")


def unsupported(what: str, remedy: str = "save it as PNG or JPEG") -> RefusalError:
    """RefusalError of a picture of a kind that is not decoded."""
    return RefusalError(ImageReason.UNSUPPORTED, f"{what} is not read; {remedy}")


def check_bytes(limits: Limits, size: int) -> None:
    """Refuse an input of no bytes, or of more than the limit."""
    if size == 0:
        raise RefusalError(ImageReason.EMPTY, "empty; copy or export it again from its source")
    if size > limits.max_bytes:
        detail = f"{_mib(size)} is more than the limit of {_mib(limits.max_bytes)}; use a smaller file"
        raise RefusalError(ImageReason.TOO_LARGE, detail)


def check_size(limits: Limits, width: int, height: int) -> None:
    """Refuse a picture of no pixels, or of more pixels or a longer side than the limits."""
    if width < 1 or height < 1:
        raise RefusalError(ImageReason.ZERO_SIZE, f"{width}x{height}: no pixels; export it again from its source")
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        allowed = f"{limits.max_pixels} pixels and {limits.max_side} a side"
        detail = f"{width}x{height} is more than the limit of {allowed}; scale it down"
        raise RefusalError(ImageReason.TOO_LARGE, detail)


def missing_extra(what: str, extra: str) -> RefusalError:
    """Refusal of a format whose optional package is not installed."""
    detail = f"{what} needs an optional package: pip install 'pocketdx[{extra}]'"
    return RefusalError(ImageReason.MISSING_EXTRA, detail)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size} bytes"
