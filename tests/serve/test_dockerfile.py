"""The Dockerfile, as far as it can be held to its word without a Docker engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    keyword: str
    text: str

    @property
    def argv(self) -> list[str]:
        """Exec form; a step in shell form fails here."""
        argv: list[str] = json.loads(self.text)
        return argv


def parse(path: Path) -> list[list[Step]]:
    """The steps of each stage, FROM first."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[list[Step]] = []
    for line in joined.splitlines():
        keyword, _, text = line.partition(" ")
        if keyword == "FROM":
            stages.append([])
        stages[-1].append(Step(keyword, text.strip()))
    return stages


BUILD, FINAL = parse(ROOT / "Dockerfile")


def only(stage: list[Step], keyword: str) -> Step:
    (step,) = [step for step in stage if step.keyword == keyword]
    return step


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps ``path`` out: the last pattern that matches it or a parent of it decides."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    verdict = False
    for pattern in patterns:
        keep, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        name_only = pattern.removeprefix("**/")
        if any(each == pattern or _matches(each, pattern, name_only) for each in parents):
            verdict = not keep
    return verdict


def _matches(path: str, pattern: str, name_only: str) -> bool:
    if name_only != pattern:
        return fnmatch(path.rsplit("/", 1)[-1], name_only)
    return pattern.count("/") == path.count("/") and fnmatch(path, pattern)


def copied() -> list[tuple[str, str]]:
    pairs = []
    for step in BUILD:
        if step.keyword == "COPY":
            *sources, target = step.text.split()
            pairs += [(source, target) for source in sources]
    return pairs


def test_the_final_user_is_not_root_and_is_given_by_number() -> None:
    users = [step.text for step in FINAL if step.keyword == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), users
    assert FINAL.index(Step("USER", users[-1])) < FINAL.index(only(FINAL, "ENTRYPOINT"))
    created = next(step.text for step in FINAL if step.keyword == "RUN")
    assert f"--uid {users[-1].split(':')[0]} " in created


def test_both_stages_have_the_same_pinned_slim_python_that_the_project_supports() -> None:
    bases = [stage[0].text.split(" AS ")[0] for stage in (BUILD, FINAL)]
    assert bases[0] == bases[1]
    major, minor = map(int, re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", bases[0]).groups())  # type: ignore[union-attr]
    least = re.fullmatch(r">=(\d+)\.(\d+)", project()["requires-python"])
    assert least
    assert (major, minor) >= tuple(map(int, least.groups()))


def test_every_copied_source_exists_and_is_in_the_build_context() -> None:
    assert copied()
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), f"{source} is kept out by .dockerignore"
    assert not ignored("serve/pocketdx_serve/app.py")


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "runtime/web/x",
        "serve/pocketdx_serve/__pycache__",
        "serve/pocketdx_serve/__pycache__/app.cpython-311.pyc",
        "RUN/model.safetensors",
        "bundle/model.onnx",
    ],
)
def test_what_the_image_does_not_need_stays_out_of_the_build_context(path: str) -> None:
    assert ignored(path)


def test_the_installed_extras_exist_and_bring_no_torch() -> None:
    install = next(step.text for step in BUILD if "pip install" in step.text)
    extras = re.search(r'"\.\[([a-z,]+)\]"', install)
    assert extras
    chosen = extras.group(1).split(",")
    offered = project()["optional-dependencies"]
    assert "serve" in chosen
    assert set(chosen) <= set(offered)
    wanted = project()["dependencies"] + [each for extra in chosen for each in offered[extra]]
    assert not [each for each in wanted if re.match(r"torch|lightning|onnxscript|pocketdx", each)]


def test_nothing_but_the_installed_environment_reaches_the_final_stage() -> None:
    assert [step.text for step in FINAL if step.keyword in ("COPY", "ADD")] == [
        "--from=build /opt/pocketdx /opt/pocketdx"
    ]


def test_the_entry_point_is_exec_form_and_names_a_command_of_the_project() -> None:
    program, *rest = only(FINAL, "ENTRYPOINT").argv
    assert project()["scripts"][program]
    assert project()["entry-points"]["pocketdx.commands"][rest[0]]
    assert only(FINAL, "STOPSIGNAL").text == "SIGTERM"
    assert "PATH=/opt/pocketdx/bin:$PATH" in only(FINAL, "ENV").text


def test_the_port_is_the_same_everywhere() -> None:
    entry = only(FINAL, "ENTRYPOINT").argv
    port = entry[entry.index("--port") + 1]
    assert only(FINAL, "EXPOSE").text == port
    assert f"'127.0.0.1', {port}," in only(FINAL, "HEALTHCHECK").text
    assert entry[entry.index("--host") + 1] == "0.0.0.0"


def health_command(port: str) -> list[str]:
    program, *rest = json.loads(only(FINAL, "HEALTHCHECK").text.partition(" CMD ")[2])
    assert program == "python"
    return [sys.executable, *(each.replace(" 8000,", f" {port},") for each in rest)]


def test_the_real_entry_point_serves_and_the_real_health_check_sees_it(
    process: Callable[..., Any], tiny_model_path: Path
) -> None:
    program, *rest = only(FINAL, "ENTRYPOINT").argv
    assert program == "pocketdx"
    assert only(FINAL, "CMD").argv == ["/models/model.onnx"]
    # As `docker run IMAGE MODEL --port 0` would: what comes last counts.
    run = [sys.executable, "-c", "from pocketdx_runtime.cli import main; main()", *rest]
    server = process(argv=[*run, str(tiny_model_path), "--port", "0"])
    port = server.url.rsplit(":", 1)[1]
    assert subprocess.run(health_command(port), check=False).returncode == 0
    server.popen.terminate()
    assert server.finish() == 0
    gone = subprocess.run(health_command(port), check=False, stderr=subprocess.DEVNULL)
    assert gone.returncode == 1, "Docker reserves every other status"


@pytest.mark.slow
def test_what_is_copied_is_enough_to_build_the_wheel(tmp_path: Path) -> None:
    """The build stage's COPY and install, without the engine and without the dependencies."""
    context = tmp_path / "src"
    for source, target in copied():
        path = context / (source if target == "./" else target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "."], cwd=context, check=True)
    (wheel,) = tmp_path.glob("pocketdx-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pocketdx_serve/app.py", "pocketdx_serve/py.typed", "pocketdx_runtime/model.py"} <= set(names)
