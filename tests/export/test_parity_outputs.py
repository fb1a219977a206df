"""What the matrix is shown as, how its options are read, and what devices add to it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from graph_surgery import change, change_manifest, first_weight
from pocketdx_export import backends
from pocketdx_export.backends import Backend
from pocketdx_export.bundle import Bundle
from pocketdx_export.errors import ParityError
from pocketdx_export.parity.config import parse_tolerances, read_config
from pocketdx_export.parity.files import ModelFile
from pocketdx_export.parity.plan import plan
from pocketdx_export.parity.report import Cell, Check, ClinicalFigure, Report
from pocketdx_export.parity.show.junit import junit
from pocketdx_export.parity.show.markdown import markdown
from pocketdx_export.parity.show.page import page
from pocketdx_export.parity.show.terminal import matrix
from pocketdx_export.parity.tolerances import TOLERANCES
from pocketdx_export.parity_command import parity
from pocketdx_runtime.model import Model
from pocketdx_runtime.selftest import device_report, run_selftest
from pocketdx_train.run import Run

Parity = Callable[..., Result]


@pytest.fixture
def call(run: Run, pictures: Path, cache: Path) -> Parity:
    def call(model: Path, *more: object) -> Result:
        given = ["--against", run.folder, "--data", pictures, "--cache", cache, "--limit", "12", *more]
        return CliRunner().invoke(parity, [str(each) for each in (model, *given)])

    return call


@pytest.fixture
def broken(bundle: Bundle, tmp_path: Path) -> Path:
    """Every label swapped, and a weight wrong."""
    model = onnx.load(bundle.files[0][1])
    change_manifest(model, labels=("stripes", "blobs"))
    change(model, first_weight(model), lambda weights: weights * 1.1)
    onnx.save(model, tmp_path / "broken.fp32.onnx")
    return tmp_path / "broken.fp32.onnx"


def test_every_output_of_a_red_comparison_says_what_is_red(call: Parity, broken: Path, tmp_path: Path) -> None:
    out = {name: tmp_path / f"parity.{name}" for name in ("xml", "md", "html", "png")}
    done = call(
        *(broken, "--backend", "onnxruntime", "--junit", out["xml"], "--markdown", out["md"]),
        *("--html", out["html"], "--contact-sheet", out["png"]),
    )
    assert done.exit_code == 1, done.output
    assert "FAILED: 1 of 1 cells" in done.stdout
    assert "first wrong tensor: getitem, output of Conv" in done.stdout
    assert "flipped (top-1)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120

    suite = ET.parse(out["xml"]).getroot()
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["manifest", "pixels", "numbers", "decisions", "clinic"]
    assert cases["pixels"].find("failure") is None
    failure = cases["numbers"].find("failure")
    assert failure is not None
    assert "would pass: fp32.logits_max=" in str(failure.text)
    assert suite.get("failures") == str(len(list(suite.iter("failure"))))

    assert "| **RED**" in out["md"].read_text()
    shown = out["html"].read_text()
    assert "Where it begins:" in shown
    assert "data:image/png;base64," in shown
    assert "http" not in shown.replace("http-equiv", "")  # nothing is fetched
    with Image.open(io.BytesIO(out["png"].read_bytes())) as sheet:
        assert sheet.width > 500


def test_a_tolerance_on_the_command_line_turns_red_into_green(call: Parity, bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.files[0][1])
    change(model, first_weight(model), lambda weights: weights * 1.001)
    onnx.save(model, tmp_path / "off.fp32.onnx")
    red = call(tmp_path / "off.fp32.onnx", "--backend", "onnxruntime", "--json")
    assert red.exit_code == 1
    failed = [each for each in json.loads(red.stdout)["cells"][0]["checks"] if not each["passed"]]
    assert {each["level"] for each in failed} <= {"numbers", "decisions"}
    wider = [f"fp32.{each['limit']}={each['would_pass']!r}" for each in failed]
    tightest: dict[str, str] = {}
    for each in wider:  # both roads may need another one
        name, _, value = each.partition("=")
        least = name.endswith("_min")
        both = [float(value), float(tightest.get(name, value))]
        tightest[name] = repr(min(both) if least else max(both))
    options = [option for name, value in tightest.items() for option in ("--tolerance", f"{name}={value}")]
    green = call(tmp_path / "off.fp32.onnx", "--backend", "onnxruntime", *options)
    assert green.exit_code == 0, green.output


def test_noninferiority_may_be_required(call: Parity, bundle: Bundle) -> None:
    file, options = bundle.files[0][1], ("--backend", "onnxruntime")
    assert call(file, *options).exit_code == 0
    done = call(file, *options, "--require-noninferiority")
    assert done.exit_code == 1
    assert "non-inferiority shown" in done.stdout
    assert call(file, *options, "--require-noninferiority", "--margin", "1").exit_code == 0


# --- backends that are not here ------------------------------------------------------------------------------------

ELSEWHERE = Backend("elsewhere", ("onnx",), "elsewhere", "never here")


class Elsewhere:
    @staticmethod
    def absent() -> str:
        return "the device is in another room; fetch it"


@pytest.fixture
def with_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (backends.BACKENDS[0], ELSEWHERE)
    monkeypatch.setattr(backends, "BACKENDS", table)
    monkeypatch.setattr("pocketdx_export.parity.plan.BACKENDS", table)
    monkeypatch.setitem(sys.modules, "pocketdx_export.backends.elsewhere", Elsewhere)


@pytest.mark.usefixtures("with_elsewhere")
class TestAbsentBackend:
    def test_is_shown_as_not_run_with_the_reason_and_does_not_pass(self, call: Parity, bundle: Bundle) -> None:
        done = call(bundle.files[0][1])
        assert done.exit_code == 0, done.output
        assert "elsewhere  not run: the device is in another room; fetch it" in done.stdout
        assert "PASSED: 1 of 1 cells; 1 not run" in done.stdout

    def test_is_red_when_it_was_asked_for(self, call: Parity, bundle: Bundle, tmp_path: Path) -> None:
        done = call(bundle.files[0][1], "--backend", "elsewhere", "--junit", tmp_path / "j.xml")
        assert done.exit_code == 1
        assert "NOT RUN, but asked for: the device is in another room" in done.stdout
        assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "1"

    def test_alone_is_no_pass(self, bundle: Bundle) -> None:
        cell = Cell("x", "", "fp32", "elsewhere", not_run="not here")
        assert not Report((cell,), "", "", (), {})

    def test_a_name_that_is_none_is_bad_usage(self, bundle: Bundle) -> None:
        file = ModelFile.at(bundle.files[0][1])
        with pytest.raises(ParityError, match="toaster: no such backend; there are onnxruntime, elsewhere"):
            plan([file], ["toaster"])
        with pytest.raises(ParityError, match=r"elsewhere: runs none of model\.fp32\.onnx"):
            plan([dataclasses.replace(file, format="tflite")], ["elsewhere"])


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_nearest_pyproject(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pocketdx.parity]\nbackends = ["onnxruntime"]\nmargin = 0.1\nrequire-noninferiority = true\n'
        '[tool.pocketdx.parity.tolerances]\n"fp32.logits_max" = 1\n'
        "[tool.pocketdx.parity.tolerances.int8]\nauc_max = 0.5\n"
    )
    config = read_config(tmp_path / "deep")
    assert (config.backends, config.margin, config.require) == (("onnxruntime",), 0.1, True)
    table = TOLERANCES.changed({**config.tolerances, **parse_tolerances(["fp32.logits_max=2"])})
    assert table.by_precision["fp32"].logits_max == 2
    assert table.by_precision["int8"].auc_max == 0.5
    assert table.by_precision["fp32"].auc_max == TOLERANCES.by_precision["fp32"].auc_max


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("margn = 1", "margn: no such setting"),
        ('margin = "wide"', "margin: 'wide' is not a number"),
        ("backends = 3", "backends: give a list"),
        ("require-noninferiority = 1", "give true or false"),
        ("tolerances = 1", "tolerances: give a table"),
        ("= 1", "cannot be read as TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.pocketdx.parity]\n{text}\n")
    with pytest.raises(ParityError, match=complaint):
        read_config(tmp_path)


@pytest.mark.parametrize("given", ["fp32.logits_max", "=1", "fp32.nothing=1", "fp9.logits_max=1", "logits_max=nan"])
def test_a_wrong_tolerance_is_named(given: str) -> None:
    with pytest.raises(ParityError):
        TOLERANCES.changed(parse_tolerances([given]))


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.fixture
def phone(bundle: Bundle, tmp_path: Path) -> dict[str, Any]:
    """What a phone wrote of the fp32 file."""
    content = device_report(run_selftest(Model(bundle.files[0][1]), bundle.folder / "golden.npz"))
    return dict(json.loads(content))


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "phone.json").write_text(json.dumps(content))
    return folder / "phone.json"


def test_a_devices_answers_are_a_cell(call: Parity, bundle: Bundle, phone: dict[str, Any], tmp_path: Path) -> None:
    phone["machine"]["cpu"] = "Cortex-A76"
    report = write(tmp_path, phone)
    done = call(
        *(bundle.folder, "--backend", "onnxruntime", "--device-report", report, "--json"),
        *("--tolerance", "cosine_min=0.9"),  # w8 is rated for trained networks
    )
    cells = json.loads(done.stdout)["cells"]
    assert done.exit_code == 0
    assert cells[-1]["backend"] == "device: Cortex-A76"
    assert {each["level"] for each in cells[-1]["checks"]} == {"numbers", "decisions"}


def test_a_device_that_lies_of_its_verdict_is_red(
    call: Parity, bundle: Bundle, phone: dict[str, Any], tmp_path: Path
) -> None:
    phone["answers"]["logits"][2][0] += 0.5
    phone["answers"]["probabilities"][1][0] = None
    assert phone["passed"] is True
    done = call(bundle.folder, "--backend", "onnxruntime", "--device-report", write(tmp_path, phone))
    assert done.exit_code == 1
    assert "logits, max" in done.stdout
    assert "nan" in done.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "0" * 64}, "tested another file"),
        ({"golden_sha256": "0" * 64}, "other golden inputs"),
        ({"answers": {}}, "holds no logits"),
        ({"answers": {"logits": [[1.0]]}}, r"its logits are \[1, 1\]"),
        ({"machine": None}, "not a report of"),
    ],
)
def test_a_report_of_something_else_is_refused(
    call: Parity, bundle: Bundle, phone: dict[str, Any], tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    done = call(
        *(bundle.folder, "--backend", "onnxruntime", "--limit", "2"),
        *("--device-report", write(tmp_path, {**phone, **change})),
    )
    assert isinstance(done.exception, ParityError)
    assert done.exception.args[0].startswith(str(tmp_path / "phone.json"))
    assert re.search(complaint, str(done.exception))


# --- text that is not ours -----------------------------------------------------------------------------------------


def test_names_of_files_cannot_break_any_output() -> None:
    nasty = 'a|b<script>alert(1)</script>&"\n\x00.onnx'
    checks = (Check("numbers", "runtime", "logits, max", float("nan"), 1.0, worst=nasty, limit="logits_max"),)
    clinic = (ClinicalFigure(f"AUC of {nasty}", 5, 0.9, 0.8, -0.3, 0.1, None, "DeLong", 0.02),)
    cells = (Cell(nasty, "", "fp32", "x", 1, checks, clinic=clinic), Cell("y", "", "fp32", "z", error=nasty))
    report = Report(cells, nasty, nasty, (nasty,), {})
    root = ET.fromstring(junit(report))
    assert len(list(root.iter("testcase"))) == 2
    assert "<script>" not in page(report, None)
    assert "<script>" not in markdown(report)
    for line in markdown(report).splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (8, 9, 10)
    assert json.loads(report.to_json())["passed"] is False
    assert matrix(report)


@pytest.mark.parametrize(
    ("value", "at_least", "expected"),
    [(0.000123, False, 0.00013), (0.0, False, 0.0), (0.8765, True, 0.87), (37.9, False, 38.0), (np.nan, False, None)],
)
def test_the_tolerance_that_would_have_passed_passes(value: float, at_least: bool, expected: float | None) -> None:
    check = Check("numbers", "", "x", value, 0.0, at_least)
    assert check.would_pass == pytest.approx(expected)
    if expected is not None:
        assert dataclasses.replace(check, tolerance=check.would_pass)
    near = Check("numbers", "", "x", 1 - 1.234e-7, 1.0, True)
    assert near.would_pass == pytest.approx(1 - 1.3e-7, abs=1e-12)
    assert dataclasses.replace(near, tolerance=near.would_pass)


# --- pytest plugin -------------------------------------------------------------------------------------------------

OWN = """
def test_own(pocketdx_cells):
    assert pocketdx_cells["model.fp32.onnx", "onnxruntime"].images == 6
"""


def pytest_run(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--rootdir", folder, *options]
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_plugin_makes_a_test_of_each_cell(
    bundle: Bundle, run: Run, pictures: Path, cache: Path, broken: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_own.py").write_text(OWN)
    given = ("--pocketdx-run", run.folder, "--pocketdx-data", pictures, "--pocketdx-cache", cache)
    few = ("--pocketdx-limit", 6, "--pocketdx-backend", "onnxruntime")
    green = pytest_run(tmp_path, "--pocketdx-bundle", bundle.folder, *given, *few)
    assert green.returncode == 0, green.stdout + green.stderr
    assert "parity::model.fp32.onnx[onnxruntime] PASSED" in green.stdout
    assert "test_own PASSED" in green.stdout

    red = pytest_run(tmp_path, "--pocketdx-bundle", broken, *given, *few, "--deselect", "test_own.py")
    assert red.returncode == 1, red.stdout + red.stderr
    assert "parity::broken.fp32.onnx[onnxruntime] FAILED" in red.stdout
    assert "first wrong tensor: getitem" in red.stdout
    assert "Traceback" not in red.stdout


def test_the_plugin_says_what_is_missing(tmp_path: Path) -> None:
    done = pytest_run(tmp_path, "--pocketdx-bundle", tmp_path)
    assert done.returncode == 4
    assert "parity needs --pocketdx-run, --pocketdx-data" in done.stderr + done.stdout


@pytest.mark.parametrize("module", ["pytest_plugin", "parity_command"])
def test_the_plugin_and_the_command_cost_nothing_until_they_are_used(module: str) -> None:
    heavy = "{'torch', 'onnx', 'numpy', 'onnxruntime'}"
    code = f"import sys, pocketdx_export.{module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
