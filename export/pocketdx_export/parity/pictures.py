"""The pictures of a comparison: each decoded once, and shared by every cell of the matrix."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketdx_runtime import image
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_train.evaluation import ChosenSet
from pocketdx_train.sources import Picture

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]

# Pictures that are resampled to other sizes, so that the graph's resize is tested even where every file has its size.
RESAMPLED = 8
_SIZES = ((1.9, 1.3), (0.7, 1.1), (3.3, 3.3), (1.0, 2.0))
# Full-size pictures that are kept for the graph's own resize: a photograph takes 36 MB.
_OWN_MOST, _OWN_BYTES = 256, 512 * 2**20


@dataclass(frozen=True)
class Feed:
    """One picture on its way into a file.

    Attributes:
        name: for reports.
        row: of the compared pictures.
        pixels: uint8 [h, w, 3], what the file gets.
        expected: uint8 [S, S, 3], what the network should get of it: full decode and Pillow's resize.
    """

    name: str
    row: int
    pixels: Pixels
    expected: Pixels


@dataclass(frozen=True)
class Pictures:
    """N pictures, decoded on both roads.

    Attributes:
        names: of the pictures.
        labels: of their classes.
        patients: who they are of, where known.
        expected: uint8 [N, S, S, 3], by the training-time preprocessing, from the files.
        given: uint8 [N, S, S, 3], by PocketDx's runtime, from the same files.
        scaled: rows that the runtime decoded at a reduced scale.
        own: full-size pixels of those that are of another size, by row; of the first `_OWN_MOST` in `order`.
        order: int64 [N], a seeded shuffle of the rows: a slow backend gets the first ones.
        others: how many pictures are of another size than the network's.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    patients: tuple[str | None, ...]
    expected: Pixels
    given: Pixels
    scaled: frozenset[int]
    own: dict[int, Pixels]
    order: NDArray[np.int64]
    others: int

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, most: int | None) -> NDArray[np.int64]:
        """The rows that a backend gets which takes at most so many pictures, in order."""
        return np.sort(self.order[:most])

    def runtime_road(self, rows: NDArray[np.int64]) -> list[Feed]:
        """Pictures as the runtime feeds them: of the network's own size."""
        return [Feed(self.names[row], int(row), self.given[row], self.expected[row]) for row in rows]

    def graph_road(self, rows: NDArray[np.int64], most: int | None) -> list[Feed]:
        """Pictures at their own size, where it is another, and some resampled to others.

        Args:
            rows: of which pictures.
            most: of them; half are resampled ones.
        """
        several = RESAMPLED if most is None else min(RESAMPLED, (most + 1) // 2)
        own = [Feed(self.names[row], int(row), self.own[row], self.expected[row]) for row in rows if row in self.own]
        chosen = own if most is None else own[: most - several]
        return [*chosen, *(self._resampled(number, int(row)) for number, row in enumerate(rows[:several]))]

    def _resampled(self, number: int, row: int) -> Feed:
        size = self.expected.shape[1]
        tall, wide = _SIZES[number % len(_SIZES)]
        height, width = round(tall * size) + 1, round(wide * size) + 2
        original = Image.fromarray(self.own.get(row, self.expected[row]))
        pixels = np.asarray(original.resize((width, height), Image.Resampling.LANCZOS))
        return Feed(f"{self.names[row]} at {width}x{height}", row, pixels, image.resize(pixels, size))


def draw(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """`limit` of `count` positions at random, in order."""
    if limit is None or limit >= count:
        return np.arange(count)
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.sort(rng.choice(count, limit, replace=False))


def decode_pictures(
    chosen: ChosenSet, size: int, *, limit: int | None, seed: int, progress: Progress | None
) -> Pictures:
    """Decode the chosen pictures from their files, on all granted CPUs.

    Args:
        chosen: which.
        size: S, of the network's input.
        limit: only so many, drawn with `seed`.
        seed: of that draw, and of the order in which slow backends get them.
        progress: called with (done, all).

    Raises:
        ImageError: a picture that could be read before cannot be read now.
    """
    positions = chosen.positions[draw(len(chosen.positions), limit, seed)]
    records = [chosen.data.records[position] for position in positions]
    count = len(positions)
    order = np.random.Generator(np.random.PCG64(seed + 1)).permutation(count)
    kept = set(order[:_OWN_MOST].tolist())
    expected, given = _room(count, size), _room(count, size)
    own: dict[int, Pixels] = {}
    scaled: set[int] = set()
    others, held = 0, 0
    for row, both in enumerate(_decoded(chosen, positions, size)):
        full, expected[row], given[row], reduced = both
        if reduced:
            scaled.add(row)
        if full.shape != expected[row].shape:
            others += 1
            if row in kept and held + full.nbytes <= _OWN_BYTES:
                own[row] = full
                held += full.nbytes
        if progress:
            progress(row + 1, count)
    return Pictures(
        names=tuple(record.name for record in records),
        labels=tuple(record.label for record in records),
        patients=tuple(record.patient for record in records),
        expected=expected,
        given=given,
        scaled=frozenset(scaled),
        own=own,
        order=order.astype(np.int64),
        others=others,
    )


def _room(count: int, size: int) -> Pixels:
    """An array that the system may write out to disk: a hundred thousand pictures are 15 GB."""
    with tempfile.TemporaryFile() as file:  # it is gone with the array
        return np.memmap(file, np.uint8, "w+", shape=(count, size, size, 3))


_Both = tuple[Pixels, Pixels, Pixels, bool]


def _decoded(chosen: ChosenSet, positions: NDArray[np.int64], size: int) -> Iterator[_Both]:
    wanted = set(positions.tolist())
    jobs = (
        (record.name, picture)
        for number, (record, picture) in enumerate(zip(chosen.data.records, chosen.source.pictures(), strict=True))
        if number in wanted
    )
    workers = granted_cpus()
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_Both]] = []
        for name, picture in jobs:
            waiting.append(pool.submit(_both_roads, name, picture, size))
            if len(waiting) >= workers * 4:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)


def _both_roads(name: str, picture: Picture, size: int) -> _Both:
    """Full pixels; the training-time and the runtime's pixels; whether the runtime reduced the scale."""
    full = image.decode(picture, name=name)
    reduced = _is_jpeg(picture) and image.may_scale(full.shape[1], full.shape[0], size)
    return full, image.resize(full, size), image.load(picture, size, name=name), reduced


def _is_jpeg(picture: Picture) -> bool:
    if not isinstance(picture, Path):
        return False
    with picture.open("rb") as file:
        return file.read(2) == b"\xff\xd8"
