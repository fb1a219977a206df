"""Is the file as good a test as the full model? Sensitivity, specificity and AUC on both sides, picture by picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketdx_export.parity.levels.decisions import Side
from pocketdx_export.parity.paired import Paired, bootstrap, clustered, delong, proportions
from pocketdx_export.parity.report import Check, ClinicalFigure
from pocketdx_export.parity.tolerances import Tolerances
from pocketdx_train.bootstrap import Resampler
from pocketdx_train.figures import RankedScores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2000
CHANCE = 0.05
"""A difference whose paired test gives this p or more is not told from chance."""
LEAST = 5
"""Pictures of a class, and of the others, below which no figure is given: it would be about those few."""


@dataclass(frozen=True)
class Clinic:
    """How the clinical level judges.

    Attributes:
        margin: the largest loss of sensitivity, specificity or AUC that is accepted.
        require: whether a figure that is not shown to be non-inferior is red.
        seed: of the bootstrap.
    """

    margin: float = 0.02
    require: bool = False
    seed: int = 0


def clinical_figures(
    truth: Ints,
    reference: Side,
    ours: Side,
    labels: Sequence[str],
    patients: Sequence[Hashable | None],
    clinic: Clinic,
) -> tuple[ClinicalFigure, ...]:
    """Figures of both sides with a paired test each.

    Of two classes, those of the second: the first's are the same, the other way round. Of several, each class against
    the rest, and the mean AUC. DeLong for an AUC, McNemar for decisions; the bootstrap where they do not fit: for the
    mean, and where a patient has several pictures.

    Args:
        truth: int64 [N].
        reference, ours: both sides' decisions on these N pictures.
        labels: of the C classes.
        patients: of the pictures, where known.
        clinic: margin and seed.
    """
    resampler = Resampler.of(truth, len(labels), patients if clustered(patients) else None)
    together = resampler.patient_of is not None
    several = [1] if len(labels) == 2 else range(len(labels))
    figures: list[ClinicalFigure] = []

    def add(name: str, paired: Paired) -> None:
        figures.append(
            ClinicalFigure(
                name,
                paired.units,
                paired.reference,
                paired.ours,
                paired.low,
                paired.high,
                paired.p,
                paired.test,
                clinic.margin,
            )
        )

    finite = bool(np.isfinite(ours.scores).all() and np.isfinite(reference.scores).all())
    for k in several:
        positive = truth == k
        if min(positive.sum(), (~positive).sum()) < LEAST:
            continue
        if finite:
            if together:
                add(f"AUC of {labels[k]}", _mean_auc(truth, reference, ours, [k], resampler, clinic.seed))
            else:
                add(f"AUC of {labels[k]}", delong(positive, reference.scores[:, k], ours.scores[:, k]))
        for name, rows, right in (("sensitivity", positive, True), ("specificity", ~positive, False)):
            said, says = reference.found[:, k] == right, ours.found[:, k] == right
            if together:
                add(f"{name} for {labels[k]}", _share(rows, said, says, resampler, clinic.seed))
            else:
                add(f"{name} for {labels[k]}", proportions(said[rows], says[rows]))
    if finite and len(several) > 1:
        present = [k for k in several if LEAST <= (truth == k).sum() <= len(truth) - LEAST]
        if len(present) > 1:
            add("AUC, mean of classes", _mean_auc(truth, reference, ours, present, resampler, clinic.seed))
    return tuple(figures)


def clinic_checks(
    figures: Sequence[ClinicalFigure], ours: Side, limits: Tolerances, clinic: Clinic, *, whole: bool
) -> list[Check]:
    """Red where a figure is shown to be worse by more than the margin; if required, also where that is not shown.

    The difference of the mean AUC has a tolerance of its own. It is judged over all images (`whole`), and where it is
    beyond the tolerance only if the paired test tells it from chance: of few images, one that changes its rank moves
    the AUC by more than any tolerance worth the name, one way or the other.
    """
    checks = []
    for figure in figures:
        end = figure.low if clinic.require else figure.high
        kind = "non-inferiority shown" if clinic.require else "not inferior"
        checks.append(Check("clinic", "runtime", f"{figure.name}, {kind}", end, -clinic.margin, True, limit="margin"))
    aucs = [figure for figure in figures if figure.name.startswith("AUC")]
    if aucs and whole:
        apart = abs(aucs[-1].ours - aucs[-1].reference)
        if apart <= limits.auc_max or not (aucs[-1].p or 0.0) >= CHANCE:  # no p excuses nothing
            checks.append(Check("clinic", "runtime", "AUC difference", apart, limits.auc_max, limit="auc_max"))
    if not np.isfinite(ours.scores).all():
        checks.append(Check("clinic", "runtime", "AUC difference", float("nan"), limits.auc_max, limit="auc_max"))
    return checks


def _mean_auc(
    truth: Ints, reference: Side, ours: Side, classes: Sequence[int], resampler: Resampler, seed: int
) -> Paired:
    ranked = [[RankedScores.of(truth == k, side.scores[:, k]) for k in classes] for side in (reference, ours)]

    def figure(weights: Floats) -> tuple[Floats, Floats]:
        first, second = (np.mean([each.auc(weights) for each in side], axis=0) for side in ranked)
        return first, second

    units = min(min(resampler.units(truth == k), resampler.units(truth != k)) for k in classes)
    return bootstrap(figure, resampler, units, resamples=RESAMPLES, seed=seed)


def _share(
    rows: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    ours: NDArray[np.bool_],
    resampler: Resampler,
    seed: int,
) -> Paired:
    def figure(weights: Floats) -> tuple[Floats, Floats]:
        all_of_them = weights[rows].sum(0)
        with np.errstate(invalid="ignore"):
            first, second = (weights[rows & side].sum(0) / all_of_them for side in (reference, ours))
        return first, second

    return bootstrap(figure, resampler, resampler.units(rows), resamples=RESAMPLES, seed=seed)
