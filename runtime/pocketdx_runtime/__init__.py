"""PocketDx runtime: what a device needs to run a model. NumPy, onnxruntime and Pillow; never torch.

>>> from pocketdx_runtime import Model
>>> Model("model.onnx").diagnose(["chest.jpg"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketdx_runtime.cpu import granted_cpus as granted_cpus
    from pocketdx_runtime.diagnosis import Diagnosis as Diagnosis
    from pocketdx_runtime.errors import ImageError as ImageError
    from pocketdx_runtime.errors import ImageReason as ImageReason
    from pocketdx_runtime.errors import ManifestError as ManifestError
    from pocketdx_runtime.errors import ModelError as ModelError
    from pocketdx_runtime.errors import PocketDxError as PocketDxError
    from pocketdx_runtime.manifest import Interval as Interval
    from pocketdx_runtime.manifest import Manifest as Manifest
    from pocketdx_runtime.manifest import Preprocessing as Preprocessing
    from pocketdx_runtime.manifest import Thresholds as Thresholds
    from pocketdx_runtime.model import Model as Model
    from pocketdx_runtime.selftest import SelfTest as SelfTest
    from pocketdx_runtime.selftest import run_selftest as run_selftest

    __version__: str

_HOME = {
    "granted_cpus": "cpu",
    "Diagnosis": "diagnosis",
    "ImageError": "errors",
    "ImageReason": "errors",
    "ManifestError": "errors",
    "ModelError": "errors",
    "PocketDxError": "errors",
    "Interval": "manifest",
    "Manifest": "manifest",
    "Preprocessing": "manifest",
    "Thresholds": "manifest",
    "Model": "model",
    "SelfTest": "selftest",
    "run_selftest": "selftest",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): ``pocketdx --help`` needs neither onnxruntime nor NumPy."""
    if name == "__version__":
        return import_module("importlib.metadata").version("pocketdx")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
