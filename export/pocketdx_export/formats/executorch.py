"""ExecuTorch for Android and iOS, lowered to XNNPACK's float kernels.

The input is float32 [1, 3, S, S], RGB, 0 to 1: what ExecuTorch's image helpers make of a bitmap without further
settings. The outputs are those of the ONNX file, in the order of `deploy.FIXED_SIZE_OUTPUTS`. The method
`pocketdx_manifest` returns the manifest.
https://docs.pytorch.org/executorch/stable/android-xnnpack.html
"""

from __future__ import annotations

from pathlib import Path

import torch

from pocketdx_export.deploy import FixedSizeModule
from pocketdx_export.errors import ExportError
from pocketdx_export.material import Material
from pocketdx_export.noise import first_line, silenced
from pocketdx_export.targets import Target
from pocketdx_runtime.manifest import Manifest

MANIFEST_METHOD = "pocketdx_manifest"


def write(target: Target, material: Material, path: Path) -> None:
    """Write a `.pte` file with the manifest in it.

    Raises:
        ExportError: ExecuTorch refuses the network.
    """
    module = FixedSizeModule(material.module, white=1.0, channels_last=False).eval()
    manifest = material.manifest(target.precision).to_json()
    with silenced():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            program = torch.export.export(module, (module.example,))
            edge = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods={MANIFEST_METHOD: manifest}
            )
            content = bytes(edge.to_executorch().buffer)
        except Exception as problem:  # it raises what it likes
            raise ExportError(f"ExecuTorch refuses this network ({first_line(problem)})") from problem
    path.write_bytes(content)


def manifest_of(path: Path) -> Manifest:
    """The manifest in a `.pte` file.

    Raises:
        ExportError: the file is missing, damaged, or not PocketDx's.
        ManifestError: its manifest is not valid.
    """
    with silenced():
        try:
            from executorch.runtime import Runtime

            method = Runtime.get().load_program(path.read_bytes()).load_method(MANIFEST_METHOD)
            (text,) = method.execute([])
        except Exception as problem:  # as above
            reason = first_line(problem)
            raise ExportError(
                f"{path}: no PocketDx manifest in it ({reason}); make one with `pocketdx export`"
            ) from None
    return Manifest.from_json(text, str(path))
