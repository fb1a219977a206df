"""What the files of a bundle are made from; made once, shared by all formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx

from pocketdx_export.deploy import DeployModule
from pocketdx_export.graph import to_onnx
from pocketdx_runtime.manifest import Manifest
from pocketdx_train.run import Run


@dataclass(frozen=True)
class Material:
    """One trained model on its way into a bundle.

    Attributes:
        run: trained.
        module: preprocessing, network and outputs as one PyTorch module, float32, in evaluation mode.
        fp32_manifest: what the fp32 file says about itself.
        data: the labelled images of the run, where the user named them; precisions that are calibrated need them.
        cache: folder of decoded images; None is the default one.
        say: called with lines for people.
    """

    run: Run
    module: DeployModule
    fp32_manifest: Manifest
    data: Path | None = None
    cache: Path | None = None
    say: Callable[[str], None] = lambda _: None

    def manifest(self, precision: str) -> Manifest:
        """What a file of this precision says about itself."""
        return replace(self.fp32_manifest, precision=precision)

    @cached_property
    def fp32_graph(self) -> onnx.ModelProto:
        """The checked fp32 graph with its manifest; copy it before changing it."""
        return to_onnx(self.module, self.fp32_manifest)

    @cached_property
    def float_tflite(self) -> bytes:
        """The network as a float32 LiteRT file without metadata; converting takes most of a phone format's time."""
        from pocketdx_export.formats.tflite import converted

        return converted(self.module)
