"""From the image file to the answer: the same class, by its name, on both sides?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.agreement import countable
from pocketdx_export.parity.levels import Road
from pocketdx_export.parity.levels.numbers import logit_errors
from pocketdx_export.parity.levels.pixels import SAME
from pocketdx_export.parity.reference import Answers
from pocketdx_export.parity.report import Check, Flip
from pocketdx_export.parity.tolerances import Tolerances
from pocketdx_runtime.manifest import Thresholds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """What one side decides, its columns in the order of the run's labels.

    Attributes:
        probabilities: float64 [N, C].
        scores: float64 [N, C], log odds of each class: ordered as the probabilities are, but without their rounding.
        found: bool [N, C], whether a class counts as found: at its threshold, or else the most probable.
        top: int64 [N], the most probable class.
    """

    probabilities: Floats
    scores: Floats
    found: NDArray[np.bool_]
    top: NDArray[np.int64]


def side_of(
    outputs: dict[str, NDArray[np.float32]], temperature: float, thresholds: Thresholds, order: Sequence[int]
) -> Side:
    """One side's decisions, by its own outputs, thresholds and names.

    Args:
        outputs: with "logits", "probabilities" or both.
        temperature: for probabilities where there are logits only.
        thresholds: the side's own.
        order: for each of the run's labels, its column on this side.
    """
    columns = list(order)
    probabilities = outputs.get("probabilities")
    if "logits" in outputs:
        scaled = outputs["logits"].astype(np.float64) / temperature
        scores = scaled - _log_sum_of_others(scaled)
        top = outputs["logits"].argmax(1)
        own = _softmax(scaled) if probabilities is None else probabilities.astype(np.float64)
    else:
        assert probabilities is not None
        own = probabilities.astype(np.float64)
        with np.errstate(divide="ignore"):
            scores = np.log(own) - np.log1p(-own)
        top = own.argmax(1)
    most_probable = np.arange(own.shape[1]) == top[:, None]
    found = most_probable if thresholds.values is None else own >= np.array(thresholds.values)
    to_run = np.argsort(columns)  # which of the run's labels a column of this side is
    return Side(own[:, columns], scores[:, columns], found[:, columns], to_run[top])


def decision_checks(
    road: Road,
    ours: Side,
    reference: Side,
    end_to_end: Answers,
    labels: Sequence[str],
    limits: Tolerances,
    *,
    lossy: bool,
) -> list[Check]:
    """Agreement of the most probable class and at each class's threshold.

    Args:
        road: the runtime's.
        ours: the file's decisions.
        reference: the full model's, on its own pixels.
        end_to_end: the full model's answers, on its own pixels.
        labels: the run's.
        limits: tolerances.
        lossy: the precision rounds on purpose. Then one flip is let pass where pictures are few (`countable`).
    """
    names = road.names
    if lossy:
        limits = replace(limits, agreement_min=countable(limits.agreement_min, len(names)))
    checks = [_agreement("top-1 agreement", ours.top == reference.top, names, limits)]
    if not np.array_equal(reference.found, np.arange(len(labels)) == reference.top[:, None]) or not np.array_equal(
        ours.found, np.arange(len(labels)) == ours.top[:, None]
    ):
        checks += [
            _agreement(f"agreement at {label}'s threshold", ours.found[:, k] == reference.found[:, k], names, limits)
            for k, label in enumerate(labels)
        ]
    if "logits" in road.outputs and road.pixel_max.max() < SAME:
        # Then the whole way must be as close as the network alone.
        value = float(logit_errors(road.outputs["logits"], end_to_end.logits).max())
        checks.append(
            Check("decisions", road.name, "logits end to end, max", value, limits.logits_max, limit="logits_max")
        )
    return checks


def flips(road: Road, ours: Side, reference: Side, truth: NDArray[np.int64], labels: Sequence[str]) -> tuple[Flip, ...]:
    """Every picture that is decided differently, those of the largest difference first."""
    found = []
    for position, feed in enumerate(road.feeds):
        changed = np.flatnonzero(ours.found[position] != reference.found[position]).tolist()
        moved = ours.top[position] != reference.top[position]
        found += [
            Flip(
                picture=feed.name,
                row=feed.row,
                label=labels[k],
                truth=labels[truth[feed.row]],
                reference=float(reference.probabilities[position, k]),
                ours=float(ours.probabilities[position, k]),
                kind="top-1" if moved else "threshold",
            )
            # Of two classes that change places, the one that the full model names.
            for k in ([int(reference.top[position])] if moved else changed)
        ]
    return tuple(sorted(found, key=lambda flip: -abs(flip.ours - flip.reference)))


def _agreement(name: str, same: NDArray[np.bool_], names: Sequence[str], limits: Tolerances) -> Check:
    flipped = [names[row] for row in np.flatnonzero(~same)[:3]]
    value = float(same.mean())
    return Check("decisions", "runtime", name, value, limits.agreement_min, True, ", ".join(flipped), "agreement_min")


def _softmax(scaled: Floats) -> Floats:
    exponentials = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(1, keepdims=True)
    return probabilities


def _log_sum_of_others(scaled: Floats) -> Floats:
    """log of the sum of exp over all other columns, [N, C]."""
    columns = []
    for k in range(scaled.shape[1]):
        others = np.delete(scaled, k, axis=1)
        most = others.max(1)
        columns.append(most + np.log(np.exp(others - most[:, None]).sum(1)))
    return np.stack(columns, axis=1)
