"""One number mends overconfidence: found where the likelihood is best, never beyond what the data bear."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from scipy import optimize, special

from pocketdx_train.calibration import TEMPERATURE_BOUNDS, expected_calibration_error, fit_temperature


def calibrated(n: int, classes: int, *, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, classes] and labels [n] drawn from exactly their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * scale
    drawn = special.softmax(logits, axis=1).cumsum(axis=1)
    return logits, (rng.random((n, 1)) > drawn).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_known_temperature_is_found_again(temperature: float, classes: int) -> None:
    logits, labels = calibrated(20_000, classes)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_minimum_of_the_cross_entropy_that_scipy_finds() -> None:
    logits, labels = calibrated(5000, 4)
    logits *= 2.5

    def loss(log_t: float) -> float:
        return -float(np.mean(special.log_softmax(logits / np.exp(log_t), axis=1)[np.arange(5000), labels]))

    best = np.exp(optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded").x)
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=0.003)


def test_calibrating_an_overconfident_model_mends_its_calibration_error() -> None:
    logits, labels = calibrated(5000, 3)
    overconfident = logits * 4
    before = expected_calibration_error(special.softmax(overconfident, axis=1), labels)
    after = expected_calibration_error(
        special.softmax(overconfident / fit_temperature(overconfident, labels), axis=1), labels
    )
    assert before > 0.1
    assert after < 0.03


def test_when_every_image_is_right_it_allows_only_the_certainty_that_so_many_images_support() -> None:
    for n in (20, 2000):
        labels = np.arange(n) % 2
        logits = np.where(np.arange(2) == labels[:, None], 3.0, -3.0)
        confidence = special.softmax(logits / fit_temperature(logits, labels), axis=1).max()
        assert confidence == pytest.approx((n + 1) / (n + 2), rel=1e-6)


def test_always_wrong_is_bounded_by_the_highest_temperature() -> None:
    assert fit_temperature([[5.0, -5.0], [-5.0, 5.0]], [1, 0]) == TEMPERATURE_BOUNDS[1]


def test_logits_too_small_to_sharpen_are_bounded_by_the_lowest_temperature() -> None:
    labels = np.arange(1000) % 2
    assert fit_temperature(np.eye(2)[labels] * 1e-3, labels) == TEMPERATURE_BOUNDS[0]


def test_logits_that_cannot_tell_leave_the_temperature_at_one() -> None:
    assert fit_temperature([[2.0, 2.0], [1.0, 1.0]], [0, 1]) == 1.0
    assert fit_temperature([[2.0], [1.0]], [0, 0]) == 1.0


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_float32_logits_the_temperature_is_a_number_within_bounds(data: st.DataObject) -> None:
    n, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    logits = data.draw(nps.arrays(np.float32, (n, classes), elements=finite))
    labels = data.draw(nps.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    with np.errstate(all="raise", under="ignore"):
        temperature = fit_temperature(logits, labels)
    assert TEMPERATURE_BOUNDS[0] <= temperature <= TEMPERATURE_BOUNDS[1]


def test_a_shift_of_all_logits_of_an_image_changes_nothing() -> None:
    logits, labels = calibrated(300, 3)
    shifted = logits + np.linspace(-1e4, 1e4, 300)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Four images say 0.9 and three are right; two say 0.6 and both are.
    assert expected_calibration_error(probabilities, labels) == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(abs(5 - 4.8) / 6)


def test_bins_are_closed_above_as_in_the_paper() -> None:
    # 0.5 belongs to (0, 0.5], 0.6 to (0.5, 1]: two gaps of 0.5 and 0.4 that must not cancel.
    probabilities = np.array([[0.5, 0.5], [0.6, 0.4]])
    assert expected_calibration_error(probabilities, [1, 0], bins=2) == pytest.approx((0.5 + 0.4) / 2)


def test_the_truth_said_with_certainty_has_no_calibration_error() -> None:
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0.0


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "at least one image"),
        (np.zeros((2, 2)), [0], "at least one image"),
        (np.zeros(2), [0, 1], "at least one image"),
        ([[0.0, np.nan]], [0], "finite"),
        ([[0.0, np.inf]], [0], "finite"),
        ([[0.0, 1.0]], [2], r"0\.\.1"),
        ([[0.0, 1.0]], [0.5], "integers"),
    ],
)
def test_bad_input_is_refused_with_the_reason(logits: object, labels: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit_temperature(logits, labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=reason):
        expected_calibration_error(logits, labels)  # type: ignore[arg-type]


def test_calibration_error_refuses_scores_that_are_no_probabilities_and_no_bins() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        expected_calibration_error([[2.0, -1.0]], [0])
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error([[1.0, 0.0]], [0], bins=0)
