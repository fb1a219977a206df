"""JUnit XML, as continuous integration shows it: a suite per file, a case per backend and level.

The schema is Jenkins' (https://github.com/jenkinsci/xunit-plugin, junit-10.xsd), which others follow.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from pocketdx_export.parity.report import LEVELS, Cell, Report
from pocketdx_export.parity.show import limit, number, would_pass

# XML 1.0 has no way to write these, not even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def junit(report: Report) -> str:
    """The report as JUnit XML."""
    root = ET.Element("testsuites", name="pocketdx parity")
    suites: dict[str, ET.Element] = {}
    for cell in report.cells:
        if cell.file not in suites:
            suites[cell.file] = ET.SubElement(root, "testsuite", name=_clean(cell.file))
        _cases(suites[cell.file], cell)
    for element in (*suites.values(), root):
        cases = list(element.iter("testcase"))
        element.set("tests", str(len(cases)))
        element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
        element.set("errors", str(sum(case.find("error") is not None for case in cases)))
        if element is not root:
            element.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cases(suite: ET.Element, cell: Cell) -> None:
    if cell.not_run or cell.error:
        case = _case(suite, cell, "run", float(cell.facts.get("seconds", 0.0)))
        if cell.error:
            ET.SubElement(case, "error", message=_clean(cell.error))
        elif cell.asked:
            ET.SubElement(case, "failure", message=_clean(f"asked for, but not run: {cell.not_run}"))
        else:
            ET.SubElement(case, "skipped", message=_clean(cell.not_run))
        return
    levels = [level for level in LEVELS if cell.at(level)]
    for level in levels:
        seconds = float(cell.facts.get("seconds", 0.0)) / len(levels)
        case = _case(suite, cell, level, seconds)
        failed = [check for check in cell.at(level) if not check]
        if failed:
            lines = [
                f"{check.road} {check.name}: {number(check.value)}, tolerance {limit(check)}; "
                f"would pass: {would_pass(cell, check) or 'nothing'}; {check.worst}"
                for check in failed
            ]
            if cell.jump and level == "numbers":
                lines.append(str(cell.jump))
            failure = ET.SubElement(case, "failure", message=_clean(lines[0]))
            failure.text = _clean("\n".join(lines))


def _case(suite: ET.Element, cell: Cell, name: str, seconds: float) -> ET.Element:
    where = _clean(f"{cell.file}.{cell.backend}")
    return ET.SubElement(suite, "testcase", classname=where, name=name, time=f"{seconds:.3f}")


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
