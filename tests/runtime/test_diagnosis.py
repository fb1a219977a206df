"""The rule that turns probabilities into an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdx_runtime.diagnosis import decide, found


def test_without_thresholds_the_most_probable_label_answers() -> None:
    assert decide([0.2, 0.5, 0.3], None) == 1


def test_of_equal_labels_the_earlier_answers() -> None:
    assert decide([0.5, 0.5], None) == 0


@pytest.mark.parametrize(
    ("positive", "threshold", "answer"), [(0.29, 0.3, 0), (0.3, 0.3, 1), (0.31, 0.3, 1), (0.6, 0.7, 0)]
)
def test_of_two_labels_the_second_is_judged_by_its_threshold_alone(
    positive: float, threshold: float, answer: int
) -> None:
    for first in (0.01, 0.5, 1 - threshold, 1.0):
        assert decide([1 - positive, positive], [first, threshold]) == answer


def test_of_several_labels_above_their_threshold_the_one_furthest_above_it_answers() -> None:
    # 0.3 is three times its threshold, 0.6 only 1.2 times.
    assert decide([0.6, 0.3, 0.1], [0.5, 0.1, 0.5]) == 1


def test_where_no_label_reaches_its_threshold_the_most_probable_answers() -> None:
    assert decide([0.2, 0.45, 0.35], [0.9, 0.9, 0.9]) == 1


def test_a_label_at_its_threshold_is_found() -> None:
    assert found([0.2, 0.5, 0.3], [0.2, 0.6, 0.1]) == (0, 2)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.floats(0.01, 1))
def test_equal_thresholds_never_change_the_answer_of_several_labels(scores: list[float], threshold: float) -> None:
    probabilities = [each / sum(scores) for each in scores]
    answer = decide(probabilities, [threshold] * len(scores))
    if len(scores) == 2:
        assert answer == int(probabilities[1] >= threshold)
    else:
        assert probabilities[answer] == max(probabilities)


@given(st.floats(0, 1), st.floats(0.01, 0.99))
def test_the_answer_of_two_complementary_thresholds_is_the_label_found(positive: float, threshold: float) -> None:
    answer = decide([1 - positive, positive], [1 - threshold, threshold])
    assert answer == int(positive >= threshold)
