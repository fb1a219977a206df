"""The pictures hold what they say, are the same each time, and leave matplotlib's global state alone."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pocketdx_train.metrics import auc, evaluate
from pocketdx_train.plots import roc_points, save_confusion, save_curves, save_roc

HISTORY = [
    {
        "epoch": i + 1,
        "train_loss": 0.9 / (i + 1),
        "val_loss": 0.8 / (i + 1),
        "val_auc": 0.9 + 0.01 * min(i, 9 - i),
        "val_auc_shifted": 0.88,
        "lr": 1e-3 * (8 - i),
        "seconds": 12.0,
    }
    for i in range(8)
]


def scored(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    odds = rng.random((n, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, odds / odds.sum(axis=1, keepdims=True)


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the texts of each figure at the moment it is saved."""
    from matplotlib.text import Text

    texts: list[str] = []
    save = Figure.savefig

    def spy(self: Figure, *args: object, **options: object) -> None:
        texts.extend(text.get_text() for text in self.findobj(Text))
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return texts


def colours(path: Path) -> int:
    """How many colours a picture has: a blank one has a single one."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        found = picture.convert("RGB").getcolors(1 << 20)
    assert found is not None
    return len(found)


def test_the_curves_show_both_losses_both_aucs_and_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = drawn_texts(monkeypatch)
    save_curves(HISTORY, tmp_path / "curves.png", title="V3-small on chest-xray")
    assert {"training", "validation", "validation, shifted", "epoch", "V3-small on chest-xray"} <= set(texts)
    assert "AUC: best epoch 5, on validation 0.9400" in texts
    assert "learning rate, up to 0.008" in texts
    assert colours(tmp_path / "curves.png") > 50


def test_the_epoch_that_was_kept_is_marked_even_if_another_had_a_better_auc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = drawn_texts(monkeypatch)
    save_curves([{"epoch": 1, "val_auc": 0.7}, {"epoch": 2, "val_auc": 0.9}], tmp_path / "curves.png", kept=1)
    assert "AUC: kept epoch 1, on validation 0.7000" in texts


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1, "train_loss": 0.5}],
        [{"train_loss": math.nan, "val_auc": math.nan}, {"train_loss": 0.4, "val_auc": 0.9}],
        [{"epoch": 1, "lr": 0.0, "val_loss": 1.0}],
    ],
    ids=["no epoch", "one epoch", "gaps", "learning rate zero"],
)
def test_curves_can_be_drawn_from_little(history: list[dict[str, float]], tmp_path: Path) -> None:
    save_curves(history, tmp_path / "curves.png")
    assert colours(tmp_path / "curves.png") > 10


def test_the_confusion_matrix_says_the_set_its_size_and_every_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, probabilities = scored(120, 2)
    e = evaluate(labels, probabilities, ["NORMAL", "PNEUMONIA"], groups=list(range(40)) * 3, resamples=50)
    texts = drawn_texts(monkeypatch)
    save_confusion(e, tmp_path / "confusion.png", set_name="chest-xray test")
    title = next(text for text in texts if text.startswith("chest-xray test"))
    assert "120 images of 40 patients" in title
    assert f"{e.accuracy.value:.3f} [{e.accuracy.low:.3f}, {e.accuracy.high:.3f}]" in title
    assert {"NORMAL", "PNEUMONIA", "truth", "predicted"} <= set(texts)
    for row in e.confusion:
        for count in row:
            assert (f"{count}\n{count / 60:.1%}" if count else "0") in texts


@pytest.mark.parametrize("classes", [1, 3, 9, 31])
def test_confusion_and_roc_can_be_drawn_for_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    labels, probabilities = scored(124, classes)
    names = [f"class {k} of $\\alpha^ {{ and a name that goes on" for k in range(classes)]
    save_confusion(evaluate(labels, probabilities, names, resamples=5), tmp_path / "confusion.png")
    save_roc(labels, probabilities, names, tmp_path / "roc.png")
    for name in ("confusion.png", "roc.png"):
        assert colours(tmp_path / name) > 10
        with Image.open(tmp_path / name) as picture:
            assert max(picture.size) < 3000


def test_the_roc_names_its_classes_with_their_auc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = scored(300, 3)
    texts = drawn_texts(monkeypatch)
    save_roc(labels, probabilities, ["a", "b", "c"], tmp_path / "roc.png", set_name="validation")
    assert "validation: ROC on 300 images" in texts
    for k, name in enumerate("abc"):
        assert f"{name}  {auc(labels == k, probabilities[:, k]):.3f}" in texts


def test_the_roc_of_two_classes_is_that_of_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = scored(100, 2)
    texts = drawn_texts(monkeypatch)
    save_roc(labels, probabilities, ["well", "ill"], tmp_path / "roc.png")
    assert f"ill  {auc(labels == 1, probabilities[:, 1]):.3f}" in texts
    assert not any(text.startswith("well") for text in texts)


def test_the_roc_of_many_classes_names_the_eight_with_the_lowest_auc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, probabilities = scored(240, 12)
    areas = {f"k{k}": auc(labels == k, probabilities[:, k]) for k in range(12)}
    texts = drawn_texts(monkeypatch)
    save_roc(labels, probabilities, list(areas), tmp_path / "roc.png")
    named = {text.split("  ")[0] for text in texts if text.startswith("k")}
    assert named == set(sorted(areas, key=areas.__getitem__)[:8])


def test_the_roc_of_a_single_class_says_that_it_is_undefined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    save_roc([1, 1], [[0.2, 0.8], [0.6, 0.4]], ["well", "ill"], tmp_path / "roc.png")
    assert "undefined: images of one class only" in texts


def test_the_area_under_the_drawn_points_is_the_auc_ties_and_all() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        positive = np.append(rng.random(30) < 0.4, [True, False])
        scores = rng.integers(0, 6, 32) / 5
        false, true = roc_points(positive, scores)
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(true, false) == pytest.approx(auc(positive, scores))


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_curves(HISTORY, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_drawing_needs_no_screen_keeps_no_figure_and_changes_no_setting(tmp_path: Path) -> None:
    script = """
import sys
import pocketdx_train.plots as plots
assert "matplotlib" not in sys.modules, "matplotlib is imported before it is needed"
import matplotlib as mpl
before = mpl.rcParams.copy()
plots.save_curves([{"val_auc": 0.9}], sys.argv[1])
assert mpl.rcParams.copy() == before, "settings changed"
assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c.png")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_not_there_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        save_curves(HISTORY, tmp_path / "nowhere" / "curves.png")
