"""Cells from devices that parity cannot reach: what `pocketdx selftest MODEL --out FILE` wrote there.

The report carries the device's own answers to the golden pictures, so that they are judged here, by the bundle's
golden values and tolerances, and not by what the device says of itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.errors import ParityError
from pocketdx_export.parity.files import ModelFile, digest_of
from pocketdx_export.parity.matrix import Comparison
from pocketdx_export.parity.report import Cell, Check, Report
from pocketdx_runtime.selftest import Golden, read_golden
from pocketdx_train.run import digest as file_digest


def add_device_reports(report: Report, comparison: Comparison, bundle: Path, paths: Sequence[Path]) -> Report:
    """The report with a cell for each device report.

    Args:
        report: of the cells compared here.
        comparison: its files and tolerances.
        bundle: the bundle, or a model file in one: golden.npz is looked for there.
        paths: of the device reports.

    Raises:
        ParityError: a report is damaged, or of a file or golden inputs that are not these.
        ModelError: the golden file is missing or damaged.
    """
    if not paths:
        return report
    golden = (bundle if bundle.is_dir() else bundle.parent) / "golden.npz"
    values, digest = read_golden(golden), file_digest(golden)
    cells = [_cell(path, comparison, values, digest) for path in paths]
    return replace(report, cells=(*report.cells, *cells))


def _cell(path: Path, comparison: Comparison, golden: Golden, golden_digest: str) -> Cell:
    content = _read(path)
    file = _file_of(path, content, comparison.files)
    if content["golden_sha256"] != golden_digest:
        raise ParityError(f"{path}: made with other golden inputs; run selftest with this bundle's golden.npz")
    precision = file.manifest.precision
    expected, tolerances = golden.expected(precision)
    if tolerances is None:
        raise ParityError(f"{path}: this bundle's golden inputs have no tolerances for {precision}; export it again")
    answers = _answers(path, content, expected, file.manifest.outputs)
    machine = content["machine"]
    return Cell(
        file=file.path.name,
        target=file.target,
        precision=precision,
        backend=f"device: {machine.get('cpu') or machine.get('architecture') or path.stem}",
        images=len(golden.images),
        checks=tuple(_checks(expected, tolerances, answers)),
        notes=(f"answers of {path.name} to the {len(golden.images)} golden images, judged here",),
        facts={"sha256": content["sha256"], "machine": machine, "report": path.name, "created": content.get("created")},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        for key, kind in (("sha256", str), ("golden_sha256", str), ("machine", dict), ("answers", dict)):
            if not isinstance(content[key], kind):
                raise TypeError(f"{key} is not what it should be")
    except OSError as problem:
        raise ParityError(f"{path}: cannot be read: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise ParityError(f"{path}: not a report of `pocketdx selftest --out` ({problem})") from problem
    return dict(content)


def _file_of(path: Path, content: Mapping[str, Any], files: Sequence[ModelFile]) -> ModelFile:
    for file in files:
        if not file.failed and digest_of(file.path) == content["sha256"]:
            return file
    raise ParityError(
        f"{path}: tested another file ({content.get('model')}, SHA-256 {content['sha256'][:12]}...), none of this "
        "bundle's; copy the bundle to the device again"
    )


def _answers(
    path: Path, content: Mapping[str, Any], expected: Mapping[str, NDArray[np.float32]], outputs: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """The device's answers in every output that has golden values; null stands for what was no number."""
    answers = {}
    for name in (each for each in outputs if each in expected):
        if name not in content["answers"]:
            raise ParityError(f"{path}: holds no {name}; run selftest again")
        try:
            values = np.array(content["answers"][name], dtype=np.float64).astype(np.float32)
        except (ValueError, TypeError) as problem:
            raise ParityError(f"{path}: its {name} are not numbers; run selftest again") from problem
        if values.shape != expected[name].shape:
            raise ParityError(f"{path}: its {name} are {list(values.shape)}, not {list(expected[name].shape)}")
        answers[name] = values
    return answers


def _checks(
    expected: Mapping[str, NDArray[np.float32]],
    tolerances: Mapping[str, float],
    answers: Mapping[str, NDArray[np.float32]],
) -> list[Check]:
    """The differences, by the golden file's own tolerances, and whether the most probable class is the same."""
    checks = []
    for name, values in answers.items():
        differences = np.abs(values.astype(np.float64) - expected[name]).reshape(len(values), -1).max(1)
        row = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
        worst = f"golden image {row}"
        checks.append(Check("numbers", "graph", f"{name}, max", float(differences[row]), tolerances[name], worst=worst))
    scores = next((name for name in ("logits", "probabilities") if name in answers), None)
    if scores:
        same = float((answers[scores].argmax(1) == expected[scores].argmax(1)).mean())
        checks.append(Check("decisions", "graph", "top-1 agreement", same, 1.0, True))
    return checks
