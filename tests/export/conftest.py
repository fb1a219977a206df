"""A run, made without the cost of training, and what was exported from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from pocketdx_export.bundle import Bundle, export_run
from pocketdx_export.golden import golden_pictures
from pocketdx_export.targets import choose_targets
from pocketdx_runtime.image import resize
from pocketdx_runtime.manifest import Interval, Preprocessing, Thresholds
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD, Network
from pocketdx_train.prepare import prepare
from pocketdx_train.run import DATA_FILE, RUN_FILE, WEIGHTS_FILE, Run, RunRecord, digest, write_json
from pocketdx_train.settings import TrainSettings
from pocketdx_train.sources import classes, open_source

SIZE = 64
# Width, height and ending: of the network's size, smaller, larger, and a JPEG large enough for a scaled decode.
SHAPES = [(64, 64, "png"), (64, 64, "png"), (50, 40, "png"), (150, 90, "png"), (700, 520, "jpg"), (64, 64, "png")]


def draw(kind: str, number: int) -> Image.Image:
    """Synthetic: "blobs" or "stripes", coloured, with grain; different for each number."""
    width, height, _ = SHAPES[number % len(SHAPES)]
    rng = np.random.Generator(np.random.PCG64([number, len(kind)]))
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    if kind == "blobs":
        centre = rng.uniform(0.3, 0.7, 2)
        pattern = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 0.02)
    else:
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * (rows + columns) * rng.uniform(6, 9))
    tint = np.array([0.9, 0.6, 0.75]) * rng.uniform(0.8, 1.1)
    pixels = 60 + 150 * pattern[..., None] * tint + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn pictures with splits."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in {"train": 48, "val": 12, "test": 24}.items():
        for kind in ("blobs", "stripes"):
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                ending = SHAPES[number % len(SHAPES)][2]
                draw(kind, number + len(split) * 100).save(folder / split / kind / f"drawn_{number}.{ending}")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as training leaves it, of a network with random weights whose answers differ from picture to picture."""
    settings = TrainSettings(weights="none", size=SIZE)
    source = open_source(pictures)
    prepared = prepare(source, classes(source), settings, cache=cache)
    preprocessing = Preprocessing(SIZE, IMAGENET_MEAN, IMAGENET_STD)
    network = lively_network(settings.architecture, preprocessing, prepared.data.pixels)
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    save_file(
        {name: value.contiguous() for name, value in network.backbone.state_dict().items()}, folder / WEIGHTS_FILE
    )
    record = RunRecord(
        settings=settings,
        labels=prepared.labels,
        preprocessing=preprocessing,
        temperature=1.7,
        thresholds=Thresholds(),
        data_fingerprint=prepared.data.fingerprint(),
        weights_digest=digest(folder / WEIGHTS_FILE),
        best_epoch=0,
        metrics={"test/auc": Interval(0.9, 0.8, 1.0)},
        software={"pocketdx": "0"},
        created="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    splits = {each.name: split for each, split in zip(prepared.data.records, prepared.splits, strict=True)}
    write_json(folder / DATA_FILE, {"report": prepared.report, "splits": splits})
    write_json(folder / RUN_FILE, record)
    return Run.open(folder)


def lively_network(architecture: str, preprocessing: Preprocessing, pixels: NDArray[np.uint8]) -> Network:
    """Random weights, but batch norms that know the data, and logits of a trained network's spread."""
    torch.manual_seed(0)
    network = Network(architecture, 2, preprocessing, dropout=0.0).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    drawn = np.stack([resize(picture, preprocessing.size) for picture in golden_pictures(preprocessing.size)])
    batch = torch.from_numpy(np.concatenate([pixels[::3], drawn])).permute(0, 3, 1, 2)
    with torch.no_grad():
        network(batch)
        network.eval()
        logits = network(batch)
        last = network.backbone.classifier[-1]
        last.weight.mul_(3.0 / logits.std(0).mean())
        last.bias.sub_(network(batch).mean(0))
    return network


@pytest.fixture(scope="session")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_run(run, tmp_path_factory.mktemp("bundles") / "bundle", choose_targets(("onnx",), (), has_data=False))
