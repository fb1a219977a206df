"""How each format is written: a module for each, with one function `write(target, material, path)`.

Each also has `manifest_of(path)`, and `examined(path, manifest)` if its files can be checked without being run.

A module is imported when a file of its format is written, and only then what it needs.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketdx_export.targets import Target
from pocketdx_runtime.manifest import Manifest

if TYPE_CHECKING:
    from pocketdx_export.material import Material


def write(target: Target, material: Material, path: Path) -> None:
    """Write the file of `target` to `path`.

    Raises:
        ExportError: it cannot be made.
    """
    _module(target.format).write(target, material, path)


def examined(target: Target, path: Path, manifest: Manifest) -> bool:
    """Check what a written file says of itself, without running it; False where the format has no such check.

    Raises:
        ExportError: it does not say what it should.
    """
    examine = getattr(_module(target.format), "examined", None)
    if examine is not None:
        examine(path, manifest)
    return examine is not None


def manifest_in(file_format: str, path: Path) -> Manifest:
    """The manifest that a model file carries.

    Raises:
        ExportError: the file is missing, damaged, or not PocketDx's.
        ManifestError, ModelError: likewise.
    """
    manifest: Manifest = _module(file_format).manifest_of(path)
    return manifest


def _module(file_format: str) -> Any:
    return import_module(f"{__name__}.{file_format}")
