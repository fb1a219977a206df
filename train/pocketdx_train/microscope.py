"""From stain maps to the picture that a camera on a microscope takes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pocketdx_train.smear import Dice, Map

_ABSORPTION = np.array(
    [
        # red, green, blue light; read off photographs of Wright-Giemsa smears
        [0.12, 0.36, 0.35],  # haemoglobin
        [0.72, 0.95, 0.20],  # purple of nuclei
        [0.07, 0.27, 0.06],  # pink of granules
        [0.44, 0.32, 0.11],  # blue of cytoplasm
    ]
)


@dataclass(frozen=True)
class Optics:
    """How one field is stained, lit, focused and recorded."""

    absorption: NDArray[np.float64]
    """Optical density of a unit of each stain in red, green and blue light, [4, 3]."""
    light: tuple[float, float, float]
    """Grey level of an empty field in red, green and blue."""
    vignette: float
    """Share of light lost in the corners."""
    slope: tuple[float, float]
    """Change of light from the middle to the right and the lower border, as a share."""
    blur: float
    """Standard deviation of the focus in pixels."""
    fringe: float
    """How much softer blue is than red, as a share of ``blur``: lateral colour of the lens."""
    noise: float
    """Standard deviation of the sensor noise at full light, in grey levels."""

    @classmethod
    def at_random(cls, dice: Dice, scale: float) -> Optics:
        """Draw the circumstances of a field of ``scale`` pixels per micrometre."""
        stain = np.array([[dice.between(0.84, 1.16) for _ in range(3)] for _ in range(4)])
        strength = np.array([dice.between(*limits) for limits in ((0.65, 1.35), (0.7, 1.25), (0.6, 1.3), (0.6, 1.3))])
        brightness, warmth, tint = dice.between(188, 232), dice.between(-0.06, 0.07), dice.between(-0.035, 0.02)
        return cls(
            absorption=_ABSORPTION * stain * strength[:, None],
            light=(brightness * (1 + warmth), brightness * (1 + tint), brightness * (1 - warmth)),
            vignette=dice.between(0.0, 0.16),
            slope=(dice.between(-0.06, 0.06), dice.between(-0.06, 0.06)),
            blur=scale * (dice.between(0.07, 0.16) if dice.chance(0.75) else dice.between(0.16, 0.26)),
            fringe=dice.between(0.0, 0.5),
            noise=dice.between(1.0, 4.5),
        )


def photograph(stains: Map, optics: Optics, dice: Dice) -> NDArray[np.uint8]:
    """Take a picture of stain maps [4, S, S]: uint8 [S, S, 3] RGB."""
    size = stains.shape[1]
    x = np.linspace(-1.0, 1.0, size, dtype=np.float32)[None, :]
    y = x.T
    fall_off = 1.0 - np.float32(optics.vignette / 2) * (x * x + y * y)
    fall_off = fall_off * (1.0 + x * optics.slope[0] + y * optics.slope[1])
    grain = sensor_noise(dice, (3, size, size))
    picture = np.empty((size, size, 3), dtype=np.uint8)
    for channel in range(3):
        density = np.zeros((size, size), dtype=np.float32)
        for stain in range(4):
            density += stains[stain] * np.float32(optics.absorption[stain, channel])
        seen = blurred(transmitted(density), optics.blur * (1.0 + optics.fringe * channel / 2))
        seen *= fall_off
        seen += grain[channel] * np.float32(optics.noise / 255.0) * np.sqrt(np.maximum(seen, 0.05))
        seen *= optics.light[channel]
        picture[:, :, channel] = np.clip(seen + 0.5, 0.0, 255.0)
    return picture


def transmitted(density: Map) -> Map:
    """Share of light that passes an optical density: exp(-density), as (1 + density / 8) ** -8.

    The power rounds alike on every machine, which the exponential of an array does not.
    """
    base: Map = 1.0 / np.maximum(1.0 + density * 0.125, 0.5)
    for _ in range(3):
        base = base * base
    return base


def blurred(image: Map, sigma: float) -> Map:
    """Blur [S, S] by a standard deviation of ``sigma`` pixels; borders are repeated outwards.

    As many passes of the kernel (w, 1 - 2w, w) in both directions as a variance of at most 1/2 each allows.
    """
    passes = max(1, int(sigma * sigma / 0.5 + 0.999))
    weight = np.float32(sigma * sigma / (2 * passes))
    for _ in range(passes):
        for axis in (0, 1):
            padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
            before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
            image = image + weight * (before + after - 2.0 * image)
    return image


def sensor_noise(dice: Dice, shape: tuple[int, int, int]) -> Map:
    """Noise of mean 0 and standard deviation 1, close to normal: the sum of four random bytes per value."""
    count = shape[0] * shape[1] * shape[2]
    octets = dice.octets(4 * count).reshape(4, count)
    total = octets[0].astype(np.int16)
    for row in octets[1:]:
        total += row
    values: Map = (total.astype(np.float32) - 510.0) * np.float32(1 / 147.8)
    return values.reshape(shape)
