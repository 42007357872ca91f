"""Plots: round ticks, honest smoothing, and nothing in them that is not a number or escaped text."""

from __future__ import annotations

import math

import pytest

from trueup import plots


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 100, [0, 50, 100]),
        (0, 0.9, [0, 0.2, 0.8]),
        (-61, -58, [-61, -60, -59, -58]),
        (0.06, 0.9, [0.2, 0.8]),
        (2, 2, [2]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, wanted: list[float]) -> None:
    made = plots.ticks(low, high)
    assert all(low <= tick <= high for tick in made)
    assert low == high or 3 <= len(made) <= 7
    assert set(wanted) <= {round(tick, 9) for tick in made}


def test_a_moving_mean_keeps_length_and_constants() -> None:
    assert plots.moving_mean([2.0] * 7, 3) == [2.0] * 7
    assert plots.moving_mean([0, 3, 6], 3) == [1.5, 3, 4.5]
    assert plots.moving_mean([1, 5], 1) == [1, 5]


def test_plots_survive_one_point_no_point_and_what_is_not_a_number() -> None:
    assert "polyline" in plots.line_chart([plots.Series("one", "s", [1.0], [1])], "step", "loss")
    assert plots.line_chart([plots.Series("none", "s", [math.nan], [1])], "step", "loss") == ""
    assert plots.histogram([plots.Series("none", "s", [])], "tokens") == ""
    assert "nan" not in plots.line_chart([plots.Series("some", "s", [1.0, math.inf, 2.0], [1, 2, 3])], "step", "loss")


def test_labels_of_plots_are_escaped() -> None:
    assert "<b>" not in plots.line_chart([plots.Series("<b>", "s", [1.0, 2.0], [1, 2])], "<b>", "<b>")
