"""Two classifiers on the same pictures: tests and intervals for the difference, none of which needs a distribution.

All differences are ours - reference. Each function says which paper it follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketdx_train.bootstrap import Resampler

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_Z = 1.959963984540054  # normal quantile of 0.975
_TAIL = 0.025


@dataclass(frozen=True)
class Paired:
    """A difference between two figures on the same pictures.

    Attributes:
        reference: the first figure.
        ours: the second.
        low, high: 95 % interval of ours - reference.
        p: two-sided, of no difference; None where it is not defined.
        test: its name.
        units: pictures or patients that it rests on.
    """

    reference: float
    ours: float
    low: float
    high: float
    p: float | None
    test: str
    units: int


def smallest_interval(units: int) -> float:
    """How large a difference may hide behind `units` pictures of which none shows any: 1 - 0.025 ** (1 / units).

    Clopper & Pearson (1934). Two sides that rank a handful of pictures alike have no variance at all between them, and
    an interval of width 0 would call a set of five proof.
    """
    return 1.0 - float(_TAIL ** (1.0 / units)) if units else 1.0


def mcnemar_exact(only_reference: int, only_ours: int) -> float:
    """Two-sided exact p of paired decisions, from the pictures that only one side has right.

    McNemar (1947) with the binomial distribution: each discordant picture goes either way with probability 1/2.
    """
    discordant = only_reference + only_ours
    fewer = min(only_reference, only_ours)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**discordant))


def tango_interval(only_reference: int, only_ours: int, units: int) -> tuple[float, float]:
    """95 % score interval of the difference of two paired proportions.

    Tango, Statistics in Medicine 1998;17:891-908. It holds at small numbers, and has a width when nothing differs.

    Args:
        only_reference: pictures that only the reference has right.
        only_ours: pictures that only ours has right.
        units: all pictures, at least 1.
    """
    estimate = (only_ours - only_reference) / units

    def score(difference: float) -> float:
        b, c, n = only_ours, only_reference, units
        linear = (2 * n - b + c) * difference - b - c
        constant = -c * difference * (1 - difference)
        q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * q + difference * (1 - difference))
        away = b - c - n * difference
        return away / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, away) if away else 0.0

    # The score falls as the difference rises.
    low = -1.0 if estimate <= -1 else _crossing(lambda d: score(d) - _Z, -1.0, estimate)
    high = 1.0 if estimate >= 1 else _crossing(lambda d: score(d) + _Z, estimate, 1.0)
    return low, high


def proportions(reference: Bools, ours: Bools) -> Paired:
    """Paired shares of true values, [n] each; n at least 1."""
    only_reference = int((reference & ~ours).sum())
    only_ours = int((ours & ~reference).sum())
    low, high = tango_interval(only_reference, only_ours, len(reference))
    return Paired(
        float(reference.mean()),
        float(ours.mean()),
        low,
        high,
        mcnemar_exact(only_reference, only_ours),
        "exact McNemar, Tango's interval",
        len(reference),
    )


def delong(positive: Bools, reference: Floats, ours: Floats) -> Paired:
    """Paired AUCs.

    DeLong, DeLong & Clarke-Pearson, Biometrics 1988;44:837-845, by mid-ranks as Sun & Xu, IEEE Signal Processing
    Letters 2014;21:1389-1393. The interval is never narrower than `smallest_interval` of the rarer side.

    Args:
        positive: bool [N], both values in it.
        reference, ours: finite scores [N], larger for positives.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    areas, v10, v01 = [], [], []
    for scores in (reference, ours):
        x, y = scores[positive], scores[~positive]
        ranks_all = midranks(np.concatenate([x, y]))
        of_positives, of_negatives = midranks(x), midranks(y)
        areas.append(float((ranks_all[:m].sum() - m * (m + 1) / 2) / (m * n)))
        v10.append((ranks_all[:m] - of_positives) / n)
        v01.append(1 - (ranks_all[m:] - of_negatives) / m)
    difference = areas[1] - areas[0]
    variance = _variance(v10[1] - v10[0]) / m + _variance(v01[1] - v01[0]) / n
    deviation = math.sqrt(variance)
    p = math.erfc(abs(difference) / deviation / math.sqrt(2)) if deviation > 0 else (1.0 if difference == 0 else 0.0)
    half = max(_Z * deviation, smallest_interval(min(m, n)))
    return Paired(areas[0], areas[1], max(-1.0, difference - half), min(1.0, difference + half), p, "DeLong", min(m, n))


def bootstrap(
    figure: Callable[[Floats], tuple[Floats, Floats]],
    resampler: Resampler,
    units: int,
    *,
    resamples: int,
    seed: int,
) -> Paired:
    """A difference of any two figures, over resamples of patients (or pictures) that meet both sides.

    The percentile interval, never narrower than `smallest_interval`; p from the share of resamples on the other side
    of 0 (Efron & Tibshirani 1993, chapter 16).

    Args:
        figure: from picture weights [N, R] to both sides' figures, [R] each; NaN where undefined.
        resampler: draws the weights.
        units: patients or pictures that could have shown a difference.
        resamples: R in all.
        seed: of the draw.
    """
    alone = np.ones((resampler.images, 1))
    reference, ours = (float(side[0]) for side in figure(alone))
    drawn = np.concatenate([b - a for a, b in map(figure, resampler.blocks(resamples, seed))])
    drawn = drawn[~np.isnan(drawn)]
    estimate, floor = ours - reference, smallest_interval(units)
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL]) if len(drawn) else (-1.0, 1.0)
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Paired(
        reference,
        ours,
        max(-1.0, min(float(low), estimate - floor)),
        min(1.0, max(float(high), estimate + floor)),
        min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)),
        f"bootstrap of {'patients' if resampler.patient_of is not None else 'images'}, {resamples} resamples",
        units,
    )


def clustered(patients: Sequence[Hashable | None]) -> bool:
    """Whether a patient has several pictures, so that tests that take pictures for independent do not fit."""
    known = [patient for patient in patients if patient is not None]
    return len(set(known)) < len(known)


def midranks(values: Floats) -> Floats:
    """Ranks from 1, equals sharing the mean of theirs, [N]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    ranks: Floats = ((upper - counts + 1 + upper) / 2)[inverse].astype(np.float64)
    return ranks


def _variance(values: Floats) -> float:
    """Of a sample; 0 for a single value, which has none (`smallest_interval` then speaks for it)."""
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _crossing(falling: Callable[[float], float], left: float, right: float) -> float:
    for _ in range(60):
        middle = (left + right) / 2
        if falling(middle) > 0:
            left = middle
        else:
            right = middle
    return (left + right) / 2
