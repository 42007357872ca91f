"""The tables of the statistics, for the admin's page, its CSV files and `trueup labels stats`."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trueup.pages import wording
from ui.figures.schema import Figures
from ui.figures.view import NO_LABELS, READING_WORDS_PER_S
from ui.figures.worth import BAR

Row = Mapping[str, Any]
"""Cells by column: numbers, texts, times, and shares with their intervals."""
Kind = Literal["text", "count", "number", "seconds", "points", "share", "coefficient", "time"]


@dataclass(frozen=True)
class Column:
    """`share` and `coefficient` cells hold a value with its interval; in a CSV they are four columns."""

    key: str
    head: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Sheet:
    """A table. Cells are unrounded values, and `shown` turns them into text."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    empty: str = "Nothing yet."


_PAIRS = Column("items", "Pairs", "count")
_LABELS = Column("labels", "Labels", "count")


def sheets(figures: Figures) -> dict[str, Sheet]:
    """All tables of `ui.figures.figures.figures`, by name."""
    tables = [
        _progress(figures),
        _habits(figures),
        _agreement(figures),
        _pairs(figures),
        _people(figures),
        _worth(figures),
        _excluded(figures),
        _flags(figures),
        _hours(figures),
        _drift(figures),
    ]
    return {sheet.name: sheet for sheet in tables}


def _progress(figures: Figures) -> Sheet:
    progress = figures["progress"]
    values = [
        ("Labels", progress["labels"], "count"),
        ("Labels wanted", progress["target"], "count"),
        ("Waiting for an annotator", progress["slots"]["open"], "count"),
        ("With annotators now", progress["slots"]["leased"], "count"),
        ("Annotators", progress["annotators"], "count"),
        ("Annotators at work", progress["annotators_now"], "count"),
        ("Labels per hour, now", progress["labels_per_hour"], "number"),
        ("Labels per hour, over hours with labels", progress["labels_per_busy_hour"], "number"),
        ("Hours left at this pace", progress["eta_h"], "number"),
        ("Seconds per label, median", progress["seconds"], "seconds"),
    ]
    rows = [{"what": what, "value": value, "kind": kind} for what, value, kind in values]
    return Sheet("progress", "Progress", [Column("what", "What"), Column("value", "Value", "number")], rows)


HABITS = {
    "left": ("The left answer is chosen", "sides are drawn at random, so this should be one half"),
    "longer": ("The longer answer is chosen", "in characters; interval over pairs"),
    "tie": ("Tie", "interval over pairs"),
    "both_bad": ("Both bad", "interval over pairs"),
    "too_fast": ("Faster than reading", f"less than the words need at {READING_WORDS_PER_S:.0f} a second"),
    "gold": ("Right on gold items", "hidden items with a known answer"),
    "consistency": ("The same again", "hidden repeats with sides swapped"),
    "qualification": ("Right in the qualification", "practice with feedback"),
}


def _habits(figures: Figures) -> Sheet:
    rows = []
    for key, (what, meaning) in HABITS.items():
        share = figures["overall"][key]
        rows.append(
            {"what": what, "share": share, "p": share.get("p"), "chance": share.get("chance"), "meaning": meaning}
        )
    columns = [Column("what", "Share of labels"), Column("share", "Share", "share"), Column("p", "p", "coefficient")]
    note = (
        "95 % intervals: Wilson, or a bootstrap over pairs where it says so. p: two-sided binomial test against chance."
    )
    return Sheet("habits", "How people label", [*columns, Column("meaning", "Of what")], rows, note)


def _agreement(figures: Figures) -> Sheet:
    rows = [
        {"measure": row["measure"], "of": row["of"], "figure": row, "items": row["n"], "labels": row["labels"]}
        for row in figures["agreement"]
    ]
    for program in figures["programs"]:
        same = program["same"]
        measure = f"People agree with {program['annotator']}"
        rows.append(
            {"measure": measure, "of": "best answer", "figure": same, "items": same["n"], "labels": same["labels"]}
        )
    columns = [
        Column("measure", "Measure"),
        Column("of", "Of"),
        Column("figure", "Value", "coefficient"),
        _PAIRS,
        _LABELS,
    ]
    note = "Bootstrap over pairs. 1: always the same; 0: as by chance. The share of equal labels ignores chance."
    return Sheet("agreement", "Agreement", columns, rows, note)


def _pairs(figures: Figures) -> Sheet:
    columns = [
        Column("a", "Annotator"),
        Column("b", "and"),
        _PAIRS,
        Column("equal", "Equal", "share"),
        Column("kappa", "Cohen’s kappa", "coefficient"),
    ]
    note = "The eight annotators with the most labels." if len(figures["annotators"]) > 8 else ""
    return Sheet(
        "pairs", "Agreement of two", columns, figures["pairs"], note, "No pair has labels of two annotators yet."
    )


def _people(figures: Figures) -> Sheet:
    names = any(one["name"] for one in figures["annotators"])
    columns = [
        Column("annotator", "Annotator"),
        *([Column("name", "Name")] if names else []),
        _LABELS,
        Column("seconds", "Seconds", "seconds"),
        Column("too_fast", "Too fast", "share"),
        Column("left", "Left", "share"),
        Column("longer", "Longer", "share"),
        Column("tie", "Tie", "share"),
        Column("both_bad", "Both bad", "share"),
        Column("agreement", "As others", "share"),
        Column("gold", "Gold", "share"),
        Column("consistency", "The same again", "share"),
        Column("qualification", "Qualification", "share"),
        Column("skips", "Skipped", "count"),
        Column("flags", "Flagged", "count"),
        Column("late", "Late", "count"),
        Column("undone", "Undone", "count"),
        Column("last_utc", "Last seen", "time"),
    ]
    note = "Seconds are medians. As others: share of the other labels of the same pairs that are equal."
    return Sheet("annotators", "People", columns, figures["annotators"], note, "Nobody has labelled yet.")


def _worth(figures: Figures) -> Sheet:
    columns = [
        Column("quantity", "Figure"),
        Column("share", "Now", "share"),
        Column("half_width", "± points", "points"),
        Column("half_width_after", "± after 100 more", "points"),
        Column("labels_to_bar", f"More labels to ±{100 * BAR:.0f}", "count"),
    ]
    return Sheet("worth", "Is another hundred labels worth buying?", columns, figures["worth"]["quantities"])


def _excluded(figures: Figures) -> Sheet:
    columns = [Column("what", "What"), Column("events", "Number", "count"), Column("why", "Why")]
    return Sheet("excluded", "Not among the labels", columns, figures["excluded"])


def _flags(figures: Figures) -> Sheet:
    columns = [Column("reason", "Reason"), Column("flags", "Flags", "count")]
    return Sheet("flags", "Reasons of flags", columns, figures["flags"], empty="No flags.")


def _hours(figures: Figures) -> Sheet:
    columns = [
        Column("hour_utc", "Hour (UTC)", "time"),
        _LABELS,
        Column("annotators", "Annotators", "count"),
    ]
    return Sheet("hours", "Labels per hour", columns, figures["hours"], "The last 72 hours of labelling.")


def _drift(figures: Figures) -> Sheet:
    columns = [
        Column("first", "From label", "count"),
        Column("last", "To label", "count"),
        Column("from_utc", "Since (UTC)", "time"),
        Column("left", "Left", "share"),
        Column("longer", "Longer", "share"),
        Column("tie", "Tie", "share"),
        Column("seconds", "Seconds", "seconds"),
    ]
    return Sheet("drift", "Drift", columns, figures["drift"])


# ---- As text ----------------------------------------------------------------------------------------------------

UNKNOWN = "–"


def shown(value: Any, kind: Kind) -> str:
    """The text of a cell."""
    if kind in ("share", "coefficient") and isinstance(value, dict):
        return _interval(value, kind)
    if value is None:
        return UNKNOWN
    if kind == "count":
        return f"{value:,}"
    if kind == "seconds":
        return f"{value:.1f} s"
    if kind == "number":
        return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:,.1f}"
    if kind == "points":
        return f"{100 * value:.1f}"
    if kind == "coefficient":
        return f"{value:.3f}" if value >= 0.001 else "under 0.001"
    if kind == "time":
        return str(value)[:16].replace("T", " ")
    return str(value)


def _interval(cell: Row, kind: Kind) -> str:
    value, low, high, note = (cell.get(key) for key in ("value", "ci_low", "ci_high", "note"))
    if value is None:
        return UNKNOWN if note in (None, NO_LABELS) else note
    return wording.in_brackets(value, low, high, kind == "share", note or "no interval")


def cell_text(row: Row, column: Column) -> str:
    """The text of one cell; a row may have its own kind of value."""
    return shown(row[column.key], row.get("kind", column.kind) if column.key == "value" else column.kind)


def as_csv(sheet: Sheet) -> str:
    """The sheet with unrounded numbers; a cell with an interval becomes value, low, high and n."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    heads: list[str] = []
    for column in sheet.columns:
        heads += [column.key + suffix for suffix in (_SPREAD if _is_spread(sheet, column) else ("",))]
    writer.writerow(heads)
    for row in sheet.rows:
        cells: list[Any] = []
        for column in sheet.columns:
            value = row[column.key]
            if _is_spread(sheet, column):
                cells += [value.get(key) for key in ("value", "ci_low", "ci_high", "n", "note")]
            else:
                cells.append(value)
        writer.writerow([_safe(cell) for cell in cells])
    return out.getvalue()


_SPREAD = ("", "_ci_low", "_ci_high", "_n", "_note")


def _is_spread(sheet: Sheet, column: Column) -> bool:
    return any(isinstance(row[column.key], dict) for row in sheet.rows)


def _safe(cell: Any) -> Any:
    """The cell, with a leading quote if a spreadsheet would run it as a formula (OWASP: CSV injection).

    The check ignores what a spreadsheet ignores: blanks and invisible characters, and the difference between signs and
    their wide forms (U+FF1D is an =).
    """
    if not isinstance(cell, str):
        return cell
    visible = unicodedata.normalize("NFKC", "".join(char for char in cell if unicodedata.category(char)[0] not in "CZ"))
    risky = visible.lstrip("\u00ad\u034f\u180e\u2800\u3164'\"").startswith(("=", "+", "-", "@", "\u2212", "|", "%"))
    return f"'{cell}" if risky or cell.startswith(("\t", "\r", "\n")) else cell


_WIDTH = 60
"""Most characters of a cell in plain text."""


def as_text(sheet: Sheet) -> str:
    """The sheet in columns of plain text; long cells are cut and end with an ellipsis."""
    if not sheet.rows:
        return f"{sheet.title}\n  {sheet.empty}"
    table = [[column.head for column in sheet.columns]]
    table += [[_cut(cell_text(row, column)) for column in sheet.columns] for row in sheet.rows]
    sizes = [max(len(line[at]) for line in table) for at in range(len(sheet.columns))]
    left = [column.kind == "text" for column in sheet.columns]
    lines = [
        "  ".join(
            cell.ljust(size) if is_left else cell.rjust(size)
            for cell, size, is_left in zip(line, sizes, left, strict=True)
        ).rstrip()
        for line in table
    ]
    return "\n".join([sheet.title, *(f"  {line}" for line in lines), *([f"  {sheet.note}"] if sheet.note else [])])


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
