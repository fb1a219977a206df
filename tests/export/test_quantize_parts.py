"""The parts of quantization, each on its own: activations, ranges, plans, budgets."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketdx_export.agreement import countable
from pocketdx_export.errors import ExportError
from pocketdx_export.quantize.activations import GATE_READ, GATE_WRITTEN, integer_activations
from pocketdx_export.quantize.budget import DEFAULT_BUDGET, Budget
from pocketdx_export.quantize.calibration import Statistics, least_error_range, minmax_range, percentile_range
from pocketdx_export.quantize.plan import BlockEffect, between, block_effects, plans
from pocketdx_export.quantize.qdq import Range, insert_qdq
from pocketdx_export.quantize.rounding import Rounder
from pocketdx_export.quantize.trial import flip_chances


class TestRanges:
    def seen(self, values: np.ndarray) -> Statistics:
        counts, _ = np.histogram(values, 2048, (values.min(), values.max()))
        return Statistics(float(values.min()), float(values.max()), counts, np.zeros(1), 1)

    def test_zero_is_exact_in_every_range(self) -> None:
        for low, high in [(-1.3, 5.1), (0.4, 2.0), (-3.0, -1.0), (0.0, 0.0)]:
            scale = Range(low, high).scale()
            assert 0 <= scale.zero <= 255
            assert scale.step > 0

    def test_an_outlier_takes_the_steps_of_min_max_only(self) -> None:
        values = np.append(np.random.default_rng(0).exponential(1.0, 300_000), 500.0)
        seen = self.seen(values)
        assert minmax_range(seen).high == 500.0
        for choose in (percentile_range, least_error_range):
            found = choose(seen).scale()
            error = (np.clip(np.rint(values / found.step), 0, 255) * found.step - values)[:-1]
            plain = minmax_range(seen).scale()
            assert (error**2).mean() < ((np.rint(values / plain.step) * plain.step - values)[:-1] ** 2).mean()


class TestIntegerActivations:
    def graph(self, kind: str) -> onnx.ModelProto:
        """conv -> HardSwish or HardSigmoid, 1 channel, identity weights."""
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node(kind, ["c"], ["a"], name="act", **({"alpha": 1 / 6} if kind == "HardSigmoid" else {})),
            helper.make_node("Add", ["a", "zero"], ["b"], name="add"),
            helper.make_node("Identity", ["b"], ["y"], name="end"),
        ]
        shape = ["N", 1, 1, "W"]
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
                [
                    numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w"),
                    numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
                ],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        )
        onnx.checker.check_model(model)
        return model

    @pytest.mark.parametrize("kind", ["HardSwish", "HardSigmoid"])
    @pytest.mark.parametrize("optimize", [True, False])
    def test_they_are_what_they_were_to_a_step_or_two(self, kind: str, optimize: bool) -> None:
        x = np.linspace(-6, 6, 500, dtype=np.float32).reshape(1, 1, 1, -1)
        gate = np.clip(x / 6 + 0.5, 0, 1)
        expected = gate if kind == "HardSigmoid" else x * gate
        model = self.graph(kind)
        blocks, gates = integer_activations(model, dict.fromkeys(("conv", "act", "add"), "one"), {"one"})
        nodes = [node for node in model.graph.node if node.name != "end" and node.op_type != "Add"]
        ranges = {"x": Range(-6, 6), "c": Range(-3, 6), "a": Range(-0.4, 6)}
        written = {name: each.scale() for name, each in ranges.items()} | dict.fromkeys(gates, GATE_WRITTEN)
        insert_qdq(model, nodes, written, Rounder(), dict.fromkeys(gates, GATE_READ))
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        (found,) = session.run(None, {"x": x})
        np.testing.assert_allclose(found, expected, atol=0.02 if kind == "HardSigmoid" else 0.08)
        assert "HardSwish" not in {node.op_type for node in model.graph.node}
        assert blocks

    def test_ends_are_exact(self) -> None:
        assert (0 - GATE_READ.zero) * GATE_READ.step == 0
        assert (255 - GATE_READ.zero) * GATE_READ.step == pytest.approx(1)
        assert (0 - GATE_WRITTEN.zero) * GATE_WRITTEN.step <= -3


class TestPlans:
    def test_they_are_the_sets_of_least_cost(self) -> None:
        rng = np.random.default_rng(3)
        effects = [
            BlockEffect(str(number), *row)
            for number, row in enumerate(
                zip(rng.normal(-1, 2, 8), rng.uniform(0, 1, 8), rng.uniform(0, 1, 8), strict=True)
            )
        ]

        def cost(chosen: tuple[bool, ...], weight: float) -> float:
            total, before = 0.0, False
            for each, integer in zip(effects, chosen, strict=True):
                total += (each.seconds + weight * each.damage) * integer + each.crossing * (before != integer)
                before = integer
            return total

        fastest = min(product((False, True), repeat=8), key=lambda chosen: cost(chosen, 0.0))
        found = plans(effects)
        assert found[0] == tuple(str(number) for number, integer in enumerate(fastest) if integer)
        damages = [sum(each.damage for each in effects if each.name in chosen) for chosen in found]
        assert damages == sorted(damages, reverse=True)

    def test_borders_and_blocks_are_told_apart(self) -> None:
        sizes, seconds, rate = (4, 3, 2, 1), (-5.0, 2.0, -1.0), 0.5
        alone = [10 + own + rate * (sizes[i] + sizes[i + 1]) for i, own in enumerate(seconds)]
        together = 10 + sum(seconds) + rate * (sizes[0] + sizes[3])
        found = block_effects("abc", alone, together, 10.0, sizes, [0.0] * 3)
        np.testing.assert_allclose([each.seconds for each in found], seconds)
        np.testing.assert_allclose([each.crossing for each in found], [2.0, 1.5, 1.0])

    def test_between_two_sets_lies_what_gains_most_for_its_harm(self) -> None:
        rows = [(-4.0, 1.0), (-1.0, 4.0), (-2.0, 0.1), (0.5, 0.0), (-1.0, 2.0)]  # seconds, damage
        effects = [
            BlockEffect(name, seconds, 0.0, damage) for name, (seconds, damage) in zip("abcde", rows, strict=True)
        ]
        assert between(effects, (), "abcde") == ("a", "c", "e")  # d harms nothing, and gains nothing
        assert between(effects, "c", "abce") == ("a", "c", "e")
        assert between(effects, (), "abce") == ("a", "c")
        assert between(effects, "ac", "abce") == ("a", "c", "e")
        assert between(effects, "ace", "abce") is None
        assert between(effects, "abce", "c") is None

    def test_a_set_in_between_crosses_no_more_borders_than_it_has_to(self) -> None:
        rows = [("a", 2.9), ("b", 6.0), ("c", 3.0), ("d", 3.0)]
        effects = [BlockEffect(name, -1.0, 2.0, damage) for name, damage in rows]
        # a harms least of the three, but would be parted from d.
        assert between(effects, "d", "abcd") == ("c", "d")


class TestBudget:
    def test_it_is_read_as_it_is_shown(self) -> None:
        assert Budget.parse(str(DEFAULT_BUDGET)) == DEFAULT_BUDGET
        assert Budget.parse("agreement=0.9") == Budget(agreement=0.9)
        assert Budget.parse("none") is None

    @pytest.mark.parametrize("text", ["", "auc", "auc=x", "auc=-1", "auc=nan", "speed=1", "agreement=2"])
    def test_anything_else_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(ExportError, match=r"--budget .*auc=0\.002,agreement=0\.99"):
            Budget.parse(text)


def test_decisions_are_in_danger_with_the_error_also_where_no_decision_has_changed() -> None:
    rng = np.random.default_rng(0)
    reference = np.stack([rng.uniform(0.5, 3, 200), np.zeros(200)], axis=1).astype(np.float32)
    chances = [
        flip_chances(reference + rng.normal(0, size, reference.shape).astype(np.float32), reference)
        for size in (0.0, 0.1, 0.5)
    ]
    assert chances[0].max() == 0.0
    assert 0.0 < chances[1].mean() < chances[2].mean() < 0.2
    # And those near the border are the ones that are in danger.
    near = reference[:, 0].argsort()
    assert (np.diff(chances[2][near]) <= 0).all()


def test_of_few_pictures_one_may_be_decided_otherwise_and_of_many_what_the_share_says() -> None:
    for count in range(2, 900):
        same = np.arange(count) > 0  # all but one
        assert same.mean() >= countable(0.999, count) > (count - 2) / count
    assert countable(0.99, 100) == 0.99
    assert countable(0.99, 5000) == 0.99
    assert countable(0.99, 32) > 30 / 32
