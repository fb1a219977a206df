"""A network that learns from another one, and what it is not allowed to learn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train import fit
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD, Network
from pocketdx_train.errors import CheckpointError, TrainError
from pocketdx_train.module import Classifier
from pocketdx_train.settings import TrainSettings

Quick = Callable[..., TrainSettings]
Fill = Callable[..., Path]


class Says(torch.nn.Module):
    """A teacher that says the same of every picture."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def features(self, normalised: torch.Tensor) -> torch.Tensor:
        return normalised

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(features), -1)


def module_for(settings: TrainSettings, teachers: Sequence[Any], weights: list[float] | None = None) -> Classifier:
    network = Network("mobilenet_v3_small", 2, Preprocessing(32, IMAGENET_MEAN, IMAGENET_STD))
    given = None if weights is None else torch.tensor(weights)
    return Classifier(network, settings, classes=2, class_weights=given, steps_per_epoch=1, teachers=teachers)


LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-1.0, 1.0]])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_step_learns_what_the_teacher_says_whatever_the_labels_say(
    pictures: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch, mixup: float
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Classifier, "log", lambda *given, **_: seen.append(float(given[2])))
    monkeypatch.setattr(Classifier, "current_epoch", 1)
    monkeypatch.setattr(Classifier, "global_rank", 0)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8))
    torch.manual_seed(0)
    module = module_for(quick(balance="none", mixup=mixup), [Says(0.9, 0.1)])
    start = {name: value.clone() for name, value in module.network.state_dict().items()}
    for says, labels in ((0.9, [0, 0, 1, 1]), (0.9, [1, 0, 1, 0]), (0.2, [0, 0, 1, 1])):
        module.network.load_state_dict(start)
        module._teachers = (Says(says, 1 - says),)  # type: ignore[assignment]
        module.training_step((pixels, torch.tensor(labels), torch.arange(4)), 0)
    assert seen[0] == seen[1] != seen[2]


def test_the_loss_is_the_cross_entropy_with_the_teachers_probabilities(quick: Quick) -> None:
    taught = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    expected = -(taught * LOGITS.log_softmax(1)).sum(1)
    loss = module_for(quick(label_smoothing=0.3), [])._loss(LOGITS, torch.tensor([0, 1, 1]), taught)
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-6)


def test_of_several_teachers_the_mean_of_their_probabilities_is_learnt(quick: Quick) -> None:
    module = module_for(quick(), [Says(0.9, 0.1), Says(0.4, 0.6), Says(0.2, 0.8)])
    taught = module._taught(torch.zeros(2, 3, 32, 32))
    assert taught is not None
    assert taught.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5])


def test_pictures_weigh_as_their_class_does_without_a_teacher(quick: Quick) -> None:
    taught, labels = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1, 1])
    each = -(taught * LOGITS.log_softmax(1)).sum(1)
    loss = module_for(quick(), [], weights=[3.0, 0.5])._loss(LOGITS, labels, taught)
    assert float(loss) == pytest.approx(float((3 * each[0] + 0.5 * each[1] + 0.5 * each[2]) / 4), rel=1e-6)


def test_the_pupil_of_a_good_teacher_is_nearer_to_it_than_who_learnt_the_labels(
    pictures: Path, quick: Quick, finished: fit.Finished, tmp_path: Path
) -> None:
    def answers(**changes: Any) -> Any:
        done = fit.train(pictures, tmp_path / "-".join(changes or ["none"]), quick(epochs=8, seed=1, **changes))
        assert done is not None
        return done.test.probabilities

    teacher = finished.test.probabilities
    taught, labelled = answers(teacher=[str(finished.run.folder)]), answers()
    assert np.abs(taught - teacher).mean() < np.abs(labelled - teacher).mean()


def test_a_run_says_who_taught_it_and_holds_none_of_it(
    pictures: Path, quick: Quick, finished: fit.Finished, tmp_path: Path
) -> None:
    done = fit.train(pictures, tmp_path / "run", quick(epochs=1, teacher=[str(finished.run.folder)]))
    assert done is not None
    assert done.run.record.settings.teacher == (str(finished.run.folder),)
    assert done.run.weights.stat().st_size == finished.run.weights.stat().st_size


def test_a_teacher_of_other_classes_is_refused(
    filled: Fill, quick: Quick, finished: fit.Finished, tmp_path: Path
) -> None:
    data = filled(tmp_path / "data", {"disk": 12, "dots": 12})
    with pytest.raises(TrainError, match=r"--teacher .*disk, stripes.*disk, dots"):
        fit.train(data, tmp_path / "run", quick(teacher=[str(finished.run.folder)]))
    assert not (tmp_path / "run.unfinished").exists()


def test_a_teacher_of_another_size_is_refused_with_the_size_to_give(
    pictures: Path, quick: Quick, finished: fit.Finished, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="give --size 32"):
        fit.train(pictures, tmp_path / "run", quick(size=64, teacher=[str(finished.run.folder)]))


def test_what_is_no_run_cannot_teach(pictures: Path, quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run"):
        fit.train(pictures, tmp_path / "run", quick(teacher=[str(tmp_path / "nobody")]))


def test_a_teacher_that_has_learnt_what_its_pupil_is_judged_by_is_refused(
    filled: Fill, quick: Quick, tmp_path: Path
) -> None:
    data = filled(tmp_path / "data", {"disk": 20, "stripes": 20})
    teacher = fit.train(data, tmp_path / "teacher", quick(epochs=1, seed=1))
    assert teacher is not None
    with pytest.raises(TrainError, match=r"it has learnt \d+ pictures of the test split.*same --seed"):
        fit.train(data, tmp_path / "run", quick(epochs=1, seed=2, teacher=[str(teacher.run.folder)]))
    assert not (tmp_path / "run.unfinished").exists()
    assert fit.train(data, tmp_path / "run", quick(epochs=1, seed=1, teacher=[str(teacher.run.folder)])) is not None


def test_teachers_with_seeds_of_their_own_and_the_pupils_split_may_teach(
    filled: Fill, quick: Quick, tmp_path: Path
) -> None:
    data = filled(tmp_path / "data", {"disk": 20, "stripes": 20})
    runs = []
    for seed in (1, 2):
        done = fit.train(data, tmp_path / f"teacher-{seed}", quick(epochs=1, seed=seed, split_seed=3))
        assert done is not None
        runs.append(done.run)
    folders = [str(run.folder) for run in runs]
    pupil = fit.train(data, tmp_path / "run", quick(epochs=1, seed=3, teacher=folders))
    assert pupil is not None
    assert runs[0].splits() == runs[1].splits() == pupil.run.splits()
    assert runs[0].record.weights_digest != runs[1].record.weights_digest
