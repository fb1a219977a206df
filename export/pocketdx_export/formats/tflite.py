"""LiteRT (TensorFlow Lite) for Android and iOS: float, and with int8 weights that are computed in float.

The input is float32 [1, S, S, 3], RGB, 0 to 1: the phone resizes, the graph normalises. The outputs are those of the
ONNX file, the probabilities first, where phone libraries look for the score.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnx import numpy_helper

from pocketdx_export.deploy import DeployModule, FixedSizeModule
from pocketdx_export.errors import ExportError
from pocketdx_export.formats.tflite_metadata import manifest_of, with_metadata
from pocketdx_export.formats.tflite_weights import Layer, with_int8_weights
from pocketdx_export.material import Material
from pocketdx_export.noise import first_line, silenced
from pocketdx_export.targets import Target
from pocketdx_runtime.manifest import Quantization

__all__ = ["converted", "manifest_of", "write"]

_WEIGHTS = "int8, a scale for each channel; float16 where small or depthwise"


def write(target: Target, material: Material, path: Path) -> None:
    """Write a `.tflite` file with its metadata, labels and manifest inside.

    Raises:
        ExportError: LiteRT's converter, quantizer or metadata writer refuses.
    """
    content, quantization = material.float_tflite, None
    if target.precision == "w8":
        content, quantization = _in_8_bits(content, material)
    elif target.precision != "fp32":
        raise ExportError(f"{target.name}: no such precision")
    manifest = replace(material.manifest(target.precision), quantization=quantization)
    path.write_bytes(with_metadata(content, manifest))


def _in_8_bits(content: bytes, material: Material) -> tuple[bytes, Quantization]:
    """The file with its weights in 8 bits, rounded for the inputs that they meet where there are images."""
    calibrated = material.calibrated_if_possible
    if calibrated is None:
        method = "least squared error, written by ai-edge-quantizer"
        return with_int8_weights(content), Quantization(weights=_WEIGHTS, method=method)
    layers = [
        Layer(numpy_helper.to_array(each), calibrated.moments[each.name])
        for each in material.fp32_graph.graph.initializer
        if each.name in calibrated.moments
    ]
    method = "least squared error in the outputs; bias correction; written by ai-edge-quantizer"
    described = calibrated.described(Quantization(weights=_WEIGHTS, method=method))
    return with_int8_weights(content, layers), described


def converted(module: DeployModule) -> bytes:
    """The network as a float32 LiteRT model without metadata.

    Raises:
        ExportError: the converter refuses.
    """
    fixed = FixedSizeModule(module, white=1.0, channels_last=True).eval()
    with silenced():
        try:
            import litert_torch

            content: bytes = litert_torch.convert(fixed, (), {"image": fixed.example}).model_content()
        except Exception as problem:  # it raises what it likes
            raise ExportError(f"LiteRT's converter refuses this network ({first_line(problem)})") from problem
    return content
