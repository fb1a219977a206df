"""The training loop: Lightning's, told what to do and kept quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.data import DataLoader

from pocketdx_train.architectures import Network
from pocketdx_train.augment import augmentation
from pocketdx_train.checkpoint import SafetensorsCheckpointIO
from pocketdx_train.errors import TrainError
from pocketdx_train.loading import EpochSampler, Item, PlainSet, TrainingSet, class_weights
from pocketdx_train.module import Classifier
from pocketdx_train.prepare import Prepared
from pocketdx_train.settings import ACCELERATORS, TrainSettings


@dataclass(frozen=True)
class Machine:
    """What to train on, in Lightning's words.

    Attributes:
        accelerator: one of `settings.ACCELERATORS`.
        devices: "auto", how many on each node, or which: "0,1".
        nodes: machines.
        workers: processes that augment pictures; 0 is none.
    """

    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise TrainError(f"--accelerator {self.accelerator}: give one of {', '.join(ACCELERATORS)}")
        if self.nodes < 1:
            raise TrainError(f"--nodes {self.nodes}: give 1 or more")
        if self.workers < 0:
            raise TrainError(f"--workers {self.workers}: give 0 or more")

    @property
    def cuda(self) -> bool:
        """Whether it is on NVIDIA's (or AMD's) GPUs."""
        return self.accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available()

    @property
    def several(self) -> bool:
        """Whether several processes train together."""
        one_node = torch.cuda.device_count() > 1 if self.devices == "auto" and self.cuda else False
        return self.nodes > 1 or one_node or self.devices not in {"auto", "1"}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice (more workers, other logging steps) and library warnings off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def make_trainer(
    settings: TrainSettings, machine: Machine, callbacks: list[Callback], *, folder: Path, tensorboard: bool
) -> lightning.Trainer:
    """Lightning's trainer for these settings.

    Args:
        settings: epochs and precision are looked at.
        machine: what to train on.
        callbacks: what accompanies the loop.
        folder: for TensorBoard's logs.
        tensorboard: whether to write them.

    Raises:
        TrainError: the machine cannot do it, or TensorBoard is not installed.
    """
    try:
        return lightning.Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.nodes,
            strategy=_strategy(settings) if machine.several else "auto",
            precision=settings.precision,  # type: ignore[arg-type]
            # A GPU's fastest convolutions differ from run to run, and a resumed run must not.
            deterministic="warn" if machine.cuda else None,
            max_epochs=settings.all_epochs,
            callbacks=callbacks,
            plugins=[SafetensorsCheckpointIO()],
            logger=_tensorboard(folder) if tensorboard else False,
            log_every_n_steps=10,
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            # Our sampler shares the images out, and each process validates all of them: Lightning's sampler would
            # fill uneven shares up with repeated images, which the AUC would count.
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as problem:
        raise TrainError(
            f"cannot train with --accelerator {machine.accelerator} --devices {machine.devices} "
            f"--precision {settings.precision}: {' '.join(str(problem).split())}"
        ) from problem


def _strategy(settings: TrainSettings) -> str:
    """Where the backbone is fixed, for some epochs or all, it has no gradients, and DDP must not wait for them."""
    fixed = settings.first_epochs > 0 or settings.finetune == "frozen"
    return "ddp_find_unused_parameters_true" if fixed else "ddp"


def _tensorboard(folder: Path) -> Logger:
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError as problem:
        raise TrainError("--tensorboard needs TensorBoard: pip install 'pocketdx[tensorboard]'") from problem


def fit(
    trainer: lightning.Trainer,
    network: Network,
    prepared: Prepared,
    settings: TrainSettings,
    *,
    teachers: Sequence[Network] = (),
    workers: int = 0,
    state: Path | None = None,
) -> None:
    """Train `network` in place.

    Args:
        trainer: of `make_trainer`.
        network: what learns.
        prepared: the data.
        settings: how to train.
        teachers: what it learns from instead of the labels.
        workers: processes that augment pictures.
        state: checkpoint to go on from.

    Raises:
        TrainError: the training diverged, or a checkpoint cannot be written.
        CheckpointError: `state` is damaged.
        KeyboardInterrupt: the user stopped it.
    """
    targets = prepared.targets()
    labels = targets[prepared.positions("train")]
    by_class = class_weights(labels, len(prepared.labels))
    sampling = by_class[labels] if settings.balance == "sampling" else None
    loader = _training_loader(trainer, prepared, targets, settings, sampling, workers)
    validation: DataLoader[Item] = DataLoader(
        PlainSet(prepared.data.pixels, prepared.positions("val"), targets), batch_size=settings.batch_size
    )
    module = Classifier(
        network,
        settings,
        classes=len(prepared.labels),
        class_weights=torch.tensor(by_class, dtype=torch.float32) if settings.balance == "weights" else None,
        steps_per_epoch=len(loader),
        teachers=teachers,
    )
    try:
        trainer.fit(module, loader, validation, ckpt_path=state)
    except SystemExit as stop:
        # What Lightning makes of Ctrl-C; it exits with 1, which here means that a gate has failed.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def _training_loader(
    trainer: lightning.Trainer,
    prepared: Prepared,
    targets: np.ndarray[tuple[int], np.dtype[np.int64]],
    settings: TrainSettings,
    sampling: np.ndarray[tuple[int], np.dtype[np.float64]] | None,
    workers: int,
) -> DataLoader[Item]:
    positions = prepared.positions("train")
    sampler = EpochSampler(
        len(positions),
        settings.seed,
        epoch=lambda: trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        weights=sampling,
        rank=trainer.global_rank,
        processes=trainer.world_size,
    )
    return DataLoader(
        TrainingSet(prepared.data.pixels, positions, targets, augmentation(settings.augment), settings.seed),
        batch_size=settings.batch_size,
        sampler=sampler,
        # A last batch of a few pictures would give batch norms poor statistics, one of one none at all.
        drop_last=0 < len(sampler) % settings.batch_size < min(settings.batch_size / 4, len(sampler)),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
