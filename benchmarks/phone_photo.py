"""From the bytes of a 12-megapixel JPEG to a diagnosis, on one thread.

PocketDx's runtime decodes a large JPEG at a reduced scale. Beside it: the same model in the same onnxruntime session,
fed as is usual, by Pillow's full decode and antialiased resize; and, with --against, the network in PyTorch fed
likewise. The pictures that the two ways of decoding give are compared, and so are the answers.

PyTorch computes in a process of its own: where it has been imported, the C library keeps the 48 MB of a full decode
instead of giving them back to the system each time, and a phone or a server without it never sees that.

    python benchmarks/phone_photo.py bundle/model.fp32.onnx
    python benchmarks/phone_photo.py bundle/model.fp32.onnx --photo skin.jpg --against run
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import circumstances, interleaved, milliseconds, ratio, table
from numpy.typing import NDArray
from PIL import Image
from synthetic_photo import HEIGHT, QUALITY, WIDTH, photo

from pocketdx_runtime import Model
from pocketdx_runtime.diagnosis import Diagnosis, diagnose
from pocketdx_runtime.image import load

OURS, PILLOW, TORCH = "PocketDx", "Pillow + onnxruntime", "Pillow + PyTorch"
TARGET = 3.8


@dataclass(frozen=True)
class Outcome:
    """What was measured on one photo.

    Attributes:
        name: of the photo.
        megapixels: of the photo.
        megabytes: of its file.
        seconds: by road, one value a round.
        pixel_max: largest difference of the two network inputs, in grey levels.
        pixel_mean: mean difference, in grey levels.
        pixel_above_1: share of the values that differ by more than 1 grey level.
        probability: largest difference of the two probabilities of a label.
        same_label: whether the two answers are the same.
    """

    name: str
    megapixels: float
    megabytes: float
    seconds: dict[str, list[float]]
    pixel_max: int
    pixel_mean: float
    pixel_above_1: float
    probability: float
    same_label: bool


def full_decode(data: bytes, size: int) -> NDArray[np.uint8]:
    """Pillow's own way: every pixel decoded, then squashed with antialiasing; uint8 [size, size, 3]."""
    with Image.open(io.BytesIO(data)) as picture:
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
        return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))


def measure(
    model: Model, name: str, data: bytes, rounds: int, pytorch: Callable[[bytes, int], object] | None = None
) -> Outcome:
    """Time the roads on one photo, and compare what they give.

    Args:
        model: with one thread.
        name: of the photo.
        data: the JPEG.
        rounds: how often each road is timed.
        pytorch: from the JPEG and the size of the network's input to an answer in PyTorch.
    """
    size = model.manifest.preprocessing.size

    def pillow() -> Diagnosis:
        pixels = full_decode(data, size)[np.newaxis]
        return diagnose(model.run(pixels, ["probabilities"])["probabilities"][0].tolist(), model.manifest)

    roads: dict[str, Callable[[], object]] = {OURS: lambda: model.diagnose([data]), PILLOW: pillow}
    if pytorch is not None:
        roads[TORCH] = lambda: pytorch(data, size)
    (ours,), theirs = model.diagnose([data]), pillow()
    apart = np.abs(load(data, size).astype(int) - full_decode(data, size))
    with Image.open(io.BytesIO(data)) as picture:
        pixels = picture.width * picture.height
    return Outcome(
        name=name,
        megapixels=pixels / 1e6,
        megabytes=len(data) / 1e6,
        seconds=interleaved(roads, rounds, warm=True),
        pixel_max=int(apart.max()),
        pixel_mean=float(apart.mean()),
        pixel_above_1=float((apart > 1).mean()),
        probability=max(abs(ours.probabilities[each] - theirs.probabilities[each]) for each in ours.probabilities),
        same_label=ours.label == theirs.label,
    )


@contextmanager
def in_pytorch(run: Path, photos: Sequence[bytes]) -> Iterator[Callable[[bytes, int], object]]:
    """Full decode and the trained network of a run, eager, on one thread of the CPU, in another process.

    It is given the JPEGs at its start: to send one takes 5 ms, which are not PyTorch's.
    """
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawning, initializer=_open_network, initargs=(run, photos)) as process:
        yield lambda data, size: process.submit(_ask_network, photos.index(data), size).result()


_network: Any = None
_photos: Sequence[bytes] = ()


def _open_network(run: Path, photos: Sequence[bytes]) -> None:
    global _network, _photos
    import torch

    from pocketdx_train.run import Run

    torch.set_num_threads(1)
    _network, _photos = Run.open(run).network(), photos


def _ask_network(number: int, size: int) -> list[float]:
    import torch

    with torch.inference_mode():
        pixels = torch.tensor(full_decode(_photos[number], size))[None].permute(0, 3, 1, 2)
        probabilities: list[float] = torch.softmax(_network(pixels), dim=1)[0].tolist()
        return probabilities


def report(outcomes: list[Outcome]) -> str:
    """The table, and the median over the photos in its last row."""
    others = [road for road in (PILLOW, TORCH) if road in outcomes[0].seconds]
    head = [
        "photo",
        "MP",
        "MB",
        *(f"{road}, ms" for road in (OURS, *others)),
        *(f"{road} / PocketDx" for road in others),
    ]
    head += ["max grey levels", "mean", "more than 1", "probability", "label"]
    rows = []
    for each in outcomes:
        ratios = [f"{ratio(each.seconds[road], each.seconds[OURS]):.2f}" for road in others]
        times = [milliseconds(each.seconds[road]) for road in (OURS, *others)]
        apart = [str(each.pixel_max), f"{each.pixel_mean:.2f}", f"{each.pixel_above_1:.2%}", f"{each.probability:.0e}"]
        label = "same" if each.same_label else "OTHER"
        rows.append([each.name, f"{each.megapixels:.1f}", f"{each.megabytes:.1f}", *times, *ratios, *apart, label])
    if len(outcomes) > 1:
        blank = [""] * (2 + 1 + len(others))
        ratios = [f"**{median(ratio(o.seconds[road], o.seconds[OURS]) for o in outcomes):.2f}**" for road in others]
        rows.append(["median", *blank, *ratios, "", "", "", "", ""])
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported .onnx file")
    parser.add_argument("--photo", type=Path, action="append", default=[], help="a JPEG of yours; may be repeated")
    parser.add_argument("--photos", type=int, default=5, help="how many to draw without --photo [5]")
    parser.add_argument("--against", type=Path, metavar="RUN", help="also time the run's network in PyTorch")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each road on each photo [15]")
    options = parser.parse_args()
    model = Model(options.model, threads=1).load()
    photos = [(path.name, path.read_bytes()) for path in options.photo]
    if not photos:
        details = np.linspace(0, 1, options.photos)
        photos = [(f"drawn, seed {seed}", photo(seed, detail=float(detail))) for seed, detail in enumerate(details)]
        print(f"The photos are drawn by synthetic_photo.py: {WIDTH} x {HEIGHT}, JPEG quality {QUALITY}, 4:2:0.\n")
    against = in_pytorch(options.against, [data for _, data in photos]) if options.against else nullcontext()
    with against as pytorch:
        print(report([measure(model, name, data, options.rounds, pytorch) for name, data in photos]))
    network = f"{model.manifest.architecture}, {model.manifest.preprocessing.size} px"
    how = f"{options.rounds} rounds, taking turns, the second call of each; medians"
    print(f"\nOne thread; target {TARGET}x. {network}, {how}.\n")
    print(circumstances(["torch"] if options.against else []))


if __name__ == "__main__":
    main()
