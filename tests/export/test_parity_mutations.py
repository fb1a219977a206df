"""Proof that parity can fail: an export is broken in every realistic way we know, and each is caught where it is.

The network is small (V3-small at 64 px) and its weights are random, but its answers differ from picture to picture.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from graph_surgery import (
    change,
    change_manifest,
    first_weight,
    insert_after,
    manifest_of,
    node_of,
    replace_initializer,
    set_attribute,
)
from lively import lively_network
from pocketdx_export.bundle import Bundle
from pocketdx_export.parity import Report, compare_file
from pocketdx_export.parity.report import LEVELS
from pocketdx_export.parity.tolerances import Tolerances
from pocketdx_export.quantize import biases, qdq
from pocketdx_export.quantize.calibration import Images
from pocketdx_export.quantize.integer import Quantizer, Recipe
from pocketdx_export.quantize.weights import Pairs
from pocketdx_runtime import image
from pocketdx_runtime._formats import exif
from pocketdx_runtime.machine import describe_machine
from pocketdx_runtime.manifest import Quantization, Thresholds
from pocketdx_train.architectures import Network
from pocketdx_train.evaluation import ChosenSet, choose_set
from pocketdx_train.run import RUN_FILE, WEIGHTS_FILE, Run, digest, write_json

Breaking = Callable[[onnx.ModelProto], None]
Compare = Callable[[Breaking], Report]


@pytest.fixture(scope="module")
def chosen(run: Run, pictures: Path, cache: Path) -> ChosenSet:
    return choose_set(pictures, run.record.labels, 64, split=None, run=run, cache=cache)


@pytest.fixture
def compare_broken(bundle: Bundle, run: Run, chosen: ChosenSet, tmp_path: Path) -> Compare:
    """Break a copy of the exported file, and compare it."""

    def compare(breaking: Breaking) -> Report:
        model = onnx.load(bundle.files[0][1])
        breaking(model)
        onnx.checker.check_model(model)
        path = tmp_path / "broken.fp32.onnx"
        onnx.save(model, path)
        return compare_file(path, run, chosen, limit=24)

    return compare


def first_red(report: Report) -> str:
    """The first level that is red; what is broken early shows late, too."""
    return min((check.level for check in report.failed), key=LEVELS.index)


def red(report: Report) -> set[tuple[str, str]]:
    return {(check.level, check.road) for check in report.failed}


# --- preprocessing -------------------------------------------------------------------------------------------------


def mean_and_std_swapped(model: onnx.ModelProto) -> None:
    """(x - std) / mean instead of (x - mean) / std."""
    offset, factor = (
        numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == name)).copy()
        for name in ("offset", "factor")
    )
    change(model, "offset", lambda _: 1 / factor)
    change(model, "factor", lambda _: 1 / offset)


def std_scaled(model: onnx.ModelProto) -> None:
    change(model, "factor", lambda factor: factor * 1.02)


def factors_of_the_channels_reversed(model: onnx.ModelProto) -> None:
    change(model, "factor", lambda factor: factor[:, ::-1])


def bgr(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    tensor = node_of(model, "Transpose").output[0]
    insert_after(model, tensor, helper.make_node("Gather", ["", "bgr"], ["swapped"], axis=1))


def no_antialias(model: onnx.ModelProto) -> None:
    resize = node_of(model, "Resize")
    set_attribute(resize, "antialias", 0)
    set_attribute(resize, "exclude_outside", 0)  # goes with antialias only


def bicubic(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Resize"), "mode", "cubic")


def nearest(model: onnx.ModelProto) -> None:
    no_antialias(model)
    set_attribute(node_of(model, "Resize"), "mode", "nearest")


def half_a_pixel_off(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Resize"), "coordinate_transformation_mode", "asymmetric")


def corners_aligned(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Resize"), "coordinate_transformation_mode", "align_corners")


def crop_instead_of_squash(model: onnx.ModelProto) -> None:
    """Resize the shorter side to S, then cut the middle out, as torchvision's own preprocessing does."""
    resize = node_of(model, "Resize")
    size = manifest_of(model).preprocessing.size
    resized = resize.output[0]
    for name, values in (("square", np.array([size, size])), ("sides", np.array([2, 3]))):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    del resize.input[3:]
    resize.input.append("square")
    set_attribute(resize, "axes", [2, 3])
    set_attribute(resize, "keep_aspect_ratio_policy", "not_smaller")
    crop = helper.make_node("CenterCropPad", ["", "square"], ["cropped"], axes=[2, 3])
    insert_after(model, resized, crop)


# --- the network ---------------------------------------------------------------------------------------------------


def a_zeroed_channel(model: onnx.ModelProto) -> None:
    def zero(weights: np.ndarray) -> np.ndarray:
        weights[np.abs(weights).sum((1, 2, 3)).argmax()] = 0
        return weights

    change(model, first_weight(model), zero)


def a_flipped_exponent_bit(model: onnx.ModelProto) -> None:
    def flip(weights: np.ndarray) -> np.ndarray:
        bits = weights.reshape(-1).view(np.uint32)
        bits[np.abs(weights).argmax()] ^= np.uint32(1 << 24)
        return weights

    change(model, first_weight(model), flip)


def a_weight_off_by_one_percent(model: onnx.ModelProto) -> None:
    def perturb(weights: np.ndarray) -> np.ndarray:
        flat = weights.reshape(-1)
        flat[np.abs(flat).argmax()] *= 1.01
        return weights

    change(model, first_weight(model), perturb)


def softmax_twice(model: onnx.ModelProto) -> None:
    softmax = node_of(model, "Softmax")
    softmax.output[0] = "once"
    model.graph.node.append(helper.make_node("Softmax", ["once"], ["probabilities"], axis=1))


def temperature_lost(model: onnx.ModelProto) -> None:
    softmax = node_of(model, "Softmax")
    softmax.input[0] = "logits"
    model.graph.node.remove(next(node for node in model.graph.node if node.output[0] == "div"))


def embedding_of_any_length(model: onnx.ModelProto) -> None:
    division = next(node for node in model.graph.node if "embedding" in node.output)
    division.output[0] = "unit"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3.0), "three"))
    model.graph.node.append(helper.make_node("Mul", ["unit", "three"], ["embedding"]))


# --- what the file says of itself ----------------------------------------------------------------------------------


def labels_permuted(model: onnx.ModelProto) -> None:
    change_manifest(model, labels=("stripes", "blobs"))


def another_temperature_in_the_manifest(model: onnx.ModelProto) -> None:
    change_manifest(model, temperature=manifest_of(model).temperature + 0.5)


IN_THE_GRAPH: list[tuple[Breaking, str, str]] = [
    (mean_and_std_swapped, "pixels", "runtime"),
    (std_scaled, "pixels", "runtime"),
    (factors_of_the_channels_reversed, "pixels", "runtime"),
    (bgr, "pixels", "runtime"),
    (no_antialias, "pixels", "graph"),
    (bicubic, "pixels", "graph"),
    (nearest, "pixels", "graph"),
    (crop_instead_of_squash, "pixels", "graph"),
    (half_a_pixel_off, "pixels", "graph"),
    (corners_aligned, "pixels", "graph"),
    (softmax_twice, "numbers", "runtime"),
    (temperature_lost, "numbers", "runtime"),
    (a_zeroed_channel, "numbers", "runtime"),
    (a_flipped_exponent_bit, "numbers", "runtime"),
    (a_weight_off_by_one_percent, "numbers", "runtime"),
    (embedding_of_any_length, "numbers", "runtime"),
    (labels_permuted, "manifest", ""),
    (another_temperature_in_the_manifest, "manifest", ""),
]


@pytest.mark.parametrize(("breaking", "level", "road"), IN_THE_GRAPH, ids=[each[0].__name__ for each in IN_THE_GRAPH])
def test_a_broken_file_is_red_first_at_the_level_where_it_is_broken(
    compare_broken: Compare, breaking: Breaking, level: str, road: str
) -> None:
    report = compare_broken(breaking)
    assert not report, report.table()
    assert (level, road) in red(report), report.table()
    assert first_red(report) == level, report.table()


def test_permuted_labels_are_wrong_decisions_although_every_number_is_right(compare_broken: Compare) -> None:
    report = compare_broken(labels_permuted)
    assert {level for level, _ in red(report)} == {"manifest", "decisions", "clinic"}, report.table()
    (cell,) = report.cells
    assert len(cell.flips) == 24


# --- faults that are not in the graph ------------------------------------------------------------------------------


def with_record(run: Run, folder: Path, **changes: object) -> Run:
    """A copy of a run that says something else."""
    shutil.copytree(run.folder, folder)
    write_json(folder / RUN_FILE, dataclasses.replace(run.record, **changes))
    return Run.open(folder)


def test_a_lost_threshold_is_found_in_the_manifest_and_in_the_decisions(
    bundle: Bundle, run: Run, chosen: ChosenSet, tmp_path: Path
) -> None:
    careful = with_record(run, tmp_path / "run", thresholds=Thresholds((0.35, 0.2), "sensitivity of 0.95"))
    kept, lost = onnx.load(bundle.files[0][1]), onnx.load(bundle.files[0][1])
    change_manifest(kept, thresholds=careful.record.thresholds)
    onnx.save(kept, tmp_path / "kept.fp32.onnx")
    onnx.save(lost, tmp_path / "lost.fp32.onnx")
    assert compare_file(tmp_path / "kept.fp32.onnx", careful, chosen)
    report = compare_file(tmp_path / "lost.fp32.onnx", careful, chosen)
    assert {level for level, _ in red(report)} >= {"manifest", "decisions"}, report.table()
    assert "numbers" not in {level for level, _ in red(report)}
    assert {flip.kind for flip in report.cells[0].flips} == {"threshold"}


@pytest.fixture
def turned_photos(tmp_path: Path, run: Run, cache: Path, pictures: Path) -> ChosenSet:
    """Photographs that lie on their side, and say so in their EXIF."""
    for label in run.record.labels:
        (tmp_path / "photos" / "test" / label).mkdir(parents=True)
        for number, path in enumerate(sorted((pictures / "test" / label).iterdir())[:6]):
            tag = Image.Exif()
            tag[exif.ORIENTATION] = 6
            with Image.open(path) as picture:
                picture.convert("RGB").save(
                    tmp_path / "photos" / "test" / label / f"{number}.jpg", exif=tag, quality=95
                )
    return choose_set(tmp_path / "photos", run.record.labels, 64, split=None, run=run, cache=cache)


def test_ignored_exif_is_found_in_the_pixels(
    bundle: Bundle, run: Run, turned_photos: ChosenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare_file(bundle.files[0][1], run, turned_photos)
    honest = image.load

    def without_exif(source: Path, size: int, **options: object) -> NDArray[np.uint8]:
        with Image.open(source) as picture:
            return honest(Image.fromarray(np.asarray(picture.convert("RGB"))), size)

    monkeypatch.setattr(image, "load", without_exif)
    report = compare_file(bundle.files[0][1], run, turned_photos)
    assert first_red(report) == "pixels", report.table()
    assert ("pixels", "runtime") in red(report)


def folded(network: Network) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Weights of every layer as the exporter writes them: batch norms folded into the convolutions before them.

    Computed here, apart from the exporter: w' = w g / sqrt(v + e), b' = b - m g / sqrt(v + e).
    """
    modules = dict(network.backbone.named_modules())
    for name, module in modules.items():
        norm = modules.get(f"{name.rpartition('.')[0]}.1")
        if isinstance(module, torch.nn.Conv2d) and name.endswith(".0") and isinstance(norm, torch.nn.BatchNorm2d):
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            yield f"network.backbone.{name}.weight", (module.weight * factor.view(-1, 1, 1, 1)).detach().numpy()
            bias = norm.bias - norm.running_mean * factor
            yield f"network.backbone.{name}.weight_bias", bias.detach().numpy()
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            yield f"network.backbone.{name}.weight", module.weight.detach().numpy()
            yield f"network.backbone.{name}.bias", module.bias.detach().numpy()


def put_weights(model: onnx.ModelProto, network: Network) -> None:
    for name, values in folded(network):
        replace_initializer(model, name, values)


def test_folding_weights_by_hand_gives_what_the_exporter_gives(bundle: Bundle, run: Run) -> None:
    """So that the tests below stand for exports, at a hundredth of the time."""
    exported = {each.name: numpy_helper.to_array(each) for each in onnx.load(bundle.files[0][1]).graph.initializer}
    own = dict(folded(run.network()))
    assert {name for name in exported if name.startswith("network.")} == set(own)
    for name, values in own.items():
        np.testing.assert_allclose(values, exported[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_stale_batch_norms_are_found_in_the_numbers(compare_broken: Compare, run: Run) -> None:
    """Statistics of an earlier epoch beside the last weights."""

    def stale(model: onnx.ModelProto) -> None:
        network = run.network()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.mul_(0.98)
                module.running_var.mul_(0.98).add_(0.02)
        put_weights(model, network)

    report = compare_broken(stale)
    assert first_red(report) == "numbers", report.table()
    jump = report.cells[0].jump
    assert jump is not None
    assert (jump.operator, jump.tensor) == ("Conv", "getitem")


# --- where it begins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [3, 20, 45])
def test_the_first_wrong_tensor_is_named_with_its_operator(compare_broken: Compare, place: int) -> None:
    broken: list[onnx.NodeProto] = []

    def weaken(model: onnx.ModelProto) -> None:
        node = [each for each in model.graph.node if each.op_type == "Conv"][place]
        change(model, node.input[1], lambda weights: weights * 0.7)
        broken.append(node)

    report = compare_broken(weaken)
    jump = report.cells[0].jump
    assert jump is not None, report.table()
    assert (jump.tensor, jump.operator) == (broken[0].output[0], "Conv")
    assert jump.before < 1e-4 < jump.after
    assert jump.reference is not None
    assert jump.ours is not None
    assert jump.reference.std > jump.ours.std
    assert broken[0].name in report.table()


# --- int8 ----------------------------------------------------------------------------------------------------------

# Of this network, whose weights are random; the table's row for int8 is that of trained ones.
INT8 = Tolerances(
    pixel_max=1.05,
    pixel_mean=0.35,
    scaled_max=12.0,
    scaled_mean=0.5,
    logits_max=1.2,
    logits_mean=0.3,
    probabilities_max=0.4,
    cosine_min=0.0,
    length_max=1e-5,
    agreement_min=0.9,
    auc_max=0.2,
    sqnr_min=0.0,
    saturation_max=0.2,
)


@pytest.fixture(scope="module")
def calibration(chosen: ChosenSet, run: Run) -> Images:
    """Pictures of the kind that is compared; of the training split."""
    positions = [i for i, record in enumerate(chosen.data.records) if record.split == "train"][:48]
    labels = [run.record.labels.index(chosen.data.records[i].label) for i in positions]
    names = tuple(chosen.data.records[i].name for i in positions)
    return Images(names, np.array(labels, np.int64), np.array(chosen.data.pixels[positions]))


def int8_file(bundle: Bundle, images: Images, path: Path) -> Path:
    """As `pocketdx export` makes it, from the exported fp32 file."""
    quantizer = Quantizer(onnx.load(bundle.files[0][1]), images)
    model = quantizer.graph(Recipe(quantizer.names))
    change_manifest(model, precision="int8", quantization=Quantization(weights="int8"))
    onnx.save(model, path)
    return path


def compare_int8(path: Path, run: Run, chosen: ChosenSet) -> Report:
    return compare_file(path, run, chosen, tolerances=INT8, backends=("onnxruntime", "onnxruntime-plain"))


def test_an_honest_int8_file_passes(
    bundle: Bundle, run: Run, chosen: ChosenSet, calibration: Images, tmp_path: Path
) -> None:
    report = compare_int8(int8_file(bundle, calibration, tmp_path / "honest.int8.onnx"), run, chosen)
    assert report, report.table()


def test_a_wrong_calibration_range_is_found_in_the_numbers(
    bundle: Bundle, run: Run, chosen: ChosenSet, calibration: Images, tmp_path: Path
) -> None:
    """Calibrated on pictures without contrast: brighter and darker ones leave the range and are clipped."""
    grey = dataclasses.replace(calibration, pixels=calibration.pixels // 8 + 110)
    report = compare_int8(int8_file(bundle, grey, tmp_path / "clipped.int8.onnx"), run, chosen)
    assert first_red(report) == "numbers", report.table()
    assert all(cell.red for cell in report.cells), "it is wrong however it is computed"
    jump = report.cells[0].jump
    assert jump is not None
    assert jump.reference is not None
    assert jump.ours is not None
    assert jump.ours.high < jump.reference.high


SATURATES = "avx2" in describe_machine().flags and not {"avx_vnni", "avx512_vnni"} & set(describe_machine().flags)


@pytest.mark.skipif(not SATURATES, reason="needs an x86 whose int8 kernels saturate: AVX2 without VNNI")
def test_saturating_int8_is_red_in_the_default_kernels_alone(
    bundle: Bundle,
    run: Run,
    chosen: ChosenSet,
    calibration: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full 8-bit weights: two products overflow the 16 bits in which this processor adds them."""
    for module in (qdq, biases):
        monkeypatch.setattr(module, "pairs_of", lambda *_: Pairs.NONE)
    report = compare_int8(int8_file(bundle, calibration, tmp_path / "saturating.int8.onnx"), run, chosen)
    default, plain = report.cells
    assert plain, report.table()
    assert default.red
    assert "saturation_max" in {check.limit for check in default.failed}
    assert {check.level for check in default.failed} == {"numbers"}
    assert "integer saturation" in str(default.jump)


# --- no false alarm ------------------------------------------------------------------------------------------------

SEEDS = 20


@pytest.mark.slow
def test_an_honest_export_passes_twenty_seeds_in_a_row(
    bundle: Bundle, run: Run, chosen: ChosenSet, tmp_path: Path
) -> None:
    """Twenty networks, each with its own weights, in the run and in the file.

    The graph is exported once, and each network's weights are put into it as the exporter would write them: only
    exporting anew is left out, which `test_folding_weights_by_hand_gives_what_the_exporter_gives` stands for.
    """
    pixels = np.array(chosen.data.pixels[::2])
    for seed in range(SEEDS):
        network = lively_network(run.record.settings.architecture, run.record.preprocessing, pixels, seed=seed)
        folder = tmp_path / f"run-{seed}"
        shutil.copytree(run.folder, folder)
        save_file(
            {name: value.contiguous() for name, value in network.backbone.state_dict().items()}, folder / WEIGHTS_FILE
        )
        weights = digest(folder / WEIGHTS_FILE)
        write_json(folder / RUN_FILE, dataclasses.replace(run.record, weights_digest=weights))
        model = onnx.load(bundle.files[0][1])
        put_weights(model, network)
        change_manifest(model, weights_digest=weights)
        onnx.save(model, tmp_path / "model.fp32.onnx")
        report = compare_file(tmp_path / "model.fp32.onnx", Run.open(folder), chosen)
        assert report, f"seed {seed}\n{report.table()}"
        shutil.rmtree(folder)
