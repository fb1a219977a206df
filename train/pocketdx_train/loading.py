"""Batches for the loop. All that is random is a function of (seed, epoch, image), so a resumed run repeats it exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from pocketdx_train.augment import Augmentation

Item = tuple[torch.Tensor, int, int]


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well spread (BLAKE2)."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class EpochSampler(Sampler[tuple[int, int]]):
    """The order of the images in each epoch, as (epoch, position) pairs; Lightning tells it the epoch.

    Args:
        count: number of images N.
        seed: of the order.
        weights: float64 [N]: how likely each image is drawn (with replacement); None is a permutation.
    """

    def __init__(self, count: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.count = count
        self.seed = seed
        self.weights = None if weights is None else weights / weights.sum()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.Generator(np.random.PCG64(mix(self.seed, self.epoch)))
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            order = rng.choice(self.count, size=self.count, p=self.weights)
        return iter([(self.epoch, int(position)) for position in order])


class TrainingSet(Dataset[Item]):
    """Augmented pictures: (uint8 [3, S, S], label, number in the set), by (epoch, number).

    Args:
        pixels: uint8 [N, S, S, 3], all images.
        positions: int64 [M]: those of this set.
        labels: class indices of all N images.
        augment: uint8 [3, S, S] to the same.
        seed: of the augmentation.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        positions: NDArray[np.int64],
        labels: Sequence[int],
        augment: Augmentation,
        seed: int,
    ) -> None:
        self.pixels = pixels
        self.positions = positions
        self.labels = labels
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, number = key
        position = int(self.positions[number])
        picture = as_tensor(self.pixels[position])
        # Its own random state: the outcome does not depend on which worker draws it, or after which other image.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, epoch, number))
            augmented = self.augment(picture)
        return augmented, self.labels[position], number


class PlainSet(Dataset[Item]):
    """Pictures as they are: (uint8 [3, S, S], label, number in the set), by number."""

    def __init__(
        self, pixels: NDArray[np.uint8], positions: NDArray[np.int64], labels: Sequence[int]
    ) -> None:
        self.pixels = pixels
        self.positions = positions
        self.labels = labels

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Item:
        position = int(self.positions[number])
        return as_tensor(self.pixels[position]), self.labels[position], number


def as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """A copy of one picture [S, S, 3] as a tensor [3, S, S]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Weight of each class, float64 [C]: the inverse of its share, 1 on average over the images."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1).astype(np.float64))
