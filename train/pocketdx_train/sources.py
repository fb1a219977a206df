"""Labelled images as users keep them: a folder per class, a CSV or Parquet manifest, a MedMNIST `.npz`.

Each kind becomes one `Source`: named records with a label and, where known, a patient and a split. Nothing is decoded
here; `pictures` hands out what the cache decodes.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketdx_train.errors import DataError

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".heic", ".heif", ".dcm", ".dicom"]
)

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
    """A collection of labelled images.

    Attributes:
        name: the path as the user gave it.
        records: in a fixed order that does not depend on the file system's.
        ignored: files passed over because their names are not those of images.
    """

    name: str
    records: tuple[Record, ...]
    ignored: tuple[str, ...]

    def pictures(self) -> Iterator[Picture]:
        """Each record's picture in the order of `records`: a path, or pixels uint8 [H, W] or [H, W, 3]."""
        ...

    def stamp(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and time of change in ns of every file: changes when a picture may have changed."""
        ...


@dataclass(frozen=True)
class Files:
    """Images that are files: a folder per class, or rows of a manifest."""

    name: str
    records: tuple[Record, ...]
    paths: tuple[Path, ...]
    ignored: tuple[str, ...] = ()

    def pictures(self) -> Iterator[Picture]:
        """The files' paths."""
        return iter(self.paths)

    def stamp(self) -> list[tuple[str, int, int]]:
        """One entry a file; a missing file has size -1."""
        stamps = []
        for record, path in zip(self.records, self.paths, strict=True):
            try:
                status = path.stat()
                stamps.append((record.name, status.st_size, status.st_mtime_ns))
            except OSError:
                stamps.append((record.name, -1, 0))
        return stamps


@dataclass(frozen=True)
class Archive:
    """A MedMNIST `.npz`, read image by image: the 224 px sets are larger than most memories."""

    name: str
    path: Path
    records: tuple[Record, ...]
    members: tuple[str, ...]
    ignored: tuple[str, ...] = field(default=())

    def pictures(self) -> Iterator[Picture]:
        """The arrays' rows, uint8 [H, W] or [H, W, 3]."""
        with zipfile.ZipFile(self.path) as archive:
            for member in self.members:
                yield from _rows(archive, f"{member}.npy")

    def stamp(self) -> list[tuple[str, int, int]]:
        """One entry: the archive itself."""
        status = self.path.stat()
        return [(self.path.name, status.st_size, status.st_mtime_ns)]


def open_source(path: Path, *, patient_regex: str | None = None) -> Source:
    """Find out what kind of data set `path` is, and list it.

    Args:
        path: a folder, or a file ending in .csv, .parquet or .npz.
        patient_regex: searched in each image's file name; its first group that matched names the patient
            (`person(\\d+)_`). A manifest's own `patient` column comes first.

    Raises:
        DataError: the path is missing, holds no labelled images, or is malformed.
    """
    pattern = _compiled(patient_regex)
    if path.is_dir():
        return _open_folder(path, pattern)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; give a folder per class, a .csv, .parquet or .npz")
    openers = {".csv": _open_csv, ".parquet": _open_parquet}
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _open_npz(path)
    if suffix not in openers:
        raise DataError(f"{path}: not a data set; give a folder per class, a .csv, .parquet or .npz")
    return openers[suffix](path, pattern)


def classes(source: Source) -> tuple[str, ...]:
    """The names of the classes, sorted; numbers by their value.

    Raises:
        DataError: there are fewer than two.
    """
    names = {record.label for record in source.records}
    if len(names) < 2:
        raise DataError(
            f"{source.name}: one class only ({', '.join(names)}); a classifier needs images of at least two"
        )
    return tuple(sorted(names, key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n)))


def _compiled(patient_regex: str | None) -> re.Pattern[str] | None:
    if patient_regex is None:
        return None
    try:
        pattern = re.compile(patient_regex)
    except re.error as problem:
        raise DataError(f"{patient_regex}: not a regular expression ({problem})") from problem
    if pattern.groups < 1:
        raise DataError(
            f"{patient_regex}: put brackets around the part that names the patient: person(\\d+)_"
        )
    return pattern


def _patient(name: str, pattern: re.Pattern[str] | None) -> str | None:
    found = pattern.search(name) if pattern else None
    if found is None:
        return None
    return next((group for group in found.groups() if group), None)


def _open_folder(folder: Path, pattern: re.Pattern[str] | None) -> Files:
    children = _subfolders(folder)
    by_split = {_SPLIT_NAMES[c.name.lower()]: c for c in children if c.name.lower() in _SPLIT_NAMES}
    records: list[Record] = []
    paths: list[Path] = []
    ignored: list[str] = []
    if "train" in by_split:
        roots: list[tuple[str | None, Path]] = [(s, by_split[s]) for s in SPLITS if s in by_split]
    elif set(by_split) and len(by_split) == len(children):
        roots = [(s, by_split[s]) for s in SPLITS if s in by_split]
    else:
        roots = [(None, folder)]
    for split, root in roots:
        for class_folder in _subfolders(root):
            for path in sorted(p for p in class_folder.rglob("*") if p.is_file()):
                name = path.relative_to(folder).as_posix()
                if path.name.startswith(".") or (path.suffix and path.suffix.lower() not in IMAGE_SUFFIXES):
                    ignored.append(name)
                    continue
                records.append(Record(name, class_folder.name, _patient(path.name, pattern), split))
                paths.append(path)
    if not records:
        raise DataError(f"{folder}: no images; put them into one folder per class: {folder}/CLASS/image.jpg")
    return Files(str(folder), tuple(records), tuple(paths), tuple(ignored))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _open_csv(path: Path, pattern: re.Pattern[str] | None) -> Files:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({problem})") from problem
    return _from_rows(path, rows, pattern)


def _open_parquet(path: Path, pattern: re.Pattern[str] | None) -> Files:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as problem:
        first_line = str(problem).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from problem
    return _from_rows(path, rows, pattern)


def _from_rows(path: Path, rows: Sequence[dict[str, Any]], pattern: re.Pattern[str] | None) -> Files:
    if not rows:
        raise DataError(
            f"{path}: no rows; it needs the columns path and label, and may have patient and split"
        )
    columns = {str(name).strip().lower(): name for name in rows[0] if name is not None}
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DataError(f"{path}: no column {' and no column '.join(missing)}; it has {', '.join(columns)}")

    def cell(row: dict[str, Any], column: str) -> str | None:
        value = row.get(columns.get(column, ""))
        return str(value).strip() or None if value is not None else None

    records: list[Record] = []
    paths: list[Path] = []
    for number, row in enumerate(rows, start=2):
        name, label, split = cell(row, "path"), cell(row, "label"), cell(row, "split")
        if name is None or label is None:
            raise DataError(f"{path}: row {number} has no {'label' if name else 'path'}")
        if split is not None and split.lower() not in _SPLIT_NAMES:
            raise DataError(f"{path}: row {number} has the split {split!r}; use train, val or test")
        patient = cell(row, "patient") or _patient(Path(name).name, pattern)
        records.append(Record(name, label, patient, _SPLIT_NAMES[split.lower()] if split else None))
        paths.append(path.parent / name)
    undecided = sum(record.split is None for record in records)
    if 0 < undecided < len(records):
        raise DataError(f"{path}: {undecided} rows have no split while others do; fill all of them or none")
    return Files(str(path), tuple(records), tuple(paths))


def _open_npz(path: Path) -> Archive:
    records: list[Record] = []
    members: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for split in SPLITS:
                images, labels = f"{split}_images", f"{split}_labels"
                if f"{images}.npy" not in names:
                    continue
                shape = _header(archive, f"{images}.npy")[0]
                numbers = _labels(path, archive, f"{labels}.npy", count=shape[0])
                records += [Record(f"{images}[{i}]", str(n), None, split) for i, n in enumerate(numbers)]
                members.append(images)
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as problem:
        raise DataError(f"{path}: not a MedMNIST archive ({problem})") from problem
    if not records:
        raise DataError(f"{path}: not a MedMNIST archive; it needs train_images and train_labels")
    return Archive(str(path), path, tuple(records), tuple(members))


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(member) as stream:
        return _read_header(stream)


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if fortran_order or (dtype != np.uint8 and len(shape) > 2):
        raise ValueError(f"images of type {dtype}, shape {shape}; expected uint8 [N, H, W] or [N, H, W, 3]")
    return shape, dtype


def _labels(path: Path, archive: zipfile.ZipFile, member: str, *, count: int) -> list[int]:
    with archive.open(member) as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(f"{path}: several labels an image ({member}); PocketDx trains on one label an image")
    if labels.shape[0] != count:
        raise ValueError(f"{member} has {labels.shape[0]} labels for {count} images")
    return [int(n) for n in labels.reshape(count)]


def _rows(archive: zipfile.ZipFile, member: str) -> Iterator[NDArray[np.uint8]]:
    with archive.open(member) as stream:
        shape, _ = _read_header(stream)
        size = int(np.prod(shape[1:]))
        for _ in range(shape[0]):
            row = stream.read(size)
            if len(row) < size:
                raise DataError(f"{archive.filename}: {member} ends too early; download it again")
            yield np.frombuffer(row, dtype=np.uint8).reshape(shape[1:])
