"""The self-test: green for the right model on a right machine, red for anything else."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pocketdx_runtime import Model
from pocketdx_runtime.errors import ModelError
from pocketdx_runtime.selftest import read_golden, run_selftest

TOLERANCES = {"fp32": {"logits": 1e-4, "probabilities": 1e-4, "embedding": 1e-4}}


@pytest.fixture
def golden(tiny: ModuleType) -> dict[str, Any]:
    """Arrays of a golden file whose answers were computed without ONNX."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 32), (100, 70), (5, 9))]
    answers = [tiny.reference(image) for image in images]
    outputs = {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}
    named = {f"image_{index:04}": image for index, image in enumerate(images)}
    return {**named, **outputs, "tolerances": np.array(json.dumps(TOLERANCES))}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(arrays: dict[str, Any]) -> Path:
        np.savez(tmp_path / "golden.npz", **arrays)
        return tmp_path / "golden.npz"

    return write


Save = Callable[[dict[str, Any]], Path]


def test_the_right_model_passes(model_bytes: bytes, golden: dict[str, Any], save: Save) -> None:
    result = run_selftest(Model(model_bytes), save(golden))
    assert result
    assert (result.images, result.precision, result.untested) == (3, "fp32", ())
    assert [each.output for each in result.checks] == ["logits", "probabilities", "embedding"]
    assert all(0 < each.max_difference < 1e-5 for each in result.checks if each.output == "logits")
    assert result.machine.cpu
    assert result.digest == Model(model_bytes).digest


def with_own_answers(golden: dict[str, Any], precision: str, limit: float = 1e-4) -> dict[str, Any]:
    """The golden file with the answers of a file of that precision, here a constant off the full model's."""
    outputs = ("logits", "probabilities", "embedding")
    own = {f"{precision}/{name}": golden[name] + np.float32(0.5) for name in outputs}
    return {**golden, **own, f"{precision}/tolerances": np.array(json.dumps(dict.fromkeys(outputs, limit)))}


def test_a_lossy_file_is_held_to_what_it_answered_itself(
    model_bytes: bytes, golden: dict[str, Any], save: Save
) -> None:
    assert run_selftest(Model(model_bytes), save(with_own_answers(golden, "int8")))  # the file is fp32
    assert not run_selftest(Model(model_bytes), save(with_own_answers(golden, "fp32")))
    result = run_selftest(Model(model_bytes), save(with_own_answers(golden, "fp32", limit=0.6)))
    assert result
    assert result.reference == "this file, when it was exported"
    assert [each.max_difference for each in result.checks] == pytest.approx([0.5] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"int8/tolerances": np.array("{")}, "no valid tolerances"),
        ({"int8/tolerances": np.array('{"logits": -1}')}, "no valid tolerances"),
        ({"int8/logits": np.zeros((1, 2), np.float32)}, "int8/logits is float32"),
        ({"int8/logits": np.full((3, 3), np.nan, np.float32)}, "int8/logits holds numbers that are not finite"),
    ],
)
def test_damaged_answers_of_a_precision_are_named(
    golden: dict[str, Any], save: Save, damage: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        read_golden(save({**with_own_answers(golden, "int8"), **damage}))


@pytest.mark.parametrize("output", ["logits", "probabilities", "embedding"])
def test_one_number_that_differs_by_more_than_its_tolerance_fails(
    model_bytes: bytes, golden: dict[str, Any], save: Save, output: str
) -> None:
    golden[output][1, 0] += 2e-4
    result = run_selftest(Model(model_bytes), save(golden))
    assert not result
    failed = {each.output: each.max_difference for each in result.checks if not each}
    assert failed == {output: pytest.approx(2e-4, rel=0.05)}


def test_other_weights_fail(tiny: ModuleType, golden: dict[str, Any], save: Save) -> None:
    assert not run_selftest(Model(tiny.tiny_model(seed=1)), save(golden))


def test_wrong_preprocessing_fails(tiny: ModuleType, golden: dict[str, Any], save: Save) -> None:
    shifted = tiny.Preprocessing(32, (0.5, 0.456, 0.406), tiny.STD)
    assert not run_selftest(Model(tiny.tiny_model(preprocessing=shifted)), save(golden))


def test_an_answer_that_is_not_a_number_fails(tiny: ModuleType, golden: dict[str, Any], save: Save) -> None:
    proto = tiny.tiny_model_proto()
    for each in proto.graph.initializer:
        if each.name == "temperature":
            each.raw_data = np.array(np.nan, np.float32).tobytes()
    result = run_selftest(Model(proto.SerializeToString()), save(golden))
    assert not result
    assert [each.output for each in result.checks if not each] == ["probabilities"]


def test_outputs_without_golden_values_are_listed(model_bytes: bytes, golden: dict[str, Any], save: Save) -> None:
    del golden["embedding"]
    result = run_selftest(Model(model_bytes), save(golden))
    assert result
    assert result.untested == ("embedding",)


def test_the_precision_chooses_the_tolerances(tiny: ModuleType, golden: dict[str, Any], save: Save) -> None:
    golden["logits"] += np.float32(0.01)
    loose = {**TOLERANCES, "int8": {**TOLERANCES["fp32"], "logits": 0.1}}
    golden["tolerances"] = np.array(json.dumps(loose))
    assert run_selftest(Model(tiny.tiny_model(precision="int8")), save(golden))
    assert not run_selftest(Model(tiny.tiny_model(precision="fp32")), save(golden))
    with pytest.raises(ModelError, match=r"golden\.npz: no tolerances for the precision 'fp16'"):
        run_selftest(Model(tiny.tiny_model(precision="fp16")), save(golden))


def test_golden_values_of_another_model_are_an_error_not_a_verdict(
    tiny: ModuleType, golden: dict[str, Any], save: Save
) -> None:
    with pytest.raises(ModelError, match=r"logits is \[3, 2\], <bytes> gives \[3, 4\]: it belongs to another model"):
        run_selftest(Model(tiny.tiny_model(labels="ABCD")), save(golden))


def changed(golden: dict[str, Any], **arrays: Any) -> dict[str, Any]:
    return {key: value for key, value in {**golden, **arrays}.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"image_0000": None, "image_0001": None, "image_0002": None}, "no pictures"),
        ({"image_0001": np.zeros((4, 4, 3), np.float32)}, r"a picture is float32 \[4, 4, 3\]"),
        ({"image_0001": np.zeros((4, 4), np.uint8)}, r"a picture is uint8 \[4, 4\]"),
        ({"image_0002": None}, r"logits is float32 \[3, 2\], expected float32 \[2, \.\.\.\]"),
        ({"logits": np.zeros((3, 2))}, r"logits is float64 \[3, 2\]"),
        ({"logits": np.full((3, 2), np.nan, np.float32)}, "logits holds numbers that are not finite"),
        ({"logits": None, "probabilities": None, "embedding": None}, "no golden values for any output"),
        ({"tolerances": None}, "no valid tolerances"),
        ({"tolerances": np.array("hello")}, "no valid tolerances"),
        ({"tolerances": np.array("[1]")}, "no valid tolerances"),
        ({"tolerances": np.array('{"fp32": {"logits": -1}}')}, "a tolerance is negative"),
        ({"tolerances": np.array('{"fp32": {"logits": NaN}}')}, "negative or not finite"),
        ({"tolerances": np.array('{"fp32": {"logits": 1}}')}, "no tolerance for probabilities, embedding in fp32"),
        ({"tolerances": np.arange(3)}, "no valid tolerances"),
    ],
)
def test_a_golden_file_that_is_not_one_is_refused_with_its_name_and_the_remedy(
    model_bytes: bytes, golden: dict[str, Any], save: Save, arrays: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint) as refused:
        run_selftest(Model(model_bytes), save(changed(golden, **arrays)))
    assert "golden.npz: " in str(refused.value)
    assert str(refused.value).endswith("`pocketdx export`")


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + bytes(50)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(data)
    with pytest.raises(ModelError, match=r"golden\.npz: not a golden file"):
        read_golden(tmp_path / "golden.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    (tmp_path / "golden.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match=r"golden\.npz: not a golden file"):
        read_golden(tmp_path / "golden.npz")


def test_a_cut_file_is_refused_wherever_it_is_cut(golden: dict[str, Any], save: Save) -> None:
    path = save(golden)
    whole = path.read_bytes()
    for end in range(0, len(whole), 501):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError, match=r"golden\.npz: not a golden file"):
            read_golden(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"golden\.npz: cannot be read: No such file"):
        read_golden(tmp_path / "golden.npz")


class Bomb:
    """Would leave a mark if it were ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_is_ever_unpickled(tmp_path: Path, golden: dict[str, Any], save: Save) -> None:
    mark = tmp_path / "exploded"
    golden["image_0000"] = np.array([Bomb(mark)], dtype=object)
    with pytest.raises(ModelError, match="not a golden file"):
        read_golden(save(golden))
    assert not mark.exists()
