"""Paired statistics, each against another way to the same number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from pocketdx_export.parity.levels.clinic import Clinic, clinical_figures
from pocketdx_export.parity.levels.decisions import side_of
from pocketdx_export.parity.paired import (
    bootstrap,
    clustered,
    delong,
    mcnemar_exact,
    midranks,
    proportions,
    smallest_interval,
    tango_interval,
)
from pocketdx_runtime.manifest import Thresholds
from pocketdx_train.bootstrap import Resampler
from pocketdx_train.metrics import auc


def scores(n: int, seed: int, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, and two correlated scores with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    first = np.round(truth + rng.normal(0, 0.9, n), 1)
    return truth, first, np.round(first + rng.normal(0, noise, n), 1)


def psi(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """DeLong's kernel for all pairs, [m, n]."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


@pytest.mark.parametrize("seed", range(5))
def test_delong_by_midranks_is_delong_by_all_pairs(seed: int) -> None:
    truth, first, second = scores(150, seed)
    paired = delong(truth, first, second)
    kernels = [psi(each[truth], each[~truth]) for each in (first, second)]
    assert paired.reference == pytest.approx(kernels[0].mean())
    assert paired.ours == pytest.approx(auc(truth, second))
    d10 = kernels[1].mean(1) - kernels[0].mean(1)
    d01 = kernels[1].mean(0) - kernels[0].mean(0)
    deviation = math.sqrt(d10.var(ddof=1) / len(d10) + d01.var(ddof=1) / len(d01))
    z = (paired.ours - paired.reference) / deviation
    assert paired.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    half = max(1.96 * deviation, smallest_interval(min(len(d10), len(d01))))
    assert paired.high - paired.low == pytest.approx(2 * half, rel=1e-3)


def test_delong_and_the_bootstrap_of_images_agree() -> None:
    truth, first, second = scores(400, 7)
    exact = delong(truth, first, second)

    def figure(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        columns = [[auc(truth, each, column) for column in weights.T] for each in (first, second)]
        return np.array(columns[0]), np.array(columns[1])

    resampler = Resampler.of(truth.astype(np.int64), 2, None)
    drawn = bootstrap(figure, resampler, int(truth.sum()), resamples=400, seed=0)
    assert drawn.low == pytest.approx(exact.low, abs=0.01)
    assert drawn.high == pytest.approx(exact.high, abs=0.01)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (3, 9), (20, 20)])
def test_mcnemar_is_the_binomial_test_of_discordant_pictures(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected)


@pytest.mark.parametrize("n", [5, 60, 390])
def test_tangos_interval_of_no_discordant_picture_is_its_closed_form(n: int) -> None:
    low, high = tango_interval(0, 0, n)
    assert high == pytest.approx(3.841459 / (n + 3.841459), rel=1e-5)
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(("c", "b", "n"), [(2, 12, 50), (7, 1, 40), (1, 0, 10), (5, 5, 100)])
def test_tangos_interval_ends_where_the_score_test_is_at_its_limit(c: int, b: int, n: int) -> None:
    """The nuisance parameter by maximising the likelihood numerically, in place of the closed form."""
    for end in tango_interval(c, b, n):

        def negative_likelihood(q: float, end: float = end) -> float:
            p12, rest = q + end, 1 - 2 * q - end
            terms = [(b, p12), (c, q), (n - b - c, rest)]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

        low, high = max(0.0, -end), (1 - end) / 2
        q = minimize_scalar(negative_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x
        z = (b - c - n * end) / math.sqrt(n * (2 * q + end - end * end))
        assert abs(z) == pytest.approx(1.96, abs=2e-3)


def test_midranks_share_the_mean_of_equals() -> None:
    assert midranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_identical_answers_prove_nothing_on_a_small_set_and_something_on_a_large_one() -> None:
    """Variance between identical answers is 0 whatever their number: the interval must not be."""
    for n, shown in ((10, False), (600, True)):
        truth, first, _ = scores(n, 3)
        paired = delong(truth, first, first)
        assert (paired.low > -0.02) is shown
        assert paired.p == 1.0
        same = proportions(first > 0.5, first > 0.5)
        assert (same.low > -0.02) is shown


def figures_of(second: np.ndarray, truth: np.ndarray, first: np.ndarray, patients: list[str | None]) -> dict[str, str]:
    sides = [
        side_of({"logits": np.stack([-each, each], 1).astype(np.float32)}, 1.0, Thresholds(), (0, 1))
        for each in (first - 0.5, second - 0.5)
    ]
    found = clinical_figures(truth.astype(np.int64), *sides, ("well", "ill"), patients, Clinic(0.05))
    return {figure.name: figure.verdict for figure in found}


def test_a_file_that_is_worse_is_inferior_one_that_is_equal_is_shown_not_to_be() -> None:
    truth, first, _ = scores(800, 1)
    nobody = [None] * len(truth)
    assert set(figures_of(first, truth, first, nobody).values()) == {"shown"}
    worse = figures_of(np.random.default_rng(0).normal(0.5, 1, len(truth)), truth, first, nobody)
    assert worse["AUC of ill"] == worse["sensitivity for ill"] == "inferior"


def test_several_pictures_of_a_patient_count_as_that_patient() -> None:
    truth, first, _ = scores(800, 1)
    patients = [f"{'ill' if ill else 'well'}-{number % 10}" for number, ill in enumerate(truth)]
    assert clustered(patients)
    assert not clustered([*map(str, range(5)), None, None])
    assert set(figures_of(first, truth, first, patients).values()) == {"not shown"}  # 20 patients, not 800 pictures


def test_figures_of_a_class_that_is_not_there_are_left_out() -> None:
    truth, first, second = scores(50, 2)
    assert figures_of(second, np.zeros_like(truth), first, [None] * 50) == {}
