"""Which blocks to compute in integers: candidates from what single blocks cost and gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BlockEffect:
    """What changes when one block computes in integers.

    Attributes:
        name: of the block.
        seconds: added to the latency by the block itself; below 0 where integers are faster.
        crossing: seconds for turning what enters the block from float32 into integers, or back.
        damage: squared error in logits.
    """

    name: str
    seconds: float
    crossing: float
    damage: float


def block_effects(
    names: Sequence[str],
    alone: Sequence[float],
    all_together: float,
    float_seconds: float,
    sizes: Sequence[int],
    damages: Sequence[float],
) -> tuple[BlockEffect, ...]:
    """Separate what a block gains from what its borders cost.

    A block that is alone in integers pays for both its borders; when all are, no border between two of them is paid.
    With a border's cost in proportion to the values that cross it, the difference between the two gives the factor.

    Args:
        names: of the blocks, in order.
        alone: seconds of the network with only that block in integers.
        all_together: seconds with all of them.
        float_seconds: seconds with none.
        sizes: values that enter each block, and after the last, those that leave it: one more than names.
        damages: of each block alone.
    """
    both_borders = [sizes[place] + sizes[place + 1] for place in range(len(names))]
    inner = sum(both_borders) - sizes[0] - sizes[-1]
    excess = sum(each - float_seconds for each in alone) - (all_together - float_seconds)
    rate = max(0.0, excess / inner) if inner else 0.0
    return tuple(
        BlockEffect(name, seconds - float_seconds - rate * border, rate * size, damage)
        for name, seconds, border, size, damage in zip(names, alone, both_borders, sizes[:-1], damages, strict=True)
    )


def plans(effects: Sequence[BlockEffect], steps: int = 24) -> tuple[tuple[str, ...], ...]:
    """Sets of blocks for integers, from the fastest to the least damaging.

    For each weight w of a range, the set of least `seconds + w * damage`, found exactly: blocks form a chain, and each
    is in integers or not (dynamic programming with two states). Effects are taken as adding up; the candidates are
    measured as a whole afterwards.
    """
    return tuple(dict.fromkeys(each for each in _least_costs(effects, steps) if each))


def between(effects: Sequence[BlockEffect], gentle: Sequence[str], fast: Sequence[str]) -> tuple[str, ...] | None:
    """A set between two others: what the gentle one has, and about half of what the fast one has beyond it.

    Of least cost, as `plans` are. Where those leave nothing between the two, the half that harms least for the seconds
    gained. None where the two are neighbours.
    """
    more = [each for each in effects if each.name in fast and each.name not in gentle]
    if len(more) < 2:
        return None
    fixed = {each.name: each.name in gentle for each in effects if each.name in gentle or each.name not in fast}
    sizes = len(set(gentle) & {each.name for each in effects}), len(set(gentle) | set(fast))
    found = [each for each in _least_costs(effects, 200, fixed) if sizes[0] < len(each) < sizes[1]]
    if found:
        return min(found, key=lambda each: abs(len(each) - sum(sizes) / 2))
    more.sort(key=lambda each: (each.seconds >= 0, each.damage / max(1e-9, -each.seconds)))
    chosen = {*gentle, *(each.name for each in more[: len(more) // 2])}
    return tuple(each.name for each in effects if each.name in chosen)


def _least_costs(
    effects: Sequence[BlockEffect], steps: int, fixed: Mapping[str, bool] | None = None
) -> list[tuple[str, ...]]:
    """The set of least cost at each of a range of weights of the damage; some blocks are `fixed` in integers or out."""
    weights = [0.0, *np.geomspace(1e-6, 1e3, steps - 1)]
    gains = max(1e-9, sum(abs(each.seconds) for each in effects))
    total = max(1e-12, sum(each.damage for each in effects))
    return [_best(effects, weight * gains / total, fixed or {}) for weight in weights]


def _best(effects: Sequence[BlockEffect], weight: float, fixed: Mapping[str, bool]) -> tuple[str, ...]:
    """The set of least cost at one weight; `fixed` says of some blocks whether they are in integers."""
    # For each state of the block before (False: float32): least cost so far, and the blocks chosen.
    states: dict[bool, tuple[float, tuple[str, ...]]] = {False: (0.0, ())}
    for each in effects:
        following: dict[bool, tuple[float, tuple[str, ...]]] = {}
        for integer in (fixed[each.name],) if each.name in fixed else (False, True):
            own = each.seconds + weight * each.damage if integer else 0.0
            names = (each.name,) if integer else ()
            following[integer] = min(
                (cost + own + (each.crossing if before != integer else 0.0), chosen + names)
                for before, (cost, chosen) in states.items()
            )
        states = following
    return min(states.values())[1]
