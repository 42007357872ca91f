"""What goes wrong in PPO while its reward still rises, seen in the rollouts so far; and whose fault a poor result is.

Pure functions of one row per rollout, as `rlhf.align.ppo.trainer` records them. What a page's curves show as well is
judged by the functions and thresholds of `trueup.pages.diagnoses`, so that the page says what the guard said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

from rlhf.align.schema import Evaluation
from trueup.artifacts.manifest import Finding, StageVerdict
from trueup.artifacts.reports import SampledAnswers
from trueup.pages import diagnoses


class Rollout(TypedDict):
    """Means over the answers of one rollout, as `rlhf.align.schema.RolloutFigures` has them."""

    scores: float
    length: float
    kl: float
    entropy: float
    eos_rate: float
    repetition: float
    explained_variance: float | None
    """None where the returns are all the same."""


Figure = Literal["scores", "length", "kl", "entropy", "eos_rate", "repetition", "explained_variance"]

REPEATS_MORE = 0.2
"""How much the share of answers that repeat three words rises; a rollout of few answers scatters by less."""


def length_follows_reward(history: Sequence[Rollout]) -> Finding | None:
    """Much of what a reward model pays for can be length alone (Singhal et al. 2023,
    https://arxiv.org/abs/2310.03716)."""
    growth = diagnoses.follows_length(_column(history, "scores"), _column(history, "length"))
    if growth is None:
        return None
    times = growth.last / max(growth.first, 1e-9)
    return Finding(
        "warn",
        "length_follows_reward",
        f"reward rises with length (r = {growth.r:.2f} over {len(history)} rollouts, answers {times:.1f} times as "
        "long): look at the win rate at equal length",
    )


def repeats(history: Sequence[Rollout]) -> Finding | None:
    first, last = history[0]["repetition"], history[-1]["repetition"]
    lasting = diagnoses.LASTING
    if len(history) <= lasting or min(_column(history[-lasting:], "repetition")) < first + REPEATS_MORE:
        return None
    return Finding("warn", "repeats", f"{last:.0%} of answers repeat three words, {first:.0%} at first: raise kl_coef")


def entropy_collapsed(history: Sequence[Rollout]) -> Finding | None:
    fall = diagnoses.collapse(_column(history, "entropy"))
    if fall is None:
        return None
    first, last = fall
    return Finding(
        "warn",
        "entropy_collapsed",
        f"entropy fell to {last:.2f} nats per token from {first:.2f}: all answers are one answer. Lower learning_rate, "
        "or raise kl_coef",
    )


def ends_less(history: Sequence[Rollout]) -> Finding | None:
    fall = diagnoses.fewer_ends(_column(history, "eos_rate"))
    if fall is None:
        return None
    first, last = fall
    return Finding(
        "warn", "ends_less", f"{last:.0%} of answers end by themselves, {first:.0%} at first: raise missing_eos_penalty"
    )


def kl_over_budget(history: Sequence[Rollout], budget: float | None) -> Finding | None:
    last = history[-1]["kl"]
    if budget is None or last <= budget:
        return None
    return Finding("warn", "kl_over_budget", f"KL {last:.1f} nats per sequence is over kl_budget, {budget:g}")


def kl_negative(history: Sequence[Rollout]) -> Finding | None:
    """A mean far below 0 cannot be chance: answers then come from another policy than the one that is scored."""
    last = history[-1]["kl"]
    if last > -1:
        return None
    return Finding(
        "fail",
        "kl_negative",
        f"KL is {last:.1f} nats, and a divergence cannot be negative: the answers were not drawn from the policy whose "
        "log-probabilities are taken",
    )


def critic_misleads(history: Sequence[Rollout]) -> Finding | None:
    last = diagnoses.misleading(_column(history, "explained_variance"))
    if last is None:
        return None
    return Finding(
        "warn",
        "critic_misleads",
        f"the critic explains {last:.2f} of the returns' variance, less than a constant would: raise "
        "critic_warmup_rollouts, or critic_learning_rate",
    )


def look(history: Sequence[Rollout], kl_budget: float | None) -> list[Finding]:
    """What is wrong after the last of these rollouts."""
    if not history:
        return []
    guards: list[Callable[[Sequence[Rollout]], Finding | None]] = [
        length_follows_reward,
        repeats,
        entropy_collapsed,
        ends_less,
        kl_negative,
        critic_misleads,
        lambda rows: kl_over_budget(rows, kl_budget),
    ]
    return [finding for guard in guards if (finding := guard(history)) is not None]


_DOUBTS = ("no_better_than_chance", "explained_by_a_rule", "not_told_from_a_rule", "not_evaluated")
"""Findings of a reward model's report card that say that it may not know the preference."""


def whose_fault(
    history: Sequence[Rollout],
    evaluated: dict[int, Evaluation],
    sampled: SampledAnswers | None,
    reward_verdict: StageVerdict | None,
) -> Finding | None:
    """Which of the three is to blame where reward did not rise on the prompts kept for it: SFT policy, reward model, or
    the settings of PPO. None where it rose.

    evaluated       by step, as `rlhf.align.best_step.evaluations`
    sampled         report of the sample stage, if that was a parent
    reward_verdict  the reward stage's, if that was one
    """
    steps = sorted(evaluated)
    if len(steps) < 2 or max(evaluated[s].reward for s in steps[1:]) > evaluated[steps[0]].reward:
        return None
    gain = evaluated[steps[-1]].reward - evaluated[steps[0]].reward
    said = f"reward did not rise on the prompts kept for it ({gain:+.2f})"
    if sampled and sampled.eos_rate < 0.5:
        return Finding(
            "warn",
            "sft_at_fault",
            f"{said}. Begin with the SFT policy: {sampled.eos_rate:.0%} of its answers end by themselves",
        )
    if sampled and sampled.all_alike > 0.2:
        return Finding(
            "warn",
            "sft_at_fault",
            f"{said}. Begin with the SFT policy: for {sampled.all_alike:.0%} of prompts all of its answers are "
            "alike, so there is nothing to choose among",
        )
    doubts = [f for f in reward_verdict.findings if f.code in _DOUBTS] if reward_verdict else []
    if doubts:
        why = "; ".join(doubt.message for doubt in doubts)
        return Finding("warn", "reward_model_at_fault", f"{said}. Begin with the reward model: {why}")
    kl = evaluated[steps[-1]].kl
    rose = len(history) > 1 and history[-1]["scores"] > history[0]["scores"]
    if rose:
        advice = "it rose on the prompts trained on: more prompts, fewer passes (num_train_epochs), or more kl_coef"
    elif kl < 0.1:
        advice = f"the policy hardly moved (KL {kl:.2f} nats): raise learning_rate, train longer, or lower kl_coef"
    else:
        advice = (
            f"the policy moved (KL {kl:.2f} nats) and not towards reward: lower learning_rate, or larger rollouts "
            "(rollout_batch_size)"
        )
    return Finding(
        "warn", "settings_at_fault", f"{said}. SFT policy and reward model look sound, so the settings: {advice}"
    )


def _column(history: Sequence[Rollout], figure: Figure) -> list[float]:
    """The figure of each rollout that has one."""
    return [value for row in history if (value := row[figure]) is not None and math.isfinite(value)]
