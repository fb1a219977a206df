"""The page that `pocketdx serve` hands out: how large it is, and how long until its first answer on the device.

Each round is a new Chromium process with a profile of its own that has seen the page once before: everything is in the
browser's cache (the page in the service worker's, the model and the engine by digest), nothing is in memory. Timed by
the browser's own clock from the start of the navigation to the answer on the screen; the picture is chosen at once, so
start, self-test, decoding and inference are all in it. The first visit, with its downloads over loopback, stands apart.

    python benchmarks/page.py bundle/model.fp32.onnx chest.jpg

Needs Chromium and `make web`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import circumstances, table

from pocketdx_serve.pages import WEB

if TYPE_CHECKING:
    from playwright.sync_api import BrowserType

MOST_BYTES, MOST_SECONDS = 250_000, 3.0
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_ANSWERED = "#cards > li:not([aria-busy]) .verdict"
_ANSWER_AT = "() => performance.getEntriesByName('pocketdx:answer')[0].startTime"


def sizes() -> str:
    """The table of the built files."""
    rows = []
    total = 0
    for path in sorted(WEB.rglob("*")):
        if path.suffix in (".js", ".css"):
            packed = len(gzip.compress(path.read_bytes(), 9))
            total += packed
            rows.append([f"`{path.relative_to(WEB)}`", f"{path.stat().st_size / 1000:.1f}", f"{packed / 1000:.1f}"])
    rows.append(["**together**", "", f"**{total / 1000:.1f}**"])
    rows.append(["target", "", f"{MOST_BYTES / 1000:.0f}"])
    engine = sorted(WEB.glob("engine/*"))
    rows += [[f"apart: `{each.relative_to(WEB)}`", "", f"{each.stat().st_size / 1000:.0f}"] for each in engine]
    return table(["file", "kB", "gzip, kB"], rows)


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """The address of `pocketdx serve` in a process of its own."""
    command = [sys.executable, "-m", "pocketdx_runtime", "serve", str(model), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if '"ready"' in line:
                break
            if '"listening"' in line:
                url = str(json.loads(line)["url"])
        else:
            raise SystemExit("the server did not get ready")
        yield url
    finally:
        server.terminate()
        server.wait(20)


def visit(chromium: BrowserType, program: str, profile: Path, url: str, picture: Path) -> float:
    """Seconds from the start of the navigation to the answer, in a new process with this profile."""
    browser = chromium.launch_persistent_context(str(profile), executable_path=program, args=_FLAGS, headless=True)
    try:
        page = browser.pages[0]
        page.goto(url, wait_until="commit")
        page.set_input_files("#files", picture)
        page.wait_for_selector(_ANSWERED, timeout=120_000)
        if "on this device" not in page.inner_text("#cards"):
            raise SystemExit("the page did not answer on the device: run `make web` first")
        seconds = float(page.evaluate(_ANSWER_AT)) / 1000
        page.evaluate("async () => { await navigator.serviceWorker.ready; }")
        return seconds
    finally:
        browser.close()


def measure(url: str, program: str, pictures: Sequence[Path], rounds: int) -> dict[str, tuple[float, list[float]]]:
    """By picture: seconds of the first visit, and of each one after it. The pictures take turns."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        profiles = {picture: Path(folder) / str(number) for number, picture in enumerate(pictures)}
        first = {each: visit(driver.chromium, program, profiles[each], url, each) for each in pictures}
        again: dict[Path, list[float]] = {each: [] for each in pictures}
        for _ in range(rounds):
            for each in pictures:
                again[each].append(visit(driver.chromium, program, profiles[each], url, each))
    return {each.name: (first[each], again[each]) for each in pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported .onnx file, with its golden.npz beside it")
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, one a row")
    parser.add_argument("--rounds", type=int, default=7, help="visits after the first [7]")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    options = parser.parse_args()
    if options.chromium is None:
        parser.error("--chromium: none found; apt-get install chromium, or say where it is")
    with serving(options.model) as url:
        found = measure(url, options.chromium, options.pictures, options.rounds)
    head = ["picture", "first visit, s", "warm cache, median, s", "slowest, s"]
    rows = [[name, f"{a:.2f}", f"{median(b):.2f}", f"{max(b):.2f}"] for name, (a, b) in found.items()]
    print(f"{sizes()}\n\n{table(head, rows)}\n")
    print(f"Target: {MOST_SECONDS:.0f} s from a warm cache. {options.rounds} visits after the first.\n")
    print(circumstances(["playwright"]))


if __name__ == "__main__":
    main()
