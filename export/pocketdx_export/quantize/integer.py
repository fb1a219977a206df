"""One int8 candidate: which blocks compute in integers, and how, made into a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketdx_export.errors import ExportError
from pocketdx_export.graph import copied
from pocketdx_export.quantize.activations import GATE_READ, GATE_WRITTEN, integer_activations
from pocketdx_export.quantize.biases import correct_biases
from pocketdx_export.quantize.blocks import block_names, block_of_nodes
from pocketdx_export.quantize.calibration import RANGES, Images, Statistics, observe
from pocketdx_export.quantize.equalize import equalize, shared_channels
from pocketdx_export.quantize.moments import Moments, input_moments
from pocketdx_export.quantize.qdq import (
    Range,
    activations_of,
    drop_unused,
    insert_qdq,
    integer_nodes,
)
from pocketdx_export.quantize.rounding import Rounder
from pocketdx_export.quantize.weights import (
    WEIGHTED,
    least_int8,
    store_weights_int8,
)


@dataclass(frozen=True)
class Recipe:
    """How a candidate is made.

    Attributes:
        integer: blocks that compute in integers.
        ranges: a key of `RANGES`.
        equalized: whether neighbouring layers' channels were equalised first.
        corrected: whether biases take back the mean error of their weights' rounding.
    """

    integer: tuple[str, ...]
    ranges: str = "min-max"
    equalized: bool = False
    corrected: bool = True

    @property
    def title(self) -> str:
        """How it is made, but for the blocks."""
        steps = [self.ranges]
        steps += ["equalized"] if self.equalized else []
        steps += [] if self.corrected else ["biases not corrected"]
        return ", ".join(steps)


class Quantizer:
    """Makes candidates of one float graph; the calibration images are run once.

    Args:
        model: the fp32 graph.
        calibration: images of the training split.
        moments: of the inputs of `model`'s layers on these images, where they are known already.

    Raises:
        ExportError: the graph has no block that could compute in integers.
    """

    def __init__(
        self, model: onnx.ModelProto, calibration: Images, moments: Mapping[str, Moments] | None = None
    ) -> None:
        self._moments = moments
        self._calibration = calibration
        self.model = copied(model)
        normalise_by_channel(self.model)
        self.blocks = block_of_nodes(self.model.graph)
        self.names = tuple(
            name for name in block_names(self.blocks) if integer_nodes(self.model.graph, self.blocks, {name})
        )
        if not self.names:
            raise ExportError("the graph has no convolution or linear layer with constant weights: no int8 of it")
        self._least = least_int8(self.model)
        self._observed: dict[bool, _Observed] = {}

    @property
    def moments(self) -> Mapping[str, Moments]:
        """Of the inputs of the layers as they are, by the weight's name."""
        return self._observe(False).moments

    @property
    def can_equalize(self) -> bool:
        """Whether there are layers that equalisation can change."""
        return bool(shared_channels(self.model.graph, self._observe(False).seen))

    def graph(self, recipe: Recipe) -> onnx.ModelProto:
        """The candidate: integer blocks in 8 bits, the others' weights stored in 8 bits and computed in float32."""
        observed = self._observe(recipe.equalized)
        model = copied(observed.model)
        if recipe.corrected:
            chosen = {name for name, block in self.blocks.items() if block in recipe.integer}
            correct_biases(model, chosen, observed.moments, observed.rounder, self._least)
        blocks, gates = integer_activations(model, self.blocks, recipe.integer)
        nodes = integer_nodes(model.graph, blocks, recipe.integer)
        ranges = observed.ranges[recipe.ranges]
        written = {
            name: GATE_WRITTEN if name in gates else ranges[name].scale() for name in activations_of(model.graph, nodes)
        }
        insert_qdq(model, nodes, written, observed.rounder, dict.fromkeys(gates, GATE_READ))
        store_weights_int8(model, self._least, observed.rounder)
        return model

    def border_sizes(self) -> tuple[int, ...]:
        """Values for one picture that enter each block, and that leave the last one."""
        first_inputs: dict[str, str] = {}
        last_output = ""
        for node in self.model.graph.node:
            block = self.blocks.get(node.name)
            if block in self.names:
                first_inputs.setdefault(block, node.input[0])
                last_output = node.output[0]
        sizes = self._observe(False).sizes
        return (*(sizes.get(first_inputs[name], 0) for name in self.names), sizes.get(last_output, 0))

    def _observe(self, equalized: bool) -> _Observed:
        """The float graph and what its activations are; equalised, the first calibration says by how much."""
        if equalized not in self._observed:
            model = copied(self.model)
            if equalized:
                equalize(model, self._observe(False).seen)
            nodes = integer_nodes(model.graph, self.blocks, self.names)
            inputs = {node.input[0] for node in model.graph.node if node.op_type in WEIGHTED}
            tensors = {*activations_of(model.graph, nodes), *inputs, *self._activation_ends()}
            seen = observe(model, sorted(tensors), self._calibration.pixels)
            ranges = {kind: self._narrowed({k: choose(v) for k, v in seen.items()}) for kind, choose in RANGES.items()}
            sizes = {name: each.size for name, each in seen.items()}
            known = None if equalized else self._moments
            moments = known or input_moments(model, self._calibration.pixels)
            self._observed[equalized] = _Observed(model, seen, ranges, sizes, moments, Rounder(moments))
        return self._observed[equalized]

    def _activation_ends(self) -> list[str]:
        return [name for node in self.model.graph.node if node.op_type == "HardSwish" for name in node.input[:1]]

    def _narrowed(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """HardSwish is 0 below -3: what lies there needs no steps."""
        ends = self._activation_ends()
        return {name: Range(max(-3.0, each.low), each.high) if name in ends else each for name, each in ranges.items()}


@dataclass(frozen=True)
class _Observed:
    """A float graph with what its activations were on the calibration images."""

    model: onnx.ModelProto
    seen: Mapping[str, Statistics]
    ranges: Mapping[str, Mapping[str, Range]]
    sizes: Mapping[str, int]
    moments: Mapping[str, Moments]
    rounder: Rounder


def normalise_by_channel(model: onnx.ModelProto) -> None:
    """Write the normalisation, a Sub and a Mul by channel, as the one BatchNormalization that it is.

    In a graph whose first layer is integer onnxruntime keeps pictures as [N, H, W, 3] up to it, and there a Sub by
    channel, an inner loop of three, takes as long as half of the network.
    """
    graph = model.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    readers = {node.input[0]: node for node in graph.node if node.op_type == "Mul"}
    for number, node in enumerate(graph.node):
        product = readers.get(node.output[0]) if node.op_type == "Sub" else None
        if product is None or not {node.input[1], product.input[1]} <= set(constants):
            continue
        offset, factor = constants[node.input[1]].reshape(-1), constants[product.input[1]].reshape(-1)
        values = {"scale": factor, "shift": 0 * factor, "mean": offset, "variance": np.ones_like(factor)}
        names = [f"normalise.{name}" for name in values]
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for array, name in zip(values.values(), names, strict=True)
        )
        normalise = helper.make_node(
            "BatchNormalization", [node.input[0], *names], product.output[:], name="normalise", epsilon=0.0
        )
        graph.node.remove(node)
        graph.node.remove(product)
        graph.node.insert(number, normalise)
        drop_unused(graph)
        return
