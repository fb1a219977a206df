"""What is evaluated is what one thinks: the test images, never by accident those of the training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_model
from pocketdx_runtime.model import Model
from pocketdx_train import fit
from pocketdx_train.errors import DataError, TrainError
from pocketdx_train.evaluation import ChosenSet, choose_set, model_logits, network_logits, predict_set, softmax
from pocketdx_train.run import Run
from pocketdx_train.settings import TrainSettings

Fill = Callable[..., Path]
LABELS = ("disk", "stripes")


@pytest.fixture(scope="module")
def unsplit(filled: Fill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class without splits. Do not change it."""
    return filled(tmp_path_factory.mktemp("unsplit"), {"disk": 20, "stripes": 20})


@pytest.fixture(scope="module")
def run(unsplit: Path, quick: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on `unsplit`, which drew its own splits."""
    done = fit.train(unsplit, tmp_path_factory.mktemp("runs") / "run", quick(epochs=1))
    assert done is not None
    return done.run


def names(chosen: ChosenSet) -> set[str]:
    return {chosen.data.records[i].name for i in chosen.positions}


def choose(path: Path, run: Run | None = None, split: str | None = None, **options: Any) -> ChosenSet:
    return choose_set(path, LABELS, 32, split=split, run=run, **options)


def recorded(run: Run, split: str) -> set[str]:
    return {name for name, found in run.splits().items() if found == split}


def test_a_runs_own_data_is_evaluated_on_what_the_run_kept_for_testing(run: Run, unsplit: Path) -> None:
    chosen = choose(unsplit, run)
    assert chosen.split == "test"
    assert names(chosen) == recorded(run, "test")
    assert len(names(chosen)) == 8
    for split in ("train", "val"):
        assert names(choose(unsplit, run, split)) == recorded(run, split)
    assert len(names(choose(unsplit, run, "all"))) == 40


def test_it_is_the_runs_own_data_wherever_it_lies(run: Run, unsplit: Path, tmp_path: Path) -> None:
    shutil.copytree(unsplit, tmp_path / "copy")
    assert names(choose(tmp_path / "copy", run)) == recorded(run, "test")


def test_data_that_has_changed_since_is_not_evaluated_as_if_it_were_new(
    run: Run, unsplit: Path, tmp_path: Path, filled: Fill
) -> None:
    data = tmp_path / "data"
    shutil.copytree(unsplit, data)
    filled(data, {"disk": 1}, start=500)
    with pytest.raises(DataError) as error:
        choose(data, run)
    assert "names of those that" in str(error.value)
    assert "--split all" in str(error.value)
    assert len(names(choose(data, run, "all"))) == 41


def test_other_data_is_evaluated_on_its_own_test_split_or_whole(
    run: Run, pictures: Path, filled: Fill, tmp_path: Path
) -> None:
    assert all(name.startswith("test/") for name in names(choose(pictures, run)))
    assert all(name.startswith("val/") for name in names(choose(pictures, run, "val")))
    other = filled(tmp_path, {"disk": 3, "stripes": 3}, start=700)
    chosen = choose(other, run)
    assert (chosen.split, len(names(chosen))) == ("all", 6)


def test_a_model_is_not_evaluated_on_its_training_data_unless_asked_to(run: Run, unsplit: Path) -> None:
    trained_on = run.record.data_fingerprint
    with pytest.raises(DataError) as error:
        choose(unsplit, trained_on=trained_on)
    assert "evaluate its run, which knows the test split, or say --split all" in str(error.value)
    assert len(names(choose(unsplit, split="all", trained_on=trained_on))) == 40
    assert len(names(choose(unsplit, trained_on="of other data"))) == 40


def test_classes_that_the_model_does_not_know_are_refused_by_name(filled: Fill, tmp_path: Path) -> None:
    filled(tmp_path, {"disk": 1, "rings": 1, "waves": 1})
    with pytest.raises(DataError) as error:
        choose(tmp_path)
    assert "classes that the model does not know: rings, waves; it knows disk, stripes" in str(error.value)


def test_data_with_fewer_classes_than_the_model_is_evaluated_on_those_it_has(
    run: Run, filled: Fill, tmp_path: Path
) -> None:
    chosen = choose(filled(tmp_path, {"stripes": 4}, start=700), run)
    predictions = predict_set(network_logits(run.network()), chosen.data, chosen.positions, LABELS, temperature=1.0)
    assert predictions.evaluation.auc is None
    assert predictions.evaluation.per_class[1].support == 4


def test_a_split_that_the_data_does_not_have_is_refused(filled: Fill, tmp_path: Path) -> None:
    filled(tmp_path, {"disk": 2, "stripes": 2})
    with pytest.raises(DataError, match="no readable image in the split 'val'; choose another with --split"):
        choose(tmp_path, split="val")


def test_patients_are_known_by_the_runs_own_pattern(
    quick: Callable[..., TrainSettings], unsplit: Path, tmp_path: Path
) -> None:
    settings = quick(epochs=1, patient_regex=r"(\d\d)\d\.png")  # groups of ten images, of both classes
    with pytest.raises(DataError, match="is left for the test split"):
        fit.train(unsplit, tmp_path / "run", settings)
    settings = quick(epochs=1, patient_regex=r"\d(\d\d)\.png")
    done = fit.train(unsplit, tmp_path / "run", settings)
    assert done is not None
    chosen = choose(unsplit, done.run)
    assert {record.patient for record in chosen.data.records} == {f"{i:02}" for i in range(20)}
    assert done.test.evaluation.patients == 4


def test_an_exported_file_and_a_network_answer_in_the_same_form(run: Run, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model.tiny_model(LABELS, 32))
    chosen = choose(pictures)
    for predict in (model_logits(Model(path)), network_logits(run.network())):
        predictions = predict_set(predict, chosen.data, chosen.positions, LABELS, temperature=2.0)
        assert predictions.logits.shape == predictions.probabilities.shape == (16, 2)
        assert np.allclose(predictions.probabilities, softmax(predictions.logits, 2.0))
        assert predictions.names == tuple(chosen.data.records[i].name for i in chosen.positions)


def test_answers_that_are_no_numbers_are_one_line(pictures: Path) -> None:
    chosen = choose(pictures)

    def broken(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(pixels), 2), np.nan, np.float32)

    with pytest.raises(TrainError, match="not finite numbers"):
        predict_set(broken, chosen.data, chosen.positions, LABELS, temperature=1.0)


def test_softmax_survives_large_logits_and_divides_by_the_temperature() -> None:
    assert softmax(np.array([[1e4, 0.0], [0.0, 2.0]], np.float32), 2.0) == pytest.approx(
        np.array([[1.0, 0.0], [1 / (1 + np.e), np.e / (1 + np.e)]])
    )
