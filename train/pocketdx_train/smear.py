"""Drawn blood cells: how much of each stain lies where on a synthetic microscope field.

A field is a stack of stain maps, float32 [4, S, S]: haemoglobin, the purple of nuclei, the pink and the blue of
cytoplasm. Cells add their stain to the maps, so that overlapping cells darken each other as they do in
transmitted light; :mod:`pocketdx_train.microscope` makes a picture of them. The shapes follow what textbooks say
of a stained smear, not any data set, and resemble it; nothing can be learnt from them about patients.

Whole arrays go through ``+ - * /``, ``sqrt`` and comparisons only, which IEEE 754 defines to the last bit; sines
and cosines are of single angles. So a field is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Map = NDArray[np.floating[Any]]
    """float32; NumPy's stubs take a product with a Python float for float64."""

HAEMOGLOBIN, NUCLEUS, PINK, BLUE = range(4)
_REFERENCE_SIZE = 160
_BLUR_RADII = (0, 1, 2, 5, 22)  # pixels at the reference size
GRAIN, FINE, COARSE, BLOTCH, HAZE = range(5)


class Dice:
    """Random numbers for drawing; only the bit generator and uniform numbers, the same everywhere."""

    def __init__(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._generator.random()

    def chance(self, probability: float) -> bool:
        """Return true with ``probability``."""
        return self._generator.random() < probability

    def count(self, low: int, high: int) -> int:
        """Whole number, ``high`` included."""
        return low + int(self._generator.random() * (high - low + 1))

    def octets(self, count: int) -> NDArray[np.uint8]:
        """``count`` random bytes."""
        return np.frombuffer(self._generator.bytes(count), dtype=np.uint8)


@lru_cache(maxsize=4)
def _noise_tiles(size: int) -> tuple[Map, ...]:
    """Noise [T, T] with T >= 2 * size, from grain to haze, mean about 0 and standard deviation about 1."""
    side = max(512, 2 * size)
    white = Dice(0, size).octets(side * side).reshape(side, side)
    tiles = []
    for radius in _BLUR_RADII:
        tile = white.astype(np.int64)
        width = 1
        for _ in range(3 if radius else 0):  # three box blurs come close to a Gaussian; exact in integers
            reach = max(1, round(radius * size / _REFERENCE_SIZE))
            width *= (2 * reach + 1) ** 2
            for axis in (0, 1):
                tile = _box_sum(tile, reach, axis)
        centred = tile.astype(np.float64) - 127.5 * width
        spread = (3.4 if radius else 1.7) / float(np.abs(centred).max())
        tiles.append((centred * spread).astype(np.float32))
    return tuple(tiles)


def _box_sum(values: NDArray[np.int64], reach: int, axis: int) -> NDArray[np.int64]:
    """Sum over 2 * reach + 1 neighbours along an axis, wrapping around."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (reach + 1, reach)
    sums = np.cumsum(np.pad(values, widths, mode="wrap"), axis=axis)
    span = 2 * reach + 1
    return np.asarray(
        np.take(sums, range(span, sums.shape[axis]), axis) - np.take(sums, range(sums.shape[axis] - span), axis)
    )


def noise(dice: Dice, size: int, grain: int, shape: tuple[int, int]) -> Map:
    """Cut a piece of noise [h, w] out of a tile, turned and mirrored at random."""
    tile = _noise_tiles(size)[grain]
    if dice.chance(0.5):
        tile = tile.T
    tile = tile[:: 1 if dice.chance(0.5) else -1, :: 1 if dice.chance(0.5) else -1]
    top, left = (dice.count(0, len(tile) - side) for side in shape)
    return tile[top : top + shape[0], left : left + shape[1]]


@dataclass(frozen=True)
class Window:
    """The part of a field around a point."""

    rows: slice
    columns: slice
    dx: Map
    """Pixels to the right of the point, [1, w]."""
    dy: Map
    """Pixels below the point, [h, 1]."""

    @classmethod
    def around(cls, x: float, y: float, reach: float, size: int) -> Window | None:
        """Cut out ``reach`` pixels to each side; None if that lies outside the field."""
        left, right = max(0, int(x - reach)), min(size, int(x + reach) + 2)
        top, bottom = max(0, int(y - reach)), min(size, int(y + reach) + 2)
        if left >= right or top >= bottom:
            return None
        dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
        return cls(slice(top, bottom), slice(left, right), dx, dy)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.dy.shape[0], self.dx.shape[1]


def turned(dx: Map, dy: Map, angle: float, stretch: float) -> tuple[Map, Map]:
    """Coordinates in a frame turned by ``angle`` and stretched by ``stretch`` along its first axis."""
    cos, sin = math.cos(angle), math.sin(angle)
    return (dx * cos + dy * sin) / stretch, (dy * cos - dx * sin) * stretch


def wobble(dice: Dice, strength: float, orders: int = 4) -> list[tuple[float, float]]:
    """Random harmonics 2, 3, ... of a contour, fading with their order."""
    return [
        (dice.between(-strength, strength) / k, dice.between(-strength, strength) / k) for k in range(1, orders + 1)
    ]


def blob(dx: Map, dy: Map, radius: float, harmonics: Sequence[tuple[float, float]]) -> tuple[Map, Map]:
    """Wobbly disc: signed distance to its edge in pixels (negative inside), and distance / radius from 0 to 1."""
    distance = np.sqrt(dx * dx + dy * dy) + np.float32(1e-3)
    cos, sin = dx / distance, dy / distance
    cos_k, sin_k = cos, sin
    edge = np.ones_like(distance)
    for a, b in harmonics:
        cos_k, sin_k = cos_k * cos - sin_k * sin, sin_k * cos + cos_k * sin
        edge += a * cos_k + b * sin_k
    edge *= radius
    return distance - edge, distance / edge


def inside(distance: Map, softness: float) -> Map:
    """1 well inside, 0 well outside, a smooth step ``softness`` pixels wide between."""
    t: Map = np.clip(0.5 - distance / softness, 0.0, 1.0)
    step: Map = t * t * (3.0 - 2.0 * t)
    return step


def merged(a: Map, b: Map, roundness: float) -> Map:
    """Signed distance to the union of two shapes, the crease between them filled over ``roundness`` pixels."""
    fillet = np.maximum(roundness - np.abs(a - b), 0.0)
    return np.minimum(a, b) - fillet * fillet * (0.25 / roundness)


def rod(dx: Map, dy: Map, start: tuple[float, float], end: tuple[float, float], radius: float) -> Map:
    """Signed distance to a straight rod with round ends."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    length = max(along_x * along_x + along_y * along_y, 1e-6)
    from_x, from_y = dx - np.float32(start[0]), dy - np.float32(start[1])
    t = np.clip((from_x * along_x + from_y * along_y) / length, 0.0, 1.0)
    off_x, off_y = from_x - t * along_x, from_y - t * along_y
    return np.sqrt(off_x * off_x + off_y * off_y) - np.float32(radius)


@dataclass(frozen=True)
class Field:
    """A field being drawn: stain maps and what all its cells share."""

    stains: Map
    """[4, S, S], see the module."""
    dice: Dice
    scale: float
    """Pixels per micrometre."""
    softness: float
    """Width of a sharp edge in pixels."""
    fringe: float
    """Brightness of the rim of light around cells."""

    @property
    def size(self) -> int:
        """Pixels to a side."""
        return int(self.stains.shape[1])

    def noise(self, grain: int, shape: tuple[int, int]) -> Map:
        """Noise of this field's size."""
        return noise(self.dice, self.size, grain, shape)

    def add(self, window: Window, stain: int, amount: Map) -> None:
        """Add a stain to the part of the field that ``window`` shows."""
        self.stains[stain, window.rows, window.columns] += amount

    def add_fringe(self, window: Window, stain: int, distance: Map) -> None:
        """Thin the stain in a line just outside an edge: light bent by the cell."""
        off = (distance - np.float32(1.6 * self.softness)) / np.float32(1.1 * self.softness)
        line = np.maximum(1.0 - off * off, 0.0)
        self.add(window, stain, line * line * np.float32(-self.fringe))


def draw_red_cell(field: Field, x: float, y: float, radius: float) -> None:
    """Draw a red cell at (x, y) pixels: a disc, pale in the middle, often oval or dented."""
    dice = field.dice
    window = Window.around(x, y, 1.35 * radius + 4, field.size)
    if window is None:
        return
    dx, dy = turned(window.dx, window.dy, dice.between(0, math.pi), dice.between(1.0, 1.13))
    distance, way_out = blob(dx, dy, radius, wobble(dice, 0.06))
    body = inside(distance, field.softness * 1.3)
    pale = dice.between(0.4, 0.85) if dice.chance(0.85) else 0.0
    hollow = np.maximum(1.0 - way_out * way_out * (1.0 / dice.between(0.3, 0.6)), 0.0)
    rim = way_out * way_out
    thickness = 0.84 + 0.24 * rim * rim - pale * hollow * (1.6 - 0.6 * hollow)
    thickness += 0.035 * field.noise(COARSE, window.shape)
    field.add(window, HAEMOGLOBIN, body * thickness * np.float32(dice.between(0.85, 1.15)))
    field.add_fringe(window, HAEMOGLOBIN, distance)
    if dice.chance(0.06):  # a bubble of light, as drying leaves them
        _draw_bubble(field, x + dice.between(-4, 4), y + dice.between(-4, 4))


def draw_platelet(field: Field, x: float, y: float) -> None:
    """Draw a platelet: a small granular fleck."""
    dice = field.dice
    radius = dice.between(0.8, 1.5) * field.scale
    window = Window.around(x, y, 2 * radius + 4, field.size)
    if window is None:
        return
    dx, dy = turned(window.dx, window.dy, dice.between(0, math.pi), dice.between(1.0, 1.4))
    distance, _ = blob(dx, dy, radius, wobble(dice, 0.12))
    ragged = distance + np.float32(0.09 * field.scale) * field.noise(COARSE, window.shape)
    body = inside(ragged, field.softness * 3)
    grains = np.maximum(0.9 + 0.25 * field.noise(FINE, window.shape), 0.1)
    field.add(window, NUCLEUS, body * grains * np.float32(dice.between(0.25, 0.6)))
    field.add(window, PINK, body * np.float32(0.3))


def _draw_bubble(field: Field, x: float, y: float) -> None:
    radius = field.dice.between(0.35, 0.7) * field.scale
    window = Window.around(x, y, radius + 5, field.size)
    if window is None:
        return
    distance, _ = blob(window.dx, window.dy, radius, [])
    ring = inside(np.abs(distance) - 0.6, field.softness)
    field.add(window, HAEMOGLOBIN, 0.5 * ring - 0.45 * inside(distance + 1.0, field.softness))


def draw_debris(field: Field, x: float, y: float) -> None:
    """Draw what else lies on a slide: a crumb of stain or a bubble."""
    if field.dice.chance(0.6):
        _draw_bubble(field, x, y)
        return
    window = Window.around(x, y, 8, field.size)
    if window is not None:
        radius = field.dice.between(0.2, 0.5) * field.scale
        distance, _ = blob(window.dx, window.dy, radius, wobble(field.dice, 0.2))
        field.add(window, NUCLEUS, inside(distance, field.softness * 1.5) * np.float32(0.8))
