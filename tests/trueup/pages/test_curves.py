"""Training curves: a note stands beside a curve that does what the note says, and beside no other."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trueup import runs
from trueup.data.records import write_rows
from trueup.pages import curves, diagnoses, trends

STEPS = 100
Course = Callable[[float], float]
"""From the share of training that is done, 0 to 1, to a value."""


def rows(noise: float = 0.0, steps: int = STEPS, **courses: Course) -> list[dict[str, Any]]:
    """Metrics of a training in which each of these goes its course, up and down by `noise`; `__` stands for `/`."""
    return [
        {"step": i + 1}
        | {name.replace("__", "/"): course(i / (steps - 1)) + noise * (-1) ** i for name, course in courses.items()}
        for i in range(steps)
    ]


def notes(made: list[dict[str, Any]]) -> dict[str, list[diagnoses.Note]]:
    return {curve.title: curve.notes for curve in curves.training_curves(made)}


def falling(t: float) -> float:
    return 2 - t


def rising(t: float) -> float:
    return t


def still(t: float) -> float:
    return 0.69


# ---- Trends -----------------------------------------------------------------------------------------------------


def test_a_trend_is_one_only_beyond_its_noise() -> None:
    draw = random.Random(1)
    wander = [draw.gauss(0, 1) for _ in range(STEPS)]
    found = trends.trend(wander)
    assert found is not None and not found.rose and not found.fell
    climbs = trends.trend([value + i / 20 for i, value in enumerate(wander)])
    assert climbs is not None and climbs.rose and climbs.last > climbs.first
    assert trends.trend([5.0] * STEPS) == trends.Trend(5.0, 5.0, 0.0)
    assert trends.trend([0.1] * STEPS).z == 0  # type: ignore[union-attr]
    assert trends.trend([1.0, 2.0]) is None


def test_what_is_no_number_is_not_in_a_curve() -> None:
    made: list[dict[str, Any]] = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": "low"},
        {"loss": 4.0},
    ]
    assert trends.points(made, "loss") == ([1.0], [1.0])
    assert trends.points(made, "reward", "loss") == ([1.0], [1.0])
    assert trends.points(made, "reward") == ([], [])


# ---- Loss -------------------------------------------------------------------------------------------------------


def test_a_loss_that_falls_needs_no_words() -> None:
    assert notes(rows(0.1, loss=falling)) == {"loss": []}


def test_a_loss_that_turns_upwards_is_told_with_the_step_of_its_low() -> None:
    [note] = notes(rows(0.02, loss=lambda t: 2 - 2 * t if t < 0.6 else 0.8 + (t - 0.6)))["loss"]
    assert note.level == "watch" and "rises at the end" in note.text
    step = int(note.text.partition("near step ")[2].split()[0])
    assert 50 <= step <= 70


def test_a_bump_in_the_middle_is_no_rise_at_the_end() -> None:
    assert notes(rows(0.02, loss=lambda t: 2 - t + 0.5 * math.exp(-(((t - 0.4) / 0.05) ** 2)))) == {"loss": []}


def test_a_loss_that_stands_still_taught_nothing() -> None:
    [note] = notes(rows(0.05, loss=still))["loss"]
    assert note.level == "watch" and "does not fall beyond its noise" in note.text


def test_a_held_out_loss_that_turns_says_when_to_stop() -> None:
    made = rows(0.02, loss=falling)
    made += [{"step": step, "eval_loss": loss} for step, loss in ((0, 2.1), (25, 1.6), (50, 1.4), (100, 1.9))]
    [note] = notes(made)["loss"]
    assert note.level == "watch" and "lowest at step 50 (1.4) and 1.9 at the end" in note.text


def test_a_held_out_loss_that_falls_along_is_normal_and_outweighs_a_noisy_training_loss() -> None:
    made = [*rows(0.5, loss=still), {"step": 0, "eval_loss": 2.1}, {"step": 100, "eval_loss": 1.9}]
    [note] = notes(made)["loss"]
    assert note.level == "normal" and "from 2.1 to 1.9" in note.text


@pytest.mark.parametrize(
    ("metric", "said"),
    [("rewards/margins", "where the policy is its reference"), ("margin", "a coin toss"), ("loss", "Nats per token")],
)
def test_how_to_read_a_loss_depends_on_what_is_trained(metric: str, said: str) -> None:
    made = [{"step": i, "loss": 1.0, metric: 1.0} for i in range(3)]
    assert said in curves.training_curves(made)[0].how


# ---- Preferences ------------------------------------------------------------------------------------------------


def test_chosen_answers_that_lose_probability_while_the_margin_grows_are_explained_with_when_to_worry() -> None:
    made = rows(0.1, rewards__chosen=lambda t: -t, rewards__rejected=lambda t: -4 * t, rewards__margins=lambda t: 3 * t)
    [note] = notes(made)["implicit rewards"]
    assert note.level == "normal"
    assert "Worry when" in note.text and "2410.08847" in note.source


def test_each_way_to_a_margin_has_its_own_words() -> None:
    plain = rows(0.05, rewards__chosen=rising, rewards__rejected=lambda t: -t, rewards__margins=lambda t: 2 * t)
    both = rows(0.05, rewards__chosen=lambda t: 2 * t, rewards__rejected=rising, rewards__margins=rising)
    assert ["plainest way" in note.text for note in notes(plain)["implicit rewards"]] == [True]
    assert ["Both rise" in note.text for note in notes(both)["implicit rewards"]] == [True]


def test_a_chosen_answer_that_falls_without_a_margin_is_not_called_normal() -> None:
    made = rows(0.05, rewards__chosen=lambda t: -t, rewards__rejected=lambda t: -t, rewards__margins=lambda t: 0.0)
    found = notes(made)
    assert found["implicit rewards"] == []
    assert ["does not leave its noise" in note.text for note in found["reward margin"]] == [True]


def test_order_that_is_complete_early_is_a_warning_and_so_is_a_margin_that_grows_on() -> None:
    made = rows(rewards__accuracies=lambda t: min(1.0, 0.5 + 3 * t), rewards__margins=lambda t: 5 * t)
    found = notes(made)
    [note] = found["share of pairs ordered rightly"]
    assert note.level == "watch" and "from step 18 of 100 on" in note.text
    assert ["learns confidence, not order" in note.text for note in found["reward margin"]] == [True]


def test_order_that_is_complete_only_at_the_end_is_none() -> None:
    assert notes(rows(accuracy=lambda t: 0.5 + t / 2))["share of pairs ordered rightly"] == []


def test_order_that_stays_a_coin_is_told() -> None:
    [note] = notes(rows(0.1, accuracy=lambda t: 0.5))["share of pairs ordered rightly"]
    assert "hardly above a coin" in note.text


# ---- Reinforcement learning -------------------------------------------------------------------------------------


def test_a_reward_that_rises_with_length_is_told_and_one_that_rises_alone_is_not() -> None:
    longer = rows(0.1, objective__scores=rising, answers__mean_length=lambda t: 30 + 40 * t)
    alike = rows(0.1, objective__scores=rising, answers__mean_length=lambda t: 30.0)
    [note] = notes(longer)["reward"]
    assert note.level == "watch" and "tokens" in note.text and "2310.03716" in note.source
    assert notes(alike)["reward"] == []


def test_distance_that_still_buys_reward_is_normal_and_one_that_does_not_is_watched() -> None:
    buys = rows(0.05, objective__kl=lambda t: 10 * t, objective__scores=rising)
    wasted = rows(0.05, objective__kl=lambda t: 10 * t, objective__scores=lambda t: min(t, 0.4))
    settled = rows(0.05, objective__kl=lambda t: 10 * min(t, 0.3), objective__scores=rising)
    title = "KL to the reference, nats"
    assert [note.level for note in notes(buys)[title]] == ["normal"]
    assert [note.level for note in notes(wasted)[title]] == ["watch"]
    assert notes(settled)[title] == []


def test_entropy_of_which_little_is_left_is_told_and_one_that_halves_is_not() -> None:
    title = "entropy, nats per token"
    [note] = notes(rows(0.05, entropy=lambda t: 3 - 2.5 * t))[title]
    assert note.level == "watch" and "falls from 3.05 to 0.45 nats, to 15 % of its first value" in note.text
    assert notes(rows(0.05, entropy=lambda t: 3 - 1.5 * t))[title] == []


def test_gradients_that_jump_are_counted() -> None:
    made = rows(grad_norm=lambda t: 1.0)
    made[40]["grad_norm"] = made[60]["grad_norm"] = 50.0
    [note] = notes(made)["gradient norm"]
    assert "2 times, first at step 41" in note.text


def test_a_loss_made_of_advantages_is_not_judged_as_one_that_should_fall() -> None:
    made = rows(0.05, loss=still, objective__scores=rising)
    assert list(notes(made)) == ["reward", "surrogate loss"]
    assert notes(made)["surrogate loss"] == []
    assert "loss" in notes(rows(0.05, loss=still))


def test_a_kl_coefficient_is_drawn_where_it_adapts_and_told_where_it_finds_no_rest() -> None:
    assert "KL coefficient" not in notes(rows(objective__kl_coef=lambda t: 0.05 + t / 10_000))
    title = "KL coefficient"
    [rises] = notes(rows(objective__kl_coef=lambda t: 0.05 + t))[title]
    [falls] = notes(rows(objective__kl_coef=lambda t: 1.05 - t))[title]
    assert (rises.level, falls.level) == ("watch", "normal")
    assert "above kl_target" in rises.text and "below kl_target" in falls.text
    assert notes(rows(0.001, objective__kl_coef=lambda t: 0.05 + min(t, 0.3)))[title] == []


def test_a_critic_is_judged_by_what_it_explains_at_the_end_and_by_a_loss_that_grows() -> None:
    title = "explained variance of the critic"
    learns = rows(0.05, val__explained_variance=lambda t: t - 0.3, loss__value_avg=falling)
    begins = rows(val__explained_variance=lambda t: -0.002)
    assert notes(begins)[title] == [], "around 0 it has learnt nothing yet, and does no harm"
    misleads = rows(0.05, val__explained_variance=lambda t: -0.4, loss__value_avg=rising)
    assert notes(learns)[title] == [] and notes(learns)["value loss"] == []
    assert [note.level for note in notes(misleads)[title]] == ["watch"]
    assert ["falls behind the policy" in note.text for note in notes(misleads)["value loss"]] == [True]


@pytest.mark.parametrize("metric", ["policy/clipfrac_avg", "clip_ratio/region_mean"])
def test_a_clip_that_holds_a_third_of_the_tokens_is_told_and_one_that_holds_few_is_not(metric: str) -> None:
    title = "share of tokens held by the clip"
    third: dict[str, Any] = {metric.replace("/", "__"): lambda t: 0.1 + 0.4 * t}
    few: dict[str, Any] = {metric.replace("/", "__"): lambda t: 0.1}
    [note] = notes(rows(0.05, **third))[title]
    assert note.level == "watch" and note.text.startswith("48 % at the end")
    assert notes(rows(0.05, **few))[title] == []


def test_a_critic_whose_values_the_clip_holds_is_told_with_what_to_do() -> None:
    title = "share of tokens held by the clip"
    held = rows(policy__clipfrac_avg=lambda t: 0.1, val__clipfrac_avg=lambda t: 0.8)
    [note] = notes(held)[title]
    assert note.level == "watch" and note.text.startswith("80 % of the critic") and "cliprange_value" in note.text


def test_updates_that_leave_the_sampling_policy_far_behind_are_counted() -> None:
    made = rows(policy__approxkl_avg=lambda t: 0.02)
    title = "distance from the sampling policy, nats"
    assert notes(made)[title] == []
    made[10]["policy/approxkl_avg"] = made[30]["policy/approxkl_avg"] = 0.4
    [note] = notes(made)[title]
    assert "2 times, first at step 11" in note.text


def test_answers_that_end_less_often_are_told_whichever_way_it_was_logged() -> None:
    ends = rows(0.02, val__eos_rate=lambda t: 0.9 - 0.4 * t, completions__clipped_ratio=lambda t: 0.1 + 0.4 * t)
    cut = rows(0.02, completions__clipped_ratio=lambda t: 0.1 + 0.4 * t)
    found = notes(ends)
    assert "share of answers cut at the limit" not in found, "the same said twice"
    assert [note.level for note in found["share of answers that end by themselves"]] == ["watch"]
    assert [note.level for note in notes(cut)["share of answers cut at the limit"]] == ["watch"]
    hardly = rows(0.001, val__eos_rate=lambda t: 0.9 - 0.02 * t)
    assert notes(hardly)["share of answers that end by themselves"] == []


def test_prompts_whose_answers_are_all_paid_alike_are_told_where_siblings_are_what_counts() -> None:
    title = "share of prompts whose answers are paid alike"
    assert [note.level for note in notes(rows(0.05, frac_reward_zero_std=lambda t: 0.2 + 0.6 * t))[title]] == ["watch"]
    assert notes(rows(0.05, frac_reward_zero_std=lambda t: 0.2))[title] == []
    assert title not in notes(rows(frac_reward_zero_std=lambda t: 0.9, val__explained_variance=rising))


def test_demonstrations_that_are_forgotten_in_spite_of_the_mix_are_told() -> None:
    title = "loss on demonstrations, nats per token"
    assert [note.level for note in notes(rows(0.05, loss__ptx_avg=rising))[title]] == ["watch"]
    assert notes(rows(0.05, loss__ptx_avg=falling))[title] == []


def test_how_to_read_kl_says_of_what_it_is_a_mean() -> None:
    def how(**courses: Any) -> str:
        [curve] = curves.training_curves(rows(**courses))
        return curve.how

    assert "whole answers" in how(objective__kl=rising) and "over tokens" in how(kl=rising)


# ---- Charts -----------------------------------------------------------------------------------------------------


def test_a_chart_of_which_nothing_was_logged_is_left_out_and_each_other_says_how_to_read_it() -> None:
    made = curves.training_curves(rows(0.1, loss=falling, grad_norm=rising, epoch=rising))
    assert [curve.title for curve in made] == ["loss", "gradient norm"]
    assert all(curve.how for curve in made)
    assert curves.training_curves([]) == []


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_of_a_training_too_short_to_tell_nothing_is_said(steps: int) -> None:
    made = [{"step": i, "loss": 1.0, "rewards/margins": 0.0, "rewards/accuracies": 1.0, "kl": i} for i in range(steps)]
    assert all(not said for said in notes(made).values())


def test_curves_of_a_stage_come_from_its_metrics_and_a_stage_that_does_not_train_has_none(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    write_rows(tmp_path / "sft" / runs.METRICS, rows(0.1, loss=falling))
    assert [curve.title for curve in curves.stage_curves(tmp_path, "sft")] == ["loss"]
    assert curves.stage_curves(tmp_path, "sample") == []
