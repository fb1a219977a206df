"""Pictures of a training run: curves, confusion matrix, ROC.

Figures are drawn without pyplot, which keeps each figure alive in a global list and looks for a screen to
draw on. matplotlib is imported on first use and its settings are put back.
Colours are Okabe and Ito's, told apart under the common colour blindnesses; line styles differ as well.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketdx_train.figures import binary_ranks
from pocketdx_train.metrics import auc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from pocketdx_train.metrics import Evaluation

    Floats = NDArray[np.float64]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_STYLES = ("-", "--", "-.", ":")
_GREY = "#6E6E6E"
_LOSSES = {"train_loss": "training", "val_loss": "validation"}
_AUCS = {"train_auc": "training", "val_auc": "validation", "val_auc_shifted": "validation, shifted"}
_LOOK: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": _GREY,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


def save_curves(
    history: Sequence[Mapping[str, float]], path: Path, *, kept: int | None = None, title: str = "Training"
) -> None:
    """Draw loss and AUC by epoch as a PNG, one epoch marked.

    Args:
        history: one mapping per epoch, any of ``epoch`` (default: 1, 2, ...), ``train_loss``, ``val_loss``,
            ``train_auc``, ``val_auc``, ``val_auc_shifted``, ``lr``. Missing and NaN values leave gaps, other
            keys are ignored.
        path: PNG to write; its folder exists.
        kept: number of the epoch to mark, whose weights were kept; None: that with the best validation AUC.
        title: what was trained on what.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib as mpl

    with mpl.rc_context(_LOOK):
        figure = _figure(8.4, 3.7)
        loss_axes, auc_axes = figure.subplots(1, 2)
        epochs = _column(history, "epoch")
        epochs = np.where(np.isnan(epochs), np.arange(1.0, len(history) + 1), epochs)
        _draw_rate(loss_axes, epochs, _column(history, "lr"))
        _draw_series(loss_axes, epochs, history, _LOSSES, "loss")
        _draw_series(auc_axes, epochs, history, _AUCS, "AUC")
        _mark(auc_axes, epochs, _column(history, "val_auc"), kept)
        figure.suptitle(_shown(title), x=0.012, ha="left", fontsize=12.5, fontweight="bold")
        _save(figure, path)


def save_confusion(evaluation: Evaluation, path: Path, *, set_name: str = "test") -> None:
    """Draw the confusion matrix as a PNG: images and share of each true class, shaded by the share.

    Args:
        evaluation: of C classes; from 31 classes on, the cells are shaded but hold no numbers.
        path: PNG to write; its folder exists.
        set_name: of the images evaluated, for the title.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib as mpl

    counts = np.asarray(evaluation.confusion, dtype=np.float64)
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    classes = len(counts)
    cell = 0.85 if classes <= 6 else min(0.64, 12.0 / classes)  # inches
    side = 2.6 + cell * classes
    with mpl.rc_context(_LOOK):
        figure = _figure(side + 1.2, side)
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        if classes <= 30:
            _write_cells(axes, counts, share, size=14 * cell)
        small = min(11.0, 20 * cell)
        names = [_shown(textwrap.fill(name, 16)) for name in evaluation.labels]
        axes.set_yticks(range(classes), names, fontsize=small)
        if classes <= 4 and max(map(len, evaluation.labels)) <= 12:
            axes.set_xticks(range(classes), names, fontsize=small)
        else:
            short = [_shown(textwrap.shorten(name, 26, placeholder="...")) for name in evaluation.labels]
            axes.set_xticks(range(classes), short, fontsize=small)
            for label in axes.get_xticklabels():
                label.set(rotation=40, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        axes.set_title(f"{_shown(set_name)}: {_count(evaluation)}\naccuracy {_with_interval(evaluation)}")
        _save(figure, path)


def save_roc(
    labels: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    path: Path,
    *,
    set_name: str = "test",
) -> None:
    """Draw ROC curves as a PNG: of two classes the second's, of more each against all others.

    The legend lists the AUCs; of more than eight classes it names the eight with the lowest, the others are
    grey. A class that no image, or every image, has is left out.

    Args:
        labels: int [N], 0..C-1.
        probabilities: float [N, C].
        class_names: C names.
        path: PNG to write; its folder exists.
        set_name: of the images evaluated, for the title.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib as mpl

    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    shown = [1] if len(class_names) == 2 else list(range(len(class_names)))
    if len(class_names) == 2:
        scores = np.stack([-binary_ranks(scores), binary_ranks(scores)], axis=1).astype(np.float64)
    areas = {k: auc(truth == k, scores[:, k]) for k in shown}
    defined = [k for k in shown if not math.isnan(areas[k])]
    named = sorted(sorted(defined, key=areas.__getitem__)[: len(_COLORS)])
    with mpl.rc_context(_LOOK):
        figure = _figure(5.4, 5.6)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#BDBDBD", linewidth=1.0, linestyle=(0, (4, 4)))
        curves = {k: roc_points(truth == k, scores[:, k]) for k in defined}
        panels = [axes]
        if named and min(areas[k] for k in named) > 0.9:
            panels.append(_corner(axes))
        for panel in panels:
            for k in sorted(set(defined) - set(named)):
                panel.plot(*curves[k], color="#C8C8C8", linewidth=1.0)
            for i, k in enumerate(named):
                label = f"{_shown(class_names[k])}  {areas[k]:.3f}"
                panel.plot(*curves[k], color=_COLORS[i], linestyle=_STYLES[i % len(_STYLES)], label=label)
        if named:
            axes.legend(loc="lower right", title="AUC", alignment="left", handlelength=2.4)
        else:
            axes.text(0.5, 0.5, "undefined: images of one class only", ha="center", color=_GREY)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity")
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        axes.set_title(f"{_shown(set_name)}: ROC on {len(truth):,} images")
        _save(figure, path)


def _corner(axes: Axes) -> Axes:
    """Enlarge the corner that good classifiers' curves share."""
    inset = axes.inset_axes((0.43, 0.5, 0.46, 0.46), xlim=(-0.004, 0.2), ylim=(0.8, 1.004))
    inset.set_xticks([0.0, 0.1, 0.2])
    inset.set_yticks([0.8, 0.9, 1.0])
    inset.tick_params(labelsize=9)
    inset.grid(visible=True)
    inset.set_axisbelow(True)
    return inset


def roc_points(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Corners of the ROC curve from (0, 0) to (1, 1): false and true positive rates.

    Equal scores make one slanted step, so that the area under the points is the AUC with ties counted half.

    Args:
        positive: [N], both values present.
        scores: [N], without NaN.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(positive[order])[ends]
    false = ends + 1 - hits
    return np.append(0.0, false / false[-1]), np.append(0.0, hits / hits[-1])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": "PocketDx"})


def _shown(text: str) -> str:
    """Class names are users' text: without this, ``$`` would start a formula."""
    return text.replace("$", r"\$")


def _column(history: Sequence[Mapping[str, float]], key: str) -> Floats:
    return np.array([row.get(key, math.nan) for row in history], dtype=np.float64)


def _draw_series(
    axes: Axes,
    epochs: Floats,
    history: Sequence[Mapping[str, float]],
    keys: Mapping[str, str],
    title: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "o" if len(epochs) <= 30 else ""  # a single epoch is a dot, not nothing
    for i, (key, label) in enumerate(keys.items()):
        values = _column(history, key)
        if np.isfinite(values).any():
            color, style = _COLORS[i], _STYLES[i]
            axes.plot(epochs, values, style, color=color, marker=marker, markersize=3.5, label=label)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _draw_rate(axes: Axes, epochs: Floats, rate: Floats) -> None:
    """Shade the learning rate behind the loss: its shape explains the loss, its values are in the log."""
    if np.isfinite(rate).any() and np.nanmax(rate) > 0:
        behind = axes.twinx()
        behind.fill_between(epochs, rate / np.nanmax(rate), color="#EFEFEF", linewidth=0)
        behind.set(ylim=(0, 1.15), yticks=[])
        behind.spines[:].set_visible(False)
        axes.fill_between([], [], color="#EFEFEF", label=f"learning rate, up to {np.nanmax(rate):.2g}")
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)


def _mark(axes: Axes, epochs: Floats, values: Floats, kept: int | None) -> None:
    if not np.isfinite(values).any():
        return
    chosen = int(np.nanargmax(values)) if kept is None else int(np.flatnonzero(epochs == kept)[0])
    axes.axvline(epochs[chosen], color=_GREY, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    what = "best" if kept is None else "kept"
    axes.set_title(f"AUC: {what} epoch {epochs[chosen]:g}, on validation {values[chosen]:.4f}")


def _write_cells(axes: Axes, counts: Floats, share: Floats, size: float) -> None:
    for (row, column), count in np.ndenumerate(counts):
        part = share[row, column]
        text = f"{count:,.0f}" + (f"\n{part:.1%}" if count and len(counts) <= 12 else "")
        color = "white" if part > 0.5 else "#9A9A9A" if count == 0 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _count(evaluation: Evaluation) -> str:
    whose = "" if evaluation.patients is None else f" of {evaluation.patients:,} patients"
    return f"{evaluation.n:,} images{whose}"


def _with_interval(evaluation: Evaluation) -> str:
    value = evaluation.accuracy
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
