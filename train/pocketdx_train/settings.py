"""Every choice of a training run, in one place that checks itself and is kept with the run."""

from __future__ import annotations

from dataclasses import dataclass

from pocketdx_runtime.conform import conform_fields
from pocketdx_train.errors import TrainError

FINETUNING = ("two-phase", "full", "frozen")
BALANCING = ("weights", "sampling", "none")
MONITORS = ("val_auc_shifted", "val_auc")


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes:
        architecture: a key of `architectures.ARCHITECTURES`.
        weights: where it starts: "imagenet", "none" or a .safetensors file.
        size: side of the input in pixels.
        epochs: of the main phase, in which every layer learns (or, with `frozen`, the classifier alone).
        head_epochs: before it, with a fixed backbone (two-phase only).
        finetune: "two-phase" (head first, then all), "full", or "frozen" (the classifier alone).
        batch_size: images a step, on each device.
        lr: peak learning rate of the main phase. head_lr: of the head's phase.
        weight_decay: decoupled (AdamW); not on biases and batch norms.
        warmup: share of the main phase with a rising learning rate; after it a cosine to 0.
        label_smoothing: in [0, 1).
        mixup: alpha of the Beta distribution (Zhang et al., 2018); 0 is off.
        dropout: before the final layer.
        balance: "weights" (in the loss), "sampling" (of the images) or "none".
        augment: a key of `augment.RECIPES`.
        ema: decay of the weights' moving average; 0 is off.
        patience: epochs without a better `monitor` before training stops; 0 is never.
        monitor: what the best epoch is chosen by: AUC on validation under simulated shift, or as it is.
        val_fraction, test_fraction: where the data has no such split.
        patient_regex: finds the patient in a file name.
        seed: of everything random.
        precision: Lightning's: "32-true", "bf16-mixed", "16-mixed".
    """

    architecture: str = "mobilenet_v3_small"
    weights: str = "imagenet"
    size: int = 224
    epochs: int = 5
    head_epochs: int = 1
    finetune: str = "two-phase"
    batch_size: int = 32
    lr: float = 3e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.05
    mixup: float = 0.0
    dropout: float = 0.2
    balance: str = "weights"
    augment: str = "medical"
    ema: float = 0.99
    patience: int = 0
    monitor: str = "val_auc_shifted"
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    patient_regex: str | None = None
    seed: int = 0
    precision: str = "32-true"

    def __post_init__(self) -> None:
        """Check every value; a TrainError names the one that is wrong."""
        conform_fields(self)
        checks = {
            "size": self.size >= 32,
            "epochs": self.epochs >= 1,
            "head_epochs": self.head_epochs >= 0,
            "finetune": self.finetune in FINETUNING,
            "batch_size": self.batch_size >= 2,  # a batch norm needs two values a channel
            "lr": 0 < self.lr < 10,
            "head_lr": 0 < self.head_lr < 10,
            "weight_decay": 0 <= self.weight_decay < 1,
            "warmup": 0 <= self.warmup < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "mixup": self.mixup >= 0,
            "dropout": 0 <= self.dropout < 1,
            "balance": self.balance in BALANCING,
            "ema": 0 <= self.ema < 1,
            "patience": self.patience >= 0,
            "monitor": self.monitor in MONITORS,
            "seed": 0 <= self.seed < 2**31,
        }
        for name, holds in checks.items():
            if not holds:
                raise TrainError(f"{name.replace('_', '-')} {getattr(self, name)!r}: out of range")

    @property
    def first_epochs(self) -> int:
        """Epochs with a fixed backbone before the main phase."""
        return self.head_epochs if self.finetune == "two-phase" and self.weights != "none" else 0

    @property
    def all_epochs(self) -> int:
        """Epochs of both phases."""
        return self.first_epochs + self.epochs
