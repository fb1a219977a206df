"""CoreML, on a Mac."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pocketdx_export.backends import BackendError, Outputs, Pixels, Runner
from pocketdx_export.noise import first_line, silenced
from pocketdx_runtime.manifest import Manifest


def absent() -> str | None:
    """Apple's systems have it, others do not."""
    if sys.platform != "darwin":
        return "CoreML computes on Apple's systems alone; copy the bundle to a Mac and compare it there"
    return None if find_spec("coremltools") else "needs coremltools: pip install 'pocketdx[coreml]'"


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Runner]:
    """Open an `.mlpackage`.

    Raises:
        BackendError: CoreML cannot open it.
    """
    with silenced():
        try:
            import coremltools
            from PIL import Image

            model = coremltools.models.MLModel(str(path))
        except Exception as problem:  # it raises what it likes
            raise BackendError(f"{path}: CoreML cannot open it ({first_line(problem)})") from problem

    def run(pictures: Sequence[Pixels]) -> Outputs:
        rows = [model.predict({"image": Image.fromarray(picture)}) for picture in pictures]
        return {name: np.concatenate([row[name] for row in rows]).astype(np.float32) for name in manifest.outputs}

    yield run
