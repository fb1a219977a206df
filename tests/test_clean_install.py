"""The plain package, installed as a user installs it, works without torch."""

import json
import os
import runpy
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def call(*command: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command outside of the checkout and of any active environment."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(each) for each in command], cwd=cwd, capture_output=True, text=True, env=environment, timeout=600
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fresh environment that holds the wheel and its base dependencies; call it with a program's name."""
    folder = tmp_path_factory.mktemp("clean")
    build = call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    assert build.returncode == 0, build.stderr
    (wheel,) = folder.glob("pocketdx-*.whl")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    install = call(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    assert install.returncode == 0, install.stderr
    return lambda program, *arguments: call(programs / program, *arguments, cwd=folder)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(runpy.run_path(str(Path(__file__).with_name("tiny_model.py")))["tiny_model"]())
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.effect_noise((300, 200), 60).save(folder / "a.jpg")
    Image.effect_noise((30, 40), 60).save(folder / "b.png")
    return folder


def test_the_requirements_agree_and_torch_is_absent(installed: Run) -> None:
    check = installed("python", "-m", "pip", "check")
    assert check.returncode == 0, check.stdout
    assert installed("python", "-c", "import torch").returncode != 0


def test_it_predicts_with_a_model_file(installed: Run, model_path: Path, pictures: Path) -> None:
    done = installed("pocketdx", "predict", model_path, pictures, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)["results"]
    assert [Path(each["file"]).name for each in results] == ["a.jpg", "b.png"]
    assert all(each["label"] in ("NORMAL", "PNEUMONIA") for each in results)
    assert all(sum(each["probabilities"].values()) == pytest.approx(1) for each in results)


def test_the_python_api_answers_as_the_command_does(installed: Run, model_path: Path, pictures: Path) -> None:
    code = (
        "import sys\n"
        "from pocketdx_runtime import Model\n"
        "print(Model(sys.argv[1]).diagnose([sys.argv[2]])[0].probability)\n"
    )
    done = installed("python", "-c", code, model_path, pictures / "a.jpg")
    assert done.returncode == 0, done.stderr
    table = installed("pocketdx", "predict", model_path, pictures / "a.jpg").stdout
    assert float(table.splitlines()[1].split()[1]) == pytest.approx(float(done.stdout), abs=5e-5)


def test_help_and_version_work(installed: Run) -> None:
    done = installed("pocketdx", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "predict" in done.stdout
    assert "train" in done.stdout
    assert installed("pocketdx", "--version").stdout.startswith("pocketdx ")


def test_inspect_and_embed_work(installed: Run, model_path: Path, pictures: Path) -> None:
    assert "NORMAL, PNEUMONIA" in installed("pocketdx", "inspect", model_path).stdout
    assert installed("pocketdx", "embed", model_path, pictures, "--json").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "data", "--out", "run"], "train"),
        (["export", "run", "--out", "bundle"], "export"),
        (["serve", "MODEL"], "serve"),
    ],
)
def test_a_command_of_another_room_says_in_one_line_what_to_install(
    installed: Run, model_path: Path, pictures: Path, arguments: list[str], extra: str
) -> None:
    given = {"data": str(pictures), "MODEL": str(model_path)}
    done = installed("pocketdx", *(given.get(each, each) for each in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: `pocketdx {arguments[0]}` needs ")
    assert done.stderr.endswith(f": pip install 'pocketdx[{extra}]'\n")
    assert done.stderr.count("\n") == 1
