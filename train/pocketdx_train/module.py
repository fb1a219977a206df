"""What Lightning runs: one training step, one validation step, the optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import lightning
import torch
from torch import nn
from torchmetrics.classification import MulticlassAUROC

from pocketdx_train.architectures import Network
from pocketdx_train.loading import mix
from pocketdx_train.settings import TrainSettings
from pocketdx_train.shift import shift_mixed

# Of the batch norms' running statistics: PyTorch's default. torchvision's 0.01 for MobileNetV3 is made for hundreds of
# epochs; after a short training the statistics would still be ImageNet's, or those of the random start, and every
# answer off (on 3 x 40 cells, fine-tuned for 75 steps: accuracy 0.84 instead of 0.97).
_MOMENTUM = 0.1

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Classifier(lightning.LightningModule):
    """A network in training.

    Args:
        network: what learns.
        settings: how.
        classes: number of classes C.
        class_weights: float32 [C] for the loss, or None.
        steps_per_epoch: optimizer steps, for the schedule.
        teachers: in evaluation mode, with the same normalisation; what they say of a picture, in the mean, is learnt
            instead of the label. They learn nothing, and are no part of a checkpoint.
    """

    def __init__(
        self,
        network: Network,
        settings: TrainSettings,
        *,
        classes: int,
        class_weights: torch.Tensor | None,
        steps_per_epoch: int,
        teachers: Sequence[Network] = (),
    ) -> None:
        super().__init__()
        self._teachers = tuple(teachers)  # in a tuple Lightning does not find them
        self.network = network
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.auc = MulticlassAUROC(classes, average="macro")
        self.auc_shifted = MulticlassAUROC(classes, average="macro")

    def on_fit_start(self) -> None:
        """Put the teachers where the network is."""
        for teacher in self._teachers:
            teacher.requires_grad_(False).to(memory_format=torch.channels_last)
            teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Everything learns, or the classifier alone; then the backbone's batch norms must not drift either."""
        self.network.train()
        if self._backbone_is_fixed():
            self.network.backbone.features.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one batch."""
        # Dropout and mixup are a function of the step, whatever else has drawn random numbers: a resumed run, whose
        # loaders are made at another moment, repeats them.
        torch.manual_seed(mix(self.settings.seed, self.current_epoch, batch_idx, self.global_rank))
        self._set_momentum(batch_idx)
        pixels, labels, _ = batch
        normalised = self.network.normalise(pixels).contiguous(memory_format=torch.channels_last)
        if self.settings.mixup:
            loss = self._mixed_loss(normalised, labels)
        else:
            loss = self._loss(self._logits(normalised), labels, self._taught(normalised))
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and AUC of one batch, as it is and under simulated shift."""
        pixels, labels, numbers = batch
        logits = self.network(pixels).float()
        self.auc.update(logits.softmax(1), labels)
        shifted = self.network(shift_mixed(pixels, numbers)).float()
        self.auc_shifted.update(shifted.softmax(1), labels)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log("val_loss", loss, on_epoch=True, sync_dist=True, batch_size=len(labels))
        self.log("val_auc", self.auc, on_epoch=True, batch_size=len(labels))
        self.log("val_auc_shifted", self.auc_shifted, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter, 2019); decay on weights only; warm-up, then a cosine to zero."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.backbone.named_parameters():
            of_head = name.startswith("classifier.")
            groups.setdefault((of_head, parameter.ndim > 1), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": self.settings.weight_decay if decays else 0.0}
                for (_, decays), parameters in groups.items()
            ],
            lr=self.settings.lr,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [self._head_factor if of_head else self._body_factor for of_head, _ in groups]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _backbone_is_fixed(self) -> bool:
        return self.settings.finetune == "frozen" or self.current_epoch < self.settings.first_epochs

    def _set_momentum(self, batch_idx: int) -> None:
        """A plain mean over the first batches, so that what was there before is forgotten at once."""
        epoch = max(0, self.current_epoch - self.settings.first_epochs) % self.settings.epochs
        seen = epoch * self.steps_per_epoch + batch_idx
        for layer in self.network.backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = max(_MOMENTUM, 1.0 / (1 + seen))

    def _logits(self, normalised: torch.Tensor) -> torch.Tensor:
        # No gradient: the optimizer then leaves the backbone alone, weight decay included.
        with torch.no_grad() if self._backbone_is_fixed() else nullcontext():
            features = self.network.features(normalised)
        return self.network.classify(features)

    def _taught(self, normalised: torch.Tensor) -> torch.Tensor | None:
        """The mean of the teachers' probabilities, float32 [N, C], if there are any."""
        if not self._teachers:
            return None
        with torch.no_grad():
            each = [teacher.classify(teacher.features(normalised)).float().softmax(1) for teacher in self._teachers]
            return torch.stack(each).mean(0)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor | None = None) -> torch.Tensor:
        weight: Any = self.class_weights
        if taught is not None:
            return _distance(logits.float(), taught, None if weight is None else weight[labels])
        smoothing = self.settings.label_smoothing
        return nn.functional.cross_entropy(logits.float(), labels, weight=weight, label_smoothing=smoothing)

    def _mixed_loss(self, normalised: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """mixup: Zhang et al., ICLR 2018."""
        alpha = torch.tensor(self.settings.mixup)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(labels), device=normalised.device)
        mixed = share * normalised + (1 - share) * normalised[other]
        logits, taught = self._logits(mixed), self._taught(mixed)
        return share * self._loss(logits, labels, taught) + (1 - share) * self._loss(logits, labels[other], taught)

    def _body_factor(self, step: int) -> float:
        main = step - self.settings.first_epochs * self.steps_per_epoch
        if main < 0:
            return 0.0
        steps = self.settings.epochs * self.steps_per_epoch
        if self.settings.soup > 1:
            main %= steps  # each training of a soup has the whole schedule
        warmup = round(self.settings.warmup * steps)
        if main < warmup:
            return (main + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (main - warmup) / max(1, steps - warmup)))

    def _head_factor(self, step: int) -> float:
        if step < self.settings.first_epochs * self.steps_per_epoch:
            return self.settings.head_lr / self.settings.lr
        return self._body_factor(step)


def _distance(logits: torch.Tensor, probabilities: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy with a teacher's probabilities: Hinton et al., 2015, at temperature 1.

    Both see the same variation of a picture, and labels play no part, as in Beyer et al., CVPR 2022 ("a good teacher is
    patient and consistent").

    Args:
        logits: float32 [N, C].
        probabilities: float32 [N, C].
        weights: float32 [N] of the pictures, or None.
    """
    each = nn.functional.cross_entropy(logits, probabilities, reduction="none")
    return each.mean() if weights is None else (each * weights).sum() / weights.sum()
