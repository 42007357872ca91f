"""What the report shows, made of report.json and samples.jsonl: tables, bars and texts, as pure functions.

What was not measured gives an empty view, and the page leaves that part out. Figures are never worked out anew here:
what the page says is what the stage measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlhf.compare.schema import Checkpoint, CompareReport, Strength
from rlhf.html import ENDS, LENGTH, REPEATS, MeasureRow, measure_rows, policy_title
from trueup.artifacts.reports import Estimate, JudgeFigures, OwnFigures, Rate, RewardCard, number
from trueup.pages import plots
from trueup.pages.wording import (
    OUTCOMES,
    counted,
    independence,
    interval,
    noise_floor,
    p_value,
    percent,
    quantity,
    sentence,
    title,
)

SOURCES = {
    "human": "people, in the browser",
    "simulated": "a written rubric; no person gave these labels",
    "import": "a file from elsewhere",
    "judge": "a language model asked to judge",
    "reward_model": "an existing reward model",
}
MEASURES = (
    MeasureRow("length_tokens", *LENGTH),
    MeasureRow("eos_rate", *ENDS),
    MeasureRow("distinct_2", "Distinct word pairs", "of all word pairs; lower: answers grow alike", "share"),
    MeasureRow(
        "self_similarity", "Likeness of answers to one prompt", "word pairs that two share; 1: always the same", ".3f"
    ),
    MeasureRow("repetition", *REPEATS),
    MeasureRow(
        "heldout_loss", "Loss on held-out demonstrations", "nats per token; what SFT taught, before and after", ".3f"
    ),
)


# ---- The verdict ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerdictView:
    label: str
    tone: str
    message: str
    shares: list[tuple[str, Estimate, str]]
    """(what, figures, note): the shares that the verdict rests on."""
    facts: list[tuple[str, str, str]]
    """(what, number, note): whatever is no share."""
    prices: list[str]


def verdict_view(report: CompareReport) -> VerdictView:
    """The verdict with the numbers that decided it, by the judge who did; by the first where nobody could."""
    verdict = report.verdict
    first = verdict.judge or next(iter(report.judges))
    judge = report.judges[first]
    rate, equal_length = judge.win_rate, judge.length_controlled_win_rate
    shares: list[tuple[str, Estimate, str]] = [("Win rate", rate, f"by {title(first)}: {counted(rate)}")]
    shares.append(("At equal length", equal_length, equal_length.note or ""))
    if noise := noise_floor(report):
        judge_name, floor = noise
        judge_note = "" if judge_name == first else f" by {title(judge_name)}"
        shares.append(("SFT against itself", floor, f"the noise floor{judge_note}: other seeds, {holds_half(floor)}"))
    facts = []
    if (effect := judge.minimum_detectable_effect) is not None:
        facts.append(
            ("Could detect", f"{100 * effect:.1f}", "points from 50\N{NO-BREAK SPACE}%, four times out of five")
        )
    note = "nats a sequence" + ("" if report.kl_budget is None else f"; budget {quantity(report.kl_budget, 1)}")
    facts.append(("KL to SFT", quantity(report.kl_nats), note))
    before, after = (report.policies_compared.measures[name].length_tokens for name in ("sft", "aligned"))
    if before and after:
        facts.append(("Length", f"{after / before:.2f}\N{MULTIPLICATION SIGN}", "that of SFT answers, in tokens"))
    label, tone = OUTCOMES[verdict.outcome]
    return VerdictView(label, tone, sentence(verdict), shares, facts, verdict.prices)


def holds_half(floor: Estimate) -> str:
    """What a noise floor says: there is nothing to find, so its interval should hold one half."""
    if floor.ci_low is None or floor.ci_high is None:
        return "of too few prompts to tell"
    if floor.ci_low <= 0.5 <= floor.ci_high:
        return "holds 50 %, as it should"
    return "does NOT hold 50 %: that is chance one time in twenty, else something other than the policy decides"


# ---- Judges -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeView:
    name: str
    title: str
    description: str
    independent: bool
    meaning: str
    """What its independence, or the lack of it, makes of what it says."""
    figures: JudgeFigures
    shares: Markup
    floor: Rate | None
    """SFT against itself."""
    greedy: Rate | None
    """The likeliest answer of each policy, one for each prompt."""
    remarks: list[tuple[str, str]]
    """(what, figure): least detectable effect, position bias, refusals, ..."""


def judge_views(report: CompareReport) -> list[JudgeView]:
    return [_judge_view(name, figures, report) for name, figures in report.judges.items()]


def _judge_view(name: str, judge: JudgeFigures, report: CompareReport) -> JudgeView:
    rate = judge.win_rate
    independent, meaning = independence(name, judge)
    remarks = []
    if (effect := judge.minimum_detectable_effect) is not None:
        remarks.append(("Could detect", f"{100 * effect:.1f} points from 50\N{NO-BREAK SPACE}%"))
    for key in OwnFigures.model_fields:
        if (value := getattr(judge, key)) not in (None, {}):
            remarks.append((REMARKS.get(key, title(key).capitalize()), _in_words(value, key in SHARES)))
    return JudgeView(
        name,
        title(name),
        judge.description,
        independent,
        meaning,
        judge,
        plots.shares_bar([("won", rate.wins), ("tied", rate.ties), ("lost", rate.losses)]),
        report.noise_floor.get(name),
        (report.greedy or {}).get(name),
        remarks,
    )


REMARKS = {
    "position_bias": "Prefers the first place",
    "contradictions": "Another verdict in the other order",
    "cut": "Cut before a verdict",
    "malformed": "Malformed verdicts",
    "failed": "Without a reply",
    "unsupported": "Not supported",
    "voters": "People",
    "votes_on_other_completions": "Votes on other answers",
}
SHARES = ("position_bias",)


def _in_words(value: Any, share: bool) -> str:
    """A count, a share, a figure with its interval, counts by reason, or names."""
    if isinstance(value, Estimate):
        return interval(value) if share else quantity(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(count, share)}" for name, count in value.items()) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(str(name) for name in value) or "none"
    return percent(float(value)) if share else str(value)


@dataclass(frozen=True)
class Categories:
    """Win rates by category."""

    judges: list[str]
    rows: list[tuple[str, list[Rate | None]]]
    """(category, its win rate by each judge)."""


def by_category(report: CompareReport) -> Categories | None:
    """Win rates by category; None without categories."""
    judges = {name: judge.by_category for name, judge in report.judges.items() if judge.by_category}
    categories = list(dict.fromkeys(category for cells in judges.values() for category in cells))
    if not categories:
        return None
    rows = [(title(category), [cells.get(category) for cells in judges.values()]) for category in categories]
    return Categories([title(name) for name in judges], rows)


# ---- More than two policies -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """All pairs of policies by one judge."""

    judge: str
    names: list[str]
    rows: list[tuple[str, list[Rate | None]]]
    """A policy and its win rate against every other, in the order of `names`; None against itself."""


def all_pairs(report: CompareReport) -> list[Matrix]:
    """One matrix for each judge. A pair's win rate is that of `b` over `a`; the other half of the table follows."""
    pairs = report.policies_compared.pairs
    matrices = []
    for judge in dict.fromkeys(pair.judge for pair in pairs):
        rates = {(pair.b, pair.a): pair.win_rate for pair in pairs if pair.judge == judge}
        rates |= {(b, a): opposite(rate) for (a, b), rate in rates.items()}
        names = [name for name in report.policies_compared.policies if any(name in pair for pair in rates)]
        rows = [(policy_title(one), [rates.get((one, other)) for other in names]) for one in names]
        matrices.append(Matrix(title(judge), [policy_title(name) for name in names], rows))
    return matrices


def opposite(rate: Rate) -> Rate:
    """The same comparisons seen from the other side: a win rate w is 1 - w there."""

    def rest(value: float | None) -> float | None:
        return None if value is None else 1 - value

    ends = {"value": rest(rate.value), "ci_low": rest(rate.ci_high), "ci_high": rest(rate.ci_low)}
    return rate.model_copy(update=ends)


@dataclass(frozen=True)
class StrengthsView:
    """Bradley-Terry strengths by one judge."""

    judge: str
    rows: list[tuple[str, Strength, Markup]]
    """(policy, strength, bar)."""
    note: str


def strengths(report: CompareReport) -> list[StrengthsView]:
    """Bradley-Terry strengths of each judge on one common axis, the strongest policy first."""
    by_judge = report.policies_compared.strengths
    numbers = [
        value
        for rows in by_judge.values()
        for figures in rows.values()
        for value in (figures.value, figures.ci_low, figures.ci_high)
        if value is not None and math.isfinite(value)
    ]
    if not numbers:
        return []
    low, high = min(*numbers, 0.0), max(*numbers, 0.0)
    rim = 0.05 * (high - low) or 1.0
    span = low - rim, high + rim

    def bar(figures: Estimate) -> Markup:
        if figures.value is None:
            return Markup("")
        return plots.interval_bar(figures.value, figures.ci_low, figures.ci_high, 0.0, span)

    views = []
    for judge, rows in by_judge.items():
        entries = sorted(rows.items(), key=lambda item: -(item[1].value if item[1].value is not None else -1e9))
        lines = [(policy_title(name), figures, bar(figures)) for name, figures in entries]
        views.append(StrengthsView(title(judge), lines, report.policies_compared.notes.get(judge, "")))
    return views


# ---- What else changed ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measures:
    names: list[str]
    """Every policy, the SFT one and the aligned one first."""
    rows: list[tuple[str, str, list[str]]]
    """(what, what it means, of each policy)."""


def measures(report: CompareReport) -> Measures:
    """What answers are like, and how far from the SFT policy; what nobody measured is left out."""
    by_policy = report.policies_compared.measures
    policies = {name: by_policy[name] for name in dict.fromkeys(("sft", "aligned", *by_policy))}
    rows = measure_rows(MEASURES, list(policies.values()), "not measured")
    kl = report.kl_nats
    budget = "" if report.kl_budget is None else f"; budget {quantity(report.kl_budget, 1)}"
    meaning = f"how far it moved, on its own answers, {kl.samples_per_prompt} per prompt{budget}"
    cells = ["0" if name == "sft" else _distance(name, figures.kl_nats) for name, figures in policies.items()]
    rows.append(("KL to the SFT policy, nats per answer", meaning, cells))
    per_token = {"sft": "0", "aligned": quantity(report.kl_nats_per_token, 3)}
    cells = [per_token.get(name, "\N{EN DASH}") for name in policies]
    rows.append(("KL to the SFT policy, nats per token", "", cells))
    cells = [percent(report.identical_completions) if name == "aligned" else "" for name in policies]
    rows.append(("Same answer as SFT, token by token", "of the answers drawn with the same random numbers", cells))
    return Measures([policy_title(name) for name in policies], rows)


def _distance(name: str, figures: Estimate | None) -> str:
    """A measured distance; that of best of n is computed from n, and bounds the true one from above."""
    bound = "\N{LESS-THAN OR EQUAL TO}\N{NO-BREAK SPACE}" if name == "best_of_n" and figures else ""
    return f"{bound}{quantity(figures)}"


@dataclass(frozen=True)
class AccuracyRow:
    """Held-out accuracy of the reward model or of a rule, as a bar."""

    title: str
    figures: Estimate
    is_model: bool
    note: str


def accuracies(card: RewardCard | None) -> list[AccuracyRow]:
    """The reward model's held-out accuracy, then the rules that read nothing."""
    if card is None or card.accuracy is None:
        return []
    ahead = ""
    if best := card.best_baseline:
        ends = {key: 100 * (getattr(best.difference, key) or 0.0) for key in ("value", "ci_low", "ci_high")}
        points = best.difference.model_copy(update=ends)
        ahead = f"ahead of the best rule in training, {best.name}, by {quantity(points, 1)} points"
    rules = [AccuracyRow(name, share, False, "") for name, share in card.baselines.items()]
    return [AccuracyRow("reward model", card.accuracy, True, ahead), *rules]


# ---- Checks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckView:
    """What both policies could do by one check."""

    title: str
    note: str
    sft: Estimate
    aligned: Estimate
    only_sft: int
    """Prompts that the SFT policy alone got right."""
    only_aligned: int
    p: str
    """The p-value of McNemar's test."""
    worse: bool


def check_views(report: CompareReport) -> list[CheckView]:
    """What both policies could do before and after, check by check, with McNemar's test."""
    rows = []
    for name, check in report.checks.items():
        test = check.mcnemar
        notes = [check.prompts]
        if check.left_out:
            notes.append(f"{check.left_out} left out, since a stage trained on them")
        if check.unsupported:
            notes.append(f"not supported by the verifier: {_in_words(check.unsupported, False)}")
        if check.left_out or check.unverified:
            notes.append(f"leaves {check.sft.n}")
        notes.append(f"verified by {check.verifier}")
        only_sft, only_aligned, p = test.only_sft, test.only_aligned, test.p_value
        worse = p < 0.05 and only_sft > only_aligned
        name, note = CHECKS.get(name, title(name)), "; ".join(notes)
        rows.append(CheckView(name, note, check.sft, check.aligned, only_sft, only_aligned, p_value(p), worse))
    return rows


CHECKS = {"ifeval": "IFEval: instructions followed, strictly", "gsm8k": "GSM8K: final number right"}

# ---- Checkpoints ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointsView:
    """Score against KL during the training: a picture by each judge, and a table of the steps."""

    charts: list[tuple[str, str, Markup]]
    """(title of the judge, its name, picture)."""
    steps: list[Checkpoint]
    budget: float | None
    chosen: int | None
    """The step that the budget chooses."""
    over: set[int]
    """The steps that are over it."""


def checkpoint_view(report: CompareReport) -> CheckpointsView | None:
    """The kept steps; None where none was compared."""
    checkpoints = report.checkpoints
    if not checkpoints:
        return None
    budget = report.kl_budget
    chosen = report.chosen_by_budget.step if report.chosen_by_budget else None
    charts = []
    for judge in dict.fromkeys(name for at in checkpoints for name in at.scores):
        places = [
            plots.Point(
                number(at.kl_nats),
                number(at.scores[judge]),
                str(at.step),
                "chosen" if at.step == chosen else "on",
                at.scores[judge].ci_low,
                at.scores[judge].ci_high,
            )
            for at in checkpoints
            if judge in at.scores
        ]
        svg = plots.trace(places, "KL to the SFT policy, nats per answer", f"mean score by {title(judge)}", budget)
        charts.append((title(judge), judge, svg))
    over = {at.step for at in checkpoints if budget is not None and number(at.kl_nats) > budget}
    return CheckpointsView(charts, checkpoints, budget, chosen, over)
