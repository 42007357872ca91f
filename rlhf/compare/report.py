"""The campaign's report: one HTML page that needs nothing else, made from what the stages left on disk.

Every text on it is escaped, since a model's answer may be anything. The page's own policy lets it run the one script
that ships with the package (`trueup.pages.wording`), which filters the list of prompts, and forbids every request;
without the script the list is a list."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from rlhf.compare import report_views
from rlhf.compare.schema import ComparedCompletion, CompareReport, PromptComparison
from rlhf.compare.verdict import ANOTHER_ROUND
from rlhf.html import environment, policy_title
from trueup import runs
from trueup.artifacts.manifest import Manifest
from trueup.artifacts.reports import RewardCard
from trueup.data.records import Message, read_rows
from trueup.data.visible import seen
from trueup.errors import RunError
from trueup.files import write_atomically
from trueup.models.policies import origin
from trueup.models.templates.block import inside
from trueup.pages import curves, plots
from trueup.pages.worddiff import marked
from trueup.pages.wording import decimals, leans, title
from trueup.runs import StageRun
from trueup.stages import command, title_of

TEMPLATE = "compare/report.html.jinja"
MOST_PROMPTS = 500
"""The page lists so many prompts; samples.jsonl has all."""
EXAMPLES = 4
"""Prompts shown of each kind: won, lost, undecided."""


def write_report(run_dir: Path, compare: StageRun | None = None) -> None:
    """Write compare/report.html.

    compare  the compare stage at work, which has no manifest yet; without it the stage must be finished
    """
    directory = runs.stage_dir(run_dir, "compare")
    page = render(gather(run_dir, compare))
    write_atomically(directory / "report.html", page)


def render(context: Mapping[str, object]) -> str:
    """The page as text."""
    return environment().get_template(TEMPLATE).render(context)


# ---- What is on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageView:
    """A stage as the report shows it."""

    stage: str
    folder: str
    manifest: Manifest
    sha256: str | None
    """None: the stage that is writing this page."""


def gather(run_dir: Path, compare: StageRun | None = None) -> dict[str, object]:
    """Everything that the template shows."""
    directory = runs.stage_dir(run_dir, "compare")
    report = runs.read_report(run_dir, "compare", CompareReport)
    if report is None:
        raise RunError(f"{directory / runs.REPORT}: missing; run `{command(run_dir, 'compare')}` again")
    rows = read_rows(directory / "samples.jsonl", PromptComparison)
    stages = read_stages(run_dir, compare)
    first = report.verdict.judge or next(iter(report.judges))
    seed = report.decoding.seed
    reward = runs.find_stage(run_dir, "reward")
    views = {row.prompt_id: prompt_view(row) for row in rows[:MOST_PROMPTS]}
    return {
        "name": title_of(run_dir),
        "origin": origin(run_dir),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "report": report,
        "decoding": report.decoding.facts,
        "verdict": report_views.verdict_view(report),
        "last_round": next((f.message for f in stages[-1].manifest.verdict.findings if f.code == ANOTHER_ROUND), None),
        "judges": report_views.judge_views(report),
        "by_category": report_views.by_category(report),
        "matrices": report_views.all_pairs(report),
        "strengths": report_views.strengths(report),
        "checks": report_views.check_views(report),
        "checkpoints": report_views.checkpoint_view(report),
        "categories": sorted({row.category or "" for row in rows[:MOST_PROMPTS]}),
        "first_judge": first,
        "sources": [(source, count, report_views.SOURCES.get(source, "")) for source, count in report.sources.items()],
        "labels": sum(report.sources.values()),
        "measures": report_views.measures(report),
        "accuracies": report_views.accuracies(reward.report(RewardCard) if reward else None),
        "lengths": length_histogram(rows),
        "curves": [(view.stage, charts) for view in stages if (charts := curves.stage_curves(run_dir, view.stage))],
        "examples": [
            (kind, [views.get(row.prompt_id) or prompt_view(row) for row in examples])
            for kind, examples in pick_examples(rows, first, seed)
        ],
        "prompts": list(views.values()),
        "total_prompts": len(rows),
        "stages": stages,
        "findings": [(view.stage, finding) for view in stages for finding in view.manifest.verdict.findings],
        "total_s": sum(view.manifest.duration_s for view in stages),
        "seed": seed,
    }


def read_stages(run_dir: Path, compare: StageRun | None) -> list[StageView]:
    """Every finished stage in order, and the compare stage at work."""
    views = []
    for stage, folder in runs.DIRECTORIES.items():
        if compare is not None and stage == compare.config.stage:
            views.append(StageView(stage, folder, compare.manifest([]), None))
        elif found_stage := runs.find_stage(run_dir, stage):
            views.append(StageView(stage, folder, found_stage.manifest, found_stage.sha256))
    return views


# ---- Prompts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerView:
    """An answer as the page shows it."""

    html: Markup
    """Empty where there is nothing but white space to read."""
    finished: bool
    notes: list[str]
    """Number of tokens, and the score of each judge."""
    reasoning: str
    """What a model that reasons wrote before it."""


@dataclass(frozen=True)
class Side:
    """The answers of one policy."""

    title: str
    style: str
    answers: list[AnswerView]


@dataclass(frozen=True)
class PromptView:
    """A prompt with all answers to it."""

    id: str
    prompt: list[Message]
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


def prompt_view(row: PromptComparison) -> PromptView:
    """All answers to one prompt, and how each judge saw them."""
    verdicts = [
        (
            title(judge),
            leans(share),
            plots.shares_bar([("won", share), ("lost", 1 - share)] if share is not None else [], 8),
        )
        for judge, share in row.win_share.items()
    ]
    pair = marked(row.sft[0].text, row.aligned[0].text) if row.sft and row.aligned else None
    before, after = pair if pair else (None, None)
    others = [
        Side(policy_title(name), "other", [_answer(completion) for completion in answers])
        for name, answers in row.others.items()
    ]
    question = next((turn.content for turn in reversed(row.prompt) if turn.role == "user"), "")
    return PromptView(
        row.prompt_id,
        row.prompt,
        " ".join(question.split()) or "(no question)",
        row.category or "",
        row.win_share,
        verdicts,
        [
            Side("SFT", "reference", [_answer(one, before if i == 0 else None) for i, one in enumerate(row.sft)]),
            Side("Aligned", "aligned", [_answer(one, after if i == 0 else None) for i, one in enumerate(row.aligned)]),
        ],
        pair is not None,
        others,
    )


def _answer(completion: ComparedCompletion, html: Markup | None = None) -> AnswerView:
    notes = [f"{completion.num_tokens} tokens"]
    notes += [f"{title(judge)} {decimals(score, 2)}" for judge, score in completion.scores.items()]
    if html is None:
        html = seen(completion.text) if completion.text.strip() else Markup("")
    return AnswerView(html, completion.finished, notes, inside(completion.reasoning))


def pick_examples(rows: Sequence[PromptComparison], judge: str, seed: int) -> list[tuple[str, list[PromptComparison]]]:
    """A few prompts of each kind, drawn by the seed and not by eye: (kind, rows). Others fill up where ties are few."""
    draw = random.Random(seed)

    def some(of: Iterable[PromptComparison], count: int = EXAMPLES) -> list[PromptComparison]:
        pool = list(of)
        return draw.sample(pool, min(count, len(pool)))

    shares = [(row, share) for row in rows if (share := row.win_share.get(judge)) is not None]
    wins = some(row for row, share in shares if share > 0.5)
    losses = some(row for row, share in shares if share < 0.5)
    ties = some(row for row, share in shares if share == 0.5)
    example_ids = {row.prompt_id for row in (*wins, *losses, *ties)}
    others = some((row for row in rows if row.prompt_id not in example_ids), EXAMPLES - len(ties))
    kinds = [("The aligned policy wins more of the comparisons", wins), ("The SFT policy wins more of them", losses)]
    kinds += [("Neither wins more", ties), ("Drawn from all others", others)]
    return [(kind, examples) for kind, examples in kinds if examples]


def length_histogram(rows: Sequence[PromptComparison]) -> Markup:
    """How long the answers of the SFT and of the aligned policy are."""
    sft = [answer.num_tokens for row in rows for answer in row.sft]
    aligned = [answer.num_tokens for row in rows for answer in row.aligned]
    series = [plots.Series("SFT", "s-reference", sft), plots.Series("aligned", "s-aligned", aligned)]
    return plots.histogram(series, "tokens")
