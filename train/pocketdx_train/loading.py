"""Batches for the loop. All that is random is a function of (seed, epoch, image): a resumed run repeats it exactly."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


class Key(NamedTuple):
    """One drawing of an image.

    Attributes:
        epoch: in which it is drawn.
        number: of the image in the training set.
        repeat: how often the epoch has drawn it before: sampling with replacement should not repeat augmentations.
    """

    epoch: int
    number: int
    repeat: int


class EpochSampler(Sampler[Key]):
    """The order of the images in each epoch.

    It asks for the epoch when it is iterated: Lightning makes the first iterator of a resumed run before it announces
    the epoch, and worker processes draw ahead.

    Args:
        count: number of images N.
        seed: of the order.
        epoch: the epoch that begins.
        weights: float64 [N]: how likely each image is drawn (with replacement); None is a permutation.
        rank: number of this process among those that train together; each draws its own share.
        processes: how many they are. The shares are of one size: up to `processes` - 1 images an epoch are left out.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        epoch: Callable[[], int],
        *,
        weights: NDArray[np.float64] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.count = count
        self.seed = seed
        self.epoch = epoch
        self.weights = None if weights is None else weights / weights.sum()
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch()
        rng = np.random.Generator(np.random.PCG64(mix(self.seed, epoch)))
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            order = rng.choice(self.count, size=self.count, p=self.weights)
        drawn: Counter[int] = Counter()
        keys = []
        for number in order.tolist():
            keys.append(Key(epoch, number, drawn[number]))
            drawn[number] += 1
        return iter(keys[: len(self) * self.processes][self.rank :: self.processes])


class _Pictures(Dataset[Item]):
    """Some of the decoded pictures, with their labels.

    Args:
        pixels: uint8 [N, S, S, 3], all images.
        positions: int64 [M]: those of this set.
        labels: int64 [N], class indices.
    """

    def __init__(self, pixels: NDArray[np.uint8], positions: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self.pixels = pixels
        self.positions = positions
        self.labels = labels

    def __len__(self) -> int:
        return len(self.positions)

    def item(self, number: int) -> Item:
        """uint8 [3, S, S], label, number in the set."""
        position = int(self.positions[number])
        return as_tensor(self.pixels[position]), int(self.labels[position]), number

    def __getstate__(self) -> dict[str, Any]:
        """A worker process that is not forked maps the file anew; the pictures themselves do not travel."""
        state = dict(self.__dict__)
        if isinstance(self.pixels, np.memmap):
            pixels = self.pixels
            state["pixels"] = (str(pixels.filename), pixels.dtype.str, pixels.offset, pixels.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["pixels"], tuple):
            name, dtype, offset, shape = state["pixels"]
            state["pixels"] = np.memmap(name, dtype, mode="r", offset=offset, shape=shape)
        self.__dict__.update(state)


class TrainingSet(_Pictures):
    """Augmented pictures: (uint8 [3, S, S], label, number in the set), by `Key`.

    Args:
        pixels: uint8 [N, S, S, 3], all images.
        positions: int64 [M]: those of this set.
        labels: int64 [N], class indices.
        augment: uint8 [3, S, S] to the same.
        seed: of the augmentation.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        positions: NDArray[np.int64],
        labels: NDArray[np.int64],
        augment: Augmentation,
        seed: int,
    ) -> None:
        super().__init__(pixels, positions, labels)
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: Key) -> Item:
        picture, label, number = self.item(key.number)
        # Its own random state: the outcome does not depend on which worker draws it, or after which other image.
        # On the CPU only: `torch.manual_seed` would reset a GPU's dropout with every picture.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(self.seed, *key))
            augmented = self.augment(picture)
        return augmented, label, number


class PlainSet(_Pictures):
    """Pictures as they are: (uint8 [3, S, S], label, number in the set), by number."""

    def __getitem__(self, number: int) -> Item:
        return self.item(number)


def as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """A copy of one picture [S, S, 3] as a tensor [3, S, S]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Weight of each class, float64 [C]: the inverse of its share, 1 on average over the images."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1).astype(np.float64))
