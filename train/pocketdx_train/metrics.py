"""How good a classifier is on a labelled set, with 95 % bootstrap intervals.

Only numpy: the same figures come out wherever the probabilities were computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketdx_runtime.conform import conform, conform_fields, require, to_plain
from pocketdx_runtime.manifest import Interval
from pocketdx_train.bootstrap import Resampler, percentile_interval
from pocketdx_train.figures import OVERALL, PER_CLASS, Figures, RankedScores

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all others. None: undefined on this set (see :class:`Evaluation`)."""

    label: str
    support: int
    """Images of this class in the set."""
    auc: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None
    f1: Interval | None

    def __post_init__(self) -> None:
        conform_fields(self)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier on one labelled set; all lie in 0..1, each with its 95 % interval.

    A figure that the set cannot give is None, never a made-up number: AUC, sensitivity and F1 of a class
    without images, AUC and specificity of a class that all images have. An overall figure other than accuracy
    is the plain mean over the classes for which it is defined, and None if there is none.

    Intervals are bootstrap percentiles over patients where these are known, else over images, stratified by
    class (:class:`pocketdx_train.bootstrap.Resampler`). Of a perfect or nil result, which never varies,
    they are exact binomial bounds: 20 right of 20 gives [0.83, 1]
    (:func:`pocketdx_train.bootstrap.percentile_interval`).

    Raises:
        ManifestError: a field is of the wrong type, or the parts do not fit together.
    """

    n: int
    """Images."""
    patients: int | None
    """Patients that were resampled; None: images were, each standing alone."""
    labels: tuple[str, ...]
    auc: Interval | None
    """Mean of the one-vs-rest AUCs; of two classes, the AUC."""
    accuracy: Interval
    balanced_accuracy: Interval
    """Mean sensitivity over the classes: the same number as ``sensitivity``, under its usual name."""
    sensitivity: Interval
    """Mean over the classes. Of one class, a disease say: see ``per_class``."""
    specificity: Interval | None
    """Mean over the classes; of two classes, the balanced accuracy once more."""
    f1: Interval
    """Mean over the classes."""
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images by class, [C][C]: rows are the truth, columns the prediction."""
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        conform_fields(self)
        classes = len(self.labels)
        named = tuple(one.label for one in self.per_class)
        require(named == self.labels, "per_class", named, f"one entry for each of {self.labels}")
        square = [len(row) for row in self.confusion] == [classes] * classes
        require(square, "confusion", self.confusion, f"{classes} rows of {classes}")
        require(sum(map(sum, self.confusion)) == self.n, "n", self.n, "the sum of the confusion matrix")

    def headline(self) -> dict[str, Interval]:
        """Return the defined figures that a model's manifest carries.

        ``auc``, ``accuracy``, ``balanced_accuracy``, ``f1``, and ``sensitivity/LABEL`` and
        ``specificity/LABEL`` for each class: a mean sensitivity is easily taken for that of the disease.
        """
        found = {name: getattr(self, name) for name in ("auc", "accuracy", "balanced_accuracy", "f1")}
        for figure in ("sensitivity", "specificity"):
            found |= {f"{figure}/{one.label}": getattr(one, figure) for one in self.per_class}
        return {name: interval for name, interval in found.items() if interval is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; undefined figures are None (``null``)."""
        return dict(to_plain(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Invert :meth:`to_dict`.

        Raises:
            ManifestError: a field is missing, unknown or of the wrong type.
        """
        evaluation: Evaluation = conform(data, cls, "evaluation")
        return evaluation


def auc(labels_binary: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve, ties counted half; NaN if either class is missing or weighs nothing.

    Args:
        labels_binary: [N], true or 1 for the positives.
        scores: [N], higher for more likely positive; real numbers, infinite ones too.
        weights: [N], not negative; default 1.

    Raises:
        ValueError: shapes differ, a score is NaN, or a weight is negative or not finite.
    """
    positive = np.asarray(labels_binary).astype(bool)
    ranked = np.asarray(scores, dtype=np.float64)
    heavy = np.ones(positive.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if positive.ndim != 1 or ranked.shape != positive.shape or heavy.shape != positive.shape:
        raise ValueError(f"labels, scores and weights must be [N]: {positive.shape}, {ranked.shape}, {heavy.shape}")
    if np.isnan(ranked).any():
        raise ValueError("a score is NaN")
    if not np.isfinite(heavy).all() or (heavy < 0).any():
        raise ValueError("a weight is negative or not finite")
    return float(RankedScores.of(positive, ranked).auc(heavy[:, None])[0])


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    predictions: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a classifier on N images of C classes.

    Args:
        labels: int [N], the true class, 0..C-1.
        probabilities: float [N, C], finite.
        class_names: C names.
        groups: [N] patient of each image; None for an image of an unknown patient, which stands alone.
        predictions: int [N], the class said; default: the most probable, the first of equals.
        resamples: bootstrap resamples, at least 1.
        seed: the same seed gives the same intervals.

    Raises:
        ValueError: nothing to evaluate, shapes that do not fit, a class out of range, or a probability that
            is not finite.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    _check(truth, scores, class_names, groups, resamples)
    said = np.argmax(scores, axis=1) if predictions is None else np.asarray(predictions)
    classes = len(class_names)
    truth, said = (
        _as_classes("labels", truth, len(truth), classes),
        _as_classes("predictions", said, len(truth), classes),
    )

    compute = Figures.of(truth, said, scores)
    resampler = Resampler.of(truth, classes, groups)
    estimate = compute(np.ones((len(truth), 1)))[:, 0]
    drawn = np.concatenate([compute(block) for block in resampler.blocks(resamples, seed)], axis=1)
    units = _units(truth, classes, resampler)
    figures = {name: percentile_interval(estimate[i], drawn[i], units[name]) for i, name in enumerate(compute.names())}
    support = np.bincount(truth, minlength=classes)
    confusion = np.bincount(truth * classes + said, minlength=classes * classes).reshape(classes, classes)
    return Evaluation(
        n=len(truth),
        patients=None if resampler.patient_of is None else len(resampler.order),
        labels=tuple(class_names),
        **{name: figures[name] for name in OVERALL},  # type: ignore[arg-type]
        per_class=tuple(
            ClassMetrics(name, int(support[k]), *(figures[f"{figure}/{k}"] for figure in PER_CLASS))
            for k, name in enumerate(class_names)
        ),
        confusion=tuple(map(tuple, confusion.tolist())),
        resamples=resamples,
        seed=seed,
    )


def _check(
    truth: NDArray[Any],
    scores: Floats,
    class_names: Sequence[str],
    groups: Sequence[Hashable] | None,
    resamples: int,
) -> None:
    if truth.ndim != 1 or len(truth) == 0:
        raise ValueError(f"labels must be [N] with at least one image, not {list(truth.shape)}")
    if scores.shape != (len(truth), len(class_names)):
        shape = [len(truth), len(class_names)]
        raise ValueError(f"probabilities must be {shape}, not {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise ValueError("a probability is not finite: did the training diverge?")
    if groups is not None and len(groups) != len(truth):
        raise ValueError(f"groups must name the patient of each of {len(truth)} images, not of {len(groups)}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")


def _as_classes(what: str, codes: NDArray[Any], n: int, classes: int) -> Ints:
    if codes.shape != (n,) or codes.dtype.kind not in "biu":
        raise ValueError(f"{what} must be integers [{n}], not {codes.dtype} {list(codes.shape)}")
    if codes.min() < 0 or codes.max() >= classes:
        raise ValueError(f"{what} must lie in 0..{classes - 1}, not in {codes.min()}..{codes.max()}")
    return codes.astype(np.int64)


def _units(truth: Ints, classes: int, resampler: Resampler) -> dict[str, int]:
    """For each figure, the patients (or images) that could have proved it wrong; 0 where it is undefined."""
    units: dict[str, int] = {}
    for k in range(classes):
        inside, outside = resampler.units(truth == k), resampler.units(truth != k)
        units |= {f"auc/{k}": min(inside, outside), f"specificity/{k}": outside}
        units |= {f"sensitivity/{k}": inside, f"f1/{k}": inside}
    for figure in PER_CLASS:
        behind = (units[f"{figure}/{k}"] for k in range(classes))
        units[figure] = min((count for count in behind if count), default=0)
    return units | {"accuracy": resampler.units(truth >= 0), "balanced_accuracy": units["sensitivity"]}


def format_table(evaluation: Evaluation) -> str:
    """Lay the figures out for a terminal: overall, by class, and the confusion matrix of up to 12 classes."""
    e = evaluation
    unit = "images" if e.patients is None else "patients"
    whose = "" if e.patients is None else f" of {e.patients} patients"
    overall = {
        "AUC" if len(e.labels) == 2 else "AUC (mean)": e.auc,
        "accuracy": e.accuracy,
        "balanced accuracy": e.balanced_accuracy,
        "specificity (mean)": e.specificity,
        "F1 (mean)": e.f1,
    }
    if len(e.labels) == 2:
        del overall["specificity (mean)"]  # the balanced accuracy once more
    classes = [
        [one.label, str(one.support), *(_cell(getattr(one, figure)) for figure in PER_CLASS)] for one in e.per_class
    ]
    blocks = [
        f"{e.n} images{whose}; 95 % intervals from {e.resamples} bootstrap resamples of {unit}",
        _columns([[name, _cell(interval)] for name, interval in overall.items()], "<<"),
        _columns([["class", "images", "AUC", "sensitivity", "specificity", "F1"], *classes], "<><<<<"),
    ]
    if len(e.labels) <= 12:
        rows = [[name, *map(str, row)] for name, row in zip(e.labels, e.confusion, strict=True)]
        blocks.append(_columns([["truth \\ predicted", *e.labels], *rows], "<" + ">" * len(e.labels)))
    return "\n\n".join(blocks)


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "undefined"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _columns(rows: Sequence[Sequence[str]], align: str) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return "\n".join(layout.format(*row).rstrip() for row in rows)
