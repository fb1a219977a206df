"""An honest export passes; each way of breaking it fails, at the level where the fault is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

from pocketdx_export.bundle import Bundle
from pocketdx_export.commands import parity
from pocketdx_export.errors import ParityError
from pocketdx_export.parity import Report, compare_file
from pocketdx_export.parity.probe import first_convolution_input
from pocketdx_export.parity.tolerances import logit_scale
from pocketdx_runtime.manifest import MANIFEST_KEY, Manifest
from pocketdx_train.evaluation import ChosenSet, choose_set
from pocketdx_train.run import RUN_FILE, WEIGHTS_FILE, Run, digest, write_json

Breaking = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def chosen(run: Run, pictures: Path, cache: Path) -> ChosenSet:
    record = run.record
    return choose_set(pictures, record.labels, record.preprocessing.size, split=None, run=run, cache=cache)


@pytest.fixture
def compare_broken(bundle: Bundle, run: Run, chosen: ChosenSet, tmp_path: Path) -> Callable[[Breaking], Report]:
    """Break a copy of the exported file, and compare it."""

    def compare(breaking: Breaking) -> Report:
        model = onnx.load(bundle.files[0][1])
        breaking(model)
        onnx.checker.check_model(model)
        path = tmp_path / "broken.fp32.onnx"
        onnx.save(model, path)
        return compare_file(path, run, chosen)

    return compare


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def change(model: onnx.ModelProto, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of one initializer."""
    tensor = next(each for each in model.graph.initializer if each.name == name)
    values = new(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def insert_after(model: onnx.ModelProto, tensor: str, node: onnx.NodeProto) -> None:
    """Send all readers of `tensor` through `node`, which reads `tensor` and writes its own output."""
    for each in model.graph.node:
        for position, name in enumerate(each.input):
            if name == tensor:
                each.input[position] = node.output[0]
    node.input[0] = tensor
    producer = next(i for i, each in enumerate(model.graph.node) if tensor in each.output)
    model.graph.node.insert(producer + 1, node)


def change_manifest(model: onnx.ModelProto, **changes: object) -> None:
    text = next(each.value for each in model.metadata_props if each.key == MANIFEST_KEY)
    dataclasses.replace(Manifest.from_json(text), **changes).write_to(model)


def wrong_mean(model: onnx.ModelProto) -> None:
    change(model, "offset", lambda offset: np.full_like(offset, 127.5))


def mean_and_std_swapped_between_channels(model: onnx.ModelProto) -> None:
    change(model, "factor", lambda factor: factor[:, ::-1])


def resize_without_antialias(model: onnx.ModelProto) -> None:
    resize = node_of(model, "Resize")
    set_attribute(resize, "antialias", 0)
    set_attribute(resize, "exclude_outside", 0)  # goes with antialias only


def resize_half_a_pixel_off(model: onnx.ModelProto) -> None:
    resize = node_of(model, "Resize")
    set_attribute(resize, "coordinate_transformation_mode", "asymmetric")


def swapped_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    tensor = node_of(model, "Transpose").output[0]
    insert_after(model, tensor, helper.make_node("Gather", ["", "bgr"], ["swapped"], axis=1))


def first_weight(model: onnx.ModelProto) -> str:
    return str(node_of(model, "Conv").input[1])


def one_weight_with_a_flipped_exponent_bit(model: onnx.ModelProto) -> None:
    def flip(weights: np.ndarray) -> np.ndarray:
        bits = weights.reshape(-1).view(np.uint32)
        bits[np.abs(weights).argmax()] ^= np.uint32(1 << 24)
        return weights

    change(model, first_weight(model), flip)


def a_weight_perturbed_by_one_percent(model: onnx.ModelProto) -> None:
    def perturb(weights: np.ndarray) -> np.ndarray:
        flat = weights.reshape(-1)
        flat[np.abs(flat).argmax()] *= 1.01
        return weights

    change(model, first_weight(model), perturb)


def softmax_twice(model: onnx.ModelProto) -> None:
    softmax = node_of(model, "Softmax")
    softmax.output[0] = "once"
    model.graph.node.append(helper.make_node("Softmax", ["once"], ["probabilities"], axis=1))


def embedding_of_any_length(model: onnx.ModelProto) -> None:
    division = next(node for node in model.graph.node if "embedding" in node.output)
    division.output[0] = "unit"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3.0), "three"))
    model.graph.node.append(helper.make_node("Mul", ["unit", "three"], ["embedding"]))


def permuted_labels(model: onnx.ModelProto) -> None:
    change_manifest(model, labels=("stripes", "blobs"))


def lost_temperature(model: onnx.ModelProto) -> None:
    text = next(each.value for each in model.metadata_props if each.key == MANIFEST_KEY)
    change_manifest(model, temperature=Manifest.from_json(text).temperature + 0.5)


BROKEN: list[tuple[Breaking, str, str]] = [
    (wrong_mean, "pixels", "runtime"),
    (mean_and_std_swapped_between_channels, "pixels", "runtime"),
    (resize_without_antialias, "pixels", "graph"),
    (resize_half_a_pixel_off, "pixels", "graph"),
    (swapped_channels, "pixels", "runtime"),
    (one_weight_with_a_flipped_exponent_bit, "numbers", "runtime"),
    (a_weight_perturbed_by_one_percent, "numbers", "runtime"),
    (softmax_twice, "numbers", "runtime"),
    (embedding_of_any_length, "numbers", "runtime"),
    (permuted_labels, "manifest", ""),
    (lost_temperature, "manifest", ""),
]


def test_an_honest_export_passes_every_check(bundle: Bundle, run: Run, chosen: ChosenSet) -> None:
    report = compare_file(bundle.files[0][1], run, chosen)
    assert report, report.table()
    assert {check.level for check in report.checks} == {"manifest", "pixels", "numbers", "decisions"}
    assert {check.road for check in report.checks} == {"runtime", "graph", ""}
    assert report.images == 48


@pytest.mark.parametrize(("breaking", "level", "road"), BROKEN, ids=[each[0].__name__ for each in BROKEN])
def test_a_broken_export_fails_where_it_is_broken(
    compare_broken: Callable[[Breaking], Report], breaking: Breaking, level: str, road: str
) -> None:
    report = compare_broken(breaking)
    assert not report, report.table()
    assert (level, road) in {(check.level, check.road) for check in report.failed}, report.table()
    levels = ["manifest", "pixels", "numbers", "decisions"]
    assert min(levels.index(check.level) for check in report.failed) == levels.index(level), report.table()


def test_weights_of_another_training_fail(
    compare_broken: Callable[[Breaking], Report],
) -> None:
    def negate(model: onnx.ModelProto) -> None:
        last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
        change(model, last.input[1], lambda weights: -weights)

    report = compare_broken(negate)
    assert {"numbers", "decisions"} <= {check.level for check in report.failed}


def test_a_network_that_answers_nan_fails(compare_broken: Callable[[Breaking], Report]) -> None:
    def poison(model: onnx.ModelProto) -> None:
        change(model, first_weight(model), lambda weights: weights * np.nan)

    report = compare_broken(poison)
    assert not report
    assert "nan" in report.table()
    assert all(check["value"] is None or np.isfinite(check["value"]) for check in report.to_dict()["checks"])


def test_a_file_of_other_classes_cannot_be_compared(
    bundle: Bundle, run: Run, chosen: ChosenSet, tmp_path: Path
) -> None:
    record = dataclasses.replace(run.record, labels=("a", "b", "c"))
    other = dataclasses.replace(run, record=record)
    with pytest.raises(ParityError, match="2 classes"):
        compare_file(bundle.files[0][1], other, chosen)


def test_a_run_of_another_input_size_cannot_be_compared(bundle: Bundle, run: Run, chosen: ChosenSet) -> None:
    larger = dataclasses.replace(run.record.preprocessing, size=96)
    other = dataclasses.replace(run, record=dataclasses.replace(run.record, preprocessing=larger))
    with pytest.raises(ParityError, match=r"64 pixels a side.*has 96.*--against"):
        compare_file(bundle.files[0][1], other, chosen)


def test_limits_of_logits_grow_with_logits_beyond_ten() -> None:
    assert logit_scale(np.array([9.0, -3.0], np.float32)) == 1.0
    assert logit_scale(np.array([40.0, -250.0], np.float32)) == 25.0
    assert logit_scale(np.array([np.nan, 400.0], np.float32)) == 1.0


def test_the_probe_finds_the_tensor_before_the_first_convolution(bundle: Bundle) -> None:
    graph = onnx.load(bundle.files[0][1]).graph
    assert first_convolution_input(graph, "model") == node_of(onnx.load(bundle.files[0][1]), "Conv").input[0]
    without = onnx.GraphProto()
    without.input.add(name="image")
    with pytest.raises(ParityError, match="no convolution"):
        first_convolution_input(without, "model")


class TestCommand:
    def arguments(self, bundle: Path, run: Run, pictures: Path, cache: Path) -> list[str]:
        return [str(bundle), "--against", str(run.folder), "--data", str(pictures), "--cache", str(cache)]

    def test_prints_a_table_and_keeps_the_report_in_the_bundle(
        self, bundle: Bundle, run: Run, pictures: Path, cache: Path
    ) -> None:
        result = CliRunner().invoke(parity, self.arguments(bundle.folder, run, pictures, cache))
        assert result.exit_code == 0, result.output
        assert "PASSED" in result.stdout
        assert "top-1 agreement" in result.stdout
        kept = json.loads((bundle.folder / "parity.json").read_text())
        assert kept["passed"] is True
        assert kept["files"][0]["facts"]["pictures"][0].startswith("test/blobs/")
        Bundle.open(bundle.folder)  # its sums hold the report too

    def test_a_comparison_with_another_run_does_not_replace_the_bundles_report(
        self, bundle: Bundle, run: Run, pictures: Path, cache: Path, tmp_path: Path
    ) -> None:
        arguments = self.arguments(bundle.folder, run, pictures, cache)
        assert CliRunner().invoke(parity, arguments).exit_code == 0
        before = (bundle.folder / "parity.json").read_bytes()
        other = Path(shutil.copytree(run.folder, tmp_path / "other"))
        weights = {name: value * 1.5 for name, value in load_file(other / WEIGHTS_FILE).items()}
        save_file(weights, other / WEIGHTS_FILE)
        write_json(other / RUN_FILE, dataclasses.replace(run.record, weights_digest=digest(other / WEIGHTS_FILE)))
        arguments[arguments.index(str(run.folder))] = str(other)
        assert CliRunner().invoke(parity, arguments).exit_code == 1
        assert (bundle.folder / "parity.json").read_bytes() == before

    def test_exits_with_1_and_names_the_failed_check_for_a_broken_file(
        self, bundle: Bundle, run: Run, pictures: Path, cache: Path, tmp_path: Path
    ) -> None:
        model = onnx.load(bundle.files[0][1])
        wrong_mean(model)
        onnx.save(model, tmp_path / "broken.onnx")
        result = CliRunner().invoke(
            parity, [*self.arguments(tmp_path / "broken.onnx", run, pictures, cache), "--json", "--limit", "8"]
        )
        assert result.exit_code == 1
        report = json.loads(result.stdout)
        assert report["passed"] is False
        assert report["files"][0]["images"] == 8
        failed = [check for check in report["files"][0]["checks"] if not check["passed"]]
        assert "pixels" in {check["level"] for check in failed}
