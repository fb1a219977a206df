"""Small drawn pictures in every layout, and short trainings on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketdx_runtime import cli
from pocketdx_train import fit
from pocketdx_train.cache import decode_once
from pocketdx_train.prepare import Prepared, prepare
from pocketdx_train.run import Run
from pocketdx_train.settings import TrainSettings
from pocketdx_train.sources import classes, open_source

# Quick, and every device of training switched on that a resume must restore.
SETTINGS: Mapping[str, Any] = {
    "weights": "none",
    "size": 32,
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-3,
    "warmup": 0.2,
}


THREADS = torch.get_num_threads()


# Hooks, not a fixture: one of the session, which those that train would need, would last into the tests of other rooms.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The networks here are too small to share out; more threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Other rooms get what they had."""
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of decoded images."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _user_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fills the cache of whoever runs it."""
    monkeypatch.setenv("POCKETDX_CACHE", str(cache))


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's pictures take as long as a training here. `finished`, made before this takes hold, has them."""
    monkeypatch.setattr("pocketdx_train.finish._draw", lambda *_: None)


def draw(kind: str, seed: int, size: int = 40) -> NDArray[np.uint8]:
    """Synthetic, uint8 [size, size, 3]: a disk ("disk...") or stripes (any other kind), with grain."""
    rng = np.random.default_rng([seed, *kind.encode()])
    y, x = np.mgrid[:size, :size] / size
    if kind.startswith("disk"):
        shape = (x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.3, 0.7)) ** 2 < rng.uniform(0.03, 0.08)
    else:
        shape = np.sin((x + y * rng.uniform(0.5, 2)) * rng.uniform(12, 30)) > 0
    pixels = np.where(shape[..., None], [190, 90, 120], [70, 130, 160]) + rng.normal(0, 12, (size, size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def drawn() -> Callable[..., NDArray[np.uint8]]:
    """`draw`."""
    return draw


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def saved() -> Callable[[Path, NDArray[np.uint8]], Path]:
    """Save pixels as a picture; folders are made."""
    return save


def fill(folder: Path, counts: Mapping[str, int], *, start: int = 0) -> Path:
    """Drawn PNGs by class: `folder/CLASS/NUMBER.png`."""
    for kind, count in counts.items():
        for number in range(start, start + count):
            save(folder / kind / f"{number:03}.png", draw(kind, number))
    return folder


@pytest.fixture(scope="session")
def filled() -> Callable[..., Path]:
    """`fill`."""
    return fill


def fill_splits(folder: Path, counts: Mapping[str, int] | None = None) -> Path:
    """Drawn PNGs by split and class: `folder/SPLIT/CLASS/NUMBER.png`."""
    for place, (split, count) in enumerate((counts or {"train": 12, "val": 4, "test": 6}).items()):
        fill(folder / split, {"disk": count, "stripes": count + 4}, start=1000 * place)
    return folder


@pytest.fixture(scope="session")
def filled_splits() -> Callable[..., Path]:
    """`fill_splits`."""
    return fill_splits


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, not quite balanced, in train, val and test. Do not change it."""
    return fill_splits(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def quick() -> Callable[..., TrainSettings]:
    """Settings of a training that takes a second or two."""

    def settings(**changes: Any) -> TrainSettings:
        return TrainSettings(**{**SETTINGS, **changes})

    return settings


@pytest.fixture(scope="session")
def prepared(pictures: Path, cache: Path, quick: Callable[..., TrainSettings]) -> Prepared:
    """`pictures`, decoded and split."""
    source = open_source(pictures)
    return prepare(source, classes(source), quick(), cache=cache)


@pytest.fixture(scope="session")
def decoded_folder(cache: Path) -> Callable[..., Any]:
    """Open and decode a data set."""

    def decoded(path: Path, *, size: int = 32, patient_regex: str | None = None) -> Any:
        return decode_once(open_source(path, patient_regex=patient_regex), size, cache)

    return decoded


@pytest.fixture(scope="session")
def finished(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> fit.Finished:
    """One short training's outcome, for all tests that only look at it. Do not change its files."""
    out = tmp_path_factory.mktemp("finished") / "run"
    done = fit.train(pictures, out, TrainSettings(**SETTINGS), cache=cache)
    assert done is not None
    return done


@pytest.fixture
def run_copy(finished: fit.Finished, tmp_path: Path) -> Run:
    """A copy of the finished run, to break."""
    folder = tmp_path / "run"
    shutil.copytree(finished.run.folder, folder)
    return Run.open(folder)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def pocketdx(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process: quicker than a fresh one by the import of torch."""

    def command(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def program() -> list[str]:
    """The installed program, for tests of a process of its own."""
    found = shutil.which("pocketdx", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("the program pocketdx is not installed beside this Python")
    return [found]


@pytest.fixture
def spawn(program: list[str], cache: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the program in a process of its own, as a user in a pipe would; killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "POCKETDX_CACHE": str(cache)}
        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
