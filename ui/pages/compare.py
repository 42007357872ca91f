"""The comparison page: the verdict, what each judge says, and all policies' answers side by side.

Reads compare/report.json and compare/samples.jsonl of a run. Not blind: it is for whoever looks at the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trueup import runs
from trueup.artifacts.manifest import Finding
from trueup.artifacts.reports import ComparisonFigures, ControlledRate, JudgeFigures, Rate
from trueup.data.records import Message, read_jsonl
from trueup.errors import RunError
from trueup.pages import plots
from trueup.pages.worddiff import marked
from trueup.pages.wording import OUTCOMES, independence, leans, noise_floor, sentence
from ui.pages.render import conversation_html, text_html

ALL = "All categories"
ANY, ALIGNED, NEITHER, SFT = "Any", "Aligned", "Neither", "SFT"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which prompts are looked at."""

    category: str = ALL
    winner: str = ANY
    judge: str | None = None
    """By whom `winner` is preferred; None: by the first."""

    def keeps(self, row: Row) -> bool:
        if self.category not in (ALL, row.get("category") or "none"):
            return False
        shares = row.get("win_share") or {}
        share = shares.get(self.judge) if self.judge else next(iter(shares.values()), None)
        if self.winner == ANY:
            return True
        return share is not None and self.winner == (ALIGNED if share > 0.5 else SFT if share < 0.5 else NEITHER)


class Comparison:
    """What the page shows, read at each look, so that a run which goes on is shown as it is."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / "report.json").is_file()

    def report(self) -> ComparisonFigures:
        report = runs.read_report(self.folder.parent, "compare", ComparisonFigures)
        if report is None:
            raise RunError(f"{self.folder / runs.REPORT}: missing; run `trueup compare CONFIG` again")
        return report

    def judges(self) -> list[str]:
        """None of a report that cannot be read: the page says what is wrong with it where the verdict stands."""
        try:
            return list(self.report().judges)
        except RunError:
            return []

    def summary_html(self, links: Sequence[tuple[str, str]] = ()) -> str:
        return summary_html(self.report(), self.findings(), links)

    def findings(self) -> list[Finding]:
        """What the stage found, the verdict among it; in its manifest, and so there only when it is finished."""
        try:
            found = runs.find_stage(self.folder.parent, "compare")
        except RunError:
            return []
        return found.manifest.verdict.findings if found else []

    def samples(self, wanted: Wanted | None = None) -> list[dict[str, Any]]:
        path = self.folder / "samples.jsonl"
        rows = [row for _, row in read_jsonl(path)] if path.is_file() else []
        return [row for row in rows if wanted is None or wanted.keeps(row)]


# ---- Parts of the page ------------------------------------------------------------------------------------------


def guarded(build: Callable[..., str], *arguments: Any) -> str:
    """A part of the page, or a sentence where the files do not hold what a comparison writes: a run is data."""
    try:
        return build(*arguments)
    except RunError as error:
        return f'<div class="tu tu-page tu-body"><p class="tu-empty">{escape(str(error))}</p></div>'
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = escape(f"This part of the comparison cannot be shown: its files are not as written ({error!r:.200}).")
        return f'<div class="tu tu-page tu-body"><p class="tu-empty">{said}</p></div>'


def summary_html(report: ComparisonFigures, findings: Sequence[Finding], links: Sequence[tuple[str, str]] = ()) -> str:
    """The verdict, what else was found, where to go from here, and one row per judge."""
    verdict = report.verdict
    label, tone = OUTCOMES[verdict.outcome]
    others = "".join(
        f"<li>{escape(finding.message)}</li>" for finding in findings if finding.message != verdict.message
    )
    ways = "".join(f'<li><a href="{escape(href)}">{escape(title)}</a></li>' for href, title in links)
    return (
        '<div class="tu tu-page tu-head"><h1>Comparison</h1>'
        f'<nav class="tu-nav" aria-label="Pages"><ul><li><a href="/">Start</a></li>{ways}</ul></nav>'
        f'<div class="tu-verdict {escape(tone)}"><span class="tu-eyebrow">Verdict</span>'
        f'<p class="tu-outcome">{escape(label)}</p><p class="tu-message">{escape(sentence(verdict))}</p>'
        f"{f'<ul>{others}</ul>' if others else ''}</div>"
        f"{_judges(report)}</div>"
    )


def _judges(report: ComparisonFigures) -> str:
    confidence = f"{100 * report.confidence:.0f}% interval"
    heads = [("Judge", ""), ("Aligned preferred", "number"), (confidence, "number"), ("At equal length", "number")]
    columns = "".join(f'<th scope="col" class="{style}">{head}</th>' for head, style in heads)
    rows = [_judge_row(name, figures) for name, figures in report.judges.items()]
    if shown := noise_floor(report):
        by, floor = shown
        told = f"the noise floor, by {by.replace('_', ' ')}: its interval should hold 50%"
        rows.append(_figures_row("SFT against itself", f"<small>{escape(told)}</small>", floor, None))
    return (
        '<div class="tu-scroll" role="region" aria-label="Win rates" tabindex="0">'
        f'<table class="tu-figures tu-judges"><thead><tr>{columns}'
        '<th scope="col"><span class="tu-hide">Interval, and won / tied / lost</span></th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _judge_row(name: str, judge: JudgeFigures) -> str:
    independent, meaning = independence(name, judge)
    notes = f"<small>{escape(judge.description)}</small>"
    notes += f'<small class="{"yes" if independent else "no"}">{escape(meaning)}</small>'
    return _figures_row(name.replace("_", " "), notes, judge.win_rate, judge.length_controlled_win_rate)


def _figures_row(title: str, notes: str, rate: Rate, controlled: ControlledRate | None) -> str:
    head = f'<th scope="row">{escape(title)}{notes}</th>'
    value, low, high = rate.value, rate.ci_low, rate.ci_high
    if value is None:
        return f'<tr>{head}<td colspan="4">no figures</td></tr>'
    interval = "unknown" if low is None or high is None else f"{100 * low:.1f}% to {100 * high:.1f}%"
    equal = controlled.value if controlled else None
    counts = [("won", rate.wins), ("tied", rate.ties), ("lost", rate.losses)]
    counted = "".join(f"<span>{count} {kind}</span>" for kind, count in counts)
    shares = plots.shares_bar(counts, 6)
    return (
        f'<tr>{head}<td class="number">{100 * value:.1f}%</td><td class="number">{interval}</td>'
        f'<td class="number">{"–" if equal is None else f"{100 * equal:.1f}%"}</td>'
        f'<td class="drawn">{plots.interval_bar(value, low, high)}{shares}<small>{counted}</small></td></tr>'
    )


def sample_html(samples: Sequence[Row], index: int, diff: bool = False) -> str:
    """One prompt, whom each judge prefers on it, and every answer; `diff` marks word by word what differs."""
    if not samples:
        return '<div class="tu tu-page tu-body"><p class="tu-empty">No prompt is like that.</p></div>'
    row = samples[index]
    prompt = conversation_html([Message(**message) for message in row["prompt"]])
    both = zip(row.get("sft") or [], row.get("aligned") or [], strict=False)
    pairs = "".join(_pair(before, after, diff) for before, after in both)
    legend = (
        '<p class="tu-legend">Marked: <del>words of the SFT policy alone</del>, <ins>words of the aligned one alone'
        "</ins>. Answers with hardly a word in common are not marked.</p>"
    )
    return (
        f'<div class="tu tu-page tu-body"><div class="tu-card tu-prompt-card">{prompt}</div>{_leanings(row)}'
        f"{legend if diff else ''}{pairs}{_others(row)}</div>"
    )


def _leanings(row: Row) -> str:
    said = "".join(
        f"<li>{escape(judge.replace('_', ' '))}<b>{leans(share)}</b>"
        f"{plots.shares_bar([('won', share), ('lost', 1 - share)], 6) if share is not None else ''}</li>"
        for judge, share in (row.get("win_share") or {}).items()
    )
    return f'<ul class="tu-leans" aria-label="Preferred, by judge">{said}</ul>' if said else ""


def _pair(before: Row, after: Row, diff: bool) -> str:
    shown = marked(str(before["text"]), str(after["text"])) if diff else None
    first, second = shown if shown else (None, None)
    return f'<div class="tu-pair">{_answer("SFT", before, first)}{_answer("Aligned", after, second)}</div>'


def _others(row: Row) -> str:
    """The further policies' first answers."""
    answers = {name: said for name, said in (row.get("others") or {}).items() if said}
    cards = "".join(_answer(name.replace("_", " "), said[0]) for name, said in answers.items())
    names = ", ".join(name.replace("_", " ") for name in answers)
    if not cards:
        return ""
    return (
        f'<details class="tu-others"><summary>Other policies: {escape(names)}</summary>'
        f'<div class="tu-pair">{cards}</div></details>'
    )


def _answer(title: str, answer: Row, marks: str | None = None) -> str:
    scores = (answer.get("scores") or {}).items()
    notes = [f"{escape(str(answer['num_tokens']))} tokens"] if answer.get("num_tokens") is not None else []
    notes += [
        f"{escape(name.replace('_', ' '))} {float(score):.2f}".replace("-", "\N{MINUS SIGN}")
        for name, score in scores
        if score is not None
    ]
    if answer.get("finished") is False:
        notes.append("cut at the limit")
    meta = f'<p class="tu-meta">{" · ".join(notes)}</p>' if notes else ""
    said = text_html(str(answer.get("text", ""))) if marks is None else marks
    style = "tu-text" if marks is None else "tu-text tu-raw"
    return (
        f'<article class="tu-card"><h2>{escape(title)}</h2><div class="{style}" dir="auto">{said}</div>{meta}</article>'
    )


# ---- The page ---------------------------------------------------------------------------------------------------


def compare_blocks(comparison: Comparison, links: Callable[[], Sequence[tuple[str, str]]]) -> gr.Blocks:
    """Everything is filled by handlers: what stands in a component at build time is in the page's /config.

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
        shown, asked = [at, pair, position], [category, winner, judge, diff]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        blocks.load(look, None, [summary, category, judge, *shown], **quiet)
        for filtered in (category, winner, judge):
            filtered.input(lambda *wanted: move(0, *wanted), asked, shown, **quiet)
        diff.input(lambda index, *wanted: move(index, *wanted), [at, *asked], shown, **quiet)
        back.click(lambda index, *wanted: move(index - 1, *wanted), [at, *asked], shown, **quiet)
        on.click(lambda index, *wanted: move(index + 1, *wanted), [at, *asked], shown, **quiet)
    return blocks
