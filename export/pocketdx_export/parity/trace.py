"""Where do the numbers go wrong? The first tensor of a graph whose error jumps, with its operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pocketdx_export.deploy import DeployModule
from pocketdx_export.graph import copied, to_onnx
from pocketdx_export.parity.report import Jump, Statistics
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.manifest import Manifest
from pocketdx_train.run import Run

Tensors = Mapping[str, NDArray[Any]]

# Relative error of a tensor from which on it is wrong: float32 rounds to 1e-7, fp16 weights to 5e-4; an int8 tensor
# is off by a few per cent when all is well.
_WRONG = {"fp32": 1e-4, "fp16": 5e-3}
_WRONG_INTEGER = 0.1
# It is a jump where the error is so many times that of all inputs.
_FACTOR = 3.0


@dataclass(frozen=True)
class Step:
    """A float tensor of a graph, as it was computed.

    Attributes:
        tensor: its name.
        operator, node: what computed it.
        inputs: names of the tensors that the node reads, constants left out.
        value: the tensor.
    """

    tensor: str
    operator: str
    node: str
    inputs: tuple[str, ...]
    value: NDArray[Any]


def every_tensor(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]]) -> list[Step]:
    """Run a graph in onnxruntime, node by node as it stands, and keep every float tensor, in order.

    Args:
        model: left as it is.
        feed: by input name.
    """
    kept = copied(model)
    given = {each.name for each in kept.graph.initializer} | {each.name for each in kept.graph.input}
    nodes = {output: node for node in kept.graph.node for output in node.output if output}
    del kept.graph.output[:]
    kept.graph.output.extend(onnx.ValueInfoProto(name=name) for name in nodes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = granted_cpus()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(kept.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    values = dict(zip(names, session.run(names, dict(feed)), strict=True))
    return [
        Step(
            name, node.op_type, _named(node, given), tuple(i for i in node.input if i and i not in given), values[name]
        )
        for name, node in nodes.items()
        if np.issubdtype(values[name].dtype, np.floating)
    ]


def _named(node: onnx.NodeProto, constants: Collection[str]) -> str:
    """A node's name, which an exporter makes up, with that of its weights, which the network's author gave."""
    weights = next((name for name in node.input[1:] if name in constants), None)
    return f"{node.name} ({weights})" if weights else str(node.name)


@lru_cache(maxsize=2)
def _honest_graph(folder: Path, weights_digest: str) -> onnx.ModelProto:
    """The run exported afresh: the graph as it should be. Takes seconds, so that the last ones are kept."""
    run = Run.open(folder)
    assert run.record.weights_digest == weights_digest
    network = run.network()
    manifest = Manifest(
        name=folder.name,
        labels=run.record.labels,
        architecture=run.record.settings.architecture,
        embedding_size=network.embedding_size,
        preprocessing=run.record.preprocessing,
    )
    return to_onnx(DeployModule(network, run.record.temperature).eval(), manifest)


def find_jump(path: Path, precision: str, run: Run, pixels: NDArray[np.uint8], picture: str) -> Jump | None:
    """Compare every tensor of a file with that of the same name in the run's graph, exported afresh.

    Args:
        path: an ONNX file.
        precision: of the file.
        run: the full model.
        pixels: uint8 [h, w, 3] on which the two differ.
        picture: its name.

    Returns:
        None where no tensor of the file has a namesake.
    """
    feed = {"image": pixels[np.newaxis]}
    reference = {
        step.tensor: step.value for step in every_tensor(_honest_graph(run.folder, run.record.weights_digest), feed)
    }
    steps = every_tensor(onnx.load(path), feed)
    return first_jump(steps, reference, precision, picture, "the run, exported afresh")


def first_jump(steps: list[Step], reference: Tensors, precision: str, picture: str, against: str) -> Jump | None:
    """The first step that is wrong though its inputs are right.

    Args:
        steps: of the file, in order.
        reference: right values by tensor name; steps without one inherit their inputs' error.
        precision: of the file; says from which error on a tensor is wrong.
        picture: name of the picture.
        against: what the reference is.
    """
    wrong = _WRONG.get(precision, _WRONG_INTEGER)
    errors: dict[str, float] = {}
    compared = False
    for step in steps:
        before = max((errors.get(name, 0.0) for name in step.inputs), default=0.0)
        value = reference.get(step.tensor)
        if value is None or value.shape != step.value.shape:
            errors[step.tensor] = before
            continue
        compared = True
        after = errors[step.tensor] = relative_error(value, step.value)
        if after > wrong and after > _FACTOR * before:
            return Jump(
                step.tensor,
                step.operator,
                step.node,
                before,
                after,
                statistics(value),
                statistics(step.value),
                picture,
                against,
            )
    return Jump("", "", "", 0.0, max(errors.values()), None, None, picture, against) if compared else None


def relative_error(reference: NDArray[Any], ours: NDArray[Any]) -> float:
    """Root mean square of the difference by that of the reference; infinite where ours is not all numbers."""
    difference = ours.astype(np.float64) - reference
    if not np.isfinite(difference).all():
        return float("inf")
    energy, noise = float(np.square(reference, dtype=np.float64).mean()), float(np.square(difference).mean())
    return (noise / energy) ** 0.5 if energy > 0 else (0.0 if noise == 0 else float("inf"))


def statistics(values: NDArray[Any]) -> Statistics:
    """Of a tensor of any shape."""
    wide = values.astype(np.float64)
    return Statistics(float(wide.mean()), float(wide.std()), float(wide.min()), float(wide.max()))
