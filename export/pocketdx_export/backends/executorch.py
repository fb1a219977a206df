"""ExecuTorch's runtime on this machine, with its XNNPACK kernels, as on a phone's CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pocketdx_export.backends import BackendError, Outputs, Pixels, Runner
from pocketdx_export.noise import first_line, silenced
from pocketdx_runtime.manifest import Manifest

# In the file's order; `deploy`, which says so, would take torchvision's seconds to import.
_OUTPUTS = ("probabilities", "embedding", "logits")


def absent() -> str | None:
    """It comes with the extra."""
    return None if find_spec("executorch") else "needs executorch: pip install 'pocketdx[executorch]'"


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Runner]:
    """Open a `.pte` file.

    Raises:
        BackendError: ExecuTorch cannot open it.
    """
    with silenced():
        try:
            import torch
            from executorch.runtime import Runtime

            program = Runtime.get().load_program(path.read_bytes())
            method = program.load_method("forward")
        except Exception as problem:  # it raises what it likes
            raise BackendError(f"{path}: ExecuTorch cannot open it ({first_line(problem)})") from problem
    size = manifest.preprocessing.size

    def run(pictures: Sequence[Pixels]) -> Outputs:
        rows: list[list[np.ndarray]] = []
        for picture in pictures:
            if picture.shape != (size, size, 3):
                raise BackendError(f"{path}: takes pictures of {size} x {size}, not {picture.shape[1::-1]}")
            values = picture.astype(np.float32).transpose(2, 0, 1)[np.newaxis] / np.float32(255)
            answers = method.execute([torch.from_numpy(np.ascontiguousarray(values))])
            rows.append([answer.numpy().copy() for answer in answers])
        return {name: np.concatenate(found) for name, found in zip(_OUTPUTS, zip(*rows, strict=True), strict=True)}

    yield run
