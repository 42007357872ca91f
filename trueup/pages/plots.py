"""Plots as inline SVG, for pages that must stand alone: without script, and without fonts or images from elsewhere.

Colours are CSS classes (`s-reference`, `s-aligned`, ...), so that a page suits a light and a dark screen. A chart is
340 units wide and scales with its box. An interval bar stretches, so it holds no text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from trueup.pages.wording import axis

_WIDTH, _HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 34


@dataclass(frozen=True)
class Series:
    """A named line or set of values. `style` is the CSS class of its colour."""

    name: str
    style: str
    y: Sequence[float]
    x: Sequence[float] = ()


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> Markup:
    """Lines over steps: all points as a thin line, their moving mean over a tenth of the steps as a thick one."""
    points = [(x, y) for line in series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup("")
    axes = _Axes(
        (min(x for x, _ in points), max(x for x, _ in points)), (min(y for _, y in points), max(y for _, y in points))
    )
    parts = [axes.draw(x_label)]
    for line in series:
        finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        smooth = moving_mean([y for _, y in finite], max(1, len(finite) // 10))
        parts.append(axes.path(finite, f"raw {line.style}"))
        parts.append(axes.path([(x, y) for (x, _), y in zip(finite, smooth, strict=True)], f"mean {line.style}"))
    names = ", ".join(line.name for line in series)
    return _svg(parts, f"{y_label} over {x_label}: {names}")


def histogram(series: Sequence[Series], x_label: str, bins: int = 16) -> Markup:
    """Shares of each series' values in common bins, drawn over each other."""
    values = [value for line in series for value in line.y]
    if not values:
        return Markup("")
    low, high = math.floor(min(values)), math.ceil(max(values)) + 1
    edges = np.linspace(low, high, min(bins, high - low) + 1)
    shares = [np.histogram(line.y, edges)[0] / max(1, len(line.y)) for line in series]
    bins_of = [
        Series(line.name, line.style, part.tolist(), edges.tolist()) for line, part in zip(series, shares, strict=True)
    ]
    return stairs(bins_of, x_label)


def stairs(series: Sequence[Series], x_label: str, marks: Sequence[tuple[float, str]] | None = None) -> Markup:
    """Shares of bins, drawn over each other: `y` of a series are the shares, and `x` the ends of its bins.

    marks  places on the axis below with their texts; None: round numbers
    """
    ends = [x for line in series for x in line.x]
    if not ends:
        return Markup("")
    axes = _Axes((min(ends), max(ends)), (0.0, max(float(max(line.y)) for line in series)))
    parts = [axes.draw(x_label, percent=True, marks=marks)]
    for line in series:
        corners = [(line.x[0], 0.0)]
        for left, right, value in zip(line.x, line.x[1:], line.y, strict=False):
            corners += [(left, value), (right, value)]
        parts.append(axes.path([*corners, (line.x[-1], 0.0)], f"area {line.style}"))
    return _svg(parts, f"histogram of {x_label}: {', '.join(line.name for line in series)}")


def interval_bar(
    value: float,
    low: float | None,
    high: float | None,
    middle: float | None = 0.5,
    span: tuple[float, float] = (0.0, 1.0),
) -> Markup:
    """A figure with its interval on an axis over `span`, and a line at `middle`, where there is no difference."""

    def at(x: float) -> str:
        return f"{100 * (x - span[0]) / (span[1] - span[0]):.2f}%"

    parts = [_element("line", "axis", x1=0, x2="100%", y1="50%", y2="50%")]
    if middle is not None:
        parts.append(_element("line", "middle", x1=at(middle), x2=at(middle), y1=0, y2="100%"))
    if low is not None and high is not None:
        parts.append(_element("line", "interval", x1=at(low), x2=at(high), y1="50%", y2="50%"))
    parts.append(_element("circle", "value", cx=at(value), cy="50%", r=5))
    return _element("svg", "bar", *parts, width="100%", height=22, aria_hidden="true")


def shares_bar(parts: Sequence[tuple[str, float]], height: int = 14) -> Markup:
    """Parts of a whole side by side, each as (CSS class, size). Sizes need not add up to 1. No bar if all are 0."""
    total = math.fsum(size for _, size in parts)
    if not total > 0:
        return Markup("")
    rects, at = [], 0.0
    for style, size in parts:
        if size > 0:
            wide = 100 * size / total
            rects.append(_element("rect", style, x=f"{at:.2f}%", width=f"{wide:.2f}%", y=0, height="100%"))
            at += wide
    return _element("svg", "shares", *rects, width="100%", height=height, aria_hidden="true")


@dataclass(frozen=True)
class Point:
    """A place in a picture with a name beside it."""

    x: float
    y: float
    name: str
    style: str
    low: float | None = None
    high: float | None = None
    """Interval of y."""


def trace(points: Sequence[Point], x_label: str, y_label: str, limit: float | None = None) -> Markup:
    """Named points, joined in their order. `limit` draws a line at that x and shades the area beyond it."""
    finite = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not finite:
        return Markup("")
    right = max([point.x for point in finite] + ([limit] if limit is not None else []))
    left = min(0.0, *(point.x for point in finite))
    ends = [y for point in finite for y in (point.y, point.low, point.high) if y is not None]
    heights = min(ends), max(ends)
    axes = _Axes((left, right + 0.06 * (right - left)), heights, room=0.16)
    parts: list[Markup] = []
    if limit is not None:
        x, _ = axes.at(limit, finite[0].y)
        width, height = _WIDTH - _RIGHT - x, _HEIGHT - _BOTTOM - _TOP
        parts.append(_element("rect", "beyond", x=x, y=_TOP, width=width, height=height))
    parts.append(axes.draw(x_label))
    if limit is not None:
        parts.append(_element("line", "limit", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM))
    parts.append(axes.path([(point.x, point.y) for point in finite], "join"))
    for point in finite:
        x, y = axes.at(point.x, point.y)
        if point.low is not None and point.high is not None:
            (_, bottom), (_, top) = axes.at(point.x, point.low), axes.at(point.x, point.high)
            parts.append(_element("line", "whisker", x1=x, x2=x, y1=bottom, y2=top))
        parts.append(_element("circle", f"point {point.style}", cx=x, cy=y, r=4))
        # Beside the point, since whiskers stand above and below it.
        inward = x > _WIDTH - 60
        anchor, beside = ("end", x - 8) if inward else ("start", x + 8)
        parts.append(_element("text", "name", point.name, x=beside, y=y - 7, text_anchor=anchor))
    return _svg(parts, f"{y_label} over {x_label}: {', '.join(point.name for point in finite)}")


def against_diagonal(points: Sequence[Point], x_label: str, y_label: str, span: tuple[float, float]) -> Markup:
    """Points of shares over x in `span`, each with its interval and its name. On the diagonal the two are equal."""
    if not points:
        return Markup("")
    axes = _Axes(span, (0.0, 1.0), room=0.04)
    parts = [axes.draw(x_label, percent=True), axes.path([(end, end) for end in span], "diagonal")]
    for point in points:
        x, y = axes.at(point.x, point.y)
        if point.low is not None and point.high is not None:
            (_, bottom), (_, top) = axes.at(point.x, point.low), axes.at(point.x, point.high)
            parts.append(_element("line", "whisker", x1=x, x2=x, y1=bottom, y2=top))
        parts.append(_element("circle", f"point {point.style}", cx=x, cy=y, r=4))
        parts.append(_element("text", "name", point.name, x=x - 7, y=y + 14, text_anchor="end"))
    return _svg(parts, f"{y_label} over {x_label}")


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, and over fewer at the ends."""
    before, after = (window - 1) // 2, window // 2
    return [float(np.mean(values[max(0, i - before) : i + after + 1])) for i in range(len(values))]


def ticks(low: float, high: float, least: int = 3) -> list[float]:
    """Round numbers within [low, high], `least` or a few more: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10(high - low))
    steps = (m * power / shift for shift in (1, 10) for m in (5, 2, 1))
    candidates = (
        [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)] for step in steps
    )
    return next(values for values in candidates if len(values) >= least)


@dataclass(frozen=True)
class _Axes:
    """Maps data to picture coordinates."""

    x: tuple[float, float]
    y: tuple[float, float]
    room: float = 0.0
    """Share of the height kept free at both ends, for names."""

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.x, self._padded
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (
            _HEIGHT - _TOP - _BOTTOM
        )

    @property
    def _padded(self) -> tuple[float, float]:
        low, high = self.y
        if high > low:
            return low - self.room * (high - low), high + (self.room or 0.04) * (high - low)
        return low - 0.5, high + 0.5

    def path(self, points: Sequence[tuple[float, float]], style: str) -> Markup:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return _element("polyline", style, points=corners)

    def draw(self, x_label: str, percent: bool = False, marks: Sequence[tuple[float, str]] | None = None) -> Markup:
        parts = []
        levels = ticks(*self._padded)
        for value in levels:
            _, y = self.at(self.x[0], value)
            text = f"{100 * value:.0f} %" if percent else axis(value, levels)
            parts.append(_element("line", "grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
            parts.append(_element("text", "", text, x=_LEFT - 5, y=y + 3.5, text_anchor="end"))
        steps = ticks(*self.x)
        for value, text in marks if marks is not None else [(value, axis(value, steps)) for value in steps]:
            x, _ = self.at(value, self.y[0])
            anchor = "end" if x > _WIDTH - 20 else "middle"  # the last one would be cut in its middle
            parts.append(_element("text", "", text, x=x, y=_HEIGHT - _BOTTOM + 14, text_anchor=anchor))
        parts.append(_element("text", "label", x_label, x=_WIDTH - _RIGHT, y=_HEIGHT - 4, text_anchor="end"))
        return Markup("").join(parts)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    return _element("svg", "chart", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)


_ATTRIBUTE = Markup(' {}="{}"')


def _element(name: str, style: str, *inside: str, **attributes: str | float) -> Markup:
    """An SVG element. Coordinates get one decimal, and whatever is no Markup is escaped."""
    values = {"class": style, **attributes} if style else attributes
    listed = Markup("").join(
        _ATTRIBUTE.format(key.replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value)
        for key, value in values.items()
    )
    if not inside:
        return Markup("<{}{}/>").format(name, listed)
    return Markup("<{0}{1}>{2}</{0}>").format(name, listed, Markup("").join(inside))
