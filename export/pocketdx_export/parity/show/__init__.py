"""A report as people and machines read it: terminal, Markdown, JUnit XML, an HTML page, a contact sheet."""

from __future__ import annotations

import math

from pocketdx_export.parity.report import Cell, Check


def number(value: float) -> str:
    """Four digits, but never a value rounded to look like the limit it misses: 0.9999999 is not 1."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2e}"
    short = f"{value:.4f}" if abs(value) < 1000 else f"{value:.1f}"
    return short if float(short) != 1.0 or value == 1.0 else f"1-{1 - value:.1e}" if value < 1 else f"1+{value - 1:.1e}"


def limit(check: Check) -> str:
    """The tolerance with its direction."""
    return f"{'>=' if check.at_least else '<='} {number(check.tolerance)}"


def would_pass(cell: Cell, check: Check) -> str:
    """The tolerance that would have passed, as the command line takes it; "" where none can be set."""
    value = check.would_pass
    if value is None or not check.limit:
        return "none" if check.limit else ""
    shown = f"{value:.14g}"
    if check.limit == "margin":
        return f"--margin {-value:.2g}" if value < 0 else "any margin"
    return f"{cell.precision}.{check.limit}={shown}"


def clinic_verdict(cell: Cell) -> str:
    """The weakest verdict of all clinical figures; "-" where there are none."""
    verdicts = {figure.verdict for figure in cell.clinic}
    return next((each for each in ("inferior", "not shown", "shown") if each in verdicts), "-")


def headline(cell: Cell, level: str) -> str:
    """The one figure that stands for a level of a cell, without the verdict."""
    checks = cell.at(level)
    if not checks or level == "manifest":
        return ""
    if level == "clinic":
        return clinic_verdict(cell)
    if level == "decisions":
        flipped = len({flip.row for flip in cell.flips})
        return f"{flipped} flip{'' if flipped == 1 else 's'}"
    name = "grey levels, max" if level == "pixels" else "logits, max"
    values = [check.value for check in checks if check.name == name] or [checks[0].value]
    worst = max(values, key=lambda value: math.inf if math.isnan(value) else value)
    return f"{worst:.2f}" if level == "pixels" and worst < 1000 else f"{worst:.1e}"


def mark(cell: Cell, level: str) -> str:
    """ "ok", "RED", or "-" where the level has no checks."""
    checks = cell.at(level)
    return "-" if not checks else "ok" if all(checks) else "RED"
