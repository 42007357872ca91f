"""The admin's page: how labelling goes, whom to look at, and whether more labels are worth their price.

The page itself is one component without a value; what it shows is rendered by `summary_html` and fetched from the API,
where the role is checked, so that nothing of it stands in the page's /config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from trueup.pages.plots import Series, interval_bar, line_chart
from trueup.pages.wording import about
from ui.figures.schema import Figures
from ui.figures.tables import UNKNOWN, Column, Row, Sheet, cell_text, sheets, shown
from ui.figures.worth import BAR

_STATIC = Path(__file__).parents[1] / "static"
_AHEAD = 8
"""Points of a curve that is drawn ahead of the data."""


def admin_blocks() -> gr.Blocks:
    """One component, empty until its script has fetched the summary."""
    with gr.Blocks(analytics_enabled=False, title="Labels · Trueup", fill_width=True) as blocks:
        gr.HTML(
            html_template='<div class="tu tu-page tu-admin" data-state="loading">'
            '<p class="tu-admin-status" role="status">Loading…</p></div>',
            js_on_load=(_STATIC / "admin.js").read_text(encoding="utf-8"),
            apply_default_css=False,
        )
    return blocks


# ---- What the page shows ----------------------------------------------------------------------------------------


def summary_html(found: Figures) -> str:
    """The whole summary; the script replaces those of its parts that have changed."""
    tables = sheets(found)
    parts = [
        _part("head", _head(found)),
        _part("findings", _findings(found["findings"])),
        _part("habits", _section(tables["habits"], _habits(tables["habits"]))),
        _part("agreement", _section(tables["agreement"], _agreement(tables["agreement"])) + _two(tables["pairs"])),
        _part("people", _section(tables["annotators"], _table(tables["annotators"], sortable=True))),
        _part("worth", _section(tables["worth"], _worth(found, tables["worth"]))),
        _part("time", _time(found, tables)),
        _part("excluded", _excluded(tables)),
    ]
    return "".join(parts)


def _part(name: str, content: str) -> str:
    return f'<section class="tu-part" data-part="{name}">{content}</section>'


def _head(found: Row) -> str:
    progress, asof = found["progress"], found["as_of"]
    alpha = next((row for row in found["agreement"] if row["measure"].startswith("Krippendorff")), None)
    wanted, labels = progress["wanted"], progress["labels"]
    eta = about(progress["eta_h"]) if progress["eta_h"] is not None else "unknown"
    why = "" if progress["eta_h"] is not None else "nobody labelled in the last hour"
    if progress["eta_h"]:
        why = f"{progress['slots']['open'] + progress['slots']['leased']:,} labels left at this pace"
    people = f"{progress['annotators']} {'person' if progress['annotators'] == 1 else 'people'}"
    busy = shown(progress["labels_per_busy_hour"], "number")
    tiles = [
        ("Labels", f"{labels:,}", f"of {wanted:,} wanted" if wanted else "no pairs are queued"),
        ("Labels per hour", shown(progress["labels_per_hour"], "number"), f"now; {busy} over hours with labels"),
        (
            "Time left",
            "done" if wanted and progress["eta_h"] == 0 else eta if wanted else UNKNOWN,
            why if wanted else "",
        ),
        ("Seconds per label", shown(progress["seconds"], "number"), "median, from first sight to decision"),
        ("Annotators", f"{progress['annotators_now']}", f"at work now; {people} in all"),
        ("Krippendorff’s alpha", *_coefficient(alpha)),
    ]
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    done = progress["slots"]["done"]
    bar = (
        f'<progress max="{wanted}" value="{done}" aria-label="Labels done">{done} of {wanted}</progress>'
        if wanted
        else ""
    )
    reading = asof["newest"] > asof["event"]
    state = f"reading: as of event {asof['event']:,} of {asof['newest']:,}" if reading else f"{asof['events']:,} events"
    when = escape(shown(asof["now_utc"], "time"))
    return (
        f'<div class="tu-admin-top"><h1>Labels</h1><p>{when} UTC, {state}{_csv("progress", "Progress")}'
        '<a class="tu-csv" href="/" data-keep="pages">All pages</a></p></div>'
        f"{bar}<dl class=tu-tiles>{cells}</dl>"
    )


def _coefficient(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return UNKNOWN, "once more is read"
    if row["value"] is None:
        return UNKNOWN, row["note"] or ""
    value, _, interval = shown(row, "coefficient").partition(" (")
    return value, interval.removesuffix(")")


def _findings(found: Sequence[Row]) -> str:
    if not found:
        return ""
    by: dict[str | None, list[str]] = {}
    for one in found:
        by.setdefault(one["annotator"], []).append(escape(one["message"]))
    lines = "".join(
        f"<li>{f'<b>{escape(name)}</b> ' if name else ''}{'; '.join(messages)}.</li>" for name, messages in by.items()
    )
    return f'<div class="tu-verdict warn"><strong>Worth a look</strong><ul>{lines}</ul></div>'


def _section(sheet: Sheet, content: str) -> str:
    csv = _csv(sheet.name, sheet.title)
    return f'<div class="tu-part-head"><h2>{escape(sheet.title)}</h2>{csv}</div>{content}'


def _csv(name: str, title: str) -> str:
    href = f"/api/v1/admin/table.csv?what={name}"
    return (
        f'<a class="tu-csv" href="{href}" download data-keep="csv-{name}">CSV'
        f'<span class="tu-hide"> of {escape(title)}</span></a>'
    )


def _habits(sheet: Sheet) -> str:
    """Shares with their intervals drawn; those that nothing is known of are named, without a row each."""
    known = [row for row in sheet.rows if row["share"]["value"] is not None]
    rows = "".join(
        f'<div class="tu-habit"><div class="what">{escape(row["what"])}<small>{escape(_chance(row))}</small></div>'
        f"{interval_bar(row['share']['value'], row['share']['ci_low'], row['share']['ci_high'], row['chance'])}"
        f'<div class="figure">{escape(shown(row["share"], "share"))}<small>n {row["share"]["n"]:,}</small></div></div>'
        for row in known
    )
    unknown = ", ".join(row["what"].lower() for row in sheet.rows if row["share"]["value"] is None)
    if not known:
        return '<p class="tu-empty">No labels yet.</p>'
    missing = f'<p class="tu-note">No labels yet that tell: {escape(unknown)}.</p>' if unknown else ""
    return f'<div class="tu-habits">{rows}</div>{missing}<p class="tu-note">{escape(sheet.note)}</p>'


def _chance(row: Row) -> str:
    return row["meaning"] if row["p"] is None else f"{row['meaning']}; p {_p(row['p'])}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _agreement(sheet: Sheet) -> str:
    if any(row["items"] for row in sheet.rows):
        return _table(sheet)
    return (
        '<p class="tu-empty">Undefined: no pair has two labels yet. Their number is labels_per_pair of the config.</p>'
    )


def _two(sheet: Sheet) -> str:
    if not sheet.rows:
        return ""
    summary = f"<summary data-keep=two>{escape(sheet.title)} ({len(sheet.rows)})</summary>"
    return (
        f'<details class="tu-more" data-open="pairs">{summary}{_csv(sheet.name, sheet.title)}{_table(sheet)}</details>'
    )


def _table(sheet: Sheet, sortable: bool = False) -> str:
    if not sheet.rows:
        return f'<p class="tu-empty">{escape(sheet.empty)}</p>'
    heads = "".join(
        f'<th scope="col"{_class(column)}>{_sorter(sheet, column) if sortable else escape(column.head)}</th>'
        for column in sheet.columns
    )
    rows = "".join(f"<tr>{_cells(sheet, row)}</tr>" for row in sheet.rows)
    note = f'<p class="tu-note">{escape(sheet.note)}</p>' if sheet.note else ""
    return (
        f'<div class="tu-scroll" role="region" aria-label="{escape(sheet.title)}" tabindex="0" '
        f'data-keep="scroll-{sheet.name}"><table class="tu-figures" data-table="{sheet.name}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _sorter(sheet: Sheet, column: Column) -> str:
    return (
        f'<button type="button" data-sort="{column.key}" data-keep="{sheet.name}-{column.key}">{column.head}</button>'
    )


def _class(column: Column) -> str:
    return "" if column.kind in ("text", "time") else ' class="number"'


def _cells(sheet: Sheet, row: Row) -> str:
    cells = []
    for at, column in enumerate(sheet.columns):
        value = row[column.key]
        raw = value.get("value") if isinstance(value, dict) else value
        text, tag = escape(cell_text(row, column)), "th scope=row" if at == 0 else "td"
        if isinstance(value, dict):  # the interval below the value: a table with ten of them stays readable
            figure, _, interval = text.partition(" (")
            small = text if raw is None else interval.removesuffix(")")
            text = f"{'' if raw is None else figure}<small>{small}</small>"
        cells.append(f'<{tag}{_class(column)} data-v="{escape(str("" if raw is None else raw))}">{text}</{tag[:2]}>')
    return "".join(cells)


def _worth(found: Row, sheet: Sheet) -> str:
    worth = found["worth"]
    known = [one for one in worth["quantities"] if one["half_width"] is not None]
    # Without people's labels the reward model's interval may be known, as in a simulated campaign, and nothing narrows.
    if not known or not worth["labels"]:
        return '<p class="tu-empty">Not enough labels to say: no interval is known yet.</p>'
    first = known[0]
    cost = f"about {about(worth['hours'])} of people’s time" if worth["hours"] is not None else "an unknown time"
    gain = (
        f"from ±{100 * first['half_width']:.1f} to ±{100 * first['half_width_after']:.1f} points what is known of "
        f"“{escape(first['quantity'].lower())}”"
    )
    enough = [one for one in known if one["half_width"] <= BAR]
    verdict = (
        f"{len(enough)} of {len(known)} figures are within ±{100 * BAR:.0f} points already."
        if enough
        else f"None of these figures is within ±{100 * BAR:.0f} points yet."
    )
    reward = (
        "Held-out accuracy narrows as far as further labels fall on held-out prompts."
        if worth["reward_model"]
        else "There is no reward model yet; its held-out accuracy joins this table when there is."
    )
    assumes = (
        "Assumes that further labels are like these (intervals narrow with one over the square root of their number) "
        "and take the median time. Both answers of a pair come from one policy, so these labels have no win rate of "
        f"their own. {reward} How much better more labels would make the reward model is not estimated: that takes "
        "refits on parts of the labels."
    )
    return (
        f"<p>A hundred more labels cost {cost} and narrow {gain}. {verdict}</p>"
        f'<div class="tu-beside"><div>{_table(sheet)}<p class="tu-note">{assumes}</p></div>'
        f"{_worth_chart(found, known)}</div>"
    )


def _worth_chart(found: Row, known: Sequence[Row]) -> str:
    labels, series, keys = found["worth"]["labels"], [], []
    ahead = [labels + step * max(100, labels // 2) / _AHEAD for step in range(_AHEAD + 1)]
    for number, one in enumerate(known[:4]):
        style = f"s-{number}"
        past = [row for row in found["history"] if row.get(one["key"]) is not None]
        if len(past) > 1:
            series.append(
                Series(one["quantity"], style, [100 * r[one["key"]] for r in past], [r["labels"] for r in past])
            )
        half = [100 * one["half_width"] * (labels / x) ** 0.5 for x in ahead]
        series.append(Series(f"{one['quantity']}, expected", f"{style} ahead", half, ahead))
        keys.append((one["quantity"], style))
    chart = line_chart(series, "labels", "half-width in points")
    return _figure("Half-width of the interval in points; dashed: expected", chart, keys)


def _time(found: Row, tables: Mapping[str, Sheet]) -> str:
    charts = [_hours_chart(found)]
    drift = found["drift"]
    if len(drift) > 1:
        last = [step["last"] for step in drift]
        named = [("left", "left answer", "s-0"), ("longer", "longer answer", "s-1"), ("tie", "tie", "s-2")]
        shares = [
            Series(
                name,
                style,
                [100 * v if (v := step[key]["value"]) is not None else float("nan") for step in drift],
                last,
            )
            for key, name, style in named
        ]
        keys = [(name, style) for _, name, style in named]
        charts.append(_figure("Percent of labels", line_chart(shares, "labels", "percent"), keys))
        timed = [step for step in drift if step["seconds"] is not None]
        seconds = Series("median", "s-0", [step["seconds"] for step in timed], [step["last"] for step in timed])
        charts.append(_figure("Seconds per label, median", line_chart([seconds], "labels", "seconds")))
    shown_charts = "".join(chart for chart in charts if chart)
    if not shown_charts:
        return f'<h2>Over time</h2><p class="tu-empty">{escape(tables["hours"].empty)}</p>'
    more = "".join(
        f'<details class="tu-more" data-open="{name}"><summary data-keep="more-{name}">{escape(tables[name].title)} '
        f"as a table</summary>{_csv(name, tables[name].title)}{_table(tables[name])}</details>"
        for name in ("hours", "drift")
    )
    return f'<div class="tu-part-head"><h2>Over time</h2></div><div class="tu-charts">{shown_charts}</div>{more}'


def _hours_chart(found: Row) -> str:
    """Labels of each hour as steps, up to now; hours without labels are zero."""
    if not found["hours"]:
        return ""
    now_h = _hours(found["as_of"]["now_utc"])
    made = {int(_hours(row["hour_utc"])): row["labels"] for row in found["hours"]}
    first = max(min(made), int(now_h) - 72)
    x: list[float] = [first - now_h]
    y: list[float] = [0]
    for hour in range(first, int(now_h) + 1):
        x += [hour - now_h, min(hour + 1 - now_h, 0)]
        y += [made.get(hour, 0)] * 2
    x, y = [*x, 0], [*y, 0]
    chart = line_chart([Series("labels", "s-0 steps", y, x)], "hours from now", "labels per hour")
    return _figure("Labels per hour", chart)


def _hours(utc: str) -> float:
    """Since the epoch."""
    return datetime.fromisoformat(utc).timestamp() / 3600


def _figure(title: str, chart: Markup, keys: Sequence[tuple[str, str]] = ()) -> str:
    legend = "".join(f'<span class="key {style}">{escape(name)}</span>' for name, style in keys)
    return f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>{chart}</figure>" if chart else ""


def _excluded(tables: Mapping[str, Sheet]) -> str:
    flags = tables["flags"]
    top = Sheet(flags.name, flags.title, flags.columns, flags.rows[:20])
    rest = len(flags.rows) - len(top.rows)
    more = f'<p class="tu-note">And {rest} other reasons, in the CSV.</p>' if rest > 0 else ""
    reasons = _section(flags, _table(top) + more) if flags.rows else ""
    return _section(tables["excluded"], _table(tables["excluded"])) + reasons
