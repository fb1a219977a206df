"""The matrix that a release is judged by: a MobileNetV3-small at 224 px, on real pictures, on every device there is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pocketdx_export.backends import BACKENDS

FORMATS = ("onnx", "ort", "tflite")
PRECISIONS = ("fp32", "fp16", "w8")
# Enough to tell the classes apart, so that the files are asked to repeat decisions and not the toss of a coin.
TRAINED_ON = {"train": 200, "val": 40}


def pocketdx(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pocketdx_runtime", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def xrays(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the chest X-rays to learn from, and all of their test split."""
    source, folder = shared_data / "chest-xray", tmp_path_factory.mktemp("xrays")
    for label in sorted(each.name for each in (source / "train").iterdir()):
        names = sorted((source / "train" / label).iterdir())
        chosen = names[:: len(names) // sum(TRAINED_ON.values())]
        parts = {"train": chosen[: TRAINED_ON["train"]], "val": chosen[TRAINED_ON["train"] :]}
        parts["test"] = sorted((source / "test" / label).iterdir())
        for split, files in parts.items():
            (folder / split / label).mkdir(parents=True)
            for file in files:
                (folder / split / label / file.name).symlink_to(file.resolve())
    return folder


@pytest.fixture(scope="module")
def compared(xrays: Path, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """parity.json of a bundle that was trained and exported as a user would."""
    work = tmp_path_factory.mktemp("matrix")
    run, bundle, cache = work / "run", work / "bundle", ("--cache", work / "cache")
    weights = shared_weights / "mobilenet_v3_small.imagenet.safetensors"
    pocketdx("train", xrays, "--out", run, "--weights", weights, "--epochs", 3, "--lr", 1e-3, *cache)
    wanted = [f"--{kind}={name}" for kind, names in (("format", FORMATS), ("precision", PRECISIONS)) for name in names]
    pocketdx("export", run, "--out", bundle, "--data", xrays, *wanted, *cache)
    return dict(json.loads(pocketdx("parity", bundle, "--against", run, "--data", xrays, "--json", *cache)))


pytestmark = pytest.mark.slow


def test_every_file_passes_on_every_device_that_is_set_up(compared: dict[str, Any]) -> None:
    assert compared["passed"]
    ran = [cell for cell in compared["cells"] if not cell["not_run"]]
    assert {cell["status"] for cell in ran} == {"passed"}
    files = Counter(cell["file"] for cell in ran)
    assert {name.partition(".")[2] for name in files} == {
        *(f"{precision}.onnx" for precision in PRECISIONS),
        *("fp32.ort", "w8.ort", "fp32.tflite", "w8.tflite"),
    }


def test_all_test_images_were_compared_here_and_32_of_them_on_slow_devices(compared: dict[str, Any]) -> None:
    most = {backend.name: backend.most for backend in BACKENDS}
    for cell in compared["cells"]:
        if not cell["not_run"]:
            assert cell["images"] == (most[cell["backend"]] or 624)


def test_float32_is_within_1e_4_of_pytorch_wherever_it_ran(compared: dict[str, Any]) -> None:
    worst: dict[str, float] = {}
    for cell in compared["cells"]:
        if not cell["not_run"] and "fp32" in cell["file"]:
            values = [each["value"] for each in cell["checks"] if each["name"] == "logits, max"]
            worst[f"{cell['file']} on {cell['backend']}"] = max(values, default=0.0)
    assert worst
    assert max(worst.values()) < 1e-4, worst


def test_what_did_not_run_says_how_to_get_it(compared: dict[str, Any]) -> None:
    for cell in compared["cells"]:
        if cell["not_run"]:
            assert len(cell["not_run"]) > 10
            assert not cell["checks"]
