"""Drawn white cells: a neutrophil, a lymphocyte and a blast, as textbooks tell them apart.

What differs is form: a nucleus in lobes within granular pink cytoplasm; a small round nucleus of dense clumps in
a thin blue rim; a large nucleus of fine, open chromatin with nucleoli, and scant deep blue cytoplasm. Size and
depth of stain overlap, and vary from field to field.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pocketdx_train.smear import (
    BLOTCH,
    BLUE,
    COARSE,
    FINE,
    GRAIN,
    NUCLEUS,
    PINK,
    Window,
    blob,
    inside,
    merged,
    rod,
    turned,
    wobble,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketdx_train.smear import Field, Map

CLASSES = ("blast", "lymphocyte", "neutrophil")
"""Class names in the order of their index."""


def draw_white_cell(field: Field, kind: str, x: float, y: float) -> float:
    """Draw a white cell of ``kind`` (one of ``CLASSES``) at (x, y) pixels and return its radius in pixels."""
    radius = field.dice.between(*_RADII[kind]) * field.scale
    window = Window.around(x, y, 1.3 * radius + 5, field.size)
    if window is not None:
        dx, dy = turned(window.dx, window.dy, field.dice.between(0, math.pi), field.dice.between(1.0, 1.12))
        _ARTISTS[kind](field, window, dx, dy, radius)
    return radius


def _warped(field: Field, window: Window, dx: Map, dy: Map, amount: float) -> tuple[Map, Map]:
    """Coordinates pushed about by noise, which makes contours irregular; ``amount`` in micrometres."""
    push = np.float32(amount * field.scale)
    return (
        dx + push * field.noise(BLOTCH, window.shape),
        dy + push * field.noise(BLOTCH, window.shape),
    )


def _draw_cytoplasm(field: Field, window: Window, distance: Map, *, pink: float, blue: float, grain: float) -> None:
    """Fill the cell body; ``grain`` is how granular the pink is."""
    body = inside(distance, field.softness * 1.6)
    edge = 1.0 + 0.35 * inside(-distance - np.float32(1.2 * field.scale), 1.6 * field.scale)
    cloud = 1.0 + 0.13 * field.noise(COARSE, window.shape)
    granules = 1.0 + grain * field.noise(FINE, window.shape) + 0.3 * grain * field.noise(GRAIN, window.shape)
    field.add(window, PINK, body * np.float32(pink) * np.maximum(granules, 0.1))
    field.add(window, BLUE, body * edge * cloud * np.float32(blue))
    field.add_fringe(window, PINK, distance)


def _chromatin(field: Field, window: Window, *, clumps: float, threads: float) -> Map:
    """Texture of a nucleus about 1: ``clumps`` of a micrometre with clear gaps, ``threads`` finer than that."""
    coarse = field.noise(COARSE, window.shape) + 0.5 * field.noise(BLOTCH, window.shape)
    gaps = np.minimum(coarse * coarse * 0.8, 1.0)  # where coarse noise crosses 0: pale lanes between clumps
    return 1.0 + clumps * (gaps - 0.55) + threads * field.noise(FINE, window.shape)


def _fill_nucleus(field: Field, window: Window, distance: Map, texture: Map, depth: float) -> None:
    body = inside(distance, field.softness * 1.4)
    field.stains[PINK : BLUE + 1, window.rows, window.columns] *= 1.0 - 0.75 * body  # it displaces cytoplasm
    membrane = inside(np.abs(distance + 0.25 * field.scale), 0.7 * field.scale)
    field.add(window, NUCLEUS, body * np.float32(depth) * np.maximum(texture + 0.14 * membrane, 0.05))


def _draw_neutrophil(field: Field, window: Window, dx: Map, dy: Map, radius: float) -> None:
    dice = field.dice
    body, _ = blob(dx, dy, radius, wobble(dice, 0.07))
    _draw_cytoplasm(field, window, body, pink=dice.between(0.55, 1.15), blue=dice.between(0.0, 0.18), grain=0.3)
    lobes = dice.count(2, 5)
    lobe_radius = radius * dice.between(0.92, 1.08) * (0.37, 0.32, 0.28, 0.255)[lobes - 2]
    orbit = radius * dice.between(0.92, 1.05) * (0.43, 0.50, 0.53, 0.54)[lobes - 2]
    step = dice.between(0.9, 1.05) * (2.6, 1.75, 1.4, 1.2)[lobes - 2]
    bridge = dice.between(0.5, 0.9) if dice.chance(0.2) else dice.between(0.12, 0.3)
    lobe_dx, lobe_dy = _warped(field, window, dx, dy, 0.22)
    angle = dice.between(0, 2 * math.pi)
    nucleus, last = None, None
    for _ in range(lobes):
        far = orbit * dice.between(0.8, 1.12)
        place = (far * math.cos(angle), far * math.sin(angle))
        own_dx, own_dy = turned(
            lobe_dx - np.float32(place[0]),
            lobe_dy - np.float32(place[1]),
            dice.between(0, math.pi),
            dice.between(1.0, 1.25),
        )
        lobe, _ = blob(own_dx, own_dy, lobe_radius * dice.between(0.85, 1.15), wobble(dice, 0.1))
        nucleus = lobe if nucleus is None else merged(nucleus, lobe, 0.2 * field.scale)
        if last is not None:
            thread = rod(lobe_dx, lobe_dy, last, place, lobe_radius * bridge)
            nucleus = merged(nucleus, thread, 0.4 * field.scale)
        last = place
        angle += step * dice.between(0.85, 1.15)
    assert nucleus is not None
    _fill_nucleus(field, window, nucleus, _chromatin(field, window, clumps=0.28, threads=0.05), dice.between(0.85, 1.1))


def _draw_lymphocyte(field: Field, window: Window, dx: Map, dy: Map, radius: float) -> None:
    dice = field.dice
    body, _ = blob(dx, dy, radius, wobble(dice, 0.06))
    _draw_cytoplasm(field, window, body, pink=dice.between(0.05, 0.25), blue=dice.between(0.35, 0.75), grain=0.12)
    nucleus_radius = radius * dice.between(0.74, 0.9)
    angle, off = dice.between(0, 2 * math.pi), 0.75 * (radius - nucleus_radius)
    own_dx, own_dy = _warped(
        field,
        window,
        dx - np.float32(off * math.cos(angle)),
        dy - np.float32(off * math.sin(angle)),
        0.12,
    )
    nucleus, _ = blob(own_dx, own_dy, nucleus_radius, wobble(dice, 0.04, orders=3))
    if dice.chance(0.4):  # dented
        dent = math.pi * dice.between(0, 2)
        far = nucleus_radius * dice.between(1.15, 1.3)
        hole, _ = blob(
            own_dx - np.float32(far * math.cos(dent)),
            own_dy - np.float32(far * math.sin(dent)),
            0.35 * nucleus_radius,
            [],
        )
        nucleus = np.maximum(nucleus, -hole)
    texture = _chromatin(field, window, clumps=0.34, threads=0.04)
    _fill_nucleus(field, window, nucleus, texture, dice.between(0.95, 1.25))


def _draw_blast(field: Field, window: Window, dx: Map, dy: Map, radius: float) -> None:
    dice = field.dice
    body_dx, body_dy = _warped(field, window, dx, dy, 0.28)
    body, _ = blob(body_dx, body_dy, radius, wobble(dice, 0.07))
    _draw_cytoplasm(field, window, body, pink=dice.between(0.0, 0.25), blue=dice.between(0.6, 1.15), grain=0.15)
    nucleus_radius = radius * dice.between(0.76, 0.88)
    angle, off = dice.between(0, 2 * math.pi), 0.7 * (radius - nucleus_radius)
    own_dx, own_dy = _warped(
        field,
        window,
        dx - np.float32(off * math.cos(angle)),
        dy - np.float32(off * math.sin(angle)),
        0.3,
    )
    nucleus, _ = blob(own_dx, own_dy, nucleus_radius, wobble(dice, 0.08))
    texture = _chromatin(field, window, clumps=0.1, threads=0.09)
    for _ in range(dice.count(1, 4)):
        turn, far = dice.between(0, 2 * math.pi), nucleus_radius * dice.between(0.05, 0.62)
        spot_dx, spot_dy = turned(
            own_dx - np.float32(far * math.cos(turn)),
            own_dy - np.float32(far * math.sin(turn)),
            dice.between(0, math.pi),
            dice.between(1.0, 1.3),
        )
        spot, _ = blob(spot_dx, spot_dy, dice.between(0.85, 1.45) * field.scale, wobble(dice, 0.1))
        # A nucleolus: paler and bluer than the chromatin, which lies around it in a dark ring.
        ring = inside(np.abs(spot - 0.2 * field.scale), 0.7 * field.scale)
        texture = texture * (1.0 - 0.42 * inside(spot, 0.6 * field.scale)) + 0.12 * ring
    _fill_nucleus(field, window, nucleus, texture, dice.between(0.6, 0.88))
    if dice.chance(0.25):
        _draw_vacuoles(field, window, dx, dy, radius)


def _draw_vacuoles(field: Field, window: Window, dx: Map, dy: Map, radius: float) -> None:
    """Punch small clear holes into what is there."""
    dice = field.dice
    stains = field.stains[:, window.rows, window.columns]
    for _ in range(dice.count(2, 6)):
        angle, far = dice.between(0, 2 * math.pi), radius * dice.between(0.6, 0.92)
        hole, _ = blob(
            dx - np.float32(far * math.cos(angle)),
            dy - np.float32(far * math.sin(angle)),
            dice.between(0.25, 0.5) * field.scale,
            [],
        )
        stains *= 1.0 - 0.75 * inside(hole, field.softness)


_RADII = {"blast": (5.3, 7.8), "lymphocyte": (4.3, 6.4), "neutrophil": (5.6, 7.8)}
"""Radius in micrometres: from, to."""
_ARTISTS: dict[str, Callable[[Field, Window, Map, Map, float], None]] = {
    "blast": _draw_blast,
    "lymphocyte": _draw_lymphocyte,
    "neutrophil": _draw_neutrophil,
}
