"""What a comparison found: objects whose truth value is the verdict, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketdx_runtime.conform import to_plain


@dataclass(frozen=True)
class Check:
    """One figure against its tolerance.

    Attributes:
        level: "manifest", "pixels", "numbers" or "decisions".
        road: "runtime" (image bytes through PocketDx's runtime), "graph" (full-size pixels, resized by the graph
            itself, as a phone app does), or "" where it makes no difference.
        name: of the figure.
        value: measured.
        tolerance: the limit.
        at_least: the limit is a lower one.
        worst: the picture it comes from, where one can be named.
    """

    level: str
    road: str
    name: str
    value: float
    tolerance: float
    at_least: bool = False
    worst: str = ""

    def __bool__(self) -> bool:
        if math.isnan(self.value):
            return False
        return self.value >= self.tolerance if self.at_least else self.value <= self.tolerance


@dataclass(frozen=True)
class Report:
    """All checks of one file.

    Attributes:
        file: its name.
        reference: what it was compared with.
        data: which pictures.
        images: how many.
        checks: in the order of levels.
        notes: what could not be compared, and why.
        facts: versions, CPU, digests, images: what an auditor needs to repeat it.
    """

    file: str
    reference: str
    data: str
    images: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.checks) and all(self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a figure that is not a number is null."""
        checks = [
            to_plain(check) | {"passed": bool(check), "value": check.value if math.isfinite(check.value) else None}
            for check in self.checks
        ]
        return {
            "passed": bool(self),
            "file": self.file,
            "reference": self.reference,
            "data": self.data,
            "images": self.images,
            "checks": checks,
            "notes": list(self.notes),
            "facts": to_plain(self.facts),
        }

    def to_json(self) -> str:
        """What `parity.json` holds; see `reports_json` for several files."""
        return reports_json((self,))

    def table(self) -> str:
        """For a terminal."""
        title = f"{self.file} against {self.reference}: {self.images} images, {self.data}"
        rows = [("level", "road", "figure", "value", "tolerance", "", "worst picture")]
        for check in self.checks:
            limit = f"{'>=' if check.at_least else '<='} {_number(check.tolerance)}"
            verdict = "ok" if check else "FAILED"
            rows.append((check.level, check.road, check.name, _number(check.value), limit, verdict, check.worst))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        verdict = "PASSED" if self else f"FAILED: {len(self.failed)} of {len(self.checks)} checks"
        return "\n".join([title, "", *lines, "", *self.notes, verdict])


def reports_json(reports: Sequence[Report]) -> str:
    """The reports of several files, with the verdict over all of them, as JSON."""
    content = {"passed": all(reports), "files": [report.to_dict() for report in reports]}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: float) -> str:
    """Four digits, but never a value rounded to look like the limit it misses: 0.9999999 is not 1."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2e}"
    short = f"{value:.4f}"
    return short if float(short) != 1.0 or value == 1.0 else f"1-{1 - value:.1e}" if value < 1 else f"1+{value - 1:.1e}"
