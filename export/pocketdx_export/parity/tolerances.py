"""How far an exported file may be from the full model before parity fails: one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.errors import ParityError


@dataclass(frozen=True)
class Tolerances:
    """The limits for one precision. "At most" but for agreement and cosine, which are "at least".

    Attributes:
        pixel_max: grey levels, at the worst pixel. Pillow rounds to whole grey levels after each of its two passes,
            half a level each; the graph does not round.
        pixel_mean: grey levels, over a picture. A wrong filter, crop or half-pixel shift shows here first.
        scaled_max, scaled_mean: the same where the runtime decodes a large JPEG at a reduced scale: 0.1 levels on
            average and 1 or 2 at most for photographs, up to 0.36 and 10 for sharp texture with chroma halved across.
        logits_max, logits_mean: absolute difference, both sides fed the same pixels; divided by `logit_scale`.
        saturation_max: absolute difference of logits between integer kernels and the same graph computed in float, by
            `logit_scale`; rounding in another order makes a few hundredths, saturation whole logits.
        sqnr_min: dB, of all logits: their energy by that of the difference.
        probabilities_max: absolute difference, both sides fed the same pixels.
        cosine_min: of the two embeddings of one picture.
        length_max: how far an embedding's length may be from 1.
        agreement_min: share of pictures with the same top-1, and with the same verdict at each class's threshold,
            each side on its own pixels.
        auc_max: absolute difference of macro AUC, each side on its own pixels.
    """

    pixel_max: float
    pixel_mean: float
    scaled_max: float
    scaled_mean: float
    logits_max: float
    logits_mean: float
    probabilities_max: float
    cosine_min: float
    length_max: float
    agreement_min: float
    auc_max: float
    sqnr_min: float = 0.0
    saturation_max: float = 0.0


def logit_scale(logits: NDArray[np.floating[Any]]) -> float:
    """By how much differences of these logits may be larger: 1 up to 10, then in proportion to the largest.

    float32 has seven digits, so a network whose logits are in the hundreds cannot repeat them to 1e-4.
    """
    return max(1.0, float(np.abs(logits).max()) / 10.0) if np.isfinite(logits).all() else 1.0


@dataclass(frozen=True)
class ToleranceTable:
    """Tolerances by precision."""

    by_precision: Mapping[str, Tolerances]

    def of(self, precision: str, source: str) -> Tolerances:
        """The row for a precision.

        Raises:
            ParityError: there is none.
        """
        if precision not in self.by_precision:
            raise ParityError(f"{source}: no tolerances are known for the precision {precision}")
        return self.by_precision[precision]

    def changed(self, changes: Mapping[str, float]) -> ToleranceTable:
        """The table with other limits.

        Args:
            changes: by "PRECISION.NAME", such as "fp32.logits_max", or "NAME" for all precisions.

        Raises:
            ParityError: there is no such precision or name, or the limit is not a number that a limit can be.
        """
        names = [each.name for each in fields(Tolerances)]
        table = dict(self.by_precision)
        for key, value in changes.items():
            precision, _, name = key.rpartition(".")
            if name not in names:
                raise ParityError(f"{key}: no such tolerance; there are {', '.join(names)}")
            if precision and precision not in table:
                raise ParityError(f"{key}: no such precision; there are {', '.join(table)}")
            if not math.isfinite(value) or value < 0:
                raise ParityError(f"{key}: {value} is no tolerance; give a number from 0 on")
            for each in (precision,) if precision else tuple(table):
                table[each] = replace(table[each], **{name: value})
        return ToleranceTable(MappingProxyType(table))

    def golden(self) -> dict[str, dict[str, float]]:
        """What `golden.npz` holds: by precision and output, the largest absolute difference."""
        return {
            precision: {
                "logits": each.logits_max * _drawn(precision),
                "probabilities": min(1.0, each.probabilities_max * _drawn(precision)),
                # Two unit vectors whose cosine is c are sqrt(2 - 2c) apart; no component can differ by more.
                "embedding": (2 - 2 * each.cosine_min) ** 0.5,
            }
            for precision, each in self.by_precision.items()
            # The pictures are drawn, unlike any that int8 was calibrated on: its limits say nothing of them.
            if precision != "int8"
        }


def _drawn(precision: str) -> float:
    """Drawn pictures are unlike any the network knows, and rounded weights show more there than on real ones.

    So a lossy precision's golden limits only tell a wrong file from a right one; that a right one computes rightly on
    another device is asked of its own answers (`pocketdx_runtime.selftest`).
    """
    return 1.0 if precision == "fp32" else 10.0


_FP32 = Tolerances(
    pixel_max=1.05,
    pixel_mean=0.35,
    scaled_max=12.0,
    scaled_mean=0.5,
    logits_max=1e-4,
    logits_mean=2e-5,
    probabilities_max=1e-4,
    cosine_min=1 - 1e-7,
    length_max=1e-5,
    agreement_min=0.995,
    auc_max=0.002,
    sqnr_min=80.0,
)

# Decisions are the budget of a lossy precision (agreement, AUC); its limits on numbers catch a wrong file early.
TOLERANCES = ToleranceTable(
    MappingProxyType(
        {
            "fp32": _FP32,
            "fp16": replace(
                _FP32,
                logits_max=0.03,
                logits_mean=0.005,
                sqnr_min=40.0,
                probabilities_max=0.01,
                cosine_min=0.9999,
                agreement_min=0.995,
                auc_max=0.001,
            ),
            "w8": replace(
                _FP32,
                logits_max=0.5,
                logits_mean=0.1,
                sqnr_min=15.0,
                probabilities_max=0.1,
                cosine_min=0.995,
                agreement_min=0.995,
                auc_max=0.001,
            ),
            "int8": replace(
                _FP32,
                logits_max=1.5,
                logits_mean=0.3,
                sqnr_min=8.0,
                saturation_max=0.5,
                probabilities_max=0.25,
                cosine_min=0.97,
                agreement_min=0.99,
                auc_max=0.002,
            ),
        }
    )
)
