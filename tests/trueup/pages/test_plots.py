"""Plots: round ticks, honest smoothing, and nothing in them that is not a number or escaped text."""

from __future__ import annotations

import math

import pytest

from trueup.pages import plots


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


def test_parts_of_a_whole_fill_a_bar_whatever_they_add_up_to() -> None:
    bar = plots.shares_bar([("won", 3), ("tied", 0), ("lost", 1)])
    assert 'class="won" x="0.00%" width="75.00%"' in bar and 'class="lost" x="75.00%" width="25.00%"' in bar
    assert "tied" not in bar
    assert plots.shares_bar([("won", 0), ("lost", 0)]) == plots.shares_bar([]) == ""


def test_an_interval_bar_can_stand_on_any_axis() -> None:
    bar = plots.interval_bar(0.0, -1.0, 1.0, 0.0, (-2.0, 2.0))
    assert 'class="interval" x1="25.00%" x2="75.00%"' in bar and 'cx="50.00%"' in bar


def test_a_trace_names_its_points_shades_what_is_over_the_limit_and_survives_what_is_no_number() -> None:
    points = [
        plots.Point(0.0, 1.0, "<0>", "on"),
        plots.Point(2.0, 3.0, "9", "chosen", 2.5, 3.5),
        plots.Point(math.nan, 1, "", ""),
    ]
    made = plots.trace(points, "KL", "reward", 1.0)
    assert "&lt;0&gt;" in made and made.count("<circle") == 2 and made.count("whisker") == 1
    assert 'class="beyond"' in made and "nan" not in made
    assert "beyond" not in plots.trace(points, "KL", "reward")
    assert plots.trace([], "KL", "reward") == ""
    assert "nan" not in plots.trace([plots.Point(0.0, 1.0, "0", "on")], "KL", "reward", 0.0)
