"""Integer graphs: QuantizeLinear and DequantizeLinear around the nodes that are to compute in 8 bits.

onnxruntime fuses such a node and the pairs around it into one integer kernel; with its optimizations off the same graph
is computed in float32 and so shows what the integers stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketdx_export.quantize.weights import WEIGHTED, Rounding, pairs_of

# Those of the networks' nodes that onnxruntime has integer kernels for.
INTEGER_OPS = frozenset({*WEIGHTED, "Add", "Mul", "GlobalAveragePool", "LeakyRelu"})
# What a node's requantization does on the way: clipping at the ends of the range.
_ABSORBED = ("Relu", "Clip")


@dataclass(frozen=True)
class Scale:
    """What an unsigned 8-bit integer q stands for: `step * (q - zero)`."""

    step: float
    zero: int


@dataclass(frozen=True)
class Range:
    """The values that an activation's 8 bits cover; 0 is always among them, since zero padding must be exact.

    Attributes:
        low: at most 0.
        high: at least 0.
    """

    low: float
    high: float

    def scale(self) -> Scale:
        """The finest that covers the range."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        step = max((high - low) / 255, 1e-12)
        return Scale(step, min(255, max(0, round(-low / step))))


def integer_nodes(graph: onnx.GraphProto, blocks: Mapping[str, str], chosen: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes of the chosen blocks that compute in integers."""
    constants = {each.name for each in graph.initializer}
    return [
        node
        for node in graph.node
        if blocks.get(node.name) in chosen
        and node.op_type in INTEGER_OPS
        and (node.op_type not in WEIGHTED or node.input[1] in constants)
    ]


def activations_of(graph: onnx.GraphProto, nodes: Collection[onnx.NodeProto]) -> tuple[str, ...]:
    """The tensors in 8 bits when `nodes` compute in integers: their inputs, and their outputs after clipping."""
    constants = {each.name for each in graph.initializer}
    ends = output_after_clipping(graph)
    left_float = constants | {each.name for each in graph.output} | {""}
    names = [name for node in nodes for name in (*node.input, ends[node.output[0]]) if name not in left_float]
    return tuple(dict.fromkeys(names))


def output_after_clipping(graph: onnx.GraphProto) -> dict[str, str]:
    """For each node's output, the tensor behind a Relu or Clip that is its only reader; itself where there is none."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    graph_outputs = {each.name for each in graph.output}
    ends = {}
    for node in graph.node:
        for name in node.output:
            following = readers.get(name, [])
            absorbed = (
                len(following) == 1 and following[0].op_type in _ABSORBED and following[0].input[0] == name
            ) and name not in graph_outputs
            ends[name] = following[0].output[0] if absorbed else name
    return ends


def insert_qdq(
    model: onnx.ModelProto,
    nodes: Collection[onnx.NodeProto],
    written: Mapping[str, Scale],
    rounding: Rounding,
    read: Mapping[str, Scale] | None = None,
) -> None:
    """Change `model` so that `nodes` (of its graph) compute in integers.

    Activations are uint8, one scale for each tensor; weights int8, symmetric, per output channel, kept from saturating
    (`Pairs`); biases int32. Outputs of the graph stay float32: 8 bits would tie logits that differ.

    Args:
        model: changed in place.
        nodes: as `integer_nodes` gives them.
        written: scales of at least the tensors that `activations_of` gives.
        rounding: of the weights.
        read: scales of those whose integers are to be read in another than they were written in.
    """
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    ends = output_after_clipping(graph)
    wanted = {node.name for node in nodes}
    results = {ends[node.output[0]] for node in nodes}
    tensors = activations_of(graph, nodes)
    reading = {name: (read or {}).get(name, written[name]) for name in tensors}
    for node in graph.node:
        for place, name in enumerate(node.input):
            # What an integer kernel gives is in 8 bits for every reader, what float gives only for integer readers.
            if name in reading and (node.name in wanted or name in results):
                node.input[place] = f"{name}.dq"
    for node in [each for each in graph.node if each.name in wanted and each.op_type in WEIGHTED]:
        _quantize_weights(graph, node, constants, reading, rounding)
    for name in tensors:
        for kind, scale in {"w": written[name], "r": reading[name]}.items():
            graph.initializer.append(numpy_helper.from_array(np.array(scale.step, np.float32), f"{name}.{kind}s"))
            graph.initializer.append(numpy_helper.from_array(np.array(scale.zero, np.uint8), f"{name}.{kind}z"))
        to_integers = [name, f"{name}.ws", f"{name}.wz"]
        to_floats = [f"{name}.q", f"{name}.rs", f"{name}.rz"]
        graph.node.append(helper.make_node("QuantizeLinear", to_integers, [f"{name}.q"], name=f"{name}.Q"))
        graph.node.append(helper.make_node("DequantizeLinear", to_floats, [f"{name}.dq"], name=f"{name}.DQ"))
    drop_unused(graph)
    sort_nodes(graph)


def _quantize_weights(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: Mapping[str, TensorProto],
    scales: Mapping[str, Scale],
    rounding: Rounding,
) -> None:
    """Weights and bias of one node as constants in integers, and what makes floats of them."""
    name = node.input[1]
    weight = numpy_helper.to_array(constants[name])
    quantized = rounding(name, weight, pairs_of(node, weight))
    zeros = np.zeros(len(quantized.scales), np.int8)
    _add_dequantized(graph, name, quantized.values, quantized.scales, zeros)
    node.input[1] = f"{name}.dq"
    if len(node.input) < 3 or node.input[2] not in constants:
        return
    bias = node.input[2]
    steps = quantized.scales.astype(np.float64) * scales[node.input[0].removesuffix(".dq")].step
    values = np.rint(numpy_helper.to_array(constants[bias]) / steps)
    limits = np.iinfo(np.int32)
    whole = np.clip(values, limits.min, limits.max).astype(np.int32)
    _add_dequantized(graph, bias, whole, steps.astype(np.float32), np.zeros(len(steps), np.int32))
    node.input[2] = f"{bias}.dq"


def _add_dequantized(
    graph: onnx.GraphProto,
    name: str,
    values: NDArray[np.signedinteger[Any]],
    scales: NDArray[np.float32],
    zeros: NDArray[np.signedinteger[Any]],
) -> None:
    parts = {"q": values, "s": scales, "z": zeros}
    graph.initializer.extend(numpy_helper.from_array(array, f"{name}.{part}") for part, array in parts.items())
    inputs = [f"{name}.{part}" for part in parts]
    graph.node.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], name=f"{name}.DQ", axis=0))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put nodes behind those that they read from, otherwise in their present order."""
    known = {each.name for each in (*graph.initializer, *graph.input)} | {""}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        assert ready, "the graph has a circle"
        # One pass may make more of them ready: keep going until all are placed.
        names = {id(node) for node in ready}
        ordered.extend(ready)
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if id(node) not in names]
    del graph.node[:]
    graph.node.extend(ordered)
