"""The onnx project's reference evaluator: slow, in NumPy, and with no line in common with onnxruntime.

Its antialiased `Resize` takes minutes for a photograph, so it gets pictures of the network's own size, for which the
resize is the identity, and is taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pocketdx_export.backends import BackendError, Outputs, Pixels, Runner, UnsupportedError
from pocketdx_export.noise import first_line
from pocketdx_runtime.manifest import Manifest


def absent() -> str | None:
    """It comes with onnx."""
    return None if find_spec("onnx") else "needs onnx: pip install 'pocketdx[export]'"


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Runner]:
    """Open a file.

    Args:
        path: an `.onnx` file.
        manifest: of the file.

    Raises:
        BackendError: it is not ONNX.
        UnsupportedError: it has an operator that is not in the ONNX standard.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class Resize(OpRun):  # onnx finds it by this name
        """The identity, and nothing else."""

        op_domain = ""

        def _run(self, pixels: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **_: Any) -> tuple[Any]:
            if sizes is None or list(sizes) != list(pixels.shape):
                raise BackendError(f"{path}: resizes {list(pixels.shape)} to {sizes}; feed pictures of the own size")
            return (pixels,)

    class DequantizeLinear(OpRun):
        """As ONNX has had it since version 10; the evaluator knows it from 19 on only."""

        op_domain = ""

        def _run(self, integers: Any, scale: Any, zero: Any = None, axis: int = 1, **_: Any) -> tuple[Any]:
            shape = [1] * integers.ndim
            if scale.ndim == 1:  # one for each index of the axis, else one for all
                shape[axis] = len(scale)
            offset = 0 if zero is None else zero.astype(np.float32).reshape(shape)
            return (((integers.astype(np.float32) - offset) * scale.reshape(shape)).astype(np.float32),)

    try:
        model = onnx.load(path)
    except Exception as problem:  # protobuf's own, without a common base
        raise BackendError(f"{path}: not an ONNX file ({type(problem).__name__})") from problem
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise UnsupportedError(f"{path.name} has operators of {', '.join(foreign)}, which are not in the ONNX standard")
    try:
        evaluator = ReferenceEvaluator(model, new_ops=[Resize, DequantizeLinear])
    except Exception as problem:  # it raises what it likes at an operator that it lacks
        raise UnsupportedError(f"{path.name}: {first_line(problem)}") from problem
    names = [each.name for each in model.graph.output]

    def run(pictures: Sequence[Pixels]) -> Outputs:
        try:
            answers = [evaluator.run(names, {"image": picture[np.newaxis]}) for picture in pictures]
        except NotImplementedError as problem:  # the evaluator's own, at an operator that it cannot compute
            raise UnsupportedError(f"{path.name}: {first_line(problem)}") from problem
        return {name: np.concatenate(rows) for name, *rows in zip(names, *answers, strict=True)}

    yield run
