"""The levels on which a file is compared with the full model; each answers one question, apart from the others.

A level takes what both sides gave and returns checks; nothing here runs a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.parity.pictures import Feed
from pocketdx_export.parity.reference import Answers


@dataclass(frozen=True)
class Road:
    """What one road gave.

    Attributes:
        name: "runtime" or "graph".
        feeds: the M pictures that were fed.
        scaled: bool [M], decoded at a reduced scale by the runtime.
        pixel_max, pixel_mean: float64 [M], grey levels between what the network got and should have got; None where
            the tensor inside the file cannot be seen.
        outputs: the file's, by name, float32 [M, ...].
        answers: PyTorch's, to the very tensors that the file's network got.
    """

    name: str
    feeds: list[Feed]
    scaled: NDArray[np.bool_]
    pixel_max: NDArray[np.float64]
    pixel_mean: NDArray[np.float64]
    outputs: dict[str, NDArray[np.float32]]
    answers: Answers

    @property
    def names(self) -> list[str]:
        """Of the pictures."""
        return [feed.name for feed in self.feeds]


def worst_of(values: NDArray[np.floating]) -> int:
    """Position of the largest; what is not a number is larger than all."""
    return int(np.argmax(np.where(np.isnan(values), np.inf, values)))
