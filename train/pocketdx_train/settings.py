"""Every choice of a training run, in one place that checks itself and is kept with the run."""

from __future__ import annotations

from dataclasses import dataclass

from pocketdx_runtime.conform import conform_fields
from pocketdx_train.errors import TrainError

# Named here as well as in architectures.py and augment.py, which need torch: `pocketdx --help` must not.
ARCHITECTURES = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
AUGMENTATIONS = ("none", "light", "medical", "strong")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
FINETUNING = ("two-phase", "full", "frozen")
BALANCING = ("weights", "sampling", "none")
LAST = "last"
MONITORS = ("val_auc_shifted", "val_auc", LAST)


def flag(name: str) -> str:
    """What the command line calls a field of `TrainSettings`."""
    return "--" + name.removesuffix("_fraction").replace("_", "-")


def shown(value: object) -> str:
    """A value of a field of `TrainSettings`, as it is given on the command line."""
    if value in (None, ()):
        return "not given"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _one_of(names: tuple[str, ...]) -> str:
    return f"one of {', '.join(names)}"


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes:
        architecture: a key of `architectures.ARCHITECTURES`.
        weights: where it starts: "imagenet", "none" or a .safetensors file.
        size: side of the input in pixels.
        epochs: of the main phase, in which every layer learns (or, with `frozen`, the classifier alone); with `soup`,
            of each training.
        head_epochs: before it, with a fixed backbone (two-phase only).
        finetune: "two-phase" (head first, then all), "full", or "frozen" (the classifier alone).
        batch_size: images a step, on each device.
        lr: peak learning rate of the main phase. head_lr: of the head's phase.
        weight_decay: decoupled (AdamW); not on biases and batch norms.
        warmup: share of the main phase with a rising learning rate; after it a cosine to 0.
        label_smoothing: in [0, 1); of labels, so without effect where there is a teacher.
        mixup: alpha of the Beta distribution (Zhang et al., 2018); 0 is off.
        dropout: before the final layer.
        balance: "weights" (in the loss), "sampling" (of the images) or "none".
        augment: a key of `augment.RECIPES`.
        ema: decay of the weights' moving average; 0 is off.
        teacher: folders of runs to learn from instead of the labels (distillation), of several the mean of their
            probabilities.
        soup: trainings of `epochs` epochs from the same start, whose weights are averaged (Wortsman et al., 2022).
        patience: epochs without a better `monitor` before training stops; 0 is never.
        monitor: what the best epoch is chosen by: AUC on validation under simulated shift, or as it is; or "last":
            none is chosen, training ends with its last.
        val_fraction, test_fraction: where the data has no such split.
        patient_regex: finds the patient in a file name.
        seed: of everything random.
        split_seed: of the splits that are drawn; None is `seed`. Runs with one of it are judged by the same pictures.
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
    teacher: tuple[str, ...] = ()
    soup: int = 1
    patience: int = 0
    monitor: str = "val_auc_shifted"
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    patient_regex: str | None = None
    seed: int = 0
    split_seed: int | None = None
    precision: str = "32-true"

    def __post_init__(self) -> None:
        """Check every value; a TrainError names the one that is wrong, as the command line calls it."""
        conform_fields(self)
        allowed = {
            "architecture": (self.architecture in ARCHITECTURES, _one_of(ARCHITECTURES)),
            "size": (32 <= self.size <= 4096, "32 to 4096 pixels"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "head_epochs": (self.head_epochs >= 0, "0 or more"),
            "finetune": (self.finetune in FINETUNING, _one_of(FINETUNING)),
            "batch_size": (self.batch_size >= 2, "2 or more"),  # a batch norm needs two values a channel
            "lr": (0 < self.lr < 10, "above 0 and below 10"),
            "head_lr": (0 < self.head_lr < 10, "above 0 and below 10"),
            "weight_decay": (0 <= self.weight_decay < 1, "from 0 to below 1"),
            "warmup": (0 <= self.warmup < 1, "from 0 to below 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "mixup": (0 <= self.mixup < 100, "from 0 to below 100"),
            "dropout": (0 <= self.dropout < 1, "from 0 to below 1"),
            "balance": (self.balance in BALANCING, _one_of(BALANCING)),
            "augment": (self.augment in AUGMENTATIONS, _one_of(AUGMENTATIONS)),
            "ema": (0 <= self.ema < 1, "from 0 to below 1"),
            "teacher": (all(self.teacher), "the folder of a run"),
            "soup": (1 <= self.soup <= 100, "1 to 100"),
            "patience": (self.patience >= 0, "0 or more"),
            "monitor": (self.monitor in MONITORS, _one_of(MONITORS)),
            "val_fraction": (0 < self.val_fraction < 0.9, "above 0 and below 0.9"),
            "test_fraction": (0 < self.test_fraction < 0.9 - self.val_fraction, "above 0, with --val below 0.9"),
            "seed": (0 <= self.seed < 2**31, "from 0 to 2147483647"),
            "split_seed": (0 <= (self.split_seed or 0) < 2**31, "from 0 to 2147483647"),
            "precision": (self.precision in PRECISIONS, _one_of(PRECISIONS)),
        }
        for name, (holds, expected) in allowed.items():
            if not holds:
                raise TrainError(f"{flag(name)} {shown(getattr(self, name))}: give {expected}")
        if self.finetune == "frozen" and self.weights == "none":
            raise TrainError("--finetune frozen: with --weights none the layers that are frozen have learnt nothing")
        if self.soup > 1 and self.weights == "none":
            raise TrainError("--soup: trainings from a random start end too far apart to be averaged; give --weights")
        if self.soup > 1 and self.patience:
            raise TrainError("--patience: with --soup each training runs its --epochs to the end; leave one out")
        if self.monitor == LAST and self.patience:
            raise TrainError("--patience: with --monitor last no epoch is better than another; leave one out")

    @property
    def first_epochs(self) -> int:
        """Epochs with a fixed backbone before the main phase."""
        return self.head_epochs if self.finetune == "two-phase" and self.weights != "none" else 0

    @property
    def all_epochs(self) -> int:
        """Epochs of both phases, of all the trainings that are averaged."""
        return self.first_epochs + self.soup * self.epochs
