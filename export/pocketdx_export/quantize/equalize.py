"""Cross-layer equalisation (Nagel et al., Data-Free Quantization, ICCV 2019, section 4.1), over all who share channels.

A channel may be divided by s where it is written and multiplied by s where it is read without changing the network, if
all that lies between is linear for positive factors: nothing, a ReLU, an average over the picture, a gate that
multiplies it, a sum of tensors that are all divided likewise (the residual connections of a stage). The weights that
write it have a scale for each output channel, so that its factors cost nothing there; s is chosen to balance the range
of the channel's activations with that of the weights that read it. A depthwise reader has a scale for each channel,
too: there the channels' activations are made equally wide.

A ReLU6 that no calibration image brings near 6 is a ReLU, and becomes one: 8 bits clip at the calibrated range anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pocketdx_export.quantize.calibration import Statistics
from pocketdx_export.quantize.weights import groups_of

# Factors beyond it would blow up channels that are next to silent.
_MOST = 32.0
# A Clip whose activations stay below this share of its upper end is taken for a ReLU.
_FAR_FROM_CLIPPING = 0.9


@dataclass(frozen=True)
class SharedChannels:
    """Tensors whose channels can only be scaled together, and the layers at their ends.

    Attributes:
        tensors: by name.
        writers: convolutions that give one of them.
        readers: convolutions that take one of them.
        clips: Clips between them, to be made ReLUs.
    """

    tensors: tuple[str, ...]
    writers: tuple[onnx.NodeProto, ...]
    readers: tuple[onnx.NodeProto, ...]
    clips: tuple[onnx.NodeProto, ...]


def shared_channels(graph: onnx.GraphProto, seen: Mapping[str, Statistics]) -> list[SharedChannels]:
    """All that can be scaled, in the graph's order.

    Args:
        graph: float.
        seen: of the activations on calibration images.
    """
    surroundings = _Surroundings(graph, seen)
    found, known = [], set[str]()
    for node in graph.node:
        if node.op_type == "Conv" and node.output[0] not in known:
            tensors, shared = surroundings.around(node.output[0])
            known |= tensors
            if shared is not None:
                found.append(shared)
    return found


def equalize(model: onnx.ModelProto, seen: Mapping[str, Statistics]) -> dict[str, NDArray[np.float64]]:
    """Change `model`'s weights; it computes what it did, but for float32's rounding and what only a ReLU6 would clip.

    Returns:
        By tensor, the factor by which each channel's activations have changed.
    """
    constants = {each.name: each for each in model.graph.initializer}
    factors: dict[str, NDArray[np.float64]] = {}
    for shared in shared_channels(model.graph, seen):
        activations = np.max([seen[name].channel_highs for name in shared.tensors if name in seen], axis=0)
        scale = _scale(np.maximum(activations, 1e-6), shared.readers, constants)
        for writer in shared.writers:
            _multiply(constants[writer.input[1]], (1 / scale).reshape(-1, 1, 1, 1))
            _multiply(constants[writer.input[2]], 1 / scale)
        for reader in shared.readers:
            shape = (-1, 1, 1, 1) if _is_depthwise(reader) else (1, -1, 1, 1)
            _multiply(constants[reader.input[1]], scale.reshape(shape))
        for clip in shared.clips:
            clip.op_type = "Relu"
            del clip.input[1:]
        factors |= dict.fromkeys(shared.tensors, 1 / scale)
    return factors


def _scale(
    activations: NDArray[np.float64], readers: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> NDArray[np.float64]:
    """Factor of each channel: float64 [C]."""
    dense = [numpy_helper.to_array(constants[node.input[1]]) for node in readers if not _is_depthwise(node)]
    scale = activations
    if dense:
        # Against the largest weight of the same output channel, which sets that channel's step.
        shares = [
            np.abs(weight) / np.maximum(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), 1e-30) for weight in dense
        ]
        ranges = np.max([share.max(axis=(0, 2, 3)) for share in shares], axis=0)
        scale = np.sqrt(activations / np.maximum(ranges, 1e-9))
    scale = scale / np.exp(np.log(scale).mean())
    clipped: NDArray[np.float64] = np.clip(scale, 1 / _MOST, _MOST)
    return clipped


class _Surroundings:
    """Who writes and who reads each tensor of a graph."""

    def __init__(self, graph: onnx.GraphProto, seen: Mapping[str, Statistics]) -> None:
        self._seen = seen
        self._constants = {each.name: each for each in graph.initializer}
        self._ends = {each.name for each in (*graph.input, *graph.output)}
        self._writer = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def around(self, start: str) -> tuple[set[str], SharedChannels | None]:
        """All tensors whose channels `start` shares; and what scaling them takes, None where it cannot be done."""
        tensors, waiting = {start}, [start]
        writers: dict[str, onnx.NodeProto] = {}
        readers: dict[str, onnx.NodeProto] = {}
        clips: dict[str, onnx.NodeProto] = {}
        able = True
        while waiting:
            name = waiting.pop()
            writer = self._writer.get(name)
            able &= writer is not None and name not in self._ends
            linked: set[str] = set()
            if writer is not None and writer.op_type == "Conv":
                able &= len(writer.input) > 2 and {*writer.input[1:3]} <= set(self._constants)
                writers[writer.output[0]] = writer
            elif writer is not None:
                linked = self._linked(writer)
                able &= bool(linked)
            for node in self._readers.get(name, ()):
                if node.op_type == "Conv" and node.input[0] == name:
                    able &= node.input[1] in self._constants and self._can_read(node)
                    readers[node.output[0]] = node
                    continue
                more = self._linked(node)
                able &= bool(more)
                linked |= more
                if node.op_type == "Clip":
                    clips[node.output[0]] = node
            waiting += sorted(linked - tensors)
            tensors |= linked
        # Of two factors one is scaled: of none, nothing would be; of both, the product would be twice.
        products = {node.output[0]: node for name in tensors for node in self._beside(name) if node.op_type == "Mul"}
        able &= all(len(tensors.intersection(node.input)) == 1 for node in products.values())
        able &= any(name in self._seen for name in tensors) and bool(readers)
        ends = (tuple(each.values()) for each in (writers, readers, clips))
        return tensors, SharedChannels(tuple(sorted(tensors)), *ends) if able else None

    def _beside(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read or write a tensor."""
        writer = self._writer.get(name)
        return [*self._readers.get(name, ()), *([] if writer is None else [writer])]

    def _linked(self, node: onnx.NodeProto) -> set[str]:
        """The tensors of a node between two layers that are scaled alike; none where no scaling fits."""
        if node.op_type == "Add":
            return set() if self._constants.keys() & set(node.input) else {*node.input, *node.output}
        if node.op_type in ("Relu", "GlobalAveragePool") or (node.op_type == "Clip" and self._is_relu(node)):
            return {node.input[0], *node.output}
        if node.op_type == "Mul":  # which of its inputs it is shows elsewhere
            return {*node.output}
        return set()

    def _is_relu(self, clip: onnx.NodeProto) -> bool:
        """Whether a Clip starts at 0 and never comes near its upper end."""
        seen = self._seen.get(clip.output[0])
        if seen is None or len(clip.input) < 3 or not {*clip.input[1:3]} <= set(self._constants):
            return False
        low, high = (float(numpy_helper.to_array(self._constants[each])) for each in clip.input[1:3])
        return low == 0 and seen.high < _FAR_FROM_CLIPPING * high

    def _can_read(self, node: onnx.NodeProto) -> bool:
        """Whether it is dense or depthwise with one filter a channel, not something between."""
        outputs, inputs = self._constants[node.input[1]].dims[:2]
        return groups_of(node) == 1 or (inputs == 1 and outputs == groups_of(node))


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return groups_of(node) > 1


def _multiply(constant: onnx.TensorProto, factor: NDArray[np.float64]) -> None:
    array = numpy_helper.to_array(constant) * factor
    constant.CopyFrom(numpy_helper.from_array(array.astype(np.float32), constant.name))
