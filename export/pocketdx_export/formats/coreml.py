"""CoreML for iPhones and Macs: an ML program in fp16, a folder `.mlpackage`.

The input is an RGB image of S x S, as Vision hands it over after its own resize; the graph normalises. The outputs are
those of the ONNX file, float32.

coremltools converts anywhere, but CoreML computes on Apple's systems alone. Elsewhere only what the file says of itself
is checked, by `examined`, and the bundle says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pocketdx_export.deploy import FIXED_SIZE_OUTPUTS, FixedSizeModule
from pocketdx_export.errors import ExportError
from pocketdx_export.material import Material
from pocketdx_export.noise import first_line, silenced
from pocketdx_export.targets import Target
from pocketdx_runtime.manifest import MANIFEST_KEY, Manifest, Quantization

# Sums of squares leave fp16's range (65504); the last steps cost nothing in float32.
QUANTIZATION = Quantization(weights="float16", activations="float16, but for the softmax and the embedding's length")
_IN_FLOAT32 = {"reduce_sum", "sqrt", "real_div", "softmax"}


def write(target: Target, material: Material, path: Path) -> None:
    """Write an `.mlpackage` folder.

    Raises:
        ExportError: coremltools refuses the network.
    """
    module = FixedSizeModule(material.module, white=255.0, channels_last=False).eval()
    manifest = replace(material.manifest(target.precision), quantization=QUANTIZATION)
    with silenced():
        try:
            import coremltools as ct
            import numpy as np

            program = torch.export.export(module, (module.example,)).run_decompositions({})
            model: Any = ct.convert(
                program,
                inputs=[ct.ImageType(name="image", shape=tuple(module.example.shape), color_layout=ct.colorlayout.RGB)],
                outputs=[ct.TensorType(name=name, dtype=np.float32) for name in FIXED_SIZE_OUTPUTS],
                minimum_deployment_target=ct.target.iOS16,
                compute_precision=ct.transform.FP16ComputePrecision(
                    op_selector=lambda operation: operation.op_type not in _IN_FLOAT32
                ),
                skip_model_load=True,
            )
            model.short_description = f"{manifest.architecture} of PocketDx. {manifest.intended_use}"
            model.user_defined_metadata[MANIFEST_KEY] = manifest.to_json()
            model.user_defined_metadata["classes"] = ",".join(manifest.labels)
            model.save(str(path))
        except Exception as problem:  # it raises what it likes
            raise ExportError(f"coremltools refuses this network ({first_line(problem)})") from problem


def manifest_of(path: Path) -> Manifest:
    """The manifest in an `.mlpackage`.

    Raises:
        ExportError: the folder is missing, damaged, or not PocketDx's.
        ManifestError: its manifest is not valid.
    """
    text = _specification(path).description.metadata.userDefined[MANIFEST_KEY]
    if not text:
        raise ExportError(f"{path}: no PocketDx manifest in it; make one with `pocketdx export`")
    return Manifest.from_json(text, str(path))


def examined(path: Path, manifest: Manifest) -> None:
    """Check what the written file says of itself: its input, its outputs, its manifest, its weights' presence.

    Raises:
        ExportError: it does not say what it should.
    """
    description = _specification(path).description
    found: dict[str, Any] = {
        "input": [(each.name, each.type.imageType.width, each.type.imageType.height) for each in description.input],
        "outputs": {each.name: tuple(each.type.multiArrayType.shape) for each in description.output},
        "manifest": replace(manifest_of(path), quantization=None),
    }
    size, classes = manifest.preprocessing.size, len(manifest.labels)
    shapes = {"probabilities": (1, classes), "embedding": (1, manifest.embedding_size), "logits": (1, classes)}
    expected: dict[str, Any] = {
        "input": [("image", size, size)],
        "outputs": shapes,
        "manifest": replace(manifest, quantization=None),
    }
    for what, value in expected.items():
        if found[what] != value:
            raise ExportError(f"{path.name}: its specification has another {what} than asked for ({found[what]})")
    if not any(each.stat().st_size for each in path.rglob("weight.bin")):
        raise ExportError(f"{path.name}: holds no weights")


def _specification(path: Path) -> Any:
    with silenced():
        try:
            from coremltools.models.utils import load_spec

            return load_spec(str(path))
        except Exception as problem:  # as above
            raise ExportError(f"{path}: not a CoreML package ({first_line(problem)})") from None
