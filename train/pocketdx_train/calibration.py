"""Calibration: whether a probability of 0.8 is right eight times in ten, and one number that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

TEMPERATURE_BOUNDS = (0.05, 20.0)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Find the T for which softmax(logits / T) fits the labels of held-out images best (Guo et al. 2017).

    The cross-entropy is convex in 1/T; its slope is bisected on log T within ``TEMPERATURE_BOUNDS``. Where
    every held-out image is right, likelihood alone would sharpen without end. So, after Platt (1999), the
    targets are not quite 1: of each image, 1 / (N + 2) belongs to the other classes. N right out of N then
    come to the confidence of Laplace's rule of succession, (N + 1) / (N + 2); elsewhere it hardly matters.

    Args:
        logits: float [N, C], finite, raw scores of images the model was not trained on.
        labels: int [N], 0..C-1.

    Returns:
        T within the bounds, never NaN; 1.0 where the logits cannot tell (all equal, or one class only).

    Raises:
        ValueError: no image, shapes that do not fit, a class out of range, a logit not finite.
    """
    scores, truth = _checked("logits", logits, labels)
    classes = scores.shape[1]
    if classes < 2 or not np.ptp(scores, axis=1).any():
        return 1.0
    # Softmax ignores a shift of a row; with its largest logit at 0 no exponential can overflow.
    scores = scores - scores.max(axis=1, keepdims=True)
    doubt = 1.0 / ((len(truth) + 2) * (classes - 1))  # for each wrong class
    true = scores[np.arange(len(truth)), truth]
    aim = float(np.sum(doubt * scores.sum(axis=1) + (1.0 - classes * doubt) * true))

    def slope(temperature: float) -> float:
        """Derivative of the cross-entropy by 1/T; rises with 1/T."""
        odds = np.exp(scores / temperature)
        return float(np.sum((odds * scores).sum(axis=1) / odds.sum(axis=1))) - aim

    low, high = TEMPERATURE_BOUNDS
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(50):  # halves log(20 / 0.05) = 6 to below float64 resolution
        middle = float(np.sqrt(low * high))
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy (Naeini et al. 2015; Guo et al. 2017, eq. 3): 0 is perfect.

    Images are sorted by the probability of their most probable class into ``bins`` equal intervals ``(a, b]``
    of 0..1; each interval counts by its share of the images.

    Args:
        probabilities: float [N, C], 0..1.
        labels: int [N], 0..C-1.
        bins: at least 1.

    Raises:
        ValueError: as :func:`fit_temperature`, or a probability outside 0..1, or no bin.
    """
    scores, truth = _checked("probabilities", probabilities, labels)
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"probabilities must lie in 0..1, not in {scores.min():g}..{scores.max():g}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence = scores.max(axis=1)
    right = scores.argmax(axis=1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(truth))


def _checked(what: str, values: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    scores, truth = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or not scores.size or truth.shape != scores.shape[:1]:
        raise ValueError(f"{what} must be [N, C] and labels [N] with at least one image: {scores.shape}, {truth.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{what} must be finite: did the training diverge?")
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ValueError(f"labels must be integers in 0..{scores.shape[1] - 1}")
    return scores, truth.astype(np.int64)
