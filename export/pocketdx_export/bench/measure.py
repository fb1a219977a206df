"""Run every file in a process of its own, all in turns, in an order drawn anew each round.

So whatever else the machine does meets all files alike, and a ratio is the median over pairs that were measured within
the same moment.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketdx_export.bench.report import Figures, Latency, Report
from pocketdx_export.errors import ExportError
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.machine import describe_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pocketdx_runtime.manifest import Manifest

_WARM_UP = 3


@dataclass(frozen=True)
class Subject:
    """A file to measure.

    Attributes:
        path: of the file or folder.
        format: as in `targets.TARGETS`.
        size: bytes.
        manifest: what it says about itself.
        absent: why nothing here runs it; "" when something does.
    """

    path: Path
    format: str
    size: int
    manifest: Manifest
    absent: str = ""


def measure(
    subjects: Sequence[Subject],
    reference: Subject | None,
    *,
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Size, load time, memory and latency of each, beside the reference.

    Args:
        subjects: the files; the reference may be among them.
        reference: the fp32 file; None leaves the ratios out.
        rounds: how often each file is timed on one CPU, and on all that were granted.
        seed: of the order.
        progress: called with (done, all) after each round.

    Raises:
        ExportError: the reference itself does not run, or no file does.
    """
    everything = [*subjects] if reference is None or reference in subjects else [reference, *subjects]
    settings = _settings()
    with ExitStack() as stack:
        started: dict[tuple[Path, int], _Started] = {}
        failed = {each.path: each.absent for each in everything if each.absent}
        for each in everything:
            for cpus in settings if not each.absent else ():
                try:
                    started[each.path, cpus] = stack.enter_context(_worker(each, cpus))
                except ExportError as problem:
                    failed[each.path] = str(problem)
        running = {key: worker for key, worker in started.items() if key[0] not in failed}
        if not running or (reference is not None and reference.path in failed):
            raise ExportError(next(iter(failed.values()), "nothing to measure"))
        seconds = _in_turns(running, rounds, seed, progress)
    base = {cpus: seconds.get((reference.path, cpus)) for cpus in settings} if reference else {}
    rows = tuple(
        Figures(
            file=each.path.name,
            format=each.format,
            precision=each.manifest.precision,
            size=each.size,
            size_ratio=each.size / reference.size if reference else None,
            failed=failed.get(each.path, ""),
            **({} if each.path in failed else _load(running[each.path, settings[0]])),
            latency={
                cpus: Latency.of(seconds[each.path, cpus], base.get(cpus))
                for cpus in settings
                if (each.path, cpus) in seconds
            },
        )
        for each in everything
    )
    return Report(rows, reference.path.name if reference else "", rounds, seed, describe_machine())


def _settings() -> list[int]:
    """Numbers of CPUs: one, and all that were granted. Where a process cannot be held to one, only all."""
    granted = granted_cpus()
    return sorted({1, granted}) if hasattr(os, "sched_setaffinity") else [granted]


def _load(worker: _Started) -> dict[str, Any]:
    return {key: worker.about[key] for key in ("load", "before", "peak")}


def _in_turns(
    workers: dict[tuple[Path, int], _Started], rounds: int, seed: int, progress: Callable[[int, int], None] | None
) -> dict[tuple[Path, int], list[float]]:
    order = list(workers)
    drawn = random.Random(seed)
    seconds: dict[tuple[Path, int], list[float]] = {key: [] for key in order}
    for number in range(_WARM_UP + rounds):
        drawn.shuffle(order)
        for key in order:
            taken = workers[key].ask("run")["seconds"]
            if number >= _WARM_UP:
                seconds[key].append(taken)
        if progress:
            progress(number + 1, _WARM_UP + rounds)
    return seconds


@dataclass
class _Started:
    name: str
    process: subprocess.Popen[str]
    about: dict[str, Any] = field(default_factory=dict)

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:  # it is no more
            answer = ""
        if not answer:
            raise ExportError(f"{self.name}: its process ended with status {self.process.wait()} while it was measured")
        content: dict[str, Any] = json.loads(answer)
        if "error" in content:
            raise ExportError(f"{self.name}: {content['error']}")
        return content


@contextmanager
def _worker(subject: Subject, cpus: int) -> Iterator[_Started]:
    """A process with the file opened; it ends with the context. Raises ExportError when it cannot be opened."""
    command = [sys.executable, "-m", f"{__package__}.worker", str(subject.path), subject.format, str(cpus)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        started = _Started(subject.path.name, process)
        try:
            started.about = started.ask(subject.manifest.to_json())
            yield started
        finally:
            process.kill()
