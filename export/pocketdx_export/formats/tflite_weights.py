"""Weights of a LiteRT file in 8 bits, rounded as those of the ONNX file of that precision are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.errors import ExportError
from pocketdx_export.noise import first_line, silenced
from pocketdx_export.quantize.biases import mean_shift
from pocketdx_export.quantize.rounding import compensated
from pocketdx_export.quantize.weights import QuantizedWeight, quantize_weight

if TYPE_CHECKING:
    from ai_edge_quantizer.qtyping import ModelQuantizationRecipe

    from pocketdx_export.quantize.moments import Moments
    from pocketdx_export.quantize.weights import Doubles, Floats

T = TypeVar("T", bound=np.generic)
WEIGHTED = ("CONV_2D", "FULLY_CONNECTED")
DEPTHWISE = "DEPTHWISE_CONV_2D"
_WEIGHT, _BIAS = 1, 2
"""Which inputs of these operators they are."""
_SAME = 1e-4
"""Of a weight's largest magnitude: LiteRT's converter folds batch norms itself, and its numbers are not quite ONNX'."""
_LEAST_INT8 = 2048
"""Numbers below which a weight is float16. Less than in ONNX files: LiteRT's own description of the graph takes more of
the 0.30 of float32 that is aimed at. MobileNetV3-small, chest X-rays: 0.307 and 0.019 in the logits with 8192 (ONNX:
0.285), 0.299 and 0.027 with 2048."""


@dataclass(frozen=True)
class Layer:
    """What is known of a layer from the ONNX graph.

    Attributes:
        weight: float32, [O, I, H, W] or [O, I].
        moments: of its inputs.
    """

    weight: Floats
    moments: Moments


def with_int8_weights(content: bytes, layers: Sequence[Layer] = ()) -> bytes:
    """Large weights as int8 with a scale for each channel, small and depthwise ones as float16; sums are float32.

    LiteRT's quantizer takes the largest magnitude of a channel for its scale, and integers for every weight, depthwise
    ones too: 0.155 in the logits. So it is told which weights to take, and what it makes of them is replaced by our own
    integers and scales.

    Args:
        content: a float32 LiteRT file without metadata.
        layers: of the same network. A weight that is found among them is rounded so that its layer's outputs change
            least, and the bias takes over what is left of the mean; others are rounded by themselves.

    Raises:
        ExportError: the quantizer refuses.
    """
    with silenced():
        try:
            from ai_edge_litert.tools import flatbuffer_utils
            from ai_edge_quantizer import quantizer

            model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
            recipe, weights = _rounded_weights(model, layers)
            corrected = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
            quantized = quantizer.Quantizer(corrected, recipe).quantize().quantized_model
        except Exception as problem:  # they raise what they like
            raise ExportError(f"LiteRT's quantizer refuses this network ({first_line(problem)})") from problem
        assert quantized is not None
        return _finished(bytes(quantized), weights)


def _rounded_weights(
    model: Any, layers: Sequence[Layer]
) -> tuple[ModelQuantizationRecipe, dict[bytes, QuantizedWeight]]:
    """What the quantizer is to do with each weight, and those in 8 bits by their tensor's name; corrects biases."""
    from ai_edge_litert.tools import flatbuffer_utils
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import get_op_scope

    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    recipes, weights = RecipeManager(), {}
    for graph in model.subgraphs:
        used = Counter(graph.tensors[each].buffer for operator in graph.operators for each in operator.inputs)
        for operator in graph.operators:
            kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
            if kind not in (*WEIGHTED, DEPTHWISE):
                continue
            tensor = graph.tensors[operator.inputs[_WEIGHT]]
            buffer = model.buffers[tensor.buffer]
            weight: Floats = np.frombuffer(bytes(buffer.data), "<f4").reshape(tensor.shape)
            scope = f"^{re.escape(get_op_scope(operator, graph.tensors))}$"
            operation = qtyping.TFLOperationName(kind)
            if kind in WEIGHTED and weight.size >= _LEAST_INT8:
                bias = graph.tensors[operator.inputs[_BIAS]] if len(operator.inputs) > _BIAS else None
                alone = bias is not None and used[bias.buffer] == 1  # or another layer would be corrected, too
                weights[tensor.name], shift = _rounded(weight, layers if alone else ())
                if bias is not None and shift is not None:
                    numbers = np.frombuffer(bytes(model.buffers[bias.buffer].data), "<f4") - shift
                    model.buffers[bias.buffer].data = np.frombuffer(numbers.astype("<f4").tobytes(), np.uint8)
                recipes.add_weight_only_config(scope, operation, num_bits=8)
            else:
                recipes.add_quantization_config(scope, operation, half, AlgorithmName.FLOAT_CASTING)
    return recipes.get_quantization_recipe(), weights


def _rounded(weight: Floats, layers: Sequence[Layer]) -> tuple[QuantizedWeight, Doubles | None]:
    """A weight [O, H, W, I] or [O, I] in 8 bits, and what rounding adds to each output in the mean, [O], if known."""
    for layer in layers:
        if layer.weight.size != weight.size or len(layer.weight) != len(weight):
            continue
        if np.abs(_placed(layer.weight).reshape(weight.shape) - weight).max() > _SAME * np.abs(weight).max():
            continue
        quantized = compensated(layer.weight, layer.moments.shrunk)
        shift = mean_shift(layer.weight, quantized.dequantized(), layer.moments)
        return QuantizedWeight(_placed(quantized.values).reshape(weight.shape), quantized.scales), shift
    return quantize_weight(weight), None


def _placed(weight: NDArray[T]) -> NDArray[T]:
    """In LiteRT's order of axes."""
    return weight.transpose(0, 2, 3, 1) if weight.ndim == 4 else weight


def _finished(content: bytes, weights: Mapping[bytes, QuantizedWeight]) -> bytes:
    """The quantizer's file with our integers and scales, and all constants inside the flatbuffer.

    The quantizer puts them behind it, where the metadata writer loses them.

    Raises:
        ExportError: the quantizer did not store a weight in 8 bits.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    left = set(weights)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.name in left and tensor.type == schema.TensorType.INT8:
                weight = weights[tensor.name]
                tensor.quantization.scale = weight.scales
                model.buffers[tensor.buffer].data = np.frombuffer(weight.values.tobytes(), np.uint8)
                left.remove(tensor.name)
    if left:
        raise ExportError(f"LiteRT's quantizer has not stored {min(left)!r} in 8 bits; try another version of it")
    for buffer in model.buffers:
        buffer.offset = buffer.size = 0
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
