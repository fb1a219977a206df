"""Markdown, for the summary of a job of continuous integration."""

from __future__ import annotations

from pocketdx_export.parity.report import LEVELS, Cell, Report
from pocketdx_export.parity.show import headline, limit, mark, number, would_pass
from pocketdx_export.parity.show.terminal import verdict


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    lines = [
        f"## Parity: {_cell(verdict(report))}",
        "",
        _cell(f"Against {report.reference}; {len(report.pictures)} images, {report.data}."),
        "",
        *_table(["file", "backend", "images", *LEVELS], [_row(cell) for cell in report.cells]),
    ]
    for cell in report.cells:
        if cell.failed:
            rows = [
                [c.level, c.road, c.name, number(c.value), limit(c), would_pass(cell, c), c.worst] for c in cell.failed
            ]
            head = ["level", "road", "figure", "value", "tolerance", "would pass", "worst picture"]
            lines += ["", f"### {_cell(cell.file)} on {_cell(cell.backend)}", "", *_table(head, rows)]
        if cell.jump:
            lines += ["", _cell(str(cell.jump))]
    figures = [(cell, figure) for cell in report.cells for figure in cell.clinic]
    if figures:
        head = ["file", "backend", "figure", "n", "model", "file's", "difference, 95 %", "p", "non-inferior"]
        rows = [
            [
                cell.file,
                cell.backend,
                f.name,
                str(f.units),
                f"{f.reference:.4f}",
                f"{f.ours:.4f}",
                f"{f.ours - f.reference:+.4f} [{f.low:+.4f}, {f.high:+.4f}]",
                "-" if f.p is None else f"{f.p:.3f}",
                f"{f.verdict} within {f.margin:g}",
            ]
            for cell, f in figures
        ]
        lines += ["", "<details><summary>Clinic</summary>", "", *_table(head, rows), "", "</details>"]
    return "\n".join(lines) + "\n"


def _row(cell: Cell) -> list[str]:
    if cell.not_run or cell.error:
        why = f"**FAILED**: {cell.error}" if cell.error else f"not run: {cell.not_run}"
        why = f"**asked for**, {why}" if cell.asked and cell.not_run else why
        return [cell.file, cell.backend, "", why, *[""] * (len(LEVELS) - 1)]
    return [
        cell.file,
        cell.backend,
        str(cell.images),
        *(f"{_bold(mark(cell, level))} {headline(cell, level)}".strip() for level in LEVELS),
    ]


def _bold(text: str) -> str:
    return f"**{text}**" if text == "RED" else text


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *rows)]


def _cell(text: str) -> str:
    """Text from file names and devices, which must not end a cell or open a tag."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
