"""Ten times the load that the server can bear: what it still answers, what it says to the rest, what memory it takes.

    python benchmarks/overload.py bundle/model.fp32.onnx --seconds 60
    python benchmarks/overload.py bundle/model.fp32.onnx --seconds 60 --apart

Goodput is set beside the most that the same server answers in a closed loop of 16 connections, just before and just
after. The load generator takes its share of the same CPUs, ten times as much as under normal load, and nobody's server
can answer with what that takes; with --apart (Linux) the server has one CPU and the load another, as if the clients
were elsewhere. Only on this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import circumstances, table
from servers import Payload, Server, ours
from synthetic_photo import small_jpeg

MOST_CONNECTIONS = 2048
TIMES = 10
SETTLED = 0.25
"""Share of the time after which memory should not grow: all connections have come by then."""


@dataclass(frozen=True)
class Round:
    """One minute of overload, or as long as it was.

    Attributes:
        most: answers a second without overload, mean of before and after.
        due: requests a second.
        outcome: what load.py says.
        memory: MB, before, each second of it.
    """

    most: float
    due: float
    outcome: dict[str, Any]
    memory: list[float]

    @property
    def ratio(self) -> float:
        """Goodput by the most."""
        return float(self.outcome["goodput"]) / self.most

    def row(self) -> list[str]:
        """Of the table."""
        settled = self.memory[int(SETTLED * len(self.memory))]
        return [
            f"{self.due:.0f}",
            f"{self.most:.0f}",
            f"{self.outcome['goodput']:.0f}",
            f"{self.ratio:.2f}",
            f"{self.outcome['p50'] * 1000:.0f} / {self.outcome['p99'] * 1000:.0f}",
            f"{self.outcome['cpu'] / self.outcome['seconds']:.2f}",
            f"{self.memory[0]:.0f} / {settled:.0f} / {self.memory[-1]:.0f}",
        ]


HEAD = ["due", "the most", "goodput", "ratio", "p50 / p99, ms", "load's CPUs", "MB before / settled / last"]


def overloaded(server: Server, payload: Payload, seconds: float) -> Round:
    """Measure one server that has just begun."""
    short = max(3.0, seconds / 4)
    server.load(payload, 1)
    before = server.load(payload, short)["goodput"]
    memory, done = [server.rss], threading.Event()

    def watch() -> None:
        while not done.wait(1):
            memory.append(server.rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        outcome = server.load(payload, seconds, MOST_CONNECTIONS, TIMES * before)
    finally:
        done.set()
        watching.join()
    time.sleep(1)
    after = server.load(payload, short)["goodput"]
    return Round((before + after) / 2, TIMES * before, outcome, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported .onnx file")
    parser.add_argument("--seconds", type=float, default=10, help="of overload [10]")
    parser.add_argument("--rounds", type=int, default=1, help="each with a server of its own [1]")
    parser.add_argument("--apart", action="store_true", help="one CPU for the server, another for the load")
    options = parser.parse_args()
    where: dict[str, Collection[int]] = {}
    if options.apart:
        if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
            parser.error("--apart: needs Linux and two CPUs")
        first, second, *_ = sorted(os.sched_getaffinity(0))
        where = {"cpus": {first}, "load_cpus": {second}}
    with tempfile.TemporaryDirectory() as folder:
        payload = Payload.make(Path(folder), "224 px JPEG", small_jpeg())
        rounds = []
        for _ in range(options.rounds):
            with ours(options.model, **where)(payload) as server:
                rounds.append(overloaded(server, payload, options.seconds))
                answered = server.post(payload.data)
            print(f"{rounds[-1].ratio:.2f} {rounds[-1].outcome['statuses']}; the next request: {answered}", flush=True)
    print(table(HEAD, [each.row() for each in rounds]))
    statuses: Counter[str] = sum((Counter(each.outcome["statuses"]) for each in rounds), Counter())
    ratio = statistics.median(each.ratio for each in rounds)
    print(f"\nGoodput by the most: {ratio:.2f} (median); {dict(statuses)}; {options.seconds:g} s a round")
    print("one CPU for the server, another for the load\n" if options.apart else "server and load on the same CPUs\n")
    print(circumstances(["fastapi", "uvicorn", "uvloop"]))


if __name__ == "__main__":
    main()
