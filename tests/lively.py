"""Drawn pictures, and a network that nobody trained whose answers to them differ as a trained one's do."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketdx_export.golden import golden_pictures
from pocketdx_runtime.image import resize
from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train.architectures import Network

# Width, height and ending: of the network's size, smaller, larger, and a JPEG large enough for a scaled decode.
SHAPES = [(64, 64, "png"), (64, 64, "png"), (50, 40, "png"), (150, 90, "png"), (700, 520, "jpg"), (64, 64, "png")]


def draw(kind: str, number: int) -> Image.Image:
    """Synthetic: "blobs" or "stripes", coloured, with grain; different for each number."""
    width, height, _ = SHAPES[number % len(SHAPES)]
    rng = np.random.Generator(np.random.PCG64([number, len(kind)]))
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    if kind == "blobs":
        centre = rng.uniform(0.3, 0.7, 2)
        pattern = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 0.02)
    else:
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * (rows + columns) * rng.uniform(6, 9))
    tint = np.array([0.9, 0.6, 0.75]) * rng.uniform(0.8, 1.1)
    pixels = 60 + 150 * pattern[..., None] * tint + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def lively_network(
    architecture: str, preprocessing: Preprocessing, pixels: NDArray[np.uint8], *, seed: int = 0
) -> Network:
    """Random weights, but batch norms that know the data, and logits of a trained network's spread."""
    torch.manual_seed(seed)
    network = Network(architecture, 2, preprocessing, dropout=0.0).train()
    for module in network.modules():
        bias = getattr(module, "bias", None)
        if bias is not None and not isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(bias, std=0.05)  # a fresh one is 0, and the exporter shares equal constants
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    drawn = np.stack([resize(picture, preprocessing.size) for picture in golden_pictures(preprocessing.size)])
    batch = torch.from_numpy(np.concatenate([pixels[::3], drawn])).permute(0, 3, 1, 2)
    with torch.no_grad():
        network(batch)
        network.eval()
        logits = network(batch)
        last = network.backbone.classifier[-1]
        last.weight.mul_(3.0 / logits.std(0).mean())
        last.bias.sub_(network(batch).mean(0))
    return network
