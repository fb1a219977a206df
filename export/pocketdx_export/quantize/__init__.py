"""Smaller and faster than float32: one function from the fp32 graph to the graph of each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import onnx

from pocketdx_export.errors import ExportError
from pocketdx_runtime.manifest import Quantization

if TYPE_CHECKING:
    from pocketdx_export.material import Material

Built = tuple[onnx.ModelProto, Quantization | None]


def build(material: Material, precision: str) -> Built:
    """The graph of a precision, and what its manifest says of how it was made.

    Raises:
        ExportError: the precision is unknown, or cannot be made of this run and data.
    """
    if precision not in BUILDERS:
        raise ExportError(f"{precision}: no such precision; choose from {', '.join(BUILDERS)}")
    graph, quantization = BUILDERS[precision](material)
    return graph, quantization


def _fp32(material: Material) -> Built:
    return material.fp32_graph, None


def _fp16(material: Material) -> Built:
    from pocketdx_export.graph import copied
    from pocketdx_export.quantize.weights import store_weights_fp16

    model = copied(material.fp32_graph)
    store_weights_fp16(model)
    return model, Quantization(weights="float16")


def _w8(material: Material) -> Built:
    from pocketdx_export.quantize.build_w8 import build_w8

    return build_w8(material)


def _int8(material: Material) -> Built:
    from pocketdx_export.quantize.build_int8 import build_int8

    return build_int8(material)


BUILDERS: Mapping[str, Callable[[Material], Built]] = {"fp32": _fp32, "fp16": _fp16, "w8": _w8, "int8": _int8}
