"""The matrix for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pocketdx_export.parity.report import LEVELS, Cell, Check, ClinicalFigure, Report
from pocketdx_export.parity.show import headline, limit, mark, number, would_pass
from pocketdx_runtime.errors import printable

WIDTH = 100
_FLIPS = 5


def matrix(report: Report, *, details: bool = False) -> str:
    """The report as text.

    Args:
        report: of all cells.
        details: also the checks that passed, of every cell.
    """
    title = printable(f"{report.reference}, {len(report.pictures)} images, {report.data}")
    blocks = [title, _matrix(report.cells)]
    shown = [(cell, cell.checks if details else cell.failed) for cell in report.cells]
    blocks += [_details(cell, checks) for cell, checks in shown if checks or cell.error]
    if clinic := _clinic(report.cells):
        blocks.append(clinic)
    if notes := _notes(report.cells):
        blocks.append(notes)
    return "\n\n".join([*blocks, verdict(report)])


def verdict(report: Report) -> str:
    """One line."""
    ran = [cell for cell in report.cells if cell.status != "not run"]
    rest = len(report.cells) - len(ran)
    aside = f"; {rest} not run" if rest else ""
    if report:
        return f"PASSED: {len(ran)} of {len(ran)} cells{aside}"
    red = [cell for cell in report.cells if cell.red]
    if not red:
        return f"FAILED: nothing was compared{aside}"
    return (
        f"FAILED: {len(red)} of {len(report.cells)} cells, {len(report.failed)} of {len(report.checks)} checks{aside}"
    )


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned to the left, two spaces apart; what breaks a line is escaped."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _matrix(cells: Sequence[Cell]) -> str:
    head = ("file", "backend", "n", *LEVELS)
    rows: list[tuple[str, ...]] = [head]
    for cell in cells:
        levels = (f"{mark(cell, level)} {headline(cell, level)}".strip() for level in LEVELS)
        # A verdict of the clinical level says more than "ok".
        shown = [text.removeprefix("ok ") if text.endswith("shown") else text for text in levels]
        rows.append((_short(cell.file), _short(cell.backend), str(cell.images), *shown))
    lines = columns(rows).splitlines()
    indent = " " * (max(len(row[0]) for row in rows) + 2)
    out = [lines[0]]
    for line, row, cell in zip(lines[1:], rows[1:], cells, strict=True):
        why = f"{'NOT RUN, but asked for' if cell.asked else 'not run'}: {cell.not_run}" if cell.not_run else ""
        why = why or (f"FAILED: {cell.error}" if cell.error else "")
        if why:
            wrapped = textwrap.wrap(f"{row[1]}  {why}", WIDTH - len(indent), subsequent_indent="  ")
            out += [f"{row[0].ljust(len(indent))}{wrapped[0]}", *(f"{indent}{each}" for each in wrapped[1:])]
        else:
            out.append(line)
    return "\n".join(out)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:9]}...{name[-8:]}"


def _details(cell: Cell, checks: Sequence[Check]) -> str:
    lines = [printable(f"{cell.file} on {cell.backend}: {cell.status}")]
    if cell.error:
        lines.append(f"  {cell.error}")
    if checks:
        rows: list[tuple[str, ...]] = [("level", "road", "figure", "value", "tolerance", "", "would pass")]
        rows += [
            (
                check.level,
                check.road,
                check.name,
                number(check.value),
                limit(check),
                "ok" if check else "RED",
                would_pass(cell, check),
            )
            for check in checks
        ]
        table = columns(rows).splitlines()
        lines.append(f"  {table[0]}")
        for line, check in zip(table[1:], checks, strict=True):
            lines.append(f"  {line}")
            if check.worst and not check:
                lines.append(printable(f"      {check.worst}"))
    if cell.jump:
        lines += textwrap.wrap(str(cell.jump), WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
    for flip in cell.flips[:_FLIPS]:
        sides = f"{flip.label} {flip.reference:.4f} -> {flip.ours:.4f}"
        lines.append(printable(f"  flipped ({flip.kind}): {flip.picture} ({flip.truth}): {sides}"))
    if len(cell.flips) > _FLIPS:
        lines.append(f"  ... and {len(cell.flips) - _FLIPS} more flips, in parity.json")
    return "\n".join(lines)


def _clinic(cells: Sequence[Cell]) -> str:
    """The clinical figures of each file, on the first backend that has seen the most pictures."""
    best: dict[str, Cell] = {}
    for cell in cells:
        if cell.clinic and cell.images > (best[cell.file].images if cell.file in best else 0):
            best[cell.file] = cell
    return "\n\n".join(_clinical_table(cell) for cell in best.values())


def _clinical_table(cell: Cell) -> str:
    margin = cell.clinic[0].margin
    rows: list[tuple[str, ...]] = [("figure", "n", "model", "file", "difference, 95 %", "p", f"within {margin:g}")]
    rows += [_clinical_row(figure) for figure in cell.clinic]
    tests = sorted({figure.test for figure in cell.clinic})
    head = textwrap.wrap(f"clinic: {cell.file} on {cell.backend}; {'; '.join(tests)}", WIDTH, subsequent_indent="  ")
    return "\n".join([*head, columns(rows)])


def _clinical_row(figure: ClinicalFigure) -> tuple[str, ...]:
    difference = figure.ours - figure.reference
    return (
        figure.name,
        str(figure.units),
        f"{figure.reference:.4f}",
        f"{figure.ours:.4f}",
        f"{difference:+.4f} [{figure.low:+.4f}, {figure.high:+.4f}]",
        "-" if figure.p is None else f"{figure.p:.3f}",
        figure.verdict,
    )


def _notes(cells: Sequence[Cell]) -> str:
    """What each cell has to add, said once for all cells that say the same."""
    whose: dict[str, list[str]] = {}
    for cell in cells:
        for note in cell.notes:
            whose.setdefault(note, []).append(f"{cell.file} on {cell.backend}")
    several = len([cell for cell in cells if cell.checks]) > 1
    lines = []
    for note, names in whose.items():
        single = f"{names[0]}: " if several and len(names) == 1 else ""
        lines += textwrap.wrap(f"{single}{note}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)
