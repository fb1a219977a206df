"""From labelled images to a run: data, network, loop, best weights, calibration, figures on test."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from pocketdx_runtime.conform import conform, to_plain
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.manifest import Preprocessing, Thresholds
from pocketdx_train import plots
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD, Network, apply_weights, initialise
from pocketdx_train.augment import augmentation
from pocketdx_train.cache import Decoded, Progress, decode_once, default_cache_folder
from pocketdx_train.calibration import fit_temperature
from pocketdx_train.callbacks import History, MovingAverage
from pocketdx_train.checkpoint import SafetensorsCheckpointIO, load_state
from pocketdx_train.errors import CheckpointError, TrainError
from pocketdx_train.evaluation import Predictions, network_logits, predict_set
from pocketdx_train.loading import EpochSampler, Item, PlainSet, TrainingSet, class_weights, mix
from pocketdx_train.module import Classifier
from pocketdx_train.run import (
    DATA_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Run,
    RunRecord,
    digest,
    unfinished_folder,
    write_json,
)
from pocketdx_train.settings import TrainSettings
from pocketdx_train.sources import classes, open_source
from pocketdx_train.splits import DataReport, Fractions, assign_splits, report

_CHECKPOINTS = "checkpoints"
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Machine:
    """What to train on, in Lightning's words.

    Attributes:
        accelerator: "auto", "cpu", "gpu", "mps".
        devices: "auto" or how many on each node.
        nodes: machines.
        workers: processes that augment pictures; 0 is none.
    """

    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    workers: int = 0


@dataclass(frozen=True)
class Prepared:
    """The data, ready for the loop.

    Attributes:
        data: decoded images.
        labels: class names.
        splits: of each record.
        report: what was found out.
    """

    data: Decoded
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    report: DataReport

    def positions(self, split: str) -> NDArray[np.int64]:
        """int64 [M]: where the split's images are."""
        return np.array([i for i, found in enumerate(self.splits) if found == split], dtype=np.int64)

    def targets(self) -> list[int]:
        """Class index of every record."""
        index = {label: number for number, label in enumerate(self.labels)}
        return [index[record.label] for record in self.data.records]


@dataclass(frozen=True)
class Finished:
    """A run that has just been made, with its figures."""

    run: Run
    report: DataReport
    test: Predictions


def prepare(
    path: Path, settings: TrainSettings, *, cache: Path | None = None, progress: Progress | None = None
) -> Prepared:
    """List, decode and split a data set.

    Raises:
        DataError: it cannot be trained on.
    """
    source = open_source(path, patient_regex=settings.patient_regex)
    labels = classes(source)
    data = decode_once(source, settings.size, cache or default_cache_folder(), progress=progress)
    fractions = Fractions(settings.val_fraction, settings.test_fraction)
    splits = assign_splits(data, labels, fractions=fractions, seed=settings.seed)
    return Prepared(data, labels, splits, report(data, splits, labels, source.ignored))


def train(
    path: Path,
    out: Path,
    settings: TrainSettings,
    *,
    machine: Machine = Machine(),
    resume: bool = False,
    force: bool = False,
    cache: Path | None = None,
    tensorboard: bool = False,
    show_progress: bool = False,
    decoding: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Finished | None:
    """Train, and write the run to `out`, which appears when it is whole; until then it is `out` + ".unfinished".

    Args:
        path: the data set.
        out: the run's folder.
        settings: how to train.
        machine: what on.
        resume: go on with an unfinished run from its last whole epoch.
        force: replace a finished, or drop an unfinished, run.
        cache: folder of decoded images.
        tensorboard: also log for TensorBoard.
        show_progress: draw a progress bar.
        decoding: called with (done, all) while pictures are decoded.
        say: called with lines for people.

    Returns:
        The run; None on all but the first process of a distributed training.

    Raises:
        TrainError: bad data, settings, weights or checkpoint; or `out` exists.
    """
    started = time.monotonic()
    first_process = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    aside = unfinished_folder(out)
    if first_process:
        _check_folders(out, aside, resume=resume, force=force)
    prepared = prepare(path, settings, cache=cache, progress=decoding)
    for line in prepared.report.lines():
        say(line)
    if first_process:
        _open_folder(aside, settings, prepared, resume=resume)

    torch.manual_seed(mix(settings.seed))
    preprocessing = Preprocessing(settings.size, IMAGENET_MEAN, IMAGENET_STD)
    network = Network(settings.architecture, len(prepared.labels), preprocessing, dropout=settings.dropout)
    initialise(network, settings.weights)
    network = network.to(memory_format=torch.channels_last)
    history = History(aside / "metrics.csv")
    trainer = _trainer(
        aside, settings, machine, history, tensorboard=tensorboard, show_progress=show_progress
    )
    _fit(trainer, network, prepared, settings, machine, aside if resume else None)
    if not trainer.is_global_zero:
        return None

    best = aside / _CHECKPOINTS / "best.ckpt"
    _take_weights(network, best)
    finished = _finish(network, prepared, settings, history, best, aside, out, started)
    _put_in_place(aside, out)
    return Finished(Run.open(out), prepared.report, finished)


def _check_folders(out: Path, aside: Path, *, resume: bool, force: bool) -> None:
    if out.exists() and not force:
        raise TrainError(f"{out}: exists already; name another folder with --out, or replace it with --force")
    if resume and not (aside / _SETTINGS).is_file():
        raise CheckpointError(f"{aside}: no unfinished run to go on with; leave --resume out")
    if aside.exists() and not resume:
        if not force:
            raise TrainError(f"{aside}: an unfinished run; go on with --resume, or start over with --force")
        shutil.rmtree(aside)


def _open_folder(aside: Path, settings: TrainSettings, prepared: Prepared, *, resume: bool) -> None:
    wanted = {"settings": to_plain(settings), "data_fingerprint": prepared.data.fingerprint()}
    path = aside / _SETTINGS
    if resume:
        try:
            found = json.loads(path.read_text("utf-8"))
            conform(found["settings"], TrainSettings, "")
        except (ValueError, KeyError, TypeError, PocketDxError) as problem:
            raise CheckpointError(f"{path}: damaged ({problem}); start over with --force") from problem
        _refuse_changes(path, found, wanted)
        return
    aside.mkdir(parents=True)
    write_json(path, wanted)
    splits = {
        record.name: split
        for record, split in zip(prepared.data.records, prepared.splits, strict=True)
        if split
    }
    write_json(aside / DATA_FILE, {"report": prepared.report, "splits": splits})


def _refuse_changes(path: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    """A resumed run must end as the uninterrupted one would have: nothing that shapes it may differ."""
    if found.get("data_fingerprint") != wanted["data_fingerprint"]:
        raise CheckpointError(
            f"{path}: the images have changed since this run began; start over with --force"
        )
    old, new = found["settings"], wanted["settings"]
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    changed = [f"{name} was {old.get(name)!r}" for name in new if old.get(name) != new[name]]
    if changed:
        raise CheckpointError(
            f"{path}: begun with other settings ({', '.join(changed)}); give the same, or start over with --force"
        )


def _trainer(
    aside: Path,
    settings: TrainSettings,
    machine: Machine,
    history: History,
    *,
    tensorboard: bool,
    show_progress: bool,
) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    folder = aside / _CHECKPOINTS
    callbacks: list[Callback] = [history]
    if settings.ema:
        callbacks.append(MovingAverage(settings.ema))
    if settings.patience:
        callbacks.append(EarlyStopping(settings.monitor, mode="max", patience=settings.patience))
    callbacks += [
        ModelCheckpoint(
            folder, "best", monitor=settings.monitor, mode="max", enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True),
    ]  # fmt: skip
    if show_progress:
        callbacks.append(TQDMProgressBar(leave=True))
    several = machine.devices not in {"auto", "1"} or machine.nodes > 1
    try:
        return lightning.Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices if machine.devices == "auto" else int(machine.devices),
            num_nodes=machine.nodes,
            # The head's epochs leave the backbone without gradients.
            strategy="ddp_find_unused_parameters_true" if several else "auto",
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=settings.all_epochs,
            callbacks=callbacks,
            plugins=[SafetensorsCheckpointIO()],
            logger=_tensorboard(aside) if tensorboard else False,
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            default_root_dir=aside,
        )
    except (
        ValueError,
        RuntimeError,
        lightning.fabric.utilities.exceptions.MisconfigurationException,
    ) as problem:
        raise TrainError(f"cannot train on this machine so: {' '.join(str(problem).split())}") from problem


def _tensorboard(aside: Path) -> lightning.pytorch.loggers.Logger:
    try:
        return lightning.pytorch.loggers.TensorBoardLogger(aside, name="tensorboard", version="")
    except ModuleNotFoundError as problem:
        raise TrainError("--tensorboard needs TensorBoard: pip install 'pocketdx[tensorboard]'") from problem


def _fit(
    trainer: lightning.Trainer,
    network: Network,
    prepared: Prepared,
    settings: TrainSettings,
    machine: Machine,
    resumed: Path | None,
) -> None:
    targets = prepared.targets()
    training, validation = prepared.positions("train"), prepared.positions("val")
    labels = np.array([targets[i] for i in training], dtype=np.int64)
    by_class = class_weights(labels, len(prepared.labels))
    sampling = by_class[labels] if settings.balance == "sampling" else None
    # A last batch of one picture would leave a batch norm without variance.
    batch_size = min(settings.batch_size, len(training))
    train_loader: DataLoader[Item] = DataLoader(
        TrainingSet(prepared.data.pixels, training, targets, augmentation(settings.augment), settings.seed),
        batch_size=batch_size,
        sampler=EpochSampler(len(training), settings.seed, sampling),
        drop_last=True,
        num_workers=machine.workers,
        persistent_workers=machine.workers > 0,
    )
    val_loader: DataLoader[Item] = DataLoader(
        PlainSet(prepared.data.pixels, validation, targets), batch_size=settings.batch_size
    )
    weights = torch.tensor(by_class, dtype=torch.float32) if settings.balance == "weights" else None
    module = Classifier(
        network,
        settings,
        classes=len(prepared.labels),
        class_weights=weights,
        steps_per_epoch=max(1, len(training) // batch_size // trainer.world_size),
    )
    last = resumed / _CHECKPOINTS / "last.ckpt" if resumed else None
    with warnings.catch_warnings():
        # Lightning advises more workers and logging steps; neither is the user's concern here.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=UserWarning, module="torchmetrics")
        trainer.fit(module, train_loader, val_loader, ckpt_path=last if last and last.is_file() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _take_weights(network: Network, best: Path) -> None:
    prefix = "network.backbone."
    state = load_state(best)["state_dict"]
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    apply_weights(network, weights, str(best))
    bad = [
        name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        raise TrainError(
            f"training diverged ({bad[0]} is not finite); lower --lr, or use --precision 32-true"
        )


def _finish(
    network: Network,
    prepared: Prepared,
    settings: TrainSettings,
    history: History,
    best: Path,
    aside: Path,
    out: Path,
    started: float,
) -> Predictions:
    """Calibrate on validation, evaluate on test, and write the run's files."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predict = network_logits(network, device)
    validation = predict_set(
        predict, prepared.data, prepared.positions("val"), prepared.labels, temperature=1.0
    )
    temperature = fit_temperature(validation.logits, validation.truth)
    test = predict_set(
        predict, prepared.data, prepared.positions("test"), prepared.labels, temperature=temperature
    )

    weights = {name: tensor.contiguous() for name, tensor in network.cpu().backbone.state_dict().items()}
    save_file(weights, aside / WEIGHTS_FILE, metadata={"format": "pt", "architecture": settings.architecture})
    record = RunRecord(
        settings=settings,
        labels=prepared.labels,
        preprocessing=network.preprocessing,
        temperature=temperature,
        thresholds=Thresholds(),
        data_fingerprint=prepared.data.fingerprint(),
        weights_digest=digest(aside / WEIGHTS_FILE),
        best_epoch=int(load_state(best)["epoch"]),
        metrics={f"test/{name}": interval for name, interval in test.evaluation.headline().items()},
        software={name: version(name) for name in ("pocketdx", "torch", "torchvision", "lightning", "numpy")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
    )
    write_json(aside / "test_metrics.json", test.evaluation.to_dict())
    _write_predictions(aside / "test_predictions.csv", test, prepared.labels)
    plots.save_curves(history.epochs, aside / "curves.png")
    plots.save_confusion(test.evaluation, aside / "confusion.png")
    plots.save_roc(test.truth, test.probabilities, prepared.labels, aside / "roc.png")
    write_json(aside / RUN_FILE, record)
    return test


def _write_predictions(path: Path, predictions: Predictions, labels: tuple[str, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "truth", "prediction", *labels])
        for name, truth, row in zip(
            predictions.names, predictions.truth, predictions.probabilities, strict=True
        ):
            answer = labels[int(row.argmax())]
            writer.writerow([name, labels[int(truth)], answer, *(f"{p:.6f}" for p in row)])


def _put_in_place(aside: Path, out: Path) -> None:
    shutil.rmtree(aside / _CHECKPOINTS)
    (aside / _SETTINGS).unlink()
    if out.exists():  # only with --force
        old = out.with_name(f".{out.name}.replaced")
        out.rename(old)
        aside.rename(out)
        shutil.rmtree(old)
    else:
        aside.rename(out)
