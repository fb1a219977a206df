"""The frontier of an int8 search as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketdx_export.quantize.search import Candidate, Search

_HOLDS, _OVER, _OTHER = "#1b7837", "#b2182b", "#4d4d4d"


def frontier(found: Search) -> bytes:
    """A PNG: for each candidate its speed and size against the share of validation images that keep their top-1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, title, values in (
        (axes[0], "speed (fp32 = 1; right is faster)", [each.speed for each in found.candidates]),
        (axes[1], "size (fp32 = 1; left is smaller)", [each.size for each in found.candidates]),
    ):
        axis.axhline(found.budget.agreement * 100, color=_OVER, linewidth=0.8, linestyle="--")
        for each, value in zip(found.candidates, values, strict=True):
            share = 100 * each.decisions.lowest_agreement
            marker = "*" if each.name == found.chosen else "o" if each.recipe else "s"
            axis.scatter(value, share, color=_colour(each), marker=marker, s=140 if marker == "*" else 40, zorder=3)
            axis.annotate(each.name, (value, share), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("same top-1 as fp32, %\n(the lower of counted and expected)")
    figure.suptitle(
        f"int8 candidates: budget {found.budget} (dashed); green holds it, red does not, grey is another precision, "
        "star is chosen",
        fontsize=9,
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _colour(candidate: Candidate) -> str:
    if candidate.recipe is None:
        return _OTHER
    return _HOLDS if candidate.holds else _OVER
