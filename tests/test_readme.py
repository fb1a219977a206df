"""The README runs as printed, and what it and docs/ say of the product is so.

Every ```console and ```python block runs, in order, in one folder: what `make demo` leaves, from fewer and smaller
images. In a console block the lines after `$ ` (and `> `) are commands for bash; the others are output, and the words
in them must be in what the command really printed. A line above a block may say how it is to be tested:

    <!-- test: skip, REASON -->            not run
    <!-- test: small -->                   `pocketdx train` gets sizes and weights that take seconds, and no download
    <!-- test: exit status N -->           the last command ends with N instead of 0
    <!-- test: killed when FILE is there -->  and the next block finds what that leaves

`pocketdx serve` runs, on a free port, until the end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md")))
PRINTED_ADDRESS = "http://127.0.0.1:8000"
SMALL = ["--weights", "none", "--size", "64", "--batch-size", "16"]
MAKE_DEMO = """
import dataclasses, pathlib
from pocketdx_export import demo
demo.PER_CLASS = {"train": 24, "val": 6, "test": 6}
demo.SETTINGS = dataclasses.replace(demo.SETTINGS, size=64, epochs=2, batch_size=16)
demo.run_demo(pathlib.Path("demo"), say=lambda line: None)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, the number of its first line, and the directives above it."""

    line: int
    language: str
    lines: tuple[str, ...]
    directives: tuple[str, ...]

    def says(self, word: str) -> bool:
        return any(re.match(rf"{word}\b", each) for each in self.directives)

    def value(self, pattern: str) -> str | None:
        found = (re.fullmatch(pattern, each) for each in self.directives)
        return next((match[1] for match in found if match), None)

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command of a console block, with the lines of output shown below it."""
        found: list[tuple[str, list[str]]] = []
        for text in self.lines:
            if text.startswith("$ "):
                found.append((text[2:], []))
            elif text.startswith("> "):
                found[-1] = (f"{found[-1][0]}\n{text[2:]}", [])
            else:
                found[-1][1].append(text)
        return found


def blocks(page: Path) -> list[Block]:
    found, directives, lines = [], [], iter(enumerate(page.read_text("utf-8").splitlines(), start=1))
    for number, text in lines:
        if directive := re.fullmatch(r"<!-- test: (.*) -->", text):
            directives.append(directive[1])
        elif text.startswith("```"):
            body = []
            for _, inside in lines:
                if inside == "```":
                    break
                body.append(inside)
            parts = tuple(part.strip() for each in directives for part in each.split(", "))
            found.append(Block(number, text[3:], tuple(body), parts))
            directives = []
    assert not directives, f"{page.name}: a directive without a block below it"
    return found


@dataclass
class Tour:
    """The folder in which the README's blocks run, one after the other."""

    folder: Path
    environment: dict[str, str]
    servers: list[subprocess.Popen[str]] = field(default_factory=list)
    address: str = PRINTED_ADDRESS

    def take(self, block: Block) -> None:
        if block.language == "python":
            self.call([sys.executable, "-"], "\n".join(block.lines), 0, block)
            return
        commands = block.commands()
        for number, (command, shown) in enumerate(commands, start=1):
            command = command.replace(PRINTED_ADDRESS, self.address)
            if block.says("small"):
                command = re.sub(r"(pocketdx train .*)", rf"\1 {' '.join(SMALL)}", command)
                command = command if "--epochs" in command else f"{command} --epochs 1"
            if command.startswith("pocketdx serve "):
                self.serve(command)
            elif awaited := block.value(r"killed when (\S+) is there"):
                self.kill_when(self.folder / awaited, command)
            else:
                expected = int(block.value(r"exit status (\d)") or 0) if number == len(commands) else 0
                printed = self.call(["bash", "-c", command], "", expected, block)
                check_words(shown, printed, f"README.md, line {block.line}: {command}")

    def call(self, command: list[str], text: str, expected: int, block: Block) -> str:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, cwd=self.folder, env=self.environment, timeout=300
        )
        printed = done.stdout + done.stderr
        assert done.returncode == expected, f"README.md, line {block.line}: {command}: {done.returncode}\n{printed}"
        assert "Traceback" not in printed, f"README.md, line {block.line}: {command}\n{printed}"
        return printed

    def kill_when(self, awaited: Path, command: str) -> None:
        popen = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while not awaited.exists():
            assert popen.poll() is None, f"{command}: ended with {popen.returncode} before {awaited.name} was there"
            assert time.monotonic() < until, f"{command}: no {awaited.name} after two minutes"
            time.sleep(0.01)
        popen.kill()
        assert popen.wait(30) == -signal.SIGKILL

    def serve(self, command: str) -> None:
        popen = subprocess.Popen(
            ["bash", "-c", f"exec {command} --port 0"],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.servers.append(popen)
        assert popen.stderr is not None
        self.address = json.loads(popen.stderr.readline())["url"]
        threading.Thread(target=popen.stderr.read, daemon=True).start()
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/readyz", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < until, "the server did not get ready"
                time.sleep(0.05)

    def end(self) -> None:
        for popen in self.servers:
            popen.terminate()
            assert popen.wait(30) == 0, "the server did not end well"


def check_words(shown: list[str], printed: str, where: str) -> None:
    """Figures, verdicts and the classes that a model names differ from run to run; no other word may."""
    varying = {"blast", "lymphocyte", "neutrophil", "FAILED", "PASSED", "test", "temperature"}
    known = set(re.findall(r"[A-Za-z_]{3,}", printed))
    for line in shown:
        missing = set(re.findall(r"[A-Za-z_]{3,}", line)) - known - varying
        assert not missing, f"{where}\nshows {sorted(missing)}, which is not in what it prints:\n{printed}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "POCKETDX_CACHE": str(tmp_path_factory.mktemp("cache")),
        "MPLBACKEND": "Agg",
        "no_proxy": "*",
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """What `make demo` leaves, of fewer and smaller images."""
    folder = tmp_path_factory.mktemp("build")
    command = [sys.executable, "-c", MAKE_DEMO]
    made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    return folder / "demo"


@pytest.fixture
def tour(demo: Path, environment: dict[str, str]) -> Iterator[Tour]:
    there = Tour(demo, environment)
    yield there
    there.end()


@pytest.mark.slow
def test_the_overview_can_be_drawn_from_a_demo(demo: Path, environment: dict[str, str], tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "overview.png"
    command = [sys.executable, str(ROOT / "docs" / "overview.py"), str(demo), "--out", str(picture)]
    drawn = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (drawn.returncode, drawn.stderr) == (0, "")
    with Image.open(picture) as opened, Image.open(ROOT / "docs" / "overview.png") as published:
        assert opened.size == published.size


@pytest.mark.slow
def test_the_readme_runs_as_printed(tour: Tour) -> None:
    ran = 0
    for block in blocks(README):
        if block.language in ("console", "python") and not block.says("skip"):
            tour.take(block)
            ran += 1
    assert ran >= 15


def test_every_block_of_the_readme_is_of_a_kind_that_is_tested_or_says_why_not() -> None:
    found = blocks(README)
    assert {block.language for block in found} <= {"console", "python", "text"}
    for block in found:
        for each in block.directives:
            assert re.match(r"skip$|small$|exit status \d$|killed when \S+ is there$", each) or block.says("skip"), each
        if block.says("skip"):
            assert len(block.directives) > 1, f"line {block.line}: skipped without a reason"
        if block.language == "console":
            assert block.lines[0].startswith("$ "), f"line {block.line}: begins with output"


def test_few_blocks_of_the_readme_are_not_run_as_printed() -> None:
    assert sum(block.says("skip") for block in blocks(README)) <= 4
    assert sum(block.says("small") for block in blocks(README)) <= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pictures_are_small_enough_for_a_page() -> None:
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 300_000 for picture in pictures)


def test_the_readme_names_every_command_and_every_extra() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = README.read_text("utf-8")
    table = text[text.index("| extra |") :]
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in table, f"no word on the extra {extra}"
    for command in project["entry-points"]["pocketdx.commands"]:
        assert f"`{command}`" in table, f"no word on which extra {command} needs"
        assert f"pocketdx {command} " in text or command == "demo"


PARITY = ROOT / "docs" / "parity.md"


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading of docs/PAGE, without its head; backticks taken off."""
    lines = (ROOT / "docs" / page).read_text("utf-8").partition(f"## {heading}\n")[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return table


def test_the_documented_tolerances_are_those_that_parity_applies() -> None:
    from pocketdx_export.parity.tolerances import TOLERANCES

    head = next(line for line in PARITY.read_text("utf-8").splitlines() if line.startswith("| name | fp32"))
    precisions = [cell.strip() for cell in head.strip("|").split("|")][1:-1]
    assert precisions == list(TOLERANCES.by_precision)
    for column, precision in enumerate(precisions, start=1):
        documented = {row[0]: float(row[column]) for row in rows("parity.md", "Tolerances")}
        applied = TOLERANCES.by_precision[precision]
        assert documented == {each.name: getattr(applied, each.name) for each in fields(applied)}


def test_the_workflow_in_the_docs_is_valid_and_calls_parity_as_it_is() -> None:
    import yaml
    from click.testing import CliRunner

    from pocketdx_export.parity_command import parity

    workflow = yaml.safe_load((ROOT / "docs" / "parity.github.yml").read_text("utf-8"))
    # YAML 1.1 takes the key `on` for true; GitHub does not.
    assert set(workflow) == {"name", True, "permissions", "jobs"}
    (job,) = workflow["jobs"].values()
    assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
    (call,) = [step["run"] for step in job["steps"] if "pocketdx parity" in step.get("run", "")]
    options = re.findall(r"--[a-z-]+", call)
    assert len(options) == 5
    shown = CliRunner().invoke(parity, ["--help"]).output
    assert all(option in shown for option in options)


def test_the_documented_golden_tolerances_are_those_of_the_self_test() -> None:
    from pocketdx_export.parity.tolerances import TOLERANCES

    for output, value, *_ in rows("parity.md", "Self-test"):
        assert float(value) == pytest.approx(TOLERANCES.golden()["fp32"][output], rel=0.01)


def test_the_documented_manifest_has_the_fields_of_the_real_one() -> None:
    from pocketdx_runtime.manifest import MANIFEST_KEY, Manifest, Preprocessing

    assert [row[0] for row in rows("model-file.md", "Manifest")] == [each.name for each in fields(Manifest)]
    assert [row[0] for row in rows("model-file.md", "Preprocessing")] == [each.name for each in fields(Preprocessing)]
    assert MANIFEST_KEY in (ROOT / "docs" / "model-file.md").read_text("utf-8")


def test_the_documented_outputs_are_those_that_are_exported() -> None:
    from pocketdx_export.deploy import OUTPUTS

    assert tuple(row[0] for row in rows("model-file.md", "Outputs")) == OUTPUTS


def test_the_documented_names_of_splits_are_those_that_training_knows(tmp_path: Path) -> None:
    from PIL import Image

    from pocketdx_train.sources import open_source

    for number, (split, names) in enumerate(rows("data.md", "Split names")):
        for name in names.replace("`", "").split(", "):
            for kind in ("a", "b"):
                place = tmp_path / f"{number}-{name}" / name / kind
                place.mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(place / "x.png")
            source: Any = open_source(tmp_path / f"{number}-{name}")
            assert {record.split for record in source.records} == {split}


def test_the_documented_endings_of_image_files_are_those_that_training_takes() -> None:
    from pocketdx_train.sources import IMAGE_SUFFIXES

    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    assert set(re.findall(r"`(\.[a-z]+)`", text)) - {".csv", ".parquet", ".npz"} == IMAGE_SUFFIXES
