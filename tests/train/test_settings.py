"""Settings check themselves before anything else happens."""

from __future__ import annotations

from typing import Any

import pytest

from pocketdx_runtime.conform import conform, to_plain
from pocketdx_runtime.errors import PocketDxError
from pocketdx_train.errors import TrainError
from pocketdx_train.settings import TrainSettings, flag

BAD: dict[str, list[Any]] = {
    "architecture": ["resnet18"],
    "size": [31, 5000],
    "epochs": [0],
    "head_epochs": [-1],
    "finetune": ["some"],
    "batch_size": [1],
    "lr": [0.0, -1.0, 10.0, float("nan")],
    "head_lr": [0.0],
    "weight_decay": [-0.1, 1.0, float("nan")],
    "warmup": [1.0],
    "label_smoothing": [1.0],
    "mixup": [-1.0, float("inf"), float("nan")],
    "dropout": [1.0],
    "balance": ["maybe"],
    "augment": ["wild"],
    "ema": [1.0],
    "soup": [0, 101],
    "patience": [-1],
    "monitor": ["accuracy"],
    "val_fraction": [0.0, 0.95],
    "test_fraction": [0.0, 0.85],
    "seed": [-1, 2**31],
    "split_seed": [-1, 2**31],
    "precision": ["8-bit"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_out_of_range_is_refused_by_its_flag_with_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(TrainError) as error:
        TrainSettings(**{name: value})
    assert str(error.value).startswith(f"{flag(name)} {value}: give ")


@pytest.mark.parametrize(("teachers", "given"), [(("",), ""), (("run", ""), "run, ")])
def test_a_teacher_without_a_name_is_refused(teachers: tuple[str, ...], given: str) -> None:
    with pytest.raises(TrainError) as error:
        TrainSettings(teacher=teachers)
    assert str(error.value) == f"--teacher {given}: give the folder of a run"


def test_a_setting_of_the_wrong_type_is_refused_by_name() -> None:
    with pytest.raises(PocketDxError, match="epochs is 'many', expected a whole number"):
        TrainSettings(epochs="many")  # type: ignore[arg-type]


def test_flags_are_spelled_as_on_the_command_line() -> None:
    assert [flag(name) for name in ("lr", "head_epochs", "val_fraction")] == ["--lr", "--head-epochs", "--val"]


def test_freezing_layers_that_have_learnt_nothing_is_refused() -> None:
    with pytest.raises(TrainError, match="--finetune frozen"):
        TrainSettings(finetune="frozen", weights="none")


@pytest.mark.parametrize(
    ("changes", "said"), [({"weights": "none"}, "--soup: .*--weights"), ({"patience": 2}, "--patience")]
)
def test_a_soup_needs_a_common_start_and_whole_trainings(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        TrainSettings(soup=2, **changes)


def test_patience_needs_something_to_wait_for() -> None:
    with pytest.raises(TrainError, match="--patience: with --monitor last"):
        TrainSettings(monitor="last", patience=2)


def test_settings_survive_json() -> None:
    settings = TrainSettings(patient_regex=r"person(\d+)_", mixup=0.2)
    assert conform(to_plain(settings), TrainSettings, "") == settings
