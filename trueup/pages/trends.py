"""Trends: whether a metric in a stage's metrics.jsonl moved by more than its noise.

Smaller changes do not count, so that the notes of a page do not come and go with the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trueup.pages import plots

Row = Mapping[str, object]

ENOUGH_STEPS = 10
"""Steps from which we say where a curve goes."""
SURE, STILL = 3.0, 2.0
"""A change above SURE standard errors is reported, below STILL it is called none; between the two we say nothing."""


@dataclass(frozen=True)
class Trend:
    """Where a metric begins and ends, and whether it moved by more than chance."""

    first: float
    last: float
    """Means of the first and the last tenth, at least three steps each."""
    z: float
    """Change from the first third of the steps to the last, in its standard errors: thirds see through more noise."""

    @property
    def rose(self) -> bool:
        return self.z > SURE

    @property
    def fell(self) -> bool:
        return self.z < -SURE

    @property
    def still(self) -> bool:
        return abs(self.z) < STILL


def rose(values: Sequence[float]) -> Trend | None:
    """How the values moved, where they rose by more than chance."""
    movement = trend(values)
    return movement if movement and movement.rose else None


def points(rows: Sequence[Row], *keys: str) -> tuple[list[float], list[float]]:
    """Steps and values of the first of these metrics that the rows have, without values that are not finite numbers."""
    for key in keys:
        pairs = [(_number(row.get("step")), _number(row.get(key))) for row in rows]
        finite = [(step, value) for step, value in pairs if step is not None and value is not None]
        if finite:
            return [step for step, _ in finite], [value for _, value in finite]
    return [], []


def trend(values: Sequence[float]) -> Trend | None:
    """How the values moved, or None with too few steps to tell."""
    if len(values) < ENOUGH_STEPS:
        return None
    third, tenth = len(values) // 3, max(3, len(values) // 10)
    before, after = np.asarray(values[:third]), np.asarray(values[-third:])
    change = float(after.mean() - before.mean())
    noise = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / third)
    tiny = 1e-9 * max(1.0, float(np.abs(values).max()))  # rounding changes a constant by less
    z = change / max(noise, tiny) if abs(change) > tiny else 0.0
    return Trend(float(np.mean(values[:tenth])), float(np.mean(values[-tenth:])), z)


def rises_at_the_end(values: Sequence[float]) -> tuple[int, float, float] | None:
    """(index of the lowest mean, that mean, the last mean) if the curve turned upwards in its first four fifths and
    its end is above its low by more than three standard errors of a mean over a tenth of the steps."""
    if len(values) < 2 * ENOUGH_STEPS:
        return None
    window = max(3, len(values) // 10)
    smooth = plots.moving_mean(values, window)
    inner = smooth[window : len(smooth) - window // 2]  # means at both ends are over fewer steps
    low = int(np.argmin(inner)) + window
    last = float(np.mean(values[-window:]))
    noise = float(np.std(np.asarray(values) - np.asarray(smooth))) * math.sqrt(2 / window)
    if low < 0.8 * len(values) and last - smooth[low] > max(3 * noise, 1e-9):
        return low, smooth[low], last
    return None


def at_the_end(values: Sequence[float]) -> float | None:
    """Mean of the last tenth, at least three steps, or None with too few steps to tell."""
    return float(np.mean(values[-max(3, len(values) // 10) :])) if len(values) >= ENOUGH_STEPS else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
