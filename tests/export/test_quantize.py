"""Lossy precisions of a whole network: small, near to fp32, within their budget, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from pocketdx_export.bundle import Bundle, export_run, manifest_of
from pocketdx_export.commands import export
from pocketdx_export.deploy import DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.golden import add_own_answers, golden_archive
from pocketdx_export.graph import copied
from pocketdx_export.material import Material
from pocketdx_export.parity.tolerances import TOLERANCES
from pocketdx_export.quantize.budget import Budget
from pocketdx_export.quantize.calibration import Images, RunImages
from pocketdx_export.quantize.equalize import equalize, shared_channels
from pocketdx_export.quantize.integer import Quantizer, Recipe
from pocketdx_export.quantize.sessions import logits_of, opened
from pocketdx_export.quantize.trial import Judge
from pocketdx_export.targets import choose_targets
from pocketdx_runtime.manifest import Quantization
from pocketdx_runtime.model import Model
from pocketdx_runtime.selftest import run_selftest
from pocketdx_train.run import Run


def count_integer_nodes(models: Mapping[str, onnx.ModelProto], size: int, rounds: int) -> dict[str, list[float]]:
    """A timer that does not depend on the machine: each integer node makes a network faster."""
    return {
        name: [1.0 / (1 + sum(node.op_type == "QuantizeLinear" for node in model.graph.node) / 100)] * rounds
        for name, model in models.items()
    }


@pytest.fixture(scope="module")
def material(run: Run, pictures: Path, cache: Path) -> Material:
    module = DeployModule(run.network(), run.record.temperature).eval()
    return Material(
        run,
        module,
        manifest_of(run, "drawn"),
        pictures,
        cache,
        budget=Budget(auc=0.3, agreement=0.6),
        timer=count_integer_nodes,
    )


@pytest.fixture(scope="module")
def images(run: Run, pictures: Path, cache: Path) -> RunImages:
    return RunImages.open(run, pictures, cache)


@pytest.fixture(scope="module")
def quantizer(material: Material, images: RunImages) -> Quantizer:
    return Quantizer(material.fp32_graph, images.calibration(32))


def same_top(model: onnx.ModelProto, other: onnx.ModelProto, pixels: np.ndarray) -> float:
    first, second = (logits_of(opened(each), pixels).argmax(axis=1) for each in (model, other))
    return float((first == second).mean())


class TestWeightOnly:
    @pytest.mark.parametrize(("precision", "size", "error"), [("fp16", 0.52, 0.02), ("w8", 0.30, 0.1)])
    def test_it_is_small_and_near_to_fp32(
        self, precision: str, size: float, error: float, material: Material, images: RunImages
    ) -> None:
        fp32, small = material.fp32_graph, material.graph(precision)
        assert small.ByteSize() <= size * fp32.ByteSize()
        pixels = images.split("val").pixels
        expected, found = (logits_of(opened(each), pixels) for each in (fp32, small))
        assert np.abs(found - expected).max() < error * np.abs(expected).max()
        assert np.abs(found - expected).max() > 0  # else nothing was rounded

    def test_it_computes_in_float32_whatever_onnxruntime_optimizes(self, material: Material, images: RunImages) -> None:
        pixels = images.split("val").pixels[:4]
        fast, plain = (opened(material.graph("w8"), optimize=optimize) for optimize in (True, False))
        np.testing.assert_allclose(logits_of(fast, pixels), logits_of(plain, pixels), atol=1e-4)

    def test_rounded_for_its_inputs_it_is_nearer_than_by_itself_and_names_the_images(
        self, material: Material, images: RunImages
    ) -> None:
        blind = replace(material, data=None)
        pixels = images.split("val").pixels
        expected = logits_of(opened(material.fp32_graph), pixels)
        found = [logits_of(opened(each.graph("w8")), pixels) for each in (material, blind)]
        errors = [np.square(each - expected).mean() for each in found]
        assert errors[0] < 0.7 * errors[1]
        known, unknown = (each.manifest("w8").quantization for each in (material, blind))
        assert known is not None
        assert unknown is not None
        assert known.calibration_images == images.calibration().names
        assert not unknown.calibration_images

    def test_with_too_few_images_it_is_rounded_by_itself_and_says_so(
        self, material: Material, pictures: Path, tmp_path: Path
    ) -> None:
        part = shutil.copytree(pictures, tmp_path / "part")
        shutil.rmtree(part / "train" / "stripes")
        said: list[str] = []
        quantization = self.w8_of(replace(material, data=part, say=said.append))
        assert not quantization.calibration_images
        assert said
        assert "no training image of the class stripes" in said[0]

    def w8_of(self, material: Material) -> Quantization:
        material.graph("w8")
        found = material.manifest("w8").quantization
        assert found is not None
        return found

    def test_the_fp32_graph_is_left_as_it_was(self, material: Material) -> None:
        material.graph("w8")
        assert not any(each.name.endswith((".int8", ".fp16")) for each in material.fp32_graph.graph.initializer)


class TestCalibrationImages:
    def test_they_are_of_the_training_split_as_many_of_each_class_and_always_the_same(self, images: RunImages) -> None:
        chosen, again = images.calibration(32), images.calibration(32)
        assert all(name.startswith("train/") for name in chosen.names)
        assert np.bincount(chosen.truth).tolist() == [16, 16]
        assert chosen.names == again.names
        assert images.calibration(32, seed=1).names != chosen.names

    def test_a_missing_class_is_named(self, pictures: Path, cache: Path, run: Run, tmp_path: Path) -> None:
        part = shutil.copytree(pictures, tmp_path / "part")
        shutil.rmtree(part / "train" / "stripes")
        with pytest.raises(ExportError, match="no training image of the class stripes"):
            RunImages.open(run, part, cache).calibration()

    def test_too_few_are_refused_with_their_number(self, pictures: Path, cache: Path, run: Run, tmp_path: Path) -> None:
        part = shutil.copytree(pictures, tmp_path / "part")
        for path in sorted((part / "train" / "blobs").iterdir())[3:]:
            path.unlink()
        with pytest.raises(ExportError, match=r"3 training images of the class blobs.*8 or more"):
            RunImages.open(run, part, cache).calibration()

    def test_other_images_are_refused(self, pictures: Path, cache: Path, run: Run, tmp_path: Path) -> None:
        other = tmp_path / "other"
        for kind in ("blobs", "stripes"):
            (other / kind).mkdir(parents=True)
            shutil.copy(pictures / "train" / kind / "drawn_0.png", other / kind / "new.png")
        with pytest.raises(ExportError, match=r"none of its images is one that .* was trained on"):
            RunImages.open(run, other, cache)


class TestInt8:
    def test_x86_without_vnni_computes_what_all_others_compute(self, quantizer: Quantizer, images: RunImages) -> None:
        model = quantizer.graph(Recipe(quantizer.names))
        pixels = images.split("val").pixels
        fast, exact = (logits_of(opened(model, safe=safe), pixels) for safe in (False, True))
        np.testing.assert_array_equal(fast, exact)

    def test_blocks_left_in_float_have_no_integers_but_small_weights(self, quantizer: Quantizer) -> None:
        (first, *_) = quantizer.names
        graph = quantizer.graph(Recipe((first,))).graph
        quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        whole = quantizer.graph(Recipe(quantizer.names)).graph
        assert 0 < len(quantized) < sum(node.op_type == "QuantizeLinear" for node in whole.node) / 4
        stored = sum(each.ByteSize() for each in graph.initializer)
        assert stored < 0.32 * sum(each.ByteSize() for each in quantizer.model.graph.initializer)

    def test_equalisation_changes_the_weights_and_not_the_function(
        self, quantizer: Quantizer, images: RunImages
    ) -> None:
        model = copied(quantizer.model)
        factors = equalize(model, quantizer._observe(False).seen)
        assert factors
        assert len(factors) >= len(shared_channels(quantizer.model.graph, quantizer._observe(False).seen))
        pixels = images.split("val").pixels[:8]
        before, after = (logits_of(opened(each), pixels) for each in (quantizer.model, model))
        np.testing.assert_allclose(after, before, atol=2e-4 * np.abs(before).max())

    def test_bias_correction_lessens_the_mean_error(self, quantizer: Quantizer, images: RunImages) -> None:
        pixels = images.calibration(32).pixels
        reference = logits_of(opened(quantizer.model), pixels)
        means = [
            np.abs(
                (logits_of(opened(quantizer.graph(Recipe(quantizer.names, corrected=on))), pixels) - reference).mean(0)
            )
            for on in (True, False)
        ]
        assert means[0].sum() < means[1].sum()

    @pytest.mark.slow
    def test_the_search_ends_within_its_budget_and_shows_its_path(self, material: Material, images: RunImages) -> None:
        graph = material.graph("int8")
        found = material.manifest("int8").quantization
        assert found is not None
        assert material.budget is not None
        assert found.integer_blocks
        assert set(found.calibration_images) <= set(images.calibration().names)
        assert found.validation["agreement"] >= material.budget.agreement
        pixels = images.split("val").pixels
        assert same_top(graph, material.fp32_graph, pixels) == pytest.approx(found.validation["agreement"])
        report = json.loads(material.reports["int8_search.json"])
        chosen = next(each for each in report["candidates"] if each["name"] == report["chosen"])
        assert tuple(chosen["recipe"]["integer"]) == found.integer_blocks
        assert {"fp32", "w8"} < {each["name"] for each in report["candidates"]}
        assert report["advice"]
        assert material.reports["int8_search.png"].startswith(b"\x89PNG")

    @pytest.mark.slow
    def test_an_impossible_budget_is_one_line_and_still_shows_the_path(self, material: Material) -> None:
        strict = replace(material, budget=Budget(auc=0.0, agreement=1.0))
        with pytest.raises(
            ExportError, match=r"candidates holds the budget auc=0,agreement=1 on validation.*--qat"
        ) as found:
            strict.graph("int8")
        assert "\n" not in str(found.value)
        assert json.loads(strict.reports["int8_search.json"])["chosen"] is None

    def test_a_graph_without_layers_that_have_integer_kernels_is_refused(self, images: RunImages) -> None:
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Cast", ["image"], ["logits"], to=1)],
            "g",
            [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", "H", "W", 3])],
            [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        )
        with pytest.raises(ExportError, match="no int8 of it"):
            Quantizer(onnx.helper.make_model(graph), images.calibration(32))

    def test_no_validation_image_is_an_error_not_a_perfect_score(self, material: Material) -> None:
        nothing = Images((), np.zeros(0, np.int64), np.zeros((0, 64, 64, 3), np.uint8))
        with pytest.raises(ExportError, match="no validation image"):
            Judge(material.fp32_graph, nothing, 1.0)


class TestBundle:
    @pytest.mark.slow
    def test_a_target_that_fails_is_named_and_the_others_are_there(self, run: Run, tmp_path: Path) -> None:
        arguments = ["--precision", "fp32", "--precision", "int8", "--format", "onnx"]
        result = CliRunner().invoke(export, [str(run.folder), "--out", str(tmp_path / "bundle"), *arguments])
        assert result.exit_code == 2
        bundle = Bundle.open(tmp_path / "bundle")
        assert [target.name for target, _ in bundle.files] == ["onnx-fp32"]
        assert "--data" in bundle.failed["onnx-int8"]

    def test_without_data_and_unasked_int8_is_no_target(self) -> None:
        assert "int8" not in {target.precision for target in choose_targets((), (), has_data=False)}
        assert "int8" in {target.precision for target in choose_targets((), ("int8",), has_data=False)}

    @pytest.mark.slow
    def test_an_int8_file_passes_its_self_test_and_a_changed_one_does_not(
        self, material: Material, tmp_path: Path
    ) -> None:
        golden, path = tmp_path / "golden.npz", tmp_path / "model.int8.onnx"
        golden.write_bytes(golden_archive(material.module, TOLERANCES.golden()))
        model = material.graph("int8")
        add_own_answers(golden, model, "int8", TOLERANCES.golden()["fp32"])
        onnx.save(model, path)
        result = run_selftest(Model(path), golden)
        assert result
        assert result.reference == "this file, when it was exported"
        changed = copied(model)
        scale = next(each for each in changed.graph.initializer if each.name.endswith(".ws"))
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.3), scale.name))
        onnx.save(changed, path)
        assert not run_selftest(Model(path), golden)

    @pytest.mark.slow
    def test_everything_of_onnx_is_exported_with_its_report(
        self, run: Run, pictures: Path, cache: Path, tmp_path: Path
    ) -> None:
        bundle = export_run(
            run,
            tmp_path / "bundle",
            choose_targets(("onnx",), ()),
            data=pictures,
            cache=cache,
            budget=Budget(auc=0.3, agreement=0.6),
            timer=count_integer_nodes,
        )
        assert {target.precision for target, _ in bundle.files} == {"fp32", "fp16", "w8", "int8"}
        assert (bundle.folder / "int8_search.png").is_file()
        for _, path in bundle.files:
            assert run_selftest(Model(path), bundle.folder / "golden.npz")


@pytest.mark.slow
def test_fine_tuning_brings_8_bits_nearer_to_the_network_and_leaves_it_as_it_was(run: Run, images: RunImages) -> None:
    pytest.importorskip("torchao")
    import torch

    from pocketdx_export.quantize.qat import FineTuning, fine_tune

    network = run.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lines: list[str] = []
    settings = FineTuning(steps=24, batch=16, lr=2e-5, checks=3)
    tuned = fine_tune(network, images.split("train").pixels, images.split("val").pixels, settings, lines.append)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    errors = [float(line.split("error in logits ")[1].split()[0]) for line in lines]
    assert len(errors) == 4
    assert min(errors[1:]) < errors[0]  # which is that of rounding alone
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tuned.modules())


@pytest.mark.slow
def test_fine_tuning_that_lessens_nothing_leaves_the_weights_as_they_were(run: Run, images: RunImages) -> None:
    pytest.importorskip("torchao")
    import torch

    from pocketdx_export.quantize.qat import FineTuning, fine_tune, folded

    network = run.network()
    lines: list[str] = []
    settings = FineTuning(steps=2, batch=8, lr=0.3, checks=2)
    tuned = fine_tune(network, images.split("train").pixels, images.split("val").pixels, settings, lines.append)
    assert "did not lessen the error" in lines[-1]
    expected = folded(network).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in tuned.state_dict().items())
