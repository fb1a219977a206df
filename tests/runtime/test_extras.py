"""The pip command that brings what is missing."""

import pytest

from pocketdx_runtime import extras
from pocketdx_runtime.extras import install_command

REQUIREMENTS = [
    "click>=8.1",
    "numpy>=1.26",
    "pi-heif>=0.20; extra == 'heic'",
    'fastapi>=0.115; extra == "serve"',
    "python-multipart>=0.0.18; extra == 'serve'",
    "torch>=2.11; extra == 'train'",
    "tensorboard>=2.18; extra == 'tensorboard'",
    "torch>=2.11; extra == 'export'",  # hatchling spells out what an extra takes from others
    "onnx>=1.18; extra == 'export'",
    "pi-heif>=0.20; extra == 'all'",
    "tensorboard>=2.18; extra == 'all'",
    "torch>=2.11; extra == 'all'",
]


@pytest.mark.parametrize(
    ("module", "room", "command"),
    [
        ("torch", "train", "pip install 'pocketdx[train]'"),
        ("torch.nn", "train", "pip install 'pocketdx[train]'"),
        ("torch", "export", "pip install 'pocketdx[export]'"),
        ("onnx", "export", "pip install 'pocketdx[export]'"),
        ("fastapi", "serve", "pip install 'pocketdx[serve]'"),
        ("tensorboard", "train", "pip install 'pocketdx[tensorboard]'"),
        ("pi_heif", "runtime", "pip install 'pocketdx[heic]'"),
        ("numpy", "runtime", "pip install pocketdx"),
        ("numpy", "train", "pip install 'pocketdx[train]'"),
        ("never_heard_of", "serve", "pip install 'pocketdx[serve]'"),
        ("never_heard_of", "runtime", "pip install pocketdx"),
    ],
)
def test_the_extra_is_the_rooms_own_unless_only_another_brings_the_module(
    monkeypatch: pytest.MonkeyPatch, module: str, room: str, command: str
) -> None:
    monkeypatch.setattr(extras, "requires", lambda _: REQUIREMENTS)
    assert install_command(module, room) == command


def test_without_metadata_the_rooms_own_extra_is_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda _: None)
    assert install_command("torch", "train") == "pip install 'pocketdx[train]'"


@pytest.mark.parametrize(
    ("module", "room", "extra"),
    [
        ("torch", "train", "train"),
        ("torch", "export", "export"),
        ("onnxscript", "export", "export"),
        ("fastapi", "serve", "serve"),
        ("tensorboard", "train", "tensorboard"),
        ("pi_heif", "runtime", "heic"),
    ],
)
def test_the_installed_package_says_the_same(module: str, room: str, extra: str) -> None:
    assert install_command(module, room) == f"pip install 'pocketdx[{extra}]'"
