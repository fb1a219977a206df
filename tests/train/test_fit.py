"""A training leaves a whole run that can be used without us, or nothing."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from pocketdx_train import callbacks, fit, loop
from pocketdx_train.checkpoint import load_state
from pocketdx_train.errors import TrainError
from pocketdx_train.evaluation import network_logits, softmax
from pocketdx_train.module import Classifier
from pocketdx_train.prepare import Prepared
from pocketdx_train.run import Run, digest
from pocketdx_train.settings import TrainSettings

Quick = Callable[..., TrainSettings]
Fill = Callable[..., Path]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- what a run holds ------------------------------------------------------------------------------------------------


def test_a_run_is_a_folder_of_weights_settings_figures_and_pictures(finished: fit.Finished) -> None:
    folder = finished.run.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png",
        "curves.png",
        "data.json",
        "metrics.csv",
        "roc.png",
        "run.json",
        "test_metrics.json",
        "test_predictions.csv",
        "weights.safetensors",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
    for name in ("confusion.png", "curves.png", "roc.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_plain_torchvision_loads_the_weights_strictly_and_answers_the_same(
    finished: fit.Finished, prepared: Prepared
) -> None:
    plain = torchvision.models.mobilenet_v3_small(num_classes=2)
    plain.load_state_dict(load_file(finished.run.weights), strict=True)
    pixels = torch.from_numpy(prepared.data.pixels[:5].copy()).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.inference_mode():
        expected = plain.eval()((pixels / 255 - mean) / std)
        assert torch.allclose(finished.run.network()(pixels), expected, atol=1e-4)


def test_the_record_says_what_was_done(finished: fit.Finished, prepared: Prepared) -> None:
    record = finished.run.record
    assert record.labels == ("disk", "stripes")
    assert record.data_fingerprint == prepared.data.fingerprint()
    assert record.weights_digest == digest(finished.run.weights)
    assert record.metrics["test/auc"] == finished.test.evaluation.auc
    assert 1 <= record.best_epoch <= 2
    assert record.seconds > 0
    assert set(record.software) == {"pocketdx", "torch", "torchvision", "lightning", "numpy"}


def test_the_epochs_figures_are_kept_and_the_best_epoch_is_the_one_with_the_best_of_them(
    finished: fit.Finished,
) -> None:
    epochs = rows(finished.run.folder / "metrics.csv")
    assert list(epochs[0]) == ["epoch", "lr", "train_loss", "val_loss", "val_auc", "val_auc_shifted"]
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    best = max(epochs, key=lambda row: (float(row["val_auc_shifted"]), -float(row["val_loss"])))
    assert finished.run.record.best_epoch == int(best["epoch"])
    assert max(float(row["lr"]) for row in epochs) == pytest.approx(1e-3)


def test_test_predictions_are_those_of_the_kept_weights_image_by_image(
    finished: fit.Finished, prepared: Prepared
) -> None:
    positions = prepared.positions("test")
    logits = network_logits(finished.run.network())(prepared.data.pixels[positions])
    expected = softmax(logits, finished.run.record.temperature)
    predictions = rows(finished.run.folder / "test_predictions.csv")
    assert [row["image"] for row in predictions] == [prepared.data.records[i].name for i in positions]
    got = np.array([[float(row[label]) for label in ("disk", "stripes")] for row in predictions])
    assert np.abs(got - expected).max() < 1e-4
    accuracy = np.mean([row["truth"] == row["prediction"] for row in predictions])
    assert accuracy == finished.test.evaluation.accuracy.value


def test_the_split_of_every_image_is_kept(finished: fit.Finished) -> None:
    splits = finished.run.splits()
    assert len(splits) == 56
    assert all(name.startswith(f"{split}/") for name, split in splits.items())
    assert json.loads((finished.run.folder / "data.json").read_text())["report"]["counts"]["val"]["disk"] == 4


# --- how it is trained -----------------------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_run_to_the_byte(
    pictures: Path, quick: Quick, finished: fit.Finished, tmp_path: Path
) -> None:
    done = fit.train(pictures, tmp_path / "run", quick())
    assert done is not None
    assert done.run.weights.read_bytes() == finished.run.weights.read_bytes()


@pytest.mark.parametrize(
    ("images", "batches"),
    [(44, [8, 8, 8, 8, 8, 4]), (41, [8, 8, 8, 8, 8]), (42, [8, 8, 8, 8, 8, 2]), (40, [8] * 5), (3, [3])],
)
def test_a_last_batch_is_used_unless_it_is_too_small_for_batch_norms(
    images: int, batches: list[int], prepared: Prepared, quick: Quick
) -> None:
    splits = tuple("train" if i < images else "test" for i in range(len(prepared.splits)))
    trainer: Any = SimpleNamespace(global_rank=0, world_size=1, fit_loop=SimpleNamespace(epoch_progress=None))
    trainer.fit_loop.epoch_progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    loader = loop._training_loader(trainer, replace(prepared, splits=splits), prepared.targets(), quick(), None, 0)
    assert [len(batch[1]) for batch in loader] == batches
    assert len(loader) == len(batches)


def test_training_learns_what_can_be_learnt(filled_splits: Fill, quick: Quick, tmp_path: Path) -> None:
    data = filled_splits(tmp_path / "data", {"train": 30, "val": 8, "test": 20})
    done = fit.train(data, tmp_path / "run", quick(epochs=5, lr=3e-3, ema=0.9, augment="light"))
    assert done is not None
    assert done.test.evaluation.accuracy.value > 0.9


def test_mixed_precision_trains_and_keeps_weights_in_full_precision(
    pictures: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    answer = Classifier._logits

    def noting(self: Classifier, normalised: torch.Tensor) -> torch.Tensor:
        logits = answer(self, normalised)
        seen.append(logits.dtype)
        return logits

    monkeypatch.setattr(Classifier, "_logits", noting)
    done = fit.train(pictures, tmp_path / "run", quick(epochs=1, precision="bf16-mixed"))
    assert done is not None
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in load_file(done.run.weights).values()} == {torch.float32, torch.int64}


def followed(prepared: Prepared, settings: TrainSettings, folder: Path, decays: Callable[[int], float]) -> None:
    """Train, and compare what is kept with the average computed by hand; `decays` by the number of the step."""
    keeper = callbacks.Keeper("val_auc", 0, last=folder / "last.ckpt", best=folder / "best.ckpt")
    by_hand: dict[str, torch.Tensor] = {}

    class Follow(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            for name, value in pl_module.network.backbone.state_dict().items():
                if value.is_floating_point():
                    before = by_hand.get(name, value)
                    by_hand[name] = value + decays(trainer.global_step - 1) * (before - value)

    average = callbacks.Averaging(settings.ema, head_epochs=settings.first_epochs, epochs=settings.epochs)
    trainer = loop.make_trainer(
        settings, fit.Machine("cpu"), [average, keeper, Follow()], folder=folder, tensorboard=False
    )
    network = fit._network(settings, 2)
    with loop.quiet():
        loop.fit(trainer, network, prepared, settings)
    kept = load_state(folder / "last.ckpt")["state_dict"]
    assert by_hand
    for name, value in by_hand.items():
        assert torch.allclose(kept[f"network.backbone.{name}"], value, rtol=1e-4, atol=1e-5), name


def test_the_average_of_the_weights_is_kept_and_soon_forgets_a_random_start(
    prepared: Prepared, quick: Quick, tmp_path: Path
) -> None:
    followed(prepared, quick(ema=0.5), tmp_path, lambda step: min(0.5, (1 + step) / (10 + step)) if step else 0.0)


@pytest.mark.parametrize(("ema", "decay"), [(0.7, 0.7), (0.999, 3 / 4)])
def test_after_the_heads_epochs_the_average_starts_from_there_and_keeps_one_part_in_e_of_it_at_most(
    ema: float, decay: float, prepared: Prepared, quick: Quick, finished: fit.Finished, tmp_path: Path
) -> None:
    settings = quick(weights=str(finished.run.weights), head_epochs=1, epochs=1, ema=ema)
    steps = 4  # for 28 images
    followed(prepared, settings, tmp_path, lambda step: 0.0 if step < steps else decay)


def test_a_soup_is_the_mean_of_trainings_that_all_begin_where_the_first_did(
    pictures: Path, quick: Quick, finished: fit.Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[dict[str, torch.Tensor]] = []
    ended: list[dict[str, torch.Tensor]] = []
    rates: list[float] = []
    momenta: list[float] = []

    class Follow(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch % 2 == 1 and batch_idx == 0:  # after one epoch of the head
                began.append({name: value.clone() for name, value in pl_module.network.backbone.state_dict().items()})
                rates.append(callbacks.learning_rate(trainer))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0 and trainer.current_epoch % 2 == 1:
                norm = next(m for m in pl_module.network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
                momenta.append(norm.momentum)
            if batch_idx == trainer.num_training_batches - 1 and trainer.current_epoch in {2, 4, 6}:
                ended.append({name: value.clone() for name, value in pl_module.network.backbone.state_dict().items()})

    more = fit._more_callbacks
    monkeypatch.setattr(fit, "_more_callbacks", lambda *given: [Follow(), *more(*given)])
    settings = quick(weights=str(finished.run.weights), head_epochs=1, epochs=2, soup=3, ema=0.0)
    done = fit.train(pictures, tmp_path / "run", settings)
    assert done is not None
    assert done.run.record.best_epoch in {3, 5, 7}
    kept = load_file(done.run.weights)
    members = (done.run.record.best_epoch - 1) // 2
    for name, value in kept.items():
        assert torch.equal(began[0][name], began[1][name]), name
        assert torch.equal(began[0][name], began[2][name]), name
        if value.is_floating_point():
            mean = sum(end[name] for end in ended[:members]) / members
            assert torch.allclose(value, mean, rtol=1e-4, atol=1e-5), name
    assert not torch.equal(ended[0]["classifier.3.weight"], ended[1]["classifier.3.weight"])
    assert len(set(rates)) == 1
    assert momenta == [1.0, 1.0, 1.0]


def test_with_a_soup_only_the_end_of_a_training_can_be_the_best_epoch() -> None:
    keeper = callbacks.Keeper("val_auc", 0, last=Path("last"), best=Path("best"), head_epochs=1, epochs=2)
    trainer: Any = FakeTrainer()
    for auc in (0.99, 0.98, 0.9, 0.97, 0.92):
        trainer.current_epoch += 1
        keeper.on_train_epoch_end(figures(trainer, val_auc=auc, val_loss=0.5), trainer)
    assert keeper.best_epoch == 5
    assert trainer.saved == ["last", "last", "best", "last", "last", "best", "last"]


def figures(trainer: Any, **values: float) -> Any:
    trainer.callback_metrics = {"train_loss": 1.0, "val_loss": 1.0, "val_auc": 0.5, "val_auc_shifted": 0.5} | values
    return trainer


class FakeTrainer:
    """As much of Lightning's trainer as `Keeper` looks at."""

    def __init__(self) -> None:
        self.saved: list[str] = []
        self.current_epoch = -1
        self.should_stop = False
        self.strategy = self

    def broadcast(self, value: bool) -> bool:
        return value

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path.name)


def keep(
    scores: list[tuple[float, float]], *, patience: int = 0, monitor: str = "val_auc"
) -> tuple[callbacks.Keeper, FakeTrainer]:
    """A keeper after epochs of these (AUC, loss)."""
    keeper = callbacks.Keeper(monitor, patience, last=Path("last"), best=Path("best"))
    trainer: Any = FakeTrainer()
    for auc, loss in scores:
        trainer.current_epoch += 1
        keeper.on_train_epoch_end(figures(trainer, val_auc=auc, val_loss=loss), trainer)
    return keeper, trainer


def test_the_best_epoch_is_that_of_the_highest_figure_and_among_equals_of_the_lowest_loss() -> None:
    keeper, trainer = keep([(0.9, 0.5), (1.0, 0.9), (1.0, 0.4), (1.0, 0.6), (0.99, 0.1)])
    assert keeper.best_epoch == 3
    assert trainer.saved == ["best", "last", "best", "last", "best", "last", "last", "last"]


def test_where_nothing_is_chosen_the_last_epoch_is_kept() -> None:
    keeper, trainer = keep([(1.0, 0.1), (0.9, 0.5), (0.8, 0.9)], monitor="last")
    assert keeper.best_epoch == 3
    assert not trainer.should_stop


def test_training_stops_when_patience_is_at_an_end_and_not_before() -> None:
    assert not keep([(0.9, 0.5), (0.8, 0.5)], patience=2)[1].should_stop
    assert keep([(0.9, 0.5), (0.8, 0.5), (0.7, 0.5)], patience=2)[1].should_stop
    assert not keep([(0.9, 0.5), (0.8, 0.5), (0.95, 0.5), (0.9, 0.5)], patience=2)[1].should_stop
    assert not keep([(0.9, 0.5)] * 9)[1].should_stop


def test_a_training_that_diverges_is_said_so_with_the_epoch_and_the_remedy(
    pictures: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "_loss", lambda _self, logits, *_: logits.sum() * float("nan"))
    with pytest.raises(TrainError, match=r"training diverged in epoch 1 \(train_loss is not finite\); .*--lr"):
        fit.train(pictures, tmp_path / "run", quick())
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_logs_go_into_the_run(pictures: Path, quick: Quick, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done = fit.train(pictures, tmp_path / "run", quick(epochs=1), tensorboard=True)
    assert done is not None
    assert list((done.run.folder / "tensorboard").glob("events.*"))


def test_tensorboard_that_is_not_installed_is_one_line(
    pictures: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("neither tensorboard nor tensorboardX")

    monkeypatch.setattr(loop, "TensorBoardLogger", missing)
    with pytest.raises(TrainError, match=r"pip install 'pocketdx\[tensorboard\]'"):
        fit.train(pictures, tmp_path / "run", quick(), tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf_8_are_trained_on_and_written_down(
    filled_splits: Fill, quick: Quick, tmp_path: Path
) -> None:
    data = filled_splits(tmp_path / "data")
    odd = data / "test" / "disk" / "caf\udce9\n.png"
    shutil.move(data / "test" / "disk" / "2000.png", odd)
    lines: list[str] = []
    done = fit.train(data, tmp_path / "run", quick(epochs=1), say=lines.append)
    assert done is not None
    assert done.run.splits()["test/disk/caf\udce9\n.png"] == "test"
    assert "caf\\udce9" in (done.run.folder / "test_predictions.csv").read_text("utf-8")
    assert all(line.isprintable() for line in lines)


# --- --force and folders ---------------------------------------------------------------------------------------------


def test_force_replaces_a_run_whole_and_nothing_else(
    pictures: Path, quick: Quick, run_copy: Run, tmp_path: Path
) -> None:
    (run_copy.folder / "notes.txt").write_text("of the old run")
    with pytest.raises(TrainError, match=r"run: exists already; choose another name, or --force"):
        fit.train(pictures, run_copy.folder, quick(epochs=1))
    done = fit.train(pictures, run_copy.folder, quick(epochs=1), force=True)
    assert done is not None
    assert done.run.record.settings.epochs == 1
    assert not (run_copy.folder / "notes.txt").exists()
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainError, match=r"not replaced, because there is no run\.json in it"):
        fit.train(pictures, home, quick(epochs=1), force=True)
    assert (home / "thesis.tex").exists()


def test_force_does_not_drop_a_folder_that_is_no_unfinished_run(pictures: Path, quick: Quick, tmp_path: Path) -> None:
    other = tmp_path / "run.unfinished"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainError, match=r"not replaced, because there is no begun\.json in it"):
        fit.train(pictures, tmp_path / "run", quick(), force=True)
    assert (other / "thesis.tex").exists()


def test_progress_on_a_terminal_is_a_line_an_epoch(
    pictures: Path, quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit.train(pictures, tmp_path / "run", quick(), show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    screen = [line.split("\r\x1b[K")[-1] for line in err.split("\n")[:-1]]
    assert [line[:11] for line in screen] == ["epoch 1/2  ", "epoch 2/2  "]
    assert all("loss" in line and "AUC" in line for line in screen)
    assert "####" in err
    assert "validating" in err
