"""The frontier of an int8 search as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pocketdx_export.quantize.search import Candidate, Search

_HOLDS, _OVER, _OTHER = "#1b7837", "#b2182b", "#4d4d4d"


def frontier(found: Search) -> bytes:
    """A PNG: for each candidate its speed and size against the share of validation images that keep their top-1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    speed, size = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _panel(speed, found, "speed (fp32 = 1; right is faster)", [each.speed for each in found.candidates])
    _panel(size, found, "size (fp32 = 1; left is smaller)", [each.size for each in found.candidates], candidates=False)
    speed.set_ylabel("same top-1 as fp32, %\n(the lower of counted and surely expected)")
    figure.suptitle(
        f"int8 candidates by number. Budget {found.budget} (dashed); green holds it, red does not, star is chosen",
        fontsize=9,
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _panel(axis: Axes, found: Search, title: str, values: list[float], *, candidates: bool = True) -> None:
    """The candidates at `values`; named, or only the chosen one and the other precisions."""
    axis.axhline(found.budget.agreement * 100, color=_OVER, linewidth=0.8, linestyle="--")
    for each, value in zip(found.candidates, values, strict=True):
        share = 100 * each.decisions.lowest_agreement
        chosen = each.name == found.chosen
        marker = "*" if chosen else "o" if each.recipe else "s"
        axis.scatter(value, share, color=_colour(each), marker=marker, s=140 if chosen else 40, zorder=3)
        if candidates or chosen or each.recipe is None:
            name = each.name.removeprefix("int8-")
            axis.annotate(name, (value, share), xytext=(0, 7), textcoords="offset points", fontsize=8, ha="center")
    axis.set_xlabel(title)
    axis.margins(0.08)
    axis.grid(alpha=0.3)


def _colour(candidate: Candidate) -> str:
    if candidate.recipe is None:
        return _OTHER
    return _HOLDS if candidate.holds else _OVER
