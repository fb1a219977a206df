"""The report as one HTML page that needs nothing beside it: phone to desktop, light and dark."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files
from typing import Any

from pocketdx_export.parity.report import LEVELS, Cell, Report
from pocketdx_export.parity.show import headline, limit, mark, number, would_pass
from pocketdx_export.parity.show.terminal import verdict

_FLIPS = 200
_TITLES = {"ok": "ok", "RED": "red", "-": "none"}


def page(report: Report, sheet: bytes | None) -> str:
    """HTML.

    Args:
        report: of all cells.
        sheet: the contact sheet, PNG, if there are flips.
    """
    style = files("pocketdx_export.parity.show").joinpath("page.css").read_text("utf-8")
    tone = "pass" if report else "fail"
    body = [
        f'<header><h1>Parity</h1><p class="verdict {tone}">{escape(verdict(report))}</p>',
        f"<p>Compared with {escape(report.reference)}: {len(report.pictures)} images, {escape(report.data)}.</p>",
        "</header>",
        _matrix(report),
        "<h2>Cells</h2>",
        *(_cell(cell) for cell in report.cells),
        _sheet(sheet),
        _facts(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Parity: {'passed' if report else 'failed'}</title>\n<style>{style}</style></head>\n"
        f"<body><main>{''.join(each for each in body if each)}</main></body></html>\n"
    )


def _matrix(report: Report) -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in ("file", "backend", "images", *LEVELS))
    rows = "".join(_matrix_row(cell) for cell in report.cells)
    return f'<table class="matrix"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _matrix_row(cell: Cell) -> str:
    first = f'<th scope="row">{escape(cell.file)}</th><td data-name="backend">{escape(cell.backend)}</td>'
    if cell.not_run or cell.error:
        tone = "red" if cell.red else "skip"
        said = cell.error or f"{'asked for, but ' if cell.asked else ''}not run: {cell.not_run}"
        return f'<tr class="{tone}">{first}<td colspan="{len(LEVELS) + 1}">{escape(said)}</td></tr>'
    levels = "".join(
        f'<td data-name="{level}" class="{_TITLES[mark(cell, level)]}">'
        f"<b>{_shown(mark(cell, level))}</b> <span>{escape(headline(cell, level))}</span></td>"
        for level in LEVELS
    )
    return f'<tr>{first}<td data-name="images">{cell.images}</td>{levels}</tr>'


def _shown(said: str) -> str:
    return {"ok": "&#10003; ok", "RED": "&#10007; red", "-": "&ndash;"}[said]


def _cell(cell: Cell) -> str:
    if cell.not_run:
        return ""
    parts = [f"<p class='red'>{escape(cell.error)}</p>" if cell.error else "", _checks(cell)]
    if cell.jump:
        parts.append(f'<p class="note"><b>Where it begins:</b> {escape(str(cell.jump))}</p>')
    parts += [_clinic(cell), _flips(cell)]
    parts += [f'<p class="note">{escape(note)}</p>' for note in cell.notes]
    facts = ", ".join(
        f"{escape(key)} {escape(str(cell.facts[key]))}" for key in ("sha256", "seconds") if key in cell.facts
    )
    opened = " open" if cell.red else ""
    tone = "pass" if cell else "fail"
    return (
        f"<details{opened}><summary><b>{escape(cell.file)}</b> on {escape(cell.backend)} "
        f'<span class="tag {tone}">{cell.status}</span></summary>{"".join(parts)}<p class="facts">{facts}</p></details>'
    )


def _checks(cell: Cell) -> str:
    if not cell.checks:
        return ""
    rows = [
        [
            c.level,
            c.road,
            c.name,
            number(c.value),
            limit(c),
            "ok" if c else "red",
            would_pass(cell, c),
            c.worst,
        ]
        for c in cell.checks
    ]
    tones = ["" if check else "red" for check in cell.checks]
    return _table(["level", "road", "figure", "value", "tolerance", "", "would pass", "worst"], rows, tones)


def _clinic(cell: Cell) -> str:
    if not cell.clinic:
        return ""
    rows = [
        [
            f.name,
            str(f.units),
            f"{f.reference:.4f}",
            f"{f.ours:.4f}",
            f"{f.ours - f.reference:+.4f} [{f.low:+.4f}, {f.high:+.4f}]",
            "-" if f.p is None else f"{f.p:.3f}",
            f.verdict,
            f.test,
        ]
        for f in cell.clinic
    ]
    head = ["figure", "n", "model", "file", "difference, 95 %", "p", f"within {cell.clinic[0].margin:g}", "test"]
    return f"<h3>Clinic</h3>{_table(head, rows, ['red' if f.verdict == 'inferior' else '' for f in cell.clinic])}"


def _flips(cell: Cell) -> str:
    if not cell.flips:
        return ""
    rows = [[f.picture, f.truth, f.label, f"{f.reference:.4f}", f"{f.ours:.4f}", f.kind] for f in cell.flips[:_FLIPS]]
    table = _table(["image", "truth", "class", "model", "file", "kind"], rows, [""] * len(rows))
    rest = len(cell.flips) - len(rows)
    return f"<h3>Decided differently</h3>{table}{f'<p>and {rest} more, in parity.json</p>' if rest else ''}"


def _table(head: list[str], rows: list[list[str]], tones: list[str]) -> str:
    top = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    body = "".join(
        f'<tr class="{tone}">{"".join(f"<td>{escape(each)}</td>" for each in row)}</tr>'
        for row, tone in zip(rows, tones, strict=True)
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _sheet(sheet: bytes | None) -> str:
    if sheet is None:
        return ""
    data = base64.b64encode(sheet).decode()
    return (
        "<h2>Images decided differently</h2><img class='sheet' alt='The images that the model and a file decide "
        f"differently, with both probabilities' src='data:image/png;base64,{data}'>"
    )


def _facts(report: Report) -> str:
    facts: dict[str, Any] = dict(report.facts)
    machine = facts.pop("machine", None)
    for key in ("tolerances", "software"):
        facts.pop(key, None)
    rows = [
        [key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)] for key, value in facts.items()
    ]
    if machine is not None:
        rows.append(["machine", f"{machine.cpu} ({machine.architecture}: {' '.join(machine.flags)}), {machine.system}"])
    rows += [[name, version] for name, version in report.facts.get("software", {}).items()]
    return f"<h2>Circumstances</h2>{_table(['what', 'value'], rows, [''] * len(rows))}"
