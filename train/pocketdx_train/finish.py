"""From the best epoch's weights to a whole run: calibration, figures on test, files."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save

from pocketdx_runtime.files import folder_written_aside
from pocketdx_runtime.manifest import Thresholds
from pocketdx_train import plots
from pocketdx_train.architectures import Network, apply_weights
from pocketdx_train.calibration import fit_temperature
from pocketdx_train.callbacks import History, Keeper
from pocketdx_train.checkpoint import load_state
from pocketdx_train.evaluation import Predictions, network_logits, predict_set
from pocketdx_train.prepare import Prepared
from pocketdx_train.run import DATA_FILE, HISTORY_FILE, RUN_FILE, WEIGHTS_FILE, Run, RunRecord, digest, write_json
from pocketdx_train.settings import TrainSettings
from pocketdx_train.splits import DataReport
from pocketdx_train.unfinished import Unfinished

_PACKAGES = ("pocketdx", "torch", "torchvision", "lightning", "numpy")
_TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class Finished:
    """A run that has just been made, with its figures."""

    run: Run
    report: DataReport
    test: Predictions


def finish(
    network: Network,
    prepared: Prepared,
    settings: TrainSettings,
    unfinished: Unfinished,
    history: History,
    keeper: Keeper,
    *,
    device: torch.device,
    force: bool,
) -> Finished:
    """Calibrate the best epoch's network on validation, evaluate it on test, and write the run.

    Args:
        network: gets the best epoch's weights.
        prepared: the data.
        settings: how the network was trained.
        unfinished: where the checkpoints are; removed when the run is whole.
        history: of the epochs.
        keeper: knows the best epoch.
        device: to compute on.
        force: replace a run that is there.

    Raises:
        CheckpointError: the best epoch's checkpoint is damaged.
        OutputError: the run cannot be written.
    """
    _take_weights(network, unfinished.best)
    predict = network_logits(network, device)
    validation = predict_set(predict, prepared.data, prepared.positions("val"), prepared.labels, temperature=1.0)
    temperature = fit_temperature(validation.logits, validation.truth)
    test = predict_set(predict, prepared.data, prepared.positions("test"), prepared.labels, temperature=temperature)

    with folder_written_aside(unfinished.out, overwrite=force, marker=RUN_FILE) as aside:
        _write_weights(network.cpu(), aside / WEIGHTS_FILE)
        _write_predictions(aside / "test_predictions.csv", test, prepared.labels)
        _draw(aside, history, keeper.best_epoch, test, prepared.labels)
        _take_along(unfinished, aside)
        write_json(aside / "test_metrics.json", test.evaluation.to_dict())
        record = RunRecord(
            settings=settings,
            labels=prepared.labels,
            preprocessing=network.preprocessing,
            temperature=temperature,
            thresholds=Thresholds(),
            data_fingerprint=prepared.data.fingerprint(),
            weights_digest=digest(aside / WEIGHTS_FILE),
            best_epoch=keeper.best_epoch,
            metrics={f"test/{name}": interval for name, interval in test.evaluation.headline().items()},
            software={name: version(name) for name in _PACKAGES},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(history.seconds, 1),
        )
        write_json(aside / RUN_FILE, record)
    unfinished.remove()
    return Finished(Run.open(unfinished.out), prepared.report, test)


def _take_weights(network: Network, checkpoint: Path) -> None:
    prefix = "network.backbone."
    state = load_state(checkpoint)["state_dict"]
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    apply_weights(network, weights, str(checkpoint))


def _write_weights(network: Network, path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}
    # One entry: safetensors writes several in a random order, and equal weights should be equal files. Bytes: its
    # `save_file` makes files that only their owner may read.
    path.write_bytes(save(weights, metadata={"format": "pt"}))


def _write_predictions(path: Path, predictions: Predictions, labels: tuple[str, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "truth", "prediction", *labels])
        for name, truth, row in zip(predictions.names, predictions.truth, predictions.probabilities, strict=True):
            writer.writerow([name, labels[int(truth)], labels[int(row.argmax())], *(f"{p:.6f}" for p in row)])


def _draw(folder: Path, history: History, kept: int, test: Predictions, labels: tuple[str, ...]) -> None:
    plots.save_curves(history.epochs, folder / "curves.png", kept=kept)
    plots.save_confusion(test.evaluation, folder / "confusion.png")
    plots.save_roc(test.truth, test.probabilities, labels, folder / "roc.png")


def _take_along(unfinished: Unfinished, folder: Path) -> None:
    for name in (DATA_FILE, HISTORY_FILE):
        shutil.copyfile(unfinished.folder / name, folder / name)
    logs = unfinished.folder / _TENSORBOARD
    if logs.is_dir():
        shutil.copytree(logs, folder / _TENSORBOARD)
