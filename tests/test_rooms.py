"""The rooms stay apart, and starting the program stays cheap."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("runtime", "train", "export", "serve")
# Seconds to import, each of them; `rich` stands for what dresses up a terminal.
HEAVY = {
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning",
    "matplotlib",
    "rich",
    "onnx",
    "onnxscript",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "scipy",
    "sklearn",
    "pyarrow",
    "tensorboard",
}


def python(code: str, *arguments: object, cwd: Path | None = None, path: Path | None = None) -> str:
    """Run code in a fresh Python and return what it printed; fails with what it said on stderr."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- import-linter ---------------------------------------------------------------------------------------------

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_no_room_imports_what_it_must_not_know() -> None:
    report = python(LINT, "--config", ROOT / "pyproject.toml", "--no-cache", cwd=ROOT)
    assert "0 broken" in report


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("runtime", "torch"),
        ("runtime", "pocketdx_train"),
        ("serve", "torch"),
        ("serve", "pocketdx_train"),
        ("train", "pocketdx_export"),
        ("export", "pocketdx_serve"),
    ],
)
def test_the_rule_notices_a_room_that_breaks_it(tmp_path: Path, room: str, forbidden: str) -> None:
    for each in ROOMS:
        shutil.copytree(ROOT / each / f"pocketdx_{each}", tmp_path / f"pocketdx_{each}")
    culprit = tmp_path / f"pocketdx_{room}" / "culprit.py"
    culprit.write_text(f"def lazily():\n    import {forbidden}\n")
    with pytest.raises(AssertionError) as broken:
        python(LINT, "--config", ROOT / "pyproject.toml", "--no-cache", cwd=tmp_path, path=tmp_path)
    assert f"pocketdx_{room}.culprit -> {forbidden}" in str(broken.value)


# --- what is imported when -------------------------------------------------------------------------------------

REPORT = "\nimport json\nprint(json.dumps(sorted(m for m in sys.modules if '.' not in m)), file=sys.stderr)\n"
RUN = "import sys\nfrom pocketdx_runtime.cli import run\nstatus = run(sys.argv[1:])\nassert status == 0, status\n"


def imported_by(code: str, *arguments: object) -> set[str]:
    """Top-level modules that a fresh Python holds after running some code."""
    command = [sys.executable, "-c", f"import sys\n{code}{REPORT}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(runpy.run_path(str(Path(__file__).with_name("tiny_model.py")))["tiny_model"]())
    return path


@pytest.fixture(scope="session")
def photo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 12-megapixel JPEG."""
    from PIL import Image

    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.effect_noise((400, 300), 60).convert("RGB").resize((4000, 3000)).save(path, quality=85)
    return path


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_rooms_commands_imports_nothing_heavy(room: str) -> None:
    assert imported_by(f"import pocketdx_{room}.commands") & HEAVY == set()


def test_help_imports_nothing_heavy_nor_the_engine() -> None:
    assert imported_by(RUN, "--help") & (HEAVY | {"onnxruntime", "PIL"}) == set()


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_the_runtimes_commands_import_nothing_heavy(command: str, model_path: Path, photo_path: Path) -> None:
    imported = imported_by(RUN, command, model_path, *([photo_path] if command == "predict" else []))
    assert "onnxruntime" in imported
    assert imported & HEAVY == set()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_cold_predict_of_a_12_megapixel_photo_is_fast_and_small(model_path: Path, photo_path: Path) -> None:
    """The promise is 0.6 s and 120 MB for a real model; CPU seconds, as the machine may be busy otherwise."""
    measure = (
        "import resource\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "seconds = usage.ru_utime + usage.ru_stime\n"
        # Not ru_maxrss: it also counts the process that started this one, up to the moment of exec.
        "peak = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(json.dumps([seconds, peak / 1024]), file=sys.stderr)\n"
    )
    figures = []
    for _ in range(3):
        command = [sys.executable, "-c", f"{RUN}{REPORT}{measure}", "predict", str(model_path), str(photo_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        figures.append(json.loads(done.stderr.splitlines()[-1]))
    assert min(seconds for seconds, _ in figures) < 0.6
    assert max(megabytes for _, megabytes in figures) < 120
