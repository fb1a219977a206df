"""The loss, the schedule and the two phases do what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch

from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train import loop
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD, Network
from pocketdx_train.module import Classifier
from pocketdx_train.prepare import Prepared
from pocketdx_train.settings import TrainSettings

Quick = Callable[..., TrainSettings]


def network(size: int = 32, classes: int = 2) -> Network:
    torch.manual_seed(0)
    made = Network("mobilenet_v3_small", classes, Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD))
    return made.to(memory_format=torch.channels_last)


def classifier(settings: TrainSettings, *, weights: list[float] | None = None, steps: int = 10) -> Classifier:
    given = None if weights is None else torch.tensor(weights)
    return Classifier(network(), settings, classes=2, class_weights=given, steps_per_epoch=steps)


def trained(prepared: Prepared, settings: TrainSettings, steps: int | None = None) -> tuple[Network, Network]:
    """The network before and after."""
    before, after = network(), network()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=settings.all_epochs if steps is None else -1,
        max_steps=-1 if steps is None else steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with loop.quiet():
        loop.fit(trainer, after, prepared, settings)
    return before, after


def changed(before: Network, after: Network, prefix: str) -> list[str]:
    """Names of the weights and statistics below `prefix` that are not the same to the bit."""
    old, new = before.backbone.state_dict(), after.backbone.state_dict()
    return [name for name in old if name.startswith(prefix) and not torch.equal(old[name], new[name])]


# --- phases ----------------------------------------------------------------------------------------------------------


def test_the_heads_phase_changes_the_classifier_and_no_weight_or_statistic_of_the_backbone(
    prepared: Prepared, quick: Quick
) -> None:
    settings = quick(weights="imagenet", head_epochs=1, epochs=1)
    assert settings.first_epochs == 1
    before, after = trained(prepared, settings, steps=4)  # 28 images in batches of 8
    assert changed(before, after, "features.") == []
    assert "classifier.0.weight" in changed(before, after, "classifier.")


def test_frozen_training_never_changes_the_backbone(prepared: Prepared, quick: Quick) -> None:
    before, after = trained(prepared, quick(weights="imagenet", finetune="frozen", mixup=0.2))
    assert changed(before, after, "features.") == []
    assert "classifier.3.weight" in changed(before, after, "classifier.")


def test_after_the_heads_phase_everything_learns(prepared: Prepared, quick: Quick) -> None:
    before, after = trained(prepared, quick(weights="imagenet", head_epochs=1, epochs=1))
    names = set(changed(before, after, ""))
    assert names == set(before.backbone.state_dict())


def test_without_pretrained_weights_there_is_no_heads_phase(quick: Quick) -> None:
    assert quick(weights="none", head_epochs=3, epochs=2).all_epochs == 2
    assert quick(weights="imagenet", head_epochs=3, epochs=2).all_epochs == 5
    assert quick(weights="imagenet", head_epochs=3, epochs=2, finetune="full").all_epochs == 2


# --- schedule --------------------------------------------------------------------------------------------------------


def rates(settings: TrainSettings, *, steps: int = 10) -> tuple[list[float], list[float]]:
    """Learning rates of the backbone and the head at each step."""
    configured = classifier(settings, steps=steps).configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    body, head = [], []
    for _ in range(settings.all_epochs * steps):
        body.append(optimizer.param_groups[0]["lr"])
        head.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    return body, head


def test_the_rate_warms_up_and_then_falls_along_a_cosine_to_almost_nothing(quick: Quick) -> None:
    body, head = rates(quick(weights="none", epochs=4, lr=0.01, warmup=0.25))
    assert body == head
    assert body[:10] == pytest.approx([0.001 * step for step in range(1, 11)])
    assert body[10:] == pytest.approx([0.005 + 0.005 * math.cos(math.pi * step / 30) for step in range(30)])
    assert max(body) == pytest.approx(0.01)
    assert body[-1] < 0.0001


def test_in_the_heads_phase_the_head_has_its_own_rate_and_the_backbone_none(quick: Quick) -> None:
    body, head = rates(quick(weights="imagenet", head_epochs=2, epochs=2, lr=0.01, head_lr=0.05, warmup=0.5))
    assert body[:20] == [0.0] * 20
    assert head[:20] == pytest.approx([0.05] * 20)
    assert body[20:] == head[20:]
    assert body[20:30] == pytest.approx([0.001 * step for step in range(1, 11)])


def test_biases_and_batch_norms_do_not_decay(quick: Quick) -> None:
    module = classifier(quick(weight_decay=0.05))
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        dimensions = {parameter.ndim > 1 for parameter in group["params"]}
        assert dimensions == {group["weight_decay"] > 0}
    held = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert held == sum(parameter.numel() for parameter in module.network.parameters())


# --- loss ------------------------------------------------------------------------------------------------------------


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


LOGITS = [[2.0, -1.0], [0.5, 0.25], [-1.0, 3.0]]
LABELS = [0, 1, 0]


def test_label_smoothing_moves_its_share_evenly_over_the_classes(quick: Quick) -> None:
    loss = classifier(quick(label_smoothing=0.1))._loss(torch.tensor(LOGITS), torch.tensor(LABELS))
    by_hand = [
        -sum((0.95 if k == label else 0.05) * p for k, p in enumerate(log_softmax(row)))
        for row, label in zip(LOGITS, LABELS, strict=True)
    ]
    assert float(loss) == pytest.approx(sum(by_hand) / 3, rel=1e-6)


def test_class_weights_weigh_the_images_of_their_class(quick: Quick) -> None:
    module = classifier(quick(label_smoothing=0.0), weights=[0.5, 3.0])
    loss = module._loss(torch.tensor(LOGITS), torch.tensor(LABELS))
    weights = [[0.5, 3.0][label] for label in LABELS]
    by_hand = [-log_softmax(row)[label] for row, label in zip(LOGITS, LABELS, strict=True)]
    assert float(loss) == pytest.approx(
        sum(w * each for w, each in zip(weights, by_hand, strict=True)) / sum(weights), rel=1e-6
    )


def test_mixup_blends_pictures_and_losses_in_the_same_proportion(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    module = classifier(quick(mixup=0.4, label_smoothing=0.0))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda _: torch.tensor(0.3))
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([2, 0, 1]))
    seen: list[torch.Tensor] = []

    def answer(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(pictures)
        return torch.tensor(LOGITS)

    monkeypatch.setattr(module, "_logits", answer)
    pictures = torch.arange(3.0).view(3, 1, 1, 1)
    loss = module._mixed_loss(pictures, torch.tensor(LABELS))
    assert seen[0].flatten().tolist() == pytest.approx([0.7 * 2, 0.3 * 1, 0.3 * 2 + 0.7 * 1])
    rows = [log_softmax(row) for row in LOGITS]
    by_hand = [-0.3 * row[label] - 0.7 * row[other] for row, label, other in zip(rows, LABELS, [0, 0, 1], strict=True)]
    assert float(loss) == pytest.approx(sum(by_hand) / 3, rel=1e-6)


def test_mixup_draws_its_proportion_from_the_beta_distribution(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    module = classifier(quick(mixup=0.2))
    drawn: list[float] = []
    sample = torch.distributions.Beta.sample

    def noting(self: torch.distributions.Beta, *arguments: Any) -> torch.Tensor:
        drawn.append(float(sample(self, *arguments)))
        return torch.tensor(drawn[-1])

    monkeypatch.setattr(torch.distributions.Beta, "sample", noting)
    monkeypatch.setattr(module, "_logits", lambda _: torch.tensor(LOGITS))
    torch.manual_seed(0)
    for _ in range(400):
        module._mixed_loss(torch.zeros(3, 1, 1, 1), torch.tensor(LABELS))
    share = torch.tensor(drawn)
    assert share.mean() == pytest.approx(0.5, abs=0.06)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.15)  # of Beta(a, a)


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Take one training step without a trainer."""
    monkeypatch.setattr(Classifier, "log", lambda *_, **__: None)
    monkeypatch.setattr(Classifier, "global_rank", 0)

    def step(module: Classifier, prepared: Prepared, number: int, *, epoch: int = 0) -> float:
        monkeypatch.setattr(Classifier, "current_epoch", epoch)
        pixels = torch.from_numpy(prepared.data.pixels[8 * number : 8 * number + 8].copy()).permute(0, 3, 1, 2)
        return module.training_step((pixels, torch.tensor([0, 1] * 4), torch.arange(8)), number).item()

    return step


def test_a_step_draws_the_same_dropout_whatever_ran_before(
    quick: Quick, prepared: Prepared, stepping: Callable[..., float]
) -> None:
    module = classifier(quick(dropout=0.5)).train()
    losses = []
    for number, epoch in ((2, 3), (2, 3), (2, 4)):
        torch.rand(number)
        losses.append(stepping(module, prepared, number, epoch=epoch))
    assert losses[0] == losses[1] != losses[2]


def test_statistics_of_the_start_are_forgotten_at_once_and_then_averaged(
    quick: Quick, prepared: Prepared, stepping: Callable[..., float]
) -> None:
    module = classifier(quick()).train()
    norm: Any = module.network.backbone.features[0][1]
    norm.running_mean.fill_(1000.0)
    means: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean((0, 2, 3))))
    for number in range(3):
        stepping(module, prepared, number)
        assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    before = norm.running_mean.clone()
    stepping(module, prepared, 0, epoch=5)
    assert torch.allclose(norm.running_mean, 0.9 * before + 0.1 * means[-1], atol=1e-5)
