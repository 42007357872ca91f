"""Pairs in the order of a weighted sum of criteria."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from trueup.data.criteria import by_criteria, check_known, turned
from trueup.data.pairs import pairs_of, ties_of
from trueup.data.records import Message, Preference, Ranking
from trueup.errors import DataError


def judged(tiers: list[list[int]], texts: tuple[str, str] = ("one", "two"), **more: Any) -> Ranking:
    prompt = [Message(role="user", content="Why?")]
    keys: dict[str, Any] = {"prompt_id": "p", "split": "train", "label_id": "1", "source": "human", "annotator": "me"}
    keys |= {"completion_token_ids": [[1], None], "finished": [True, False], "logps": [-1.0, None], "created_utc": ""}
    return Ranking(prompt=prompt, completions=list(texts), tiers=tiers, display_order=[1, 0], **{**keys, **more})


def split(ranking: Ranking, **weights: float) -> tuple[list[Preference], list[Preference], Counter[str]]:
    return by_criteria(pairs_of(ranking), ties_of(ranking), weights)


@pytest.mark.parametrize("tiers", [[[0], [1]], [[1], [0]], [[0, 1]]])
@pytest.mark.parametrize(
    ("weights", "ahead"),
    [
        ({"helpful": 1.0}, 1.0),
        ({"honest": 1.0}, -1.0),
        ({"short": 2.0}, 0.0),
        ({"helpful": 2.0, "honest": 1.0}, 1 / 3),
        ({"helpful": 1.0, "honest": 1.0}, 0.0),
        ({"helpful": 1.0, "short": 1.0}, 1 / 2),
        ({"helpful": 1.0, "honest": -1.0}, 1.0),
    ],
)
def test_the_sum_orders_a_pair_whatever_the_overall_choice_was(
    tiers: list[list[int]], weights: dict[str, float], ahead: float
) -> None:
    criteria = {"helpful": 0, "honest": 1, "short": None}
    strict, ties, _ = split(judged(tiers, criteria=criteria, strength=2), **weights)
    if not ahead:
        (pair,) = ties
        assert not strict and (pair.chosen_rank, pair.rejected_rank, pair.num_tiers, pair.strength) == (0, 0, 1, None)
        return
    (pair,) = strict
    assert not ties and pair.texts == (("one", "two") if ahead > 0 else ("two", "one"))
    assert (pair.chosen_rank, pair.rejected_rank, pair.num_tiers) == (0, 1, 2)
    assert pair.strength == {1: 3, 1 / 2: 2, 1 / 3: 1}[abs(ahead)], "the grade is how clear the sum is"
    first = pair.texts[0] == "one"
    assert (pair.chosen_finished, pair.chosen_token_ids) == ((True, [1]) if first else (False, None))
    assert pair.display_first == ("rejected" if first else "chosen"), "each side keeps its own"


def test_the_overall_choice_counts_under_its_name() -> None:
    for tiers, order in (([[0], [1]], ("one", "two")), ([[1], [0]], ("two", "one")), ([[0, 1]], ("one", "two"))):
        (pair,) = split(judged(tiers, criteria={"helpful": 0}), helpful=1.0, overall=2.0)[0]
        assert pair.texts == order


def test_what_nobody_judged_by_these_criteria_and_what_is_bad_on_both_sides_stays() -> None:
    for ranking in (
        judged([[1], [0]], criteria={"short": 0}, strength=3),
        judged([[1], [0]]),
        judged([[0, 1]], both_bad=True, criteria={"helpful": 0}),
    ):
        strict, ties, changes = split(ranking, helpful=1.0)
        assert (strict, ties) == (pairs_of(ranking), ties_of(ranking))
        assert changes == {"keep the overall choice": 1}


def test_no_empty_answer_is_preferred_or_tied_by_its_criteria() -> None:
    empty = judged([[1], [0]], ("", "two"), criteria={"short": 0, "fair": None, "helpful": 1})
    for weights, kept in (({"short": 1.0}, 0), ({"fair": 1.0}, 0), ({"helpful": 1.0}, 1)):
        strict, ties, changes = by_criteria(pairs_of(empty), [], weights)
        assert len(strict) == kept and not ties and sum(changes.values()) == 1 - kept


def test_a_pair_that_is_turned_twice_is_itself() -> None:
    (pair,) = pairs_of(judged([[0], [1]], criteria={"a": 0, "b": None}))
    assert turned(turned(pair)) == pair != turned(pair)


@pytest.mark.parametrize("seed", range(5))
def test_opposite_weights_give_opposite_orders(seed: int) -> None:
    chance = random.Random(seed)
    criteria = {name: chance.choice([0, 1, None]) for name in "abc"}
    weights = {name: chance.uniform(0.1, 1) for name in "abc"}
    pairs = pairs_of(judged([[0], [1]], criteria=criteria))
    there, back = (by_criteria(pairs, [], {k: sign * w for k, w in weights.items()})[:2] for sign in (1, -1))
    assert [turned(pair) for pair in there[0]] == back[0] and len(there[1]) == len(back[1])


def test_a_criterion_that_no_label_has_is_an_error_that_names_those_there_are() -> None:
    pairs = pairs_of(judged([[0], [1]], criteria={"helpful": 0, "honest": 1}))
    check_known(["helpful", "overall"], pairs, "reward.criteria_weights")
    with pytest.raises(
        DataError, match=r"reward.criteria_weights: no label was judged by helpfull .*: helpful, honest"
    ):
        check_known(["helpfull"], pairs, "reward.criteria_weights")
