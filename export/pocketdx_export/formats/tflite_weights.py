"""Weights of a LiteRT file in 8 bits, the same ones as in the ONNX file of that precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketdx_export.errors import ExportError
from pocketdx_export.noise import first_line, silenced
from pocketdx_export.quantize.weights import quantize_weight

if TYPE_CHECKING:
    from ai_edge_quantizer.qtyping import ModelQuantizationRecipe

    from pocketdx_export.quantize.weights import Floats

WEIGHTED = ("CONV_2D", "FULLY_CONNECTED")
DEPTHWISE = "DEPTHWISE_CONV_2D"
_WEIGHT = 1
"""Which input of these operators the weight is."""
_LEAST_INT8 = 2048
"""Numbers below which a weight is float16. Less than in ONNX files: LiteRT's own description of the graph takes more of
the 0.30 of float32 that is aimed at. MobileNetV3-small, chest X-rays: 0.307 and 0.019 in the logits with 8192 (ONNX:
0.285), 0.299 and 0.027 with 2048."""


def with_int8_weights(content: bytes) -> bytes:
    """Large weights as int8 with a scale for each channel, small and depthwise ones as float16; sums are float32.

    LiteRT's quantizer takes the largest magnitude of a channel for its scale, and integers for every weight, depthwise
    ones too: 0.155 in the logits. So weights are rounded before, to the numbers
    that the quantizer then finds exactly.

    Args:
        content: a float32 LiteRT file without metadata.

    Raises:
        ExportError: the quantizer refuses.
    """
    with silenced():
        try:
            from ai_edge_litert.tools import flatbuffer_utils
            from ai_edge_quantizer import quantizer

            model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
            recipe = _round_weights(model)
            rounded = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
            quantized = quantizer.Quantizer(rounded, recipe).quantize().quantized_model
        except Exception as problem:  # they raise what they like
            raise ExportError(f"LiteRT's quantizer refuses this network ({first_line(problem)})") from problem
        assert quantized is not None
        return _inline(bytes(quantized))


def _round_weights(model: Any) -> ModelQuantizationRecipe:
    """Change the weights to what int8 can hold; returns what the quantizer is to do with each."""
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
    recipes = RecipeManager()
    for graph in model.subgraphs:
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
                buffer.data = np.frombuffer(quantize_weight(weight).dequantized().astype("<f4").tobytes(), np.uint8)
                recipes.add_weight_only_config(scope, operation, num_bits=8)
            else:
                recipes.add_quantization_config(scope, operation, half, AlgorithmName.FLOAT_CASTING)
    return recipes.get_quantization_recipe()


def _inline(content: bytes) -> bytes:
    """Constants inside the flatbuffer. The quantizer puts them behind it, where the metadata writer loses them."""
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for buffer in model.buffers:
        buffer.offset = buffer.size = 0
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
