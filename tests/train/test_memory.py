"""Memory stays flat however many images there are."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketdx_train import fit

SIZE = 96


def archive(path: Path, count: int) -> Path:
    """A MedMNIST archive of so many grey images for training; bright ones and dark ones."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, images in {"train": count, "val": 20, "test": 20}.items():
        labels = np.arange(images) % 2
        pixels = rng.integers(0, 128, (images, 28, 28)) + 100 * labels[:, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **arrays)
    return path


def peak(process: subprocess.Popen[str]) -> dict[str, float]:
    """Highest memory of a process while it runs, MiB: its own, and that of files it has mapped."""
    highest = {"RssAnon": 0.0, "RssFile": 0.0}
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for kind, kilobytes in re.findall(r"(RssAnon|RssFile):\s+(\d+)", status):
            highest[kind] = max(highest[kind], int(kilobytes) / 1024)
        time.sleep(0.05)
    return highest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_training_on_eight_times_the_images_takes_no_more_memory_of_its_own(
    spawn: Callable[..., subprocess.Popen[str]], finished: fit.Finished, tmp_path: Path
) -> None:
    options = ["--weights", finished.run.weights, "--finetune", "frozen", "--augment", "none", "--epochs", 1]
    options += ["--size", SIZE, "--batch-size", 32, "--cache", tmp_path / "kept"]
    own = {}
    for count in (500, 4000):
        data = archive(tmp_path / f"{count}.npz", count)
        process = spawn("train", data, "--out", tmp_path / f"run{count}", *options)
        found = peak(process)
        assert process.wait() == 0, process.communicate()
        own[count] = found["RssAnon"]
        print(f"{count} images: {found}")
    more_pixels = 3500 * SIZE * SIZE * 3 / 2**20
    assert more_pixels > 90
    assert own[4000] - own[500] < 25
