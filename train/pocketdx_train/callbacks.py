"""What accompanies the training loop: the moving average of the weights, and the record of the epochs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and batch-norm statistics; validated, and kept, instead of the weights.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n steps, so that the random start is soon forgotten.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: torch.Tensor, current: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
            if not averaged.is_floating_point():
                return current
            count = int(steps)
            return torch.lerp(averaged, current, 1.0 - min(decay, (1 + count) / (10 + count)))

        super().__init__(avg_fn=average)


class History(Callback):
    """Figures of each epoch, in `metrics.csv`; whole after a resume, since they are part of the checkpoint.

    Args:
        path: of the CSV file, rewritten after each epoch.
    """

    NAMES = ("train_loss", "val_loss", "val_auc", "val_auc_shifted")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the epoch that has just ended."""
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        row = {"epoch": float(trainer.current_epoch), "lr": float(max(rates))}
        row |= {name: float(trainer.callback_metrics[name]) for name in self.NAMES}
        self.epochs.append(row)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(self.epochs)
            self.path.write_text(text.getvalue(), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after these epochs."""
        self.epochs = list(state_dict["epochs"])
