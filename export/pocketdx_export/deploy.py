"""The module that is exported: preprocessing, network and every output in one graph."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pocketdx_train.architectures import Network

OUTPUTS = ("logits", "probabilities", "embedding")


class _GlobalMean(nn.Module):
    """What AdaptiveAvgPool2d(1) computes; the exporter turns that one into a page of shape arithmetic."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3), keepdim=True)


class DeployModule(nn.Module):
    """uint8 pictures of any size in; logits, calibrated probabilities and embedding out.

    The network is copied; the caller's stays as it is.

    Args:
        network: trained.
        temperature: divides the logits before the softmax.
    """

    offset: torch.Tensor
    factor: torch.Tensor

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.temperature = temperature
        self.size = network.preprocessing.size
        scale = network.preprocessing.scale
        # (x * scale - mean) / std, as one subtraction and one product.
        self.register_buffer("offset", network.mean / scale)
        self.register_buffer("factor", scale / network.std)
        for parent in list(self.network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, _GlobalMean())

    def network_input(self, image: torch.Tensor) -> torch.Tensor:
        """What the first convolution gets: float32 [N, 3, S, S].

        Args:
            image: uint8 [N, H, W, 3] RGB.
        """
        pixels = image.permute(0, 3, 1, 2).float()
        resized = nn.functional.interpolate(
            pixels, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        # Not rounded to whole grey levels, as Pillow does: two machines' sums differ in the last bit, and a value near
        # a half would then be a grey level apart.
        return (resized - self.offset) * self.factor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [N, C], probabilities [N, C] and embedding [N, D] (of length 1), float32, of uint8 [N, H, W, 3]."""
        features = self.network.features(self.network_input(image))
        logits = self.network.classify(features)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        length = (features * features).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        return logits, probabilities, features / length
