"""Golden inputs: fixed pictures, and what the full PyTorch model says of them, for a self-test on any device.

The pictures are drawn, never a patient's: a bundle is handed on. They are of several sizes, so that the graph's own
resize is tested too, and rich in edges and noise, which a wrong filter or a wrong channel order shows.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketdx_export.deploy import OUTPUTS, DeployModule
from pocketdx_export.parity.tolerances import logit_scale
from pocketdx_export.quantize.sessions import opened

_SEED = 20260101


def golden_pictures(size: int) -> list[NDArray[np.uint8]]:
    """Eight drawn pictures, uint8 [h, w, 3]; the first two of the network's own size."""
    shapes = [
        (size, size),
        (size, size),
        (2 * size, 2 * size),
        (size // 2 + 1, size // 2 + 1),
        (size + 77, size + 29),
        (3 * size // 2, 5 * size // 2 + 3),
        (3 * size + 1, size // 3 + 2),
        (97, 61),
    ]
    rng = np.random.Generator(np.random.PCG64(_SEED))
    return [_picture(height, width, rng) for height, width in shapes]


def _picture(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Soft clouds, hard-edged bars and grain, each of its own colour."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    rows, columns = np.mgrid[0:height, 0:width]
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 40)
    bars = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * (2 * np.pi / period)) > 0.3
    grain = rng.normal(0, 10, (height, width, 3))
    picture = clouds + bars[..., None] * rng.uniform(-90, 90, 3) + grain
    whole: NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return whole


def golden_archive(module: DeployModule, tolerances: Mapping[str, Mapping[str, float]]) -> bytes:
    """`golden.npz`: arrays `image_0000`..., one array per output [K, ...], and `tolerances` as JSON.

    Args:
        module: the full model in PyTorch, float32, in evaluation mode.
        tolerances: by precision and output, the largest absolute difference that passes; for logits, before it is
            multiplied by `logit_scale`.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in OUTPUTS}
    for number, picture in enumerate(golden_pictures(module.size)):
        arrays[f"image_{number:04d}"] = picture
        with torch.inference_mode():
            outputs = module(torch.from_numpy(picture)[None])
        for name, output in zip(OUTPUTS, outputs, strict=True):
            answers[name].append(output[0].numpy())
    arrays |= {name: np.stack(rows) for name, rows in answers.items()}
    # Drawn pictures are unlike what the network knows, and may drive its logits far up.
    scale = logit_scale(np.stack(answers["logits"]))
    allowed = {precision: {**limits, "logits": limits["logits"] * scale} for precision, limits in tolerances.items()}
    arrays["tolerances"] = np.array(json.dumps(allowed))
    return _npz(arrays)


def add_own_answers(path: Path, model: onnx.ModelProto, precision: str, floor: Mapping[str, float]) -> None:
    """Add to a `golden.npz` what the graph of a lossy precision answers, for devices to be compared with.

    The answers are those of integer kernels that cannot saturate. How far another device may be from them is measured:
    the same graph with all optimizations off is computed in float32, so the distance between the two is what rounding
    in another order does; twice that, or `floor` where that is more, is allowed.

    Args:
        path: the archive; changed.
        model: the graph.
        precision: of the graph.
        floor: by output, the least tolerance; for logits before it is multiplied by `logit_scale`.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    pictures = [arrays[key] for key in sorted(arrays) if key.startswith("image_")]
    safe, plain = opened(model, safe=True), opened(model, optimize=False)
    answers: dict[str, NDArray[np.float32]] = {}
    allowed: dict[str, float] = {}
    for number, name in enumerate(OUTPUTS):
        first, second = (
            np.concatenate([session.run(list(OUTPUTS), {"image": each[None]})[number] for each in pictures])
            for session in (safe, plain)
        )
        least = floor[name] * (logit_scale(first) if name == "logits" else 1.0)
        answers[f"{precision}/{name}"] = first
        allowed[name] = max(least, 2 * float(np.abs(first - second).max()))
    arrays |= {**answers, f"{precision}/tolerances": np.array(json.dumps(allowed))}
    path.write_bytes(_npz(arrays))


def _npz(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """A compressed .npz without times of day: the same run gives the same bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return archive.getvalue()
