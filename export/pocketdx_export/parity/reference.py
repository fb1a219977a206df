"""The reference side: the full network in PyTorch, float32, as it was validated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pocketdx_export.parity.pictures import Pictures
from pocketdx_train.architectures import Network
from pocketdx_train.evaluation import softmax
from pocketdx_train.run import Run

Floats = NDArray[np.float32]

_BATCH = 32


@dataclass(frozen=True)
class Answers:
    """What the network says.

    Attributes:
        logits: float32 [N, C].
        probabilities: float32 [N, C], calibrated.
        embedding: float64 [N, D], of length 1.
    """

    logits: Floats
    probabilities: Floats
    embedding: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """The full model and its answers.

    Attributes:
        run: the full model's.
        pictures: those of the comparison.
    """

    run: Run
    pictures: Pictures
    _known: dict[bytes, tuple[Floats, Floats]] = field(default_factory=dict)

    @cached_property
    def end_to_end(self) -> Answers:
        """The answers to the pictures by the training-time preprocessing, from the files on."""
        return self.of_pixels(self.pictures.expected)

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """int64 [N], the pictures' classes."""
        return np.array([self.run.record.labels.index(label) for label in self.pictures.labels], np.int64)

    @cached_property
    def network(self) -> Network:
        """The network, in evaluation mode."""
        return self.run.network()

    def of_pixels(self, pixels: NDArray[np.uint8]) -> Answers:
        """The answers to pictures of the network's own size, uint8 [N, S, S, 3]."""
        return self._of([self.normalised(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)])

    def of_tensors(self, tensors: Floats) -> Answers:
        """The answers to network inputs, float32 [N, 3, S, S]; those that were seen before cost nothing."""
        return self._of([tensors[start : start + _BATCH] for start in range(0, len(tensors), _BATCH)])

    def normalised(self, pixels: NDArray[np.uint8]) -> Floats:
        """The network's input, float32 [N, 3, S, S], for pixels uint8 [N, S, S, 3]."""
        with torch.inference_mode():
            levels = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
            normalised: Floats = self.network.normalise(levels).contiguous().numpy()
        return normalised

    def grey_levels(self, tensors: Floats) -> Floats:
        """Back from network inputs, float32 [N, 3, S, S], to grey levels, float32 [N, S, S, 3]."""
        network = self.network
        with torch.inference_mode():
            levels = (torch.from_numpy(tensors) * network.std + network.mean) / network.preprocessing.scale
            shown: Floats = levels.permute(0, 2, 3, 1).numpy()
        return shown

    def _of(self, batches: list[Floats]) -> Answers:
        both = [self._batch(np.ascontiguousarray(batch)) for batch in batches]
        logits = np.concatenate([each[0] for each in both])
        features = np.concatenate([each[1] for each in both]).astype(np.float64)
        lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return Answers(logits, softmax(logits, self.run.record.temperature), features / lengths)

    def _batch(self, tensors: Floats) -> tuple[Floats, Floats]:
        # The same bytes come once for every precision and backend whose preprocessing is the same.
        key = hashlib.blake2b(tensors.data, digest_size=16).digest()
        if key not in self._known:
            with torch.inference_mode():
                inputs = torch.from_numpy(tensors).contiguous(memory_format=torch.channels_last)
                features = self.network.features(inputs)
                self._known[key] = (self.network.classify(features).numpy(), features.numpy())
        return self._known[key]
