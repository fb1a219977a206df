"""ONNX: the model file itself, in each precision."""

from __future__ import annotations

from pathlib import Path

from onnx.checker import MAXIMUM_PROTOBUF

from pocketdx_export.errors import ExportError
from pocketdx_export.material import Material
from pocketdx_export.targets import Target
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.model import Model


def write(target: Target, material: Material, path: Path) -> None:
    """Write one self-contained `.onnx` file.

    Raises:
        ExportError: the graph cannot be made, or is too large for one file.
    """
    content: bytes = material.graph(target.precision).SerializeToString(deterministic=True)
    if len(content) > MAXIMUM_PROTOBUF:
        raise ExportError(f"{target.name}: over 2 GB, more than one ONNX file can hold")
    path.write_bytes(content)


def manifest_of(path: Path) -> Manifest:
    """The manifest in an `.onnx` or `.ort` file.

    Raises:
        ModelError, ManifestError: see `pocketdx_runtime.Model.load`.
    """
    return Model(path, threads=1).manifest
