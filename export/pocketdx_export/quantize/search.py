"""The search for an int8 file: which blocks compute in integers, and how, under a budget on validation decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from pocketdx_export.errors import ExportError
from pocketdx_export.quantize.budget import Budget
from pocketdx_export.quantize.build_w8 import stored
from pocketdx_export.quantize.calibration import RANGES
from pocketdx_export.quantize.integer import Quantizer, Recipe
from pocketdx_export.quantize.plan import BlockEffect, between, block_effects, plans
from pocketdx_export.quantize.trial import Decisions, Judge, Timer, ratio

# Measured as a whole: enough for a frontier, few enough for a minute.
_MOST_CANDIDATES = 10
_ROUNDS_ALONE = 15
_ROUNDS = 25
# Halvings between the fastest that holds the budget and the next that does not.
_REFINEMENTS = 6
# Two latencies nearer than this are not told apart on a busy machine.
SAME_SPEED = 0.02


@dataclass(frozen=True)
class Candidate:
    """One file that was made and measured.

    Attributes:
        name: for the table.
        recipe: how it was made; None for those of another precision.
        size: bytes by fp32's.
        speed: fp32's latency by its own: above 1 is faster.
        decisions: against fp32 on validation.
        holds: whether it is within the budget.
    """

    name: str
    recipe: Recipe | None
    size: float
    speed: float
    decisions: Decisions
    holds: bool


@dataclass(frozen=True)
class Search:
    """The path of a search and where it ended.

    Attributes:
        budget: the limits.
        candidates: in the order in which they were measured; those of other precisions first.
        tried: what was tried about ranges, equalisation and biases: name and error in logits.
        effects: of each block alone: name, seconds added, error in logits.
        chosen: the name of the candidate that was taken; None where no one holds the budget.
    """

    budget: Budget
    candidates: tuple[Candidate, ...]
    tried: tuple[tuple[str, float], ...]
    effects: tuple[tuple[str, float, float], ...]
    chosen: str | None

    def candidate(self, name: str) -> Candidate:
        """The one of this name."""
        return next(each for each in self.candidates if each.name == name)

    def advice(self) -> str:
        """Whether int8 is the right choice on this machine, in one sentence."""
        w8 = self.candidate("w8")
        if self.chosen is None:
            return "int8 misses its budget; w8 is as small, computes in float32 and is the better choice"
        chosen = self.candidate(self.chosen)
        if chosen.speed < max(1.0, w8.speed) * (1 + SAME_SPEED):
            return (
                f"on this machine int8 ({chosen.speed:.2f}x fp32's speed) is no faster than float32 "
                f"(w8: {w8.speed:.2f}x): "
                f"w8 is as small ({w8.size:.2f} of fp32's size) and nearer to the full model, so the better choice here"
            )
        return f"on this machine int8 is {chosen.speed:.2f}x as fast as fp32, at {chosen.size:.2f} of its size"

    def table(self) -> str:
        """For a terminal."""
        head = (
            "candidate",
            "integer blocks",
            "size",
            "speed",
            "same top-1",
            "shifted",
            "expected",
            "surely",
            "AUC loss",
            "",
        )
        rows: list[tuple[str, ...]] = [head]
        for each in self.candidates:
            found = each.decisions
            blocks = str(len(each.recipe.integer)) if each.recipe else "-"
            verdict = "chosen" if each.name == self.chosen else "" if each.holds else "over budget"
            rows.append(
                (
                    *(each.name, blocks, f"{each.size:.3f}", f"{each.speed:.2f}x"),
                    *(f"{value:.2%}" for value in (found.agreement, found.shifted_agreement)),
                    *(f"{value:.2%}" for value in (found.expected_agreement, found.sure_agreement)),
                    *(f"{found.auc_loss:.4f}", verdict),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "advice": self.advice()}


def search(
    fp32: onnx.ModelProto,
    quantizer: Quantizer,
    judge: Judge,
    budget: Budget,
    timer: Timer,
    size: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Search, onnx.ModelProto | None]:
    """Find the fastest, smallest int8 graph within the budget.

    1. Ranges, equalisation and bias correction: what gives the least error with every block in integers.
    2. Each block alone: its error, and what it adds to the latency.
    3. Sets of blocks from the fastest to the least damaging (`plans`), each made, judged and timed as a whole.
    4. Sets between the fastest of them that holds the budget and the next one that does not (`between`).

    Returns:
        The search, and the chosen graph; None where no candidate holds the budget.
    """
    base, tried = _best_recipe(quantizer, judge)
    effects = _effects(fp32, quantizer, judge, base, timer, size)
    say(f"int8: ranges by {base.ranges}; {len(effects)} blocks tried alone")
    blocks = list(dict.fromkeys((*_spread(plans(effects), _MOST_CANDIDATES), *_gentlest(effects))))
    trials = _Trials(fp32, quantizer, judge, budget, timer, size, base)
    trials.measure(blocks)
    for _ in range(_REFINEMENTS):
        nearer = _nearer(trials.candidates, effects)
        if nearer is None:
            break
        trials.measure([nearer])
    chosen = _fastest([each for each in trials.candidates if each.recipe and each.holds])
    measured = tuple((each.name, each.seconds, float(np.sqrt(each.damage))) for each in effects)
    found = Search(budget, tuple(trials.candidates), tried, measured, chosen)
    return found, trials.graphs[chosen] if chosen else None


@dataclass
class _Trials:
    """Candidates as they are made, judged and timed."""

    fp32: onnx.ModelProto
    quantizer: Quantizer
    judge: Judge
    budget: Budget
    timer: Timer
    size: int
    base: Recipe
    candidates: list[Candidate] = field(default_factory=list)
    graphs: dict[str, onnx.ModelProto] = field(default_factory=dict)

    def measure(self, sets: Sequence[tuple[str, ...]]) -> None:
        """Add a candidate for each set of integer blocks; timed together, the first time beside w8."""
        first = 1 + sum(each.recipe is not None for each in self.candidates)
        recipes = {f"int8-{n}": replace(self.base, integer=blocks) for n, blocks in enumerate(sets, start=first)}
        models = {name: self.quantizer.graph(recipe) for name, recipe in recipes.items()}
        if not self.candidates:
            models = {"fp32": self.fp32, "w8": stored(self.fp32, self.quantizer.moments), **models}
        self.graphs |= models
        seconds = self.timer({"fp32": self.fp32, **models}, self.size, _ROUNDS)
        for name, model in models.items():
            decisions = self.judge.decisions(model)
            self.candidates.append(
                Candidate(
                    name,
                    recipes.get(name),
                    size=model.ByteSize() / self.fp32.ByteSize(),
                    speed=ratio(seconds["fp32"], seconds[name]),
                    decisions=decisions,
                    holds=decisions.within(self.budget),
                )
            )


def _nearer(candidates: Sequence[Candidate], effects: Sequence[BlockEffect]) -> tuple[str, ...] | None:
    """Blocks between the fastest candidate that holds the budget and the nearest of the faster ones that do not.

    Not yet tried; where there are none, between it and the next nearest.
    """
    tried = [each for each in candidates if each.recipe]
    holding = max((each for each in tried if each.holds), key=lambda each: each.speed, default=None)
    gentle = holding.recipe.integer if holding and holding.recipe else ()
    faster = [each for each in tried if not each.holds and (holding is None or each.speed > holding.speed)]
    known = {each.recipe.integer for each in tried if each.recipe}
    for failing in sorted(faster, key=lambda each: each.decisions.error):
        found = between(effects, gentle, failing.recipe.integer) if failing.recipe else None
        if found is not None and found not in known:
            return found
    return None


def _best_recipe(quantizer: Quantizer, judge: Judge) -> tuple[Recipe, tuple[tuple[str, float], ...]]:
    """With every block in integers: each choice in turn, kept where it lessens the error."""
    tried: list[tuple[str, float]] = []

    def error(recipe: Recipe, name: str) -> float:
        value = judge.error(quantizer.graph(recipe))
        tried.append((name, value))
        return value

    best = Recipe(quantizer.names)
    least = error(best, best.ranges)
    # Equalisation first: it takes away the outliers for whose sake ranges would be cut.
    changes: list[dict[str, Any]] = [{"equalized": True}] if quantizer.can_equalize else []
    changes += [{"ranges": kind} for kind in RANGES if kind != best.ranges]
    for change in [*changes, {"corrected": False}]:
        changed = replace(best, **change)
        found = error(changed, changed.title)
        if found < least:
            best, least = changed, found
    return best, tuple(tried)


def _effects(
    fp32: onnx.ModelProto, quantizer: Quantizer, judge: Judge, base: Recipe, timer: Timer, size: int
) -> tuple[BlockEffect, ...]:
    alone = {name: quantizer.graph(replace(base, integer=(name,))) for name in quantizer.names}
    damages = [judge.error(model) ** 2 for model in alone.values()]
    together = quantizer.graph(replace(base, integer=quantizer.names))
    seconds = timer({"fp32": fp32, "together": together, **alone}, size, _ROUNDS_ALONE)
    # By the ratio within each round, so that a slow moment of the machine does not count as a slow block.
    reference = float(np.median(seconds["fp32"]))
    typical = {name: reference / ratio(seconds["fp32"], each) for name, each in seconds.items()}
    return block_effects(
        quantizer.names,
        [typical[name] for name in quantizer.names],
        typical["together"],
        typical["fp32"],
        quantizer.border_sizes(),
        damages,
    )


def _gentlest(effects: Sequence[BlockEffect]) -> list[tuple[str, ...]]:
    """The two single blocks that harm least, of those that integers do not make slower: where nothing else will do."""
    able = [each for each in effects if each.seconds <= 0] or list(effects)
    return [(each.name,) for each in sorted(able, key=lambda each: each.damage)[:2]]


def _spread(found: Sequence[tuple[str, ...]], most: int) -> list[tuple[str, ...]]:
    """At most so many, evenly over the order, ends included."""
    if len(found) <= most:
        return list(found)
    places = np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))
    return [found[place] for place in places]


def _fastest(candidates: Sequence[Candidate]) -> str | None:
    """Of those about as fast as the fastest, the one nearest to fp32."""
    if not candidates:
        return None
    top = max(each.speed for each in candidates)
    near = [each for each in candidates if each.speed >= top * (1 - SAME_SPEED)]
    return min(near, key=lambda each: (each.decisions.error, each.size)).name


def impossible(found: Search) -> ExportError:
    """What to say when no candidate holds the budget."""
    tried = [each for each in found.candidates if each.recipe]
    best = max(tried, key=lambda each: each.decisions.lowest_agreement)
    return ExportError(
        f"int8: none of {len(tried)} candidates holds the budget {found.budget} on validation; the nearest has "
        f"agreement {best.decisions.lowest_agreement:.4f}, AUC loss {best.decisions.auc_loss:.4f}; "
        "take --precision w8, give a wider --budget, or --qat"
    )
