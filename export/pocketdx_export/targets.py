"""The table of targets: what can be written, how the file is called, what it takes, where it runs, what runs it.

It drives export, parity, bench, the loaders and the docs. How a format is written stands in
`pocketdx_export.formats.<format>`; what runs it, in `pocketdx_export.backends`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pocketdx_export.errors import ExportError


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        name: of the target, on the command line and in reports.
        format: "onnx", ...; also the module of `pocketdx_export.formats` that writes it.
        precision: "fp32", ...
        suffix: end of the file's name.
        runs_on: for people.
        needs: modules that writing it imports, beyond the extra `export`.
        install: what brings them, for the message when they are missing.
        needs_data: whether labelled images are needed to write it.
    """

    name: str
    format: str
    precision: str
    suffix: str
    runs_on: str
    needs: tuple[str, ...] = ()
    install: str = ""
    needs_data: bool = False

    def file_name(self, stem: str = "model") -> str:
        """Name of the file in a bundle."""
        return f"{stem}.{self.suffix}"

    def missing(self) -> str | None:
        """The first module in `needs` that is not installed."""
        return next((module for module in self.needs if find_spec(module) is None), None)


_TFLITE = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert", "tensorflow_lite_support")
# tflite-support is not part of the extra: it asks for protobuf below 4, which onnx cannot live with. The half of it
# that is used here works with any.
_TFLITE_INSTALL = "pip install 'pocketdx[tflite]' && pip install --no-deps tflite-support==0.4.4"
_ORT = "onnxruntime, also builds reduced to the operators of this model"
_PHONES = "LiteRT and MediaPipe: Android, iOS"

TARGETS: tuple[Target, ...] = (
    Target("onnx-fp32", "onnx", "fp32", "fp32.onnx", "onnxruntime: servers, Android, iOS, Windows, browsers"),
    Target("onnx-fp16", "onnx", "fp16", "fp16.onnx", "the same; half the size, computes in float32"),
    Target("onnx-w8", "onnx", "w8", "w8.onnx", "the same; about a quarter of the size, computes in float32"),
    Target("onnx-int8", "onnx", "int8", "int8.onnx", "the same; computes in 8 bits where it helps", needs_data=True),
    Target("ort-fp32", "ort", "fp32", "fp32.ort", _ORT),
    Target("ort-w8", "ort", "w8", "w8.ort", _ORT),
    Target("ort-int8", "ort", "int8", "int8.ort", _ORT, needs_data=True),
    Target("tflite-fp32", "tflite", "fp32", "fp32.tflite", _PHONES, needs=_TFLITE, install=_TFLITE_INSTALL),
    Target("tflite-w8", "tflite", "w8", "w8.tflite", _PHONES, needs=_TFLITE, install=_TFLITE_INSTALL),
    Target(
        *("coreml-fp16", "coreml", "fp16", "fp16.mlpackage", "CoreML: iOS 16, macOS 13 and newer"),
        needs=("coremltools",),
        install="pip install 'pocketdx[coreml]'",
    ),
    Target(
        *("executorch-fp32", "executorch", "fp32", "fp32.pte", "ExecuTorch: Android, iOS"),
        needs=("executorch",),
        install="pip install 'pocketdx[executorch]'",
    ),
)


def choose_targets(
    formats: tuple[str, ...], precisions: tuple[str, ...], *, has_data: bool = True
) -> tuple[Target, ...]:
    """The targets of the given formats and precisions; none given stands for all that can be made.

    Those whose packages are not installed, and without images those that need them, are then left out.

    Raises:
        ExportError: no target fits, or a format was named whose packages are not installed.
    """
    chosen = tuple(
        target
        for target in TARGETS
        if target.format in (formats or (target.format,)) and target.precision in (precisions or (target.precision,))
    )
    if not chosen:
        known = ", ".join(f"--format {target.format} --precision {target.precision}" for target in TARGETS)
        raise ExportError(f"no such target; choose from: {known}")
    if not has_data and not precisions:
        chosen = tuple(target for target in chosen if not target.needs_data)
    if not formats:
        return tuple(target for target in chosen if target.missing() is None)
    for target in chosen:
        if module := target.missing():
            raise ExportError(f"--format {target.format} needs {module}: {target.install}")
    return chosen


def format_of(path: Path) -> str:
    """The format of a model file, by the ending of its name.

    Raises:
        ExportError: it has none of the endings that are exported.
    """
    by_ending = {target.suffix.rpartition(".")[2]: target.format for target in TARGETS}
    ending = path.suffix.removeprefix(".")
    if ending not in by_ending:
        known = ", ".join(f".{each}" for each in by_ending)
        raise ExportError(f"{path}: not a model file by its name; expected one of {known}")
    return by_ending[ending]
