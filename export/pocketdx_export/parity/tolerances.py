"""How far an exported file may be from the full model before parity fails: one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tolerances:
    """The limits for one precision. "At most" but for agreement and cosine, which are "at least".

    Attributes:
        pixel_max: grey levels, at the worst pixel. Pillow rounds to whole grey levels after each of its two passes,
            half a level each; the graph does not round.
        pixel_mean: grey levels, over a picture. A wrong filter, crop or half-pixel shift shows here first.
        scaled_max, scaled_mean: the same where the runtime decodes a large JPEG at a reduced scale: 0.1 to 0.2 levels
            on average for photographs, up to 0.45 on average and 11 at single pixels for sharp texture.
        logits_max, logits_mean: absolute difference, both sides fed the same pixels; divided by `logit_scale`.
        probabilities_max: absolute difference, both sides fed the same pixels.
        cosine_min: of the two embeddings of one picture.
        length_max: how far an embedding's length may be from 1.
        agreement_min: share of pictures with the same top-1, each side on its own pixels.
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


def logit_scale(logits: NDArray[np.floating[Any]]) -> float:
    """By how much differences of these logits may be larger: 1 up to 10, then in proportion to the largest.

    float32 has seven digits, so a network whose logits are in the hundreds cannot repeat them to 1e-4.
    """
    return max(1.0, float(np.abs(logits).max()) / 10.0) if np.isfinite(logits).all() else 1.0


@dataclass(frozen=True)
class ToleranceTable:
    """Tolerances by precision."""

    by_precision: Mapping[str, Tolerances]

    def golden(self) -> dict[str, dict[str, float]]:
        """What `golden.npz` holds: by precision and output, the largest absolute difference."""
        return {
            precision: {
                "logits": each.logits_max,
                "probabilities": each.probabilities_max,
                # Two unit vectors whose cosine is c are sqrt(2 - 2c) apart; no component can differ by more.
                "embedding": (2 - 2 * each.cosine_min) ** 0.5,
            }
            for precision, each in self.by_precision.items()
        }


TOLERANCES = ToleranceTable(
    MappingProxyType(
        {
            "fp32": Tolerances(
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
            ),
            "w8": Tolerances(
                pixel_max=1.05,
                pixel_mean=0.35,
                scaled_max=12.0,
                scaled_mean=0.5,
                logits_max=0.5,
                logits_mean=0.1,
                probabilities_max=0.1,
                cosine_min=0.995,
                length_max=1e-5,
                agreement_min=0.995,
                auc_max=0.001,
            ),
        }
    )
)
