"""onnxruntime on this machine, with and without its graph optimizations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime

from pocketdx_export.backends import BackendError, Outputs, Pixels, Runner
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.manifest import Manifest

_BATCH = 32


def absent(*, optimize: bool = True) -> str | None:
    """onnxruntime is always there."""
    return None


@contextmanager
def opened(path: Path, manifest: Manifest, *, optimize: bool = True) -> Iterator[Runner]:
    """Open a file.

    Args:
        path: an `.onnx` file.
        manifest: of the file.
        optimize: False switches all graph optimizations off: a quantized graph is then computed in float, so its gap
            to the optimized one is what integer kernels round or saturate.

    Raises:
        BackendError: onnxruntime cannot open it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = granted_cpus()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime's exceptions have no common base but this one
        raise BackendError(f"{path}: onnxruntime cannot open it ({str(problem).splitlines()[0]})") from problem
    names = [each.name for each in session.get_outputs()]

    def run(pictures: Sequence[Pixels]) -> Outputs:
        rows: dict[str, list[Pixels]] = {name: [] for name in names}
        for _, same in groupby(pictures, key=lambda picture: picture.shape):
            alike = list(same)
            for start in range(0, len(alike), _BATCH):
                answers = session.run(names, {"image": np.stack(alike[start : start + _BATCH])})
                for name, answer in zip(names, answers, strict=True):
                    rows[name].append(answer)
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    yield run
