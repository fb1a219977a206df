"""The module that is exported: preprocessing, network and every output in one graph."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pocketdx_train.architectures import Network

OUTPUTS = ("logits", "probabilities", "embedding")
FIXED_SIZE_OUTPUTS = ("probabilities", "embedding", "logits")
"""Their order where a reader goes by places: phone libraries take the first output for the score."""


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
        return self.answers(self.network_input(image))

    def answers(self, network_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same of what `network_input` gives."""
        features = self.network.features(network_input)
        logits = self.network.classify(features)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        length = (features * features).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        return logits, probabilities, features / length


class FixedSizeModule(nn.Module):
    """The same without the resize, for formats whose input has one size: the phone's own software resizes.

    Normalising stays in the graph: phone libraries know one mean and one deviation for all channels, if any.

    Args:
        module: what ONNX files are made from.
        white: value of a white pixel in the input, 1 or 255; black is 0.
        channels_last: whether the input is [N, S, S, 3]; else it is [N, 3, S, S].
    """

    def __init__(self, module: DeployModule, *, white: float, channels_last: bool) -> None:
        super().__init__()
        self.module = module
        self.grey_levels = 255.0 / white
        self.channels_last = channels_last

    @property
    def example(self) -> torch.Tensor:
        """A black picture, float32."""
        size = self.module.size
        return torch.zeros((1, size, size, 3) if self.channels_last else (1, 3, size, size))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name, in the order of `FIXED_SIZE_OUTPUTS`, of RGB pictures."""
        pixels = image.permute(0, 3, 1, 2) if self.channels_last else image
        if self.grey_levels != 1:
            pixels = pixels * self.grey_levels
        answers = self.module.answers((pixels - self.module.offset) * self.module.factor)
        by_name = dict(zip(OUTPUTS, answers, strict=True))
        return {name: by_name[name] for name in FIXED_SIZE_OUTPUTS}
