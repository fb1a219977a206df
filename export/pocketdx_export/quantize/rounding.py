"""Rounding weights to 8 bits so that the layer's outputs, not the weights, change least.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, ICLR 2023, after
Hassibi and Stork, Optimal Brain Surgeon, 1993: weights are rounded one input after the other, and those not yet rounded
take over the error as far as the inputs go together. The bias takes over what is left of the mean, so it is the
covariance of the inputs that counts, not the second moment.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.quantize.moments import Moments
from pocketdx_export.quantize.weights import (
    PAIR_LIMIT,
    Doubles,
    Floats,
    Pairs,
    QuantizedWeight,
    candidates,
    quantize_weight,
)

# Of a channel's largest weight: where it is clipped. The one that changes the channel's outputs least is taken.
_FACTORS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
# Inputs after which what they leave to the others is worked out, all at once.
_BATCH = 64


class Rounder:
    """Rounds the weights of one graph, each once.

    Args:
        moments: of the inputs, by the weight's name; weights without are rounded by themselves.
    """

    def __init__(self, moments: Mapping[str, Moments] | None = None) -> None:
        self._moments = moments or {}
        self._rounded: dict[tuple[str, Pairs], QuantizedWeight] = {}

    def __call__(self, name: str, weight: Floats, pairs: Pairs) -> QuantizedWeight:
        """The weight in 8 bits.

        Args:
            name: of the weight in its graph.
            weight: float32 [O, ...]; the same one each time.
            pairs: see `quantize_weight`.
        """
        key = name, pairs
        if key not in self._rounded:
            moments = self._moments.get(name)
            self._rounded[key] = (
                quantize_weight(weight, pairs) if moments is None else compensated(weight, moments.shrunk, pairs)
            )
        return self._rounded[key]


def compensated(weight: Floats, covariance: Doubles, pairs: Pairs = Pairs.NONE) -> QuantizedWeight:
    """Integers whose errors cancel in the outputs, and the scales that make the least of what is left.

    Args:
        weight: float32 [O, ...].
        covariance: float64 [G, I, I], of the inputs of each group; of full rank.
        pairs: whose magnitudes add up to at most `PAIR_LIMIT`.
    """
    groups, inputs = covariance.shape[:2]
    rows = weight.astype(np.float64).reshape(-1, inputs)
    scales, nearest = candidates(rows, pairs, _FACTORS)

    def by_group(numbers: Doubles) -> Doubles:
        """[G, F * O, I] of [F, G * O, I]."""
        split = numbers.reshape(len(_FACTORS), groups, -1, numbers.shape[2])
        return split.transpose(1, 0, 2, 3).reshape(groups, -1, numbers.shape[2])

    exact, steps = by_group(rows / scales), by_group(scales)
    values = _rounded(exact, covariance, _Bounds(by_group(np.abs(nearest)), pairs))
    errors = (values - exact) * steps
    left = ((errors @ covariance) * errors).sum(axis=2).reshape(groups, len(_FACTORS), -1)  # variance of the outputs
    best = left.argmin(axis=1)[:, np.newaxis, :, np.newaxis]  # [G, 1, O, 1]
    kept = np.take_along_axis(values.reshape(groups, len(_FACTORS), -1, inputs), best, axis=1)
    scale = np.take_along_axis(steps.reshape(groups, len(_FACTORS), -1, 1), best, axis=1)
    return QuantizedWeight(kept.reshape(weight.shape).astype(np.int8), scale.reshape(-1).astype(np.float32))


class _Bounds:
    """How large each integer may become beside the others: those already rounded, and those that are to be.

    Args:
        magnitudes: float64 [G, R, I], of integers that keep to the limit.
        pairs: that are limited.
    """

    def __init__(self, magnitudes: Doubles, pairs: Pairs) -> None:
        self._magnitudes = magnitudes.copy()
        self._pairs = pairs if magnitudes.shape[2] > 1 else Pairs.NONE
        if self._pairs is Pairs.ANY:
            ordered = np.sort(magnitudes, axis=2)
            first, second = ordered[:, :, -1:], ordered[:, :, -2:-1]
            others = np.maximum(np.minimum(first, PAIR_LIMIT - first), second)
            self._any = np.minimum(np.where(magnitudes == first, first, others), 127)

    def of(self, place: NDArray[np.int64]) -> Doubles:
        """Of input `place` [G] of each group: float64 [G, R]."""
        if self._pairs is Pairs.ANY:
            return _at(self._any, place)
        partner = place ^ 1
        if self._pairs is Pairs.NONE or partner.max() >= self._magnitudes.shape[2]:
            return np.full(self._magnitudes.shape[:2], 127.0)
        return np.minimum(PAIR_LIMIT - _at(self._magnitudes, partner), 127.0)

    def rounded(self, place: NDArray[np.int64], values: Doubles) -> None:
        """Take note of what an input was rounded to."""
        np.put_along_axis(self._magnitudes, place[:, np.newaxis, np.newaxis], np.abs(values)[:, :, np.newaxis], axis=2)


def _at(numbers: Doubles, place: NDArray[np.int64]) -> Doubles:
    """Input `place` [G] of each group, [G, R], of [G, R, I]."""
    return np.take_along_axis(numbers, place[:, np.newaxis, np.newaxis], axis=2)[:, :, 0]


def _rounded(exact: Doubles, covariance: Doubles, bounds: _Bounds) -> Doubles:
    """Whole numbers for [G, R, I] numbers: the inputs that vary most first."""
    count = covariance.shape[1]
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    order = np.argsort(-variances, axis=1)
    left = np.take_along_axis(exact, order[:, np.newaxis], axis=2)
    sorted_by = np.take_along_axis(covariance, order[:, :, np.newaxis], axis=1)
    sorted_by = np.take_along_axis(sorted_by, order[:, np.newaxis], axis=2)
    # Row i of the upper factor U of the inverse, U^T U, says how the weights after i make up for an error of weight i.
    # It is the inverse of the upper factor of the matrix itself, which is the lower one of the matrix turned about.
    upper = np.linalg.inv(np.linalg.cholesky(sorted_by[:, ::-1, ::-1])[:, ::-1, ::-1])
    values = np.zeros_like(left)
    for start in range(0, count, _BATCH):
        stop = min(start + _BATCH, count)
        errors = np.zeros_like(left[:, :, start:stop])
        for place in range(start, stop):
            limit = bounds.of(order[:, place])
            values[:, :, place] = np.clip(np.rint(left[:, :, place]), -limit, limit)
            bounds.rounded(order[:, place], values[:, :, place])
            error = (left[:, :, place] - values[:, :, place]) / upper[:, place, place, np.newaxis]
            left[:, :, place + 1 : stop] -= error[:, :, np.newaxis] * upper[:, np.newaxis, place, place + 1 : stop]
            errors[:, :, place - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return np.take_along_axis(values, np.argsort(order, axis=1)[:, np.newaxis], axis=2)
