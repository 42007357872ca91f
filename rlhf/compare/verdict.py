"""The verdict of a comparison: did alignment help, and what did it cost? Pure functions of the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.compare.answers import ALIGNED, SFT, outcome_tables
from rlhf.compare.judges import JudgeResult, LabelOrigins, compare_scores, rate_of
from rlhf.compare.schema import LastRound, PolicyMeasures
from trueup.artifacts.manifest import Finding, Level
from trueup.artifacts.reports import ComparisonVerdict, PairedAccuracy
from trueup.pages.wording import title
from trueup.statistics import another_round, intervals

FEW_PROMPTS = 20
"""Below this many held-out prompts an interval over prompts is itself a guess."""
LONGER = 1.5
"""Ratio of mean lengths from which on the answers' length has changed."""
STOPS_LESS = 0.1
"""Fall of the share of answers that end by themselves."""
LESS_VARIED = 0.8
"""Ratio of the shares of distinct word pairs."""

Status = Literal["pass", "warn", "fail"]
Outcome = Literal["improved", "improved_at_a_price", "no_detectable_change", "worse", "no_verdict"]

ANOTHER_ROUND = "another_round"
"""Code of the finding on the last round and on another one."""
UNUSABLE = ("judge_not_usable", "no_votes")
"""Codes of findings after which a judge of pairs decides nothing."""

# ---- Who decides ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How far a judge may be believed, by its report card and by how its judging went."""

    reasons: list[str]
    """What speaks against it; empty where nothing does."""
    decides: bool


def standing(result: JudgeResult, card: Sequence[Finding]) -> Standing:
    """A judge whose report card failed, that is not usable, or that compared nothing decides nothing.

    card  findings of the judge's report card: of a reward model, what it could do on held-out pairs
    """
    against = [finding for finding in (*card, *result.verdicts.findings) if finding.level != "info"]
    reasons = [finding.message for finding in against]
    unfit = any(finding.level == "fail" or finding.code in UNUSABLE for finding in against)
    if not result.win_rate.interval.n and not unfit:
        reasons, unfit = [*reasons, "it compared no two answers"], True
    return Standing(reasons, not unfit)


@dataclass(frozen=True)
class Decision:
    outcome: Outcome
    finding: Finding
    prices: list[Finding]
    """What a win cost, each with its numbers; empty where nothing was won."""
    judge: str | None
    """Who decided; None: nobody could."""
    passed_over: dict[str, str]
    """Judges that stand before it and decide nothing, each with the reason."""

    def report(self, status: Status) -> ComparisonVerdict:
        """The verdict for the report; `status` is the stage's, by all of its findings."""
        return ComparisonVerdict(
            outcome=self.outcome,
            status=status,
            code=self.finding.code,
            message=self.finding.message,
            prices=[price.message for price in self.prices],
            judge=self.judge,
            passed_over=self.passed_over,
        )


# ---- The verdict ------------------------------------------------------------------------------------------------


def decide(
    judges: Mapping[str, JudgeResult],
    standings: Mapping[str, Standing],
    floors: Mapping[str, intervals.Interval],
    prompts: int,
    identical: float,
    lengths: tuple[float, float],
    prices: Sequence[Finding],
) -> Decision:
    """One sentence by the first judge that may decide.

    floors     the SFT policy against itself, by each judge that can tell
    identical  share of answers in which both policies say the same
    lengths    mean tokens of the SFT and of the aligned policy's answers
    prices     what alignment cost, whoever won

    `improved` is claimed only where the interval leaves 50 % outside, raw and at equal length, and beyond what the SFT
    policy wins against itself where that is not chance. A win that is not shown at equal length has its price: length.
    """
    name = next((name for name in judges if standings[name].decides), None)
    before = list(judges)[: list(judges).index(name)] if name else list(judges)
    passed_over = {other: "; ".join(standings[other].reasons) for other in before}
    over = "".join(f" The judge {title(other)} decides nothing: {reason}." for other, reason in passed_over.items())
    if name is None:
        finding = Finding("warn", "no_verdict", f"No verdict: no judge can decide.{over}")
        return Decision("no_verdict", finding, [], None, passed_over)

    result = judges[name]
    doubts = standings[name].reasons
    aside = (f" Of this judge: {'; '.join(doubts)}." if doubts else "") + over

    def verdict(
        outcome: Outcome, level: Level, code: str, message: str, win_prices: Sequence[Finding] = ()
    ) -> Decision:
        price = f" The price: {'; '.join(price.message for price in win_prices)}." if win_prices else ""
        return Decision(outcome, Finding(level, code, f"{message}{aside}{price}"), list(win_prices), name, passed_over)

    rate = result.win_rate.interval
    on = f"{prompts} held-out {'prompt' if prompts == 1 else 'prompts'} (judge: {result.by.description})"
    preference = "this preference" if result.by.made_the_labels else "what this judge prefers"
    floor = floors.get(name)
    noise = max(floor.high, 1 - floor.low) if floor and floor.excludes(0.5) else 0.5
    if rate.low > noise:
        wins = f"it wins {percent(rate)} of comparisons on {on}"
        if win_prices := with_price_of_length(result, *lengths, prices):
            message = f"The aligned policy learnt {preference}, at a price: {wins}."
            return verdict("improved_at_a_price", "warn", "learnt_at_a_price", message, win_prices)
        return verdict("improved", "info", "learnt_preference", f"The aligned policy learnt {preference}: {wins}.")
    if rate.high < 0.5:
        message = (
            f"The aligned policy moved away from {preference}: it wins only {percent(rate)} of comparisons on {on}."
        )
        return verdict("worse", "fail", "moved_away", message)
    effect = result.minimum_detectable_effect
    if rate.low > 0.5 and floor:
        limit = (
            f"by this judge the SFT policy wins {percent(floor)} against itself, so this much may come of the judging."
        )
    elif identical == 1:
        limit = "both policies give the very same answers."
    elif not math.isfinite(effect) or effect == 0:
        limit = "too little varies here to say what this comparison could have detected."
    else:
        limit = f"this comparison could have detected {100 * effect:.1f} points."
    message = f"No detectable change: {percent(rate)} of comparisons won on {on}; {limit}"
    return verdict("no_detectable_change", "warn", "no_detectable_change", message)


def with_price_of_length(result: JudgeResult, before: float, after: float, prices: Sequence[Finding]) -> list[Finding]:
    """The prices, with length among them unless the win is shown at equal length too.

    before, after  mean tokens of the SFT and of the aligned policy's answers
    """
    equal_length = result.length_controlled
    way = "longer" if after >= before else "shorter"
    if equal_length.a_guess:
        message = f"at equal length nothing is known: {equal_length.note}"
    elif equal_length.interval.low > 0.5:
        return list(prices)
    elif equal_length.interval.high < 0.5:
        message = (
            f"at equal length it wins only {percent(equal_length.interval)}: {way} answers won, and not what they say"
        )
    else:
        message = (
            f"at equal length it wins {percent(equal_length.interval)}, which may be chance: the win may come of {way} "
            "answers alone"
        )
    same = [price.message for price in prices if price.code == way]
    others = [price for price in prices if price.code != way]
    return [Finding("warn", way, "; ".join([*same, message])), *others]


def find_prices(
    before: PolicyMeasures,
    after: PolicyMeasures,
    kl: intervals.Interval,
    kl_budget: float | None,
    checks: Mapping[str, PairedAccuracy],
) -> list[Finding]:
    """What alignment cost: longer answers, fewer that stop, less variety, KL over budget, checks that fail more often.

    before, after  what the completions of the SFT and of the aligned policy are like
    kl             nats per sequence
    checks         results of `rlhf.checks.paired` by name
    """
    prices: dict[str, str] = {}
    if _ratio(before, after) > LONGER:
        prices["longer"] = _times_as_long(before, after)
    if after.eos_rate < before.eos_rate - STOPS_LESS:
        prices["stops_less"] = f"{after.eos_rate:.0%} of answers end by themselves, {before.eos_rate:.0%} before"
    assert before.distinct_2 is not None and after.distinct_2 is not None  # both were sampled
    if after.distinct_2 < LESS_VARIED * before.distinct_2:
        share = f"{after.distinct_2:.0%} of word pairs are distinct, {before.distinct_2:.0%} before"
        prices["less_varied"] = f"answers grew alike: {share}"
    if kl_budget is not None and not kl.high <= kl_budget:
        nats = f"{kl.value:.2f} [{kl.low:.2f}, {kl.high:.2f}] nats per sequence"
        over = "is over" if kl.low > kl_budget else "may be over" if kl.value <= kl_budget else "is likely over"
        prices["kl_over_budget"] = f"KL is {nats}: it {over} the budget of {kl_budget:g}"
    for name, result in checks.items():
        sft, aligned, p = result.sft.value, result.aligned.value, result.mcnemar.p_value
        if sft is not None and aligned is not None and aligned < sft and p < 0.05:
            chance = f"McNemar p = {p:.3f}, n = {result.sft.n}"
            prices[f"regressed_{name}"] = f"{name}: {aligned:.0%} right, {sft:.0%} before ({chance})"
    return [Finding("warn", code, message) for code, message in prices.items()]


def _ratio(before: PolicyMeasures, after: PolicyMeasures) -> float:
    return after.length_tokens / max(before.length_tokens, 1e-9)


def _times_as_long(before: PolicyMeasures, after: PolicyMeasures) -> str:
    return (
        f"answers are {_ratio(before, after):.2f} times as long as the SFT policy's ({after.length_tokens:.0f} tokens, "
        f"{before.length_tokens:.0f} before)"
    )


def reasons_for_doubt(
    decision: Decision,
    judges: Mapping[str, JudgeResult],
    cards: Mapping[str, Sequence[Finding]],
    floors: Mapping[str, intervals.Interval],
    before: PolicyMeasures,
    after: PolicyMeasures,
    prompts: int,
    labels: LabelOrigins,
) -> list[Finding]:
    """Why the verdict should be trusted less than its interval says."""
    doubts = []
    if decision.judge:
        by = judges[decision.judge].by
        if not by.made_the_labels:
            message = (
                f"the judge ({by.description}) did not make the labels ({labels.who}): its win rate says what it "
                "prefers, and not whether the labellers' preference was learnt"
            )
            doubts.append(Finding("warn", "judge_is_not_the_labeller", message))
        floor = floors.get(decision.judge)
        if floor and floor.excludes(0.5):
            message = (
                f"by the judge {title(decision.judge)} the SFT policy wins {percent(floor)} against itself: that is "
                "chance one time in twenty, else something other than the policy decides"
            )
            doubts.append(Finding("warn", "noise_floor", message))
    for name in judges:
        for finding in cards.get(name, ()):
            if finding.level != "info":
                message = f"the judge {title(name)}: {finding.message}"
                doubts.append(Finding("warn", f"judge_{finding.code}", message))
    if _ratio(before, after) < 1 / LONGER and not any(price.code == "shorter" for price in decision.prices):
        message = f"{_times_as_long(before, after)}: look at the win rate at equal length"
        doubts.append(Finding("warn", "shorter", message))
    for result in judges.values():
        doubts += result.verdicts.findings
    doubts += _disagreement(list(judges.values()))
    if prompts < FEW_PROMPTS:
        message = f"{prompts} held-out prompts: below {FEW_PROMPTS} take every interval as a guess"
        doubts.append(Finding("warn", "few_prompts", message))
    return doubts


def last_round(
    result: JudgeResult, number: int, by_round: Mapping[int, int], seconds: float | None, confidence: float, seed: int
) -> tuple[LastRound, Finding]:
    """A round beside the last one by one judge, and whether another round is worth its hours.

    by_round  labels that each round asked for
    seconds   of a label by a person, if people label
    """
    scores, before = result.scores, f"round-{number - 1}"
    rate = compare_scores(before, ALIGNED, scores, confidence, seed)
    earlier, later = (outcome_tables(SFT, name, scores[SFT], scores[name]) for name in (before, ALIGNED))
    gained = another_round.gain(earlier, later, confidence, seed)
    now, more = sum(by_round.values()), by_round[number]
    expected = another_round.expected_gain(gained, now - more, now, more)
    hours = None if seconds is None else more * seconds / 3600  # as if people gave all of them
    cost = f"{more} labels" + (f" ({hours:.1f} h)" if hours is not None else "")
    points = f"{100 * expected.value:+.1f} points [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    probably = "probably" if expected.excludes(0.0) else "perhaps"
    message = (
        f"Round {number} wins {percent(rate.interval)} against round {number - 1}. Another {cost} would {probably} "
        f"change the win rate against the SFT policy by {points}."
    )
    figures = LastRound(
        judge=result.by.name,
        win_rate=rate_of(rate),
        gain=gained.estimate(),
        labels=more,
        hours=hours,
        expected_gain=expected.estimate(),
    )
    return figures, Finding("info", ANOTHER_ROUND, message)


def _disagreement(judges: Sequence[JudgeResult]) -> list[Finding]:
    """Judges on either side of 50 %, unless that may be chance for both."""
    findings = []
    for i, one in enumerate(judges):
        for other in judges[i + 1 :]:
            a, b = one.win_rate.interval, other.win_rate.interval
            if (a.value - 0.5) * (b.value - 0.5) < 0 and (a.excludes(0.5) or b.excludes(0.5)):
                message = f"judges disagree on the direction: {one.by.name} {percent(a)}, {other.by.name} {percent(b)}"
                findings.append(Finding("warn", "judges_disagree", message))
    return findings


def percent(interval: intervals.Interval) -> str:
    """`68.0 % [62.3, 73.5]`."""
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
