"""LiteRT (TensorFlow Lite) on this machine, with its XNNPACK kernels, as on an Android phone's CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pocketdx_export.backends import BackendError, Outputs, Pixels, Runner
from pocketdx_export.noise import first_line, silenced
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.manifest import Manifest


def absent() -> str | None:
    """It comes with the extra."""
    return None if find_spec("ai_edge_litert") else "needs ai_edge_litert: pip install 'pocketdx[tflite]'"


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Runner]:
    """Open a `.tflite` file.

    Raises:
        BackendError: LiteRT cannot open it.
    """
    with silenced():
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(str(path), num_threads=granted_cpus())
            interpreter.allocate_tensors()
            signature = interpreter.get_signature_runner()
        except (ValueError, RuntimeError, TypeError) as problem:
            raise BackendError(f"{path}: LiteRT cannot open it ({first_line(problem)})") from problem
    size = manifest.preprocessing.size

    def run(pictures: Sequence[Pixels]) -> Outputs:
        rows: dict[str, list[np.ndarray]] = {name: [] for name in manifest.outputs}
        for picture in pictures:
            if picture.shape != (size, size, 3):
                raise BackendError(f"{path}: takes pictures of {size} x {size}, not {picture.shape[1::-1]}")
            # Divided as the metadata says: (p - 0) / 255.
            answers = signature(image=picture[np.newaxis].astype(np.float32) / np.float32(255))
            for name, kept in rows.items():
                kept.append(answers[name].copy())
        return {name: np.concatenate(kept) for name, kept in rows.items()}

    yield run
