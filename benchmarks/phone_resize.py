"""What the plain bilinear resize of phone libraries costs against the antialiased one that the network was trained on.

Each test picture goes to the network twice: squashed by Pillow's antialiased filter, as in training and inside the ONNX
files, and by plain bilinear interpolation, which looks at four pixels however much it shrinks: what LiteRT's Task
library, MediaPipe and most apps do. Once as it is, and once enlarged to a photo's size (bicubic), without and with
grain, which an enlarged picture has not and a camera's has. With --tflite, the Task library itself does it on some of
the pictures, to see that it is the same resize (`pocketdx devices setup task_library` first).

    python benchmarks/phone_resize.py run data --large 1000 --tflite bundle/model.fp32.tflite
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import circumstances, table
from numpy.typing import NDArray
from PIL import Image

from pocketdx_export.backends import BACKENDS
from pocketdx_export.formats import manifest_in
from pocketdx_runtime import image
from pocketdx_train.architectures import Network
from pocketdx_train.cache import training_pixels
from pocketdx_train.evaluation import choose_set, softmax
from pocketdx_train.run import Run

Pixels = NDArray[np.uint8]
_BATCH = 32
_GRAIN = 8.0


@dataclass(frozen=True)
class Cost:
    """One kind of picture.

    Attributes:
        name: for people.
        sizes: smallest and largest side of the originals.
        images: how many.
        grey_mean: absolute difference in grey levels, over all pictures.
        grey_max: of the worst pixel.
        logits_median: over pictures, of the largest difference in logits.
        logits_max: the worst picture's.
        agreement: share of pictures with the same top-1.
        accuracy: of the antialiased and of the plain road.
    """

    name: str
    sizes: tuple[int, int]
    images: int
    grey_mean: float
    grey_max: float
    logits_median: float
    logits_max: float
    agreement: float
    accuracy: tuple[float, float]


def plain_bilinear(rgb: Pixels, size: int) -> Pixels:
    """Squash without antialiasing, pixel centres at one half: uint8 [H, W, 3] to uint8 [size, size, 3]."""
    rows, columns = (_taps(extent, size) for extent in rgb.shape[:2])
    (top, bottom, down), (left, right, across) = rows, columns
    values = rgb.astype(np.float32)
    upper, lower = values[top], values[bottom]
    mixed = upper + (lower - upper) * down[:, None, None]
    result = mixed[:, left] + (mixed[:, right] - mixed[:, left]) * across[None, :, None]
    whole: Pixels = np.rint(result).astype(np.uint8)
    return whole


def _taps(extent: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    centres = np.clip((np.arange(size) + 0.5) * extent / size - 0.5, 0, extent - 1)
    low = np.floor(centres).astype(np.int64)
    return low, np.minimum(low + 1, extent - 1), (centres - low).astype(np.float32)


def enlarged(rgb: Pixels, side: int, grain: float, seed: int) -> Pixels:
    """The picture with its longer side at `side` pixels, and Gaussian grain of so many grey levels."""
    factor = side / max(rgb.shape[:2])
    shape = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    large = np.asarray(Image.fromarray(rgb).resize(shape, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.Generator(np.random.PCG64(seed)).normal(0, grain, (*large.shape[:2], 1)) if grain else 0.0
    whole: Pixels = np.clip(np.rint(large + noise), 0, 255).astype(np.uint8)
    return whole


def logits_of(network: Network, pictures: list[Pixels]) -> NDArray[np.float32]:
    """Float32 [N, C] of pictures of the network's size."""
    parts = []
    for start in range(0, len(pictures), _BATCH):
        batch = torch.from_numpy(np.stack(pictures[start : start + _BATCH])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            parts.append(network(batch).numpy())
    return np.concatenate(parts)


def cost(name: str, originals: Iterable[Pixels], network: Network, truth: NDArray[np.int64]) -> Cost:
    """Both roads over all pictures."""
    size = network.preprocessing.size
    trained, plain = [], []
    sides: list[int] = []
    for each in originals:  # one at a time: large ones fill the memory
        trained.append(training_pixels(each, size))
        plain.append(plain_bilinear(each, size))
        sides += each.shape[:2]
    apart = [np.abs(a.astype(np.int16) - b.astype(np.int16)) for a, b in zip(trained, plain, strict=True)]
    ours, theirs = logits_of(network, trained), logits_of(network, plain)
    worst = np.abs(ours - theirs).max(1)
    return Cost(
        name=name,
        sizes=(min(sides), max(sides)),
        images=len(trained),
        grey_mean=float(np.mean([each.mean() for each in apart])),
        grey_max=float(max(each.max() for each in apart)),
        logits_median=float(np.median(worst)),
        logits_max=float(worst.max()),
        agreement=float((ours.argmax(1) == theirs.argmax(1)).mean()),
        accuracy=(float((ours.argmax(1) == truth).mean()), float((theirs.argmax(1) == truth).mean())),
    )


def report(costs: list[Cost]) -> str:
    head = ["pictures", "pixels a side", "images", "grey levels, mean", "max", "logits, median", "max", "same top-1"]
    rows = [
        [
            each.name,
            f"{each.sizes[0]} to {each.sizes[1]}",
            str(each.images),
            f"{each.grey_mean:.2f}",
            f"{each.grey_max:.0f}",
            f"{each.logits_median:.3f}",
            f"{each.logits_max:.2f}",
            f"{each.agreement:.2%}",
            f"{each.accuracy[0]:.4f}",
            f"{each.accuracy[1]:.4f}",
        ]
        for each in costs
    ]
    return table([*head, "accuracy, antialiased", "accuracy, plain"], rows)


def task_library(path: Path, originals: list[Pixels], network: Network, temperature: float) -> str:
    """How far the Task library's own resize and answer are from plain bilinear and PyTorch's."""
    backend = next(each for each in BACKENDS if each.name == "task-library")
    with backend.opened(path, manifest_in("tflite", path)) as run:
        answers = run(originals)["probabilities"]
    size = network.preprocessing.size

    def apart(pictures: list[Pixels]) -> float:
        return float(np.abs(answers - softmax(logits_of(network, pictures), temperature)).max())

    plain = apart([plain_bilinear(each, size) for each in originals])
    trained = apart([training_pixels(each, size) for each in originals])
    return (
        f"The Task library itself, {len(originals)} of the last: probabilities within {plain:.4f} of plain bilinear "
        f"and PyTorch, within {trained:.4f} of antialiased and PyTorch."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained")
    parser.add_argument("data", type=Path, help="its labelled images; the test split is taken")
    parser.add_argument("--large", type=int, default=1000, help="longer side of the enlarged pictures [1000]")
    parser.add_argument("--tflite", type=Path, help="the run's .tflite file, for the Task library")
    parser.add_argument("--limit", type=int, help="so many images only, spread over the split")
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    options = parser.parse_args()
    run = Run.open(options.run)
    network = run.network()
    record = run.record
    chosen = choose_set(
        options.data, record.labels, record.preprocessing.size, split="test", run=run, cache=options.cache
    )
    positions = chosen.positions
    if options.limit and options.limit < len(positions):
        positions = positions[np.linspace(0, len(positions) - 1, options.limit).astype(int)]
    records = [chosen.data.records[position] for position in positions]
    truth = np.array([record.labels.index(each.label) for each in records])
    every = list(chosen.source.pictures())
    pictures = [every[position] for position in positions]
    originals = [image.decode(picture, name=each.name) for picture, each in zip(pictures, records, strict=True)]
    costs = [cost("as they are", originals, network, truth)]
    for name, grain in (("enlarged", 0.0), (f"enlarged, grain of {_GRAIN:g} levels", _GRAIN)):
        large = (enlarged(each, options.large, grain, number) for number, each in enumerate(originals))
        costs.append(cost(name, large, network, truth))
    print(report(costs))
    if options.tflite:
        some = [enlarged(each, options.large, _GRAIN, number) for number, each in enumerate(originals[:16])]
        print(f"\n{task_library(options.tflite, some, network, record.temperature)}")
    print(f"\n{circumstances(['torch', 'ai-edge-litert'])}")


if __name__ == "__main__":
    main()
