"""A run, made without the cost of training, and what was exported from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from lively import SHAPES, draw, lively_network
from pocketdx_export.bundle import Bundle, export_run
from pocketdx_export.targets import choose_targets
from pocketdx_runtime.manifest import Interval, Preprocessing, Thresholds
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD
from pocketdx_train.prepare import prepare
from pocketdx_train.run import DATA_FILE, RUN_FILE, WEIGHTS_FILE, Run, RunRecord, digest, write_json
from pocketdx_train.settings import TrainSettings
from pocketdx_train.sources import classes, open_source

SIZE = 64


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


@pytest.fixture(scope="session")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_run(run, tmp_path_factory.mktemp("bundles") / "bundle", choose_targets(("onnx",), (), has_data=False))
