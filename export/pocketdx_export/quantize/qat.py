"""Quantization-aware fine-tuning: where int8 misses its budget, the weights learn to live with 8 bits.

torchao's PT2E flow puts fake quantizers into the exported program (Jacob et al., CVPR 2018): uint8 activations and int8
weights per channel, as the integer kernels have them, with gradients passed straight through the rounding. The teacher
is the network itself in float32 (distillation: Hinton et al., 2015), since the file is to decide as it does; labels are
not used. Batch norms are folded into the convolutions first, as they are in the exported graph, so what is trained is
what is exported. The fine-tuned weights then go through the same search as any.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pocketdx_export.deploy import DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.graph import to_onnx
from pocketdx_export.quantize.calibration import RunImages
from pocketdx_train.architectures import Network
from pocketdx_train.shift import shift_mixed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketdx_export.material import Material


@dataclass(frozen=True)
class FineTuning:
    """How long and how fast.

    Attributes:
        steps: of the optimizer.
        batch: images a step; half of them under simulated shift.
        lr: of AdamW, falling to 0 by a cosine.
        settling: batches that set the quantizers' ranges before the first step.
        checks: how often the validation error is taken; the weights of the least are kept.
        seed: of the order of the images.
    """

    steps: int = 240
    batch: int = 16
    lr: float = 3e-5
    settling: int = 16
    checks: int = 4
    seed: int = 0


def fine_tuned_graph(material: Material, images: RunImages, settings: FineTuning | None = None) -> onnx.ModelProto:
    """The fp32 graph of the run's network after fine-tuning.

    Raises:
        ExportError: torchao is missing, or cannot quantize the network.
    """
    if find_spec("torchao") is None:
        raise ExportError("--qat needs torchao: pip install 'pocketdx[qat]'")
    network = material.run.network()
    tuned = fine_tune(
        network,
        images.split("train").pixels,
        images.split("val").pixels,
        settings or FineTuning(),
        material.say,
    )
    return to_onnx(DeployModule(tuned, material.run.record.temperature).eval(), material.fp32_manifest)


def fine_tune(
    network: Network,
    train: NDArray[np.uint8],
    validation: NDArray[np.uint8],
    settings: FineTuning,
    say: Callable[[str], None] = lambda _: None,
) -> Network:
    """A copy of `network`, batch norms folded, fine-tuned so that it computes in 8 bits what `network` does in float32.

    Args:
        network: in evaluation mode; left as it is.
        train: uint8 [N, S, S, 3].
        validation: uint8 [M, S, S, 3]; chooses among the checks and the weights as they were.
        settings: see `FineTuning`.
        say: called with a line at each check.

    Raises:
        ExportError: PT2E cannot quantize the network.
    """
    teacher = copy.deepcopy(network).eval().requires_grad_(False)
    student = folded(network)
    program = _with_fake_quantizers(_Body(student), network.preprocessing.size)
    optimizer = torch.optim.AdamW(program.parameters(), settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    _settle_ranges(program, teacher, train, settings, rng)
    before = _error(program, teacher, validation, settings.batch)
    say(f"int8: fine-tuning, step 0 of {settings.steps}: error in logits {before:.4f} on validation")
    best, least = _weights(program), before
    errors: list[float] = []
    every = max(1, settings.steps // settings.checks)
    for step in range(1, settings.steps + 1):
        pixels = _mixed(_drawn(train, settings.batch, rng), rng)
        loss = _distance(program, teacher, pixels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == settings.steps:
            error = _error(program, teacher, validation, settings.batch)
            say(f"int8: fine-tuning, step {step} of {settings.steps}: error in logits {error:.4f} on validation")
            errors.append(error)
            if error < least:
                best, least = _weights(program), error
    if not any(map(math.isfinite, errors)):
        raise ExportError("int8: fine-tuning diverged; its answers are not finite")
    if least == before:
        say("int8: fine-tuning did not lessen the error; the weights stay as they were")
    body = _Body(student)
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            parameter.copy_(best[name])
    return student.eval()


def _weights(program: Any) -> dict[str, torch.Tensor]:
    """A copy of its parameters by name."""
    return {name: value.detach().clone() for name, value in program.named_parameters()}


class _Body(nn.Module):
    """Normalised pictures to logits and features."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, normalised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.features(normalised)
        return self.network.classify(features), features


def folded(network: Network) -> Network:
    """A copy whose batch norms are part of the convolutions before them; it computes the same."""
    whole = copy.deepcopy(network).eval()
    for parent in list(whole.modules()):
        children = list(parent.named_children())
        for (name, first), (norm_name, norm) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(first, norm))
                setattr(parent, norm_name, nn.Identity())
    return whole


def _with_fake_quantizers(body: _Body, size: int) -> Any:
    """The program that is trained; its parameters have the body's names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
            from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
                X86InductorQuantizer,
                get_default_x86_inductor_quantization_config,
            )

            quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
            example = (torch.zeros(2, 3, size, size),)
            shapes = ({0: torch.export.Dim("N")},)
            program = torch.export.export(body.eval(), example, dynamic_shapes=shapes).module()
            return prepare_qat_pt2e(program, quantizer)
        except Exception as problem:  # torch and torchao raise what they like
            lines = str(problem).splitlines() or [type(problem).__name__]
            raise ExportError(f"int8: torchao cannot quantize this network ({lines[0]})") from problem


def _settle_ranges(
    program: Any, teacher: Network, train: NDArray[np.uint8], settings: FineTuning, rng: np.random.Generator
) -> None:
    """Let the quantizers see pictures first, and keep the ranges then: moving ones move the target of every step."""
    from torchao.quantization.pt2e import disable_fake_quant, disable_observer, enable_fake_quant

    program.apply(disable_fake_quant)
    with torch.no_grad():
        for _ in range(settings.settling):
            program(teacher.normalise(_mixed(_drawn(train, settings.batch, rng), rng)))
    program.apply(disable_observer)
    program.apply(enable_fake_quant)


def _drawn(pixels: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    chosen: NDArray[np.uint8] = pixels[np.sort(rng.permutation(len(pixels))[:count])]
    return chosen


def _mixed(pixels: NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
    """uint8 [N, 3, S, S]: every second picture under simulated shift."""
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    kinds = torch.from_numpy(rng.integers(0, 1 << 20, len(tensor) // 2))
    shifted = shift_mixed(tensor[1::2], kinds)
    return torch.cat([tensor[::2], shifted])


def _distance(program: Any, teacher: Network, pixels: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of logits, and of features by their mean square."""
    normalised = teacher.normalise(pixels)
    with torch.no_grad():
        features = teacher.features(normalised)
        wanted = teacher.classify(features)
    logits, found = program(normalised)
    near: torch.Tensor = ((logits - wanted) ** 2).mean() + 0.1 * ((found - features) ** 2).mean() / (features**2).mean()
    return near


def _error(program: Any, teacher: Network, pixels: NDArray[np.uint8], batch: int) -> float:
    """Root mean square of the difference in logits."""
    squares: list[float] = []
    for start in range(0, len(pixels), batch):
        tensor = torch.from_numpy(pixels[start : start + batch]).permute(0, 3, 1, 2)
        with torch.no_grad():
            normalised = teacher.normalise(tensor)
            difference = program(normalised)[0] - teacher.classify(teacher.features(normalised))
        squares += difference.square().mean(dim=1).tolist()
    return float(np.sqrt(np.mean(squares)))
