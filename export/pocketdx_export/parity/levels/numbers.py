"""From the very same pixels, the same logits, probabilities and embedding?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.parity.levels import Road, worst_of
from pocketdx_export.parity.report import Check
from pocketdx_export.parity.tolerances import Tolerances, logit_scale

# An error of nothing at all is an infinite ratio, which JSON does not know.
_SQNR_MOST = 200.0


def number_checks(road: Road, limits: Tolerances) -> list[Check]:
    """The figures of those outputs that the file has."""
    outputs, answers = road.outputs, road.answers
    checks: list[Check] = []
    if "logits" in outputs:
        errors = logit_errors(outputs["logits"], answers.logits)
        checks += [
            _most(road, "logits, max", errors.max(1), "logits_max", limits),
            _overall(road, "logits, mean", float(errors.mean()), "logits_mean", limits),
            _overall(road, "logits, SQNR in dB", sqnr(answers.logits, outputs["logits"]), "sqnr_min", limits, True),
        ]
    if "probabilities" in outputs:
        apart = np.abs(outputs["probabilities"] - answers.probabilities).max(1)
        checks.append(_most(road, "probabilities, max", apart, "probabilities_max", limits))
    if "embedding" in outputs:
        angle = _angles(outputs["embedding"], answers.embedding)
        worst = worst_of(-angle.cosine)
        checks += [
            Check(
                "numbers",
                road.name,
                "embedding cosine",
                float(angle.cosine[worst]),
                limits.cosine_min,
                True,
                road.feeds[worst].name,
                "cosine_min",
            ),
            _most(road, "embedding length, off 1", np.abs(angle.length - 1), "length_max", limits),
        ]
    return checks


def logit_errors(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Absolute differences [N, C], each row divided by its `logit_scale`."""
    scales = np.array([logit_scale(row) for row in reference])
    errors: NDArray[np.float64] = np.abs(ours.astype(np.float64) - reference) / scales[:, None]
    return errors


def sqnr(reference: NDArray[np.floating], ours: NDArray[np.floating]) -> float:
    """Signal to quantization noise ratio in dB: 10 log10 of the reference's energy by that of the difference."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(ours.astype(np.float64) - reference).sum())
    if np.isnan(noise) or signal == 0:
        return float("nan")
    return _SQNR_MOST if noise == 0 else min(_SQNR_MOST, 10 * float(np.log10(signal / noise)))


@dataclass(frozen=True)
class _Angles:
    cosine: NDArray[np.float64]
    length: NDArray[np.float64]


def _angles(ours: NDArray[np.float32], reference: NDArray[np.float64]) -> _Angles:
    vectors = ours.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(length > 0, (vectors * reference).sum(1) / length, np.nan)
    return _Angles(cosine, length)


def _most(road: Road, name: str, values: NDArray[np.floating], limit: str, limits: Tolerances) -> Check:
    row = worst_of(values)
    most = getattr(limits, limit)
    return Check("numbers", road.name, name, float(values[row]), most, worst=road.feeds[row].name, limit=limit)


def _overall(road: Road, name: str, value: float, limit: str, limits: Tolerances, at_least: bool = False) -> Check:
    return Check("numbers", road.name, name, value, getattr(limits, limit), at_least, limit=limit)
