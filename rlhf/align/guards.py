"""What goes wrong in PPO while its reward still rises, seen in the rollouts so far; and whose fault a poor result is.

Pure functions of one row per rollout, as `rlhf.align.ppo.trainer` records them. What a page's curves show as well is
judged by the functions and thresholds of `trueup.pages.diagnoses`, so that the page says what the guard said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlhf.align.schema import Evaluation, RolloutFigures
from trueup.artifacts.manifest import Finding, StageVerdict
from trueup.artifacts.reports import SampledAnswers
from trueup.pages import diagnoses

REPEATS_MORE = 0.2
"""How much the share of answers that repeat three words rises; a rollout of few answers scatters by less."""

Guard = Callable[[Sequence[RolloutFigures]], str | None]
"""What is wrong after the last of these rollouts, in a sentence; None where nothing is."""


def length_follows_reward(history: Sequence[RolloutFigures]) -> str | None:
    """Much of what a reward model pays for can be length alone (Singhal et al. 2023,
    https://arxiv.org/abs/2310.03716)."""
    growth = diagnoses.follows_length(_column(history, "scores"), _column(history, "length"))
    if growth is None:
        return None
    times = growth.last / max(growth.first, 1e-9)
    return (
        f"reward rises with length (r = {growth.r:.2f} over {len(history)} rollouts, answers {times:.1f} times as "
        "long): look at the win rate at equal length"
    )


def repeats(history: Sequence[RolloutFigures]) -> str | None:
    first, last, span = history[0].repetition, history[-1].repetition, diagnoses.LASTING
    if len(history) <= span or min(_column(history[-span:], "repetition")) < first + REPEATS_MORE:
        return None
    return f"{last:.0%} of answers repeat three words, {first:.0%} at first: raise kl_coef"


def entropy_collapsed(history: Sequence[RolloutFigures]) -> str | None:
    fall = diagnoses.collapse(_column(history, "entropy"))
    return fall and (
        f"entropy fell to {fall[1]:.2f} nats per token from {fall[0]:.2f}: all answers are one answer. Lower "
        "learning_rate, or raise kl_coef"
    )


def ends_less(history: Sequence[RolloutFigures]) -> str | None:
    fall = diagnoses.fewer_ends(_column(history, "eos_rate"))
    return fall and f"{fall[1]:.0%} of answers end by themselves, {fall[0]:.0%} at first: raise missing_eos_penalty"


def kl_negative(history: Sequence[RolloutFigures]) -> str | None:
    """A mean far below 0 cannot be chance: answers then come from another policy than the one that is scored."""
    if history[-1].kl > -1:
        return None
    return (
        f"KL is {history[-1].kl:.1f} nats, and a divergence cannot be negative: the answers were not drawn from the "
        "policy whose log-probabilities are taken"
    )


def critic_misleads(history: Sequence[RolloutFigures]) -> str | None:
    last = diagnoses.misleading(_column(history, "explained_variance"))
    if last is None:
        return None
    return (
        f"the critic explains {last:.2f} of the returns' variance, less than a constant would: raise "
        "critic_warmup_rollouts, or critic_learning_rate"
    )


def kl_over_budget(history: Sequence[RolloutFigures], budget: float | None) -> str | None:
    last = history[-1].kl
    return (
        None if budget is None or last <= budget else f"KL {last:.1f} nats per sequence is over kl_budget, {budget:g}"
    )


GUARDS: tuple[Guard, ...] = (length_follows_reward, repeats, entropy_collapsed, ends_less, kl_negative, critic_misleads)
"""A guard's name is the code of its finding."""
FAILS = ("kl_negative",)
"""Guards after which no figure of the training counts. The others warn."""


def look(history: Sequence[RolloutFigures], kl_budget: float | None) -> list[Finding]:
    """What is wrong after the last of these rollouts."""
    if not history:
        return []
    messages = {guard.__name__: guard(history) for guard in GUARDS}
    messages["kl_over_budget"] = kl_over_budget(history, kl_budget)
    return [
        Finding("fail" if code in FAILS else "warn", code, message) for code, message in messages.items() if message
    ]


_DOUBTS = (
    "no_better_than_chance",
    "shuffled_labels_would_do",
    "explained_by_a_rule",
    "not_told_from_a_rule",
    "not_evaluated",
)
"""Findings of a reward model's report card that say that it may not know the preference."""


BEGIN_WITH = {
    "sft_at_fault": "Begin with the SFT policy",
    "reward_model_at_fault": "Begin with the reward model",
    "settings_at_fault": "Begin with the settings",
}
"""What each finding about a reward that did not rise says first."""


def whose_fault(
    what_to_set: Callable[[float], str],
    by_step: dict[int, Evaluation],
    sample_report: SampledAnswers | None,
    reward_verdict: StageVerdict | None,
) -> Finding | None:
    """Which of the three is to blame where reward did not rise on the prompts kept for it: SFT policy, reward model, or
    the settings. None where it rose.

    what_to_set     what to do where the settings are at fault, by the KL of the last step
    by_step         evaluations, as `rlhf.align.best_step.evaluations`
    sample_report   of the sample stage, if that was a parent
    reward_verdict  the reward stage's, if that was one
    """
    steps = sorted(by_step)
    if len(steps) < 2 or max(by_step[s].reward for s in steps[1:]) > by_step[steps[0]].reward:
        return None
    last = by_step[steps[-1]]
    doubts = (
        [finding.message for finding in reward_verdict.findings if finding.code in _DOUBTS] if reward_verdict else []
    )
    if sample_report and sample_report.eos_rate < 0.5:
        code, why = "sft_at_fault", f"{sample_report.eos_rate:.0%} of its answers end by themselves"
    elif sample_report and sample_report.all_alike > 0.2:
        code = "sft_at_fault"
        share = f"{sample_report.all_alike:.0%}"
        why = f"for {share} of prompts all of its answers are alike, so there is nothing to choose among"
    elif doubts:
        code, why = "reward_model_at_fault", "; ".join(doubts)
    else:
        code, why = "settings_at_fault", what_to_set(last.kl)
    sound = [name for name, report in (("SFT policy", sample_report), ("reward model", reward_verdict)) if report]
    looked_at = f" ({' and '.join(sound)} look{'s' if len(sound) == 1 else ''} sound)" if sound else ""
    gain = last.reward - by_step[steps[0]].reward
    message = f"reward did not rise on the prompts kept for it ({gain:+.2f})"
    return Finding(
        "warn", code, f"{message}. {BEGIN_WITH[code]}{looked_at if code == 'settings_at_fault' else ''}: {why}"
    )


def in_rollouts(history: Sequence[RolloutFigures], kl_key: str) -> Callable[[float], str]:
    """What to set in an algorithm that draws rollouts, by the KL of the last step.

    history  PPO's rollouts
    kl_key   the key that holds the algorithm's policy near the reference
    """

    def what_to_set(kl: float) -> str:
        if len(history) > 1 and history[-1].scores > history[0].scores:
            return f"it rose on the prompts trained on: more prompts, fewer passes (num_train_epochs), or more {kl_key}"
        if kl < STILL:
            return f"the policy hardly moved (KL {kl:.2f} nats): raise learning_rate, train longer, or lower {kl_key}"
        return (
            f"the policy moved (KL {kl:.2f} nats) and not towards reward: lower learning_rate, or larger rollouts "
            "(rollout_batch_size)"
        )

    return what_to_set


def in_best_of_n(kl: float) -> str:
    """What to set in best of n, by the KL of the last step."""
    if kl < STILL:
        return f"the policy hardly moved (KL {kl:.2f} nats): raise learning_rate or num_train_epochs"
    return f"the policy moved (KL {kl:.2f} nats) and not towards reward: more answers to choose among (num_generations)"


STILL = 0.1
"""Nats per answer below which a policy hardly moved."""


def _column(history: Sequence[RolloutFigures], figure: str) -> list[float]:
    """The figure of each rollout that has one."""
    values = (getattr(row, figure) for row in history)
    return [value for value in values if value is not None and math.isfinite(value)]
