"""MedMNIST `.npz` archives (Yang et al., Scientific Data, 2023), read image by image.

`numpy.load` would read a whole split at once; the 224 px sets are larger than most memories.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pocketdx_train.errors import DataError
from pocketdx_train.records import SPLITS, Picture, Record


@dataclass(frozen=True)
class Archive:
    """The images of one archive; it has no patients."""

    name: str
    path: Path
    records: tuple[Record, ...]
    members: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def pictures(self) -> Iterator[Picture]:
        """The arrays' rows, uint8 [H, W] or [H, W, 3]; one in memory at a time."""
        with _reading(self.path), zipfile.ZipFile(self.path) as archive:
            for member in self.members:
                yield from _rows(archive, member)

    def stamp(self) -> list[tuple[str, int, int]]:
        """One entry: the archive itself."""
        status = self.path.stat()
        return [(self.path.name, status.st_size, status.st_mtime_ns)]


def open_archive(path: Path) -> Archive:
    """List an archive with arrays `train_images`, `train_labels`, and likewise `val` and `test`.

    Images are uint8 [N, H, W] or [N, H, W, 3]; labels whole numbers [N] or [N, 1], which become the classes' names.

    Raises:
        DataError: it is something else, or has several labels an image.
    """
    records: list[Record] = []
    members: list[str] = []
    with _reading(path), zipfile.ZipFile(path) as archive:
        present = set(archive.namelist())
        for split in SPLITS:
            images = f"{split}_images"
            if f"{images}.npy" not in present:
                continue
            with archive.open(f"{images}.npy") as stream:
                shape = _image_shape(stream, images)
            numbers = _labels(archive, f"{split}_labels", count=shape[0])
            records += [Record(f"{images}[{i}]", str(n), split=split) for i, n in enumerate(numbers)]
            members.append(images)
    if not records:
        raise DataError(f"{path}: not a MedMNIST archive; it needs train_images and train_labels")
    return Archive(str(path), path, tuple(records), tuple(members))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of every way in which a zip file can be damaged that this one is."""
    try:
        yield
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError) as problem:
        # RuntimeError is an encrypted member, or (NotImplementedError) an unknown compression.
        raise DataError(f"{path}: not a whole MedMNIST archive ({problem}); download it again") from problem


def _image_shape(stream: IO[bytes], name: str) -> tuple[int, ...]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    pictures = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not pictures or fortran_order or dtype != np.uint8:
        raise ValueError(f"{name} is {dtype} {list(shape)}, expected uint8 [N, H, W] or [N, H, W, 3]")
    return tuple(shape)


def _labels(archive: zipfile.ZipFile, name: str, *, count: int) -> list[int]:
    with archive.open(f"{name}.npy") as stream:
        labels: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(f"{archive.filename}: several labels an image ({name}); PocketDx trains on one label an image")
    if labels.shape not in {(count,), (count, 1)} or labels.dtype.kind not in "iub":
        raise ValueError(f"{name} is {labels.dtype} {list(labels.shape)}, expected {count} whole numbers")
    return [int(n) for n in labels.reshape(count)]


def _rows(archive: zipfile.ZipFile, member: str) -> Iterator[NDArray[np.uint8]]:
    with archive.open(f"{member}.npy") as stream:
        count, *shape = _image_shape(stream, member)
        size = int(np.prod(shape))
        for number in range(count):
            row = stream.read(size)
            if len(row) < size:
                raise ValueError(f"{member} ends after {number} of {count} images")
            yield np.frombuffer(row, dtype=np.uint8).reshape(shape)
