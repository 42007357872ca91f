"""What another round would probably add: the last round's gain, carried on over the logarithm of the labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trueup.statistics.another_round import expected_gain, gain
from trueup.statistics.intervals import Interval


def test_the_gain_is_the_difference_of_two_win_rates_prompt_by_prompt() -> None:
    before, now = [np.array([[0.0]]), np.array([[1.0]])], [np.array([[1.0]]), np.array([[1.0]])]
    assert gain(before, now).value == pytest.approx(0.5)
    assert gain(now, before).value == pytest.approx(-0.5)
    nothing = gain(now, now)
    assert nothing.value == 0 and nothing.low <= 0 <= nothing.high
    unread = np.full((1, 1), np.nan)
    assert gain([*before, unread], [*now, np.array([[0.0]])]).n == 2
    assert gain([unread], [unread]).n == 0


def test_its_interval_holds_the_true_gain_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        difficulty = rng.uniform(-0.3, 0.3, 60)
        before = [(rng.random((4, 4)) < 0.5 + d).astype(float) for d in difficulty]
        now = [(rng.random((4, 4)) < 0.6 + d).astype(float) for d in difficulty]
        interval = gain(before, now)
        held += interval.low <= 0.1 <= interval.high
    assert held >= 182


@pytest.mark.parametrize("labels", [10, 150])
def test_equal_rounds_are_worth_less_and_less_and_doublings_the_same(labels: int) -> None:
    """On a true line over the logarithm the expectation is the next point of that line."""

    def rate(n: int) -> float:
        return 0.5 + 0.04 * math.log(n)

    last = Interval(rate(2 * labels) - rate(labels), 0.0, 0.1, 50)
    assert expected_gain(last, labels, 2 * labels, labels).value == pytest.approx(rate(3 * labels) - rate(2 * labels))
    assert expected_gain(last, labels, 2 * labels, 2 * labels).value == pytest.approx(last.value)
    assert expected_gain(last, labels, 2 * labels, labels).high < last.high
