"""Check plain values, as JSON gives them, against the field types of the manifest's dataclasses."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from pocketdx_runtime.errors import ManifestError


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise a one-line `ManifestError` that names the field and the value, unless ``condition``."""
    if not condition:
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        raise ManifestError(f"{name} is {shown}, expected {expected}")


def conform_fields(instance: Any) -> None:
    """Check the type of each field of a frozen dataclass, from its ``__post_init__``.

    Lists become tuples, whole numbers floats where the field is one, NumPy's scalars Python's; mappings are
    copied.

    Raises:
        ManifestError: a field has another type than declared.
    """
    for name, hint in _hints(instance.__class__).items():
        object.__setattr__(instance, name, conform(getattr(instance, name), hint, name))


def conform(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type ``hint``.

    Args:
        value: str, bool, number, None, sequence, mapping or dataclass.
        hint: str, bool, int, float, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]``, ``Mapping[str, X]``
            or a dataclass whose ``__post_init__`` calls `conform_fields`.
        where: what the value is called in messages; empty for the whole.

    Raises:
        ManifestError: the value does not fit.
    """
    if dataclasses.is_dataclass(hint):
        return _conform_dataclass(value, hint, where)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in args if a is not type(None))
        return None if value is None else conform(value, inner, where)
    if origin is tuple:
        return _conform_tuple(value, args, where)
    if origin is Mapping:
        require(isinstance(value, Mapping), where, value, "an object with names")
        for key in value:
            require(isinstance(key, str), f"a name in {where}", key, "a string")
        return {key: conform(item, args[1], f"{where}[{key!r}]") for key, item in value.items()}
    return _conform_scalar(value, hint, where)


def to_plain(value: Any) -> Any:
    """Turn dataclasses and mappings into dicts and sequences into lists, all the way down, ready for JSON."""
    if dataclasses.is_dataclass(value):
        return {each.name: to_plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _conform_dataclass(value: Any, cls: Any, where: str) -> Any:
    if isinstance(value, cls):
        return value
    require(isinstance(value, Mapping), where or "it", value, "an object with fields")
    prefix = f"{where}." if where else ""
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for name in value:
        if name not in fields:
            raise ManifestError(f"{prefix}{name!s:.60} is not a field that this version knows".replace("\n", " "))
    for name, each in fields.items():
        no_default = each.default is each.default_factory is dataclasses.MISSING
        if name not in value and no_default:
            raise ManifestError(f"{prefix}{name} is missing")
    try:
        return cls(**value)
    except ManifestError as error:
        raise ManifestError(f"{prefix}{error}") from None


def _conform_tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    require(isinstance(value, (list, tuple)), where, value, "a list")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    require(len(value) == len(args), where, value, f"a list of {len(args)}")
    return tuple(conform(item, hint, f"{where}[{i}]") for i, (item, hint) in enumerate(zip(value, args, strict=True)))


def _conform_scalar(value: Any, hint: Any, where: str) -> Any:
    # bool is an int in Python, but "antialias": 1 or "size": true in a manifest is a mistake.
    if hint is bool:
        require(isinstance(value, bool), where, value, "true or false")
        return value
    if hint is str:
        require(isinstance(value, str), where, value, "a string")
        return str(value)
    kind, expected = (Integral, "a whole number") if hint is int else (Real, "a number")
    require(isinstance(value, kind) and not isinstance(value, bool), where, value, expected)
    try:
        return hint(value)
    except OverflowError:
        raise ManifestError(f"{where} is too large, expected {expected}") from None
