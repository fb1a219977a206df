"""The figures of a classifier as functions of image weights.

A bootstrap resample is a vector of weights: how often each image was drawn. Everything here takes a block of
such vectors, float64 [N, R], and returns one value per column, so that R resamples cost a handful of array
operations instead of R evaluations. A column of ones gives the plain estimate. What is 0/0 is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

OVERALL = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1")
PER_CLASS = ("auc", "sensitivity", "specificity", "f1")


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN, without a warning, where the denominator is 0."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


@dataclass(frozen=True, eq=False)
class RankedScores:
    """Where each positive's score falls among the negatives: all of the scores that an AUC depends on."""

    positives: Ints
    """Rows of the positives, [P]."""
    negatives: Ints
    """Rows of the negatives by rising score, [Q]."""
    below: Ints
    """For each positive, how many negatives score less, [P]."""
    up_to: Ints
    """For each positive, how many negatives score less or the same, [P]."""

    @classmethod
    def of(cls, positive: Bools, scores: Floats | Ints) -> RankedScores:
        """Rank ``scores`` [N] of the rows where ``positive`` [N] is true among those where it is not."""
        positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ladder = scores[negatives]
        return cls(
            positives,
            negatives,
            np.searchsorted(ladder, scores[positives], side="left").astype(np.int64),
            np.searchsorted(ladder, scores[positives], side="right").astype(np.int64),
        )

    def auc(self, weights: Floats) -> Floats:
        """Area under the ROC curve for each column of ``weights`` [N, R]; NaN where one side weighs nothing.

        The Mann-Whitney statistic with mid-ranks: the weighted share of (positive, negative) pairs in which
        the positive scores higher, a tie counting half (Hanley & McNeil 1982). Exact for whole weights.
        """
        ladder = np.zeros((len(self.negatives) + 1, weights.shape[1]))
        np.cumsum(weights[self.negatives], axis=0, out=ladder[1:])
        positive = weights[self.positives]
        wins = np.einsum("pr,pr->r", positive, ladder[self.below])
        wins += np.einsum("pr,pr->r", positive, ladder[self.up_to])
        return divide(wins, 2.0 * positive.sum(axis=0) * ladder[-1])


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums the rows of a weight block that carry the same code: ``bincount`` for every column at once."""

    order: Ints
    starts: Ints
    codes: Ints
    size: int

    @classmethod
    def of(cls, codes: Ints, size: int, rows: Bools | None = None) -> RowSums:
        """Codes [N] in 0..``size``-1; ``rows`` [N] leaves out the rows where it is false."""
        kept = np.arange(len(codes)) if rows is None else np.flatnonzero(rows)
        order = kept[np.argsort(codes[kept], kind="stable")]
        present, starts = np.unique(codes[order], return_index=True)
        return cls(order, starts.astype(np.int64), present, size)

    def __call__(self, weights: Floats) -> Floats:
        """Sum ``weights`` [N, R] by code: [size, R]."""
        sums = np.zeros((self.size, weights.shape[1]))
        if len(self.codes):
            sums[self.codes] = np.add.reduceat(weights[self.order], self.starts, axis=0)
        return sums


@dataclass(frozen=True, eq=False)
class Figures:
    """All figures of one set; built once, called for each block of weights."""

    truth: RowSums
    said: RowSums
    right: RowSums
    ranked: tuple[RankedScores, ...]
    """One per class; of two classes, one for both, whose AUCs are the same."""

    @classmethod
    def of(cls, truth: Ints, said: Ints, scores: Floats) -> Figures:
        """``truth`` and ``said`` [N] in 0..C-1, ``scores`` [N, C] without NaN."""
        classes = scores.shape[1]
        if classes == 2:
            ranked = [RankedScores.of(truth == 1, binary_ranks(scores))]
        else:
            ranked = [RankedScores.of(truth == k, scores[:, k]) for k in range(classes)]
        return cls(
            RowSums.of(truth, classes),
            RowSums.of(said, classes),
            RowSums.of(truth, classes, rows=truth == said),
            tuple(ranked),
        )

    def names(self) -> list[str]:
        """Name the rows that a call returns: ``auc``, ..., then ``auc/0``, ``auc/1``, ..."""
        return [*OVERALL, *(f"{figure}/{k}" for figure in PER_CLASS for k in range(self.truth.size))]

    def __call__(self, weights: Floats) -> Floats:
        """Compute all figures for ``weights`` [N, R]: [rows, R] in the order of :meth:`names`."""
        truth, said, right = self.truth(weights), self.said(weights), self.right(weights)
        total = truth.sum(axis=0)
        aucs = np.stack([ranked.auc(weights) for ranked in self.ranked])
        per_class = {
            "auc": np.broadcast_to(aucs, truth.shape),
            "sensitivity": divide(right, truth),
            "specificity": divide(total - truth - said + right, total - truth),
            # Without an image of the class F1 is 0 or 0/0 whatever the classifier says: undefined.
            "f1": np.where(truth > 0, divide(2.0 * right, truth + said), np.nan),
        }
        overall = {figure: mean_of_defined(values) for figure, values in per_class.items()}
        overall["accuracy"] = divide(right.sum(axis=0), total)
        overall["balanced_accuracy"] = overall["sensitivity"]
        rows = [overall[figure] for figure in OVERALL]
        return np.concatenate([np.stack(rows), *(per_class[figure] for figure in PER_CLASS)])


def binary_ranks(scores: Floats) -> Ints:
    """Rank [N, 2] by the second column, then by falling first, equals sharing a rank: [N].

    With p0 + p1 = 1 either column gives the order, except where it has rounded to 1 and the other still tells
    the images apart: float32 softmax does that from a logit difference of 17 on.
    """
    order = np.lexsort((-scores[:, 0], scores[:, 1]))
    step = np.any(np.diff(scores[order], axis=0) != 0, axis=1)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.concatenate([[0], np.cumsum(step)])
    return ranks


def mean_of_defined(values: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where everything is."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))
