"""What is in a file of rows as a page: one file that needs nothing else. Every text of the rows is escaped."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from trueup.artifacts.reports import Estimate
from trueup.inspecting.report import DataReport, Diversity, Histogram, Moved
from trueup.inspecting.text import FATES, answered_anew, figure, how_told, in_neighbours, in_words, one_of, places
from trueup.pages import plots
from trueup.pages.frame import environment
from trueup.pages.wording import how_many, minus, percent

TEMPLATE = "data.html.jinja"
NOW, BEFORE = ("this version", "s-aligned"), ("the other version", "s-reference")
"""The name and the style of a version in the pictures."""


def page_of(report: DataReport) -> str:
    """The HTML of the page."""
    return (
        environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            report=report,
            fates=FATES,
            name=Path(report.path).name,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            count=how_many(report.rows, one_of(report.use)),
            facts=facts(report),
            problems=[(places(one), one.problem) for one in report.problems],
            lengths={what: in_words(spread) for what, spread in report.lengths.items()},
            shares={
                "By kind": shares(report.diversity.kinds.rows),
                "By category": shares(report.categories if report.categories != report.diversity.kinds.rows else {}),
                "By file": shares(report.diversity.files),
                "By language": shares(report.languages),
                "By number of questions": shares({str(turns): rows for turns, rows in report.turns.items()}),
                "By annotator": shares(report.judgements.annotators if report.judgements else {}),
            },
            whole=sum(source.rows for source in report.sources or []),
            told=how_told(report.diversity.kinds, report.diversity.rows),
            charts=charts(report),
            vocabulary=vocabulary(report.diversity),
            near=in_neighbours(report.diversity.neighbours) if report.diversity.neighbours else "",
            moved=[
                (one.name, figure(one, one.before), figure(one, one.after), change(one))
                for one in (report.against.figures if report.against else [])
            ],
            anew=answered_anew(report.against) if report.against else "",
        )
    )


# ---- How varied it is -------------------------------------------------------------------------------------------


def vocabulary(found: Diversity) -> dict[str, str]:
    return {
        f"words {what}": f"of 1,000, {percent(one.type_token)} are different, and {percent(one.distinct_2)} of the "
        f"pairs of neighbours (mean of {how_many(one.windows, 'such part')})"
        for what, one in found.vocabulary.items()
    }


def charts(report: DataReport) -> list[tuple[str, Markup, str]]:
    """Title, picture and explanation of each histogram, over that of the other version if there is one."""
    found, other = report.diversity, report.against.diversity if report.against else None
    drawn = []
    for what, histogram in found.lengths.items():
        picture = in_bins(histogram, other.lengths.get(what) if other else None, "words", doubling=True)
        how = "What is asked in a row." if what == "asked" else "Each answer."
        drawn.append((f"Length of {'what is asked' if what == 'asked' else 'the answers'}", picture, how))
    if found.neighbours:
        before = other.neighbours.alike if other and other.neighbours else None
        how = "Cosine of the words' TF-IDF between each prompt and the one most like it: 1 is the same words."
        drawn.append(
            ("Likeness to the nearest prompt", in_bins(found.neighbours.alike, before, "likeness", False), how)
        )
    return drawn


def in_bins(histogram: Histogram, other: Histogram | None, label: str, doubling: bool) -> Markup:
    """doubling: lengths, whose axis has the same way from 4 to 8 words as from 8 to 16"""
    both = [(name, one) for name, one in ((BEFORE, other), (NOW, histogram)) if one and any(one.counts)]
    series = []
    for (name, style), one in both:
        filled = [i for i, count in enumerate(one.counts) if count]
        first, last = (filled[0], filled[-1] + 1) if doubling else (0, len(one.counts))
        edges = [math.log2(1 + edge) if doubling else edge for edge in one.edges[first : last + 1]]
        shares = [count / sum(one.counts) for count in one.counts[first:last]]
        series.append(plots.Series(name, style, shares, edges))
    ends = [edge for one in series for edge in one.x]
    if not ends or not doubling:
        return plots.stairs(series, label)
    wide = max(ends) - min(ends) > 6
    marks = [(math.log2(1 + 2**n), f"{2**n:,}") for n in range(0, 40, 2 if wide else 1)]
    return plots.stairs(series, label, [mark for mark in marks if min(ends) <= mark[0] <= max(ends)])


def change(one: Moved) -> str:
    """The difference, of a share in points: `+3.0`."""
    if one.before is None or one.after is None:
        return ""
    difference = one.after - one.before
    if not difference:
        return "none"
    if one.share:
        return minus(f"{100 * difference:+z.1f}")
    return minus(f"{difference:+,.0f}" if difference.is_integer() else f"{difference:+z.2f}")


def facts(report: DataReport) -> list[tuple[str, str, str]]:
    """The figures at the head of the page: name, value, note."""
    rows = [("Rows", f"{report.rows:,}", f"{sum(report.left_out.values()):,} left out")]
    rows.append(("Bad rows", f"{report.bad_rows:,}", "cannot be read or rendered" if report.bad_rows else "none"))
    if report.split:
        rows.append(("Held out", f"{report.split.heldout:,}", "by the campaign's split"))
    if report.judgements:
        rows.append(("Pairs", f"{report.judgements.pairs:,}", how_many(report.judgements.ties, "tie")))
    return rows


def shares(counts: dict[str, int]) -> list[tuple[str, int, Estimate]]:
    """The largest groups, each with its count and its share of all; empty where all rows are one."""
    whole = sum(counts.values())
    if len(counts) < 2:
        return []
    return [
        (name, count, Estimate(value=count / whole, ci_low=None, ci_high=None, n=whole))
        for name, count in list(counts.items())[:12]
    ]
