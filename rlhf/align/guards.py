"""What goes wrong in PPO while its reward still rises, seen in the rollouts so far; and whose fault a poor result is.

Pure functions of one row per rollout, as `rlhf.align.ppo.trainer` records them: scores, length, kl, entropy, eos_rate,
repetition, explained_variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.align.schema import Evaluation
from trueup.artifacts.manifest import Finding, StageVerdict
from trueup.artifacts.reports import SampledAnswers

Rollout = dict[str, Any]

ENOUGH = 5
"""Rollouts before which a course is not judged."""
_LASTING = 3
"""Rollouts in a row in which a share has to be off: of few answers, one rollout alone is off by chance."""


def length_follows_reward(history: Sequence[Rollout]) -> Finding | None:
    """Much of what a reward model pays for can be length alone (Singhal et al. 2023,
    https://arxiv.org/abs/2310.03716)."""
    if len(history) < ENOUGH:
        return None
    length, scores = _column(history, "length"), _column(history, "scores")
    grown = length[-1] / max(length[0], 1e-9)
    if grown < 1.2 or scores.std() == 0 or length.std() == 0:
        return None
    r = float(np.corrcoef(length, scores)[0, 1])
    if r <= 0.8:
        return None
    return Finding(
        "warn",
        "length_follows_reward",
        f"reward rises with length (r = {r:.2f} over {len(history)} rollouts, answers {grown:.1f} times as long): look "
        "at the win rate at equal length",
    )


def repeats(history: Sequence[Rollout]) -> Finding | None:
    first, last = history[0]["repetition"], history[-1]["repetition"]
    if len(history) <= _LASTING or _column(history[-_LASTING:], "repetition").min() < first + 0.2:
        return None
    return Finding("warn", "repeats", f"{last:.0%} of answers repeat three words, {first:.0%} at first: raise kl_coef")


def entropy_collapsed(history: Sequence[Rollout]) -> Finding | None:
    first, last = history[0]["entropy"], history[-1]["entropy"]
    if len(history) < 2 or last > 0.3 * first:
        return None
    return Finding(
        "warn",
        "entropy_collapsed",
        f"entropy fell to {last:.2f} nats per token from {first:.2f}: all answers are one answer. Lower learning_rate, "
        "or raise kl_coef",
    )


def ends_less(history: Sequence[Rollout]) -> Finding | None:
    first, last = history[0]["eos_rate"], history[-1]["eos_rate"]
    if len(history) <= _LASTING or _column(history[-_LASTING:], "eos_rate").max() > first - 0.2:
        return None
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
    recent = _column(history[-_LASTING:], "explained_variance")
    if len(history) < ENOUGH or not (recent < -0.05).all():  # around 0 a critic is of no use and of no harm
        return None
    return Finding(
        "warn",
        "critic_misleads",
        f"the critic explains {recent[-1]:.2f} of the returns' variance, less than a constant would: raise "
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


def _column(history: Sequence[Rollout], key: str) -> np.ndarray:
    return np.array([math.nan if row.get(key) is None else row[key] for row in history], dtype=float)
