"""What the caller's `pyproject.toml` says of parity: `[tool.pocketdx.parity]`.

[tool.pocketdx.parity]
backends = ["onnxruntime", "onnxruntime-plain"]
margin = 0.02
require-noninferiority = false

[tool.pocketdx.parity.tolerances]
"fp32.logits_max" = 2e-4
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketdx_export.errors import ParityError

_KEYS = ("backends", "margin", "require-noninferiority", "tolerances")


@dataclass(frozen=True)
class Config:
    """Defaults of the command line.

    Attributes:
        backends: names; empty for all.
        margin: of non-inferiority; None for the default one.
        require: whether non-inferiority must be shown.
        tolerances: by "PRECISION.NAME".
    """

    backends: tuple[str, ...] = ()
    margin: float | None = None
    require: bool = False
    tolerances: Mapping[str, float] = field(default_factory=dict)


def read_config(start: Path) -> Config:
    """The settings in the nearest `pyproject.toml` at or above `start`.

    Raises:
        ParityError: the file is not TOML, or a setting is unknown or of the wrong type.
    """
    path = next(
        (each / "pyproject.toml" for each in (start, *start.parents) if (each / "pyproject.toml").is_file()), None
    )
    if path is None:
        return Config()
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise ParityError(f"{path}: cannot be read as TOML ({problem})") from problem
    table: Any = content
    for name in ("tool", "pocketdx", "parity"):
        table = table.get(name, {}) if isinstance(table, dict) else {}
    if not isinstance(table, dict):
        raise ParityError(f"{path}: tool.pocketdx.parity is not a table")
    where = f"{path}: tool.pocketdx.parity"
    for key in table:
        if key not in _KEYS:
            raise ParityError(f"{where}.{key}: no such setting; there are {', '.join(_KEYS)}")
    backends, tolerances = table.get("backends", []), table.get("tolerances", {})
    if not isinstance(backends, list) or not all(isinstance(each, str) for each in backends):
        raise ParityError(f"{where}.backends: give a list of names")
    if not isinstance(tolerances, dict):
        raise ParityError(f'{where}.tolerances: give a table, such as "fp32.logits_max" = 2e-4')
    require = table.get("require-noninferiority", False)
    if not isinstance(require, bool):
        raise ParityError(f"{where}.require-noninferiority: give true or false")
    margin = None if "margin" not in table else _number(table["margin"], f"{where}.margin")
    return Config(tuple(backends), margin, require, _flat(tolerances, f"{where}.tolerances"))


def parse_tolerances(given: Sequence[str]) -> dict[str, float]:
    """`PRECISION.NAME=VALUE` or `NAME=VALUE`, as the command line has them.

    Raises:
        ParityError: one is neither.
    """
    changes = {}
    for each in given:
        name, equals, value = each.partition("=")
        try:
            changes[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ParityError(f"--tolerance {each}: give PRECISION.NAME=VALUE, such as fp32.logits_max=2e-4")
    return changes


def _flat(table: Mapping[str, Any], where: str) -> dict[str, float]:
    """Both `"fp32.logits_max" = 1` and `[...tolerances.fp32] logits_max = 1`."""
    flat: dict[str, float] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": _number(each, f"{where}.{key}.{name}") for name, each in value.items()}
        else:
            flat[key] = _number(value, f"{where}.{key}")
    return flat


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ParityError(f"{where}: {value!r} is not a number")
    return float(value)
