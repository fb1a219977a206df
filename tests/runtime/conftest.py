"""A tiny model file and a few pictures for the runtime's tests."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tests/tiny_model.py; tests are not a package, so it is loaded by path."""
    name = "pocketdx_tiny_model"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tiny_model.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def model_bytes(tiny: ModuleType) -> bytes:
    return tiny.tiny_model()


@pytest.fixture
def model_path(tmp_path: Path, model_bytes: bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes)
    return path


def png(seed: int = 0, height: int = 40, width: int = 50) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png, b.png and sub/c.PNG."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "sub/c.PNG")):
        (folder / name).write_bytes(png(seed))
    return folder


class Ran(NamedTuple):
    """What a call of the command line left."""

    status: int
    out: str
    err: str


@pytest.fixture
def pocketdx(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = cli.run([str(each) for each in arguments])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run
