"""The front door: ``from pocketdx_runtime import ...``."""

import subprocess
import sys

import pytest

import pocketdx_runtime


@pytest.mark.parametrize("name", pocketdx_runtime.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(pocketdx_runtime, name).__name__ == name


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert pocketdx_runtime.__version__ == version("pocketdx")


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'frobnicate'"):
        _ = pocketdx_runtime.frobnicate


def test_the_package_itself_imports_nothing() -> None:
    code = "import sys, pocketdx_runtime; print({'numpy', 'onnxruntime', 'PIL', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "pocketdx_runtime", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"pocketdx {pocketdx_runtime.__version__}\n"
