"""onnxruntime's own format: the graph as onnxruntime has optimized it, for builds without the ONNX parser.

Beside each file lies the list of operators and types that it needs, from which a reduced onnxruntime is built
(`build.sh --minimal_build --include_ops_by_config FILE --enable_reduced_operator_type_support`).
https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime

from pocketdx_export import formats
from pocketdx_export.errors import ExportError
from pocketdx_export.formats.onnx import manifest_of
from pocketdx_export.material import Material
from pocketdx_export.noise import silenced
from pocketdx_export.targets import TARGETS, Target

__all__ = ["manifest_of", "operators_file", "required_operators", "write"]

# Its blocked layout depends on the processor's vector width. Without it the file runs anywhere.
_NOT_PORTABLE = ["NchwcTransformer"]
# It would widen small weights to float32, once and for all: right when a session starts, wrong in a file.
_WIDENS = ["ConstantFolding"]


def write(target: Target, material: Material, path: Path) -> None:
    """Write an `.ort` file from the ONNX file of the same precision, and its list of operators beside it.

    Raises:
        ExportError: there is no such ONNX file, or onnxruntime cannot convert it.
    """
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(
            _onnx(target, material, path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_NOT_PORTABLE if target.precision == "fp32" else _NOT_PORTABLE + _WIDENS,
        )
    except Exception as problem:  # onnxruntime's exceptions have no common base but this one
        raise ExportError(f"{path.name}: onnxruntime cannot write it ({str(problem).splitlines()[0]})") from problem
    operators_file(path).write_text(required_operators(path), "utf-8")


def operators_file(path: Path) -> Path:
    """Where the list of operators of an `.ort` file lies."""
    return path.with_name(f"{path.name}.required_operators.config")


def required_operators(path: Path) -> str:
    """The operators and their types that an `.ort` file needs, in the format of onnxruntime's build."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with tempfile.TemporaryDirectory() as folder, silenced():
        config = Path(folder, "config")
        create_config_from_models([path], config, enable_type_reduction=True)
        lines = [line for line in config.read_text("utf-8").splitlines() if not line.startswith("#")]
    return "\n".join([f"# What {path.name} needs of onnxruntime {onnxruntime.__version__}", *lines]) + "\n"


def _onnx(target: Target, material: Material, path: Path) -> bytes:
    """The ONNX file of the same precision: the one that was written beside, or a new one."""
    beside = path.with_suffix(".onnx")
    if beside.is_file():
        return beside.read_bytes()
    same = [each for each in TARGETS if each.format == "onnx" and each.precision == target.precision]
    if not same:
        raise ExportError(f"{target.name}: there is no ONNX file of this precision to make it from")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, beside.name)
        formats.write(same[0], material, made)
        return made.read_bytes()
