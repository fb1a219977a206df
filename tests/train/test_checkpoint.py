"""A checkpoint comes back as it was, to the bit, and no pickle is ever read."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pocketdx_train.checkpoint import load_state, save_state
from pocketdx_train.errors import CheckpointError

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(st.dictionaries(st.text(), plain))
@settings(max_examples=25, deadline=None)
def test_nested_plain_values_come_back_equal_and_of_the_same_types(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("state") / "x.ckpt"
    save_state(state, path)
    back = load_state(path)
    assert back == state
    assert repr(back) == repr(state)


def test_tensors_come_back_to_the_bit_with_type_and_memory_format(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    odd = torch.tensor([math.nan, -0.0, math.inf])
    state: dict[str, Any] = {
        "weights": {"a": images, "b": odd, "half": torch.ones(3, dtype=torch.bfloat16)},
        "step": torch.tensor(7.0),
        "shared": [images[0], images[0]],
        "params": [(0, images), (1, None)],
    }
    save_state(state, tmp_path / "x.ckpt")
    back = load_state(tmp_path / "x.ckpt")
    assert torch.equal(back["weights"]["a"], images)
    assert back["weights"]["a"].stride() == images.stride()
    assert back["weights"]["b"].view(torch.int32).tolist() == odd.view(torch.int32).tolist()
    assert back["weights"]["half"].dtype == torch.bfloat16
    assert back["step"].shape == ()
    assert torch.equal(back["shared"][1], images[0])
    assert isinstance(back["params"][0], tuple)


def test_what_could_not_come_back_as_it_was_is_refused_when_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot hold a set"):
        save_state({"x": {1, 2}}, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_a_safetensors_file_and_no_pickle(tmp_path: Path) -> None:
    save_state({"x": torch.ones(2)}, tmp_path / "x.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.ckpt", weights_only=True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.ckpt", weights_only=False)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt: not a whole checkpoint"):
        load_state(Path("x.ckpt"))
    assert not Path("trapped").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name_in_one_line(share: float, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_state({"x": torch.ones(100), "y": list(range(50))}, path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CheckpointError) as error:
        load_state(path)
    assert str(error.value).startswith(f"{path}: not a whole checkpoint")
    assert "\n" not in str(error.value)


def test_a_safetensors_file_of_something_else_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    for name, says in [("weights.safetensors", "not a whole checkpoint"), ("no.ckpt", "no such checkpoint")]:
        with pytest.raises(CheckpointError, match=says):
            load_state(tmp_path / name)


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_state({"epoch": 1}, path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError) as error:
        save_state({"epoch": 2}, path)
    assert f"{path}: cannot be written" in str(error.value)
    assert "No space left on device" in str(error.value)
    assert "--resume" in str(error.value)
    assert load_state(path) == {"epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
