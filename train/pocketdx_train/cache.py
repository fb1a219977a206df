"""Every image decoded and resized once: uint8 on disk, memory-mapped, so that an epoch costs compute, not decoding.

A cache entry is a folder named by what it was made from. It appears whole or not at all; two runs that build the same
one at the same time do each other no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketdx_runtime import image
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.errors import ImageError
from pocketdx_train.errors import DataError
from pocketdx_train.sources import Picture, Record, Source

# Raise it when decoding or resizing changes its results: old entries are then no longer found.
_VERSION = 1

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
        """SHA-256 (hex) over every readable picture's pixels, name, label, patient and given split."""
        digest = hashlib.sha256()
        for record, pixels in zip(self.records, self.digests, strict=True):
            if pixels:
                entry = [record.name, record.label, record.patient, record.split, pixels]
                digest.update(json.dumps(entry).encode())
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
    if not (entry / "index.json").is_file():
        _fill(entry, source, size, progress)
    index = json.loads((entry / "index.json").read_text("utf-8"))
    pixels = np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
    problems = {int(position): why for position, why in index["problems"].items()}
    if len(problems) == len(source.records):
        first = next(iter(problems.values()))
        raise DataError(f"{source.name}: none of its {len(problems)} images can be read; the first: {first}")
    return Decoded(source.records, pixels, tuple(index["digests"]), problems)


def _key(source: Source, size: int) -> str:
    made_from = json.dumps([_VERSION, size, str(Path(source.name).resolve()), source.stamp()])
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def _fill(entry: Path, source: Source, size: int, progress: Progress | None) -> None:
    count = len(source.records)
    needed = count * size * size * 3
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(entry.parent).free
        if free < needed * 1.02:
            raise DataError(
                f"{entry.parent}: {needed / 1e6:.0f} MB are needed for the decoded images and {free / 1e6:.0f} MB "
                "are free; make room or name another folder with --cache"
            )
        aside = Path(tempfile.mkdtemp(prefix=".filling-", dir=entry.parent))
    except OSError as problem:
        raise DataError(
            f"{entry.parent}: cannot be written ({problem.strerror}); name another with --cache"
        ) from problem
    try:
        _write(aside, source, size, progress)
        try:
            aside.rename(entry)
        except OSError:
            # Another run finished the same entry first; its content is the same.
            if not (entry / "index.json").is_file():
                raise
    except OSError as problem:
        raise DataError(
            f"{entry.parent}: {problem.strerror}; make room or name another with --cache"
        ) from problem
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(aside: Path, source: Source, size: int, progress: Progress | None) -> None:
    count = len(source.records)
    path = aside / "pixels.npy"
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            # A full disk must be an error here, not a bus error at some later write through the map.
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    digests, problems = [""] * count, {}
    for position, (resized, digest, problem) in enumerate(_decoded(source, size)):
        if problem:
            problems[position] = problem
        else:
            pixels[position], digests[position] = resized, digest
        if progress:
            progress(position + 1, count)
    pixels.flush()
    del pixels
    index = {"digests": digests, "problems": problems}
    (aside / "index.json").write_text(json.dumps(index), encoding="utf-8")


_Result = tuple[NDArray[np.uint8] | None, str, str | None]


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
    try:
        full = image.decode(picture, name=name)
    except ImageError as problem:
        return None, "", str(problem)
    digest = hashlib.sha256(repr(full.shape).encode())
    digest.update(np.ascontiguousarray(full).data)
    return image.resize(full, size), digest.hexdigest(), None


def batches(
    pixels: NDArray[np.uint8], positions: NDArray[np.int64], size: int
) -> Iterator[NDArray[np.uint8]]:
    """Copies of the pictures at `positions`, uint8 [<=size, S, S, 3] at a time."""
    remaining = iter(positions)
    while chosen := list(islice(remaining, size)):
        yield pixels[chosen]
