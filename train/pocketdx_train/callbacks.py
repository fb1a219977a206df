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
from torch.optim.swa_utils import AveragedModel

from pocketdx_runtime.files import write_atomically
from pocketdx_train.errors import TrainError
from pocketdx_train.settings import LAST

FIGURES = ("train_loss", "val_loss", "val_auc", "val_auc_shifted")


class Averaging(WeightAveraging):
    """The average that is validated, and kept, instead of the weights: over the steps, and over several trainings.

    Over the steps: an exponential moving average of weights and batch-norm statistics. After epochs in which only the
    head learns, it starts from the pretrained backbone with its full decay, so that a share of those weights stays in
    it: averages of pretrained and fine-tuned weights lose less accuracy under a shift of the data than fine-tuned
    weights do (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022). Of few steps a slow average would
    keep almost nothing: in the end 1/e of the start is in it at most (on 3 x 20 cells, trained for 5 steps, accuracy
    0.82 instead of 0.44). Without such epochs the start is random, and the decay warms up, min(decay, (1 + n) /
    (10 + n)) after n steps, to forget it soon.

    Over trainings: a soup (Wortsman et al., Model soups, ICML 2022). When a training ends, the next begins with the
    weights from before the first, a fresh optimizer, and other batches and augmentations; what is kept is the mean of
    their averages. That mean is followed directly: where a moving average is drawn towards the current weights w,
    that of the m-th training is drawn towards ((m - 1) * soup + w) / m.

    Args:
        decay: of the moving average, in [0, 1); 0 takes the weights as they are.
        head_epochs: epochs at the start in which only the head learns.
        epochs: of each training after them.
    """

    def __init__(self, decay: float, *, head_epochs: int, epochs: int) -> None:
        super().__init__(avg_fn=self._drawn)
        self._decay = decay
        self._head_epochs = head_epochs
        self._epochs = epochs
        self._before = 0  # trainings before the current one
        self._steps = 0  # of each training
        self._head_only = False
        # In the order of `_tensors`: as the first training began, and the soup when the current one did.
        self._start: list[torch.Tensor] = []
        self._soup: list[torch.Tensor] = []

    def _drawn(self, averaged: torch.Tensor, target: torch.Tensor, seen: torch.Tensor | int) -> torch.Tensor:
        if self._head_only or not averaged.is_floating_point():
            return target
        steps = int(seen) - self._before * self._steps
        reached = 1.0 if self._head_epochs else (1 + steps) / (10 + steps)
        return torch.lerp(averaged, target, 1.0 - min(self._decay, reached))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fit the decay to the number of steps in which all layers learn."""
        self._steps = int(trainer.num_training_batches) * self._epochs
        if self._head_epochs:
            self._decay = min(self._decay, 1.0 - 1.0 / max(1, self._steps))

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note where the epoch belongs; the first of a training begins where the first of all began."""
        main = trainer.current_epoch - self._head_epochs
        self._head_only, self._before = main < 0, max(0, main // self._epochs)
        if main == 0 and (trainer.max_epochs or 0) > self._head_epochs + self._epochs:
            self._start = [tensor.detach().clone() for tensor in _tensors(pl_module)]
        elif main > 0 and main % self._epochs == 0:
            self._begin_again(trainer, pl_module)

    @torch.no_grad()
    def _begin_again(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        averages = _tensors(self._average_of(trainer).module)
        self._soup = [tensor.clone() for tensor in averages]
        for weights, start in zip(_tensors(pl_module), self._start, strict=True):
            weights.copy_(start)
        for average, target in zip(averages, self._targets(pl_module), strict=True):
            average.copy_(target)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()

    def _targets(self, pl_module: lightning.LightningModule) -> list[torch.Tensor]:
        """What the average is drawn towards."""
        now = [tensor.detach() for tensor in _tensors(pl_module)]
        if not self._before:
            return now
        share = 1.0 / (self._before + 1)
        return [
            torch.lerp(soup.to(weights.device), weights, share) if weights.is_floating_point() else weights
            for soup, weights in zip(self._soup, now, strict=True)
        ]

    def _average_of(self, trainer: lightning.Trainer) -> AveragedModel:
        if self._average_model is None:
            raise RuntimeError(f"{trainer.state.fn}: no average outside a training")
        return self._average_model

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the average on, once for each step of the optimizer."""
        if trainer.global_step > self._latest_update_step:
            target = _Tensors(self._targets(pl_module))
            self._average_of(trainer).update_parameters(target)  # type: ignore[arg-type]
            self._latest_update_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """What the average model itself does not know."""
        return super().state_dict() | {"start": self._start, "soup": self._soup}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        self._start, self._soup = list(state_dict["start"]), list(state_dict["soup"])


class _Tensors:
    """Stands for a module where torch's `AveragedModel` reads one: all its tensors, in its order."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    def parameters(self) -> list[torch.Tensor]:
        return self.tensors

    def buffers(self) -> list[torch.Tensor]:
        return []


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Weights, then buffers."""
    return [*module.parameters(), *module.buffers()]


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
            lower validation loss is better. "last": the later an epoch, the better.
        patience: epochs without a better one before training stops; 0 is never.
        last: file of the state to go on from.
        best: file of the best epoch's state.
        head_epochs: before the trainings of a soup.
        epochs: of each training of a soup; only where one ends is an epoch judged. None: every epoch is.

    Attributes:
        best_epoch: its number, from 1; 0 before the first.
    """

    def __init__(
        self,
        monitor: str,
        patience: int,
        *,
        last: Path,
        best: Path,
        head_epochs: int = 0,
        epochs: int | None = None,
    ) -> None:
        self.monitor = monitor
        self.patience = patience
        self.last = last
        self.best = best
        self.head_epochs = head_epochs
        self.epochs = epochs
        self.best_epoch = 0
        self._score = (-math.inf, -math.inf)
        self._waited = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that had stopped before it was interrupted does not go on."""
        self._stop_when_out_of_patience(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Judge the epoch that has just ended, and write its state."""
        figures = epoch_figures(trainer)
        by = float(trainer.current_epoch) if self.monitor == LAST else figures[self.monitor]
        score = (by, -figures["val_loss"])
        judged = self._is_whole(trainer.current_epoch + 1)
        better: bool = trainer.strategy.broadcast(judged and score > self._score)
        self._waited = 0 if better else self._waited + 1
        if better:
            self._score, self.best_epoch = score, trainer.current_epoch + 1
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)
        self._stop_when_out_of_patience(trainer)

    def _is_whole(self, epochs: int) -> bool:
        """Whether no training is in its midst after so many epochs."""
        main = epochs - self.head_epochs
        return self.epochs is None or (main > 0 and main % self.epochs == 0)

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
