"""A bundle appears whole or not at all, and says when it has been changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from pocketdx_export import material as material_module
from pocketdx_export.bundle import Bundle, export_run
from pocketdx_export.commands import export
from pocketdx_export.deploy import DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.golden import golden_archive, golden_pictures
from pocketdx_export.targets import choose_targets
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.model import Model
from pocketdx_runtime.selftest import run_selftest
from pocketdx_train.run import Run

# What can be made of the run alone.
DATALESS = choose_targets(("onnx",), (), has_data=False)


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def test_a_bundle_holds_the_model_its_manifest_golden_inputs_card_and_sums(bundle: Bundle) -> None:
    names = {path.name for path in bundle.folder.iterdir()} - {"parity.json", "report.html"}
    assert names == {
        *("model.fp32.onnx", "model.fp16.onnx", "model.w8.onnx"),
        *("manifest.json", "golden.npz", "MODEL_CARD.md", "SHA256SUMS"),
    }
    for line in (bundle.folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((bundle.folder / name).read_bytes()).hexdigest() == digest


def test_the_exported_file_says_what_the_run_says(bundle: Bundle, run: Run) -> None:
    manifest = Model(bundle.files[0][1]).manifest
    assert manifest == bundle.manifest
    assert manifest.labels == run.record.labels
    assert manifest.temperature == run.record.temperature
    assert manifest.weights_digest == run.record.weights_digest
    assert manifest.metrics == run.record.metrics
    assert {"torch", "onnx", "onnxruntime"} - set(manifest.software) == {"torch"}  # this run was made without


def test_the_graph_has_free_sizes_and_the_documented_inputs_and_outputs(bundle: Bundle) -> None:
    graph = onnx.load(bundle.files[0][1]).graph
    (image,) = graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", "H", "W", 3]
    assert [each.name for each in graph.output] == ["logits", "probabilities", "embedding"]
    assert {each.type.tensor_type.elem_type for each in graph.output} == {onnx.TensorProto.FLOAT}


def test_the_file_needs_nothing_beside_it_and_holds_no_trace_of_the_machine(bundle: Bundle) -> None:
    model = onnx.load(bundle.files[0][1])
    assert not any(each.external_data for each in model.graph.initializer)
    for each in model.graph.initializer:
        each.ClearField("raw_data")  # random numbers spell ".py" now and then
    content = model.SerializeToString()
    for trace in (b".py", str(Path.home()).encode(), str(Path(__file__).parents[2]).encode()):
        assert trace not in content


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 64, 64), (2, 300, 61), (1, 1000, 733)])
def test_onnxruntime_computes_what_pytorch_computes_at_any_size(
    bundle: Bundle, run: Run, shape: tuple[int, int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    module = DeployModule(run.network(), run.record.temperature).eval()
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels))
    session = onnxruntime.InferenceSession(bundle.files[0][1])
    for ours, theirs in zip(session.run(None, {"image": pixels}), expected, strict=True):
        # Noise drives this untrained network to logits in the hundreds; float32 has seven digits.
        scale = max(10.0, float(theirs.abs().max()))
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5 * scale)
    lengths = np.linalg.norm(session.run(["embedding"], {"image": pixels})[0], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_exporting_leaves_the_network_as_it_was(run: Run) -> None:
    network = run.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modules = [type(module).__name__ for module in network.modules()]
    DeployModule(network, 1.0)
    assert [type(module).__name__ for module in network.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_two_exports_of_a_run_are_the_same_but_for_the_time_of_day(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    again = export_run(run, tmp_path / "again", DATALESS)
    first, second = (onnx.load(each.files[0][1]) for each in (bundle, again))
    for model in (first, second):
        del model.metadata_props[:]
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert (again.folder / "golden.npz").read_bytes() == (bundle.folder / "golden.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mobilenet_v2", "mobilenet_v3_large"])
def test_the_other_architectures_export_too(architecture: str, run: Run, tmp_path: Path) -> None:
    from pocketdx_export.graph import to_onnx
    from pocketdx_train.architectures import Network

    torch.manual_seed(0)
    network = Network(architecture, 3, run.record.preprocessing).eval()
    manifest = Manifest("x", ("a", "b", "c"), architecture, network.embedding_size, run.record.preprocessing)
    module = DeployModule(network, 1.0).eval()
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(module, manifest), path)
    (tmp_path / "golden.npz").write_bytes(
        golden_archive(module, {"fp32": {"logits": 1e-4, "probabilities": 1e-4, "embedding": 1e-4}})
    )
    assert run_selftest(Model(path), tmp_path / "golden.npz")


def test_golden_pictures_are_of_several_sizes_the_first_of_the_networks_own() -> None:
    pictures = golden_pictures(64)
    assert pictures[0].shape == (64, 64, 3)
    assert len({picture.shape for picture in pictures}) >= 6
    assert all(np.array_equal(a, b) for a, b in zip(pictures, golden_pictures(64), strict=True))


class TestBadInput:
    def test_a_changed_file_is_named(self, copy: Path) -> None:
        with (copy / "model.fp32.onnx").open("r+b") as file:
            file.seek(1000)
            file.write(b"\0\1\2")
        with pytest.raises(ExportError, match=r"model\.fp32\.onnx: has changed"):
            Bundle.open(copy)

    def test_a_missing_file_is_named(self, copy: Path) -> None:
        (copy / "golden.npz").unlink()
        with pytest.raises(ExportError, match=r"golden\.npz: missing"):
            Bundle.open(copy)

    @pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"model": {}, "files": []}'])
    def test_a_damaged_manifest_is_one_clear_error(self, copy: Path, content: str) -> None:
        (copy / "manifest.json").write_text(content)
        with pytest.raises(PocketDxError, match=r"manifest\.json"):
            Bundle.open(copy)

    def test_a_folder_that_is_no_bundle_is_one_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="not a bundle"):
            Bundle.open(tmp_path)

    def test_an_unknown_target_lists_the_known_ones(self) -> None:
        with pytest.raises(ExportError, match="--format onnx --precision fp32"):
            choose_targets(("teapot",), ())

    def test_an_existing_bundle_is_left_alone_unless_forced(self, copy: Path, run: Run) -> None:
        arguments = [str(run.folder), "--out", str(copy), "--format", "onnx", "--precision", "fp32"]
        before = (copy / "manifest.json").read_bytes()
        refused = CliRunner().invoke(export, arguments)
        assert isinstance(refused.exception, PocketDxError)
        assert "exists already" in str(refused.exception)
        assert (copy / "manifest.json").read_bytes() == before
        forced = CliRunner().invoke(export, [*arguments, "--force", "--json"])
        assert forced.exit_code == 0
        assert json.loads(forced.stdout)["files"] == {"onnx-fp32": str(copy / "model.fp32.onnx")}

    def test_a_file_that_answers_wrongly_is_not_exported_and_leaves_nothing(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = material_module.to_onnx

        def broken(module: DeployModule, manifest: Manifest) -> onnx.ModelProto:
            model = honest(module, manifest)
            offset = next(each for each in model.graph.initializer if each.name == "offset")
            offset.CopyFrom(onnx.numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "offset"))
            return model

        monkeypatch.setattr(material_module, "to_onnx", broken)
        with pytest.raises(ExportError, match=r"model\.fp32\.onnx: answers differ"):
            export_run(run, tmp_path / "bundle", DATALESS)
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_leaves_nothing(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, content: bytes) -> int:
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(PocketDxError, match=r"bundle: cannot be written.*free some space"):
            export_run(run, tmp_path / "bundle", DATALESS)
        assert list(tmp_path.iterdir()) == []

    def test_an_unfinished_or_foreign_folder_is_no_run(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(export, [str(tmp_path), "--out", str(tmp_path / "bundle")])
        assert "not a run" in str(result.exception)
