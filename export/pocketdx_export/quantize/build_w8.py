"""The graph with weights in 8 bits that computes in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx

from pocketdx_export.graph import copied
from pocketdx_export.quantize.biases import correct_biases
from pocketdx_export.quantize.moments import Moments
from pocketdx_export.quantize.rounding import Rounder
from pocketdx_export.quantize.weights import least_int8, store_weights_int8
from pocketdx_runtime.manifest import Quantization

if TYPE_CHECKING:
    from pocketdx_export.material import Material

_WEIGHTS = "int8, symmetric, per output channel; float16 where small or depthwise"


def build_w8(material: Material) -> tuple[onnx.ModelProto, Quantization]:
    """The graph, and what its manifest says of it.

    With the run's images the weights are rounded for the inputs that they meet; without, or with too few of a class, by
    themselves.
    """
    calibrated = material.calibrated_if_possible
    if calibrated is None:
        return stored(material.fp32_graph), Quantization(weights=_WEIGHTS, method="least squared error")
    method = "least squared error in the outputs; bias correction"
    described = calibrated.described(Quantization(weights=_WEIGHTS, method=method))
    return stored(material.fp32_graph, calibrated.moments), described


def stored(fp32: onnx.ModelProto, moments: Mapping[str, Moments] | None = None) -> onnx.ModelProto:
    """A copy of a float graph with its weights in 8 bits.

    Args:
        fp32: the graph.
        moments: of the inputs of its layers, by the weight's name, where there are images.
    """
    model, rounder = copied(fp32), Rounder(moments)
    least = least_int8(model)
    correct_biases(model, (), moments or {}, rounder, least)
    store_weights_int8(model, least, rounder)
    return model
