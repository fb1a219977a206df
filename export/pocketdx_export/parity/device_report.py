"""Cells from devices that parity cannot reach: what `pocketdx selftest MODEL --out FILE` wrote there.

The report carries the device's own answers to the golden pictures, so that they are judged here, by the bundle's
golden values and the tolerances in force, and not by what the device says of itself.
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
from pocketdx_export.parity.levels.numbers import logit_errors
from pocketdx_export.parity.matrix import Comparison
from pocketdx_export.parity.report import Cell, Check, Report
from pocketdx_export.parity.tolerances import Tolerances
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
    answers = _answers(path, content, golden)
    precision = file.manifest.precision
    limits = comparison.table.of(precision, str(file.path))
    machine = content["machine"]
    return Cell(
        file=file.path.name,
        target=file.target,
        precision=precision,
        backend=f"device: {machine.get('cpu') or machine.get('architecture') or path.stem}",
        images=len(golden.images),
        checks=tuple(_checks(golden, answers, limits)),
        notes=(f"answers of {path.name} to the {len(golden.images)} golden images, judged here",),
        facts={"sha256": content["digest"], "machine": machine, "report": path.name, "created": content.get("created")},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        for key, kind in (("digest", str), ("golden_sha256", str), ("machine", dict), ("answers", dict)):
            if not isinstance(content[key], kind):
                raise TypeError(f"{key} is not what it should be")
    except OSError as problem:
        raise ParityError(f"{path}: cannot be read: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise ParityError(f"{path}: not a report of `pocketdx selftest --out` ({problem})") from problem
    return dict(content)


def _file_of(path: Path, content: Mapping[str, Any], files: Sequence[ModelFile]) -> ModelFile:
    for file in files:
        if not file.failed and digest_of(file.path) == content["digest"]:
            return file
    raise ParityError(
        f"{path}: tested another file ({content.get('model')}, SHA-256 {content['digest'][:12]}...), none of this "
        "bundle's; copy the bundle to the device again"
    )


def _answers(path: Path, content: Mapping[str, Any], golden: Golden) -> dict[str, NDArray[np.float32]]:
    """Null stands for what was no number."""
    answers = {}
    for name, rows in content["answers"].items():
        if name not in golden.outputs:
            continue
        try:
            values = np.array(rows, dtype=np.float64).astype(np.float32)
        except (ValueError, TypeError) as problem:
            raise ParityError(f"{path}: its {name} are not numbers; run selftest again") from problem
        if values.shape != golden.outputs[name].shape:
            raise ParityError(f"{path}: its {name} are {list(values.shape)}, not {list(golden.outputs[name].shape)}")
        answers[name] = values
    if not answers:
        raise ParityError(f"{path}: holds no answers; run selftest again")
    return answers


def _checks(golden: Golden, answers: Mapping[str, NDArray[np.float32]], limits: Tolerances) -> list[Check]:
    checks = []

    def most(name: str, values: NDArray[np.floating], limit: str) -> None:
        row = int(np.argmax(np.where(np.isnan(values), np.inf, values)))
        tolerance = getattr(limits, limit)
        checks.append(
            Check("numbers", "graph", name, float(values[row]), tolerance, worst=f"golden image {row}", limit=limit)
        )

    if "logits" in answers:
        errors = logit_errors(answers["logits"], golden.outputs["logits"])
        most("logits, max", errors.max(1), "logits_max")
    if "probabilities" in answers:
        apart = np.abs(answers["probabilities"] - golden.outputs["probabilities"]).max(1)
        most("probabilities, max", apart, "probabilities_max")
    if "embedding" in answers:
        cosine = (answers["embedding"].astype(np.float64) * golden.outputs["embedding"]).sum(1)
        row = int(np.argmin(np.where(np.isnan(cosine), -np.inf, cosine)))
        checks.append(
            Check(
                "numbers",
                "graph",
                "embedding cosine",
                float(cosine[row]),
                limits.cosine_min,
                True,
                f"golden image {row}",
                "cosine_min",
            )
        )
    scores = next(name for name in ("logits", "probabilities", "embedding") if name in answers)
    if scores != "embedding":
        same = float((answers[scores].argmax(1) == golden.outputs[scores].argmax(1)).mean())
        checks.append(
            Check("decisions", "graph", "top-1 agreement", same, limits.agreement_min, True, limit="agreement_min")
        )
    return checks
