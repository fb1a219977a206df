"""Errors a user can act on.

Every message is one line that names the file (or value) and the remedy. The command line prints it as
``error: ...`` and exits with status 2; the server answers 4xx with it. Anything else that escapes is a bug.
"""

from __future__ import annotations

from enum import StrEnum


def printable(text: str) -> str:
    """Escape what breaks a line or a terminal: newlines, control codes, lone surrogates in a file name."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class PocketDxError(Exception):
    """Base of every error that is shown to the user as one line instead of a traceback."""


class ManifestError(PocketDxError):
    """A model file says nothing, or something invalid, about itself."""


class ModelError(PocketDxError):
    """A model file is missing, damaged, or cannot be run on this machine."""


class ImageReason(StrEnum):
    """Why a picture was refused. The values are stable: programs and the HTTP API may match on them."""

    EMPTY = "empty"
    """No bytes at all."""
    NOT_FOUND = "not-found"
    """The path does not exist."""
    NOT_A_FILE = "not-a-file"
    """The path is a directory, pipe, socket or device; only regular files are read."""
    UNREADABLE = "unreadable"
    """The operating system refused to read the path (permissions, I/O error)."""
    NOT_AN_IMAGE = "not-an-image"
    """The first bytes are those of no known picture format."""
    UNSUPPORTED = "unsupported"
    """A picture, but of a kind that is not decoded (a format, pixel type, array shape or compression)."""
    MISSING_EXTRA = "missing-extra"
    """The format needs an optional package; the message gives the pip command."""
    TRUNCATED = "truncated"
    """The picture ends before its last pixel."""
    CORRUPT = "corrupt"
    """The picture is damaged or contradicts itself."""
    MULTI_FRAME = "multi-frame"
    """Several frames or pages: it is for the user to say which one is meant."""
    AMBIGUOUS = "ambiguous"
    """Pixel values that do not say what is black and what is white (floats, signed or unscaled integers)."""
    TOO_LARGE = "too-large"
    """More bytes, pixels or pixels per side than the limits allow."""
    ZERO_SIZE = "zero-size"
    """A picture with no pixels."""


class ImageError(PocketDxError):
    """A picture cannot be decoded: ``chest.jpg: truncated JPEG; copy or export it again from its source``.

    Attributes:
        source: name of the input: a path, or what the caller called it, unchanged.
        reason: why, as a stable code.
        detail: what is wrong and what to do, without the name.
    """

    def __init__(self, source: str, reason: ImageReason, detail: str) -> None:
        self.source = source
        self.reason = reason
        self.detail = detail
        super().__init__(f"{printable(source)}: {detail}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, ImageReason, str]]:
        """Pickle by the three arguments, so that the error survives a process pool."""
        return type(self), (self.source, self.reason, self.detail)
