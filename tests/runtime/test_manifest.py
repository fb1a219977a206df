"""The manifest: every mistake in it has a name, and what is written is what is read."""

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdx_runtime.errors import ManifestError
from pocketdx_runtime.manifest import (
    MANIFEST_KEY,
    SCHEMA_VERSION,
    Interval,
    Manifest,
    Preprocessing,
    Quantization,
    Thresholds,
)

PREPROCESSING = Preprocessing(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FULL = Manifest(
    name="chest",
    labels=("NORMAL", "PNEUMONIA"),
    architecture="mobilenet_v3_small",
    embedding_size=576,
    preprocessing=PREPROCESSING,
    precision="int8",
    temperature=1.3,
    thresholds=Thresholds((0.4, 0.6), "youden on validation"),
    conformal_quantile=0.93,
    novelty_cutoff=-2.5,
    data_fingerprint="sha256:abc",
    weights_digest="0123456789abcdef" * 4,
    metrics={"test/auc": Interval(0.97, 0.96, 0.98)},
    software={"torch": "2.11.0"},
    intended_use="Für Forschung.",
    created="2025-01-31T12:00:00+00:00",
    quantization=Quantization(
        weights="int8",
        activations="uint8",
        method="min-max",
        integer_blocks=("features.1",),
        float_blocks=("features.0",),
        calibration_split="train",
        calibration_seed=3,
        calibration_images=("a.png", "b.png"),
        budget={"auc": 0.002},
        validation={"agreement": 0.995},
    ),
    outputs=("logits", "probabilities", "embedding", "heatmap", "novelty"),
)


def changed(**fields: Any) -> str:
    """JSON of the full manifest with fields replaced, or removed where None is given as ``...``."""
    raw = {**FULL.to_dict(), **fields}
    return json.dumps({key: value for key, value in raw.items() if value is not ...})


def test_what_is_written_is_what_is_read() -> None:
    assert Manifest.from_json(FULL.to_json(), "a.onnx") == FULL
    assert Manifest.from_json(FULL.to_json(indent=2), "a.onnx") == FULL


@given(
    labels=st.lists(
        st.text(st.characters(categories=("L", "N", "P")), min_size=1), min_size=2, max_size=5, unique=True
    ),
    temperature=st.floats(1e-3, 1e3),
    scale=st.floats(1e-6, 1.0),
    novelty=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_valid_manifest_survives_the_file(
    labels: list[str], temperature: float, scale: float, novelty: float | None
) -> None:
    manifest = dataclasses.replace(
        FULL,
        labels=tuple(labels),
        temperature=temperature,
        novelty_cutoff=novelty,
        thresholds=Thresholds(),
        preprocessing=dataclasses.replace(PREPROCESSING, scale=scale),
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_json_is_plain_and_complete() -> None:
    raw = json.loads(FULL.to_json())
    assert set(raw) == {field.name for field in dataclasses.fields(Manifest)}
    assert raw["schema_version"] == SCHEMA_VERSION
    assert raw["labels"] == ["NORMAL", "PNEUMONIA"]
    assert raw["metrics"] == {"test/auc": {"value": 0.97, "low": 0.96, "high": 0.98}}
    assert raw["preprocessing"]["antialias"] is True


def test_lists_and_numpy_numbers_are_taken_for_what_they_are() -> None:
    preprocessing = Preprocessing(np.int64(64), [0, 0, 0], list(np.ones(3, np.float32)))  # type: ignore[arg-type]
    assert preprocessing == Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert [type(each) for each in (preprocessing.size, *preprocessing.std)] == [int, float, float, float]


def test_a_manifest_keeps_its_own_copy_of_the_metrics() -> None:
    metrics = {"auc": Interval(0.9, 0.8, 1.0)}
    manifest = dataclasses.replace(FULL, metrics=metrics)
    metrics.clear()
    assert manifest.metrics == {"auc": Interval(0.9, 0.8, 1.0)}


def test_it_pickles() -> None:
    assert pickle.loads(pickle.dumps(FULL)) == FULL


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.temperature = 2.0  # type: ignore[misc]


def test_fields_with_a_default_may_be_absent() -> None:
    optional = {
        field.name: ...
        for field in dataclasses.fields(Manifest)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    read = Manifest.from_json(changed(**{**optional, "schema_version": SCHEMA_VERSION}))
    assert read.labels == FULL.labels
    assert read.thresholds == Thresholds(None, "argmax")
    assert read.intended_use == "Research use only. Not a medical device."


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"labels": ...}, "labels is missing"),
        ({"preprocessing": {"size": 224, "mean": [0, 0, 0]}}, "preprocessing.std is missing"),
        ({"schema_version": ...}, "schema_version is missing"),
        ({"schema_version": 0}, "schema_version is 0"),
        ({"schema_version": "1"}, "schema_version is '1', expected a whole number"),
        ({"flavour": "salt"}, "flavour is not a field that this version knows"),
        ({"name": 3}, "name is 3, expected a string"),
        ({"name": " "}, "name is ' ', expected not empty"),
        ({"labels": "NORMAL"}, "labels is 'NORMAL', expected a list"),
        ({"labels": ["NORMAL"]}, "expected at least two"),
        ({"labels": ["A", "A"]}, "expected distinct names"),
        ({"labels": ["A", 1]}, "labels[1] is 1, expected a string"),
        ({"labels": ["A", "B\x1b[2J"]}, "expected printable names"),
        ({"embedding_size": 576.0}, "embedding_size is 576.0, expected a whole number"),
        ({"embedding_size": 0}, "embedding_size is 0, expected at least 1"),
        ({"embedding_size": True}, "embedding_size is True, expected a whole number"),
        ({"temperature": 0}, "temperature is 0.0"),
        ({"temperature": None}, "temperature is None, expected a number"),
        ({"temperature": 10**400}, "temperature is too large"),
        ({"thresholds": {"values": [0.5], "method": "x"}}, "expected one for each of the 2 labels"),
        ({"thresholds": {"values": [0.5, 0.0], "method": "x"}}, "thresholds.values is (0.5, 0.0)"),
        ({"thresholds": [0.5, 0.5]}, "thresholds is [0.5, 0.5], expected an object"),
        ({"conformal_quantile": -1}, "conformal_quantile is -1.0"),
        ({"weights_digest": "abc"}, "weights_digest is 'abc', expected 64"),
        ({"metrics": {"auc": {"value": 0.9, "low": 0.95, "high": 0.8}}}, "metrics['auc'].low is 0.95"),
        ({"metrics": []}, "metrics is [], expected an object"),
        ({"software": {"torch": 2}}, "software['torch'] is 2, expected a string"),
        ({"created": "yesterday"}, "created is 'yesterday', expected ISO 8601 in UTC"),
        ({"created": "2025-01-31T12:00:00"}, "expected ISO 8601 in UTC"),
        ({"outputs": []}, "outputs is ()"),
        ({"outputs": ["logits", "logits"]}, "expected distinct names out of logits"),
        ({"outputs": ["scores"]}, "outputs is ('scores',)"),
        ({"preprocessing": {"size": 0, "mean": [0, 0, 0], "std": [1, 1, 1]}}, "preprocessing.size is 0"),
        ({"preprocessing": {"size": 9, "mean": [0, 0], "std": [1, 1, 1]}}, "preprocessing.mean is [0, 0]"),
        ({"preprocessing": {"size": 9, "mean": [0, 0, 0], "std": [1, 0, 1]}}, "preprocessing.std is"),
        (
            {"preprocessing": {"size": 9, "mean": [0, 0, 0], "std": [1, 1, 1], "antialias": 1}},
            "preprocessing.antialias is 1, expected true or false",
        ),
        (
            {"preprocessing": {"size": 9, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": "crop"}},
            "preprocessing.resize is 'crop', expected 'squash'",
        ),
    ],
)
def test_a_bad_field_is_refused_with_the_file_the_field_and_the_remedy(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ManifestError) as refused:
        Manifest.from_json(changed(**fields), "a.onnx")
    message = str(refused.value)
    assert complaint in message
    assert message.startswith("a.onnx: its manifest is invalid: ")
    assert message.endswith("export the model again with `pocketdx export`")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("text", ["", "{", "hello", '{"temperature": NaN}', "[" * 100_000, "\x00"])
def test_what_is_not_json_is_refused_with_the_file_and_the_remedy(text: str) -> None:
    with pytest.raises(ManifestError, match=r"^a\.onnx: its manifest is not valid JSON .* `pocketdx export`$"):
        Manifest.from_json(text, "a.onnx")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"manifest"'])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"^a\.onnx: its manifest is invalid: .* expected an object"):
        Manifest.from_json(text, "a.onnx")


def test_a_newer_version_asks_for_an_upgrade_whatever_else_is_in_it() -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION + 1, "something": "new"})
    with pytest.raises(ManifestError, match=r"^a\.onnx: written by a newer PocketDx .* pip install --upgrade"):
        Manifest.from_json(text, "a.onnx")


def test_values_are_checked_in_python_too() -> None:
    with pytest.raises(ManifestError, match=r"^temperature is -1\.0, expected a finite number above 0$"):
        dataclasses.replace(FULL, temperature=-1)
    with pytest.raises(ManifestError, match="value is nan, expected a finite number"):
        Interval(math.nan, 0, 1)


def test_a_model_without_embedding_needs_no_embedding_size() -> None:
    assert dataclasses.replace(FULL, embedding_size=0, outputs=("logits",)).embedding_size == 0


def test_it_goes_into_onnx_metadata_and_comes_back() -> None:
    proto = onnx.ModelProto()
    FULL.write_to(proto)
    metadata = {each.key: each.value for each in proto.metadata_props}
    assert Manifest.from_metadata(metadata, "a.onnx") == FULL


def test_writing_replaces_every_older_manifest_and_nothing_else() -> None:
    proto = onnx.ModelProto()
    for key in (MANIFEST_KEY, "author", MANIFEST_KEY):
        proto.metadata_props.add(key=key, value="old")
    FULL.write_to(proto)
    assert sorted(each.key for each in proto.metadata_props) == ["author", MANIFEST_KEY]
    assert proto.metadata_props[0].value == "old"
    assert json.loads(proto.metadata_props[1].value) == FULL.to_dict()


def test_a_model_file_without_manifest_names_the_file_and_the_remedy() -> None:
    with pytest.raises(ManifestError, match=r"^a\.onnx: .*without a PocketDx manifest.*`pocketdx export`$"):
        Manifest.from_metadata({"author": "me"}, "a.onnx")
