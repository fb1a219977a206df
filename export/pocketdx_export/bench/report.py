"""What was measured, as a table, as JSON and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from pocketdx_runtime.conform import to_plain
from pocketdx_runtime.machine import Machine
from pocketdx_runtime.output import columns

# Two measurements of the same file differ by a few hundredths; beyond this a file is called slower.
_SLOWER = 1.05
_INT8_FLAGS = ("avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Latency:
    """Of one picture of the network's own size, decoded, from pixels to every output.

    Attributes:
        p50: seconds, the median over the rounds.
        p95: seconds.
        ratio: to the fp32 file, the median over pairs of the same round; None without one.
    """

    p50: float
    p95: float
    ratio: float | None

    @classmethod
    def of(cls, seconds: Sequence[float], base: Sequence[float] | None) -> Self:
        """Figures of one file's rounds, beside those of the fp32 file in the same rounds."""
        ordered = sorted(seconds)
        p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
        ratio = median(a / b for a, b in zip(seconds, base, strict=True)) if base else None
        return cls(median(seconds), p95, ratio)


@dataclass(frozen=True)
class Figures:
    """One file.

    Attributes:
        file: its name.
        format: as in `targets.TARGETS`.
        precision: likewise.
        size: bytes.
        size_ratio: to the fp32 file; None without one.
        load: seconds from the file to the first answer, the engine's import not counted.
        before: bytes of resident memory with the engine imported, before the file is opened; None off Linux.
        peak: bytes, the most until the first answer, on one CPU.
        latency: by number of CPUs.
        failed: why it was not measured, or "".
    """

    file: str
    format: str
    precision: str
    size: int
    size_ratio: float | None
    load: float | None = None
    before: int | None = None
    peak: int | None = None
    latency: Mapping[int, Latency] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Report:
    """All files.

    Attributes:
        files: in the bundle's order.
        reference: name of the fp32 file; "" without one.
        rounds: how often each was timed.
        seed: of the order in each round.
        machine: where.
    """

    files: tuple[Figures, ...]
    reference: str
    rounds: int
    seed: int
    machine: Machine

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = to_plain(self)
        for row, each in zip(plain["files"], self.files, strict=True):
            row["latency"] = [{"cpus": cpus, **to_plain(latency)} for cpus, latency in each.latency.items()]
        return {**plain, "notes": self.notes()}

    def table(self) -> str:
        """For a terminal."""
        settings = sorted({cpus for each in self.files for cpus in each.latency})
        head = ["file", "MB", "of fp32", "load, ms", "memory, MB"]
        for cpus in settings:
            head += [f"{_cpus(cpus)}: p50, ms", "p95", "of fp32"]
        rows = [head]
        for each in self.files:
            row = [each.file, f"{each.size / 1e6:.2f}", _ratio(each.size_ratio), _ms(each.load), _memory(each)]
            for cpus in settings:
                one = each.latency.get(cpus)
                row += [_ms(one.p50), _ms(one.p95), _ratio(one.ratio)] if one else ["-"] * 3
            rows.append(row)
        machine = self.machine
        int8 = [flag for flag in _INT8_FLAGS if flag in machine.flags]
        versions = ", ".join(f"{name} {number}" for name, number in machine.software.items())
        return "\n".join(
            [
                columns(rows, right=range(1, len(head))),
                "",
                *self.notes(),
                f"{self.rounds} rounds in turns, order drawn with seed {self.seed}; one picture of the network's size, "
                "to all outputs",
                "memory: the most while opening and answering once on one CPU, and of it the engine alone",
                f"{machine.cpu} ({machine.architecture}: {' '.join(machine.flags) or 'no flags known'}), "
                f"{machine.cpus} CPUs granted, {machine.system}",
                f"8-bit dot products: {' '.join(int8) or 'none, so int8 gains little here'}",
                versions,
            ]
        )

    def notes(self) -> list[str]:
        """What a user must not find out in production."""
        notes = [f"{each.file}: not measured: {each.failed}" for each in self.files if each.failed]
        for each in self.files:
            slower = {cpus: one.ratio for cpus, one in each.latency.items() if (one.ratio or 0) > _SLOWER}
            if slower and each.file != self.reference:
                how = " and ".join(f"{ratio:.2f} times the time on {_cpus(cpus)}" for cpus, ratio in slower.items())
                notes.append(f"{each.file} is SLOWER than {self.reference} on this machine: {how}")
        return notes


def draw(report: Report, path: Path) -> None:
    """Write a bar chart of latency and size as a picture.

    Args:
        report: with at least one file that was measured.
        path: of the file; its ending says which kind (`.png`, `.svg`, ...).
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    from pocketdx_runtime.files import file_written_aside

    rows = [each for each in report.files if each.latency]
    settings = sorted({cpus for each in rows for cpus in each.latency})
    figure, (times, sizes) = plt.subplots(
        1, 2, figsize=(11, 1.2 + 0.55 * len(rows)), width_ratios=(2, 1), sharey=True, layout="constrained"
    )
    height = 0.8 / len(settings)
    for number, cpus in enumerate(settings):
        places = [row + (number - (len(settings) - 1) / 2) * height for row in range(len(rows))]
        found = [each.latency[cpus] for each in rows]
        middle = [1000 * each.p50 for each in found]
        tails = [1000 * (each.p95 - each.p50) for each in found]
        bars = times.barh(
            places, middle, height, xerr=[[0] * len(rows), tails], label=_cpus(cpus), error_kw={"alpha": 0.5}
        )
        times.bar_label(bars, [_ratio(each.ratio) for each in found], padding=4, fontsize=8, label_type="center")
    bars = sizes.barh(range(len(rows)), [each.size / 1e6 for each in rows], 0.6, color="tab:gray")
    sizes.bar_label(bars, [f"{each.size / 1e6:.2f}" for each in rows], padding=3, fontsize=8)
    sizes.margins(x=0.2)
    times.set_yticks(range(len(rows)), [each.file for each in rows])
    times.invert_yaxis()
    times.set_xlabel("ms for one picture: median, whisker to the 95th percentile")
    sizes.set_xlabel("MB")
    title = "Latency" + (f"; in the bars: times that of {report.reference}" if report.reference else "")
    times.set_title(title, fontsize=10)
    sizes.set_title("Size", fontsize=10)
    times.legend(fontsize=8)
    figure.suptitle(f"{report.machine.cpu}, {report.machine.cpus} CPUs granted", fontsize=10)
    with file_written_aside(path, overwrite=True) as aside:
        figure.savefig(aside, dpi=130)
    plt.close(figure)


def _cpus(count: int) -> str:
    return "1 CPU" if count == 1 else f"{count} CPUs"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _memory(each: Figures) -> str:
    if each.peak is None or each.before is None:
        return "-"
    return f"{each.peak / 1e6:.0f} ({each.before / 1e6:.0f})"
