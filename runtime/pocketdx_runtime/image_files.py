"""Find the pictures in folders, by the names of the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pocketdx_runtime.errors import ImageError, ImageReason, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".dib", ".dcm", ".dicom", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif"}
    | {".tiff", ".webp"}
)
"""Endings of file names, in lower case, that are taken for pictures in a folder."""


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are, folders as the pictures in them and in their folders, sorted by path.

    In a folder, files count by their ending (`IMAGE_SUFFIXES`, any case), without one if they are DICOM; hidden
    ones do not. A file given by name counts whatever it is called, even if it does not exist: decoding it says
    what is wrong.

    Raises:
        ImageError: a folder without pictures, or one that cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found += _in_folder(path) if path.is_dir() else [path]
    return found


def _in_folder(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        found += [path for name in names if _is_image(path := Path(parent, name))]
    if not found:
        raise ImageError(
            printable(str(folder)), ImageReason.NOT_FOUND, "no images in this folder; give one that holds some"
        )
    return sorted(found)


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES if path.suffix else _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    """Scanners write DICOM files without an ending; the mark follows 128 free bytes (DICOM PS3.10, 7.1)."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _refuse(error: OSError) -> None:
    raise ImageError(
        printable(str(error.filename)),
        ImageReason.UNREADABLE,
        f"cannot be read ({error.strerror}); check the path and its permissions",
    ) from error
