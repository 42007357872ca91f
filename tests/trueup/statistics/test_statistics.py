"""Intervals, win rates, length control and calibration, against hand-worked numbers and by their properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import scipy.stats

from trueup.statistics import intervals
from trueup.statistics.calibration import (
    TEMPERATURES,
    brier,
    by_confidence,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
    spearman,
    temperature_interval,
)
from trueup.statistics.intervals import bootstrap_mean, positive_mean, wilson
from trueup.statistics.length_control import length_controlled_win_rate
from trueup.statistics.win_rates import by_group, minimum_detectable_effect, noise_floor, outcomes, win_rate


def compared(reference: np.ndarray, aligned: np.ndarray) -> list[np.ndarray]:
    """Outcomes of each prompt, from scores (P, K) of both policies."""
    tables = [outcomes(r, a) for r, a in zip(reference, aligned, strict=True)]
    return [table[~np.isnan(table)] for table in tables]


def differences(reference: np.ndarray, aligned: np.ndarray) -> list[np.ndarray]:
    """aligned - reference of each comparison, from lengths (P, K) of both policies."""
    apart = ~np.eye(reference.shape[1], dtype=bool)
    return [(a[None] - r[:, None])[apart] for r, a in zip(reference, aligned, strict=True)]


def any_scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (P, K) of two policies, with ties, some that no judge gave, and a third of the prompts without any."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 60), rng.integers(1, 6)
    made = rng.integers(0, 4, (2, *shape)) + rng.choice([0.0, 0.1], (2, *shape))
    made[rng.random(made.shape) < 0.2] = np.nan
    made[:, rng.random(shape[0]) < 0.3] = np.nan
    return made[0], made[1]


# ---- Wilson -----------------------------------------------------------------------------------------------------


def test_wilsons_interval_of_8_in_10_is_that_of_the_textbook() -> None:
    made = wilson(8, 10)
    assert (made.value, made.n) == (0.8, 10)
    assert (made.low, made.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilsons_interval_of_no_success_starts_at_0_and_ends_near_the_rule_of_three() -> None:
    made = wilson(0, 30)
    assert made.low == 0
    assert 0.09 < made.high < 0.13


def test_of_no_trials_nothing_is_known() -> None:
    made = wilson(0, 0)
    assert math.isnan(made.value)
    assert (made.low, made.high) == (0, 1)
    assert made.estimate().plain() == {"value": None, "ci_low": 0.0, "ci_high": 1.0, "n": 0}


# ---- Bootstrap --------------------------------------------------------------------------------------------------


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_is_exact() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    made = bootstrap_mean(values[:, None], bounds=None)
    half = 1.96 * values.std(ddof=1) / 20
    assert made.value == pytest.approx(values.mean())
    assert (made.low, made.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_saying_a_thing_four_times_makes_it_no_surer() -> None:
    once = [[value] for value in np.random.default_rng(1).random(60)]
    four_times = [values * 4 for values in once]
    one, four = bootstrap_mean(once), bootstrap_mean(four_times)
    assert (one.low, one.high) == pytest.approx((four.low, four.high))
    assert one.n == four.n == 60


def test_prompts_with_more_values_weigh_more() -> None:
    assert bootstrap_mean([[1, 1, 1], [0]]).value == 0.75


def test_prompts_without_values_are_not_counted() -> None:
    assert bootstrap_mean([[1], [], [0]]).n == 2


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same() -> None:
    values = np.random.default_rng(2).random((50, 1))
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    one, other = bootstrap_mean(values, seed=4), bootstrap_mean(values, seed=5)
    assert one != other
    assert one.low == pytest.approx(other.low, abs=0.005)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    values = np.random.default_rng(3).random((50, 1))
    usual, sure = bootstrap_mean(values, 0.95), bootstrap_mean(values, 0.99)
    assert sure.low < usual.low < usual.high < sure.high


def test_memory_stays_bounded_with_many_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random((500, 1))
    at_once = bootstrap_mean(values)
    monkeypatch.setattr(intervals, "_CELLS", 10_000)
    in_parts = bootstrap_mean(values)
    assert (in_parts.low, in_parts.high) == pytest.approx((at_once.low, at_once.high), abs=1e-12)


def test_one_prompt_says_nothing_of_others() -> None:
    share = bootstrap_mean([[1, 0, 1, 1]])
    assert (share.value, share.low, share.high, share.n) == (0.75, 0, 1, 1)
    anything = bootstrap_mean([[3.0, 5.0]], bounds=None).estimate().plain()
    assert anything == {"value": 4.0, "ci_low": None, "ci_high": None, "n": 1}


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([[], []])


# ---- Win rates --------------------------------------------------------------------------------------------------


def test_every_answer_meets_every_other_but_the_one_of_its_own_random_numbers() -> None:
    table = outcomes([1.0, 3.0], [2.0, 3.0])
    assert np.isnan(table[0, 0]) and np.isnan(table[1, 1])
    assert table[0, 1] == 1  # the aligned 3 against the reference's 1
    assert table[1, 0] == 0  # the aligned 2 against the reference's 3


def test_single_answers_are_compared_with_each_other() -> None:
    assert outcomes([1.0], [1.0]).tolist() == [[0.5]]


def test_a_tie_is_half_a_win() -> None:
    made = win_rate([[1, 0.5], [0.5, 0]])
    assert made.interval.value == 0.5
    assert (made.wins, made.ties, made.losses) == (1, 2, 1)


@pytest.mark.parametrize("seed", range(40))
def test_swapping_the_policies_turns_the_win_rate_into_its_exact_complement(seed: int) -> None:
    reference, aligned = any_scores(seed)
    pairs = zip(reference, aligned, strict=True)
    one, other = zip(*((outcomes(r, a), outcomes(a, r)) for r, a in pairs), strict=True)
    won, lost = win_rate(one, resamples=500), win_rate(other, resamples=500)
    assert (won.wins, won.ties, won.losses) == (lost.losses, lost.ties, lost.wins)
    assert won.interval.n == lost.interval.n
    assert minimum_detectable_effect(one) == pytest.approx(minimum_detectable_effect(other), abs=1e-15, nan_ok=True)
    if won.interval.n:
        assert won.interval.value == 1 - lost.interval.value
        assert won.interval.low == 1 - lost.interval.high
        assert won.interval.high == 1 - lost.interval.low


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_complement_is_exact_where_everything_is_won(share: float) -> None:
    for prompts in range(1, 30):
        won, lost = win_rate([[share]] * prompts).interval, win_rate([[1 - share]] * prompts).interval
        assert (won.value, won.low, won.high) == (1 - lost.value, 1 - lost.high, 1 - lost.low)


def test_what_was_not_compared_does_not_count() -> None:
    made = win_rate([[1, np.nan], [0.5, 0], [np.nan, np.nan]])
    assert made.interval.value == 0.5
    assert (made.interval.n, made.wins, made.ties, made.losses) == (2, 1, 1, 1)


def test_tables_and_lists_of_outcomes_say_the_same() -> None:
    reference, aligned = np.random.default_rng(8).random((2, 20, 3))
    tables = [outcomes(r, a) for r, a in zip(reference, aligned, strict=True)]
    assert win_rate(tables) == win_rate(np.stack(tables)) == win_rate(compared(reference, aligned))


@pytest.mark.parametrize("groups", [[], [[], []], [[np.nan], [np.nan, np.nan]]])
def test_of_no_comparison_nothing_is_known(groups: list[Any]) -> None:
    made = win_rate(groups)
    assert math.isnan(made.interval.value)
    assert (made.interval.low, made.interval.high, made.interval.n) == (0, 1, 0)
    assert (made.wins, made.ties, made.losses) == (0, 0, 0)
    assert math.isnan(minimum_detectable_effect(groups))
    assert length_controlled_win_rate(groups, groups).note == "no comparisons"


def test_a_policy_that_answers_alike_wins_exactly_half_and_other_prompts_could_differ() -> None:
    scores = np.random.default_rng(6).random((30, 4))
    made = win_rate(compared(scores, scores)).interval
    assert made.value == 0.5 and 0.04 < made.high - 0.5 == 0.5 - made.low < 0.05


@pytest.mark.parametrize("prompts", [2, 3, 5, 6, 9, 24, 90, 1000])
def test_ties_alone_are_no_certainty_and_the_more_of_them_the_more_is_known(prompts: int) -> None:
    made = win_rate([[0.5] * 6] * prompts)
    assert (made.wins, made.ties, made.losses) == (0, 6 * prompts, 0)
    by_hand = NormalDist().inv_cdf(0.975) * math.sqrt(0.5) / (prompts + 2)
    assert made.interval.value == 0.5
    assert 0.5 - made.interval.low == made.interval.high - 0.5 == pytest.approx(min(0.5, by_hand))
    assert minimum_detectable_effect([[0.5]] * prompts) == pytest.approx(2.8016 / 1.96 * by_hand, rel=1e-3)


def test_one_vote_beside_ties_is_an_interval_of_bonett_and_price() -> None:
    """23 ties and 1 win: (1 + 1 - 1) / 26 of difference, and variance (2 + 1) / 26 less its square, by 26."""
    made = win_rate([[0.5]] * 23 + [[1.0]]).interval
    error = math.sqrt((3 / 26 - (1 / 26) ** 2) / 26) / 2
    assert (made.low, made.high) == pytest.approx(
        (0.5 + 0.5 / 26 - 1.96 * error, 0.5 + 0.5 / 26 + 1.96 * error), abs=1e-4
    )


def test_where_no_prompt_is_tied_the_interval_is_nearly_that_of_the_resamples() -> None:
    won = np.random.default_rng(5).uniform(0.2, 0.9, (90, 1))
    made, resampled = win_rate(won).interval, bootstrap_mean(won)
    assert (made.low, made.high) == pytest.approx((resampled.low, resampled.high), abs=0.003)


def test_ties_are_no_certainty_at_equal_length_either() -> None:
    rng = np.random.default_rng(0)
    outcome = np.full((24, 1), 0.5)
    outcome[:2] = [[1.0], [0.0]]
    made = length_controlled_win_rate(outcome, rng.normal(0, 30, (24, 1))).interval
    assert made.low < 0.44 and made.high > 0.56


# ---- Means of what is never negative ----------------------------------------------------------------------------


def test_a_mean_with_a_heavy_tail_reaches_further_up_than_down_and_never_below_0() -> None:
    values = np.random.default_rng(0).lognormal(0, 1.2, (24, 1))
    made, resampled = positive_mean(values), bootstrap_mean(values, bounds=None)
    assert 0 < made.low <= resampled.low < made.value < resampled.high < made.high
    assert made.high - made.value > 1.5 * (made.value - made.low)


def test_a_mean_without_a_heavy_tail_keeps_its_interval() -> None:
    values = np.random.default_rng(0).normal(5, 1, (200, 1))
    made, resampled = positive_mean(values), bootstrap_mean(values, bounds=None)
    assert (made.low, made.high) == pytest.approx((resampled.low, resampled.high), abs=0.02)


def test_the_scale_of_a_positive_mean_does_not_matter_and_one_prompt_says_nothing_of_others() -> None:
    values = np.random.default_rng(1).gamma(0.5, 1, (30, 2))
    one, other = positive_mean(values), positive_mean(1e-3 * values)
    assert (1e-3 * one.low, 1e-3 * one.high) == pytest.approx((other.low, other.high))
    assert positive_mean([[2.0]]).estimate().plain() == {"value": 2.0, "ci_low": 0.0, "ci_high": None, "n": 1}
    assert positive_mean([[0.0], [0.0]]) == intervals.Interval(0.0, 0.0, 0.0, 2)
    assert positive_mean([[3.0]] * 9) == intervals.Interval(3.0, 3.0, 3.0, 9)


@pytest.mark.parametrize("prompts", [2, 3, 5, 6, 7, 24])
@pytest.mark.parametrize("zeros", [0, 1])
def test_a_positive_mean_is_within_its_bounds_for_any_number_of_prompts(prompts: int, zeros: int) -> None:
    values = np.random.default_rng(prompts).lognormal(0, 1, (prompts, 1))
    values[:zeros] = 0
    made = positive_mean(values)
    assert 0 <= made.low < made.value < made.high < math.inf and made.n == prompts


def test_per_token_means_weigh_prompts_by_their_tokens() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 40, 50)
    groups = [rng.gamma(1, 0.1, size) for size in sizes]
    made = positive_mean(groups)
    assert made.value == pytest.approx(np.concatenate(groups).mean())
    assert made.low < 0.1 < made.high and made.high - made.low < 0.05


def test_winning_everything_on_few_prompts_is_not_certainty() -> None:
    made = win_rate([[1.0] * 12] * 4).interval
    assert (made.value, made.high) == (1, 1)
    assert made.low == pytest.approx(wilson(4, 4).low)


def test_one_prompt_decides_nothing() -> None:
    made = win_rate([[1, 1, 0.5]]).interval
    assert (made.low, made.high) == (0, 1)


def test_each_category_has_its_own_win_rate_and_small_ones_stay() -> None:
    groups = [[1.0, 0.5], [0.0, 1.0], [1.0, 1.0], [0.5]]
    made = by_group(groups, ["poems", "code", "poems", None])
    assert list(made) == ["code", "none", "poems"]
    assert made["poems"] == win_rate([groups[0], groups[2]])
    assert [category.interval.n for category in made.values()] == [1, 1, 2]
    assert (made["code"].interval.low, made["code"].interval.high) == (0, 1)


def test_a_category_without_comparisons_is_shown_as_unknown() -> None:
    made = by_group([[1], []], ["poems", "code"])["code"]
    assert math.isnan(made.interval.value) and made.interval.n == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_policy_against_itself_wins_half_within_its_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = noise_floor(rng.normal(0, 1, (80, 1)) + rng.normal(0, 1, (80, 4)))
    assert made.interval.low <= 0.5 <= made.interval.high
    assert made.interval.n == 80
    assert made.wins + made.ties + made.losses == 80 * 2 * 2


def test_the_noise_floor_uses_every_answer() -> None:
    made = noise_floor([[0, 1, 2], [5, 5, 0]])  # 0 against 1 and 2; 5 against 5 and 0
    assert (made.wins, made.ties, made.losses) == (2, 1, 1)


def test_one_answer_cannot_meet_itself() -> None:
    with pytest.raises(ValueError, match="two answers"):
        noise_floor([[1.0], [2.0]])


def test_a_change_of_the_detectable_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(7)

    def campaign(rate: float) -> np.ndarray:
        return np.clip(rng.normal(rate, 0.2, (60, 1)), 0, 1)

    effect = minimum_detectable_effect(campaign(0.5))
    assert effect == pytest.approx(2.8 * 0.2 / math.sqrt(60), rel=0.2)
    found = [win_rate(campaign(0.5 + 2.8 * 0.2 / math.sqrt(60)), resamples=500).interval.low > 0.5 for _ in range(300)]
    assert 0.72 < np.mean(found) < 0.88


def test_four_times_the_prompts_halve_the_detectable_effect() -> None:
    groups = [[0.0], [1.0]] * 50
    assert minimum_detectable_effect(groups * 4) == pytest.approx(minimum_detectable_effect(groups) / 2, rel=0.02)


def test_prompts_with_more_comparisons_weigh_more_in_the_detectable_effect() -> None:
    """An interval's half width is 1.96 standard errors, and the effect 2.80 of the same."""
    rng = np.random.default_rng(12)
    groups = [rng.random(size) < 0.5 for size in rng.integers(1, 12, 400)]
    interval = win_rate(groups).interval
    ratio = 2 * minimum_detectable_effect(groups) / (interval.high - interval.low)
    assert ratio == pytest.approx(2.8016 / 1.96, rel=0.04)


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_of_five_prompts_or_fewer_the_interval_is_students_since_resamples_stay_between_them(prompts: int) -> None:
    won = np.random.default_rng(prompts).uniform(0, 1, prompts)
    low, high = scipy.stats.t.interval(0.95, prompts - 1, won.mean(), scipy.stats.sem(won))
    mean = bootstrap_mean(won[:, None])
    assert (mean.low, mean.high) == pytest.approx((max(0, low), min(1, high)))
    made = win_rate(won[:, None])
    assert made.interval.low <= mean.low + 1e-12 and mean.high - 1e-12 <= made.interval.high
    swapped = win_rate([[1 - share] for share in won]).interval
    assert (1 - swapped.high, 1 - swapped.low) == pytest.approx((made.interval.low, made.interval.high), abs=1e-15)


def test_one_prompt_has_no_detectable_effect() -> None:
    assert math.isnan(minimum_detectable_effect([[1, 0]]))


# ---- Equal length -----------------------------------------------------------------------------------------------


def longer_answers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (80, 4) of a reference and of an aligned policy whose answers are longer."""
    rng = np.random.default_rng(seed)
    return rng.integers(10, 40, (80, 4)).astype(float), rng.integers(18, 60, (80, 4)).astype(float)


@pytest.mark.parametrize("seed", range(4))
def test_a_judge_that_likes_length_is_seen_through(seed: int) -> None:
    reference, aligned = longer_answers(seed)
    rng = np.random.default_rng(seed)
    scores = [np.log(lengths) + rng.normal(0, 0.3, lengths.shape) for lengths in (reference, aligned)]
    raw = win_rate(compared(*scores)).interval
    controlled = length_controlled_win_rate(compared(*scores), differences(reference, aligned))
    assert raw.low > 0.6
    assert controlled.interval.low < 0.5 < controlled.interval.high
    assert controlled.slope > 1


def test_a_judge_of_nothing_but_length_gives_half_and_is_named() -> None:
    reference, aligned = longer_answers(0)
    assert win_rate(compared(reference, aligned)).interval.low > 0.7
    made = length_controlled_win_rate(compared(reference, aligned), differences(reference, aligned))
    assert made.interval.low < 0.5 < made.interval.high
    assert made.note is not None and "length decides" in made.note


def test_a_judge_that_does_not_look_at_length_is_left_alone() -> None:
    reference, aligned = longer_answers(1)
    rng = np.random.default_rng(1)
    groups = compared(rng.normal(0, 1, (80, 4)), rng.normal(1, 1, (80, 4)))
    raw, controlled = (
        win_rate(groups).interval,
        length_controlled_win_rate(groups, differences(reference, aligned)).interval,
    )
    assert controlled.value == pytest.approx(raw.value, abs=0.04)
    assert controlled.low > 0.5


@pytest.mark.parametrize("seed", range(20))
def test_length_control_has_exact_swap_symmetry(seed: int) -> None:
    reference, aligned = any_scores(seed)
    lengths = np.random.default_rng(seed).integers(1, 90, (2, *reference.shape)).astype(float)
    pairs = list(zip(reference, aligned, *lengths, strict=True))
    one = length_controlled_win_rate(
        [outcomes(r, a) for r, a, _, _ in pairs], [m[None] - n[:, None] for _, _, n, m in pairs], resamples=200
    )
    other = length_controlled_win_rate(
        [outcomes(a, r) for r, a, _, _ in pairs], [n[None] - m[:, None] for _, _, n, m in pairs], resamples=200
    )
    assert one.slope == pytest.approx(other.slope, rel=1e-9)
    if one.interval.n:
        assert one.interval.value == pytest.approx(1 - other.interval.value, abs=1e-12)
        assert one.interval.low == pytest.approx(1 - other.interval.high, abs=1e-12)
        assert one.interval.high == pytest.approx(1 - other.interval.low, abs=1e-12)


def test_the_regression_finds_the_parameters_that_made_the_data() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(40, 50, (1500, 4))
    log_odds = 0.8 + 2 * np.tanh(difference / difference.std())
    y = (rng.random(log_odds.shape) < 1 / (1 + np.exp(-log_odds))).astype(float)
    made = length_controlled_win_rate(y, difference, resamples=100)
    assert made.interval.value == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.02)
    assert made.slope == pytest.approx(2, rel=0.1)
    assert made.interval.low < made.interval.value < made.interval.high


def test_the_unit_of_length_does_not_matter() -> None:
    reference, aligned = longer_answers(3)
    groups = compared(*np.random.default_rng(3).random((2, 80, 4)))
    tokens = length_controlled_win_rate(groups, differences(reference, aligned))
    letters = length_controlled_win_rate(groups, differences(4 * reference, 4 * aligned))
    assert tokens.interval.value == pytest.approx(letters.interval.value, abs=1e-9)


def test_the_interval_is_as_wide_as_that_of_the_few_prompts_of_like_length() -> None:
    """Where length decides all, a prompt whose answers differ much in it says nothing of equal length."""
    rng = np.random.default_rng(4)
    near, far = rng.normal(0, 5, (10, 1)), 100 * rng.choice([-1.0, 1.0], (190, 1)) + rng.normal(0, 5, (190, 1))
    difference = np.concatenate([near, far])
    outcome = (np.sign(difference + rng.normal(0, 2, difference.shape)) + 1) / 2
    made = length_controlled_win_rate(outcome, difference).interval
    assert made.high - made.low > 0.3


def test_lengths_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="length_differences"):
        length_controlled_win_rate([[1, 0], [1]], [[3], [4, 5]])


def test_with_equal_lengths_there_is_nothing_to_control() -> None:
    groups = [[1.0, 0.0, 1.0], [0.5, 1.0, 1.0], [0.0, 1.0, 1.0]]
    made = length_controlled_win_rate(groups, np.zeros((3, 3)))
    assert made.interval == win_rate(groups).interval
    assert made.note is not None and "equal" in made.note


def test_lengths_that_differ_always_by_the_same_cannot_be_controlled_for() -> None:
    made = length_controlled_win_rate([[1, 0], [1, 1]], np.full((2, 2), 12.0))
    assert made.note is not None and "not controlled" in made.note and made.a_guess


def test_equal_length_beyond_the_data_is_called_a_guess() -> None:
    for outcome in ([[1, 0], [1, 1], [0, 1]], [[1, 1], [1, 1], [1, 1]]):
        made = length_controlled_win_rate(outcome, [[0.5, 0.7], [0.9, 0.4], [0.6, 0.8]])
        assert made.note is not None and "guess" in made.note and made.a_guess


def test_all_ties_stay_half_at_any_length() -> None:
    groups = [[0.5, 0.5]] * 5
    made = length_controlled_win_rate(groups, np.random.default_rng(0).normal(0, 1, (5, 2)))
    assert made.interval == win_rate(groups).interval and made.interval.value == 0.5 and not made.a_guess


def test_one_prompt_gives_no_interval_at_equal_length() -> None:
    made = length_controlled_win_rate([[1, 0, 0.5, 1]], [[0.1, -0.2, 0.3, 0.4]]).interval
    assert (made.low, made.high) == (0, 1)


# ---- Reward models ----------------------------------------------------------------------------------------------


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    margin = math.log(3)  # confidence 75 %
    assert expected_calibration_error([margin] * 3 + [-margin]) == pytest.approx(0, abs=1e-12)


def test_certain_and_wrong_half_of_the_time_is_an_error_of_a_half() -> None:
    assert expected_calibration_error([50.0, -50.0]) == pytest.approx(0.5)


def test_doubt_about_what_is_always_right_is_an_error_too() -> None:
    assert expected_calibration_error([math.log(3)] * 10) == pytest.approx(0.25)


def test_equal_scores_are_half_right() -> None:
    assert expected_calibration_error([0.0, 0.0]) == 0


def test_bins_are_weighed_by_what_is_in_them() -> None:
    """Three pairs at 75 %, all right (off by 0.25), and one at certainty, wrong (off by 1)."""
    assert expected_calibration_error([math.log(3)] * 3 + [-50.0]) == pytest.approx((3 * 0.25 + 1) / 4)


def test_the_temperature_of_a_model_that_is_twice_too_sure_is_two() -> None:
    honest = [math.log(3)] * 3 + [-math.log(3)]
    assert fit_temperature(honest) == pytest.approx(1, abs=1e-6)
    assert fit_temperature([2 * margin for margin in honest]) == pytest.approx(2, abs=1e-6)


def test_the_fitted_temperature_mends_the_calibration() -> None:
    rng = np.random.default_rng(8)
    true = rng.normal(0, 1.5, 4000)
    margins = (3 * np.where(rng.random(4000) < 1 / (1 + np.exp(-true)), true, -true)).tolist()
    temperature = fit_temperature(margins)
    assert temperature == pytest.approx(3, rel=0.1)
    assert expected_calibration_error(margins, temperature=temperature) < 0.03 < expected_calibration_error(margins)


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_recovered_and_pairs_of_other_prompts_measure_what_it_mends(planted: float) -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(0, 2, 8_000)
    margins = (planted * np.where(rng.random(len(true)) < 1 / (1 + np.exp(-true)), true, -true)).tolist()
    prompts = [str(i // 2) for i in range(len(margins))]
    fitted = temperature_interval(margins, prompts, resamples=60)
    assert fitted.value == pytest.approx(planted, rel=0.05) and fitted.low < planted < fitted.high
    assert fitted.n == 4_000
    mended = cross_fitted(margins, prompts)
    assert mended is not None and expected_calibration_error(mended) < 0.02
    assert brier(mended) <= brier(margins) + 1e-3
    if planted != 1:
        assert brier(mended) < brier(margins) and expected_calibration_error(margins) > 0.03


def test_a_temperature_is_fitted_on_other_prompts_than_it_is_measured_on() -> None:
    """Two prompts: the one is always right, the other always wrong. Each gets the temperature of the other."""
    _, useless = TEMPERATURES
    mended = cross_fitted([1.0, 1.0, -1.0, -1.0], ["a", "a", "b", "b"])
    assert mended is not None and mended[:2] == pytest.approx([1 / useless] * 2, rel=1e-6)
    assert mended[2:] == [mended[2]] * 2 and mended[2] < -10
    assert cross_fitted([1.0, -1.0], ["a", "a"]) is None, "there is no other prompt"


def test_each_prompt_weighs_the_same_in_a_temperature() -> None:
    one_each = temperature_interval([2.0, -1.0, 3.0], ["a", "b", "c"], resamples=10).value
    repeated = temperature_interval([2.0] * 7 + [-1.0, 3.0], ["a"] * 7 + ["b", "c"], resamples=10).value
    assert repeated == pytest.approx(one_each)


def test_a_coin_toss_has_a_brier_score_of_a_quarter() -> None:
    assert brier([0.0, 0.0]) == 0.25 and brier([50.0]) == pytest.approx(0) and brier([-50.0]) == pytest.approx(1)


def test_the_bins_of_the_reliability_curve_are_those_of_the_calibration_error() -> None:
    margins = [math.log(3)] * 3 + [-50.0]
    (first, members), (last, wrong) = by_confidence(margins)
    assert (first, last) == pytest.approx((0.75, 1))
    assert (members.tolist(), wrong.tolist()) == ([0, 1, 2], [3])


def test_a_temperature_without_an_optimum_stays_within_its_bounds() -> None:
    assert fit_temperature([1.0, 2.0]) < 0.1  # always right: the surer the better
    assert fit_temperature([-1.0, -2.0, 0.5]) == pytest.approx(100)  # worse than chance: best not to listen


def test_spearman_sees_order_and_not_distance() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 1]) == pytest.approx(-1)


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 5 against 2 1 4 3 5: squared differences sum to 4, so 1 - 6 * 4 / (5 * 24) = 0.8."""
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)


def test_spearman_shares_ranks_among_ties_and_knows_no_order_in_a_constant() -> None:
    assert spearman([1, 1, 2, 2], [1, 1, 2, 2]) == pytest.approx(1)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize("function", [expected_calibration_error, fit_temperature])
def test_nothing_cannot_be_calibrated(function: Callable[[list[float]], float]) -> None:
    with pytest.raises(ValueError, match="no margins"):
        function([])
