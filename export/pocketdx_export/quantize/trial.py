"""Trials: what a candidate does to decisions, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import erfc, sqrt
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pocketdx_export.agreement import countable
from pocketdx_export.errors import ExportError
from pocketdx_export.quantize.budget import Budget
from pocketdx_export.quantize.calibration import Images
from pocketdx_export.quantize.sessions import logits_of, opened
from pocketdx_train.evaluation import softmax
from pocketdx_train.metrics import auc
from pocketdx_train.shift import shift_mixed

Floats = NDArray[np.float32]
Timer = Callable[[Mapping[str, onnx.ModelProto], int, int], dict[str, list[float]]]

# Sensitivities are means of a continuous figure: so many pictures tell them apart.
SAMPLE = 128
# Standard errors below the mean at which 95 % lie above, of a normal distribution.
_CONFIDENCE = 1.645


@dataclass(frozen=True)
class Decisions:
    """A candidate against fp32 on validation images.

    Attributes:
        agreement: share of the images, as they are, with the same top-1.
        shifted_agreement: the same under simulated shift (`pocketdx_train.shift`): other scanners and years.
        expected_agreement: the share that is to be expected on many such images, from both kinds: an image's top-1
            changes when an error of the size that is typical here passes its margin. Says more than counting where few
            images are close to the border.
        sure_agreement: the least that the expected share is, with a confidence of 95 %: few images make little sure.
        auc_loss: absolute difference of the mean AUC over the classes, as they are.
        shifted_auc_loss: the same under simulated shift.
        error: root mean square of the difference in logits, each row's mean taken off.
        images: how many there were, as they are.
    """

    agreement: float
    shifted_agreement: float
    expected_agreement: float
    sure_agreement: float
    auc_loss: float
    shifted_auc_loss: float
    error: float
    images: int

    def within(self, budget: Budget) -> bool:
        """Whether the images as they are hold the budget, and so do, surely enough, those that are to be expected.

        One counted change is let pass where images are few (`countable`).
        """
        counted = countable(budget.agreement, self.images)
        return self.agreement >= counted and self.sure_agreement >= budget.agreement and self.auc_loss <= budget.auc

    @property
    def lowest_agreement(self) -> float:
        """Of the counted and the sure one. (That under shift is counted on images that are hard on purpose.)"""
        return min(self.agreement, self.sure_agreement)


class Judge:
    """Compares candidates with fp32 on validation images, as they are and under simulated shift.

    Args:
        fp32: the reference graph.
        validation: images of the validation split.
        temperature: of the probabilities.
        seed: of the sample that sensitivities are measured on.

    Raises:
        ExportError: there are no validation images.
    """

    def __init__(self, fp32: onnx.ModelProto, validation: Images, temperature: float, seed: int = 0) -> None:
        if not len(validation):
            raise ExportError("int8: no validation image of the run is in --data; give the whole data of the run")
        tensor = torch.from_numpy(validation.pixels).permute(0, 3, 1, 2)
        shifted = shift_mixed(tensor, torch.arange(len(tensor))).permute(0, 2, 3, 1).contiguous().numpy()
        self.pixels = np.concatenate([validation.pixels, shifted])
        self.truth = validation.truth
        self.temperature = temperature
        self.reference = logits_of(opened(fp32), self.pixels)
        rng = np.random.Generator(np.random.PCG64(seed))
        self.sample = np.sort(rng.permutation(len(self.pixels))[:SAMPLE])

    def error(self, model: onnx.ModelProto) -> float:
        """`Decisions.error` on the sample alone."""
        found = logits_of(opened(model), self.pixels[self.sample])
        return _error(found, self.reference[self.sample])

    def decisions(self, model: onnx.ModelProto) -> Decisions:
        """All images."""
        found = logits_of(opened(model), self.pixels)
        same = found.argmax(axis=1) == self.reference.argmax(axis=1)
        count = len(self.truth)
        losses = [abs(self._auc(found[part]) - self._auc(self.reference[part])) for part in _halves(count)]
        chances = flip_chances(found, self.reference)
        return Decisions(
            agreement=float(same[:count].mean()),
            shifted_agreement=float(same[count:].mean()),
            expected_agreement=1 - float(chances.mean()),
            sure_agreement=1 - float(chances.mean() + _CONFIDENCE * chances.std() / sqrt(len(chances))),
            auc_loss=losses[0],
            shifted_auc_loss=losses[1],
            error=_error(found, self.reference),
            images=count,
        )

    def _auc(self, logits: Floats) -> float:
        """Mean over the classes, one against the rest; those without an example are left out."""
        probabilities = softmax(logits, self.temperature)
        each = [auc(self.truth == label, probabilities[:, label]) for label in range(logits.shape[1])]
        return float(np.nanmean(each))


def _halves(count: int) -> tuple[slice, slice]:
    return slice(0, count), slice(count, None)


def _error(found: Floats, reference: Floats) -> float:
    difference = (found - reference).astype(np.float64)
    return float(np.sqrt(((difference - difference.mean(axis=1, keepdims=True)) ** 2).mean()))


def flip_chances(found: Floats, reference: Floats) -> NDArray[np.float64]:
    """For each image, P(error > margin): float64 [N].

    Errors of the margin are taken as normal with the standard deviation found here. Says more than counting where few
    images are close to the border.
    """
    order = np.argsort(reference, axis=1)
    rows = np.arange(len(reference))
    first, second = order[:, -1], order[:, -2]
    margin = (reference[rows, first] - reference[rows, second]).astype(np.float64)
    deviation = float(np.sqrt((((found[rows, first] - found[rows, second]) - margin) ** 2).mean()))
    if deviation == 0:
        return np.zeros(len(reference))
    return np.array([erfc(each / deviation / sqrt(2)) / 2 for each in margin])


def time_in_turns(models: Mapping[str, onnx.ModelProto], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call on one picture and one thread; the models take turns, A B A B.

    Whatever else the machine does thus meets all of them; compare by `ratio`.

    Args:
        models: graphs by name.
        size: side of the pictures: the network's own, so that the resize costs next to nothing.
        rounds: calls of each; two more, untimed, go before.
    """
    sessions = {name: opened(model, threads=1) for name, model in models.items()}
    picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 2):
        for name, session in sessions.items():
            elapsed = _call(session, picture)
            if number >= 2:
                seconds[name].append(elapsed)
    return seconds


def _call(session: Any, picture: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    session.run(None, {"image": picture})
    return time.perf_counter() - started


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the rounds of slow / fast: each pair was measured within the same moment."""
    return median(a / b for a, b in zip(slow, fast, strict=True))
