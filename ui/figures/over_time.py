"""Labelling over time: labels by hour, drift of the shares, and the width of intervals."""

from __future__ import annotations

import math

import numpy as np

from ui.figures import agreement
from ui.figures.log import TIE
from ui.figures.schema import Drift, HalfWidths, Hour
from ui.figures.view import HOUR_MS, View, share_of, utc

_HOURS = 72
_STEPS = 24


def labels_by_hour(view: View) -> list[Hour]:
    """The last hours with labels: the number of labels, and of people."""
    hour = view.column("created_ms") // HOUR_MS
    if not len(hour):
        return []
    recent = hour > hour.max() - _HOURS
    hours, labels = np.unique(hour[recent], return_counts=True)
    people = np.unique(hour[recent] * len(view.names) + view.who[recent]) // len(view.names)
    number = np.bincount(np.searchsorted(hours, people))
    return [
        {"hour_utc": utc(int(h) * HOUR_MS), "labels": int(n), "annotators": int(a)}
        for h, n, a in zip(hours, labels, number, strict=True)
    ]


def step_width(labels: int) -> int:
    """Labels per step of the drift: 25, 50, 100, 200, 500, ... so that there are at most 24 steps."""
    width = 25
    for factor in (1, 2, 4, 8, 20, 40, 80, 200, 400, 800, 2000, 4000, 8000, 20000, 40000):
        width = 25 * factor
        if labels <= width * _STEPS:
            break
    return max(width, math.ceil(labels / _STEPS))


def drift(view: View) -> list[Drift]:
    """Shares and seconds over time, in steps of equally many labels."""
    width = step_width(len(view.rows))
    first_shown, longer, seconds = view.column("first_shown"), view.column("chose_longer"), view.column("seconds")
    steps: list[Drift] = []
    for start in range(0, len(view.rows), width):
        part = slice(start, start + width)
        verdict, timed = view.verdict[part], seconds[part][seconds[part] >= 0]
        sided, compared = (first_shown[part] >= 0) & (verdict < TIE), longer[part] >= 0
        steps.append(
            {
                "first": start + 1,
                "last": min(start + width, len(view.rows)),
                "from_utc": utc(int(view.column("created_ms")[start])),
                "left": share_of(int((verdict == first_shown[part])[sided].sum()), int(sided.sum())),
                "longer": share_of(int((longer[part] == 1).sum()), int(compared.sum())),
                "tie": share_of(int((verdict == TIE).sum()), len(verdict)),
                "seconds": float(np.median(timed)) if len(timed) else None,
            }
        )
    return steps


def history(view: View) -> list[HalfWidths]:
    """Half-widths of the intervals with fewer labels. Large campaigns have none: a hundred labels change little."""
    number, longer = len(view.rows), view.column("chose_longer")
    if not 50 <= number <= 50_000:
        return []
    rows: list[HalfWidths] = []
    for first in np.linspace(number / 8, number, 8).astype(int):
        compared = np.flatnonzero(longer[:first] >= 0)
        agree = agreement.raw(view.labels(first))
        long = agreement.share_over_items(view.item[compared], longer[compared] == 1)
        rows.append({"labels": int(first), "agree": _half(agree), "longer": _half(long)})
    return rows


def _half(result: agreement.Agreement) -> float | None:
    return (result.high - result.low) / 2 if result.high is not None and result.low is not None else None
