"""The reward model's report card: its accuracy on held-out prompts, and whether it beats rules that read nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reward.probe import ProbeScores
from reward.report import ProbeShare, ReportCard
from trueup.artifacts.reports import Baseline, BestBaseline, Calibration, Normalisation, PairCounts, Share
from trueup.console import say
from trueup.data.records import Preference
from trueup.data.words import count_words
from trueup.runs import Finding, StageRun
from trueup.statistics.calibration import expected_calibration_error, fit_temperature, spearman
from trueup.statistics.intervals import Interval
from trueup.statistics.win_rates import margin_interval, win_rate


def report_card(
    train: list[Preference],
    heldout: list[Preference],
    chosen: list[float],
    rejected: list[float],
    stage: StageRun,
    whose: str = "",
    probe: ProbeScores | None = None,
) -> ReportCard:
    """Accuracy on held-out pairs, compared with rules that read nothing; calibration; accuracy by slice.

    heldout           all held-out pairs, whatever rule chose the training pairs
    chosen, rejected  scores of the held-out pairs, in their order
    whose             start of the findings, for another than the stage's main reward model
    probe             scores of the held-out pairs by a probe that was fitted to the training pairs

    The independent unit is the prompt. So each prompt weighs the same, however many pairs it has, and intervals are
    over prompts. The training pairs alone decide the direction of each rule, and the best rule. Whether the model beats
    that rule follows from the paired difference, prompt by prompt. The temperature is fitted, and the calibration error
    measured, on the same held-out pairs: read them as a description.
    """
    pairs = PairCounts(train=len(train), heldout=len(heldout))
    if not heldout:
        findings = [Finding("warn", "not_evaluated", f"{whose}accuracy is not known: no labelled prompt is held out")]
        stage.findings += findings
        return ReportCard(pairs=pairs, accuracy=None, length_baseline=None, baselines={}, findings=findings)

    right = [_half_for_ties(a - b) for a, b in zip(chosen, rejected, strict=True)]
    accuracy = over_prompts(heldout, right)
    rules = {name: make(train) for name, make in RULES.items()}
    by_rule = {name: over_prompts(heldout, [rule(pair) for pair in heldout]) for name, (rule, _) in rules.items()}
    best = max(rules, key=lambda name: _mean(train, [rules[name][0](pair) for pair in train]))
    difference = _difference(heldout, right, [rules[best][0](pair) for pair in heldout])
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    say(
        f"{'accuracy':<12} {_percent(accuracy)} on {len(heldout)} held-out pairs of {accuracy.n} prompts; "
        f"length alone {_percent(by_rule[LENGTH])}, "
        f"{', '.join(f'{name} {_percent(share)}' for name, share in by_rule.items() if name != LENGTH)}"
    )
    beside_probe = _beside_probe(heldout, right, probe) if probe else None
    findings = _doubts(accuracy, best, by_rule[best], difference, whose)
    stage.findings += findings

    lengths = [_longer(pair) for pair in heldout]
    values = chosen + rejected
    mean = sum(values) / len(values)
    baselines = {
        name: Baseline(**dict(share_of(heldout, share)), **dict(rules[name][1])) for name, share in by_rule.items()
    }
    return ReportCard(
        pairs=pairs,
        accuracy=share_of(heldout, accuracy),
        length_baseline=baselines[LENGTH],
        baselines=baselines,
        best_baseline=BestBaseline(name=best, difference=difference.estimate()),
        calibration=Calibration(ece=expected_calibration_error(margins), temperature=fit_temperature(margins)),
        reward_length_spearman=spearman(margins, lengths),
        probe=beside_probe,
        by_category=_by(heldout, right, lambda pair: pair.category or "none"),
        by_annotator=_by(heldout, right, lambda pair: pair.annotator),
        normalisation=Normalisation(mean=mean, std=(sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5),
        findings=findings,
    )


def _doubts(accuracy: Interval, rule: str, by_rule: Interval, difference: Interval, whose: str) -> list[Finding]:
    """Findings against the model: chance explains its accuracy, or a rule that reads nothing does.

    difference  accuracy of the model minus that of the rule
    """
    if accuracy.low <= 0.5:
        message = f"{whose}accuracy {_percent(accuracy)} does not exclude 50 %: more labels, or clearer ones"
        return [Finding("fail", "no_better_than_chance", message)]
    if difference.low > 0:
        return []
    best = f"the rule '{rule}', which reads nothing, gets {_percent(by_rule)}"
    ahead = f"the model is ahead by {_points(difference)}"
    if difference.high <= 0:
        code, end = "explained_by_a_rule", f"{ahead}: it is no more than this rule"
    else:
        code, end = "not_told_from_a_rule", f"{ahead}: {accuracy.n} held-out prompts cannot tell them apart"
    return [Finding("warn", code, f"{whose}accuracy {_percent(accuracy)}; {best}; {end}")]


# ---- Baselines: a probe -----------------------------------------------------------------------------------------


def _beside_probe(heldout: list[Preference], right: list[float], probe: ProbeScores) -> ProbeShare:
    by_probe = [_half_for_ties(chosen - rejected) for chosen, rejected in probe.scores]
    share, difference = over_prompts(heldout, by_probe), _difference(heldout, right, by_probe)
    say(f"{'probe':<12} {_percent(share)}; the model is ahead by {_points(difference)}")
    return ProbeShare(**dict(share_of(heldout, share)), reason=probe.reason, difference=difference.estimate())


# ---- Baselines: rules that read nothing --------------------------------------------------------------------------


def _words(pair: Preference) -> tuple[float, float]:
    return count_words(pair.chosen[0].content), count_words(pair.rejected[0].content)


def _longer(pair: Preference) -> float:
    chosen, rejected = _words(pair)
    return chosen - rejected


def _finished_then_longer(pair: Preference) -> float:
    return 1000.0 * (pair.chosen_finished - pair.rejected_finished) + _longer(pair)


LENGTH = "shorter or longer, as in training"

Rule = Callable[[Preference], float]
"""1 if the rule prefers the chosen answer, 0 if the other, 0.5 if it cannot tell."""


def _directed(rank: Callable[[Preference], float], train: list[Preference]) -> tuple[Rule, dict[str, int]]:
    """A rule that follows the sign of `rank`, or the opposite if that is right more often in training."""
    sign = 1 if _mean(train, [_half_for_ties(rank(pair)) for pair in train]) >= 0.5 else -1
    return lambda pair: _half_for_ties(sign * rank(pair)), {"reversed": sign < 0}


def _nearest(train: list[Preference]) -> tuple[Rule, dict[str, int]]:
    """A rule that prefers the answer nearest to a target length, the one that is right most often in training."""
    target = max(range(1, 120), key=lambda n: _mean(train, [_half_for_ties(_nearness(pair, n)) for pair in train]))
    return lambda pair: _half_for_ties(_nearness(pair, target)), {"words": target}


RULES: dict[str, Callable[[list[Preference]], tuple[Rule, dict[str, int]]]] = {
    LENGTH: lambda train: _directed(_longer, train),
    "finished, then longer": lambda train: _directed(_finished_then_longer, train),
    "nearest to the best length": _nearest,
}
"""Each function takes the training pairs and returns the rule, with what it learnt from them."""


def _nearness(pair: Preference, target: int) -> float:
    chosen, rejected = _words(pair)
    return abs(rejected - target) - abs(chosen - target)


# ---- Small ------------------------------------------------------------------------------------------------------


def _half_for_ties(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def over_prompts(pairs: list[Preference], right: list[float]) -> Interval:
    """The mean over prompts of the mean of `right` on each."""
    return win_rate([[mean] for mean in _by_prompt(pairs, right)]).interval


def share_of(pairs: list[Preference], share: Interval) -> Share:
    """The share for the report, where `n` counts pairs."""
    return Share(**{**dict(share.estimate()), "n": len(pairs), "prompts": share.n})


def _difference(pairs: list[Preference], right: list[float], by_rule: list[float]) -> Interval:
    """Accuracy minus that of a rule, paired by prompt; between -1 and 1."""
    both = [a - b for a, b in zip(right, by_rule, strict=True)]
    halves = np.array(_by_prompt(pairs, both)) / 2
    half, _ = margin_interval(halves, np.ones(len(halves)), 0.95, 0, 10_000)
    return Interval(2 * half.value, 2 * half.low, 2 * half.high, half.n)


def _by_prompt(pairs: list[Preference], values: list[float]) -> list[float]:
    groups: dict[str, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        groups.setdefault(pair.prompt_id, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def _mean(pairs: list[Preference], values: list[float]) -> float:
    means = _by_prompt(pairs, values)
    return sum(means) / len(means)


def _by(pairs: list[Preference], right: list[float], key: Callable[[Preference], str]) -> dict[str, Share]:
    slices: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        slices.setdefault(key(pair), []).append(i)
    by_name = {}
    for name, rows in sorted(slices.items()):
        members = [pairs[i] for i in rows]
        by_name[name] = share_of(members, over_prompts(members, [right[i] for i in rows]))
    return by_name


def _percent(share: Interval) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _points(difference: Interval) -> str:
    """`-1.1 points [-10.9, +9.2]`."""
    value, low, high = (100 * each for each in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
