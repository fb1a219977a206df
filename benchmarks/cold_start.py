"""`pocketdx predict` as a whole process: start Python, open the model, decode, answer, end.

Beside it, taking turns: a Python that only imports NumPy, onnxruntime and Pillow, without which there is no answer.
Wall time, and the process's peak resident memory as the kernel counted it (wait4). Every process is a new one; the
files it reads are in the system's cache from the second round on, and the first round is shown apart.

    python benchmarks/cold_start.py bundle/model.fp32.onnx chest.jpg
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

# Nothing large may be imported here: Linux counts into a child's peak what its parent held when it was started.
from measure import circumstances, table

PREDICT, IMPORTS = "pocketdx predict", "imports alone"
MOST_SECONDS, MOST_MEGABYTES = 0.6, 120
_BARE = "import numpy, onnxruntime, PIL.Image"


@dataclass(frozen=True)
class Process:
    """One process that ended well.

    Attributes:
        seconds: from its start to its end.
        cpu: seconds that its threads computed; hardly changes with what else the machine does.
        megabytes: its largest resident memory, 1 MB = 10**6 bytes.
    """

    seconds: float
    cpu: float
    megabytes: float


def run(command: Sequence[str]) -> Process:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; what it wrote to stderr is shown.
    """
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, kibibytes elsewhere
    return Process(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def measure(model: Path, image: Path, rounds: int) -> dict[str, list[Process]]:
    """Both commands in turns, `rounds` times each."""
    commands = {
        PREDICT: [sys.executable, "-m", "pocketdx_runtime", "predict", str(model), str(image)],
        IMPORTS: [sys.executable, "-c", _BARE],
    }
    processes: dict[str, list[Process]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            processes[name].append(run(command))
    return processes


def report(processes: dict[str, list[Process]]) -> str:
    """The table; its times are medians without the first round."""
    head = ["process", "first, s", "median, s", "slowest, s", "CPU, s", "peak memory, MB"]
    rows = []
    for name, (first, *rest) in processes.items():
        seconds = [each.seconds for each in rest]
        peak = max(each.megabytes for each in (first, *rest))
        cpu = median(each.cpu for each in rest)
        times = [first.seconds, median(seconds), max(seconds), cpu]
        rows.append([name, *(f"{each:.2f}" for each in times), f"{peak:.0f}"])
    ours, bare = processes[PREDICT][1:], processes[IMPORTS][1:]
    extra = median(a.seconds - b.seconds for a, b in zip(ours, bare, strict=True))
    more = median(a.megabytes - b.megabytes for a, b in zip(ours, bare, strict=True))
    busy = median(a.cpu - b.cpu for a, b in zip(ours, bare, strict=True))
    rows.append(["the difference", "", f"{extra:.2f}", "", f"{busy:.2f}", f"{more:.0f}"])
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported .onnx file")
    parser.add_argument("image", type=Path, help="picture to diagnose")
    parser.add_argument("--rounds", type=int, default=15, help="how often each process is started, 2 or more [15]")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: 2 or more, as the first one counts apart")
    print(report(measure(options.model, options.image, options.rounds)))
    print(f"\nTargets: {MOST_SECONDS} s and {MOST_MEGABYTES} MB. {options.rounds} rounds, taking turns.\n")
    print(circumstances())


if __name__ == "__main__":
    main()
