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
    from pocketdx_export.quantize.integer import copied
    from pocketdx_export.quantize.weights import store_weights_fp16

    model = copied(material.fp32_graph)
    try:
        store_weights_fp16(model)
    except OverflowError as problem:
        raise ExportError(f"fp16: {problem}; take --precision w8") from problem
    return model, Quantization(weights="float16")


def _w8(material: Material) -> Built:
    from pocketdx_export.quantize.integer import copied
    from pocketdx_export.quantize.weights import store_weights_int8

    model = copied(material.fp32_graph)
    store_weights_int8(model)
    return model, Quantization(weights="int8, symmetric, per output channel", method="least squared error")


def _int8(material: Material) -> Built:
    from pocketdx_export.quantize.calibration import SEED, RunImages
    from pocketdx_export.quantize.integer import Quantizer, Recipe

    if material.data is None:
        raise ExportError("int8: needs the run's images to calibrate on; name them with --data, or take --precision w8")
    images = RunImages.open(material.run, material.data, material.cache)
    calibration = images.calibration()
    quantizer = Quantizer(material.fp32_graph, calibration)
    recipe = Recipe(quantizer.names)
    graph = quantizer.graph(recipe)
    return graph, Quantization(
        weights="int8, symmetric, per output channel",
        activations="uint8 per tensor in integer blocks, float32 elsewhere",
        method=recipe.ranges,
        integer_blocks=recipe.integer,
        float_blocks=tuple(name for name in quantizer.names if name not in recipe.integer),
        calibration_split="train",
        calibration_seed=SEED,
        calibration_images=calibration.names,
    )


BUILDERS: Mapping[str, Callable[[Material], Built]] = {"fp32": _fp32, "fp16": _fp16, "w8": _w8, "int8": _int8}
