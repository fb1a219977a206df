"""What accompanies the training loop: the average of the weights, the record of the epochs, what is kept of them."""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from pathlib import Path
from typing import Any, TextIO

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging

from pocketdx_runtime.files import write_atomically
from pocketdx_train.errors import TrainError

FIGURES = ("train_loss", "val_loss", "val_auc", "val_auc_shifted")


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and batch-norm statistics; validated, and kept, instead of the weights.

    After epochs in which only the head learns, the average starts from the pretrained backbone with its full decay,
    so that a share of those weights stays in it: averages of pretrained and fine-tuned weights lose less accuracy
    under a shift of the data than fine-tuned weights do (Wortsman et al., Robust fine-tuning of zero-shot models,
    CVPR 2022). Of few steps a slow average would keep almost nothing: in the end 1/e of the start is in it at most (on
    3 x 20 cells, trained for 5 steps, accuracy 0.82 instead of 0.44). Without such epochs the start is random, and the
    decay warms up, min(decay, (1 + n) / (10 + n)) after n steps, to forget it soon.

    Args:
        decay: in [0, 1).
        head_epochs: epochs at the start in which only the head learns.
    """

    def __init__(self, decay: float, *, head_epochs: int = 0) -> None:
        self._decay = decay
        self._head_epochs = head_epochs
        self._head_only = False

        def average(averaged: torch.Tensor, current: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
            if self._head_only or not averaged.is_floating_point():
                return current
            reached = 1.0 if head_epochs else (1 + int(steps)) / (10 + int(steps))
            return torch.lerp(averaged, current, 1.0 - min(self._decay, reached))

        super().__init__(avg_fn=average)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fit the decay to the number of steps in which all layers learn."""
        if self._head_epochs and trainer.max_epochs:
            steps = int(trainer.num_training_batches) * (trainer.max_epochs - self._head_epochs)
            self._decay = min(self._decay, 1.0 - 1.0 / max(1, steps))

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note which phase this epoch belongs to."""
        self._head_only = trainer.current_epoch < self._head_epochs


class History(Callback):
    """Figures of each epoch, in a CSV file; whole after a resume, since they are part of the checkpoint.

    Args:
        path: of the CSV file, rewritten after each epoch.

    Attributes:
        epochs: the figures, by name; "epoch" counts from 1, "lr" is the highest learning rate in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs: list[dict[str, float]] = []
        self._rate = 0.0
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, that of earlier, interrupted parts included."""
        return self._seconds_before + time.monotonic() - self._started

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the highest learning rate of the epoch."""
        self._rate = max(self._rate if batch_idx else 0.0, learning_rate(trainer))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the epoch that has just ended.

        Raises:
            TrainError: a figure is not finite: the training has diverged.
        """
        row = {"epoch": trainer.current_epoch + 1, "lr": self._rate} | epoch_figures(trainer)
        lost = [name for name, value in row.items() if not math.isfinite(value)]
        if lost:
            raise TrainError(
                f"training diverged in epoch {trainer.current_epoch + 1} ({lost[0]} is not finite); start over with "
                "--force and a lower --lr, or --precision 32-true"
            )
        self.epochs.append(row)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(self.epochs)
            write_atomically(self.path, text.getvalue().encode(), overwrite=True)

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far."""
        return {"epochs": self.epochs, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after these epochs."""
        self.epochs = list(state_dict["epochs"])
        self._seconds_before = float(state_dict["seconds"])
        self._started = time.monotonic()


class Keeper(Callback):
    """After each epoch: the state to go on from, the best epoch's state, and whether to stop.

    Lightning's own ModelCheckpoint forgets what was best when the folder has moved, and its EarlyStopping that it had
    stopped; a run resumed then would not end as the uninterrupted one.

    Args:
        monitor: the figure, higher is better; of equal ones (a small validation set saturates) the epoch with the
            lower validation loss is better.
        patience: epochs without a better one before training stops; 0 is never.
        last: file of the state to go on from.
        best: file of the best epoch's state.

    Attributes:
        best_epoch: its number, from 1; 0 before the first.
    """

    def __init__(self, monitor: str, patience: int, *, last: Path, best: Path) -> None:
        self.monitor = monitor
        self.patience = patience
        self.last = last
        self.best = best
        self.best_epoch = 0
        self._score = (-math.inf, -math.inf)
        self._waited = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that had stopped before it was interrupted does not go on."""
        self._stop_when_out_of_patience(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Judge the epoch that has just ended, and write its state."""
        figures = epoch_figures(trainer)
        score = (figures[self.monitor], -figures["val_loss"])
        better: bool = trainer.strategy.broadcast(score > self._score)
        self._waited = 0 if better else self._waited + 1
        if better:
            self._score, self.best_epoch = score, trainer.current_epoch + 1
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)
        self._stop_when_out_of_patience(trainer)

    def _stop_when_out_of_patience(self, trainer: lightning.Trainer) -> None:
        if self.patience and self._waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What was best, and how long ago."""
        return {"best_epoch": self.best_epoch, "score": self._score, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best_epoch, self._waited = state_dict["best_epoch"], state_dict["waited"]
        self._score = tuple(state_dict["score"])


class ProgressLine(Callback):
    """A line on a terminal that follows the epoch, and one that stays for each that is done.

    Args:
        stream: the terminal.
        epochs: how many there will be.
    """

    _INTERVAL = 0.2  # seconds between two drawings

    def __init__(self, stream: TextIO, epochs: int) -> None:
        self.stream = stream
        self.epochs = epochs
        self._began = self._drawn = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._began, self._drawn = time.monotonic(), 0.0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show how far the epoch is."""
        count, done = int(trainer.num_training_batches), batch_idx + 1
        now = time.monotonic()
        if now - self._drawn < self._INTERVAL and done < count:
            return
        self._drawn = now
        left = (now - self._began) / done * (count - done)
        width = max(10, min(30, shutil.get_terminal_size().columns - 50))
        filled = round(width * done / count)
        bar = "#" * filled + "." * (width - filled)
        self._draw(f"{self._epoch(trainer)}  {bar}  {done}/{count}  {_clock(left)} left")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say what takes time now."""
        self._draw(f"{self._epoch(trainer)}  validating")

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the epoch's figures behind."""
        figures = epoch_figures(trainer)
        self._draw(
            f"{self._epoch(trainer)}  loss {figures['train_loss']:.4f}  val: loss {figures['val_loss']:.4f}  "
            f"AUC {figures['val_auc']:.4f}  shifted {figures['val_auc_shifted']:.4f}  "
            f"{_clock(time.monotonic() - self._began)}\n"
        )

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave the line to what is said next."""
        self._draw("")

    def _epoch(self, trainer: lightning.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1:>{len(str(self.epochs))}}/{self.epochs}"

    def _draw(self, text: str) -> None:
        self.stream.write(f"\r\x1b[K{text}")
        self.stream.flush()


def epoch_figures(trainer: lightning.Trainer) -> dict[str, float]:
    """The figures of the epoch that has just ended, by name; see `FIGURES`."""
    return {name: float(trainer.callback_metrics[name]) for name in FIGURES}


def learning_rate(trainer: lightning.Trainer) -> float:
    """The highest among the parameter groups' rates."""
    return max(float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
