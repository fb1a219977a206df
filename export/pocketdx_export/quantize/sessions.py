"""onnxruntime sessions for graphs in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from pocketdx_export.graph import copied
from pocketdx_runtime.cpu import granted_cpus

_BATCH = 16
# Less where every activation is kept.
_BATCH_WATCHED = 8

Batches = Callable[[NDArray[np.uint8]], Iterator[dict[str, NDArray[np.float32]]]]


def opened(
    model: onnx.ModelProto | bytes, *, threads: int | None = None, optimize: bool = True, safe: bool = False
) -> Any:
    """A session.

    Args:
        model: the graph.
        threads: all granted CPUs without it.
        optimize: False computes a quantized graph in float32.
        safe: x86 without VNNI multiplies in more than 16 bits, where it would saturate, and slower.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or granted_cpus()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if safe:
        options.add_session_config_entry("session.x64quantprecision", "1")
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def logits_of(session: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [N, C] for pictures uint8 [N, S, S, 3]."""
    parts = [
        session.run(["logits"], {"image": pixels[start : start + _BATCH]})[0] for start in range(0, len(pixels), _BATCH)
    ]
    logits: NDArray[np.float32] = np.concatenate(parts)
    return logits


def watching(model: onnx.ModelProto, names: Sequence[str]) -> Batches:
    """A function from pictures uint8 [N, S, S, 3] to what some tensors are on them, by name, batch by batch.

    Args:
        model: a float graph; left as it is.
        names: of activations in it.
    """
    watched = copied(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = opened(watched)

    def batches(pixels: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[np.float32]]]:
        for start in range(0, len(pixels), _BATCH_WATCHED):
            answers = session.run(names, {"image": pixels[start : start + _BATCH_WATCHED]})
            yield dict(zip(names, answers, strict=True))

    return batches
