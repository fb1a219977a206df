"""TensorFlow Lite Support's Task library in a folder of its own: many phone apps run `.tflite` files with it.

It needs protobuf below 4, so it can live neither with onnx nor in PocketDx's environment; its last wheels are for
Python 3.11. pip puts it into the cache folder, and an interpreter that sees nothing else runs it there.
https://ai.google.dev/edge/litert/libraries/task_library/overview
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.folder import DeviceFolder
from pocketdx_export.devices.programs import call
from pocketdx_runtime.files import folder_written_aside

_WANTED = {"tflite-support": "0.4.4", "protobuf": "3.20.3"}
_PYTHONS = ("3.11", "3.10", "3.9")
_PIP_REMEDY = "pip must be installed here and reach a package index"
_USB_REMEDY = "if it misses libusb-1.0.so.0: apt-get install libusb-1.0-0"


def folder() -> DeviceFolder:
    """Where it lies."""
    return DeviceFolder("task_library", _WANTED)


def absent() -> str | None:
    """Why it cannot be used now, with the remedy; None when it can."""
    return folder().stale()


def command(*arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """How to run its Python: the command, and all of its environment."""
    path = folder().path
    return _command(path, (path / "python").read_text("utf-8").strip(), arguments)


def set_up(say: Callable[[str], None]) -> None:
    """Install it, see that it starts, and put it in its place; as a whole or not at all.

    Raises:
        DeviceError: there is no Python old enough, pip reaches no index, or a library of the system is missing.
        OutputError: the cache folder cannot be written.
    """
    interpreter, version = _interpreter()
    place = folder()
    with folder_written_aside(place.path, overwrite=True, marker="ready.json") as aside:
        say(f"tflite-support and protobuf below 4 for Python {version}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        wanted = [f"{name}=={number}" for name, number in _WANTED.items()]
        call(
            [*pip, "--python-version", version, "--target", str(aside / "site"), *wanted, "numpy", "flatbuffers"],
            remedy=_PIP_REMEDY,
        )
        (aside / "python").write_text(f"{interpreter}\n", "utf-8")
        say("first start")
        words, environment = _command(aside, interpreter, ("-c", "from tflite_support.task import vision"))
        call(["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *words], remedy=_USB_REMEDY)
        place.write_ready(aside, {**_WANTED, "python": version})


def _command(path: Path, interpreter: str, arguments: tuple[str | Path, ...]) -> tuple[list[str], dict[str, str]]:
    # Neither this environment's packages nor the user's: -S and -s.
    words = [interpreter, "-S", "-s", *map(str, arguments)]
    return words, {"PYTHONPATH": str(path / "site"), "HOME": os.environ.get("HOME", "/")}


def _interpreter() -> tuple[str, str]:
    """A Python that there are wheels for, and its version."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if own in _PYTHONS:
        return sys.executable, own
    for version in _PYTHONS:
        found = shutil.which(f"python{version}")
        if found is None:
            continue
        try:
            call([found, "--version"], remedy="")
        except DeviceError:  # a stand-in that only says how to install it
            continue
        return found, version
    raise DeviceError(f"task_library: needs Python {' or '.join(_PYTHONS)} beside this {own}; install one of them")
