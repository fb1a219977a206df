"""What the benchmarks share: taking turns, medians, a Markdown table, and what anybody needs to repeat a figure."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from pocketdx_runtime.machine import describe_machine


def interleaved(
    roads: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call. The roads take turns, A B A B, so that whatever else the machine does meets all of them.

    Args:
        roads: what to time, by name; each is called once before, untimed.
        rounds: how often each is timed.
        warm: call each once more before it is timed. A program goes one of the roads over and over; what another road
            leaves in caches and heap is not its business.
    """
    for road in roads.values():
        road()
    seconds: dict[str, list[float]] = {name: [] for name in roads}
    for _ in range(rounds):
        for name, road in roads.items():
            if warm:
                road()
            started = time.perf_counter()
            road()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the rounds of slow / fast: each pair was measured within the same moment."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def milliseconds(seconds: Sequence[float]) -> str:
    """The median, for a table."""
    return f"{median(seconds) * 1000:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def circumstances(packages: Sequence[str] = ()) -> str:
    """Command, date, CPU, versions and load, as lines of Markdown.

    Args:
        packages: whose versions to give beside the runtime's; those that are not installed are left out.
    """
    machine = describe_machine()
    versions = {**machine.software, **{name: _version(name) for name in packages}}
    shown = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    flags = " ".join(machine.flags) or "none known"
    lines = [
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}",
        f"{machine.cpu} ({machine.architecture}: {flags}), {machine.cpus} CPUs granted, {machine.system}",
        shown,
    ]
    if hasattr(os, "getloadavg"):
        lines.append(f"load average at the end {os.getloadavg()[0]:.1f}, this script's own work included")
    return "\n".join(f"- {line}" for line in lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
