"""A network without the cost of training, but with a trained one's spread of answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pocketdx_export.golden import golden_pictures
from pocketdx_runtime.image import resize
from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train.architectures import Network


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
