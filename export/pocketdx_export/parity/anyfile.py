"""The gate for those who use nothing else of PocketDx: any PyTorch module against any ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from pocketdx_export.errors import ParityError
from pocketdx_export.parity.levels.numbers import sqnr
from pocketdx_export.parity.report import Jump
from pocketdx_export.parity.trace import Step, every_tensor, relative_error, statistics
from pocketdx_runtime.cpu import granted_cpus

Arrays = Mapping[str, NDArray[Any]]
# A layer and a tensor are the same below it: root mean square of the difference by that of the layer's output.
_SAME = 1e-3


@dataclass(frozen=True)
class OutputCheck:
    """One output of both sides; true when they agree.

    Attributes:
        name: of the output in the file.
        max_difference, mean_difference: absolute; NaN where one side is not all numbers.
        sqnr: signal to noise in dB, at most 200.
        cosine: of both sides, flattened.
        tolerance: for `max_difference`.
    """

    name: str
    max_difference: float
    mean_difference: float
    sqnr: float
    cosine: float
    tolerance: float

    def __bool__(self) -> bool:
        return self.max_difference <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class AnyReport:
    """What `compare` found; its truth value is the verdict.

    Attributes:
        file: the ONNX file.
        outputs: one check each.
        jump: where the numbers go wrong, if they do and it could be found.
    """

    file: str
    outputs: tuple[OutputCheck, ...]
    jump: Jump | None

    def __bool__(self) -> bool:
        return bool(self.outputs) and all(self.outputs)

    def __str__(self) -> str:
        lines = [f"{self.file}: {'PASSED' if self else 'FAILED'}"]
        lines += [
            f"  {each.name}: max {each.max_difference:.2e}, mean {each.mean_difference:.2e}, SQNR {each.sqnr:.1f} dB, "
            f"cosine {each.cosine:.9f}; tolerance {each.tolerance:.2e}: {'ok' if each else 'RED'}"
            for each in self.outputs
        ]
        return "\n".join([*lines, *([f"  {self.jump}"] if self.jump else [])])


def compare(
    module: nn.Module,
    path: str | Path,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    tolerance: float | Mapping[str, float] = 1e-4,
) -> AnyReport:
    """Compare a PyTorch module with an ONNX file on the same inputs; neither has to come from PocketDx.

    Args:
        module: any module; it is put into evaluation mode for the call.
        path: an ONNX file whose inputs are those of the module, in the same order.
        inputs: what both sides get.
        tolerance: largest absolute difference of an output; or one for each output by name.

    Returns:
        A report; `assert compare(...)` is a test, and its text says what is wrong and where it begins.

    Raises:
        ParityError: the file cannot be read or run, or takes or gives other numbers of tensors or other shapes.
    """
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    path = Path(path)
    model, session = _opened(path)
    names = [each.name for each in session.get_inputs()]
    if len(names) != len(tensors):
        raise ParityError(f"{path}: takes {len(names)} inputs ({', '.join(names)}), not {len(tensors)}")
    feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
    layers = _layers(module, tensors)
    expected = layers.outputs
    given = [each.name for each in session.get_outputs()]
    if len(given) != len(expected):
        raise ParityError(f"{path}: gives {len(given)} outputs ({', '.join(given)}), the module {len(expected)}")
    try:
        found = session.run(given, feed)
    except Exception as problem:  # onnxruntime's exceptions have no common base but this one
        raise ParityError(f"{path}: cannot run on these inputs ({str(problem).splitlines()[0]})") from problem
    checks = tuple(_check(path, *each, tolerance) for each in zip(given, expected, found, strict=True))
    jump = None if all(checks) else _trace(model, feed, layers)
    return AnyReport(path.name, checks, jump)


@dataclass(frozen=True)
class _Layers:
    """Outputs of a module's leaves in the order of their computation, by name, and of the module itself."""

    values: list[tuple[str, str, NDArray[Any]]]
    outputs: list[NDArray[Any]]


def _opened(path: Path) -> tuple[onnx.ModelProto, onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = granted_cpus()
    options.log_severity_level = 4
    try:
        # From the path, not from its bytes: weights may lie beside it.
        return onnx.load(path), onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # protobuf's, onnx's and onnxruntime's own
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ParityError(f"{path}: not an ONNX file that onnxruntime opens ({first})") from problem


def _layers(module: nn.Module, tensors: Sequence[torch.Tensor]) -> _Layers:
    values: list[tuple[str, str, NDArray[Any]]] = []
    hooks = []

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                # A copy: what follows may work in place, as many activations do.
                values.append((name, type(layer).__name__, output.detach().float().cpu().numpy().copy()))

        return hook

    training = module.training
    for name, layer in module.named_modules():
        if not any(layer.children()):
            hooks.append(layer.register_forward_hook(keep(name)))
    try:
        with torch.inference_mode():
            outputs = module.eval()(*tensors)
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    several = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return _Layers(values, [each.detach().cpu().numpy() for each in several])


def _check(
    path: Path, name: str, expected: NDArray[Any], found: NDArray[Any], tolerance: float | Mapping[str, float]
) -> OutputCheck:
    if found.shape != expected.shape:
        raise ParityError(f"{path}: {name} is {list(found.shape)}, the module gives {list(expected.shape)}")
    if isinstance(tolerance, Mapping) and name not in tolerance:
        raise ParityError(f"{path}: no tolerance for the output {name}; there are {', '.join(tolerance)}")
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    apart = np.abs(a - b)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return OutputCheck(
        name,
        float(apart.max()) if apart.size else 0.0,
        float(apart.mean()) if apart.size else 0.0,
        sqnr(a, b),
        float(a @ b) / lengths if lengths else float("nan"),
        tolerance[name] if isinstance(tolerance, Mapping) else float(tolerance),
    )


def _trace(model: onnx.ModelProto, feed: Arrays, layers: _Layers) -> Jump | None:
    """The first layer of the module that has no equal in the graph, and the node that stands in its place.

    Layers and nodes are matched by what they compute: exporters fold and split layers as they like. Faults spread, so
    the last layer that has an equal marks the place: what comes next in the graph is wrong.
    """
    steps = every_tensor(model, feed)
    last_layer, last_step, start = -1, -1, 0
    for number, (_, _, value) in enumerate(layers.values):
        errors = [(relative_error(value, s.value), i) for i, s in _alike(steps, value, start)]
        if errors and min(errors)[0] < _SAME:
            last_layer, (_, last_step) = number, min(errors)
            start = last_step
    wrong = _next_step(steps, last_step)
    later = [
        each for each in layers.values[last_layer + 1 :] if wrong is not None and each[2].shape == wrong.value.shape
    ]
    if wrong is None or not later:
        return None
    name, kind, value = min(later, key=lambda each: relative_error(each[2], wrong.value))
    before = relative_error(layers.values[last_layer][2], steps[last_step].value) if last_layer >= 0 else 0.0
    return Jump(
        wrong.tensor,
        wrong.operator,
        wrong.node,
        before,
        relative_error(value, wrong.value),
        statistics(value),
        statistics(wrong.value),
        "the inputs given",
        f"the module's layer {name or '(itself)'} ({kind})",
    )


def _alike(steps: Sequence[Step], value: NDArray[Any], start: int) -> list[tuple[int, Step]]:
    return [(i, step) for i, step in enumerate(steps) if i >= start and step.value.shape == value.shape]


def _next_step(steps: Sequence[Step], last: int) -> Step | None:
    """The first step that reads the last right one; the first of all where none is right."""
    if last < 0:
        return steps[0] if steps else None
    return next((step for step in steps[last + 1 :] if steps[last].tensor in step.inputs), None)
