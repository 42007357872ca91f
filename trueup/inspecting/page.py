"""What is in a file of rows as a page: one file that needs nothing else. Every text of the rows is escaped."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from trueup.artifacts.reports import Estimate
from trueup.inspecting.report import DataReport
from trueup.inspecting.text import FATES, in_words, one_of, places
from trueup.pages.frame import environment
from trueup.pages.wording import how_many

TEMPLATE = "data.html.jinja"


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
                "By category": shares(report.categories),
                "By language": shares(report.languages),
                "By number of questions": shares({str(turns): rows for turns, rows in report.turns.items()}),
                "By annotator": shares(report.judgements.annotators if report.judgements else {}),
            },
        )
    )


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
