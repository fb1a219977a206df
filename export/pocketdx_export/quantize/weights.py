"""Weights in 8 bits, and graphs whose weights are stored small and computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

WEIGHTED = ("Conv", "Gemm")
# Below it a weight is float32 instead of float16: the nodes cost what the numbers save.
_LEAST_FP16 = 256
# Of the float graph's size that a graph with weights in int8 is to have at most, nodes not counted: they add 0.003.
_SHARE_INT8 = 0.295
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class Pairs(Enum):
    """Which two products the integer kernels of x86 without VNNI add in 16 bits, where they saturate.

    Two products of an unsigned 8-bit activation with weights whose magnitudes add up to `PAIR_LIMIT` come to at most
    255 * 128 = 32640, which 16 bits hold. The kernels multiply with `vpmaddubsw`, which adds neighbours in memory.
    """

    NONE = "none"
    """No two: nothing is computed in integers, or in more than 16 bits, as depthwise convolutions are."""
    NEIGHBOURS = "neighbours"
    """Inputs 0 and 1, 2 and 3, ...: where each output is a product of two rows (1 x 1 convolutions, linear layers)."""
    ANY = "any"
    """Unknown which: larger filters, whose inputs are gathered in an order of the kernel's own."""


def groups_of(node: onnx.NodeProto) -> int:
    """Of a convolution: 1 where it is dense, the number of its channels where it is depthwise."""
    return next((int(each.i) for each in node.attribute if each.name == "group"), 1)


def pairs_of(node: onnx.NodeProto, weight: Floats) -> Pairs:
    """Those of a layer that computes in integers."""
    if groups_of(node) > 1:
        return Pairs.NONE
    return Pairs.NEIGHBOURS if weight[0, 0].size == 1 else Pairs.ANY


PAIR_LIMIT = 128


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and scales of one weight: `values * scales` along the first axis is the weight again.

    Attributes:
        values: int8 [O, ...], from -127 to 127.
        scales: float32 [O], above 0.
    """

    values: NDArray[np.int8]
    scales: Floats

    def dequantized(self) -> Floats:
        """float32 [O, ...]."""
        shape = (-1, *(1,) * (self.values.ndim - 1))
        return self.values.astype(np.float32) * self.scales.reshape(shape)


Rounding = Callable[[str, Floats, Pairs], QuantizedWeight]
"""From a weight's name, its numbers [O, ...] and the pairs that must not saturate to integers."""


def quantize_weight(weight: Floats, pairs: Pairs = Pairs.NONE, *, search: bool = True) -> QuantizedWeight:
    """Symmetric int8, one scale for each output channel.

    Args:
        weight: float32 [O, ...]; a channel is one index of the first axis.
        pairs: of which the magnitudes add up to at most `PAIR_LIMIT`. onnxruntime's `reduce_range` is the same for 7
            bits throughout; here a channel loses the less the fewer large weights it has in pairs.
        search: choose each channel's scale by the least squared error, from 0.8 of the largest magnitude up; a few
            outermost weights are then clipped. Else by the largest magnitude.

    Where no pairs are limited, the rounding errors of a channel are made to add up to nothing (`balanced`).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    scales, values = candidates(rows, pairs, np.linspace(1.0, 0.8, 11) if search else (1.0,))
    best = ((values * scales - rows) ** 2).sum(axis=2).argmin(axis=0)
    channels = np.arange(len(rows))
    scale, whole = scales[best, channels], values[best, channels]
    if pairs is Pairs.NONE:
        whole = balanced(whole, rows / scale)
    return QuantizedWeight(whole.reshape(weight.shape).astype(np.int8), scale[:, 0].astype(np.float32))


def candidates(rows: Doubles, pairs: Pairs, factors: Sequence[float] | Doubles) -> tuple[Doubles, Doubles]:
    """Scales float64 [F, O, 1] and integers [F, O, I] within the limits, for float64 [O, I] weights.

    At factor 1 no weight is clipped; below, those beyond the factor times the channel's largest are.
    """
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30)  # a channel of zeros has a scale, too
    scales, values = [], []
    for factor in factors:
        clipped = np.clip(rows, -largest * factor, largest * factor)
        # Rounding may add half to each of the two.
        scale = np.maximum(largest * factor / 127, _largest_pair(np.abs(clipped), pairs) / (PAIR_LIMIT - 1))
        scales.append(scale)
        values.append(np.rint(clipped / scale))
    return np.stack(scales), np.stack(values)


def _largest_pair(magnitudes: Doubles, pairs: Pairs) -> Doubles:
    """The largest sum of two that are paired, float64 [O, 1], for [O, I] magnitudes."""
    if pairs is Pairs.NONE or magnitudes.shape[1] < 2:
        return np.zeros((len(magnitudes), 1))
    if pairs is Pairs.ANY:
        first = np.partition(magnitudes, -2, axis=1)[:, -2:].sum(axis=1, keepdims=True)
    else:
        even = magnitudes.shape[1] // 2 * 2
        first = magnitudes[:, :even].reshape(len(magnitudes), -1, 2).sum(axis=2).max(axis=1, keepdims=True)
    return np.asarray(first, np.float64)


def balanced(values: Doubles, exact: Doubles) -> Doubles:
    """Whole numbers whose errors add up to at most a half in each row: a few are rounded to the other side.

    The inputs of most layers are not negative (ReLU, HardSwish, pooled maps), so errors that add up move the whole
    channel, and the others cancel. Those rounded otherwise are the ones that were nearest to a half. Needs no images.
    After Guo et al., SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation, ICLR 2022.

    Args:
        values: float64 [O, I], whole, -127 to 127.
        exact: float64 [O, I], what was rounded.
    """
    errors = values - np.clip(exact, -127, 127)
    sums = errors.sum(axis=1)
    sign = np.sign(sums)[:, np.newaxis]
    allowed = np.abs(values - sign) <= 127
    order = np.argsort(np.where(allowed, -sign * errors, np.inf), axis=1)
    rank = np.argsort(order, axis=1)
    other = (rank < np.rint(np.abs(sums))[:, np.newaxis]) & allowed
    return np.where(other, values - sign, values)


def weight_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The weights (not the biases) of convolutions and linear layers, in the graph's order."""
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            yield node.input[1]


def least_int8(model: onnx.ModelProto) -> int:
    """From how many numbers on a weight is to be int8, for a file of at most 0.30 of the size of the float `model`.

    What is smaller is float16: early and small weights bring more of the error for each byte than large ones.
    """
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    weights = [constants[name] for name in weight_names(model.graph)]
    whole = int(model.ByteSize())

    def share(least: int) -> float:
        saved: int = sum(each.size * (3 if is_stored_int8(each, least) else 2) for each in weights)
        return (whole - saved) / whole

    sizes = sorted({each.size for each in weights}, reverse=True)
    return next((size for size in sizes if share(size) <= _SHARE_INT8), 0)


def store_weights_int8(model: onnx.ModelProto, least: int, rounding: Rounding) -> None:
    """Change `model` so that its weights are stored small and become float32 again when it is loaded.

    Large weights are int8 per channel. Those of depthwise convolutions and other small ones are float16: they are a few
    percent of all weights and bring most of the error (MobileNetV3-small on ultrasound: 0.054 of 0.057 in the logits).

    An integer weight is written as Cast and Mul, not as DequantizeLinear: every onnxruntime computes such constants
    once, when the session is made, whereas a DequantizeLinear of a constant is kept for the integer kernels and, where
    none takes it, computed again for every picture. So it computes at the speed of float32.

    Args:
        model: changed in place.
        least: from how many numbers on a weight is int8; see `least_int8`.
        rounding: of those.
    """
    for name in list(weight_names(model.graph)):
        weight = _initializer(model.graph, name)
        array = numpy_helper.to_array(weight)
        if not is_stored_int8(array, least):
            _store_fp16(model.graph, weight, array)
            continue
        quantized = rounding(name, array, Pairs.NONE)
        shape = (-1, *(1,) * (array.ndim - 1))
        _replace(
            model.graph,
            weight,
            [
                numpy_helper.from_array(quantized.values, f"{name}.int8"),
                numpy_helper.from_array(quantized.scales.reshape(shape), f"{name}.scale"),
            ],
            [
                helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]),
            ],
        )


def is_stored_int8(array: Floats, least: int) -> bool:
    """Whether `store_weights_int8` makes integers of this weight, or float16."""
    return array.size >= least and array.shape[1] > 1


def store_weights_fp16(model: onnx.ModelProto) -> None:
    """Change `model` so that its weights are float16 and become float32 again when it is loaded.

    A weight with a number beyond float16's largest, 65504, stays float32.
    """
    for name in list(weight_names(model.graph)):
        weight = _initializer(model.graph, name)
        _store_fp16(model.graph, weight, numpy_helper.to_array(weight))


def _store_fp16(graph: onnx.GraphProto, weight: TensorProto, array: Floats) -> None:
    if array.size < _LEAST_FP16 or np.abs(array).max() > _FLOAT16_MAX:
        return
    constant = numpy_helper.from_array(array.astype(np.float16), f"{weight.name}.fp16")
    _replace(
        graph, weight, [constant], [helper.make_node("Cast", [constant.name], [weight.name], to=TensorProto.FLOAT)]
    )


def _initializer(graph: onnx.GraphProto, name: str) -> TensorProto:
    found: TensorProto = next(each for each in graph.initializer if each.name == name)
    return found


def _replace(
    graph: onnx.GraphProto, weight: TensorProto, constants: list[TensorProto], nodes: list[onnx.NodeProto]
) -> None:
    graph.initializer.remove(weight)
    graph.initializer.extend(constants)
    for node in reversed(nodes):
        graph.node.insert(0, node)
