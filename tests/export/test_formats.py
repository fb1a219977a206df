"""Each phone format says what the run says, answers as the network does, and is not exported when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from pocketdx_export import bundle as bundle_module
from pocketdx_export import formats
from pocketdx_export.backends import BACKENDS
from pocketdx_export.bundle import Bundle, export_run
from pocketdx_export.deploy import FIXED_SIZE_OUTPUTS, OUTPUTS, DeployModule, FixedSizeModule
from pocketdx_export.errors import ExportError
from pocketdx_export.formats import manifest_in
from pocketdx_export.formats.ort import operators_file
from pocketdx_export.material import Material
from pocketdx_export.targets import TARGETS, Target, choose_targets, format_of
from pocketdx_runtime.errors import ModelError
from pocketdx_runtime.model import Model
from pocketdx_runtime.selftest import run_selftest
from pocketdx_train.run import Run

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def module(run: Run) -> DeployModule:
    return DeployModule(run.network(), run.record.temperature).eval()


@pytest.fixture(scope="module")
def pictures_of_size(run: Run) -> list[Pixels]:
    rng = np.random.default_rng(0)
    size = run.record.preprocessing.size
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="session")
def with_ort(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    targets = choose_targets(("ort",), (), has_data=False)
    return export_run(run, tmp_path_factory.mktemp("ort") / "bundle", targets)


def path_of(bundle: Bundle, target: str) -> Path:
    return next(path for each, path in bundle.files if each.name == target)


def expected_of(module: DeployModule, pictures: list[Pixels]) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        answers = module(torch.from_numpy(np.stack(pictures)))
    return {name: answer.numpy() for name, answer in zip(OUTPUTS, answers, strict=True)}


def test_the_module_without_the_resize_answers_as_the_one_with_it(
    module: DeployModule, pictures_of_size: list[Pixels]
) -> None:
    expected = expected_of(module, pictures_of_size)
    pixels = torch.from_numpy(np.stack(pictures_of_size)).float()
    for fixed, given in (
        (FixedSizeModule(module, white=1.0, channels_last=True), pixels / 255),
        (FixedSizeModule(module, white=255.0, channels_last=False), pixels.permute(0, 3, 1, 2)),
    ):
        with torch.inference_mode():
            answers = fixed(given)
        assert tuple(answers) == FIXED_SIZE_OUTPUTS
        scale = max(10.0, float(np.abs(expected["logits"]).max()))
        for name, answer in answers.items():
            np.testing.assert_allclose(answer.numpy(), expected[name], atol=1e-5 * scale)


class TestOrt:
    def test_is_bit_identical_to_the_graph_without_the_blocked_layout(
        self, with_ort: Bundle, bundle: Bundle, pictures_of_size: list[Pixels]
    ) -> None:
        image = {"image": np.stack(pictures_of_size)}
        plain = onnxruntime.InferenceSession(path_of(bundle, "onnx-fp32"), disabled_optimizers=["NchwcTransformer"])
        ours = onnxruntime.InferenceSession(path_of(with_ort, "ort-fp32"))
        for theirs, answer in zip(plain.run(None, image), ours.run(None, image), strict=True):
            assert np.array_equal(theirs, answer)

    def test_opens_in_the_runtime_with_its_manifest_and_passes_the_selftest(self, with_ort: Bundle) -> None:
        model = Model(path_of(with_ort, "ort-fp32"))
        assert model.manifest == with_ort.manifest
        assert run_selftest(model, with_ort.folder / "golden.npz")

    def test_weights_stay_small_in_a_file_of_small_weights(self, with_ort: Bundle) -> None:
        sizes = {target.precision: path.stat().st_size for target, path in with_ort.files}
        assert sizes["w8"] < 0.4 * sizes["fp32"]
        assert run_selftest(Model(path_of(with_ort, "ort-w8")), with_ort.folder / "golden.npz")

    def test_says_beside_it_which_operators_a_reduced_build_needs(self, with_ort: Bundle) -> None:
        file = operators_file(path_of(with_ort, "ort-fp32"))
        text = file.read_text("utf-8")
        assert "com.microsoft;1;FusedConv" in text
        assert "Resize" in text
        assert str(with_ort.folder.parent) not in text
        assert file.name in (with_ort.folder / "SHA256SUMS").read_text()

    @pytest.mark.parametrize("kept", [8, 100, 5000, -500])
    def test_a_cut_file_is_one_clear_error(self, with_ort: Bundle, tmp_path: Path, kept: int) -> None:
        cut = tmp_path / "cut.ort"
        cut.write_bytes(path_of(with_ort, "ort-fp32").read_bytes()[:kept])
        with pytest.raises(ModelError, match=r"cut\.ort: onnxruntime .* copy it again"):
            Model(cut).load()

    def test_a_file_of_somebody_else_is_not_a_model(self, bundle: Bundle, tmp_path: Path) -> None:
        import onnx

        from pocketdx_runtime.errors import ManifestError

        stripped = onnx.load(path_of(bundle, "onnx-fp32"))
        del stripped.metadata_props[:]
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "other.ort")
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(stripped.SerializeToString(), options)
        with pytest.raises(ManifestError, match=r"other\.ort: a model without a PocketDx manifest"):
            Model(tmp_path / "other.ort").load()


def test_a_phone_file_given_to_the_runtime_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"\x20\0\0\0TFL3" + bytes(100))
    with pytest.raises(ModelError, match=r"a LiteRT file, for phones; give an \.onnx or \.ort file"):
        Model(tmp_path / "model.tflite").load()


def test_every_target_has_a_writer_a_reader_and_a_backend() -> None:
    for target in TARGETS:
        home: Any = formats._module(target.format)
        assert callable(home.write)
        assert callable(home.manifest_of)
        assert any(target.format in backend.formats for backend in BACKENDS)
        assert format_of(Path(target.file_name())) == target.format


def test_a_name_that_is_no_models_lists_the_endings() -> None:
    with pytest.raises(ExportError, match=r"report\.html: not a model file .*\.onnx, \.ort, \.tflite"):
        format_of(Path("report.html"))


@pytest.mark.parametrize(
    ("file_format", "remedy"),
    [
        ("tflite", "pip install --no-deps tflite-support==0.4.4"),
        ("coreml", "pip install 'pocketdx[coreml]'"),
        ("executorch", "pip install 'pocketdx[executorch]'"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command_that_brings_it(
    file_format: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketdx_export.targets.find_spec", lambda _: None)
    with pytest.raises(ExportError) as refused:
        choose_targets((file_format,), ())
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)
    assert file_format not in {target.format for target in choose_targets((), (), has_data=False)}


def test_without_tflite_support_alone_its_own_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> object:
        return None if name == "tensorflow_lite_support" else object()

    monkeypatch.setattr("pocketdx_export.targets.find_spec", found)
    with pytest.raises(ExportError, match=r"needs tensorflow_lite_support: .*--no-deps tflite-support==0\.4\.4"):
        choose_targets(("tflite",), ("fp32",))


class TestWhatCannotRunHere:
    """A format that no backend of this machine runs, without its converter's minutes."""

    @pytest.fixture
    def export_unrun(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        def export(examine: Any) -> Bundle:
            class Home:
                @staticmethod
                def write(_target: Target, _material: Material, path: Path) -> None:
                    path.mkdir()
                    (path / "part").write_bytes(b"12345")

                examined = staticmethod(examine)

            honest = formats._module
            monkeypatch.setattr(formats, "_module", lambda name: Home if name == "coreml" else honest(name))
            monkeypatch.setattr("pocketdx_export.backends.coreml.absent", lambda: "no Mac here")
            lines: list[str] = []
            targets = choose_targets(("onnx",), ("fp32",)) + tuple(t for t in TARGETS if t.format == "coreml")
            self.lines = lines
            return export_run(run, tmp_path / "bundle", targets, say=lines.append)

        return export

    @pytest.mark.slow
    def test_counts_after_its_specification_was_checked_and_the_bundle_says_that_it_was_not_run(
        self, export_unrun: Any
    ) -> None:
        bundle = export_unrun(lambda _path, _manifest: None)
        listed = json.loads((bundle.folder / "manifest.json").read_text())["files"]
        assert {each["file"]: each["checked"] for each in listed} == {
            "model.fp32.onnx": "onnxruntime",
            "model.fp16.mlpackage": "specification",
        }
        assert "specification checked, NOT run: no Mac here" in self.lines[-1]
        assert listed[1]["bytes"] == 5
        assert "model.fp16.mlpackage/part" in (bundle.folder / "SHA256SUMS").read_text()

    def test_leaves_nothing_behind_when_its_specification_is_wrong(self, export_unrun: Any) -> None:
        def refuse(path: Path, manifest: object) -> None:
            raise ExportError("model.fp16.mlpackage: its specification has another input")

        bundle = export_unrun(refuse)
        assert "another input" in bundle.failed["coreml-fp16"]
        assert not (bundle.folder / "model.fp16.mlpackage").exists()


@pytest.mark.slow
def test_a_file_that_nothing_here_runs_and_nothing_examines_is_not_exported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Home:
        @staticmethod
        def write(_target: Target, _material: Material, path: Path) -> None:
            path.write_bytes(b"TFL3")

    honest = formats._module
    monkeypatch.setattr(formats, "_module", lambda name: Home if name == "tflite" else honest(name))
    monkeypatch.setattr("pocketdx_export.backends.litert.absent", lambda: "not on this machine")
    targets = choose_targets(("onnx",), ("fp32",)) + tuple(t for t in TARGETS if t.name == "tflite-fp32")
    bundle = export_run(run, tmp_path / "bundle", targets)
    assert "does not run here (litert: not on this machine)" in bundle.failed["tflite-fp32"]
    assert [path.name for _, path in bundle.files] == ["model.fp32.onnx"]


def test_what_a_failed_target_wrote_beside_its_file_goes_too(tmp_path: Path) -> None:
    for name in ("model.fp32.ort", "model.fp32.ort.required_operators.config", "model.fp32.onnx"):
        (tmp_path / name).touch()
    bundle_module._remove(tmp_path / "model.fp32.ort")
    assert [path.name for path in tmp_path.iterdir()] == ["model.fp32.onnx"]


def test_noise_of_converters_stays_away_and_errors_do_not(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    from pocketdx_export.noise import silenced

    @silenced()
    def convert() -> None:
        print("chatter")
        os.write(2, b"more chatter\n")
        raise ValueError("real")

    with pytest.raises(ValueError, match="real"):
        convert()
    print("heard")
    assert capfd.readouterr() == ("heard\n", "")


def test_a_truncated_copy_of_a_folder_model_is_found_by_the_sums(with_ort: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(with_ort.folder, tmp_path / "copy"))
    operators_file(copy / "model.fp32.ort").unlink()
    with pytest.raises(ExportError, match=r"required_operators\.config: missing"):
        Bundle.open(copy)


def test_a_manifest_is_read_from_a_file_of_any_onnx_kind(with_ort: Bundle, bundle: Bundle) -> None:
    assert manifest_in("ort", path_of(with_ort, "ort-fp32")) == with_ort.manifest
    assert manifest_in("onnx", path_of(bundle, "onnx-fp32")) == bundle.manifest


def test_backends_of_phone_formats_are_given_pictures_of_the_networks_size() -> None:
    assert {each.name for each in BACKENDS if not each.resizes} >= {"litert", "task-library", "executorch", "coreml"}
