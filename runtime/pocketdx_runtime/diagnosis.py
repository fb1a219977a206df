"""From probabilities to an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pocketdx_runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A model's answer for one picture.

    Attributes:
        label: the answer; see `decide`.
        probability: of that label, 0 to 1.
        probabilities: of every label, in the model's order; they sum to 1.
        above_threshold: labels whose probability is at or above their threshold, in the model's order;
            without thresholds the one most probable label.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    above_threshold: tuple[str, ...]


def diagnose(probabilities: Sequence[float], manifest: Manifest) -> Diagnosis:
    """Turn one picture's probabilities, in the order of the manifest's labels, into an answer."""
    values = manifest.thresholds.values
    answer = decide(probabilities, values)
    above = (answer,) if values is None else found(probabilities, values)
    return Diagnosis(
        label=manifest.labels[answer],
        probability=probabilities[answer],
        probabilities=dict(zip(manifest.labels, probabilities, strict=True)),
        above_threshold=tuple(manifest.labels[index] for index in above),
    )


def found(probabilities: Sequence[float], thresholds: Sequence[float]) -> tuple[int, ...]:
    """Indices of the labels at or above their threshold."""
    pairs = enumerate(zip(probabilities, thresholds, strict=True))
    return tuple(index for index, (probability, threshold) in pairs if probability >= threshold)


def decide(probabilities: Sequence[float], thresholds: Sequence[float] | None) -> int:
    """Index of the answer.

    Without thresholds: the most probable label. With two labels the second is the positive one, and its
    threshold alone decides. With more labels: of those at or above their threshold the one that passes it by
    the largest factor (probability / threshold), else the most probable. Ties go to the earlier label.
    """
    if thresholds is None:
        return max(range(len(probabilities)), key=probabilities.__getitem__)
    if len(probabilities) == 2:
        return int(probabilities[1] >= thresholds[1])
    above = found(probabilities, thresholds)
    if not above:
        return decide(probabilities, None)
    return max(above, key=lambda index: probabilities[index] / thresholds[index])
