"""One int8 candidate: which blocks compute in integers, and how, made into a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketdx_export.errors import ExportError
from pocketdx_export.quantize.activations import GATE_READ, GATE_WRITTEN, integer_activations
from pocketdx_export.quantize.blocks import block_names, block_of_nodes
from pocketdx_export.quantize.calibration import RANGES, Images, Statistics, observe
from pocketdx_export.quantize.equalize import equalize, pairs
from pocketdx_export.quantize.qdq import (
    Range,
    activations_of,
    drop_unused,
    insert_qdq,
    integer_nodes,
)
from pocketdx_export.quantize.weights import (
    PAIR_LIMIT,
    WEIGHTED,
    is_stored_int8,
    least_int8,
    quantize_weight,
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


class Quantizer:
    """Makes candidates of one float graph; the calibration images are run once.

    Args:
        model: the fp32 graph.
        calibration: images of the training split.

    Raises:
        ExportError: the graph has no block that could compute in integers.
    """

    def __init__(self, model: onnx.ModelProto, calibration: Images) -> None:
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
    def can_equalize(self) -> bool:
        """Whether there are layers that equalisation can change."""
        return bool(pairs(self.model.graph))

    def graph(self, recipe: Recipe) -> onnx.ModelProto:
        """The candidate: integer blocks in 8 bits, the others' weights stored in 8 bits and computed in float32."""
        observed = self._observe(recipe.equalized)
        model = copied(observed.model)
        if recipe.corrected:
            correct_biases(model, self.blocks, recipe.integer, observed.seen, self._least)
        blocks, gates = integer_activations(model, self.blocks, recipe.integer)
        nodes = integer_nodes(model.graph, blocks, recipe.integer)
        ranges = observed.ranges[recipe.ranges]
        written = {
            name: GATE_WRITTEN if name in gates else ranges[name].scale() for name in activations_of(model.graph, nodes)
        }
        insert_qdq(model, nodes, written, dict.fromkeys(gates, GATE_READ))
        store_weights_int8(model, self._least)
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
            self._observed[equalized] = _Observed(model, seen, ranges, sizes)
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


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


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


def correct_biases(
    model: onnx.ModelProto,
    blocks: Mapping[str, str],
    chosen: Collection[str],
    seen: Mapping[str, Statistics],
    least: int,
) -> None:
    """Take back what rounding the weights adds to each channel in the mean (Nagel et al., 2019, section 4.2).

    With W' the rounded weights, E[W'x] - E[Wx] = (W' - W) E[x]: the mean of each input channel over the calibration
    images is known, so this costs no further run. Zero padding is left out of account.

    Args:
        model: float; changed in place.
        blocks: of its nodes.
        chosen: those that compute in integers.
        seen: of the inputs of its layers.
        least: as `store_weights_int8` has it for the weights of the other blocks.
    """
    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 3 or node.input[0] not in seen:
            continue
        if node.input[1] not in constants or node.input[2] not in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        in_integers = blocks.get(node.name) in chosen
        if not in_integers and not is_stored_int8(weight, least):
            continue
        limit = PAIR_LIMIT if in_integers else None
        error = quantize_weight(weight, pair_limit=limit).dequantized().astype(np.float64) - weight
        means = seen[node.input[0]].channel_means
        per_input = error.reshape(len(error), error.shape[1], -1).sum(axis=2)  # [O, I of the group]
        grouped = means.reshape(-1, error.shape[1])  # [groups, I of the group]
        groups = np.repeat(np.arange(len(grouped)), len(error) // len(grouped))
        shift = (per_input * grouped[groups]).sum(axis=1)
        bias = constants[node.input[2]]
        bias.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(bias) - shift).astype(np.float32), bias.name))
