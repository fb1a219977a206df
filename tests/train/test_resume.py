"""A run that was killed and resumed ends as the one that was left alone: same weights, same figures, to the byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from numpy.typing import NDArray

from pocketdx_train import fit
from pocketdx_train.errors import CheckpointError, TrainError
from pocketdx_train.module import Classifier
from pocketdx_train.run import Run
from pocketdx_train.settings import TrainSettings, flag

Quick = Callable[..., TrainSettings]
Draw = Callable[..., NDArray[np.uint8]]
Save = Callable[[Path, NDArray[np.uint8]], Path]
Spawn = Callable[..., "subprocess.Popen[str]"]
# Everything with a state: averages, early stopping, drawing with replacement, mixup, dropout.
FULL: dict[str, Any] = {"epochs": 2, "ema": 0.9, "mixup": 0.3, "balance": "sampling", "patience": 3, "dropout": 0.3}


class Killed(BaseException):
    """Stands for SIGKILL where a process of its own would be slow: nothing of ours runs on it."""


def kill_in(epoch: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die in this training step."""
    step = Classifier.training_step

    def die(self: Classifier, given: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (epoch, batch):
            raise Killed
        return step(self, given, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", die)


def outcome(folder: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """Weights, figures and record of a run, without what a clock has written."""
    record = json.loads((folder / "run.json").read_text())
    for name in ("created", "seconds"):
        del record[name]
    return (folder / "weights.safetensors").read_bytes(), (folder / "metrics.csv").read_bytes(), record


@pytest.fixture(scope="module")
def uninterrupted(
    pictures: Path, quick: Quick, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[bytes, bytes, dict[str, Any]]]:
    """The outcome of a run with these settings that was left alone; each is trained once."""
    done: dict[TrainSettings, tuple[bytes, bytes, dict[str, Any]]] = {}

    def train(**changes: Any) -> tuple[bytes, bytes, dict[str, Any]]:
        settings = quick(**changes)
        if settings not in done:
            out = tmp_path_factory.mktemp("uninterrupted") / "run"
            fit.train(pictures, out, settings)
            done[settings] = outcome(out)
        return done[settings]

    return train


@pytest.fixture
def killed(pictures: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Where a run is that was killed in its second epoch, after the first checkpoint."""

    def train(*, epoch: int = 1, batch: int = 3, workers: int = 0, **changes: Any) -> Path:
        out = tmp_path / "run"
        with monkeypatch.context() as patch:
            kill_in(epoch, batch, patch)
            with pytest.raises(Killed):
                fit.train(pictures, out, quick(**changes), machine=fit.Machine(workers=workers))
        assert not out.exists()
        return out

    return train


@pytest.fixture
def repeated(
    pictures: Path, quick: Quick, killed: Callable[..., Path], uninterrupted: Callable[..., Any]
) -> Callable[..., Any]:
    """Kill a training, resume it, and check that it ends as the uninterrupted one; gives how that is."""

    def check(epoch: int, batch: int, **changes: Any) -> Any:
        out = killed(epoch=epoch, batch=batch, **changes)
        fit.train(pictures, out, quick(**changes), resume=True)
        assert outcome(out) == uninterrupted(**changes)
        return outcome(out)

    return check


# --- exact -----------------------------------------------------------------------------------------------------------


def test_a_killed_and_resumed_run_ends_with_the_same_bytes(
    pictures: Path, quick: Quick, killed: Callable[..., Path], uninterrupted: Callable[..., Any]
) -> None:
    out = killed(**FULL)
    assert (out.with_name("run.unfinished") / "last.ckpt").is_file()
    done = fit.train(pictures, out, quick(**FULL), resume=True)
    assert done is not None
    assert outcome(out) == uninterrupted(**FULL)
    assert not out.with_name("run.unfinished").exists()


def test_it_does_so_with_worker_processes_too(
    pictures: Path, quick: Quick, killed: Callable[..., Path], uninterrupted: Callable[..., Any]
) -> None:
    out = killed(workers=2, **FULL)
    fit.train(pictures, out, quick(**FULL), resume=True, machine=fit.Machine(workers=2))
    assert outcome(out) == uninterrupted(**FULL)


@pytest.mark.parametrize(("head_epochs", "ema"), [(2, 0.0), (1, 0.99)])
def test_it_does_so_with_and_without_the_moving_average_in_the_heads_phase_and_after(
    head_epochs: int, ema: float, finished: fit.Finished, repeated: Callable[..., Any]
) -> None:
    changes = {"epochs": 1, "head_epochs": head_epochs, "ema": ema, "weights": str(finished.run.weights)}
    repeated(epoch=1, batch=1, **changes)


@pytest.mark.parametrize(("epoch", "batch"), [(2, 1), (3, 0), (4, 2)])  # in the first training, before and in the next
def test_it_does_so_in_the_midst_of_a_soup(
    epoch: int, batch: int, finished: fit.Finished, repeated: Callable[..., Any]
) -> None:
    weights = str(finished.run.weights)
    changes = {"epochs": 2, "head_epochs": 1, "ema": 0.9, "soup": 2, "weights": weights}
    repeated(epoch=epoch, batch=batch, **changes)


@pytest.mark.parametrize("batch", [0, 2])
def test_it_does_so_with_a_teacher(
    batch: int, finished: fit.Finished, repeated: Callable[..., Any], uninterrupted: Callable[..., Any]
) -> None:
    taught = repeated(epoch=1, batch=batch, **FULL, teacher=[str(finished.run.folder)])
    assert taught != uninterrupted(**FULL)


def test_with_a_teacher_of_other_weights_it_does_not_go_on(
    pictures: Path, quick: Quick, finished: fit.Finished, killed: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(finished.run.folder, teacher)
    changes = {"epochs": 2, "teacher": [str(teacher)]}
    out = killed(epoch=1, batch=1, **changes)
    fit.train(pictures, teacher, quick(epochs=1, seed=1), force=True)
    with pytest.raises(CheckpointError, match="--teacher had other weights"):
        fit.train(pictures, out, quick(**changes), resume=True)


def test_a_run_killed_between_the_best_and_the_last_checkpoint_repeats_the_epoch(
    pictures: Path, quick: Quick, tmp_path: Path, uninterrupted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "run", []
    save = Trainer.save_checkpoint

    def die(self: Trainer, path: Path) -> None:
        written.append((self.current_epoch, path.name))
        if written[-1] == (1, "last.ckpt"):
            raise Killed
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", die)
        with pytest.raises(Killed):
            fit.train(pictures, out, quick(**FULL))
    fit.train(pictures, out, quick(**FULL), resume=True)
    assert outcome(out) == uninterrupted(**FULL)


def test_a_run_that_had_stopped_early_before_it_was_killed_does_not_train_on(
    pictures: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it was evaluated; trained on, it might have found a better epoch than the run left alone."""
    settings = quick(epochs=9, patience=1, lr=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(fit, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed))
        patch.setattr("pocketdx_train.callbacks.epoch_figures", saturated)
        with pytest.raises(Killed):
            fit.train(pictures, tmp_path / "run", settings)
    monkeypatch.setattr(Classifier, "training_step", lambda *_: pytest.fail("it trains on"))
    fit.train(pictures, tmp_path / "run", settings, resume=True)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 3


def saturated(trainer: Any) -> dict[str, float]:
    """Figures that never get better."""
    return {"train_loss": 0.1, "val_loss": 0.1, "val_auc": 1.0, "val_auc_shifted": 1.0}


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    pictures: Path, quick: Quick, killed: Callable[..., Path], uninterrupted: Callable[..., Any]
) -> None:
    out = killed(**FULL)
    (out.with_name("run.unfinished") / "last.ckpt").unlink()
    fit.train(pictures, out, quick(**FULL), resume=True)
    assert outcome(out) == uninterrupted(**FULL)


def test_a_run_that_was_moved_meanwhile_goes_on_and_still_knows_its_best_epoch(
    pictures: Path, quick: Quick, tmp_path: Path, killed: Callable[..., Path], uninterrupted: Callable[..., Any]
) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    killed(**FULL).with_name("run.unfinished").rename(moved.with_name("renamed.unfinished"))
    fit.train(pictures, moved, quick(**FULL), resume=True)
    assert outcome(moved) == uninterrupted(**FULL)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("lr", 5e-4), ("seed", 3), ("epochs", 9), ("augment", "light")])
def test_resuming_with_another_setting_is_refused_with_what_it_was(
    name: str, value: Any, pictures: Path, quick: Quick, killed: Callable[..., Path]
) -> None:
    out = killed(epoch=1, batch=0)
    before = getattr(quick(), name)
    with pytest.raises(CheckpointError) as error:
        fit.train(pictures, out, quick(**{name: value}), resume=True)
    assert f"{out}.unfinished: begun otherwise ({flag(name)} was {before})" in str(error.value)
    assert "--force" in str(error.value)
    assert (out.with_name("run.unfinished") / "last.ckpt").is_file()


def test_resuming_on_other_images_is_refused_with_those_that_differ(
    pictures: Path, quick: Quick, killed: Callable[..., Path], drawn: Draw, saved: Save, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    out = killed(epoch=1, batch=0)

    def refusal() -> str:
        with pytest.raises(CheckpointError) as error:
            fit.train(data, out, quick(), resume=True)
        return str(error.value)

    saved(data / "train" / "disk" / "000.png", drawn("disk", 4711))
    assert "1 images are changed, or in another class or split, such as train/disk/000.png" in refusal()
    shutil.copy(pictures / "train" / "disk" / "000.png", data / "train" / "disk" / "000.png")
    saved(data / "train" / "disk" / "new.png", drawn("disk", 4712))
    assert "1 images are new, such as train/disk/new.png" in refusal()
    (data / "train" / "disk" / "new.png").rename(data / "train" / "stripes" / "new.png")
    (data / "val" / "disk" / "1000.png").unlink()
    assert "1 images are gone, such as val/disk/1000.png, 1 images are new, such as train/stripes/new.png" in refusal()


def test_a_damaged_checkpoint_or_record_of_the_beginning_is_one_line(
    pictures: Path, quick: Quick, killed: Callable[..., Path]
) -> None:
    out = killed(epoch=1, batch=0)
    folder = out.with_name("run.unfinished")
    os.truncate(folder / "last.ckpt", 5000)
    with pytest.raises(CheckpointError) as error:
        fit.train(pictures, out, quick(), resume=True)
    assert str(error.value).startswith(f"{folder}/last.ckpt: not a whole checkpoint")
    (folder / "begun.json").write_text('{"settings": {"epochs": "many"}}')
    with pytest.raises(CheckpointError) as error:
        fit.train(pictures, out, quick(), resume=True)
    assert str(error.value).startswith(f"{folder}/begun.json: damaged (")


def test_nothing_to_resume_is_refused_and_an_unfinished_run_not_dropped_unasked(
    pictures: Path, quick: Quick, killed: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no unfinished run to go on with; leave --resume out"):
        fit.train(pictures, tmp_path / "run", quick(), resume=True)
    out = killed(epoch=1, batch=0)
    with pytest.raises(TrainError, match="an unfinished run; go on with --resume, or start over with --force"):
        fit.train(pictures, out, quick())
    with pytest.raises(CheckpointError, match="not finished; go on with `pocketdx train"):
        Run.open(out)
    done = fit.train(pictures, out, quick(seed=5), force=True)
    assert done is not None
    assert done.run.record.settings.seed == 5


def test_a_run_that_another_process_trains_is_not_touched(
    pictures: Path, quick: Quick, killed: Callable[..., Path]
) -> None:
    out = killed(epoch=1, batch=0)
    hold = (
        "import sys, time; from pathlib import Path; from pocketdx_train.locks import locked\n"
        "with locked(Path(sys.argv[1])) as held: print(held, flush=True); time.sleep(60)"
    )
    lock = out.with_name("run.unfinished") / "lock"
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        for options in ({"resume": True}, {"force": True}):
            with pytest.raises(CheckpointError, match="another process is training it"):
                fit.train(pictures, out, quick(), **options)  # type: ignore[arg-type]
    finally:
        other.kill()
        other.communicate()
    assert fit.train(pictures, out, quick(), resume=True) is not None


def test_force_with_resume_goes_on_and_then_replaces_the_run_that_is_there(
    pictures: Path, quick: Quick, killed: Callable[..., Path], finished: fit.Finished
) -> None:
    out = killed(epoch=1, batch=2)
    shutil.copytree(finished.run.folder, out)
    with pytest.raises(TrainError, match="exists already"):
        fit.train(pictures, out, quick(), resume=True)
    (out / "notes.txt").write_text("of the old run")
    fit.train(pictures, out, quick(), resume=True, force=True)
    assert not (out / "notes.txt").exists()
    assert outcome(out)[0] == finished.run.weights.read_bytes()


# --- real signals ----------------------------------------------------------------------------------------------------


def arguments(data: Path, out: Path, *more: object) -> list[object]:
    options = {
        "weights": "none", "size": 64, "epochs": 3, "batch-size": 8, "ema": 0.9, "mixup": 0.3, "balance": "sampling",
        "patience": 2, "seed": 1,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return ["train", data, "--out", out, *flags, *more]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def succeeded(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    assert err == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_killed_in_the_middle_of_an_epoch_and_resumed_ends_with_the_same_bytes(
    workers: int, filled_splits: Callable[..., Path], spawn: Spawn, tmp_path: Path
) -> None:
    data = filled_splits(tmp_path / "data", {"train": 60, "val": 8, "test": 8})
    succeeded(spawn(*arguments(data, tmp_path / "alone")))
    out = tmp_path / "killed"
    process = spawn(*arguments(data, out, "--workers", workers))
    wait_for(tmp_path / "killed.unfinished" / "last.ckpt", process)
    time.sleep(0.4)  # into the next epoch, which takes a second or more
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert (tmp_path / "killed.unfinished" / "metrics.csv").read_text().count("\n") < 4
    succeeded(spawn(*arguments(data, out, "--workers", workers, "--resume")))
    assert outcome(out) == outcome(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_is_asked_to_stop_does_so_at_once_and_can_be_resumed(
    number: signal.Signals, status: int, filled_splits: Callable[..., Path], spawn: Spawn, tmp_path: Path
) -> None:
    data = filled_splits(tmp_path / "data", {"train": 200, "val": 8, "test": 8})
    out = tmp_path / "run"
    process = spawn(*arguments(data, out))
    wait_for(tmp_path / "run.unfinished" / "last.ckpt", process)
    time.sleep(0.4)
    process.send_signal(number)
    asked = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < 30
    assert process.returncode == status
    assert "Traceback" not in err
    assert err.strip() == (
        "" if status == 143 else "stopped; the same command with --resume goes on after the last whole epoch"
    )
    succeeded(spawn(*arguments(data, out, "--resume")))
