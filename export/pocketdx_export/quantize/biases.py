"""Bias correction (Nagel et al., Data-Free Quantization, ICCV 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from pocketdx_export.quantize.moments import Moments
from pocketdx_export.quantize.weights import WEIGHTED, Doubles, Floats, Pairs, Rounding, is_stored_int8, pairs_of


def mean_shift(weight: Floats, rounded: Floats, moments: Moments) -> Doubles:
    """What rounding a weight adds to each of its outputs in the mean: float64 [O].

    Args:
        weight: float32 [O, ...].
        rounded: the same shape.
        moments: of its inputs, in the order of its axes.
    """
    means = moments.mean
    error = (rounded.astype(np.float64) - weight).reshape(len(means), -1, means.shape[1])
    shift: Doubles = (error * means[:, np.newaxis]).sum(axis=2).reshape(-1)
    return shift


def correct_biases(
    model: onnx.ModelProto,
    integer: Collection[str],
    moments: Mapping[str, Moments],
    rounding: Rounding,
    least: int,
) -> None:
    """Take back what rounding the weights adds to each channel in the mean.

    With W' the rounded weights, E[W'x] - E[Wx] = (W' - W) E[x]: the mean of each input over the calibration images is
    known, so this costs no further run.

    Args:
        model: float; changed in place.
        integer: names of the nodes that compute in integers.
        moments: of the inputs of its layers, by the weight's name.
        rounding: of the weights.
        least: as `store_weights_int8` has it for the weights of the other nodes.
    """
    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 3 or not {*node.input[1:3]} <= set(constants):
            continue
        name = node.input[1]
        weight = numpy_helper.to_array(constants[name])
        in_integers = node.name in integer
        if name not in moments or not (in_integers or is_stored_int8(weight, least)):
            continue
        rounded = rounding(name, weight, pairs_of(node, weight) if in_integers else Pairs.NONE).dequantized()
        shift = mean_shift(weight, rounded, moments[name])
        bias = constants[node.input[2]]
        bias.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(bias) - shift).astype(np.float32), bias.name))
