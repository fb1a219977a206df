"""onnxruntime and LiteRT for ARM64, run by qemu's user mode: what is computed is right, how fast it is says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pocketdx_runtime
from pocketdx_export.backends import Runner
from pocketdx_export.devices import arm64
from pocketdx_export.devices.worker import Limits, shared_folder, worker
from pocketdx_runtime.manifest import Manifest

# A V3-small at 224 px takes a second a picture and 0.4 GB.
_LIMITS = Limits(start=240, picture=120, memory=6 << 30)
_SCRIPT = Path(arm64.__file__).with_name("on_arm64.py")


def absent(*, cpu: str, engine: str = "onnx") -> str | None:
    """Why it cannot be used, with the remedy; None when it is set up."""
    return arm64.absent()


@contextmanager
def opened(
    path: Path, manifest: Manifest, *, cpu: str, engine: str = "onnx", limits: Limits = _LIMITS
) -> Iterator[Runner]:
    """Open a file.

    Args:
        path: an `.onnx` file, or a `.tflite` one for LiteRT.
        manifest: of the file.
        cpu: of `devices.arm64.CPUS`.
        engine: "onnx" is the runtime on onnxruntime; "litert" is LiteRT.
        limits: of time and memory.

    Raises:
        BackendError: it cannot be opened there.
    """
    with shared_folder(path) as folder:
        package = Path(pocketdx_runtime.__file__).parent
        (folder / package.name).symlink_to(package)
        # One thread: parity asks devices side by side, and an emulated barrier is dear (a matrix: 341 s, not 385).
        command, environment = arm64.command(cpu, _SCRIPT, engine, folder, "1")
        # The runtime alone, not the folder that it lies in: beside an installed one lie packages for this machine.
        environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{folder}"
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with worker(f"{cpu} ({engine})", command, environment=environment, folder=folder, limits=limits) as run:
            # LiteRT's wheel does not tell its version.
            run.about = {**run.about, "software": {**arm64.versions(), **run.about["software"]}}
            yield run
