"""What a model file says about itself: defined here once, read and written by every room.

The manifest is JSON in the ONNX metadata property ``pocketdx.manifest``. Every class checks itself when it is
made, in Python or from a file, so a manifest that exists is a valid one.

A reader refuses a ``schema_version`` and fields that it does not know; fields without a default must be
there. So a file from before a field was added still reads, and a reader from before it asks for an upgrade.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, Self

from pocketdx_runtime.conform import conform, conform_fields, require, to_plain
from pocketdx_runtime.errors import ManifestError

SCHEMA_VERSION = 1
"""Version of the manifest that this release writes, and the newest it reads."""

MANIFEST_KEY = "pocketdx.manifest"
"""Name of the ONNX metadata property that holds the manifest."""

OUTPUTS = ("logits", "probabilities", "embedding", "heatmap", "novelty")
"""Every output a model file may have."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes the network's input; the graph in the model file does it, this says what it does.

    The pixel ``p`` (uint8, 0 to 255) of the resized picture becomes ``(p * scale - mean) / std`` per channel.

    Attributes:
        size: side S of the square input in pixels, 1 to 4096.
        mean: per channel, R, G, B.
        std: per channel, above 0.
        resize: "squash": the whole picture to S x S, whatever its aspect.
        interpolation: "bilinear".
        antialias: whether the filter widens when shrinking, as in Pillow.
        scale: factor from grey levels to the unit of ``mean`` and ``std``, above 0.
        color: "RGB".

    Raises:
        ManifestError: a value is of the wrong type or out of range.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "squash"
    interpolation: str = "bilinear"
    antialias: bool = True
    scale: float = 1 / 255
    color: str = "RGB"

    def __post_init__(self) -> None:
        conform_fields(self)
        require(1 <= self.size <= 4096, "size", self.size, "from 1 to 4096 pixels")
        require(all(map(math.isfinite, self.mean)), "mean", self.mean, "finite numbers")
        require(all(0 < s < math.inf for s in self.std), "std", self.std, "finite numbers above 0")
        require(0 < self.scale < math.inf, "scale", self.scale, "a finite number above 0")
        require(self.resize == "squash", "resize", self.resize, "'squash'")
        require(self.interpolation == "bilinear", "interpolation", self.interpolation, "'bilinear'")
        require(self.color == "RGB", "color", self.color, "'RGB'")


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its 95 % interval; all three finite, ``low <= high``.

    Raises:
        ManifestError: a number is not finite, or the ends are swapped.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        conform_fields(self)
        for name in ("value", "low", "high"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        require(self.low <= self.high, "low", self.low, f"at most high ({self.high})")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which probability on a label counts as found.

    Attributes:
        values: one per label, in the order of the labels, each above 0 and at most 1; None: the most probable
            label is the answer (argmax).
        method: how they were chosen, for people: "argmax", "youden on validation", ...

    Raises:
        ManifestError: a value is out of range.
    """

    values: tuple[float, ...] | None = None
    method: str = "argmax"

    def __post_init__(self) -> None:
        conform_fields(self)
        require(bool(self.method), "method", self.method, "a few words")
        require(all(0 < v <= 1 for v in self.values or ()), "values", self.values, "each above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the numbers of a file came to be smaller than float32.

    Attributes:
        weights: how they are stored, for people.
        activations: how they are computed, for people.
        method: ranges, equalisation, bias correction, fine-tuning: what was applied, for people.
        integer_blocks: blocks of the network that compute in integers.
        float_blocks: those that compute in float32, with the weights stored as `weights` says.
        calibration_split: of the run, from which the calibration images were drawn; "" without calibration.
        calibration_seed: of that draw.
        calibration_images: their names, as in the training data.
        budget: limits that the file was chosen under, by name ("auc", "agreement").
        validation: what was measured on validation images against fp32, by name.

    Raises:
        ManifestError: a value is of the wrong type, or a number not finite.
    """

    weights: str
    activations: str = "float32"
    method: str = ""
    integer_blocks: tuple[str, ...] = ()
    float_blocks: tuple[str, ...] = ()
    calibration_split: str = ""
    calibration_seed: int = 0
    calibration_images: tuple[str, ...] = ()
    budget: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        conform_fields(self)
        require(bool(self.weights.strip()), "weights", self.weights, "a few words")
        for name in ("budget", "validation"):
            values = getattr(self, name)
            require(all(map(math.isfinite, values.values())), name, values, "finite numbers")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model file says about itself.

    Attributes:
        name: of the model, for people.
        labels: of the classes, in the order of the columns of ``logits``; at least two, distinct.
        architecture: "mobilenet_v3_small", ...
        embedding_size: D, the columns of ``embedding``.
        preprocessing: what the graph does with a picture.
        precision: "fp32", "int8", ...
        temperature: logits are divided by it before the softmax that gives ``probabilities``; above 0.
        thresholds: see `Thresholds`; one value per label.
        conformal_quantile: of the conformal score on calibration data, at least 0; None: not calibrated.
        novelty_cutoff: above it, ``novelty`` calls a picture unlike the training images; None: not set.
        data_fingerprint: of the training data, as the training run wrote it.
        weights_digest: SHA-256 (64 hex digits) of the run's safetensors file, or "".
        metrics: by name ("test/auc"), with 95 % intervals.
        software: versions by package name.
        intended_use: shown wherever the model's answers are.
        created: ISO 8601, in UTC, or "".
        quantization: of a file that is not fp32; see `Quantization`.
        outputs: the outputs the graph has, out of `OUTPUTS`.
        schema_version: of the manifest itself.

    Raises:
        ManifestError: a value is of the wrong type or out of range; the message names field and value.
    """

    name: str
    labels: tuple[str, ...]
    architecture: str
    embedding_size: int
    preprocessing: Preprocessing
    precision: str = "fp32"
    temperature: float = 1.0
    thresholds: Thresholds = field(default_factory=Thresholds)
    conformal_quantile: float | None = None
    novelty_cutoff: float | None = None
    data_fingerprint: str = ""
    weights_digest: str = ""
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    intended_use: str = "Research use only. Not a medical device."
    created: str = ""
    quantization: Quantization | None = None
    outputs: tuple[str, ...] = ("logits", "probabilities", "embedding")
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        conform_fields(self)
        require(self.schema_version == SCHEMA_VERSION, "schema_version", self.schema_version, str(SCHEMA_VERSION))
        for name in ("name", "architecture", "precision"):
            require(bool(getattr(self, name).strip()), name, getattr(self, name), "not empty")
        _check_labels(self.labels)
        require(
            bool(self.outputs) and len(set(self.outputs)) == len(self.outputs) and set(self.outputs) <= {*OUTPUTS},
            "outputs",
            self.outputs,
            f"distinct names out of {', '.join(OUTPUTS)}",
        )
        least = 1 if "embedding" in self.outputs else 0
        require(self.embedding_size >= least, "embedding_size", self.embedding_size, f"at least {least}")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a finite number above 0")
        values = self.thresholds.values
        require(
            values is None or len(values) == len(self.labels),
            "thresholds.values",
            values,
            f"one for each of the {len(self.labels)} labels",
        )
        quantile, cutoff = self.conformal_quantile, self.novelty_cutoff
        require(quantile is None or 0 <= quantile < math.inf, "conformal_quantile", quantile, "at least 0, finite")
        require(cutoff is None or math.isfinite(cutoff), "novelty_cutoff", cutoff, "a finite number")
        digest = self.weights_digest
        require(
            not digest or _SHA256.fullmatch(digest) is not None,
            "weights_digest",
            digest,
            "64 lower-case hexadecimal digits",
        )
        require(not self.created or _is_utc(self.created), "created", self.created, "ISO 8601 in UTC")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, numbers and None, as the JSON has them."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self, *, indent: int | None = None) -> str:
        """JSON of all fields, defaults included; `from_json` gives an equal manifest back."""
        return json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=False, indent=indent)

    @classmethod
    def from_json(cls, text: str, source: str = "manifest") -> Self:
        """Read and check a manifest.

        Args:
            text: what `to_json` wrote.
            source: the file it comes from, for messages.

        Raises:
            ManifestError: not JSON, of a newer version, a field missing, unknown, of the wrong type or value.
        """
        try:
            raw = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ManifestError(
                f"{source}: its manifest is not valid JSON ({error}); export the model again with `pocketdx export`"
            ) from None
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ManifestError(
                f"{source}: written by a newer PocketDx (manifest version {version}, this one reads up to "
                f"{SCHEMA_VERSION}); upgrade with: pip install --upgrade pocketdx"
            )
        try:
            if isinstance(raw, dict) and version is None:
                raise ManifestError("schema_version is missing")
            manifest: Self = conform(raw, cls, "")
        except ManifestError as error:
            raise ManifestError(
                f"{source}: its manifest is invalid: {error}; export the model again with `pocketdx export`"
            ) from None
        return manifest

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str = "model") -> Self:
        """Read the manifest out of a model file's metadata properties.

        Raises:
            ManifestError: the property is missing, or see `from_json`.
        """
        text = metadata.get(MANIFEST_KEY)
        if text is None:
            raise ManifestError(f"{source}: a model without a PocketDx manifest; make one with `pocketdx export`")
        return cls.from_json(text, source)

    def write_to(self, model_proto: ModelProto) -> None:
        """Put the manifest into an ``onnx.ModelProto``, in place of one that may be there."""
        properties = model_proto.metadata_props
        for index in reversed(range(len(properties))):
            if properties[index].key == MANIFEST_KEY:
                del properties[index]
        entry = properties.add()
        entry.key, entry.value = MANIFEST_KEY, self.to_json()


class ModelProto(Protocol):
    """The part of ``onnx.ModelProto`` that is needed here; the runtime does not depend on onnx."""

    @property
    def metadata_props(self) -> Any:
        """Repeated ``StringStringEntryProto``."""


def _check_labels(labels: tuple[str, ...]) -> None:
    require(len(labels) >= 2, "labels", labels, "at least two")
    require(len(set(labels)) == len(labels), "labels", labels, "distinct names")
    # Labels are printed to terminals and become column names: no line breaks, no escape sequences.
    require(all(label.strip() and label.isprintable() for label in labels), "labels", labels, "printable names")


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
