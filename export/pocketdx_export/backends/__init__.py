"""The table of backends: what runs an exported file, here or on another device, and how to get it.

A backend is opened on a file and gives a runner. A runner takes pictures and gives every output of the file for each;
so parity, bench and the check after export ask all devices in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.errors import ExportError
from pocketdx_runtime.manifest import Manifest

Pixels = NDArray[np.uint8]
Outputs = dict[str, NDArray[np.float32]]


class Runner(Protocol):
    """An opened file, ready to run."""

    def __call__(self, pictures: Sequence[Pixels]) -> Outputs:
        """Every output of the file by name, float32 [N, ...], for N pictures uint8 [H, W, 3], RGB.

        Pictures may be of any size where the backend `resizes`, else they are of the network's own.

        Raises:
            BackendError: the device failed.
        """


class BackendError(ExportError):
    """A backend that is not there, or that cannot open or run a file."""


class UnsupportedError(BackendError):
    """The backend is there, but not for this file: it lacks an operator, say. Parity shows it as not run."""


class Home(Protocol):
    """What a backend's module has."""

    def absent(self, **options: Any) -> str | None:
        """Why the backend cannot be used on this machine, with the remedy; None when it can."""

    def opened(self, path: Path, manifest: Manifest, **options: Any) -> AbstractContextManager[Runner]:
        """Open a file; the runner is usable until the context ends. Raises BackendError."""


@dataclass(frozen=True)
class Backend:
    """One way to run files.

    Attributes:
        name: on the command line and in reports.
        formats: of `targets.TARGETS` that it runs.
        module: of this package, with `absent` and `opened` (see `Home`).
        shown: for people.
        resizes: whether its files take pictures of any size and resize them in the graph.
        most: images that it is asked for at most, where it is slow; None is no limit.
        options: given to the module's functions.
    """

    name: str
    formats: tuple[str, ...]
    module: str
    shown: str
    resizes: bool = True
    most: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def absent(self) -> str | None:
        """Why it cannot be used here, with the remedy; None when it can."""
        return self._home().absent(**self.options)

    @contextmanager
    def opened(self, path: Path, manifest: Manifest) -> Iterator[Runner]:
        """Open the file at `path`, whose manifest is `manifest`.

        Raises:
            BackendError: the backend is not there, or cannot open the file.
        """
        if why := self.absent():
            raise BackendError(f"{self.name}: {why}")
        with self._home().opened(path, manifest, **self.options) as runner:
            yield runner

    def _home(self) -> Home:
        return cast("Home", import_module(f"{__name__}.{self.module}"))


BACKENDS: tuple[Backend, ...] = (
    Backend("onnxruntime", ("onnx", "ort"), "native", "onnxruntime on this machine"),
    Backend(
        "onnxruntime-plain",
        ("onnx",),
        "native",
        "onnxruntime on this machine, graph optimizations off: integers computed in float",
        options={"optimize": False},
    ),
    Backend("litert", ("tflite",), "litert", "LiteRT (XNNPACK) on this machine", resizes=False),
    Backend(
        "onnx-reference",
        ("onnx",),
        "reference",
        "the onnx project's own evaluator, in NumPy: a second opinion, independent of onnxruntime",
        resizes=False,
        most=2,
    ),
    Backend(
        "task-library",
        ("tflite",),
        "task_library",
        "TensorFlow Lite's Task library: ImageClassifier and ImageEmbedder",
        resizes=False,
        most=32,  # without XNNPACK it takes minutes for a test split
    ),
    Backend("executorch", ("executorch",), "executorch", "ExecuTorch (XNNPACK) on this machine", resizes=False),
    Backend("coreml", ("coreml",), "coreml", "CoreML, on a Mac", resizes=False),
    Backend(
        "arm64-cortex-a72",
        ("onnx",),
        "arm64",
        "ARM64 in qemu, Cortex-A72 (Raspberry Pi 4): plain NEON",
        most=32,
        options={"cpu": "cortex-a72"},
    ),
    Backend(
        "arm64-cortex-a76",
        ("onnx",),
        "arm64",
        "ARM64 in qemu, Cortex-A76 (Raspberry Pi 5): dot product",
        most=32,
        options={"cpu": "cortex-a76"},
    ),
    Backend(
        "arm64-max",
        ("onnx",),
        "arm64",
        "ARM64 in qemu, everything it knows: i8mm, bf16, SVE2, SME",
        most=32,
        options={"cpu": "max"},
    ),
    Backend(
        "arm64-litert",
        ("tflite",),
        "arm64",
        "LiteRT (XNNPACK) for ARM64 in qemu, Cortex-A76",
        resizes=False,
        most=32,
        options={"cpu": "cortex-a76", "engine": "litert"},
    ),
    Backend("node", ("onnx",), "web", "onnxruntime-web in Node", most=32, options={"where": "node"}),
    Backend(
        "browser-1",
        ("onnx",),
        "web",
        "onnxruntime-web in headless Chromium, one thread",
        most=32,
        options={"where": "browser", "threads": 1},
    ),
    Backend(
        "browser-2",
        ("onnx",),
        "web",
        "onnxruntime-web in headless Chromium, two threads",
        most=32,
        options={"where": "browser", "threads": 2},
    ),
)


def backends_for(file_format: str) -> tuple[Backend, ...]:
    """The backends that run files of this format; the first is the one that checks a file after export."""
    return tuple(backend for backend in BACKENDS if file_format in backend.formats)
