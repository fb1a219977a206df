"""Cross-layer equalisation (Nagel et al., Data-Free Quantization, ICCV 2019, section 4.1).

A channel between two layers may be scaled by 1/s in the first and by s in the second without changing the network, if
what lies between is linear for positive factors (nothing, or a ReLU). The first layer's weights have a scale for each
output channel, so that its factors cost nothing there; s is chosen to balance the range of the channel's activations
with that of the second layer's weights for it. A depthwise layer has a scale for each channel, too: there the channels'
activations are made equally wide.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pocketdx_export.quantize.calibration import Statistics

# Factors beyond it would blow up channels that are next to silent.
_MOST = 32.0


def pairs(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, str, onnx.NodeProto]]:
    """Convolutions of which one alone reads the other, through nothing or a ReLU; with the tensor between them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for first in graph.node:
        if first.op_type != "Conv" or len(first.input) < 3:
            continue
        between = first.output[0]
        following = readers.get(between, [])
        if len(following) == 1 and following[0].op_type == "Relu":
            between = following[0].output[0]
            following = readers.get(between, [])
        if len(following) == 1 and following[0].op_type == "Conv" and following[0].input[0] == between:
            found.append((first, between, following[0]))
    return found


def equalize(model: onnx.ModelProto, seen: Mapping[str, Statistics]) -> dict[str, NDArray[np.float64]]:
    """Change `model`'s weights; it computes what it did, but for float32's rounding.

    Returns:
        By tensor, the factor by which each channel's activations have changed.
    """
    constants = {each.name: each for each in model.graph.initializer}
    factors: dict[str, NDArray[np.float64]] = {}
    for first, between, second in pairs(model.graph):
        if between not in seen or not {first.input[1], first.input[2], second.input[1]} <= set(constants):
            continue
        activations = np.maximum(seen[between].channel_highs, 1e-6)
        weight = numpy_helper.to_array(constants[second.input[1]]).astype(np.float64)
        groups = next((helper.get_attribute_value(each) for each in second.attribute if each.name == "group"), 1)
        if groups == len(activations):
            scale = activations / np.exp(np.log(activations).mean())
        elif groups == 1:
            ranges = np.maximum(np.abs(weight).max(axis=(0, 2, 3)), 1e-9)
            scale = np.sqrt(activations / ranges)
            scale /= np.exp(np.log(scale).mean())
        else:
            continue
        scale = np.clip(scale, 1 / _MOST, _MOST)
        _multiply(constants[first.input[1]], (1 / scale).reshape(-1, 1, 1, 1))
        _multiply(constants[first.input[2]], 1 / scale)
        _multiply(constants[second.input[1]], scale.reshape((-1, 1, 1, 1) if groups > 1 else (1, -1, 1, 1)))
        factors[between] = 1 / scale
        if first.output[0] != between:
            factors[first.output[0]] = 1 / scale
    return factors


def _multiply(constant: onnx.TensorProto, factor: NDArray[np.float64]) -> None:
    array = numpy_helper.to_array(constant) * factor
    constant.CopyFrom(numpy_helper.from_array(array.astype(np.float32), constant.name))
