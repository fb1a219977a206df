"""What a labelled image is, and a collection of them, whatever the data set looks like on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

SPLITS = ("train", "val", "test")

Picture = Path | NDArray[Any]


@dataclass(frozen=True)
class Record:
    """One labelled image.

    Attributes:
        name: how the image is called in reports: its path below the data folder, or `train_images[7]` in an `.npz`.
        label: name of its class.
        patient: who it is of, where known.
        split: "train", "val" or "test" where the data says so.
    """

    name: str
    label: str
    patient: str | None = None
    split: str | None = None


class Source(Protocol):
    """A collection of labelled images."""

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        ...

    @property
    def records(self) -> tuple[Record, ...]:
        """The images, in an order that does not depend on the file system's."""
        ...

    @property
    def ignored(self) -> tuple[str, ...]:
        """Files and folders passed over: not images by their names, or in no class's folder."""
        ...

    def pictures(self) -> Iterator[Picture]:
        """Each record's picture in the order of `records`: a path, or pixels uint8 [H, W] or [H, W, 3].

        Raises:
            DataError: the file that holds them is damaged.
        """
        ...

    def stamp(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and time of change in ns of every file: changes when a picture may have changed."""
        ...


@dataclass(frozen=True)
class Files:
    """Images that are files: a folder per class, or rows of a table."""

    name: str
    records: tuple[Record, ...]
    paths: tuple[Path, ...]
    ignored: tuple[str, ...] = ()

    def pictures(self) -> Iterator[Picture]:
        """The files' paths."""
        return iter(self.paths)

    def stamp(self) -> list[tuple[str, int, int]]:
        """One entry a file; one that is missing or may not be read has size -1."""
        stamps = []
        for record, path in zip(self.records, self.paths, strict=True):
            try:
                status = path.stat()
                size = status.st_size if os.access(path, os.R_OK) else -1
                stamps.append((record.name, size, status.st_mtime_ns))
            except OSError:
                stamps.append((record.name, -1, 0))
        return stamps
