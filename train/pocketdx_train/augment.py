"""Augmentation recipes, on uint8 pictures, through `torchvision.transforms.v2`.

What shifts between two hospitals, or two years of one, is light (exposure, contrast, gamma), sharpness and how the
patient or the slide lay; so that is what the recipes vary. Colour is varied little: stain carries meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from pocketdx_train.errors import TrainError

Augmentation = Callable[[torch.Tensor], torch.Tensor]


class RandomGamma(v2.Transform):  # type: ignore[misc]
    """Raises pixel values to a random power, drawn log-uniformly from [1/limit, limit]: a change of exposure curve."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the exponent for one call."""
        exponent = (torch.rand(()).item() * 2.0 - 1.0) * torch.log(torch.tensor(self.limit)).item()
        return {"gamma": float(torch.exp(torch.tensor(exponent)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the drawn exponent."""
        return self._call_kernel(tvf.adjust_gamma, inpt, gamma=params["gamma"])


class RandomNoise(v2.Transform):  # type: ignore[misc]
    """Adds Gaussian noise of a random strength, drawn uniformly from [0, sigma] grey levels, the same in all channels
    half of the time (as in a grey picture)."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the strength and whether the channels share the noise."""
        return {"sigma": torch.rand(()).item() * self.sigma, "grey": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Add the noise to one picture."""
        shape = (1, *inpt.shape[-2:]) if params["grey"] else inpt.shape
        noise = torch.randn(shape) * params["sigma"]
        return (inpt.float() + noise).round_().clamp_(0, 255).to(inpt.dtype)


def _geometry(degrees: float, shift: float, scale: float, shear: float) -> v2.RandomAffine:
    return v2.RandomAffine(
        degrees=degrees,
        translate=(shift, shift),
        scale=(1.0 - scale, 1.0 + scale),
        shear=shear,
        interpolation=v2.InterpolationMode.BILINEAR,
    )


def _none() -> Any:
    return v2.Identity()


def _light() -> Any:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            _geometry(degrees=5, shift=0.05, scale=0.05, shear=0),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]
    )


def _medical() -> Any:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            _geometry(degrees=12, shift=0.08, scale=0.15, shear=4),
            RandomGamma(1.6),
            v2.ColorJitter(brightness=0.25, contrast=0.35, saturation=0.1),
            v2.RandomApply([v2.GaussianBlur(kernel_size=7, sigma=(0.3, 2.0))], p=0.25),
            v2.RandomApply([RandomNoise(16.0)], p=0.5),
        ]
    )


def _strong() -> Any:
    return v2.Compose(
        [
            _medical(),
            v2.RandomAutocontrast(p=0.2),
            v2.RandomEqualize(p=0.15),
            v2.RandomErasing(p=0.35, scale=(0.02, 0.15)),
        ]
    )


def _wide() -> Any:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            _geometry(degrees=12, shift=0.08, scale=0.25, shear=4),
            RandomGamma(2.2),
            v2.ColorJitter(brightness=0.3, contrast=0.5, saturation=0.1),
            v2.RandomApply([v2.GaussianBlur(kernel_size=7, sigma=(0.3, 2.0))], p=0.25),
            v2.RandomApply([RandomNoise(16.0)], p=0.4),
            v2.RandomAutocontrast(p=0.2),
            v2.RandomEqualize(p=0.2),
            v2.RandomErasing(p=0.35, scale=(0.02, 0.2)),
        ]
    )


class _GreyOnce:
    """Varies one channel of a grey picture instead of three equal ones: half the time, and grey stays grey."""

    def __init__(self, recipe: Augmentation) -> None:
        self.recipe = recipe

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        red, green, blue = picture
        if torch.equal(red, green) and torch.equal(red, blue):
            return self.recipe(picture[:1].contiguous()).expand(3, -1, -1).contiguous()
        return self.recipe(picture)


RECIPES: Mapping[str, Callable[[], Augmentation]] = MappingProxyType(
    {"none": _none, "light": _light, "medical": _medical, "strong": _strong, "wide": _wide}
)


def augmentation(name: str) -> Augmentation:
    """The recipe of that name: a function from one uint8 tensor [3, S, S] to another, drawing on torch's global RNG.

    Raises:
        TrainError: there is no recipe of that name.
    """
    if name not in RECIPES:
        raise TrainError(f"{name}: no such augmentation; choose one of {', '.join(RECIPES)}")
    return _GreyOnce(RECIPES[name]())
