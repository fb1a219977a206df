"""What the inputs of each layer are like: means and second moments over the calibration images.

They say which errors of a weight are heard: an error along a direction that the inputs never take costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pocketdx_export.quantize.sessions import watching
from pocketdx_export.quantize.weights import WEIGHTED, groups_of

# Positions of a map taken from each picture: neighbours hardly differ, so more says little more.
_POSITIONS = 64
# Towards equal variances, however many images there are: an input that never varied must not take over any error.
_LEAST_SHRINKAGE = 0.01


@dataclass(frozen=True)
class Moments:
    """Of the numbers that one output value is computed from, I of them, in the order of the weight's axes.

    Attributes:
        mean: float64 [G, I]; G is the number of groups, 1 for a dense layer.
        covariance: float64 [G, I, I], as it was found.
        images: how many it was found on.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    images: int

    @cached_property
    def shrunk(self) -> NDArray[np.float64]:
        """float64 [G, I, I]: a better estimate of the covariance than what was found, and always of full rank.

        Few images leave directions in which nothing was seen to vary. The estimate moves towards equal variances, the
        more the fewer images there are: Oracle Approximating Shrinkage (Chen, Wiesel, Eldar and Hero, Shrinkage
        Algorithms for MMSE Covariance Estimation, IEEE Transactions on Signal Processing 58, 2010, equation 23).
        """
        inputs = self.covariance.shape[1]
        trace = np.trace(self.covariance, axis1=1, axis2=2)
        square, spread = trace**2, (self.covariance**2).sum(axis=(1, 2))
        above = (1 - 2 / inputs) * spread + square
        below = (self.images + 1 - 2 / inputs) * (spread - square / inputs)
        share = np.clip(above / np.maximum(below, 1e-30), _LEAST_SHRINKAGE, 1.0)[:, np.newaxis, np.newaxis]
        equal = (trace / inputs + 1e-12)[:, np.newaxis, np.newaxis] * np.eye(inputs)
        shrunk: NDArray[np.float64] = (1 - share) * self.covariance + share * equal
        return shrunk


def input_moments(model: onnx.ModelProto, pixels: NDArray[np.uint8], seed: int = 0) -> dict[str, Moments]:
    """By the name of the weight.

    Args:
        model: a float graph.
        pixels: uint8 [N, S, S, 3], calibration images.
        seed: of the draw of positions.
    """
    constants = {each.name: tuple(each.dims) for each in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in constants]
    batches = watching(model, list(dict.fromkeys(node.input[0] for node in layers)))
    rng = np.random.Generator(np.random.PCG64(seed))
    sums: dict[str, _Sum] = {node.input[1]: _Sum() for node in layers}
    for batch in batches(pixels):
        for node in layers:
            sums[node.input[1]].add(_rows(node, constants[node.input[1]], batch[node.input[0]], rng))
    return {name: each.moments(len(pixels)) for name, each in sums.items()}


class _Sum:
    """Sums over rows, batch by batch."""

    def __init__(self) -> None:
        self._count = 0
        self._origin: NDArray[np.float32] | None = None
        self._first: NDArray[np.float64] | float = 0.0
        self._second: NDArray[np.float64] | float = 0.0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in float32 [G, R, I]."""
        if self._origin is None:
            self._origin = rows.mean(axis=1, keepdims=True)
        # From about the mean on: squares of large numbers that hardly vary would leave nothing of what they vary.
        rows = rows - self._origin
        self._count += rows.shape[1]
        self._first = self._first + rows.sum(axis=1, dtype=np.float64)
        self._second = self._second + np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64)

    def moments(self, images: int) -> Moments:
        """Of all that was added."""
        assert self._origin is not None
        mean = np.asarray(self._first) / self._count
        second = np.asarray(self._second) / self._count
        covariance = second - mean[:, :, np.newaxis] * mean[:, np.newaxis, :]
        return Moments(mean + self._origin[:, 0], covariance, images)


def _rows(
    node: onnx.NodeProto, shape: tuple[int, ...], values: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """What output values of a layer are computed from: float32 [G, R, I], some positions of each picture."""
    if node.op_type == "Gemm":
        return values[np.newaxis]
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    groups, (height, width) = groups_of(node), shape[2:]
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    down, across = attributes.get("strides", [1, 1])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))[:, :, ::down, ::across]
    places = rng.integers(0, windows.shape[2] * windows.shape[3], _POSITIONS)
    chosen = windows[:, :, places // windows.shape[3], places % windows.shape[3]]  # [N, C, positions, height, width]
    count, channels = chosen.shape[:2]
    split = chosen.reshape(count, groups, channels // groups, _POSITIONS, height * width)
    rows = split.transpose(1, 0, 3, 2, 4)  # [G, N, positions, C / G, height * width]
    return np.ascontiguousarray(rows).reshape(groups, count * _POSITIONS, -1)
