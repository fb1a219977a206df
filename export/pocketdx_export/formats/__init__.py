"""How each format is written: a module for each, with one function `write(target, material, path)`.

A module is imported when a file of its format is written, and only then what it needs.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from pocketdx_export.material import Material
from pocketdx_export.targets import Target


def write(target: Target, material: Material, path: Path) -> None:
    """Write the file of `target` to `path`.

    Raises:
        ExportError: it cannot be made.
    """
    import_module(f"{__name__}.{target.format}").write(target, material, path)
