"""Choose a recipe for the chest X-rays without a look at their test split.

Validation of the training period saturates at .997, under a mild simulated shift as well. This asks for more, within
`train` alone: train on some kinds of picture, and look at the others. The file names tell two series of normal chests
(IM, NORMAL2-IM) and two causes of pneumonia (bacteria, virus); A trains on NORMAL2-IM and bacteria and looks at IM and
virus, B the other way round. Each looks at its pictures as they are, and under three or four simulated changes at once
(geometry, light, sharpness, noise, compression), about severity 3 to 4 of 5 in the words of ImageNet-C (Hendrycks and
Dietterich, 2019). Small pictures and a part of them keep it cheap.

    python benchmarks/choose_recipe.py chest-xray/train --out choice \
        --weights mobilenet_v3_small.safetensors --teacher-weights mobilenet_v2.safetensors

Networks are kept in --out and not trained again: more candidates or seeds can be added later. Choose another --out for
another --images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from chest_xray import TEACHER
from measure import circumstances, table
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.torch import load_file, save_file

from pocketdx_train import fit, loop
from pocketdx_train.architectures import Network
from pocketdx_train.cache import Decoded, decode_once
from pocketdx_train.callbacks import Averaging
from pocketdx_train.evaluation import network_logits
from pocketdx_train.metrics import auc
from pocketdx_train.prepare import Prepared
from pocketdx_train.settings import TrainSettings
from pocketdx_train.sources import classes, open_source
from pocketdx_train.splits import DataReport

LARGER = {"architecture": "mobilenet_v2"}
NTH = ("first", "second", "third")
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "recipe": {},
    "a teacher": {"teacher": ("larger",), "epochs": 2 * TEACHER["epochs"]},
    "three teachers": {"teacher": NTH, "epochs": 2 * TEACHER["epochs"]},
    "the teacher itself": LARGER,
    "slower": {"lr": 3e-4},
    "milder": {"augment": "medical"},
}
"""Changes to the recipe of chest_xray.py."""

TEACHERS = {"larger": ("the teacher itself", 0), **{name: ("recipe", n) for n, name in enumerate(NTH, 1)}}
"""Who teaches: a candidate, and what is added to the seed."""

LOOKED_AT = 300
"""Pictures of each class to look at."""

Pixels = NDArray[np.uint8]


def kind(name: str) -> str:
    """Series or cause, by the file's name: NORMAL2, IM, bacteria or virus."""
    file = Path(name).name
    if file.startswith(("IM-", "NORMAL2-")):
        return file.split("-")[0]
    return "bacteria" if "bacteria" in file else "virus"


DIRECTIONS = {"A": ("NORMAL2", "bacteria"), "B": ("IM", "virus")}
"""What is trained on; the rest is looked at."""


def changed(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One picture, uint8 [S, S, 3], under a change of geometry and three more that are drawn."""
    side = len(pixels)
    turn, zoom = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.85, 1.25)
    shift = rng.uniform(-0.08, 0.08, 2) * side
    cos, sin, middle = np.cos(turn) / zoom, np.sin(turn) / zoom, side / 2
    across = (cos, sin, middle - cos * middle - sin * middle + shift[0])
    down = (-sin, cos, middle + sin * middle - cos * middle + shift[1])
    picture = Image.fromarray(pixels).transform(
        (side, side), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BILINEAR
    )
    for which in rng.choice(len(CHANGES), 3, replace=False):
        picture = CHANGES[which](picture, rng)
    return np.asarray(picture)


def _curve(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    gamma = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.35, 0.75)))
    return picture.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)


def _contrast(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    low, high = rng.choice([(0.4, 0.7), (1.4, 1.9)])
    return ImageEnhance.Contrast(picture).enhance(rng.uniform(low, high))


def _brightness(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    more = int(rng.choice([-1, 1]) * rng.uniform(20, 50))
    return picture.point([min(255, max(0, level + more)) for level in range(256)] * 3)


def _blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 1.4)))


def _coarse(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = round(picture.width / rng.uniform(1.5, 2.5))
    return picture.resize((side, side), Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BILINEAR)


def _compressed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(12, 36)))
    return Image.open(file).convert("RGB")


def _noise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(0, rng.uniform(8, 18), (*picture.size, 1))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def _sharp(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        return ImageOps.equalize(picture)
    return ImageEnhance.Sharpness(picture).enhance(rng.uniform(2, 5))


def _uneven(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    light = np.linspace(rng.uniform(0.5, 0.8), 1.2, picture.width)[:: rng.choice([-1, 1])]
    light = light[:, None, None] if rng.random() < 0.5 else light[None, :, None]
    return Image.fromarray((np.asarray(picture) * light).clip(0, 255).astype(np.uint8))


CHANGES = (_curve, _contrast, _brightness, _blur, _coarse, _compressed, _noise, _sharp, _uneven)


def shared_out(data: Decoded, labels: Sequence[str], direction: str, most: int) -> tuple[Prepared, NDArray[np.int64]]:
    """The training pictures as a data set, three in ten of them normal; and the positions of those to look at."""
    rng = np.random.default_rng(0)
    kinds = [kind(record.name) for record in data.records]
    inside: dict[str, list[int]] = {label: [] for label in labels}
    outside: dict[str, list[int]] = {label: [] for label in labels}
    for position in rng.permutation(len(kinds)).tolist():
        side = inside if kinds[position] in DIRECTIONS[direction] else outside
        side[data.records[position].label].append(position)
    normal, ill = labels
    seen = [*inside[normal][: most * 3 // 10], *inside[ill][: most * 7 // 10]]
    looked_at = [*outside[normal][:LOOKED_AT], *outside[ill][:LOOKED_AT]]
    splits = [""] * len(kinds)
    for position in seen:
        splits[position] = "train"
    for position in (looked_at[0], looked_at[-1]):  # the loop wants some; nothing is chosen by them
        splits[position] = "val"
    nothing = DataReport({}, (), (), (), (), (), ())
    return Prepared(data, tuple(labels), tuple(splits), nothing), np.array(looked_at)


def trained(prepared: Prepared, settings: TrainSettings, folder: Path, teachers: Sequence[Network]) -> Network:
    """A network that has been trained once, or what an earlier call kept of it."""
    kept = folder / f"{named(settings)}.safetensors"
    average = Averaging(settings.ema, head_epochs=settings.first_epochs, epochs=settings.epochs)
    network = fit._network(settings, len(prepared.labels))
    if kept.is_file():
        network.backbone.load_state_dict(load_file(kept))
        return network.eval()
    with loop.quiet():
        trainer = loop.make_trainer(settings, loop.Machine("cpu"), [average], folder=folder, tensorboard=False)
        # The average is in the network at its end.
        loop.fit(trainer, network, prepared, settings, teachers=teachers)
    save_file({name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}, kept)
    return network.eval()


@dataclass(frozen=True)
class Trial:
    """One direction with one seed.

    Attributes:
        prepared: what is trained on.
        folder: where networks are kept.
        size: side of the pictures in pixels.
        seed: of the trainings.
        weights: what an architecture starts from.
    """

    prepared: Prepared
    folder: Path
    size: int
    seed: int
    weights: Mapping[str, str]

    def network(self, candidate: str) -> Network:
        """The candidate's, trained; where it has teachers, those before it."""
        chosen = {**TEACHER, **CANDIDATES[candidate]}
        start = self.weights[chosen.get("architecture", TrainSettings.architecture)]
        settings = TrainSettings(**chosen, size=self.size, weights=start, seed=self.seed)
        who = [TEACHERS[name] for name in settings.teacher]
        teachers = [replace(self, seed=self.seed + more).network(name) for name, more in who]
        return trained(self.prepared, settings, self.folder, teachers)


def figures(network: Network, prepared: Prepared, looked_at: NDArray[np.int64]) -> dict[str, float]:
    """AUC and balanced accuracy on the other pictures, as they are and changed."""
    predict, ill = network_logits(network), prepared.targets()[looked_at] == 1
    plain = prepared.data.pixels[looked_at]
    hard = np.stack([changed(each, np.random.default_rng([3, i])) for i, each in enumerate(plain)])
    found = {}
    for name, pixels in (("plain", plain), ("changed", hard)):
        logits = np.concatenate([predict(pixels[i : i + 64]) for i in range(0, len(pixels), 64)])
        score = logits[:, 1] - logits[:, 0]
        found[f"{name} AUC"] = float(auc(ill, score))
        found[f"{name} accuracy"] = float(((score > 0)[ill].mean() + (score <= 0)[~ill].mean()) / 2)
    return found


def report(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A row a candidate, the mean of its trials; the best AUC, over plain and changed pictures, first."""
    names = ["plain AUC", "changed AUC", "plain accuracy", "changed accuracy"]

    def means(candidate: str) -> list[float]:
        return [mean(each[name] for each in found[candidate]) for name in names]

    rows = []
    for candidate in sorted(found, key=lambda name: -mean(means(name)[:2])):
        values = means(candidate)
        rows.append([candidate, f"{mean(values[:2]):.4f}", *(f"{value:.4f}" for value in values)])
    return table(["", "mean AUC", *names], rows)


def named(settings: TrainSettings) -> str:
    """A name that no other settings have."""
    return hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder `train`, with NORMAL and PNEUMONIA")
    parser.add_argument("--weights", default="imagenet", help="to start from: imagenet, or a .safetensors file")
    parser.add_argument("--teacher-weights", default="imagenet", help="the same of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and decoded images")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, default=112, help="side of the pictures in pixels [112]")
    parser.add_argument("--images", type=int, default=1500, help="to train on [1500]")
    options = parser.parse_args()
    for direction in DIRECTIONS:
        (options.out / direction).mkdir(parents=True, exist_ok=True)
    source = open_source(options.data, patient_regex=TEACHER["patient_regex"])
    labels = classes(source)
    data = decode_once(source, options.size, options.out / "cache")
    weights = {TrainSettings.architecture: options.weights, LARGER["architecture"]: options.teacher_weights}
    found: dict[str, list[dict[str, float]]] = {}
    for seed, direction in itertools.product(options.seeds, DIRECTIONS):
        prepared, looked_at = shared_out(data, labels, direction, options.images)
        trial = Trial(prepared, options.out / direction, options.size, seed, weights)
        for candidate in options.candidates:
            found.setdefault(candidate, []).append(figures(trial.network(candidate), prepared, looked_at))
            print(candidate, direction, seed, found[candidate][-1], flush=True)
    print(report(found))
    print(f"\nAccuracy is the mean of both classes'. {options.images} pictures of {options.size} px to train on.\n")
    print(circumstances(["torch"]))


if __name__ == "__main__":
    main()
