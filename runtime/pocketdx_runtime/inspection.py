"""What a model file says about itself, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketdx_runtime.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketdx_runtime.manifest import Manifest
    from pocketdx_runtime.model import Model
    from pocketdx_runtime.session import TensorSpec


def describe(model: Model) -> list[tuple[str, str]]:
    """Pairs of a name and what the file says about it, in the order to read them; opens the model."""
    manifest = model.manifest
    pairs = [
        ("name", manifest.name),
        ("use", manifest.intended_use),
        ("labels", ", ".join(manifest.labels)),
        ("answer", _answer(manifest)),
        *((f"metric {name}", f"{m.value:.4f} ({m.low:.4f} to {m.high:.4f})") for name, m in manifest.metrics.items()),
        ("network", f"{manifest.architecture}, {manifest.precision}"),
        *(("input", _tensor(each)) for each in model.inputs),
        *(("output", _tensor(each)) for each in model.outputs),
        ("preprocessing", _preprocessing(manifest)),
        ("temperature", f"{manifest.temperature:g}"),
        ("conformal quantile", _number(manifest.conformal_quantile)),
        ("novelty cut-off", _number(manifest.novelty_cutoff)),
        ("training data", manifest.data_fingerprint),
        ("weights SHA-256", manifest.weights_digest),
        ("made", manifest.created),
        ("with", ", ".join(f"{name} {version}" for name, version in manifest.software.items())),
        ("file", f"{model.path or model.name}, {_size(model.size)}, manifest version {manifest.schema_version}"),
        ("SHA-256", model.digest),
    ]
    return [(printable(name), printable(text) or "-") for name, text in pairs]


def _answer(manifest: Manifest) -> str:
    thresholds = manifest.thresholds
    if thresholds.values is None:
        return "the most probable label"
    each = ", ".join(f"{label} {v:g}" for label, v in zip(manifest.labels, thresholds.values, strict=True))
    return f"by thresholds: {each} ({thresholds.method})"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _preprocessing(manifest: Manifest) -> str:
    spec = manifest.preprocessing
    antialias = "antialiased" if spec.antialias else "not antialiased"
    return (
        f"in the graph: {spec.color}, {spec.resize} to {spec.size} x {spec.size}, {spec.interpolation}, {antialias}; "
        f"scale {spec.scale:.6g}, mean {_triple(spec.mean)}, std {_triple(spec.std)}"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _number(value: float | None) -> str:
    return "not set" if value is None else f"{value:g}"
