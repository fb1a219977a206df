"""How long the whole parity matrix takes: every file of a bundle on every backend that is set up here.

python benchmarks/parity_matrix.py bundle --against run --data chest-xray
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import circumstances, table

TARGET = 360.0
"""Seconds, on two cores: V3-small, all 624 test images natively, 32 on ARM64 and in the browser."""


def rows(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """File, backend, images, seconds, status and the largest difference of logits, for a table."""
    found = []
    for cell in cells:
        logits = [each["value"] for each in cell["checks"] if each["name"] == "logits, max"]
        worst = "-" if not logits else "nan" if None in logits else f"{max(logits):.1e}"
        seconds = cell["facts"].get("seconds")
        status = f"not run: {cell['not_run']}" if cell["not_run"] else cell["status"]
        shown = "-" if seconds is None else f"{seconds:.1f}"
        found.append([cell["file"], cell["backend"], str(cell["images"]), shown, worst, status])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", type=Path, required=True, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pocketdx_runtime", "parity", str(options.bundle), "--json"]
    command += ["--against", str(options.against), "--data", str(options.data)]
    command += ["--cache", str(options.cache)] if options.cache else []
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - started
    if done.returncode not in (0, 1):
        raise SystemExit(f"pocketdx parity ended with {done.returncode}")
    report = json.loads(done.stdout)
    print(table(["file", "backend", "images", "seconds", "logits, max", "result"], rows(report["cells"])))
    verdict = "met" if seconds < TARGET else "missed"
    print(f"\nall of it, imports and decoding included: {seconds:.0f} s; target under {TARGET:.0f} s: {verdict}")
    print(f"gate: {'passed' if report['passed'] else 'FAILED'}\n")
    print(circumstances(["torch", "onnx"]))


if __name__ == "__main__":
    main()
