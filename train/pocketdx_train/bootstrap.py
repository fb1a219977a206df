"""Bootstrap resamples of a labelled set, and intervals from what a figure was on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pocketdx_runtime.manifest import Interval

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

COVERAGE = 0.95
BLOCK_ELEMENTS = 1 << 20
"""Weights held at a time (8 MiB): memory stays flat however many images and resamples there are."""


@dataclass(frozen=True, eq=False)
class Resampler:
    """Draws patients with replacement within strata.

    Stratified, as pROC does by default (Robin et al. 2011): each resample keeps the class mix of the set, so
    the intervals speak of a population with this mix, and a class does not drop out. A patient stands in the
    stratum of the rarest class among its images. All images of a drawn patient come along (cluster bootstrap,
    Field & Welsh 2007): images of one patient resemble each other and are worth less than as many patients.
    """

    patient_of: Ints | None
    """Patient of each image, 0..P-1, [N]; None: every image stands alone."""
    order: Ints
    """Patients (or images) listed stratum by stratum, [P]."""
    first: Floats
    """Position in ``order`` at which the stratum of each slot begins, [P]."""
    room: Floats
    """Size of the stratum of each slot, [P]."""
    images: int

    @classmethod
    def of(cls, labels: Ints, classes: int, groups: Sequence[Hashable] | None) -> Resampler:
        """``labels`` [N] in 0..``classes``-1; ``groups`` [N] the patient of each image, None if unknown."""
        counts = np.bincount(labels, minlength=classes)
        rarity = np.empty(classes, dtype=np.int64)
        rarity[np.argsort(counts, kind="stable")] = np.arange(classes)
        stratum = rarity[labels]
        patient_of = None if groups is None else number_groups(groups)
        if patient_of is not None:
            per_patient = np.full(int(patient_of.max()) + 1, classes, dtype=np.int64)
            np.minimum.at(per_patient, patient_of, stratum)
            stratum = per_patient
        order = np.argsort(stratum, kind="stable")
        _, first, inverse, size = np.unique(stratum[order], return_index=True, return_inverse=True, return_counts=True)
        return cls(
            patient_of,
            order,
            first[inverse].astype(np.float64),
            size[inverse].astype(np.float64),
            len(labels),
        )

    def blocks(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Yield image weights [N, r], ``resamples`` columns in all; the block size changes none of them."""
        generator = np.random.Generator(np.random.PCG64(seed))
        units = len(self.order)
        step = max(1, BLOCK_ELEMENTS // self.images)
        for start in range(0, resamples, step):
            columns = min(step, resamples - start)
            slots = self.first + np.floor(generator.random((columns, units)) * self.room)
            drawn = self.order[slots.astype(np.int64)]
            cells = drawn * columns + np.arange(columns)[:, None]
            counts = np.bincount(cells.ravel(), minlength=units * columns).reshape(units, columns)
            weights = counts.astype(np.float64)
            yield weights if self.patient_of is None else weights[self.patient_of]

    def units(self, rows: NDArray[np.bool_]) -> int:
        """Count the patients (or images) that the images where ``rows`` [N] is true come from."""
        return int(rows.sum()) if self.patient_of is None else len(np.unique(self.patient_of[rows]))


def number_groups(groups: Sequence[Hashable]) -> Ints:
    """Number patients 0..P-1 in order of appearance, [N]; each None is a patient of its own."""
    numbers: dict[Hashable, int] = {}
    return np.array(
        [numbers.setdefault(object() if group is None else group, len(numbers)) for group in groups],
        dtype=np.int64,
    )


def percentile_interval(value: float, drawn: Floats, units: int) -> Interval | None:
    """95 % bootstrap percentile interval of a figure between 0 and 1, widened if need be to hold ``value``.

    A perfect or a nil result is the same in every resample: the bootstrap would call it certain. There the
    exact binomial bound for so many units without exception takes over (Clopper & Pearson 1934).

    Args:
        value: the estimate; NaN if undefined.
        drawn: [R] the figure on each resample; NaN where undefined, which is left out.
        units: patients or images that could have proved a perfect or nil result wrong; at least 1.

    Returns:
        None if ``value`` is undefined.
    """
    if np.isnan(value):
        return None
    tail = (1.0 - COVERAGE) / 2.0
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):  # every resample lost the class
        return Interval(float(value), 0.0, 1.0)
    if value in (0.0, 1.0) and (defined == value).all():
        least = float(tail ** (1.0 / units))
        return Interval(1.0, least, 1.0) if value else Interval(0.0, 0.0, 1.0 - least)
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))
