"""Bench measures each file by itself, and says when one is slower than fp32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pocketdx_export.bench.command import bench
from pocketdx_export.bench.report import Figures, Latency, Report, draw
from pocketdx_export.bundle import Bundle
from pocketdx_export.errors import ExportError
from pocketdx_runtime.machine import describe_machine


def figures(name: str, seconds: list[float], base: list[float]) -> Figures:
    return Figures(name, "onnx", "fp32", 1_000_000, 1.0, 0.1, 10, 20, {1: Latency.of(seconds, base)})


@pytest.fixture
def report() -> Report:
    base = [0.01] * 20
    rows = (figures("model.fp32.onnx", base, base), figures("model.int8.onnx", [0.02] * 19 + [0.5], base))
    return Report(rows, "model.fp32.onnx", 20, 0, describe_machine())


def test_the_ratio_is_of_pairs_so_that_a_slow_moment_of_both_does_not_count() -> None:
    latency = Latency.of([0.02, 0.2, 0.02], [0.01, 0.1, 0.01])
    assert latency.ratio == pytest.approx(2.0)
    assert Latency.of([0.02], None).ratio is None


def test_a_file_that_is_slower_than_fp32_is_said_to_be_and_fp32_is_not(report: Report) -> None:
    (note,) = report.notes()
    assert note.startswith("model.int8.onnx is SLOWER than model.fp32.onnx on this machine: 2.00 times")
    assert note in report.table()


def test_the_chart_is_a_picture(report: Report, tmp_path: Path) -> None:
    draw(report, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_a_bundles_files_are_measured_beside_fp32(bundle: Bundle) -> None:
    paths = [str(path) for target, path in bundle.files if target.name in ("onnx-fp32", "onnx-w8")]
    done = CliRunner().invoke(bench, [*paths, "--rounds", "5", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["reference"] == "model.fp32.onnx"
    fp32, w8 = found["files"]
    assert {each["ratio"] for each in fp32["latency"]} == {1.0}
    assert w8["size_ratio"] < 0.4
    assert all(0 < each["p50"] <= each["p95"] for each in w8["latency"])
    assert w8["load"] > 0
    assert w8["peak"] is None or w8["peak"] > w8["before"] > 1_000_000


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    done = CliRunner().invoke(bench, [str(tmp_path / "notes.txt")])
    assert isinstance(done.exception, ExportError)
    assert "not a model file by its name" in str(done.exception)
