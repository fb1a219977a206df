"""Every image decoded and resized once: uint8 on disk, memory-mapped, so that an epoch costs compute, not decoding.

A cache entry is a folder named by what it was made from. It appears whole or not at all; two runs that build the same
one at the same time do each other no harm.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketdx_runtime import image
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.errors import ImageError
from pocketdx_runtime.files import OutputError, folder_written_aside
from pocketdx_train.errors import DataError
from pocketdx_train.locks import is_abandoned, locked
from pocketdx_train.records import Picture, Record, Source

# Raise it when decoding or resizing changes its results: old entries are then no longer found.
_VERSION = 1
_PIXELS, _INDEX, _LOCK = "pixels.npy", "index.json", "lock"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """All pictures of a source, as the network will see them.

    Attributes:
        records: those of the source, in its order.
        pixels: uint8 [N, S, S, 3] RGB, memory-mapped; zeros where the picture could not be read.
        digests: SHA-256 (hex) of each full-size picture's pixels; "" where it could not be read.
        problems: why a picture could not be read, by its position.
    """

    records: tuple[Record, ...]
    pixels: NDArray[np.uint8]
    digests: tuple[str, ...]
    problems: dict[int, str]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over every readable picture's name, label, given split and pixels."""
        digest = hashlib.sha256()
        for record, pixels in zip(self.records, self.digests, strict=True):
            if pixels:
                digest.update(json.dumps([record.name, record.label, record.split, pixels]).encode())
        return digest.hexdigest()


def default_cache_folder() -> Path:
    """`$POCKETDX_CACHE`, else `pocketdx` below the user's cache folder."""
    given = os.environ.get("POCKETDX_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketdx"


def training_pixels(picture: Picture, size: int, *, name: str | None = None) -> NDArray[np.uint8]:
    """The training-time preprocessing, from the image on: full decode, squash to `size`. Parity's reference side.

    Args:
        picture: a path, or pixels uint8 [H, W] or [H, W, 3].
        size: side of the network's input in pixels.
        name: what to call the picture in errors.

    Returns:
        uint8 [size, size, 3] RGB.

    Raises:
        ImageError: the picture cannot be read.
    """
    return image.resize(image.decode(picture, name=name), size)


def decode_once(source: Source, size: int, folder: Path, *, progress: Progress | None = None) -> Decoded:
    """The decoded pictures of `source`, from the cache below `folder`, which is filled first where needed.

    Args:
        source: the labelled images.
        size: side of the network's input in pixels.
        folder: where cache entries are kept.
        progress: called with (done, all) while pictures are decoded.

    Raises:
        DataError: no picture can be read, or the disk is too full for them.
    """
    entry = folder / _key(source, size)
    decoded = _read(entry, source, size)
    if decoded is None:
        _fill(entry, source, size, progress)
        decoded = _read(entry, source, size)
    if decoded is None:
        raise DataError(f"{entry}: the cache cannot be read back; name another folder with --cache")
    if len(decoded.problems) == len(source.records):
        first = next(iter(decoded.problems.values()))
        raise DataError(f"{source.name}: none of its {len(source.records)} images can be read; the first: {first}")
    return decoded


def batches(pixels: NDArray[np.uint8], positions: NDArray[np.int64], size: int) -> Iterator[NDArray[np.uint8]]:
    """Copies of the pictures at `positions`, uint8 [<=size, S, S, 3] at a time."""
    remaining = iter(positions)
    while chosen := list(islice(remaining, size)):
        yield pixels[chosen]


def _key(source: Source, size: int) -> str:
    # An optional decoder that is installed later makes files readable without changing them.
    decoders = [name for name in ("pi_heif", "pydicom") if find_spec(name)]
    made_from = json.dumps([_VERSION, size, decoders, str(Path(source.name).resolve()), source.stamp()])
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def _read(entry: Path, source: Source, size: int) -> Decoded | None:
    """What the entry holds; None where there is none, or what is there is damaged."""
    count = len(source.records)
    try:
        index = json.loads((entry / _INDEX).read_text("utf-8"))
        pixels = np.load(entry / _PIXELS, mmap_mode="r", allow_pickle=False)
        digests = tuple(map(str, index["digests"]))
        problems = {int(position): str(why) for position, why in index["problems"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = len(digests) == count and pixels.shape == (count, size, size, 3) and pixels.dtype == np.uint8
    return Decoded(source.records, pixels, digests, problems) if whole else None


def _fill(entry: Path, source: Source, size: int, progress: Progress | None) -> None:
    folder = entry.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        if _read(entry, source, size) is None:
            shutil.rmtree(entry, ignore_errors=True)  # damaged, if it is there at all
        _check_room(folder, len(source.records) * size * size * 3)
        with folder_written_aside(entry) as aside:
            with locked(aside / _LOCK):
                _write(aside, source, size, progress)
            (aside / _LOCK).unlink()
    except OutputError as problem:
        if _read(entry, source, size) is None:  # else another run has finished the same entry first
            cause = problem.__cause__
            raise _unwritable(folder, cause if isinstance(cause, OSError) else problem) from problem
    except OSError as problem:
        raise _unwritable(folder, problem) from problem


def _unwritable(folder: Path, problem: Exception) -> DataError:
    reason = (problem.strerror if isinstance(problem, OSError) else None) or problem
    full = isinstance(problem, OSError) and problem.errno in {errno.ENOSPC, errno.EDQUOT}
    remedy = "make room, or name" if full else "name"
    return DataError(f"{folder}: decoded images cannot be kept here: {reason}; {remedy} another folder with --cache")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise DataError(
            f"{folder}: {needed / 1e6:.0f} MB are needed for the decoded images and {free / 1e6:.0f} MB are free; "
            "make room, or name another folder with --cache"
        )


def _write(aside: Path, source: Source, size: int, progress: Progress | None) -> None:
    count = len(source.records)
    path = aside / _PIXELS
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    _allocate(path)
    digests, problems = [""] * count, {}
    for position, (resized, digest, problem) in enumerate(_decoded(source, size)):
        if resized is None:
            problems[position] = problem
        else:
            pixels[position], digests[position] = resized, digest
        if progress:
            progress(position + 1, count)
    pixels.flush()
    (aside / _INDEX).write_text(json.dumps({"digests": digests, "problems": problems}), encoding="utf-8")


def _allocate(path: Path) -> None:
    """Make the disk give the file its room now: later a full disk would be a bus error in a write through the map."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as problem:
            if problem.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # some file systems cannot
                raise


_Result = tuple[NDArray[np.uint8] | None, str, str]


def _decoded(source: Source, size: int) -> Iterator[_Result]:
    """Decode on all granted CPUs, keeping order, with a bounded number of pictures in memory."""
    jobs = ((picture, record.name) for picture, record in zip(source.pictures(), source.records, strict=True))
    workers = granted_cpus()
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_Result]] = []
        for picture, name in jobs:
            waiting.append(pool.submit(_decode, picture, name, size))
            if len(waiting) >= workers * 8:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)


def _decode(picture: Picture, name: str, size: int) -> _Result:
    """Pixels and digest, or the problem."""
    try:
        full = image.decode(picture, name=name)
    except ImageError as problem:
        return None, "", str(problem)
    digest = hashlib.sha256(repr(full.shape).encode())
    digest.update(np.ascontiguousarray(full).data)
    return image.resize(full, size), digest.hexdigest(), ""


def _sweep(folder: Path) -> None:
    """Remove what killed builds have left."""
    for lock in folder.glob(f".*.part/{_LOCK}"):
        if is_abandoned(lock):
            shutil.rmtree(lock.parent, ignore_errors=True)
