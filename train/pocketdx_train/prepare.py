"""From a labelled source to what the loop needs: pixels, labels and splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketdx_train.cache import Decoded, Progress, decode_once, default_cache_folder
from pocketdx_train.records import Source
from pocketdx_train.settings import TrainSettings
from pocketdx_train.splits import DataReport, Fractions, assign_splits, report


@dataclass(frozen=True)
class Prepared:
    """The data, ready for the loop.

    Attributes:
        data: decoded images.
        labels: class names.
        splits: of each record; "" where the picture is unreadable.
        report: what was found out.
    """

    data: Decoded
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    report: DataReport

    def positions(self, split: str) -> NDArray[np.int64]:
        """int64 [M]: where the split's images are."""
        return np.array([i for i, found in enumerate(self.splits) if found == split], dtype=np.int64)

    def targets(self) -> NDArray[np.int64]:
        """int64 [N]: class index of every record."""
        index = {label: number for number, label in enumerate(self.labels)}
        return np.array([index[record.label] for record in self.data.records], dtype=np.int64)


def prepare(
    source: Source,
    labels: tuple[str, ...],
    settings: TrainSettings,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Decode and split a data set.

    Args:
        source: the labelled images.
        labels: its classes.
        settings: size, fractions and seeds are looked at.
        cache: folder of decoded images; None is the user's.
        progress: called with (done, all) while pictures are decoded.

    Raises:
        DataError: it cannot be trained on.
    """
    data = decode_once(source, settings.size, cache or default_cache_folder(), progress=progress)
    fractions = Fractions(settings.val_fraction, settings.test_fraction)
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    splits = assign_splits(data, labels, fractions=fractions, seed=seed)
    return Prepared(data, labels, splits, report(data, splits, labels, source.ignored))
