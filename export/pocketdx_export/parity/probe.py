"""Look inside an exported graph: the tensor that the network really gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pocketdx_export.errors import ParityError


class InputProbe:
    """Runs a graph's preprocessing only, up to the first convolution.

    Args:
        path: an ONNX file whose input is uint8 [N, H, W, 3].
        threads: for onnxruntime.

    Raises:
        ParityError: the graph has no convolution that its input reaches.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        model = onnx.load(path)
        self._image = model.graph.input[0].name
        self._tensor = first_convolution_input(model.graph, str(path))
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(self._tensor, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # the weights that are now of no use are no news
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalised network input, float32 [N, 3, S, S], of pixels uint8 [N, H, W, 3]."""
        tensor: NDArray[np.float32] = self._session.run([self._tensor], {self._image: pixels})[0]
        return tensor


def first_convolution_input(graph: onnx.GraphProto, source: str) -> str:
    """Name of the tensor that enters the first convolution downstream of the graph's input.

    Raises:
        ParityError: there is none.
    """
    reached = {graph.input[0].name}
    for node in graph.node:  # in topological order, as ONNX demands
        if not reached.intersection(node.input):
            continue
        if node.op_type in {"Conv", "ConvInteger", "QLinearConv"}:
            return str(node.input[0])
        reached.update(node.output)
    raise ParityError(f"{source}: its input reaches no convolution; not a file that PocketDx exports")
