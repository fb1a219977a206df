"""Does the first convolution get the right picture?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.parity.levels import Road, worst_of
from pocketdx_export.parity.report import Check
from pocketdx_export.parity.tolerances import Tolerances

# Grey levels; below it two pictures are the same, but for the rounding of normalising and back.
SAME = 0.01


def pixel_checks(road: Road, limits: Tolerances) -> list[Check]:
    """Largest and mean difference in grey levels, apart for pictures decoded at a reduced scale."""
    checks = []
    for title, which, most, mean in (
        ("", ~road.scaled, "pixel_max", "pixel_mean"),
        (", scaled decode", road.scaled, "scaled_max", "scaled_mean"),
    ):
        if which.any():
            rows = np.flatnonzero(which)
            checks.append(_largest(road, rows, road.pixel_max, f"grey levels{title}, max", most, limits))
            checks.append(_largest(road, rows, road.pixel_mean, f"grey levels{title}, mean", mean, limits))
    return checks


def _largest(
    road: Road, rows: NDArray[np.int64], values: NDArray[np.float64], name: str, limit: str, limits: Tolerances
) -> Check:
    row = rows[worst_of(values[rows])]
    return Check(
        "pixels",
        road.name,
        name,
        float(values[row]),
        getattr(limits, limit),
        worst=road.feeds[row].name,
        limit=limit,
    )
