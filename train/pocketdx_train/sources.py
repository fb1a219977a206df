"""Labelled images as users keep them: a folder per class, a CSV or Parquet table, a MedMNIST `.npz`.

Each kind becomes one `Source`: named records with a label and, where known, a patient and a split. Nothing is decoded
here; `pictures` hands out what the cache decodes.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketdx_runtime.image_files import IMAGE_SUFFIXES
from pocketdx_train.archive import open_archive
from pocketdx_train.errors import DataError
from pocketdx_train.records import SPLITS, Files, Picture, Record, Source

__all__ = ["IMAGE_SUFFIXES", "SPLITS", "Picture", "Record", "Source", "classes", "open_source"]

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def open_source(path: Path, *, patient_regex: str | None = None) -> Source:
    """Find out what kind of data set `path` is, and list it.

    Args:
        path: a folder, or a file ending in .csv, .parquet or .npz.
        patient_regex: searched in each image's file name; its first group that matched names the patient
            (`person(\\d+)_`). A table's own `patient` column comes first.

    Raises:
        DataError: the path is missing, holds no labelled images, or is malformed.
    """
    pattern = _compiled(patient_regex)
    if path.is_dir():
        return _open_folder(path, pattern)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; give a folder per class, a .csv, .parquet or .npz")
    match path.suffix.lower():
        case ".csv":
            return _from_rows(path, _csv_rows(path), pattern)
        case ".parquet":
            return _from_rows(path, _parquet_rows(path), pattern)
        case ".npz":
            return open_archive(path)
    raise DataError(f"{path}: not a data set; give a folder per class, a .csv, .parquet or .npz")


def classes(source: Source) -> tuple[str, ...]:
    """The names of the classes, sorted; numbers by their value.

    Raises:
        DataError: there are fewer than two, or a name cannot be shown.
    """
    names = {record.label for record in source.records}
    if len(names) < 2:
        raise DataError(
            f"{source.name}: one class only ({', '.join(names)}); a classifier needs images of at least two"
        )
    for name in names:
        if not name.isprintable():
            raise DataError(f"{source.name}: {name!r} cannot be shown; give the class another name")
    return tuple(sorted(names, key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n)))


def _compiled(patient_regex: str | None) -> re.Pattern[str] | None:
    if patient_regex is None:
        return None
    try:
        pattern = re.compile(patient_regex)
    except re.error as problem:
        raise DataError(f"{patient_regex}: not a regular expression ({problem})") from problem
    if pattern.groups < 1:
        raise DataError(f"{patient_regex}: put brackets around the part that names the patient: person(\\d+)_")
    return pattern


def _patient(name: str, pattern: re.Pattern[str] | None) -> str | None:
    found = pattern.search(name) if pattern else None
    return next((group for group in found.groups() if group), None) if found else None


# --- a folder per class --------------------------------------------------------------------------------------------


def _open_folder(folder: Path, pattern: re.Pattern[str] | None) -> Files:
    roots, ignored = _split_folders(folder)
    records: list[Record] = []
    paths: list[Path] = []
    for split, root in roots:
        for child in _visible(root):
            if not child.is_dir():
                if _is_image(child):
                    ignored.append(child.relative_to(folder).as_posix())
                continue
            found = 0
            for path in _files_below(child):
                name = path.relative_to(folder).as_posix()
                if path.suffix and not _is_image(path):
                    ignored.append(name)
                    continue
                records.append(Record(name, child.name, _patient(path.name, pattern), split))
                paths.append(path)
                found += 1
            if not found:
                ignored.append(f"{child.relative_to(folder).as_posix()}/ (no images)")
    if not records:
        raise DataError(f"{folder}: no images; put them into one folder per class: {folder}/CLASS/image.jpg")
    return Files(str(folder), tuple(records), tuple(paths), tuple(ignored))


def _split_folders(folder: Path) -> tuple[list[tuple[str | None, Path]], list[str]]:
    """Where the class folders are, by split, and what stands beside the splits and is passed over."""
    children = _visible(folder)
    by_split: dict[str, Path] = {}
    for child in children:
        split = _SPLIT_NAMES.get(child.name.lower()) if child.is_dir() else None
        if split in by_split:
            raise DataError(
                f"{folder}: both {by_split[split].name} and {child.name} name the {split} split; merge them"
            )
        if split:
            by_split[split] = child
    others = [child for child in children if child not in by_split.values()]
    # Without a train folder, "test" may as well be a class.
    if "train" in by_split or (by_split and not any(child.is_dir() for child in others)):
        roots: list[tuple[str | None, Path]] = [(split, by_split[split]) for split in SPLITS if split in by_split]
        return roots, [f"{child.name}/" for child in others if child.is_dir()]
    return [(None, folder)], []


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _hidden(name: str) -> bool:
    """What an operating system or a notebook leaves behind, never data: `.DS_Store`, `.ipynb_checkpoints`."""
    return name.startswith(".") or name == "__MACOSX"


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not _hidden(child.name))
    except OSError as problem:
        raise _unlisted(problem) from problem


def _files_below(folder: Path) -> Iterator[Path]:
    """Every visible file below `folder`, links followed, broken ones included: they are missed, not passed over."""

    def refuse(problem: OSError) -> None:
        raise _unlisted(problem) from problem

    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link that leads upwards
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (Path(where, name) for name in sorted(names) if not _hidden(name))


def _unlisted(problem: OSError) -> DataError:
    return DataError(f"{problem.filename}: cannot be listed: {problem.strerror}; check its permissions")


# --- a table of paths and labels -----------------------------------------------------------------------------------

_Row = tuple[int, dict[str, Any]]


def _csv_rows(path: Path) -> list[_Row]:
    """Rows with the number of their last line; separated by the comma, semicolon or tab that the header has most of."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count))
            return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({problem}); save it again as one") from problem


def _parquet_rows(path: Path) -> list[_Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return list(enumerate(read_table(path).to_pylist(), start=1))
    except (ArrowException, OSError) as problem:
        first_line = str(problem).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from problem


def _from_rows(path: Path, rows: Sequence[_Row], pattern: re.Pattern[str] | None) -> Files:
    if not rows:
        raise DataError(f"{path}: no rows; it needs the columns path and label, and may have patient and split")
    columns = {str(name).strip().lower(): name for name in rows[0][1] if name is not None}
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DataError(f"{path}: no column {' and no column '.join(missing)}; it has {', '.join(columns)}")

    def cell(row: dict[str, Any], column: str) -> str | None:
        value = row.get(columns.get(column, ""))
        absent = value is None or value != value  # NaN, as pandas writes what is missing
        return None if absent else str(value).strip() or None

    records: list[Record] = []
    for number, row in rows:
        name, label, split = cell(row, "path"), cell(row, "label"), cell(row, "split")
        if name is None or label is None:
            raise DataError(f"{path}: row {number} has no {'label' if name else 'path'}; fill it in or delete the row")
        if split is not None and split.lower() not in _SPLIT_NAMES:
            raise DataError(f"{path}: row {number} has the split {split!r}; use train, val or test")
        patient = cell(row, "patient") or _patient(Path(name).name, pattern)
        records.append(Record(name, label, patient, _SPLIT_NAMES[split.lower()] if split else None))
    undecided = sum(record.split is None for record in records)
    if 0 < undecided < len(records):
        raise DataError(f"{path}: {undecided} rows have no split while others do; fill all of them or none")
    return Files(str(path), tuple(records), tuple(path.parent / record.name for record in records))
