"""Weights in 8 bits: rounded by themselves, rounded for the inputs that they meet, and equalised between layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketdx_export.graph import copied
from pocketdx_export.quantize.biases import correct_biases
from pocketdx_export.quantize.calibration import Statistics, observe
from pocketdx_export.quantize.equalize import equalize, shared_channels
from pocketdx_export.quantize.moments import Moments, input_moments
from pocketdx_export.quantize.qdq import Scale, insert_qdq
from pocketdx_export.quantize.rounding import Rounder, compensated
from pocketdx_export.quantize.sessions import opened
from pocketdx_export.quantize.weights import PAIR_LIMIT, Pairs, pairs_of, quantize_weight


def largest_pair(values: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Largest sum of two magnitudes in each row that a kernel may add in 16 bits."""
    magnitudes = np.abs(values.reshape(len(values), -1).astype(int))
    if pairs is Pairs.ANY:
        return np.sort(magnitudes, axis=1)[:, -2:].sum(axis=1)
    even = magnitudes.shape[1] // 2 * 2
    return magnitudes[:, :even].reshape(len(values), -1, 2).sum(axis=2).max(axis=1)


class TestRoundedByThemselves:
    @pytest.mark.parametrize("pairs", [Pairs.ANY, Pairs.NEIGHBOURS])
    def test_no_two_products_with_unsigned_activations_overflow_16_bits(self, pairs: Pairs) -> None:
        rng = np.random.default_rng(0)
        weight = rng.standard_t(2, (64, 17, 3, 3)).astype(np.float32)
        largest = largest_pair(quantize_weight(weight, pairs).values, pairs)
        assert largest.max() * 255 <= np.iinfo(np.int16).max
        assert largest.min() > 100  # and no channel wastes its bits

    def test_plain_int8_has_no_such_limit(self) -> None:
        weight = np.random.default_rng(0).normal(size=(8, 100)).astype(np.float32)
        assert np.abs(quantize_weight(weight).values).max() == 127

    def test_the_less_is_known_of_the_kernel_the_more_is_lost_but_never_more_than_with_7_bits(self) -> None:
        weight = np.random.default_rng(1).normal(size=(32, 50)).astype(np.float32)
        scale = np.abs(weight).max(axis=1, keepdims=True) / 63
        seven_bits = np.rint(weight / scale) * scale
        ways = [seven_bits, *(quantize_weight(weight, pairs).dequantized() for pairs in (Pairs.ANY, Pairs.NEIGHBOURS))]
        any_seven, any_two, neighbours = (((each - weight) ** 2).sum() for each in ways)
        assert neighbours < 0.6 * any_two
        assert any_two < any_seven

    def test_the_errors_of_a_channel_cancel(self) -> None:
        weight = np.random.default_rng(2).normal(size=(32, 400)).astype(np.float32)
        quantized = quantize_weight(weight, search=False)
        sums = (quantized.dequantized().astype(np.float64) - weight).sum(axis=1) / quantized.scales
        assert np.abs(sums).max() <= 0.51
        rounded = np.rint(weight / quantized.scales[:, np.newaxis])
        assert np.abs((rounded - weight / quantized.scales[:, np.newaxis]).sum(axis=1)).max() > 5
        # By rounding a few to the other side, none by more than a step.
        assert np.abs(quantized.values - rounded).max() == 1
        assert (quantized.values != rounded).mean() < 0.05
        assert np.abs(quantized.values).max() == 127

    @pytest.mark.parametrize("pairs", list(Pairs))
    def test_channels_of_zeros_or_of_a_single_weight_come_back(self, pairs: Pairs) -> None:
        weight = np.array([[0.0], [3.0], [-1e-20]], np.float32)
        np.testing.assert_allclose(quantize_weight(weight, pairs).dequantized(), weight, rtol=1e-2)


class TestRoundedForTheirInputs:
    @pytest.fixture
    def inputs(self) -> np.ndarray:
        """float64 [R, 40], that go together as channels do."""
        rng = np.random.default_rng(3)
        causes, noise = rng.normal(size=(4000, 12)), rng.normal(size=(4000, 40))
        return np.maximum(causes @ rng.normal(size=(12, 40)) + 0.1 * noise, 0)

    @pytest.mark.parametrize("pairs", list(Pairs))
    def test_outputs_vary_less_from_the_exact_ones(self, inputs: np.ndarray, pairs: Pairs) -> None:
        weight = np.random.default_rng(4).standard_t(3, (16, 40)).astype(np.float32)
        nearest = quantize_weight(weight, pairs)
        ours = compensated(weight, np.cov(inputs.T)[np.newaxis], pairs)
        before, after = (
            (inputs @ (each.dequantized().astype(np.float64) - weight).T).var(axis=0).sum() for each in (nearest, ours)
        )
        assert after < 0.5 * before
        if pairs is not Pairs.NONE:
            assert largest_pair(ours.values, pairs).max() <= PAIR_LIMIT

    def test_channels_of_a_depthwise_layer_are_rounded_each_for_its_own_input(self) -> None:
        rng = np.random.default_rng(5)
        weight = rng.normal(size=(6, 1, 3, 3)).astype(np.float32)
        mixing = rng.normal(size=(6, 9, 9))
        covariance = mixing @ mixing.transpose(0, 2, 1)
        together = compensated(weight, covariance)
        for channel in range(6):
            one = weight[channel : channel + 1]
            alone = compensated(one, covariance[channel : channel + 1])
            np.testing.assert_array_equal(together.values[channel], alone.values[0])

    def test_of_few_images_no_more_is_learnt_than_they_say(self) -> None:
        rng = np.random.default_rng(12)
        mixing = rng.normal(size=(12, 80))
        inputs = rng.normal(size=(4000, 12)) @ mixing + rng.normal(size=(4000, 80))
        few = inputs[:30]
        moments = Moments(few.mean(axis=0)[np.newaxis], np.cov(few.T, bias=True)[np.newaxis], len(few))
        weight = rng.normal(size=(16, 80)).astype(np.float32)
        rank = moments.covariance + 1e-3 * np.eye(80)
        errors = {
            name: (inputs @ (each.dequantized().astype(np.float64) - weight).T).var(axis=0).sum()
            for name, each in {
                "by itself": quantize_weight(weight),
                "as found": compensated(weight, rank),
                "shrunk": compensated(weight, moments.shrunk),
            }.items()
        }
        assert errors["shrunk"] < 0.9 * errors["by itself"]
        assert errors["shrunk"] < 0.9 * errors["as found"]

    def test_of_many_images_the_covariance_is_nearly_what_was_found(self, inputs: np.ndarray) -> None:
        moments = Moments(inputs.mean(axis=0)[np.newaxis], np.cov(inputs.T)[np.newaxis], len(inputs))
        scale = np.abs(moments.covariance).max()
        np.testing.assert_allclose(moments.shrunk, moments.covariance, atol=0.02 * scale)

    def test_inputs_that_never_vary_are_no_trouble(self) -> None:
        weight = np.random.default_rng(6).normal(size=(4, 8)).astype(np.float32)
        ours = compensated(weight, Moments(np.zeros((1, 8)), np.zeros((1, 8, 8)), 100).shrunk)
        assert np.abs(ours.dequantized() - weight).max() <= ours.scales.max()

    def test_a_weight_is_rounded_once(self, inputs: np.ndarray) -> None:
        weight = np.random.default_rng(7).normal(size=(4, 40)).astype(np.float32)
        rounder = Rounder({"w": Moments(inputs.mean(axis=0)[np.newaxis], np.cov(inputs.T)[np.newaxis], 4000)})
        first = rounder("w", weight, Pairs.NONE)
        assert rounder("w", weight, Pairs.NONE) is first
        assert rounder("w", weight, Pairs.ANY) is not first
        np.testing.assert_array_equal(rounder("unseen", weight, Pairs.NONE).values, quantize_weight(weight).values)


def network(*nodes: onnx.NodeProto, weights: Mapping[str, np.ndarray], side: int) -> onnx.ModelProto:
    """A float graph on pictures of `side` pixels, its output called `y`."""
    picture = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", side, side, 3])
    first = [
        helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["x"], "x", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        [*first, *nodes],
        "g",
        [picture],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def conv(source: str, result: str, weight: str, **attributes: object) -> onnx.NodeProto:
    """A convolution named like its result, with a bias."""
    return helper.make_node("Conv", [source, weight, f"{weight}_bias"], [result], result, **attributes)


def with_biases(weights: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {**weights, **{f"{name}_bias": rng.normal(size=len(value)) for name, value in weights.items()}}


class TestMoments:
    @pytest.mark.parametrize(
        ("shape", "attributes"),
        [
            ((5, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
            ((3, 1, 3, 3), {"group": 3}),
            ((5, 3, 1, 1), {}),
        ],
    )
    def test_with_a_weight_they_give_the_mean_and_the_variance_of_the_outputs(
        self, shape: tuple[int, ...], attributes: dict[str, object]
    ) -> None:
        rng = np.random.default_rng(8)
        side = 2 if "pads" in attributes else shape[2]  # one position, so that all are drawn
        weights = with_biases({"w": rng.normal(size=shape)}, rng)
        model = network(conv("x", "y", "w", **attributes), weights=weights, side=side)
        pixels = rng.integers(0, 256, (500, side, side, 3), np.uint8)
        outputs = opened(model).run(["y"], {"image": pixels})[0].reshape(500, -1)
        moments = input_moments(model, pixels)["w"]
        rows = weights["w"].reshape(len(moments.mean), -1, moments.mean.shape[1])
        means = (rows * moments.mean[:, np.newaxis]).sum(axis=2).reshape(-1) + weights["w_bias"]
        variances = np.einsum("goi,gij,goj->go", rows, moments.covariance, rows).reshape(-1)
        np.testing.assert_allclose(means, outputs.mean(axis=0), rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(variances, outputs.var(axis=0), rtol=1e-3)

    def test_biases_take_back_the_mean_error_of_the_rounding(self) -> None:
        rng = np.random.default_rng(9)
        weights = with_biases({"w": rng.normal(size=(6, 3, 1, 1))}, rng)
        model = network(conv("x", "y", "w"), weights=weights, side=1)
        pixels = rng.integers(0, 256, (400, 1, 1, 3), np.uint8)
        expected = opened(model).run(["y"], {"image": pixels})[0].mean(axis=0)
        moments = input_moments(model, pixels)
        errors = []
        for known in ({}, moments):
            changed = copied(model)
            correct_biases(changed, {"y"}, known, Rounder(), least=0)
            rounded = quantize_weight(weights["w"].astype(np.float32), Pairs.NEIGHBOURS).dequantized()
            next(each for each in changed.graph.initializer if each.name == "w").CopyFrom(
                numpy_helper.from_array(rounded, "w")
            )
            errors.append(np.abs(opened(changed).run(["y"], {"image": pixels})[0].mean(axis=0) - expected).max())
        assert errors[1] < 0.02 * errors[0]


class TestKernels:
    """On a machine without VNNI these fail where the assumption about which products are added in 16 bits is wrong."""

    @pytest.mark.parametrize("channels", [7, 24, 64])
    @pytest.mark.parametrize("first", [0, 1, 2, 3])
    def test_neighbours_at_the_limit_do_not_saturate(self, channels: int, first: int) -> None:
        weight = np.zeros((16, channels, 1, 1))
        large = [place for place in range(channels) if place % 4 in ((0, 2), (1, 3), (0, 3), (1, 2))[first]]
        weight[:, large], weight[:, [each ^ 1 for each in large if each ^ 1 < channels]] = 127, 1
        self.same_with_more_bits(weight, group=1)

    @pytest.mark.parametrize("side", [3, 5])
    @pytest.mark.parametrize("channels", [24, 32, 64])
    def test_depthwise_layers_need_no_limit(self, side: int, channels: int) -> None:
        self.same_with_more_bits(np.full((channels, 1, side, side), 127.0), group=channels)

    def same_with_more_bits(self, weight: np.ndarray, group: int) -> None:
        channels = len(weight) if group > 1 else weight.shape[1]
        spread = np.zeros((channels, 3, 1, 1))
        spread[:, 0] = 1.0
        side = weight.shape[2]
        weights = {"s": spread, "s_bias": np.zeros(channels), "w": weight, "w_bias": np.zeros(len(weight))}
        nodes = conv("x", "inner", "s"), conv("inner", "y", "w", group=group, pads=[side // 2] * 4)
        model = network(*nodes, weights=weights, side=6)
        wanted = [node for node in model.graph.node if node.name == "y"]
        assert pairs_of(wanted[0], weight) is (Pairs.NONE if group > 1 else Pairs.NEIGHBOURS)
        insert_qdq(model, wanted, {"inner": Scale(1.0, 0)}, Rounder())
        pixels = np.full((1, 6, 6, 3), 255, np.uint8)
        fast, exact = (opened(model, safe=safe).run(["y"], {"image": pixels})[0] for safe in (False, True))
        assert exact.max() > 255 * 100
        np.testing.assert_array_equal(fast, exact)


class TestEqualization:
    @pytest.fixture
    def stage(self) -> onnx.ModelProto:
        """Two blocks with a residual connection: wide, depthwise, narrow; the activations are ReLU6."""
        rng = np.random.default_rng(10)
        spread = np.exp(rng.normal(size=(8, 1, 1, 1)))
        shapes = {"a": (8, 3, 1, 1), "b": (8, 1, 3, 3), "c": (4, 8, 1, 1), "d": (8, 4, 1, 1), "e": (4, 8, 1, 1)}
        weights = {name: rng.normal(size=shape) / 300 ** (name == "a") for name, shape in shapes.items()}
        weights["a"], weights["d"] = weights["a"] * spread, weights["d"] * spread[::-1] / 10
        ends = {"zero": np.array(0.0), "six": np.array(6.0)}
        nodes = [
            conv("x", "a1", "a"),
            helper.make_node("Clip", ["a1", "zero", "six"], ["a2"], "a2"),
            conv("a2", "b1", "b", group=8, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["b1"], ["b2"], "b2"),
            conv("b2", "c1", "c"),
            conv("c1", "d1", "d"),
            helper.make_node("Clip", ["d1", "zero", "six"], ["d2"], "d2"),
            conv("d2", "e1", "e"),
            helper.make_node("Add", ["e1", "c1"], ["sum"], "sum"),
            conv("sum", "f1", "f"),
            helper.make_node("GlobalAveragePool", ["f1"], ["y"], "y"),
        ]
        weights["f"] = rng.normal(size=(2, 4, 1, 1))
        whole = with_biases(weights, rng)
        alive = {name: np.abs(value) if name.endswith("_bias") else value for name, value in whole.items()}
        return network(*nodes, weights={**alive, **ends}, side=6)

    def seen(self, model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, Statistics]:
        return observe(model, ["a2", "b2", "c1", "d2", "e1", "sum"], pixels)

    @pytest.fixture
    def pixels(self) -> np.ndarray:
        return np.random.default_rng(11).integers(0, 256, (16, 6, 6, 3), np.uint8)

    def test_it_changes_the_weights_and_not_the_function(self, stage: onnx.ModelProto, pixels: np.ndarray) -> None:
        before = opened(stage).run(["y"], {"image": pixels})[0]
        weights = [each.SerializeToString() for each in stage.graph.initializer]
        assert equalize(stage, self.seen(stage, pixels))
        assert [each.SerializeToString() for each in stage.graph.initializer] != weights
        after = opened(stage).run(["y"], {"image": pixels})[0]
        np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())

    def test_channels_become_more_alike(self, stage: onnx.ModelProto, pixels: np.ndarray) -> None:
        def spread(found: Mapping[str, Statistics]) -> float:
            return float(np.mean([np.log(each.channel_highs + 1e-9).std() for each in found.values()]))

        before = spread(self.seen(stage, pixels))
        equalize(stage, self.seen(stage, pixels))
        assert spread(self.seen(stage, pixels)) < 0.7 * before

    def test_tensors_that_are_added_are_scaled_alike(self, stage: onnx.ModelProto, pixels: np.ndarray) -> None:
        factors = equalize(stage, self.seen(stage, pixels))
        np.testing.assert_array_equal(factors["e1"], factors["c1"])
        np.testing.assert_array_equal(factors["sum"], factors["c1"])

    def test_what_leaves_for_something_not_linear_is_left_alone(
        self, stage: onnx.ModelProto, pixels: np.ndarray
    ) -> None:
        seen = self.seen(stage, pixels)
        next(node for node in stage.graph.node if node.name == "b2").op_type = "HardSwish"
        shared = shared_channels(stage.graph, seen)
        assert all("b1" not in each.tensors for each in shared)
        assert any("sum" in each.tensors for each in shared)

    def test_what_comes_from_something_not_linear_is_left_alone(
        self, stage: onnx.ModelProto, pixels: np.ndarray
    ) -> None:
        """A residual sum takes in what an activation gives: the convolution before a ReLU is scaled, too."""
        before = self.seen(stage, pixels)
        extra = [conv("x", "g1", "g"), helper.make_node("HardSwish", ["g1"], ["g2"], "g2")]
        addition = next(node for node in stage.graph.node if node.name == "sum")
        addition.input[1] = "g2"
        rng = np.random.default_rng(13)
        for name, value in {"g": rng.normal(size=(4, 3, 1, 1)) / 300, "g_bias": np.ones(4)}.items():
            stage.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        place = list(stage.graph.node).index(addition)
        for node in reversed(extra):
            stage.graph.node.insert(place, node)
        for kind, scaled in (("HardSwish", False), ("Relu", True)):
            next(node for node in stage.graph.node if node.name == "g2").op_type = kind
            shared = shared_channels(stage.graph, before)
            found = [each for each in shared if "sum" in each.tensors]
            assert bool(found) is scaled
            if found:
                assert {"e1", "g1"} == {writer.name for writer in found[0].writers}
        expected = opened(stage).run(["y"], {"image": pixels})[0]
        equalize(stage, self.seen(stage, pixels))
        after = opened(stage).run(["y"], {"image": pixels})[0]
        np.testing.assert_allclose(after, expected, atol=1e-4 * np.abs(expected).max())

    def test_a_relu6_is_a_relu_only_far_from_6(self, stage: onnx.ModelProto, pixels: np.ndarray) -> None:
        near = float(self.seen(stage, pixels)["a2"].high)
        six = next(each for each in stage.graph.initializer if each.name == "six")
        for limit, scaled in ((near * 1.5, True), (near, False)):
            six.CopyFrom(numpy_helper.from_array(np.array(limit, np.float32), "six"))
            shared = shared_channels(stage.graph, self.seen(stage, pixels))
            assert any("a2" in each.tensors for each in shared) is scaled
