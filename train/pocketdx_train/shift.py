"""Simulated shift: what another scanner, another year or another technician does to a picture.

A validation split that comes from the training period saturates and cannot tell a robust model from a brittle one.
Seen through these fixed changes it can, without a look at the test split. The idea is that of ImageNet-C
(Hendrycks and Dietterich, 2019), with changes that occur in radiology and microscopy, at one moderate strength each.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

Shift = Callable[[torch.Tensor], torch.Tensor]


def _affine(angle: float, scale: float) -> Shift:
    def apply(pixels: torch.Tensor) -> Any:
        return tvf.affine(
            pixels,
            angle=angle,
            translate=[0.0, 0.0],
            scale=scale,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )

    return apply


def _noise(sigma: float) -> Shift:
    def apply(pixels: torch.Tensor) -> torch.Tensor:
        # A generator of its own: the same noise whatever ran before, and the training RNG is left alone.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(pixels.shape[-3:], generator=generator) * sigma
        return (pixels.float() + noise.to(pixels.device)).round().clamp(0, 255).to(torch.uint8)

    return apply


def _low_resolution(pixels: torch.Tensor) -> Any:
    height, width = pixels.shape[-2:]
    small = tvf.resize(pixels, [max(1, height // 2), max(1, width // 2)], antialias=True)
    return tvf.resize(small, [height, width], antialias=True)


def _compressed(pixels: torch.Tensor) -> torch.Tensor:
    return torch.stack([_as_jpeg(picture, quality=25) for picture in pixels])


def _as_jpeg(picture: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as compressed:
        return torch.from_numpy(np.array(compressed)).permute(2, 0, 1).to(picture.device)


SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {
        "underexposed": lambda p: tvf.adjust_gamma(p, 1.7),
        "overexposed": lambda p: tvf.adjust_gamma(p, 0.6),
        "low contrast": lambda p: tvf.adjust_contrast(p, 0.6),
        "high contrast": lambda p: tvf.adjust_contrast(p, 1.5),
        "out of focus": lambda p: tvf.gaussian_blur(p, [9, 9], [1.6, 1.6]),
        "sharpened": lambda p: tvf.adjust_sharpness(p, 3.0),
        "noisy": _noise(12.0),
        "rotated, nearer": _affine(8.0, 1.15),
        "turned, farther": _affine(-8.0, 0.85),
        "low resolution": _low_resolution,
        "compressed": _compressed,
    }
)


def shift_mixed(pixels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Each picture under one of the shifts, chosen by its number in the set, so that the set sees all of them.

    Args:
        pixels: uint8 [N, 3, S, S], on any device.
        numbers: int [N], the pictures' numbers in the set.

    Returns:
        uint8 [N, 3, S, S].
    """
    shifted = pixels.cpu().clone()
    which = numbers.cpu() % len(SHIFTS)
    for number, shift in enumerate(SHIFTS.values()):
        chosen = which == number
        if chosen.any():
            shifted[chosen] = shift(shifted[chosen])
    return shifted.to(pixels.device)
