"""Parity: what passes, what fails, what cannot be compared, what is written. test_parity_mutations.py breaks files."""

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
from safetensors.torch import load_file, save_file

from graph_surgery import change, first_weight, node_of
from pocketdx_export.bundle import Bundle
from pocketdx_export.errors import ParityError
from pocketdx_export.parity import Report, compare_file
from pocketdx_export.parity.probe import first_convolution_input
from pocketdx_export.parity.report import LEVELS
from pocketdx_export.parity.tolerances import logit_scale
from pocketdx_export.parity_command import parity
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


def wrong_mean(model: onnx.ModelProto) -> None:
    change(model, "offset", lambda offset: np.full_like(offset, 127.5))


def test_an_honest_export_passes_every_check(bundle: Bundle, run: Run, chosen: ChosenSet) -> None:
    report = compare_file(bundle.files[0][1], run, chosen)
    assert report, report.table()
    assert {check.level for check in report.checks} == set(LEVELS)
    assert {check.road for check in report.checks} == {"runtime", "graph", ""}
    assert report.images == 48


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
    assert all(
        check["value"] is None or np.isfinite(check["value"]) for check in report.to_dict()["cells"][0]["checks"]
    )


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
        # fp16 and w8 are rated for trained networks; this one's weights are random.
        wide = [option for limit in ("auc_max=0.2", "cosine_min=0.9") for option in ("--tolerance", limit)]
        data = ["--against", str(run.folder), "--data", str(pictures), "--cache", str(cache)]
        return [str(bundle), *data, "--backend", "onnxruntime", *wide]

    def test_prints_a_table_and_keeps_the_report_in_the_bundle(
        self, bundle: Bundle, run: Run, pictures: Path, cache: Path
    ) -> None:
        result = CliRunner().invoke(parity, self.arguments(bundle.folder, run, pictures, cache))
        assert result.exit_code == 0, result.output
        assert "PASSED" in result.stdout
        assert "0 flips" in result.stdout
        kept = json.loads((bundle.folder / "parity.json").read_text())
        assert kept["passed"] is True
        assert kept["pictures"][0].startswith("test/blobs/")
        Bundle.open(bundle.folder)  # its sums hold the report too

    @pytest.mark.slow
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
        assert report["cells"][0]["images"] == 8
        failed = [check for check in report["cells"][0]["checks"] if not check["passed"]]
        assert "pixels" in {check["level"] for check in failed}
