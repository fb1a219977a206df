"""The phone formats themselves: converted once, opened, run, damaged. Converting takes tens of seconds, so: slow."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pocketdx_export.backends import BACKENDS, BackendError
from pocketdx_export.bundle import Bundle, export_run
from pocketdx_export.deploy import OUTPUTS, DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.formats import manifest_in
from pocketdx_export.targets import TARGETS, choose_targets, format_of
from pocketdx_train.run import Run

pytestmark = pytest.mark.slow

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="session")
def phones(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every phone format whose packages are installed."""
    missing = {target.format for target in TARGETS if target.missing()}
    wanted = tuple({"tflite", "coreml", "executorch"} - missing)
    if not wanted:
        pytest.skip("none of the packages of phone formats is installed")
    return export_run(run, tmp_path_factory.mktemp("phones") / "bundle", choose_targets(wanted, ()))


@pytest.fixture
def file_of(phones: Bundle):  # type: ignore[no-untyped-def]
    def find(name: str) -> Path:
        path = next((path for target, path in phones.files if target.name == name), None)
        if path is None:
            pytest.skip(f"{name}: its packages are not installed")
        return path

    return find


@pytest.fixture(scope="module")
def given(run: Run) -> list[Pixels]:
    rng = np.random.default_rng(1)
    size = run.record.preprocessing.size
    rows, columns = np.mgrid[0:size, 0:size] / size
    soft = [np.stack([rows * 200, columns * k, (rows + columns) * 90], axis=-1) for k in (80, 160, 240)]
    return [np.clip(each + rng.normal(0, 6, each.shape), 0, 255).astype(np.uint8) for each in soft]


def answers_of(path: Path, backend: str, pictures: list[Pixels]) -> dict[str, NDArray[np.float32]]:
    manifest = manifest_in(format_of(path), path)
    with next(each for each in BACKENDS if each.name == backend).opened(path, manifest) as run:
        return run(pictures)


def expected_of(run: Run, pictures: list[Pixels]) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        answers = DeployModule(run.network(), run.record.temperature).eval()(torch.from_numpy(np.stack(pictures)))
    return {name: answer.numpy() for name, answer in zip(OUTPUTS, answers, strict=True)}


def test_nothing_fails_and_every_file_has_the_runs_manifest(phones: Bundle) -> None:
    assert phones.failed == {}
    for target, path in phones.files:
        manifest = manifest_in(target.format, path)
        assert manifest.precision == target.precision
        assert (manifest.quantization is None) == (target.precision == "fp32")
        assert replace(manifest, precision="fp32", quantization=None) == phones.manifest


@pytest.mark.parametrize(("name", "backend"), [("tflite-fp32", "litert"), ("executorch-fp32", "executorch")])
def test_float_files_answer_as_pytorch_does(file_of, name: str, backend: str, run: Run, given: list[Pixels]) -> None:  # type: ignore[no-untyped-def]
    expected = expected_of(run, given)
    answers = answers_of(file_of(name), backend, given)
    scale = max(1.0, float(np.abs(expected["logits"]).max()) / 10)
    for output, values in expected.items():
        np.testing.assert_allclose(answers[output], values, atol=1e-4 * scale)


def test_int8_weights_make_the_file_small_and_change_the_answers_little(file_of, run: Run, given: list[Pixels]) -> None:  # type: ignore[no-untyped-def]
    small, large = file_of("tflite-w8"), file_of("tflite-fp32")
    assert small.stat().st_size < 0.35 * large.stat().st_size
    expected, answers = expected_of(run, given), answers_of(small, "litert", given)
    error = np.abs(answers["logits"] - expected["logits"]).max()
    assert 0 < error < 0.1
    np.testing.assert_allclose(np.linalg.norm(answers["embedding"], axis=1), 1, atol=1e-5)


def test_phone_libraries_find_labels_normalisation_and_names_in_the_file(file_of, run: Run) -> None:  # type: ignore[no-untyped-def]
    from tensorflow_lite_support.metadata.python.metadata import MetadataDisplayer

    path = file_of("tflite-w8")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().split("\n")[:-1] == list(run.record.labels)
    import json

    shown = json.loads(MetadataDisplayer.with_model_buffer(path.read_bytes()).get_metadata_json())
    (graph,) = shown["subgraph_metadata"]
    (image,) = graph["input_tensor_metadata"]
    (normalisation,) = image["process_units"]
    assert normalisation["options"] == {"mean": [0.0], "std": [255.0]}
    assert [each["name"] for each in graph["output_tensor_metadata"]] == ["probabilities", "embedding", "logits"]
    assert graph["output_tensor_metadata"][0]["associated_files"][0]["type"] == "TENSOR_AXIS_LABELS"


@pytest.mark.parametrize("name", ["tflite-fp32", "executorch-fp32"])
def test_a_damaged_file_is_one_clear_error(file_of, name: str, phones: Bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = file_of(name)
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(whole.read_bytes()[:20_000])
    backend = "litert" if name.startswith("tflite") else "executorch"
    with (
        pytest.raises(BackendError, match=r"cut\..* cannot open it"),
        next(each for each in BACKENDS if each.name == backend).opened(cut, phones.manifest),
    ):
        pass
    with pytest.raises(ExportError, match="no PocketDx manifest"):
        manifest_in(format_of(cut), cut)


@pytest.mark.parametrize(("name", "backend"), [("tflite-fp32", "litert"), ("executorch-fp32", "executorch")])
def test_a_picture_of_another_size_is_refused(file_of, name: str, backend: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BackendError, match=r"takes pictures of 64 x 64, not \(30, 40\)"):
        answers_of(file_of(name), backend, [np.zeros((40, 30, 3), np.uint8)])


def test_coreml_is_not_taken_for_what_it_does_not_say(file_of, phones: Bundle) -> None:  # type: ignore[no-untyped-def]
    from pocketdx_export.formats.coreml import examined

    path = file_of("coreml-fp16")
    manifest = manifest_in("coreml", path)
    examined(path, manifest)
    for change, what in (
        ({"labels": ("a", "b", "c")}, "outputs"),
        ({"preprocessing": replace(manifest.preprocessing, size=96)}, "input"),
        ({"temperature": 9.0}, "manifest"),
    ):
        with pytest.raises(ExportError, match=f"another {what}"):
            examined(path, replace(manifest, **change))


def test_the_task_library_answers_as_pytorch_does(file_of, run: Run, given: list[Pixels]) -> None:  # type: ignore[no-untyped-def]
    if why := next(each for each in BACKENDS if each.name == "task-library").absent():
        pytest.skip(f"task-library: {why}")
    expected = expected_of(run, given)
    answers = answers_of(file_of("tflite-fp32"), "task-library", given)
    for output, values in expected.items():
        np.testing.assert_allclose(answers[output], values, atol=1e-4)
    w8 = answers_of(file_of("tflite-w8"), "task-library", given)
    here = answers_of(file_of("tflite-w8"), "litert", given)
    np.testing.assert_allclose(w8["probabilities"], here["probabilities"], atol=1e-4)
