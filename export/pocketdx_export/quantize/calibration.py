"""Calibration: which images, and what ranges the activations have on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pocketdx_export.errors import ExportError
from pocketdx_export.quantize.qdq import Range
from pocketdx_export.quantize.sessions import watching
from pocketdx_train.cache import Decoded, decode_once, default_cache_folder
from pocketdx_train.run import Run
from pocketdx_train.sources import open_source

Pixels = NDArray[np.uint8]

SEED = 0
# Beyond a few hundred images ranges hardly change (Nagel et al., A White Paper on Neural Network Quantization, 2021).
MOST_IMAGES = 256
LEAST_PER_CLASS = 8
_BINS = 2048
# One value in so many goes into the histograms of large maps; ends are exact.
_STRIDE = 7


@dataclass(frozen=True)
class Images:
    """Labelled pictures of one split.

    Attributes:
        names: as in the data.
        truth: int64 [N], class indices.
        pixels: uint8 [N, S, S, 3].
    """

    names: tuple[str, ...]
    truth: NDArray[np.int64]
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Statistics:
    """What an activation was on the calibration images.

    Attributes:
        low, high: ends.
        counts: int64 [bins], a histogram between the ends.
        channel_highs: float64 [C], largest magnitude of each channel.
        size: values for one picture.
    """

    low: float
    high: float
    counts: NDArray[np.int64]
    channel_highs: NDArray[np.float64]
    size: int


@dataclass(frozen=True)
class RunImages:
    """The images of a run, by the split that the run put them in.

    Attributes:
        data: decoded.
        splits: of each record; "" where the run does not know the image.
        labels: class names.
        source: for messages.
    """

    data: Decoded
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    source: Path

    @classmethod
    def open(cls, run: Run, data: Path, cache: Path | None) -> RunImages:
        """Find the run's images in `data`.

        Raises:
            ExportError: none of the images is one of the run's.
            DataError: the data cannot be read.
        """
        source = open_source(data, patient_regex=run.record.settings.patient_regex)
        decoded = decode_once(source, run.record.preprocessing.size, cache or default_cache_folder())
        recorded, labels = run.splits(), run.record.labels
        splits = tuple(
            recorded.get(record.name, "") if record.label in labels and position not in decoded.problems else ""
            for position, record in enumerate(decoded.records)
        )
        if not any(splits):
            raise ExportError(f"{data}: none of its images is one that {run.folder} was trained on; name its own data")
        return cls(decoded, splits, labels, data)

    def split(self, name: str) -> Images:
        """All images of a split."""
        return self._images([position for position, split in enumerate(self.splits) if split == name])

    def calibration(self, most: int = MOST_IMAGES, seed: int = SEED) -> Images:
        """Images of the training split, drawn with `seed`, as many of each class, as far as there are.

        Raises:
            ExportError: a class has fewer than `LEAST_PER_CLASS`.
        """
        by_class: dict[str, list[int]] = {label: [] for label in self.labels}
        for position, (record, split) in enumerate(zip(self.data.records, self.splits, strict=True)):
            if split == "train":
                by_class[record.label].append(position)
        for label, positions in by_class.items():
            if not positions:
                raise ExportError(
                    f"{self.source}: no training image of the class {label} to calibrate int8 on; "
                    "give the whole data that the run was trained on"
                )
            if len(positions) < LEAST_PER_CLASS:
                raise ExportError(
                    f"{self.source}: {len(positions)} training images of the class {label}, int8 is calibrated on "
                    f"{LEAST_PER_CLASS} or more of each; give more, or take --precision w8, which needs none"
                )
        rng = np.random.Generator(np.random.PCG64(seed))
        share = max(LEAST_PER_CLASS, most // len(by_class))
        drawn = [
            position
            for positions in by_class.values()
            for position in rng.permutation(np.array(positions))[:share].tolist()
        ]
        return self._images(sorted(drawn))

    def _images(self, positions: Sequence[int]) -> Images:
        records = [self.data.records[position] for position in positions]
        return Images(
            names=tuple(record.name for record in records),
            truth=np.array([self.labels.index(record.label) for record in records], dtype=np.int64),
            pixels=self.data.pixels[np.array(positions, dtype=np.int64)],
        )


def observe(model: onnx.ModelProto, tensors: Collection[str], pixels: Pixels) -> dict[str, Statistics]:
    """Run `model` over the pictures and watch `tensors`; twice, for ends and for histograms between them.

    Args:
        model: a float graph.
        tensors: names of activations in it.
        pixels: uint8 [N, S, S, 3].
    """
    names = list(tensors)
    batches = watching(model, names)
    ends: dict[str, tuple[float, float]] = {}
    highs: dict[str, NDArray[np.float64]] = {}
    sizes: dict[str, int] = {}

    def see_ends(name: str, values: NDArray[np.float32]) -> None:
        low, high = ends.get(name, (np.inf, -np.inf))
        ends[name] = (min(low, float(values.min())), max(high, float(values.max())))
        rows = values.reshape(*values.shape[:2], -1)
        sizes[name] = values[0].size
        highs[name] = np.maximum(highs.get(name, 0.0), np.abs(rows).max(axis=(0, 2)))

    counts = {name: np.zeros(_BINS, np.int64) for name in names}

    def see_values(name: str, values: NDArray[np.float32]) -> None:
        flat = values.reshape(-1)
        chosen = flat[::_STRIDE] if flat.size > 100 * _BINS else flat
        low, high = ends[name]
        places = ((chosen - low) * (_BINS / max(high - low, 1e-12))).astype(np.int64)
        counts[name] += np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)

    for see in (see_ends, see_values):
        for batch in batches(pixels):
            for name, values in batch.items():
                see(name, values)
    return {name: Statistics(*ends[name], counts[name], highs[name], sizes[name]) for name in names}


def minmax_range(seen: Statistics) -> Range:
    """All that was seen."""
    return Range(seen.low, seen.high)


def percentile_range(seen: Statistics, share: float = 0.99999) -> Range:
    """All but the outermost (1 - share) of the values, half of it at each end."""
    cumulative = np.cumsum(seen.counts) / max(1, seen.counts.sum())
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    low = edges[int(np.searchsorted(cumulative, (1 - share) / 2))]
    high = edges[min(len(seen.counts), int(np.searchsorted(cumulative, 1 - (1 - share) / 2)) + 1)]
    return Range(float(low), float(high))


def least_error_range(seen: Statistics) -> Range:
    """The range whose 256 steps give the least squared error over the histogram, clipping included."""
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    centres, weights = (edges[:-1] + edges[1:]) / 2, seen.counts.astype(np.float64)
    best, least = Range(seen.low, seen.high), np.inf
    for high in np.linspace(1.0, 0.2, 17) * max(seen.high, 0.0):
        for low in np.linspace(1.0, 0.2, 9) * min(seen.low, 0.0) if seen.low < 0 else (0.0,):
            candidate = Range(float(low), float(high))
            scale = candidate.scale()
            steps = np.clip(np.rint(centres / scale.step) + scale.zero, 0, 255) - scale.zero
            # Within a bin values lie evenly: a rounding error smaller than a bin is not seen, so it is added.
            error = float((weights * (steps * scale.step - centres) ** 2).sum() / weights.sum()) + scale.step**2 / 12
            if error < least:
                best, least = candidate, error
    return best


RANGES: Mapping[str, Callable[[Statistics], Range]] = {
    "min-max": minmax_range,
    "percentile 99.999": percentile_range,
    "least squared error": least_error_range,
}
