"""The verdict of a comparison: did alignment help, and what did it cost? Pure functions of the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.judges import Judged, Labels
from trueup import statistics
from trueup.runs import Finding

FEW_PROMPTS = 20
"""Below this many held-out prompts an interval over prompts is itself a guess."""
LONGER = 1.5
"""Ratio of mean lengths from which on the answers' length has changed."""
STOPS_LESS = 0.1
"""Fall of the share of answers that end by themselves."""
LESS_VARIED = 0.8
"""Ratio of the shares of distinct word pairs."""

Outcome = Literal["improved", "improved_at_a_price", "no_detectable_change", "worse"]


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    finding: Finding
    prices: list[Finding]
    """What a win cost, each with its numbers; empty where nothing was won."""

    def as_json(self, status: str) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "status": status,
            "code": self.finding.code,
            "message": self.finding.message,
            "prices": [price.message for price in self.prices],
        }


def decide(first: Judged, prompts: int, identical: float, prices: list[Finding]) -> Verdict:
    """One sentence by the first judge. It claims a direction only where the interval leaves 50 % outside.

    identical  share of answers in which both policies say the same
    prices     what alignment cost, whoever won
    """
    rate = first.win_rate.interval
    on = f"{prompts} held-out {'prompt' if prompts == 1 else 'prompts'} (judge: {first.by.description})"
    preference = "this preference" if first.by.made_the_labels else "what this judge prefers"
    if rate.low > 0.5:
        wins = f"it wins {percent(rate)} of comparisons on {on}"
        if not prices:
            message = f"The aligned policy learnt {preference}: {wins}."
            return Verdict("improved", Finding("info", "learnt_preference", message), [])
        paid = "; ".join(price.message for price in prices)
        message = f"The aligned policy learnt {preference}, at a price: {wins}. The price: {paid}."
        return Verdict("improved_at_a_price", Finding("warn", "learnt_at_a_price", message), prices)
    if rate.high < 0.5:
        message = (
            f"The aligned policy moved away from {preference}: it wins only {percent(rate)} of comparisons on {on}."
        )
        return Verdict("worse", Finding("fail", "moved_away", message), [])
    if math.isnan(rate.value):
        message = f"No verdict: the judge ({first.by.description}) compared no two answers."
        return Verdict("no_detectable_change", Finding("warn", "no_verdict", message), [])
    effect = first.minimum_detectable_effect
    if identical == 1:
        limit = "both policies give the very same answers."
    elif not math.isfinite(effect) or effect == 0:
        limit = "too little varies here to say what this comparison could have detected."
    else:
        limit = f"this comparison could have detected {100 * effect:.1f} points."
    message = f"No detectable change: {percent(rate)} of comparisons won on {on}; {limit}"
    return Verdict("no_detectable_change", Finding("warn", "no_detectable_change", message), [])


def find_prices(
    before: dict[str, float],
    after: dict[str, float],
    kl: statistics.Interval,
    kl_budget: float | None,
    checks: dict[str, dict[str, Any]],
) -> list[Finding]:
    """What alignment cost: longer answers, fewer that stop, less variety, KL over budget, checks that fail more often.

    before, after  `rlhf.answers.describe` of the SFT and of the aligned policy
    kl             nats per sequence
    checks         results of `rlhf.checks.paired` by name
    """
    found = []
    ratio = after["length_tokens"] / max(before["length_tokens"], 1e-9)
    if ratio > LONGER:
        found.append(
            Finding(
                "warn",
                "longer",
                f"answers are {ratio:.2f} times as long as the SFT policy's ({after['length_tokens']:.0f} tokens, "
                f"{before['length_tokens']:.0f} before)",
            )
        )
    if after["eos_rate"] < before["eos_rate"] - STOPS_LESS:
        message = f"{after['eos_rate']:.0%} of answers end by themselves, {before['eos_rate']:.0%} before"
        found.append(Finding("warn", "stops_less", message))
    if after["distinct_2"] < LESS_VARIED * before["distinct_2"]:
        found.append(
            Finding(
                "warn",
                "less_varied",
                f"answers grew alike: {after['distinct_2']:.0%} of word pairs are distinct, "
                f"{before['distinct_2']:.0%} before",
            )
        )
    if kl_budget is not None and kl.value > kl_budget:
        message = f"KL is {kl.value:.2f} nats per sequence, over the budget of {kl_budget:g}"
        found.append(Finding("warn", "kl_over_budget", message))
    for name, result in checks.items():
        reference, aligned = result["reference"]["value"], result["aligned"]["value"]
        if None in (reference, aligned) or aligned >= reference or result["mcnemar"]["p_value"] >= 0.05:
            continue
        message = (
            f"{name}: {aligned:.0%} right, {reference:.0%} before (McNemar p = {result['mcnemar']['p_value']:.3f}, "
            f"n = {result['reference']['n']})"
        )
        found.append(Finding("warn", f"regressed_{name}", message))
    return found


def reasons_for_doubt(
    judges: dict[str, Judged], before: dict[str, float], after: dict[str, float], prompts: int, labels: Labels
) -> list[Finding]:
    """Why the verdict should be trusted less than its interval says."""
    found = []
    first = next(iter(judges.values()))
    if not first.by.made_the_labels:
        message = (
            f"the judge ({first.by.description}) did not make the labels ({labels.who}): its win rate says what it "
            "prefers, and not whether the labellers' preference was learnt"
        )
        found.append(Finding("warn", "judge_is_not_the_labeller", message))
    ratio = after["length_tokens"] / max(before["length_tokens"], 1e-9)
    if ratio < 1 / LONGER:
        message = (
            f"answers are {ratio:.2f} times as long as the SFT policy's ({after['length_tokens']:.0f} tokens, "
            f"{before['length_tokens']:.0f} before): look at the win rate at equal length"
        )
        found.append(Finding("warn", "shorter", message))
    for judged in judges.values():
        found += judged.verdicts.findings
    found += _disagreement(list(judges.values()))
    if prompts < FEW_PROMPTS:
        message = f"{prompts} held-out prompts: below {FEW_PROMPTS} take every interval as a guess"
        found.append(Finding("warn", "few_prompts", message))
    return found


def _disagreement(judges: Sequence[Judged]) -> list[Finding]:
    """Judges on either side of 50 %, unless that may be chance for both."""
    found = []
    for i, one in enumerate(judges):
        for other in judges[i + 1 :]:
            a, b = one.win_rate.interval, other.win_rate.interval
            if (a.value - 0.5) * (b.value - 0.5) < 0 and (a.excludes(0.5) or b.excludes(0.5)):
                message = f"judges disagree on the direction: {one.by.name} {percent(a)}, {other.by.name} {percent(b)}"
                found.append(Finding("warn", "judges_disagree", message))
    return found


def percent(interval: statistics.Interval) -> str:
    """`68.0 % [62.3, 73.5]`."""
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
