"""What the report shows, made of report.json and samples.jsonl: tables, bars and texts, as pure functions.

What was not measured gives an empty view, and the page leaves that part out. Figures are never worked out anew here:
what the page says is what the stage measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlhf.compare.schema import CompareReport
from rlhf.html import policy_title, title, value_of
from trueup.artifacts.reports import Estimate, JudgeFigures, Rate, RewardCard, number
from trueup.data.visible import seen
from trueup.pages import plots
from trueup.pages.worddiff import marked
from trueup.pages.wording import (
    OUTCOMES,
    counted,
    decimals,
    independence,
    interval,
    leans,
    measure,
    noise_floor,
    p_value,
    percent,
    quantity,
    sentence,
)

EXAMPLES = 4
"""Prompts shown of each kind: won, lost, undecided."""

SOURCES = {
    "human": "people, in the browser",
    "simulated": "a written rubric; no person said these",
    "import": "a file from elsewhere",
    "judge": "a language model asked to judge",
    "reward_model": "an existing reward model",
}
MEASURES = (
    ("length_tokens", "Length, tokens", "mean of all answers, with the end-of-turn token", ".1f"),
    ("eos_rate", "Ends by itself", "share of answers; the others were cut at the limit", "share"),
    ("distinct_2", "Distinct word pairs", "of all word pairs; lower: answers grow alike", "share"),
    (
        "self_similarity",
        "Likeness of answers to one prompt",
        "word pairs that two answers share; 1: always the same",
        ".3f",
    ),
    ("repetition", "Repeats itself", "share of answers that say three words in a row twice", "share"),
    ("heldout_loss", "Loss on held-out demonstrations", "nats per token; what SFT taught, before and after", ".3f"),
)


# ---- The verdict ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerdictView:
    label: str
    tone: str
    message: str
    decided: list[tuple[str, Estimate, str]]
    """(what, figures, note): the shares that the verdict rests on."""
    facts: list[tuple[str, str, str]]
    """(what, number, note): whatever is no share."""
    prices: list[str]


def verdict_view(report: CompareReport) -> VerdictView:
    """The verdict with the numbers that decided it, by the judge who did; by the first where nobody could."""
    verdict = report.verdict
    first = verdict.judge or next(iter(report.judges))
    judge = report.judges[first]
    rate, controlled = judge.win_rate, judge.length_controlled_win_rate
    decided: list[tuple[str, Estimate, str]] = [("Win rate", rate, f"by {title(first)}: {counted(rate)}")]
    decided.append(("At equal length", controlled, controlled.note or ""))
    if shown := noise_floor(report):
        judge_name, floor = shown
        told = "" if judge_name == first else f" by {title(judge_name)}"
        decided.append(("SFT against itself", floor, f"the noise floor{told}: other seeds, {holds_half(floor)}"))
    facts = []
    if (effect := judge.minimum_detectable_effect) is not None:
        facts.append(
            ("Could detect", f"{100 * effect:.1f}", "points from 50\N{NO-BREAK SPACE}%, four times out of five")
        )
    note = "nats a sequence" + ("" if report.kl_budget is None else f"; budget {quantity(report.kl_budget, 1)}")
    facts.append(("KL to SFT", quantity(report.kl_nats), note))
    before, after = value_of(report.length_tokens.sft), value_of(report.length_tokens.aligned)
    if before and after:
        facts.append(("Length", f"{after / before:.2f}\N{MULTIPLICATION SIGN}", "that of SFT answers, in tokens"))
    label, tone = OUTCOMES[verdict.outcome]
    return VerdictView(label, tone, sentence(verdict), decided, facts, verdict.prices)


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
    for key, value in judge:
        if key not in ALWAYS and value is not None and value != {}:
            remarks.append((REMARKS.get(key, title(key).capitalize()), _told(value, key in SHARES)))
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


ALWAYS = {
    "description",
    "made_the_labels",
    "independent",
    "win_rate",
    "length_controlled_win_rate",
    "minimum_detectable_effect",
    "by_category",
}
"""What every judge has; whatever else one says of itself is told beside its figures."""
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


def _told(value: Any, share: bool) -> str:
    """A count, a share, a figure with its interval, counts by reason, or names."""
    if isinstance(value, Estimate):
        return interval(value) if share else quantity(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(count, share)}" for name, count in value.items()) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(str(name) for name in value) or "none"
    return percent(float(value)) if share else str(value)


def by_category(report: CompareReport) -> dict[str, Any]:
    """{judges: names, rows: [(category, [figures or None of each judge])]}; empty without categories."""
    judges = {name: judge.by_category for name, judge in report.judges.items() if judge.by_category}
    categories = list(dict.fromkeys(category for cells in judges.values() for category in cells))
    if not categories:
        return {}
    rows = [(title(category), [cells.get(category) for cells in judges.values()]) for category in categories]
    return {"judges": [title(name) for name in judges], "rows": rows}


# ---- More than two policies -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """All pairs of policies by one judge."""

    judge: str
    names: list[str]
    rows: list[tuple[str, list[Rate | None]]]
    """Of each policy its win rate against every other, in the order of `names`; None against itself."""


def all_pairs(report: CompareReport) -> list[Matrix]:
    """One matrix for each judge. A pair's win rate is that of `b` over `a`; the other half of the table follows."""
    pairs = report.policies_compared.pairs
    matrices = []
    for judge in dict.fromkeys(pair.judge for pair in pairs):
        won = {(pair.b, pair.a): pair.win_rate for pair in pairs if pair.judge == judge}
        won |= {(b, a): turned(rate) for (a, b), rate in won.items()}
        names = [name for name in report.policies_compared.policies if any(name in pair for pair in won)]
        rows = [(policy_title(one), [won.get((one, other)) for other in names]) for one in names]
        matrices.append(Matrix(title(judge), [policy_title(name) for name in names], rows))
    return matrices


def turned(rate: Rate) -> Rate:
    """The same comparisons seen from the other side: a win rate w is 1 - w there."""

    def rest(value: float | None) -> float | None:
        return None if value is None else 1 - value

    ends = {"value": rest(rate.value), "ci_low": rest(rate.ci_high), "ci_high": rest(rate.ci_low)}
    return rate.model_copy(update=ends)


def strengths(report: CompareReport) -> list[dict[str, Any]]:
    """Bradley-Terry strengths of each judge on one common axis: {judge, rows: [(policy, figures, bar)], note}."""
    found = report.policies_compared.strengths
    numbers = [
        value
        for rows in found.values()
        for figures in rows.values()
        for value in (figures.value, figures.ci_low, figures.ci_high)
        if value is not None and math.isfinite(value)
    ]
    if not numbers:
        return []
    low, high = min(*numbers, 0.0), max(*numbers, 0.0)
    rim = 0.05 * (high - low) or 1.0
    span = low - rim, high + rim
    views = []
    for judge, rows in found.items():
        ordered = sorted(rows.items(), key=lambda item: -(item[1].value if item[1].value is not None else -1e9))
        drawn = [
            (
                policy_title(name),
                figures,
                plots.interval_bar(figures.value, figures.ci_low, figures.ci_high, 0.0, span)
                if figures.value is not None
                else Markup(""),
            )
            for name, figures in ordered
        ]
        note = report.policies_compared.notes.get(judge, "")
        views.append({"judge": title(judge), "rows": drawn, "note": note})
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
    measured = report.policies_compared.measures
    policies = {name: measured[name] for name in dict.fromkeys(("sft", "aligned", *measured))}
    rows = []
    for key, what, meaning, form in MEASURES:
        values = [value_of(getattr(figures, key)) for figures in policies.values()]
        if any(value is not None for value in values):
            rows.append((what, meaning, [measure(value, form, "not measured") for value in values]))
    kl = report.kl_nats
    budget = "" if report.kl_budget is None else f"; budget {quantity(report.kl_budget, 1)}"
    told = f"how far it moved, on its own answers, {kl.samples_per_prompt} per prompt{budget}"
    said = ["0" if name == "sft" else _distance(name, figures.kl_nats) for name, figures in policies.items()]
    rows.append(("KL to the SFT policy, nats per answer", told, said))
    per_token = {"sft": "0", "aligned": quantity(report.kl_nats_per_token, 3)}
    said = [per_token.get(name, "\N{EN DASH}") for name in policies]
    rows.append(("KL to the SFT policy, nats per token", "", said))
    said = [percent(report.identical_completions) if name == "aligned" else "" for name in policies]
    rows.append(("Same answer as SFT, token by token", "of the answers drawn with the same random numbers", said))
    return Measures([policy_title(name) for name in policies], rows)


def _distance(name: str, figures: Estimate | None) -> str:
    """Of best of n it is reckoned, and a bound from above."""
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


def length_histogram(rows: Sequence[Mapping[str, Any]]) -> Markup:
    series = [
        plots.Series(name, style, [answer["num_tokens"] for row in rows for answer in row[policy]])
        for name, policy, style in (("SFT", "sft", "s-reference"), ("aligned", "aligned", "s-aligned"))
    ]
    return plots.histogram(series, "tokens")


# ---- Checks -----------------------------------------------------------------------------------------------------


def check_views(report: CompareReport) -> list[dict[str, Any]]:
    """What both policies could do before and after, check by check, with McNemar's test."""
    rows = []
    for name, check in report.checks.items():
        test = check.mcnemar
        notes = [check.prompts]
        if check.left_out:
            notes.append(f"{check.left_out} left out, since a stage trained on them")
        if check.unsupported:
            notes.append(f"not supported by the verifier: {_told(check.unsupported, False)}")
        if check.left_out or check.unverified:
            notes.append(f"leaves {check.sft.n}")
        notes.append(f"verified by {check.verifier}")
        rows.append(
            {
                "title": CHECKS.get(name, title(name)),
                "note": "; ".join(notes),
                "sft": check.sft,
                "aligned": check.aligned,
                "only_sft": test.only_sft,
                "only_aligned": test.only_aligned,
                "p": p_value(test.p_value),
                "worse": test.p_value < 0.05 and test.only_sft > test.only_aligned,
            }
        )
    return rows


CHECKS = {"ifeval": "IFEval: instructions followed, strictly", "gsm8k": "GSM8K: final number right"}

# ---- Checkpoints ------------------------------------------------------------------------------------------------


def checkpoint_view(report: CompareReport) -> dict[str, Any]:
    """Score against KL on the way of the alignment: a picture by each judge, and a table of the steps."""
    checkpoints = report.checkpoints
    if not checkpoints:
        return {}
    budget, chosen = report.kl_budget, report.chosen_by_budget and report.chosen_by_budget.step
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
    rows = [
        {"at": at, "chosen": at.step == chosen, "over": budget is not None and number(at.kl_nats) > budget}
        for at in checkpoints
    ]
    return {"charts": charts, "rows": rows, "budget": budget, "chosen": chosen}


# ---- Prompts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerView:
    html: Markup
    """Empty where there is nothing but white space to read."""
    finished: bool
    notes: list[str]
    """Number of tokens, and the score of each judge."""


@dataclass(frozen=True)
class Side:
    title: str
    style: str
    answers: list[AnswerView]


@dataclass(frozen=True)
class PromptView:
    id: str
    prompt: list[Mapping[str, Any]]
    line: str
    """What was asked, on one line."""
    category: str
    shares: dict[str, float | None]
    verdicts: list[tuple[str, str, Markup]]
    """(judge, what it says, bar)."""
    sides: list[Side]
    compared: bool
    """Whether the first answers show what differs."""
    others: list[Side]


def prompt_view(row: Mapping[str, Any]) -> PromptView:
    """Everything that was said to one prompt, and who judged it how."""
    shares = row.get("win_share") or {}
    verdicts = [
        (
            title(judge),
            leans(share),
            plots.shares_bar([("won", share), ("lost", 1 - share)] if share is not None else [], 8),
        )
        for judge, share in shares.items()
    ]
    sft, aligned = row["sft"], row["aligned"]
    pair = marked(sft[0]["text"], aligned[0]["text"]) if sft and aligned else None
    before, after = pair if pair else (None, None)
    others = [
        Side(policy_title(name), "other", [_answer(said) for said in answers])
        for name, answers in row["others"].items()
    ]
    asked = next((turn["content"] for turn in reversed(row["prompt"]) if turn["role"] == "user"), "")
    return PromptView(
        row["prompt_id"],
        row["prompt"],
        " ".join(asked.split()) or "(no question)",
        row.get("category") or "",
        dict(shares),
        verdicts,
        [
            Side("SFT", "reference", [_answer(said, before if i == 0 else None) for i, said in enumerate(sft)]),
            Side("Aligned", "aligned", [_answer(said, after if i == 0 else None) for i, said in enumerate(aligned)]),
        ],
        pair is not None,
        others,
    )


def _answer(said: Mapping[str, Any], html: Markup | None = None) -> AnswerView:
    notes = [f"{said['num_tokens']} tokens"] if said.get("num_tokens") is not None else []
    for judge, score in (said.get("scores") or {}).items():
        if score is not None:
            notes.append(f"{title(judge)} {decimals(score, 2)}")
    if html is None:
        html = seen(said["text"]) if said["text"].strip() else Markup("")
    return AnswerView(html, bool(said.get("finished", True)), notes)


def pick_examples(
    rows: Sequence[Mapping[str, Any]], judge: str, seed: int
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """A few prompts of each kind, drawn by the seed and not by eye: (kind, rows). Others fill up where ties are few."""
    draw = random.Random(seed)

    def some(of: Iterable[Mapping[str, Any]], count: int = EXAMPLES) -> list[Mapping[str, Any]]:
        listed = list(of)
        return draw.sample(listed, min(count, len(listed)))

    judged = [(row, row["win_share"][judge]) for row in rows if (row.get("win_share") or {}).get(judge) is not None]
    won = some(row for row, share in judged if share > 0.5)
    lost = some(row for row, share in judged if share < 0.5)
    tied = some(row for row, share in judged if share == 0.5)
    shown = {row["prompt_id"] for row in (*won, *lost, *tied)}
    filled = some((row for row in rows if row["prompt_id"] not in shown), EXAMPLES - len(tied))
    kinds = [("The aligned policy wins more of the comparisons", won), ("The SFT policy wins more of them", lost)]
    kinds += [("Neither wins more", tied), ("Drawn from all others", filled)]
    return [(kind, chosen) for kind, chosen in kinds if chosen]
