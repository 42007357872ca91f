"""Strengths of several policies, against hand-worked odds, a second algorithm, and each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trueup.statistics.bradley_terry import ELO, bradley_terry
from trueup.statistics.win_rates import win_rate

NAMES = ["sft", "base", "dpo", "ppo"]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def tournament(seed: int, prompts: int = 30, answers: int = 3) -> dict[tuple[str, str], list[np.ndarray]]:
    """Every pair of four policies, with ties, comparisons that failed, and prompts that not every pair was asked."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for i, a in enumerate(NAMES):
        for j, b in enumerate(NAMES[i + 1 :], i + 1):
            made = rng.choice(
                [0, 0.5, 1, np.nan], (prompts, answers), p=[0.35 - 0.05 * (j - i), 0.2, 0.4, 0.05 * (1 + j - i)]
            )
            pairs[a, b] = [row if rng.random() < 0.9 else row[:0] for row in made]
    return pairs


def by_mm(wins: np.ndarray) -> np.ndarray:
    """Hunter 2004, eq. 3, in plain loops: wins[i, j] is how often i won against j."""
    gamma = np.ones(len(wins))
    for _ in range(5_000):
        for i in range(len(wins)):
            met = sum((wins[i, j] + wins[j, i]) / (gamma[i] + gamma[j]) for j in range(len(wins)) if j != i)
            gamma[i] = wins[i].sum() / met
        gamma /= gamma[0]
    return np.log(gamma)


def test_two_policies_come_out_at_the_logit_of_their_win_rate_and_of_its_bounds() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.choice([0, 0.5, 1], rng.integers(1, 7), p=[0.3, 0.2, 0.5]) for _ in range(50)]
    rate = win_rate(groups, resamples=1000).interval
    made = bradley_terry({("sft", "dpo"): groups}, "sft")
    assert made.of["dpo"].value == pytest.approx(logit(rate.value), abs=1e-8)
    assert made.of["dpo"].low == pytest.approx(logit(rate.low), abs=1e-3)
    assert made.of["dpo"].high == pytest.approx(logit(rate.high), abs=1e-3)
    assert (made.of["sft"].value, made.of["sft"].low, made.of["sft"].high) == (0, 0, 0)
    assert made.of["dpo"].n == 50
    assert made.note is None


def test_odds_that_multiply_are_found_by_hand() -> None:
    """b beats a 2 to 1 and c beats b 3 to 1, so c beats a 6 to 1, and all three are consistent."""
    third, quarter, seventh = [[1, 1, 0]] * 12, [[1, 1, 1, 0]] * 12, [[1] * 6 + [0]] * 12
    made = bradley_terry({("a", "b"): third, ("b", "c"): quarter, ("a", "c"): seventh}, "a", resamples=10)
    assert made.of["b"].value == pytest.approx(math.log(2))
    assert made.of["c"].value == pytest.approx(math.log(6))
    assert ELO * made.of["c"].value == pytest.approx(400 * math.log10(6))


def test_policies_that_never_met_are_compared_through_a_third() -> None:
    made = bradley_terry({("a", "b"): [[1, 1, 0]] * 9, ("c", "b"): [[1, 0]] * 9}, "a", resamples=10)
    assert made.of["c"].value == pytest.approx(math.log(2))


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_agrees_with_hunters_algorithm(seed: int) -> None:
    pairs = tournament(seed)
    wins = np.zeros((4, 4))
    for (a, b), groups in pairs.items():
        rate = win_rate(groups, resamples=10).interval
        wins[NAMES.index(b), NAMES.index(a)] = rate.value * rate.n
        wins[NAMES.index(a), NAMES.index(b)] = (1 - rate.value) * rate.n
    expected = by_mm(wins)
    made = bradley_terry(pairs, "sft", resamples=10)
    assert [made.of[name].value for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_the_other_way_round_give_exactly_the_negative(seed: int) -> None:
    pairs = tournament(seed)
    if seed == 0:
        pairs["sft", "best"] = [np.ones(1)] * 30  # never lost
    other = {pair: [1 - group for group in groups] for pair, groups in pairs.items()}
    one, mirrored = bradley_terry(pairs, "sft", resamples=200), bradley_terry(other, "sft", resamples=200)
    for name, made in one.of.items():
        opposite = mirrored.of[name]
        assert (made.value, made.low, made.high) == (-opposite.value, -opposite.high, -opposite.low)


def test_naming_a_pair_the_other_way_round_changes_nothing() -> None:
    pairs = tournament(1)
    turned = {(b, a): [1 - group for group in groups] for (a, b), groups in pairs.items()}
    one, other = bradley_terry(pairs, "sft", resamples=100), bradley_terry(turned, "sft", resamples=100)
    for name in NAMES:
        assert one.of[name].value == pytest.approx(other.of[name].value, abs=1e-9)
        assert one.of[name].low == pytest.approx(other.of[name].low, abs=1e-9)


def test_another_reference_moves_all_strengths_alike() -> None:
    pairs = tournament(2)
    of_sft, of_base = bradley_terry(pairs, "sft").of, bradley_terry(pairs, "base").of
    for name in NAMES:
        assert of_base[name].value == pytest.approx(of_sft[name].value - of_sft["base"].value, abs=1e-8)


def test_more_answers_to_the_same_prompts_do_not_make_a_pair_weigh_more() -> None:
    pairs = tournament(3)
    repeated = {**pairs, ("sft", "dpo"): [np.tile(group, 5) for group in pairs["sft", "dpo"]]}
    one, other = bradley_terry(pairs, "sft", resamples=100), bradley_terry(repeated, "sft", resamples=100)
    for name in NAMES:
        assert one.of[name].value == pytest.approx(other.of[name].value, abs=1e-9)


@pytest.mark.parametrize("prompts", [5, 50])
def test_a_policy_that_wins_everything_is_finite_with_room_below_and_is_named(prompts: int) -> None:
    made = bradley_terry({("sft", "dpo"): [[1.0]] * prompts}, "sft")
    assert made.of["dpo"].value == pytest.approx(math.log(2 * prompts + 1))
    assert made.of["dpo"].low < made.of["dpo"].value - 1
    assert made.of["dpo"].high < 20
    assert made.note is not None and "dpo to sft" in made.note


def test_a_policy_that_wins_everything_leaves_the_others_as_they_are() -> None:
    pairs = tournament(4)
    best: dict[tuple[str, str], Any] = {**pairs, **{(name, "best"): [[1.0]] * 30 for name in NAMES}}
    one, other = bradley_terry(pairs, "sft", resamples=100), bradley_terry(best, "sft", resamples=100)
    for name in NAMES:
        assert other.of[name].value == pytest.approx(one.of[name].value, abs=0.1)
        assert other.of["best"].low > one.of[name].high
    assert other.note is not None and "best to dpo" in other.note and "dpo to" not in other.note


def test_a_pair_that_went_one_way_within_a_circle_needs_no_help() -> None:
    made = bradley_terry({("a", "b"): [[1]] * 9, ("b", "c"): [[1]] * 9, ("c", "a"): [[1]] * 9}, "a")
    assert made.note is None
    assert made.of["c"].value == pytest.approx(0, abs=1e-8)


def test_policies_that_nothing_connects_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a, b \| c, d"):
        bradley_terry({("a", "b"): [[1, 0]], ("c", "d"): [[1, 0]]}, "a")
    with pytest.raises(ValueError, match=r"a, b \| c"):
        bradley_terry({("a", "b"): [[1, 0]], ("b", "c"): [[np.nan]]}, "a")


def test_a_reference_that_did_not_play_is_refused() -> None:
    with pytest.raises(ValueError, match="'sft' is in no pair; the pairs are of a, b"):
        bradley_terry({("a", "b"): [[1, 0]]}, "sft")


def test_pairs_on_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="a and b on 2, a and c on 1"):
        bradley_terry({("a", "b"): [[1], [0]], ("a", "c"): [[1]]}, "a")


def test_resamples_that_lose_the_connection_are_counted() -> None:
    rare = [[1, 0]] + [[]] * 4
    made = bradley_terry({("a", "b"): [[1, 0]] * 5, ("b", "c"): rare}, "a", resamples=200)
    assert made.note is not None and "of 200 resamples" in made.note


def test_prompts_on_which_nothing_was_compared_do_not_count() -> None:
    pairs = tournament(5)
    padded: dict[tuple[str, str], Any] = {pair: [[], *groups, [np.nan]] for pair, groups in pairs.items()}
    assert bradley_terry(padded, "sft", resamples=100) == bradley_terry(pairs, "sft", resamples=100)


def test_one_prompt_has_strengths_without_bounds() -> None:
    made = bradley_terry({("a", "b"): [[1, 1, 0]]}, "a").of["b"].estimate()
    assert made.value == pytest.approx(math.log(2))
    assert (made.ci_low, made.ci_high, made.n) == (None, None, 1)


def test_ties_alone_are_no_certainty_of_equal_strength() -> None:
    ties = [np.full(2, 0.5)] * 24
    made = bradley_terry({("sft", "dpo"): ties, ("sft", "ppo"): [*ties[:-1], np.ones(2)]}, "sft").of
    rate = win_rate(ties).interval
    assert made["dpo"].value == 0
    assert (made["dpo"].low, made["dpo"].high) == pytest.approx([np.log(x / (1 - x)) for x in (rate.low, rate.high)])
    assert made["ppo"].low < 0 < made["ppo"].value < made["ppo"].high
    reversed_pair = bradley_terry({("dpo", "sft"): ties}, "sft").of["dpo"]
    assert (reversed_pair.low, reversed_pair.high) == pytest.approx((made["dpo"].low, made["dpo"].high))
