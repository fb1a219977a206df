"""What the files of a bundle are made from; made once, shared by all formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx

from pocketdx_export.deploy import DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.graph import to_onnx
from pocketdx_export.quantize import Built, build
from pocketdx_export.quantize.budget import DEFAULT_BUDGET, Budget
from pocketdx_export.quantize.calibration import SEED, Images, RunImages
from pocketdx_export.quantize.moments import Moments, input_moments
from pocketdx_export.quantize.trial import Timer
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.manifest import Manifest, Quantization
from pocketdx_train.run import Run


@dataclass(frozen=True)
class Calibrated:
    """Calibration images and what was measured on them.

    Attributes:
        images: of the training split.
        moments: of the inputs of the fp32 graph's layers, by the weight's name.
    """

    images: Images
    moments: Mapping[str, Moments]

    def described(self, quantization: Quantization) -> Quantization:
        """What a manifest says of a quantization, with the images that it was calibrated on."""
        return replace(
            quantization,
            calibration_split="train",
            calibration_seed=SEED,
            calibration_images=self.images.names,
        )


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
        budget: of the int8 search; None quantizes every block without one.
        qat: whether int8 may fine-tune the network where the budget cannot be held otherwise.
        timer: how candidates are timed; tests give one that does not depend on the machine.
        reports: files about how the bundle was made, by name; filled while graphs are built.
    """

    run: Run
    module: DeployModule
    fp32_manifest: Manifest
    data: Path | None = None
    cache: Path | None = None
    say: Callable[[str], None] = lambda _: None
    budget: Budget | None = DEFAULT_BUDGET
    qat: bool = False
    timer: Timer | None = None
    reports: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    _built: dict[str, Built] = field(default_factory=dict, init=False, repr=False, compare=False)

    def manifest(self, precision: str) -> Manifest:
        """What a file of this precision says about itself; how it was quantized, if `graph` has made it."""
        _, quantization = self._built.get(precision, (None, None))
        return replace(self.fp32_manifest, precision=precision, quantization=quantization)

    def graph(self, precision: str) -> onnx.ModelProto:
        """The checked graph of a precision with its manifest, made once; copy it before changing it.

        Raises:
            ExportError: it cannot be made of this run and data.
        """
        if precision not in self._built:
            model, quantization = build(self, precision)
            manifest = replace(self.fp32_manifest, precision=precision, quantization=quantization)
            manifest.write_to(model)
            try:
                onnx.checker.check_model(model, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
                raise ExportError(f"{precision}: the graph is not valid ONNX ({problem})") from problem
            self._built[precision] = model, quantization
        return self._built[precision][0]

    @cached_property
    def fp32_graph(self) -> onnx.ModelProto:
        """The checked fp32 graph with its manifest; copy it before changing it."""
        return to_onnx(self.module, self.fp32_manifest)

    @cached_property
    def images(self) -> RunImages | None:
        """The run's images; None where none were named.

        Raises:
            ExportError: none of the images is one of the run's.
            DataError: the data cannot be read.
        """
        return None if self.data is None else RunImages.open(self.run, self.data, self.cache)

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """The calibration images and what the layers meet on them; None where no images were named.

        Raises:
            ExportError: there are too few of a class, or as `images`.
        """
        if self.images is None:
            return None
        chosen = self.images.calibration()
        return Calibrated(chosen, input_moments(self.fp32_graph, chosen.pixels))

    @cached_property
    def calibrated_if_possible(self) -> Calibrated | None:
        """The same, and None also where that cannot be had: w8 does without, and says so."""
        try:
            return self.calibrated
        except PocketDxError as problem:
            self.say(f"w8: rounded without images ({problem})")
            return None

    @cached_property
    def float_tflite(self) -> bytes:
        """The network as a float32 LiteRT file without metadata; converting takes most of a phone format's time."""
        from pocketdx_export.formats.tflite import converted

        return converted(self.module)
