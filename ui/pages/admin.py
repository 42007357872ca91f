"""The admin's page: progress of labelling, findings on annotators, and whether more labels are worth their price.

The page is one component without a value. Its script fetches the result of `summary_html` from the API, which checks
the role, so that the page's /config contains none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from markupsafe import Markup

from trueup.pages.plots import Series, interval_bar, line_chart
from trueup.pages.wording import about
from ui.figures.schema import Figures
from ui.figures.tables import UNKNOWN, Column, Row, Sheet, cell_text, sheets, shown
from ui.figures.worth import BAR
from ui.html import STATIC, render
from ui.pages.gradio_shell import gr, one_component

_AHEAD = 8
"""Points of a curve beyond the data."""


def admin_blocks() -> gr.Blocks:
    """One component, empty until its script has fetched the summary."""
    html = (
        '<div class="tu tu-page tu-admin" data-state="loading">'
        '<p class="tu-admin-status" role="status">Loading…</p></div>'
    )
    return one_component("Labels", html, (STATIC / "admin.js").read_text(encoding="utf-8"))


# ---- What the page shows ----------------------------------------------------------------------------------------


def summary_html(figures: Figures, news: str | None = None) -> Markup:
    """The whole summary; the script replaces the parts that have changed.

    news  what happens beside the page, by which the queue still grows
    """
    tables = sheets(figures)
    habits, flags = tables["habits"].rows, tables["flags"]
    return render(
        "admin_summary",
        tables=tables,
        cells=_cells,
        tiles=_tiles(figures, grows=news is not None),
        when=shown(figures["as_of"]["now_utc"], "time"),
        state=_state(figures["as_of"]),
        news=news,
        target=figures["progress"]["target"],
        filled=figures["progress"]["slots"]["filled"],
        findings=_findings(figures["findings"]),
        habits=[_habit(row) for row in habits if row["share"]["value"] is not None],
        untold=[row["what"].lower() for row in habits if row["share"]["value"] is None],
        worth=_worth(figures),
        charts=_charts(figures),
        flags=replace(flags, rows=flags.rows[:20]),
    )


def _state(asof: Row) -> str:
    if asof["newest"] > asof["event"]:
        return f"reading: as of event {asof['event']:,} of {asof['newest']:,}"
    return f"{asof['events']:,} events"


def _tiles(figures: Row, grows: bool) -> list[tuple[str, str, str]]:
    """(name, value, note) of the figures at the top; `grows`: further pairs come."""
    progress = figures["progress"]
    alpha = next((row for row in figures["agreement"] if row["measure"].startswith("Krippendorff")), None)
    target, labels = progress["target"], progress["labels"]
    eta = about(progress["eta_h"]) if progress["eta_h"] is not None else "unknown"
    why = "" if progress["eta_h"] is not None else "nobody labelled in the last hour"
    if progress["eta_h"]:
        why = f"{progress['slots']['open'] + progress['slots']['leased']:,} labels left at this pace"
    target_note = "no pairs are queued" if not target else f"of {target:,} wanted{' so far' if grows else ''}"
    left = (UNKNOWN, "") if not target else ("done" if progress["eta_h"] == 0 else eta, why)
    if grows:
        left = (UNKNOWN, "further pairs come")
    people = f"{progress['annotators']} {'person' if progress['annotators'] == 1 else 'people'}"
    busy = shown(progress["labels_per_busy_hour"], "number")
    return [
        ("Labels", f"{labels:,}", target_note),
        ("Labels per hour", shown(progress["labels_per_hour"], "number"), f"now; {busy} over hours with labels"),
        ("Time left", *left),
        ("Seconds per label", shown(progress["seconds"], "number"), "median, from first sight to decision"),
        ("Annotators", f"{progress['annotators_now']}", f"at work now; {people} in all"),
        ("Krippendorff’s alpha", *_coefficient(alpha)),
    ]


def _coefficient(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return UNKNOWN, "once more is read"
    if row["value"] is None:
        return UNKNOWN, row["note"] or ""
    value, _, interval = shown(row, "coefficient").partition(" (")
    return value, interval.removesuffix(")")


def _findings(findings: Sequence[Row]) -> dict[str | None, list[str]]:
    """The messages about each annotator; None: about all."""
    messages: dict[str | None, list[str]] = {}
    for finding in findings:
        messages.setdefault(finding["annotator"], []).append(finding["message"])
    return messages


def _habit(row: Row) -> Row:
    """A share with a bar of its interval."""
    share = row["share"]
    bar = interval_bar(share["value"], share["ci_low"], share["ci_high"], row["chance"])
    return {"what": row["what"], "meaning": _chance(row), "bar": bar, "share": shown(share, "share"), "n": share["n"]}


def _chance(row: Row) -> str:
    return row["meaning"] if row["p"] is None else f"{row['meaning']}; p {_p(row['p'])}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _cells(sheet: Sheet, row: Row) -> Iterator[tuple[Column, Any, str, str | None]]:
    """(column, unrounded value, text, interval) of each cell. The interval is below the value, so that a table with ten
    of them stays readable."""
    for column in sheet.columns:
        value, text = row[column.key], cell_text(row, column)
        if not isinstance(value, dict):
            yield column, "" if value is None else value, text, None
        elif (raw := value.get("value")) is None:
            yield column, "", "", text
        else:
            figure, _, interval = text.partition(" (")
            yield column, raw, figure, interval.removesuffix(")")


def _worth(figures: Row) -> Row | None:
    """The cost of a hundred more labels and their effect on intervals; None: no interval is known."""
    worth = figures["worth"]
    quantities = [one for one in worth["quantities"] if one["half_width"] is not None]
    # Without people's labels, as in a simulated campaign, only the reward model may have an interval, which stays.
    if not quantities or not worth["labels"]:
        return None
    first = quantities[0]
    enough = [one for one in quantities if one["half_width"] <= BAR]
    return {
        "cost": f"about {about(worth['hours'])} of people’s time" if worth["hours"] is not None else "an unknown time",
        "gain": f"the interval of “{first['quantity'].lower()}” from ±{100 * first['half_width']:.1f} to "
        f"±{100 * first['half_width_after']:.1f} points",
        "verdict": f"{len(enough)} of {len(quantities)} figures are within ±{100 * BAR:.0f} points already."
        if enough
        else f"None of these figures is within ±{100 * BAR:.0f} points yet.",
        "reward": "Held-out accuracy narrows as far as further labels fall on held-out prompts."
        if worth["reward_model"]
        else "There is no reward model yet; its held-out accuracy joins this table when there is.",
        "chart": _worth_chart(figures, quantities),
    }


_Chart = tuple[str, Markup, Sequence[tuple[str, str]]]
"""The title, the picture, and (name, style) of its lines if they need a legend."""


def _worth_chart(figures: Row, quantities: Sequence[Row]) -> _Chart:
    labels, series, keys = figures["worth"]["labels"], [], []
    ahead = [labels + step * max(100, labels // 2) / _AHEAD for step in range(_AHEAD + 1)]
    for number, one in enumerate(quantities[:4]):
        style = f"s-{number}"
        past = [row for row in figures["history"] if row.get(one["key"]) is not None]
        if len(past) > 1:
            series.append(
                Series(one["quantity"], style, [100 * r[one["key"]] for r in past], [r["labels"] for r in past])
            )
        half = [100 * one["half_width"] * (labels / x) ** 0.5 for x in ahead]
        series.append(Series(f"{one['quantity']}, expected", f"{style} ahead", half, ahead))
        keys.append((one["quantity"], style))
    chart = line_chart(series, "labels", "half-width in points")
    return "Half-width of the interval in points; dashed: expected", chart, keys


def _charts(figures: Row) -> list[_Chart]:
    """The charts over time that have something to show."""
    charts: list[_Chart] = [("Labels per hour", _hours_chart(figures), ())]
    drift = figures["drift"]
    if len(drift) > 1:
        last = [step["last"] for step in drift]
        lines = [("left", "left answer", "s-0"), ("longer", "longer answer", "s-1"), ("tie", "tie", "s-2")]
        shares = [
            Series(
                name,
                style,
                [100 * v if (v := step[key]["value"]) is not None else float("nan") for step in drift],
                last,
            )
            for key, name, style in lines
        ]
        keys = [(name, style) for _, name, style in lines]
        charts.append(("Percent of labels", line_chart(shares, "labels", "percent"), keys))
        timed = [step for step in drift if step["seconds"] is not None]
        seconds = Series("median", "s-0", [step["seconds"] for step in timed], [step["last"] for step in timed])
        charts.append(("Seconds per label, median", line_chart([seconds], "labels", "seconds"), ()))
    return [chart for chart in charts if chart[1]]


def _hours_chart(figures: Row) -> Markup:
    """Labels of each hour as steps, up to now; hours without labels are zero."""
    if not figures["hours"]:
        return Markup("")
    now_h = _hours(figures["as_of"]["now_utc"])
    by_hour = {int(_hours(row["hour_utc"])): row["labels"] for row in figures["hours"]}
    first = max(min(by_hour), int(now_h) - 72)
    x: list[float] = [first - now_h]
    y: list[float] = [0]
    for hour in range(first, int(now_h) + 1):
        x += [hour - now_h, min(hour + 1 - now_h, 0)]
        y += [by_hour.get(hour, 0)] * 2
    x, y = [*x, 0], [*y, 0]
    return line_chart([Series("labels", "s-0 steps", y, x)], "hours from now", "labels per hour")


def _hours(utc: str) -> float:
    """Hours since the epoch."""
    return datetime.fromisoformat(utc).timestamp() / 3600
