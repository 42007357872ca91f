"""What another round of labels would probably add."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trueup.statistics.intervals import Interval
from trueup.statistics.win_rates import margin_interval


def gain(before: Sequence[np.ndarray], now: Sequence[np.ndarray], confidence: float = 0.95, seed: int = 0) -> Interval:
    """The win rate of one policy minus that of an earlier one, both against the same reference, paired by prompt.

    before, now  P tables of outcomes, as `win_rates.outcomes` makes them; a prompt that is NaN throughout in either
                 does not count
    returns      in [-1, 1]
    """
    both = [
        (np.nanmean(new), np.nanmean(old))
        for old, new in zip(before, now, strict=True)
        if not (np.isnan(old).all() or np.isnan(new).all())
    ]
    if not both:
        return Interval(math.nan, -1.0, 1.0, 0)
    halves = np.array([new - old for new, old in both]) / 2
    half, _ = margin_interval(halves, np.ones(len(halves)), confidence, seed, 10_000)
    return Interval(2 * half.value, 2 * half.low, 2 * half.high, half.n)


def expected_gain(last: Interval, labels_before: int, labels_now: int, more: int) -> Interval:
    """What `more` labels would add, if the win rate is a straight line over the logarithm of the labels.

        gain = last gain * log((now + more) / now) / log(now / before)

    last                       what the last round added
    labels_before, labels_now  labels that the two policies learnt from, 0 < before < now

    Source: each doubling of the labels adds about the same to a reward model's accuracy, Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325, section 4.3. The interval knows the last gain's noise and not whether the line
    holds.
    """
    factor = math.log((labels_now + more) / labels_now) / math.log(labels_now / labels_before)
    return Interval(factor * last.value, factor * last.low, factor * last.high, last.n)
