"""Each guard fires on the course that it is there for, and on no other; and a poor result has one to blame."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest

from rlhf.align import guards
from rlhf.align.config.online import GRPOConfig, OnlineConfig, PPOConfig, RLOOConfig
from rlhf.align.schema import Evaluation, RolloutFigures
from trueup.artifacts.manifest import StageVerdict
from trueup.artifacts.reports import SampledAnswers
from trueup.pages.curves import training_curves

HEALTHY = {
    "scores": [0.1, 0.2, 0.25, 0.4, 0.5, 0.55],
    "length": [20.0, 21.0, 19.5, 20.5, 20.0, 21.5],
    "kl": [0.0, 0.3, 0.8, 1.2, 1.5, 1.9],
    "entropy": [2.0, 1.9, 1.9, 1.7, 1.6, 1.5],
    "eos_rate": [0.9, 0.92, 0.88, 0.95, 0.96, 0.97],
    "repetition": [0.05, 0.06, 0.04, 0.08, 0.07, 0.1],
    "explained_variance": [-0.5, -0.1, 0.1, 0.3, 0.4, 0.5],
}


def course(**columns: list[float]) -> list[RolloutFigures]:
    """Six healthy rollouts, or as many as the columns given have, which take the place of the healthy ones."""
    count = min(len(values) for values in ({**HEALTHY, **columns}).values())
    return [RolloutFigures(**{key: values[i] for key, values in {**HEALTHY, **columns}.items()}) for i in range(count)]


def codes(history: list[RolloutFigures], kl_budget: float | None = None) -> list[str]:
    return [finding.code for finding in guards.look(history, kl_budget)]


# ---- Guards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rollouts", range(7))
def test_a_healthy_course_is_silent_from_its_first_rollout_on(rollouts: int) -> None:
    assert codes(course()[:rollouts], kl_budget=2.0) == []


@pytest.mark.parametrize(
    ("columns", "code", "level", "said"),
    [
        (
            {"length": [20, 24, 28, 34, 36, 42]},
            "length_follows_reward",
            "warn",
            "reward rises with length (r = 0.99 over 6 rollouts, answers 2.1 times as long): look at the win rate at "
            "equal length",
        ),
        (
            {"repetition": [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]},
            "repeats",
            "warn",
            "50% of answers repeat three words, 5% at first: raise kl_coef",
        ),
        (
            {"entropy": [2.0, 1.5, 1.0, 0.8, 0.7, 0.5]},
            "entropy_collapsed",
            "warn",
            "entropy fell to 0.50 nats per token from 2.00: all answers are one answer. Lower learning_rate, or raise "
            "kl_coef",
        ),
        (
            {"eos_rate": [0.9, 0.9, 0.8, 0.6, 0.5, 0.4]},
            "ends_less",
            "warn",
            "40% of answers end by themselves, 90% at first: raise missing_eos_penalty",
        ),
        (
            {"kl": [0.0, 0.1, -0.2, -0.4, -0.9, -1.5]},
            "kl_negative",
            "fail",
            "KL is -1.5 nats, and a divergence cannot be negative: the answers were not drawn from the policy whose "
            "log-probabilities are taken",
        ),
        (
            {"explained_variance": [0.2, 0.1, 0.1, -0.3, -0.2, -0.4]},
            "critic_misleads",
            "warn",
            "the critic explains -0.40 of the returns' variance, less than a constant would: raise "
            "critic_warmup_rollouts, or critic_learning_rate",
        ),
        (
            {"kl": [0.0, 0.3, 0.8, 1.2, 1.5, 2.5]},
            "kl_over_budget",
            "warn",
            "KL 2.5 nats per sequence is over kl_budget, 2",
        ),
    ],
)
def test_what_goes_astray_is_told_by_its_own_guard_alone(
    columns: dict[str, list[float]], code: str, level: str, said: str
) -> None:
    (found,) = guards.look(course(**columns), kl_budget=2.0)
    assert (found.code, found.level, found.message) == (code, level, said)


def test_each_guard_speaks_once_there_is_enough_to_judge_by() -> None:
    assert codes(course(length=[20, 25, 30, 35])) == [], "a line through four points is easily straight"
    assert codes(course(length=[20, 25, 30, 35, 40])) == ["length_follows_reward"]
    assert codes(course(explained_variance=[-1.0, -1.0, -1.0, -1.0])) == [], "a critic has to learn first"
    assert codes(course(explained_variance=[-1.0] * 5)) == ["critic_misleads"]
    assert codes(course(entropy=[2.0, 0.1])) == ["entropy_collapsed"], "that is no chance, and there is no way back"
    assert codes(course(entropy=[0.0, 0.0])) == [], "where no token counts there is no entropy to lose"
    assert codes(course(eos_rate=[0.9, 0.1, 0.1])) == []
    assert codes(course(eos_rate=[0.9, 0.1, 0.1, 0.1])) == ["ends_less"]


def test_one_rollout_of_few_answers_raises_no_alarm() -> None:
    assert codes(course(eos_rate=[0.9, 0.9, 0.6, 0.9, 0.9, 0.6])) == []
    assert codes(course(repetition=[0.0, 0.0, 0.3, 0.0, 0.1, 0.3])) == []
    assert codes(course(explained_variance=[0.1, 0.1, -0.2, 0.1, 0.1, -0.2])) == []


def test_shares_that_only_scatter_seldom_raise_an_alarm() -> None:
    """A policy that never changes, seen through rollouts of 16 answers, of which four in five end."""
    chance = random.Random(0)
    alarms = 0
    for _ in range(200):
        rates = [sum(chance.random() < 0.8 for _ in range(16)) / 16 for _ in range(20)]
        healthy = course()[-1]
        rows = [healthy.model_copy(update={"eos_rate": rate, "repetition": 1 - rate}) for rate in rates]
        alarms += any(codes(rows[:n]) for n in range(1, 21))
    assert alarms < 20


def test_a_policy_that_repeated_from_the_start_is_told_when_it_repeats_more() -> None:
    assert codes(course(repetition=[0.6, 0.6, 0.65, 0.85, 0.9, 0.95])) == ["repeats"]
    assert codes(course(repetition=[0.6, 0.6, 0.65, 0.7, 0.75, 0.7])) == []


def test_length_that_rises_without_reward_or_falls_with_it_is_not_paid_for() -> None:
    assert codes(course(length=[20, 30, 22, 31, 20, 28])) == []
    assert codes(course(length=[40, 38, 33, 28, 25, 20])) == []
    assert codes(course(length=[20, 20.5, 21, 22, 22.5, 23])) == [], "three words are not what it learnt"
    assert codes(course(length=[20, 24, 28, 32, 36, 40], scores=[0.5] * 6)) == []


def test_numbers_that_could_not_be_taken_raise_no_alarm() -> None:
    assert codes(course(explained_variance=[math.nan] * 6)) == []


def test_several_things_at_once_are_all_told() -> None:
    worst = course(entropy=[2.0] * 5 + [0.1], kl=[0, 1, 2, 3, 4, 9.0], eos_rate=[0.9] + [0.1] * 5)
    assert codes(worst, kl_budget=5.0) == ["entropy_collapsed", "ends_less", "kl_over_budget"]


# ---- Guards and pages -------------------------------------------------------------------------------------------

SAID_OF = {
    "length_follows_reward": ("reward", "so do answers"),
    "entropy_collapsed": ("entropy, nats per token", "answers grow alike"),
    "ends_less": ("share of answers that end by themselves", "run into max_new_tokens"),
    "critic_misleads": ("explained variance of the critic", "add noise"),
}
"""The curve and the note that say what a guard says."""
LOGGED = {
    "scores": "objective/scores",
    "length": "answers/mean_length",
    "entropy": "objective/entropy",
    "eos_rate": "val/eos_rate",
    "explained_variance": "val/explained_variance",
}
"""The metric of each figure."""


def noted(history: list[RolloutFigures]) -> set[str]:
    """The guards whose note stands beside a curve of the metrics that PPO logs of these rollouts."""
    metrics = [
        {"step": step} | {metric: getattr(row, key) for key, metric in LOGGED.items()}
        for step, row in enumerate(history)
    ]
    notes = {curve.title: " ".join(note.text for note in curve.notes) for curve in training_curves(metrics)}
    return {code for code, (title, text) in SAID_OF.items() if text in notes.get(title, "")}


def test_a_page_says_of_every_course_what_the_guards_say() -> None:
    chance = random.Random(0)
    told: dict[str, int] = dict.fromkeys(SAID_OF, 0)
    for _ in range(200):
        rollouts, noise = chance.randrange(2, 60), chance.choice([0.0, 0.05, 0.3])
        goes = {key: (chance.uniform(0.5, 1), chance.uniform(-1.5, 0.9)) for key in LOGGED}
        history = course(
            **{
                key: [start + slope * i / rollouts + noise * chance.gauss(0, 0.3) for i in range(rollouts)]
                for key, (start, slope) in goes.items()
            }
            | {key: [0.0] * rollouts for key in HEALTHY.keys() - LOGGED.keys()}
        )
        codes_of_guards = {code for code in codes(history) if code in SAID_OF}
        assert noted(history) == codes_of_guards
        for code in codes_of_guards:
            told[code] += 1
    assert min(told.values()) > 10, told


def test_length_that_is_paid_for_is_seen_through_the_noise_of_many_rollouts() -> None:
    chance = random.Random(0)
    scores = [i / 200 + chance.gauss(0, 0.3) for i in range(200)]
    longer = [30 + i / 5 + chance.gauss(0, 5) for i in range(200)]
    steady = {key: [HEALTHY[key][-1]] * 200 for key in HEALTHY}
    assert codes(course(**{**steady, "scores": scores, "length": longer})) == ["length_follows_reward"]
    assert codes(course(**{**steady, "scores": scores, "length": [30 + chance.gauss(0, 5) for _ in scores]})) == []


# ---- Whose fault ------------------------------------------------------------------------------------------------

SOUND_SAMPLE = {"eos_rate": 0.9, "all_alike": 0.05}
SOUND_REWARD = {"status": "pass", "findings": [{"level": "info", "code": "a", "message": "accuracy 80 %"}]}


def evaluated(*rows: tuple[float, float]) -> dict[int, Evaluation]:
    return {4 * i: Evaluation(step=4 * i, reward=reward, kl=kl) for i, (reward, kl) in enumerate(rows)}


FELL = evaluated((0.5, 0.0), (0.4, 1.0), (0.3, 2.0))


def blamed(
    history: list[RolloutFigures],
    found: dict[int, Evaluation] = FELL,
    sampled: Any = SOUND_SAMPLE,
    reward: Any = SOUND_REWARD,
) -> tuple[str, str] | None:
    verdict = StageVerdict.model_validate(reward) if reward else None
    answers = SampledAnswers(**sampled) if sampled else None
    finding = guards.whose_fault(guards.in_rollouts(history, "kl_coef"), found, answers, verdict)
    return (finding.code, finding.message) if finding else None


def test_nobody_is_to_blame_where_reward_rose_or_was_not_looked_at() -> None:
    assert blamed(course(), evaluated((0.5, 0.0), (0.6, 1.0))) is None
    assert blamed(course(), evaluated((0.5, 0.0), (0.6, 1.0), (0.2, 9.0))) is None, "a kept step is better"
    assert blamed(course(), {}) is None
    assert blamed([], evaluated((0.5, 0.0))) is None
    broken = {"status": "fail", "findings": [{"level": "fail", "code": "a", "message": "no better than length"}]}
    assert blamed(course(), evaluated((0.5, 0.0), (0.6, 1.0)), {"eos_rate": 0.1, "all_alike": 1.0}, broken) is None


@pytest.mark.parametrize("schema", [PPOConfig, GRPOConfig, RLOOConfig])
@pytest.mark.parametrize("kl", [0.0, 5.0])
@pytest.mark.parametrize("history", [[], course()], ids=["none", "rollouts"])
def test_what_is_to_be_set_are_keys_of_the_algorithm(
    schema: type[OnlineConfig], kl: float, history: list[RolloutFigures]
) -> None:
    said = guards.in_rollouts(history, schema.kl_key)(kl)
    of_all = {key for kind in (PPOConfig, GRPOConfig, RLOOConfig) for key in kind.model_fields}
    assert {word for word in re.findall(r"\w+", said) if word in of_all} <= schema.model_fields.keys()
    assert schema.kl_key in schema.model_fields


SAID = "reward did not rise on the prompts kept for it (-0.20). "


def test_an_sft_policy_that_does_not_stop_or_offers_no_choice_is_to_blame_first() -> None:
    warned = {"status": "warn", "findings": [{"level": "warn", "code": "a", "message": "weak"}]}
    assert blamed(course(), sampled={"eos_rate": 0.3, "all_alike": 0.5}, reward=warned) == (
        "sft_at_fault",
        SAID + "Begin with the SFT policy: 30% of its answers end by themselves",
    )
    assert blamed(course(), sampled={"eos_rate": 0.9, "all_alike": 0.5}, reward=warned) == (
        "sft_at_fault",
        SAID + "Begin with the SFT policy: for 50% of prompts all of its answers are alike, so there is nothing to "
        "choose among",
    )


def test_a_reward_model_that_was_warned_of_is_to_blame_next_with_what_was_found() -> None:
    findings = [
        {"level": "info", "code": "a", "message": "accuracy 56 %"},
        {"level": "warn", "code": "explained_by_a_rule", "message": "a ruler does as well"},
        {"level": "warn", "code": "dropped", "message": "one pair was too long"},
    ]
    for sampled in (SOUND_SAMPLE, None):
        assert blamed(course(), sampled=sampled, reward={"status": "warn", "findings": findings}) == (
            "reward_model_at_fault",
            SAID + "Begin with the reward model: a ruler does as well",
        )


@pytest.mark.parametrize(
    ("scores", "kl", "advice"),
    [
        ([0.1, 0.6], 2.0, "it rose on the prompts trained on: more prompts, fewer passes (num_train_epochs), or "),
        (
            [0.5, 0.5],
            0.02,
            "the policy hardly moved (KL 0.02 nats): raise learning_rate, train longer, or lower kl_coef",
        ),
        ([0.5, 0.2], 2.0, "the policy moved (KL 2.00 nats) and not towards reward: lower learning_rate, or larger "),
    ],
)
def test_with_both_sound_the_settings_are_to_blame_and_the_course_says_which(
    scores: list[float], kl: float, advice: str
) -> None:
    found = evaluated((0.5, 0.0), (0.5, kl))
    for sampled, reward, looked_at in (
        (SOUND_SAMPLE, SOUND_REWARD, " (SFT policy and reward model look sound)"),
        (None, SOUND_REWARD, " (reward model looks sound)"),
        (None, None, ""),
    ):
        code, said = blamed(course(scores=scores), found, sampled, reward) or ("", "")
        assert code == "settings_at_fault"
        start = f"reward did not rise on the prompts kept for it (+0.00). Begin with the settings{looked_at}"
        assert said.startswith(f"{start}: {advice}")
