"""The figures agree with scikit-learn, the intervals cover, and what a set cannot tell stays undefined."""

import json
import math
import time
import tracemalloc
from dataclasses import FrozenInstanceError, astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from sklearn import metrics as sk

from pocketdx_runtime.errors import ManifestError
from pocketdx_runtime.manifest import Interval
from pocketdx_train.bootstrap import Resampler
from pocketdx_train.metrics import Evaluation, auc, evaluate, format_table


def classifier(
    n: int, classes: int, *, seed: int = 0, skill: float = 1.5, digits: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] with every class present and probabilities [n, classes]; few digits make ties."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill
    odds = np.exp(logits)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    return labels, probabilities if digits is None else probabilities.round(digits)


def names(classes: int) -> list[str]:
    return [f"class {k}" for k in range(classes)]


def value(interval: Interval | None) -> float:
    assert interval is not None
    return interval.value


def intervals(evaluation: Evaluation) -> list[Interval]:
    overall = [evaluation.auc, evaluation.accuracy, evaluation.balanced_accuracy, evaluation.f1]
    by_class = [x for one in evaluation.per_class for x in (one.auc, one.sensitivity, one.specificity, one.f1)]
    return [x for x in [*overall, *by_class] if x is not None]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_auc_equals_scikit_learn_with_ties_and_whole_or_fractional_weights(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 40))
    labels = data.draw(nps.arrays(np.bool_, n).filter(lambda a: a.any() and not a.all()))
    scores = data.draw(nps.arrays(np.int64, n, elements=st.integers(-3, 3))) / 3
    weights = data.draw(nps.arrays(np.float64, n, elements=st.sampled_from([0.25, 1.0, 2.0, 3.5])))
    expected = sk.roc_auc_score(labels, scores, sample_weight=weights)
    assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_whole_weight_is_the_image_repeated_that_often(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 30))
    labels = data.draw(nps.arrays(np.bool_, n))
    scores = data.draw(nps.arrays(np.float64, n, elements=st.sampled_from([-np.inf, 0.0, 0.1, 0.5, np.inf])))
    weights = data.draw(nps.arrays(np.int64, n, elements=st.integers(0, 4)))
    repeated = auc(np.repeat(labels, weights), np.repeat(scores, weights))
    np.testing.assert_equal(auc(labels, scores, weights), repeated)  # exactly; NaN for NaN


def test_auc_is_undefined_where_a_class_is_missing_or_weighs_nothing() -> None:
    assert math.isnan(auc([1, 1], [0.2, 0.3]))
    assert math.isnan(auc([0, 0], [0.2, 0.3]))
    assert math.isnan(auc([0, 1], [0.2, 0.3], [1.0, 0.0]))
    assert math.isnan(auc([], []))


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "reason"),
    [
        ([0, 1], [0.1, 0.2, 0.3], None, "must be"),
        ([0, 1], [0.1, math.nan], None, "NaN"),
        ([0, 1], [0.1, 0.2], [1.0, -1.0], "negative"),
        ([0, 1], [0.1, 0.2], [1.0, math.inf], "not finite"),
        ([0, 1], [0.1, 0.2], [1.0], "must be"),
    ],
)
def test_auc_refuses_what_it_cannot_rank(
    labels: list[int], scores: list[float], weights: list[float] | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        auc(labels, scores, weights)


@pytest.mark.parametrize("classes", [2, 3, 9])
@pytest.mark.parametrize("digits", [None, 1], ids=["continuous", "tied"])
def test_every_figure_equals_scikit_learns(classes: int, digits: int | None) -> None:
    labels, probabilities = classifier(200, classes, digits=digits)
    e = evaluate(labels, probabilities, names(classes), resamples=10)
    said = probabilities.argmax(axis=1)

    assert e.n == 200
    assert e.accuracy.value == pytest.approx(sk.accuracy_score(labels, said))
    assert e.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(labels, said))
    assert e.sensitivity == e.balanced_accuracy
    assert e.f1.value == pytest.approx(sk.f1_score(labels, said, average="macro"))
    assert np.array_equal(e.confusion, sk.confusion_matrix(labels, said))
    aucs, specificities = [], []
    for k, one in enumerate(e.per_class):
        truth, hit = labels == k, said == k
        if classes > 2 or digits is None:  # of two tied columns ours uses both
            assert value(one.auc) == pytest.approx(sk.roc_auc_score(truth, probabilities[:, k]))
        assert one.label == f"class {k}"
        assert one.support == truth.sum()
        assert value(one.sensitivity) == pytest.approx(sk.recall_score(truth, hit))
        assert value(one.specificity) == pytest.approx(sk.recall_score(~truth, ~hit))
        assert value(one.f1) == pytest.approx(sk.f1_score(truth, hit))
        aucs.append(value(one.auc))
        specificities.append(value(one.specificity))
    assert value(e.auc) == pytest.approx(np.mean(aucs))
    assert value(e.specificity) == pytest.approx(np.mean(specificities))


def test_of_two_classes_both_have_the_same_auc_even_where_float32_softmax_saturates() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    margin = (rng.normal(size=300) * 12 + 20 * (labels - 0.5)).astype(np.float32)
    p1, p0 = 1 / (1 + np.exp(-margin)), 1 / (1 + np.exp(margin))
    assert (p1 == 1).sum() > 20  # the rounding that a single column would take for ties
    assert (p0 == 1).sum() > 20
    e = evaluate(labels, np.stack([p0, p1], axis=1), ["well", "ill"], resamples=20)
    assert e.per_class[0].auc == e.per_class[1].auc == e.auc
    assert value(e.auc) == pytest.approx(sk.roc_auc_score(labels, margin))


def test_predictions_of_ones_own_move_the_counts_but_not_the_auc() -> None:
    labels, probabilities = classifier(100, 2)
    said = (probabilities[:, 1] > 0.2).astype(int)
    plain = evaluate(labels, probabilities, names(2), resamples=10)
    cautious = evaluate(labels, probabilities, names(2), resamples=10, predictions=said)
    assert cautious.auc == plain.auc
    assert value(cautious.per_class[1].sensitivity) > value(plain.per_class[1].sensitivity)
    assert np.sum(cautious.confusion) == 100


def test_a_class_without_images_has_no_figures_and_does_not_touch_the_means() -> None:
    labels, probabilities = classifier(90, 3)
    with_ghost = np.concatenate([probabilities * 0.9, np.full((90, 1), 0.1)], axis=1)
    e = evaluate(labels, with_ghost, [*names(3), "ghost"], resamples=50)
    ghost = e.per_class[3]
    assert ghost.support == 0
    assert ghost.auc is None
    assert ghost.sensitivity is None
    assert ghost.f1 is None
    assert ghost.specificity is not None  # never saying "ghost" can be right or wrong
    without = evaluate(labels, probabilities, names(3), resamples=50)
    assert value(e.auc) == pytest.approx(value(without.auc))
    assert e.balanced_accuracy.value == pytest.approx(without.balanced_accuracy.value)
    assert "undefined" in format_table(e)


def test_a_set_of_a_single_class_has_an_accuracy_but_no_auc() -> None:
    e = evaluate([1, 1, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], ["well", "ill"])
    assert e.auc is None
    assert e.per_class[0].auc is None
    assert e.per_class[1].auc is None
    assert e.per_class[1].specificity is None
    assert e.accuracy.value == 0.75
    assert value(e.per_class[1].sensitivity) == 0.75
    assert "auc" not in e.headline()


def test_constant_probabilities_give_an_auc_of_one_half_without_spread() -> None:
    e = evaluate([0, 1] * 20, np.full((40, 2), 0.5), ["well", "ill"])
    assert e.auc == Interval(0.5, 0.5, 0.5)
    assert value(e.per_class[0].sensitivity) == 1.0
    assert value(e.per_class[1].sensitivity) == 0.0
    assert value(e.per_class[1].f1) == 0.0


def test_a_single_image_is_evaluated_and_its_interval_says_how_little_that_means() -> None:
    e = evaluate([1], [[0.2, 0.8]], ["well", "ill"])
    assert astuple(e.accuracy) == flawless(1)
    assert e.auc is None


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_interval_holds_its_estimate_and_stays_within_0_and_1(
    n: int, classes: int, seed: int, grouped: bool
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    probabilities = rng.dirichlet(np.full(classes, 0.5), n).round(1)
    groups = rng.integers(0, max(1, n // 2), n).tolist() if grouped else None
    e = evaluate(labels, probabilities, names(classes), groups=groups, resamples=40)
    for interval in intervals(e):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_95_percent_intervals_hold_the_true_values_about_95_times_in_100() -> None:
    rng = np.random.default_rng(11)
    true_auc = 0.5 * (1 + math.erf(1.5 / 2))  # of N(1.5, 1) against N(0, 1)
    true_sensitivity = 0.5 * (1 + math.erf(0.75 / math.sqrt(2)))
    sets, hits = 200, np.zeros(2)
    for _ in range(sets):
        labels = np.repeat([0, 1], 60)
        score = rng.normal(size=120) + 1.5 * labels
        p1 = 1 / (1 + np.exp(0.75 - score))
        e = evaluate(labels, np.stack([1 - p1, p1], 1), ["well", "ill"], resamples=400)
        sensitivity = e.per_class[1].sensitivity
        assert e.auc is not None
        assert sensitivity is not None
        hits += [e.auc.low <= true_auc <= e.auc.high, sensitivity.low <= true_sensitivity <= sensitivity.high]
    assert ((hits / sets > 0.89) & (hits / sets < 0.995)).all(), hits / sets


def test_ten_copies_of_a_patient_tell_no_more_than_one() -> None:
    labels, probabilities = classifier(80, 2, skill=0.8)
    patients = np.repeat(np.arange(80), 10)
    once = evaluate(labels, probabilities, names(2))
    copied = evaluate(np.repeat(labels, 10), np.repeat(probabilities, 10, 0), names(2), groups=patients.tolist())
    fooled = evaluate(np.repeat(labels, 10), np.repeat(probabilities, 10, 0), names(2))
    assert copied.patients == 80
    assert (once.patients, fooled.patients) == (None, None)

    def width(e: Evaluation) -> float:
        return e.accuracy.high - e.accuracy.low

    assert width(copied) == pytest.approx(width(once), rel=0.1)
    assert width(fooled) < width(once) / 2.5


def test_images_whose_patient_is_unknown_stand_alone() -> None:
    labels, probabilities = classifier(60, 2)
    known = evaluate(labels, probabilities, names(2), groups=[None] * 50 + ["a"] * 5 + ["b"] * 5)
    assert known.patients == 52
    alone = evaluate(labels, probabilities, names(2), groups=[None] * 60)
    plain = evaluate(labels, probabilities, names(2))
    assert intervals(alone) == intervals(plain)


def test_no_resample_loses_a_rare_class() -> None:
    labels = np.array([0] * 500 + [1] * 3)
    resampler = Resampler.of(labels, 2, None)
    weights = np.concatenate(list(resampler.blocks(300, seed=0)), axis=1)
    assert (weights[:500].sum(axis=0) == 500).all()
    assert (weights[500:].sum(axis=0) == 3).all()
    assert weights[500:].std() > 0.5


def test_all_images_of_a_drawn_patient_come_along() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0])
    resampler = Resampler.of(labels, 2, ["p", "p", "q", "q", "r", "s"])
    for block in resampler.blocks(100, seed=0):
        assert np.array_equal(block[0], block[1])
        assert np.array_equal(block[2], block[3])
        assert (block[0] + block[2] == 2).all()  # the two with class 1 are drawn among themselves
        assert (block[4] + block[5] == 2).all()


def flawless(units: int) -> object:
    """Clopper and Pearson's interval for as many successes out of as many."""
    return pytest.approx((1.0, 0.025 ** (1 / units), 1.0))


def test_a_perfect_result_is_not_called_certain() -> None:
    labels = np.repeat([0, 1], [30, 20])
    e = evaluate(labels, np.eye(2)[labels], ["well", "ill"])
    assert astuple(e.per_class[1].sensitivity) == flawless(20)
    assert astuple(e.per_class[1].specificity) == flawless(30)
    assert astuple(e.accuracy) == flawless(50)
    assert astuple(e.auc) == flawless(20)
    wrong = evaluate(labels, np.eye(2)[1 - labels], ["well", "ill"])
    assert wrong.accuracy.high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert (wrong.accuracy.value, wrong.accuracy.low) == (0.0, 0.0)
    by_patient = evaluate(labels, np.eye(2)[labels], ["well", "ill"], groups=[f"p{i // 10}" for i in range(50)])
    assert astuple(by_patient.accuracy) == flawless(5)


def test_the_same_seed_gives_the_same_intervals_whatever_the_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, probabilities = classifier(97, 3)
    first = evaluate(labels, probabilities, names(3), resamples=300, seed=5)
    assert evaluate(labels, probabilities, names(3), resamples=300, seed=6) != first
    monkeypatch.setattr("pocketdx_train.bootstrap.BLOCK_ELEMENTS", 1000)
    assert evaluate(labels, probabilities, names(3), resamples=300, seed=5) == first


def test_2000_resamples_of_624_images_take_moments_not_minutes() -> None:
    labels, probabilities = classifier(624, 2)
    started = time.perf_counter()
    evaluate(labels, probabilities, names(2))
    assert time.perf_counter() - started < 5  # 0.03 s measured


def test_memory_stays_flat_with_many_images_and_resamples() -> None:
    labels, probabilities = classifier(10_000, 9)
    tracemalloc.start()
    evaluate(labels, probabilities, names(9), resamples=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20


def test_an_evaluation_survives_json_undefined_figures_and_all() -> None:
    labels, probabilities = classifier(40, 3)
    e = evaluate(labels[labels != 2], probabilities[labels != 2], names(3), resamples=30)
    text = json.dumps(e.to_dict(), allow_nan=False)
    assert json.loads(text)["per_class"][2]["auc"] is None
    assert Evaluation.from_dict(json.loads(text)) == e
    with pytest.raises(FrozenInstanceError):
        e.n = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n": "40"}, "evaluation.n is '40', expected a whole number"),
        ({"n": 41}, "sum of the confusion matrix"),
        ({"accuracy": None}, "evaluation.accuracy"),
        ({"auc": {"value": 0.5}}, r"evaluation.*auc.*missing"),
        ({"labels": ["a", "b"]}, "per_class"),
        ({"confusion": [[40]]}, "2 rows of 2"),
        ({"extra": 1}, "extra"),
    ],
)
def test_json_that_contradicts_itself_is_refused_with_the_field(change: dict[str, object], reason: str) -> None:
    labels, probabilities = classifier(40, 2)
    data = evaluate(labels, probabilities, names(2), resamples=5).to_dict()
    with pytest.raises(ManifestError, match=reason):
        Evaluation.from_dict(data | change)


def test_the_headline_names_the_class_whose_sensitivity_it_gives() -> None:
    labels, probabilities = classifier(60, 2)
    e = evaluate(labels, probabilities, ["NORMAL", "PNEUMONIA"], resamples=20)
    headline = e.headline()
    assert list(headline) == [
        "auc",
        "accuracy",
        "balanced_accuracy",
        "f1",
        "sensitivity/NORMAL",
        "sensitivity/PNEUMONIA",
        "specificity/NORMAL",
        "specificity/PNEUMONIA",
    ]
    assert headline["sensitivity/PNEUMONIA"] == e.per_class[1].sensitivity


@pytest.mark.parametrize(
    ("labels", "probabilities", "options", "reason"),
    [
        ([], np.zeros((0, 2)), {}, "at least one image"),
        ([0, 1], np.zeros((2, 3)), {}, r"probabilities must be \[2, 2\]"),
        ([0, 2], np.zeros((2, 2)), {}, r"labels must lie in 0\.\.1"),
        ([0, -1], np.zeros((2, 2)), {}, r"labels must lie in 0\.\.1"),
        ([0.0, 1.0], np.zeros((2, 2)), {}, "labels must be integers"),
        ([0, 1], np.full((2, 2), np.nan), {}, "not finite"),
        ([0, 1], np.zeros((2, 2)), {"groups": ["a"]}, "patient of each of 2 images"),
        ([0, 1], np.zeros((2, 2)), {"predictions": [0]}, "predictions must be"),
        ([0, 1], np.zeros((2, 2)), {"predictions": [0, 2]}, "predictions must lie"),
        ([0, 1], np.zeros((2, 2)), {"resamples": 0}, "resamples"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(
    labels: list[int], probabilities: np.ndarray, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        evaluate(labels, probabilities, ["well", "ill"], **options)  # type: ignore[arg-type]


def test_the_table_is_aligned_and_shows_value_and_interval() -> None:
    labels, probabilities = classifier(120, 3)
    e = evaluate(labels, probabilities, ["a", "a much longer name", "c"], groups=list(range(60)) * 2)
    table = format_table(e)
    first, overall, by_class, confusion = (block.splitlines() for block in table.split("\n\n"))
    assert first == ["120 images of 60 patients; 95 % intervals from 2000 bootstrap resamples of patients"]
    assert f"{e.accuracy.value:.3f} [{e.accuracy.low:.3f}, {e.accuracy.high:.3f}]" in overall[1]
    for block in (overall, by_class[1:]):
        assert len({line.index("[") for line in block}) == 1
    assert confusion[0].startswith("truth \\ predicted")
    assert len({len(line) for line in confusion}) == 1
    assert confusion[2].split()[-3:] == [str(cell) for cell in e.confusion[1]]


def test_the_table_of_many_classes_leaves_the_confusion_matrix_to_its_picture() -> None:
    labels, probabilities = classifier(200, 13)
    assert "truth" not in format_table(evaluate(labels, probabilities, names(13), resamples=5))
