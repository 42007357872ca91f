"""The draw of what is asked first: its propensities are those with which it draws."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ui.sources.selection import FLOOR, disagreement, draw, information, uncertainty, weight

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}


def test_a_model_that_is_torn_is_uncertain_and_one_that_is_sure_is_not() -> None:
    assert uncertainty(1.5, 1.5) == 1.0
    assert uncertainty(0, 1) == uncertainty(1, 0) == pytest.approx(0.7864, abs=1e-4)  # 4 * 0.7311 * 0.2689
    assert uncertainty(-1e9, 1e9) == pytest.approx(0.0)


def test_a_pair_tells_of_the_heads_only_where_they_disagree() -> None:
    assert information([0.0, 0.0, 0.0]) == 0.0 == information([2.0, 2.0]), "a coin to all heads settles nothing"
    assert information([-1e9, 1e9]) == pytest.approx(1.0) and information([1e9, 1e9]) == 0.0
    # Probabilities 0.75 and 0.25: 1 bit of their mean, less H(0.25) = 0.25 * 2 + 0.75 * 0.41504 = 0.81128 of each.
    assert information([1.0986123, -1.0986123]) == pytest.approx(1 - 0.81128, abs=1e-5)
    assert information([1.0, -2.0, 0.5]) == pytest.approx(information([-1.0, 2.0, -0.5])), "sides have no names"


def test_disagreement_is_the_chance_that_two_labels_differ() -> None:
    assert [disagreement(votes) for votes in ([], [1], [3], [1, 1])] == [0.0, 0.0, 0.0, 1.0]
    assert disagreement([2, 1]) == pytest.approx(2 / 3)
    assert weight(0.0, 0.0) == FLOOR and weight(1.0, 0.5) == 0.75


@pytest.mark.parametrize("control_share", [0.0, 0.3, 1.0])
def test_the_first_draw_has_the_stated_propensity(control_share: float) -> None:
    n, first = 20_000, Counter[tuple[str, str]]()
    stated: dict[tuple[str, str], float] = {}
    for seed in range(n):
        one = draw(WEIGHTS, 1, control_share, random.Random(seed))[0]
        first[one.item_id, one.selection] += 1
        assert stated.setdefault((one.item_id, one.selection), one.propensity) == one.propensity
    for (name, selection), chance in stated.items():
        share = control_share if selection == "random" else 1 - control_share
        assert chance == pytest.approx(0.25 if selection == "random" else WEIGHTS[name])
        expected = share * chance
        assert abs(first[name, selection] / n - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


def test_later_draws_have_the_stated_propensity_given_the_earlier_ones() -> None:
    """A uniform draw takes out an item; the weighted chances of the others stay in proportion."""
    after = Counter[str]()
    for seed in range(40_000):
        one, two, *_ = draw(WEIGHTS, 4, 0.5, random.Random(seed))
        if (one.item_id, one.selection, two.selection) == ("a", "random", "uncertainty"):
            after[two.item_id] += 1
            assert two.propensity == pytest.approx(WEIGHTS[two.item_id] / 0.5)
    n = sum(after.values())
    for name in "bcd":
        p = WEIGHTS[name] / 0.5
        assert abs(after[name] / n - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_nothing_is_drawn_twice_and_the_control_share_is_kept() -> None:
    weights = {str(i): random.Random(i).random() + 0.01 for i in range(5000)}
    drawn = draw(weights, 3000, 0.2, random.Random(0))
    assert len({one.item_id for one in drawn}) == 3000
    assert 500 < sum(one.selection == "random" for one in drawn) < 700
    assert all(0 < one.propensity <= 1 for one in drawn)
    assert draw(weights, 9999, 0.2, random.Random(0))[:3000] == drawn
