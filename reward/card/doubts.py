"""Doubts about a reward model: the findings of its report card, each with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reward.card.baselines import BAG
from reward.card.shares import interval_of, percent, points
from reward.report import HeadAgreement, Stress
from trueup.artifacts.reports import Share, number
from trueup.runs import Finding
from trueup.statistics.intervals import Interval

NO_CHANCE = 0.05
"""Probability of shuffled labels doing as well from which a model fails."""
OVERCONFIDENT = 1.25
"""A temperature that is surely above this is a finding: the scores are a quarter too far apart."""
FOOLED = 0.25
"""A share of worse texts scoring higher that is surely above this is a finding."""


@dataclass(frozen=True)
class Measured:
    """What the findings are drawn from."""

    accuracy: Interval
    shuffled_p: float
    baseline: str
    """The best in training."""
    by_baseline: Interval
    ahead: Interval
    """Accuracy of the model minus that of the baseline."""
    temperature: Interval
    by_length: Mapping[str, Share]
    stress: Stress | None
    heads: HeadAgreement | None = None


def doubts(measured: Measured, whose: str) -> list[Finding]:
    """Findings against the model. One that fails is told alone: nothing else about such a model matters."""
    chance = list(_chance(measured))
    rest: Sequence[Callable[[Measured], Iterator[Finding]]] = (_baseline, _overconfidence, _length, _stress, _heads)
    findings = chance or [finding for doubt in rest for finding in doubt(measured)]
    return [Finding(finding.level, finding.code, whose + finding.message) for finding in findings]


def _chance(measured: Measured) -> Iterator[Finding]:
    """Chance explains the accuracy: by the interval, or, for few prompts, by all ways to shuffle the labels."""
    accuracy, p = measured.accuracy, measured.shuffled_p
    if accuracy.low <= 0.5:
        message = f"accuracy {percent(accuracy)} does not exclude 50 %: more labels, or clearer ones"
        yield Finding("fail", "no_better_than_chance", message)
    elif p > NO_CHANCE:
        message = (
            f"accuracy {percent(accuracy)} on {accuracy.n} held-out prompts; shuffled labels do as well with "
            f"probability {p:.2f}: hold out more prompts (split.heldout_fraction), or label more"
        )
        yield Finding("fail", "shuffled_labels_would_do", message)


def _baseline(measured: Measured) -> Iterator[Finding]:
    """A rule that reads nothing, or a bag of words, explains the accuracy."""
    accuracy, ahead = measured.accuracy, measured.ahead
    if ahead.low > 0:
        return
    by_baseline = percent(measured.by_baseline)
    if measured.baseline == BAG:
        best = f"a bag of words, which knows no order and no prompt, gets {by_baseline}"
    else:
        best = f"the rule '{measured.baseline}', which reads nothing, gets {by_baseline}"
    if ahead.high <= 0:
        code, end = "explained_by_a_rule", "it is no more than this baseline, so label more, or take a larger model"
    else:
        end = f"{accuracy.n} held-out prompts cannot tell them apart, so label more, or hold out more"
        code = "not_told_from_a_rule"
    message = f"accuracy {percent(accuracy)}; {best}; the model is ahead by {points(ahead)}: {end}"
    yield Finding("warn", code, message)


def _overconfidence(measured: Measured) -> Iterator[Finding]:
    fitted = measured.temperature
    if fitted.low > OVERCONFIDENT:
        message = (
            f"the model is overconfident: its scores suit the labels after division by {fitted.value:.1f} "
            f"[{fitted.low:.1f}, {fitted.high:.1f}]; train for fewer epochs, or divide by that before you read "
            "differences of scores as probabilities"
        )
        yield Finding("warn", "overconfident", message)


def _length(measured: Measured) -> Iterator[Finding]:
    """The pairs that speak against the model's taste in length are mostly wrong."""
    for kind, share in measured.by_length.items():
        if kind != "as long" and share.ci_high is not None and share.ci_high < 0.5:
            other = "shorter" if kind == "longer" else "longer"
            message = (
                f"where the {kind} answer is preferred the model is right in {percent(interval_of(share))} of the "
                f"pairs: it follows length, so label more pairs whose {kind} answer is better than the {other} one"
            )
            yield Finding("warn", "follows_length", message)


def _stress(measured: Measured) -> Iterator[Finding]:
    shares = measured.stress.scores_higher if measured.stress else {}
    fooled = [f"{name} {percent(interval_of(share))}" for name, share in shares.items() if (share.ci_low or 0) > FOOLED]
    if fooled:
        message = (
            f"worse texts score higher than the answers they were made from: {', '.join(fooled)}; label pairs in which "
            "such a text stands beside a good answer, and read the samples of an online algorithm for it"
        )
        yield Finding("warn", "worse_texts_score_higher", message)


def _heads(measured: Measured) -> Iterator[Finding]:
    """Disagreement of the heads is no sign of a mistake."""
    heads = measured.heads
    if heads is None:
        return
    if heads.difference is None or number(heads.difference) <= 0:
        where, elsewhere = heads.right_where_agreed, heads.right_elsewhere
        figures = " and ".join(
            f"{percent(interval_of(share))} of the pairs {what}"
            for share, what in ((where, "on which they agree"), (elsewhere, "on which they do not"))
            if share
        )
        message = (
            f"the disagreement of the {heads.heads} heads tells nothing on held-out pairs: the model is right in "
            f"{figures}; choose at random what people are asked (label.selection), and leave align.reward_caution at 0"
        )
        yield Finding("warn", "disagreement_tells_nothing", message)
