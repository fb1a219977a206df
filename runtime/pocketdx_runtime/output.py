"""What commands print: JSON for machines, aligned columns for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pocketdx_runtime.conform import to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence


def to_json(value: Any) -> str:
    """JSON of dataclasses, mappings, sequences, NumPy numbers and arrays.

    Numbers that are not finite become null: JSON knows no NaN, and strict readers refuse it.
    """
    return json.dumps(_finite(to_plain(value)), allow_nan=False, indent=2, default=_from_numpy)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Align rows of cells; columns are two spaces apart, those numbered in ``right`` aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _from_numpy(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON")
