"""What a comparison found: objects whose truth value is the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketdx_runtime.conform import to_plain

LEVELS = ("manifest", "pixels", "numbers", "decisions", "clinic")


@dataclass(frozen=True)
class Check:
    """One figure against its tolerance.

    Attributes:
        level: one of `LEVELS`.
        road: "runtime" (image bytes through PocketDx's runtime), "graph" (full-size pixels, resized by the graph
            itself, as a phone app does), or "" where it makes no difference.
        name: of the figure.
        value: measured.
        tolerance: the limit.
        at_least: the limit is a lower one.
        worst: the picture it comes from, where one can be named.
        limit: the tolerance's name, as `--tolerance` takes it after the precision; "" where none can be set.
    """

    level: str
    road: str
    name: str
    value: float
    tolerance: float
    at_least: bool = False
    worst: str = ""
    limit: str = ""

    def __bool__(self) -> bool:
        if math.isnan(self.value):
            return False
        return self.value >= self.tolerance if self.at_least else self.value <= self.tolerance

    @property
    def would_pass(self) -> float | None:
        """The tightest tolerance of two digits that would have passed; None where no tolerance would."""
        if not math.isfinite(self.value):
            return None
        if self.at_least and 0.9 < self.value < 1:  # 0.99999994 is told from 1 by its distance
            return 1 - _two_digits(1 - self.value, up=True)
        return _two_digits(self.value, up=not self.at_least)


@dataclass(frozen=True)
class Flip:
    """A picture that the two sides decide differently.

    Attributes:
        picture: its name.
        row: of the compared pictures.
        label: the class in question.
        truth: the picture's own class.
        reference: the full model's probability of `label`.
        ours: the file's.
        kind: "top-1", or "threshold": one side is above the class's threshold, the other below.
    """

    picture: str
    row: int
    label: str
    truth: str
    reference: float
    ours: float
    kind: str


@dataclass(frozen=True)
class ClinicalFigure:
    """One figure of diagnostic accuracy on both sides, compared picture by picture.

    Attributes:
        name: "AUC of malignant", "sensitivity for malignant", ...
        units: pictures (or patients) that it rests on; for an AUC, those of the smaller side.
        reference: the full model's.
        ours: the file's.
        low, high: 95 % interval of ours - reference.
        p: of the hypothesis that there is no difference, two-sided; None where nothing differs and none is needed.
        test: what `p` and the interval come from.
        margin: the largest loss that is accepted.
    """

    name: str
    units: int
    reference: float
    ours: float
    low: float
    high: float
    p: float | None
    test: str
    margin: float

    @property
    def verdict(self) -> str:
        """Is the file non-inferior? "shown", "not shown" (too few pictures, or too near), or "inferior"."""
        if self.low > -self.margin:
            return "shown"
        return "inferior" if self.high < -self.margin else "not shown"


@dataclass(frozen=True)
class Statistics:
    """Of one tensor."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Jump:
    """The first tensor of a graph that is not what it should be, though what it is computed from is.

    Attributes:
        tensor: its name in the graph; "" where the graph computes the right numbers when every tensor is kept, so
            that the fault is in what the engine makes of it.
        operator: type of the node that computes it, such as "Conv".
        node: the node's name.
        before: largest relative error of the node's inputs; root mean square of the difference by that of the tensor.
        after: relative error of the tensor.
        reference, ours: statistics of both sides.
        picture: on which.
        against: what the reference side is.
    """

    tensor: str
    operator: str
    node: str
    before: float
    after: float
    reference: Statistics | None
    ours: Statistics | None
    picture: str
    against: str

    def __str__(self) -> str:
        if not self.tensor or self.reference is None or self.ours is None:
            return (
                f"every tensor of the graph is right on {self.picture} when it is computed on its own: the fault is in "
                "the kernels that the engine chooses or fuses (integer saturation, reduced precision)"
            )
        sides = "; ".join(
            f"{name} mean {s.mean:.4g}, std {s.std:.4g}, {s.low:.4g} to {s.high:.4g}"
            for name, s in (("reference", self.reference), ("file", self.ours))
        )
        return (
            f"first wrong tensor: {self.tensor}, output of {self.operator} {self.node}: relative error "
            f"{self.before:.1e} before, {self.after:.1e} after ({sides}); on {self.picture}, against {self.against}"
        )


@dataclass(frozen=True)
class Cell:
    """One file on one backend.

    Attributes:
        file: its name.
        target: of `targets.TARGETS`, "" for a file of none.
        precision: of the file.
        backend: of `backends.BACKENDS`, or the device of a device report.
        images: how many pictures were compared.
        checks: in the order of levels.
        notes: what could not be compared, and why.
        clinic: figures of diagnostic accuracy on both sides.
        flips: pictures decided differently.
        jump: where the numbers go wrong, if they do and it could be found.
        not_run: why there is no result; "" where there is.
        asked: the user named this backend, so that not to run is to fail.
        facts: digest, machine, time: what an auditor needs.
    """

    file: str
    target: str
    precision: str
    backend: str
    images: int = 0
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    clinic: tuple[ClinicalFigure, ...] = ()
    flips: tuple[Flip, ...] = ()
    jump: Jump | None = None
    not_run: str = ""
    asked: bool = False
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.status == "passed"

    @property
    def status(self) -> str:
        """ "passed", "failed" or "not run"."""
        if self.not_run:
            return "not run"
        return "passed" if self.checks and all(self.checks) and not self.error else "failed"

    @property
    def red(self) -> bool:
        """Whether it fails the gate."""
        return self.status == "failed" or (self.status == "not run" and self.asked)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check)

    def at(self, level: str) -> tuple[Check, ...]:
        """The checks of one level."""
        return tuple(check for check in self.checks if check.level == level)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a figure that is not a number is null."""
        plain: dict[str, Any] = to_plain(self)
        del plain["checks"], plain["clinic"], plain["jump"]
        checks = [
            to_plain(each) | {"passed": bool(each), "would_pass": each.would_pass, "value": _finite(each.value)}
            for each in self.checks
        ]
        clinic = [to_plain(each) | {"verdict": each.verdict} for each in self.clinic]
        jump = to_plain(self.jump) | {"text": str(self.jump)} if self.jump else None
        return {"status": self.status, "red": self.red, **plain, "checks": checks, "clinic": clinic, "jump": jump}


@dataclass(frozen=True)
class Report:
    """All cells of the matrix.

    Attributes:
        cells: file by file, backend by backend.
        reference: what they were compared with.
        data: which pictures.
        pictures: their names, by row.
        facts: versions, CPU, digests, seeds: what an auditor needs to repeat it.
    """

    cells: tuple[Cell, ...]
    reference: str
    data: str
    pictures: tuple[str, ...]
    facts: Mapping[str, Any]

    def __bool__(self) -> bool:
        return any(each.status != "not run" for each in self.cells) and not any(each.red for each in self.cells)

    @property
    def images(self) -> int:
        """How many pictures were compared at most."""
        return max((each.images for each in self.cells), default=0)

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of all cells."""
        return tuple(check for cell in self.cells for check in cell.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check)

    def to_dict(self) -> dict[str, Any]:
        """What `parity.json` holds."""
        return {
            "passed": bool(self),
            "reference": self.reference,
            "data": self.data,
            "cells": [each.to_dict() for each in self.cells],
            "pictures": list(self.pictures),
            "facts": to_plain(self.facts),
        }

    def to_json(self) -> str:
        """`parity.json`."""
        return json.dumps(_all_finite(self.to_dict()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def table(self) -> str:
        """The matrix and what is behind it, for a terminal of 100 columns."""
        from pocketdx_export.parity.show.terminal import matrix

        return matrix(self)


def _two_digits(value: float, *, up: bool) -> float:
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    rounded = (math.ceil if up else math.floor)(value / step) * step
    return float(f"{rounded:.6g}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _all_finite(value: Any) -> Any:
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, dict):
        return {key: _all_finite(each) for key, each in value.items()}
    return [_all_finite(each) for each in value] if isinstance(value, list) else value
