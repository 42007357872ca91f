"""Intervals cover the truth as often as they promise: benchmarks/interval_coverage.py in short.

What may be asserted follows from the number of campaigns: that the 99.9 % interval which they give a share reaches
the bar.
"""

from __future__ import annotations

import numpy as np
import pytest

import interval_coverage
from interval_coverage import BAR, DESIGNS, LEAST, POSITIVE, PROMPTS, RATES, TIES, Design, Positive, Ties
from trueup.statistics.intervals import Interval, wilson


def reaches_the_bar(share: Interval) -> bool:
    wide = wilson(share.value * share.n, share.n, confidence=0.999)
    return wide.low <= BAR[1] and wide.high >= BAR[0]


def together(cells: list[Interval]) -> Interval:
    return wilson(sum(cell.value * cell.n for cell in cells), sum(cell.n for cell in cells))


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_a_win_rate_is_covered_as_often_as_promised(design: Design) -> None:
    cells = [
        interval_coverage.win_rate_coverage(design, rate, prompts, campaigns=60)
        for rate in RATES
        for prompts in PROMPTS
    ]
    assert all(map(reaches_the_bar, cells))
    assert reaches_the_bar(together(cells))


def test_an_interval_that_is_too_narrow_would_be_seen() -> None:
    cells = [interval_coverage.win_rate_coverage(DESIGNS[-1], rate, 50, campaigns=60, confidence=0.8) for rate in RATES]
    assert not reaches_the_bar(together(cells))


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_the_campaigns_have_the_win_rate_that_they_claim(design: Design) -> None:
    for rate in RATES:
        made = np.nanmean(design.campaign(np.random.default_rng(0), rate, 40_000))
        assert made == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("ties", TIES, ids=str)
def test_with_any_share_of_ties_and_few_prompts_a_win_rate_is_covered_as_often_as_promised(ties: Ties) -> None:
    made = np.mean(ties.campaign(np.random.default_rng(0), 200_000))
    assert made == pytest.approx(ties.rate, abs=0.003), "the campaigns have the win rate that they claim"
    cells = [interval_coverage.tied_coverage(ties, prompts, campaigns=60) for prompts in (20, 24, 50)]
    assert all(wilson(cell.value * cell.n, cell.n, 0.999).high >= LEAST for cell, *_ in cells)
    assert together([cell for cell, *_ in cells]).high >= LEAST
    # It stays of use: at most as wide as Bonett and Price's, and where half of the prompts differ hardly wider.
    for prompts, (_, half, _, resampled) in zip((20, 24, 50), cells, strict=True):
        assert half <= resampled + 1.4 / (prompts + 2)
        assert ties.share > 0.5 or half <= 1.25 * resampled


def test_resamples_alone_are_too_sure_of_ties() -> None:
    _, _, resampled, _ = interval_coverage.tied_coverage(Ties(0.95, 1.0), 20, campaigns=60)
    assert resampled.high < 0.8


@pytest.mark.parametrize("values", POSITIVE, ids=str)
def test_a_mean_that_is_never_negative_is_covered_as_often_as_promised(values: Positive) -> None:
    drawn = values.draw(np.random.default_rng(0), (1000, 1000)).mean()
    assert drawn == pytest.approx(values.mean, rel=0.02)
    cells = [interval_coverage.positive_coverage(values, prompts, campaigns=60) for prompts in (24, 90)]
    assert all(wilson(cell.value * cell.n, cell.n, 0.999).high >= values.held_to for cell, *_ in cells)
    assert together([cell for cell, *_ in cells]).high >= values.held_to


def test_percentiles_of_resamples_are_too_sure_of_a_heavy_tail() -> None:
    _, _, resampled, _ = interval_coverage.positive_coverage(POSITIVE[-1], 24, campaigns=100)
    assert resampled.high < 0.93


def test_bradley_terry_strengths_are_covered_as_often_as_promised() -> None:
    assert all(map(reaches_the_bar, interval_coverage.bradley_terry_coverage(50, campaigns=100).values()))


def test_wilsons_interval_covers_as_often_as_promised() -> None:
    assert all(BAR[0] <= interval_coverage.wilson_coverage(rate, n) <= BAR[1] for rate in RATES for n in PROMPTS)


def test_a_change_of_the_detectable_size_is_found_four_times_in_five() -> None:
    _, found = interval_coverage.power(DESIGNS[-1], 50, campaigns=200)
    wide = wilson(found.value * found.n, found.n, confidence=0.999)
    assert wide.low <= 0.8 <= wide.high


@pytest.mark.parametrize("noise", [0.0, 20.0])
def test_of_a_judge_that_only_likes_length_the_raw_rate_alarms_and_the_controlled_one_does_not(noise: float) -> None:
    raw, controlled, wrong, right = interval_coverage.false_alarms(50, 2, noise, campaigns=150)
    assert raw > 0.7 and wrong.value > 0.99
    assert abs(controlled - 0.5) < 0.05
    assert wilson(right.value * right.n, right.n, confidence=0.999).low <= 0.05
    assert right.value < 0.12
