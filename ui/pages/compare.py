"""The comparison page: the verdict, the figures of each judge, and all policies' answers side by side.

It reads compare/report.json and compare/samples.jsonl of a run. It is not blind, since it shows the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trueup import runs
from trueup.artifacts.manifest import Finding
from trueup.artifacts.reports import ComparisonFigures, Rate
from trueup.data.records import Message, read_jsonl
from trueup.data.visible import seen
from trueup.errors import RunError
from trueup.models.policies import origin
from trueup.models.templates.block import inside
from trueup.pages import plots
from trueup.pages.worddiff import marked
from trueup.pages.wording import OUTCOMES, independence, leans, noise_floor, sentence
from trueup.stages import command
from ui.html import render
from ui.pages.gradio_shell import gr
from ui.pages.render import conversation_html, text_html

ALL = "All categories"
ANY, ALIGNED, NEITHER, SFT = "Any", "Aligned", "Neither", "SFT"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A choice of prompts."""

    category: str = ALL
    winner: str = ANY
    judge: str | None = None
    """The judge that prefers `winner`; None: the first judge."""

    def keeps(self, row: Row) -> bool:
        if self.category not in (ALL, row.get("category") or "none"):
            return False
        shares = row.get("win_share") or {}
        share = shares.get(self.judge) if self.judge else next(iter(shares.values()), None)
        if self.winner == ANY:
            return True
        return share is not None and self.winner == (ALIGNED if share > 0.5 else SFT if share < 0.5 else NEITHER)


class Comparison:
    """The content of the page, read for each request, so that it is current while a run continues."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / "report.json").is_file()

    def report(self) -> ComparisonFigures:
        report = runs.read_report(self.folder.parent, "compare", ComparisonFigures)
        if report is None:
            again = command(self.folder.parent, "compare")
            raise RunError(f"{self.folder / runs.REPORT}: missing; run `{again}` again")
        return report

    def judges(self) -> list[str]:
        """Names of the judges; empty if the report cannot be read: then the page shows that in place of the verdict."""
        try:
            return list(self.report().judges)
        except RunError:
            return []

    def summary_html(self, links: Sequence[tuple[str, str]] = ()) -> Markup:
        return summary_html(self.report(), self.findings(), links, origin(self.folder.parent))

    def findings(self) -> list[Finding]:
        """The stage's findings, with the verdict. They are in its manifest, so only a finished stage has them."""
        try:
            stage = runs.find_stage(self.folder.parent, "compare")
        except RunError:
            return []
        return stage.manifest.verdict.findings if stage else []

    def samples(self, selection: Wanted | None = None) -> list[dict[str, Any]]:
        path = self.folder / "samples.jsonl"
        rows = [row for _, row in read_jsonl(path)] if path.is_file() else []
        return [row for row in rows if selection is None or selection.keeps(row)]


# ---- Parts of the page ------------------------------------------------------------------------------------------


def guarded(build: Callable[..., Markup], *arguments: Any) -> Markup:
    """A part of the page, or a sentence if the files are not as a comparison writes them: a run is data."""
    try:
        return build(*arguments)
    except RunError as error:
        return render("compare_note", text=str(error))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        text = f"This part of the comparison cannot be shown: its files have changed ({error!r:.200})."
        return render("compare_note", text=text)


def summary_html(
    report: ComparisonFigures,
    findings: Sequence[Finding],
    links: Sequence[tuple[str, str]] = (),
    origin: str | None = None,
) -> Markup:
    """The verdict, the other findings, links, and one row per judge.

    origin  a sentence on the SFT policy, if nothing was trained for it
    """
    verdict = report.verdict
    label, tone = OUTCOMES[verdict.outcome]
    drawn = Markup('<span class="tu-hide">Interval, and won / tied / lost</span>')
    confidence = f"{100 * report.confidence:.0f}% interval"
    return render(
        "compare_summary",
        links=links,
        label=label,
        tone=tone,
        message=sentence(verdict),
        findings=[
            *(finding.message for finding in findings if finding.message != verdict.message),
            *([origin] if origin else []),
        ],
        heads=[
            ("Judge", ""),
            ("Aligned preferred", "number"),
            (confidence, "number"),
            ("At equal length", "number"),
            (drawn, ""),
        ],
        rows=_judge_rows(report),
        percent=lambda share: f"{100 * share:.1f}%",
    )


@dataclass(frozen=True)
class _JudgeRow:
    """A row of the table of judges."""

    title: str
    notes: Sequence[tuple[str | None, str]]
    """(class, text) of the lines below the title."""
    rate: Rate
    controlled: float | None
    """The win rate at equal length."""

    @property
    def drawn(self) -> Markup:
        rate = self.rate
        assert rate.value is not None
        counts = [("won", rate.wins), ("tied", rate.ties), ("lost", rate.losses)]
        return plots.interval_bar(rate.value, rate.ci_low, rate.ci_high) + plots.shares_bar(counts, 6)


def _judge_rows(report: ComparisonFigures) -> list[_JudgeRow]:
    rows = []
    for name, judge in report.judges.items():
        independent, meaning = independence(name, judge)
        notes = [(None, judge.description), ("yes" if independent else "no", meaning)]
        controlled = judge.length_controlled_win_rate
        rows.append(_JudgeRow(_plain(name), notes, judge.win_rate, controlled.value if controlled else None))
    if floor := noise_floor(report):
        by, rate = floor
        note = f"the noise floor, by {_plain(by)}: its interval should hold 50%"
        rows.append(_JudgeRow("SFT against itself", [(None, note)], rate, None))
    return rows


def _plain(name: str) -> str:
    return name.replace("_", " ")


def sample_html(samples: Sequence[Row], index: int, diff: bool = False) -> Markup:
    """One prompt, each judge's preference, and every answer; `diff` marks differences word by word."""
    if not samples:
        return render("compare_note", text="No prompt fits this choice.")
    row = samples[index]
    others = {name: completions for name, completions in (row.get("others") or {}).items() if completions}
    return render(
        "compare_sample",
        prompt=Markup(conversation_html([Message(**message) for message in row["prompt"]])),
        leanings=[(_plain(judge), leans(share), _bar(share)) for judge, share in (row.get("win_share") or {}).items()],
        diff=diff,
        pairs=[
            _pair(before, after, diff)
            for before, after in zip(row.get("sft") or [], row.get("aligned") or [], strict=False)
        ],
        others=[_card(_plain(name), completions[0]) for name, completions in others.items()],
    )


def _bar(share: float | None) -> Markup:
    return Markup("") if share is None else plots.shares_bar([("won", share), ("lost", 1 - share)], 6)


@dataclass(frozen=True)
class _Card:
    """An answer with its figures."""

    title: str
    text: Markup
    has_marks: bool
    notes: list[str]
    reasoning: Markup
    """What a model that reasons wrote before it."""
    reasoning_words: int


def _pair(before: Row, after: Row, diff: bool) -> list[_Card]:
    """The two answers; words are marked only if the two have enough words in common."""
    marks = marked(str(before["text"]), str(after["text"])) if diff else None
    first, second = marks or (None, None)
    return [_card("SFT", before, first), _card("Aligned", after, second)]


def _card(title: str, answer: Row, marks: Markup | None = None) -> _Card:
    notes = [f"{answer['num_tokens']} tokens"] if answer.get("num_tokens") is not None else []
    notes += [
        f"{_plain(name)} {float(score):.2f}".replace("-", "\N{MINUS SIGN}")
        for name, score in (answer.get("scores") or {}).items()
        if score is not None
    ]
    if answer.get("finished") is False:
        notes.append("cut at the limit")
    text = Markup(text_html(str(answer.get("text", "")))) if marks is None else marks
    reasoning = inside(str(answer.get("reasoning", "")))
    return _Card(title, text, marks is not None, notes, seen(reasoning), len(reasoning.split()))


# ---- The page ---------------------------------------------------------------------------------------------------


def compare_blocks(comparison: Comparison, links: Callable[[], Sequence[tuple[str, str]]]) -> gr.Blocks:
    """The page. Handlers fill it, because values of components at build time are in the page's /config.

    links  (address, title) of the other pages about this result
    """

    def look() -> tuple[Any, ...]:
        names = sorted({row.get("category") or "none" for row in comparison.samples()})
        judges = comparison.judges()
        first = judges[0] if judges else None
        return (
            guarded(comparison.summary_html, links()),
            gr.Dropdown(choices=[ALL, *names], value=ALL),
            gr.Dropdown(choices=[(name.replace("_", " "), name) for name in judges], value=first),
            *move(0, ALL, ANY, first, False),
        )

    def move(index: int, category: str, winner: str, judge: str | None, diff: bool) -> tuple[int, str, str]:
        samples = comparison.samples(Wanted(category, winner, judge))
        index = index % len(samples) if samples else 0
        position = f"{index + 1} of {len(samples)}" if samples else "0 of 0"
        return (
            index,
            guarded(sample_html, samples, index, diff),
            f'<p class="tu tu-position" role="status">{position}</p>',
        )

    with gr.Blocks(analytics_enabled=False, title="Comparison · Trueup", fill_width=True) as blocks:
        at = gr.State(0)
        summary = gr.HTML(elem_id="summary")
        with gr.Row(elem_classes="tu-controls", equal_height=True):
            category = gr.Dropdown(choices=[ALL], value=ALL, label="Category", min_width=120, elem_id="category")
            winner = gr.Dropdown(
                choices=[ANY, ALIGNED, NEITHER, SFT], value=ANY, label="Preferred", min_width=120, elem_id="winner"
            )
            judge = gr.Dropdown(choices=[], label="By which judge", min_width=120, elem_id="judge")
            back = gr.Button("Previous", elem_id="previous", min_width=90)
            position = gr.HTML(elem_id="position", min_width=72)
            on = gr.Button("Next", elem_id="next", min_width=90)
        with gr.Row(elem_classes="tu-controls"):
            diff = gr.Checkbox(label="Mark what differs, word by word", container=False, elem_id="diff")
        pair = gr.HTML(elem_id="pair")
        outputs, filters = [at, pair, position], [category, winner, judge, diff]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        blocks.load(look, None, [summary, category, judge, *outputs], **quiet)
        for filtered in (category, winner, judge):
            filtered.input(lambda *values: move(0, *values), filters, outputs, **quiet)
        diff.input(lambda index, *values: move(index, *values), [at, *filters], outputs, **quiet)
        back.click(lambda index, *values: move(index - 1, *values), [at, *filters], outputs, **quiet)
        on.click(lambda index, *values: move(index + 1, *values), [at, *filters], outputs, **quiet)
    return blocks
