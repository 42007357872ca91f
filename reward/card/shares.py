"""Shares over prompts: each prompt weighs the same, however many pairs it has, and intervals are over prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from trueup.artifacts.reports import Share, number
from trueup.data.records import Preference
from trueup.statistics.intervals import Interval, draws, percentiles
from trueup.statistics.win_rates import margin_interval, win_rate


def half_for_ties(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def by_prompt(pairs: Sequence[Preference], values: Sequence[float]) -> list[float]:
    """The mean value of the pairs of each prompt."""
    groups: dict[str, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        groups.setdefault(pair.prompt_id, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def mean_over_prompts(pairs: Sequence[Preference], values: Sequence[float]) -> float:
    means = by_prompt(pairs, values)
    return sum(means) / len(means)


def over_prompts(pairs: Sequence[Preference], right: Sequence[float]) -> Interval:
    """The mean over prompts of the mean of `right` on each."""
    return win_rate([[mean] for mean in by_prompt(pairs, right)]).interval


def share_of(pairs: Sequence[Preference], share: Interval) -> Share:
    """The share for the report, where `n` counts pairs."""
    return Share(**{**dict(share.estimate()), "n": len(pairs), "prompts": share.n})


def difference_over_prompts(pairs: Sequence[Preference], right: Sequence[float], other: Sequence[float]) -> Interval:
    """Accuracy minus that of another, paired by prompt; between -1 and 1."""
    halves = np.array(by_prompt(pairs, [a - b for a, b in zip(right, other, strict=True)])) / 2
    half, _ = margin_interval(halves, np.ones(len(halves)), 0.95, 0, 10_000)
    return Interval(2 * half.value, 2 * half.low, 2 * half.high, half.n)


def difference_of_parts(pairs: Sequence[Preference], right: Sequence[float], is_first: Sequence[bool]) -> Interval:
    """Accuracy on a part of the pairs minus that on the rest; between -1 and 1. Prompts are drawn whole, as they may
    have pairs in both. `n` counts the prompts of the smaller part; with one there is no interval."""
    ids = sorted({pair.prompt_id for pair in pairs})
    sums, sizes = np.zeros((2, 2, len(ids)))  # by part and prompt
    for pair, value, first in zip(pairs, right, is_first, strict=True):
        sums[int(not first), ids.index(pair.prompt_id)] += value
        sizes[int(not first), ids.index(pair.prompt_id)] += 1
    there = (sizes > 0).astype(float)  # (2, P)
    means = sums / np.maximum(sizes, 1)
    first, second = (means.sum(axis=1) / there.sum(axis=1)).tolist()
    fewest = int(there.sum(axis=1).min())
    if fewest < 2:
        return Interval(first - second, -1.0, 1.0, fewest)
    resamples = np.concatenate(list(draws(len(ids), 10_000, 0)))  # (R, P)
    with np.errstate(invalid="ignore"):
        by_part = (resamples @ means.T) / (resamples @ there.T)
    differences = by_part[:, 0] - by_part[:, 1]
    low, high = percentiles(differences[~np.isnan(differences)], 0.95, fewest)
    return Interval(first - second, low, high, fewest)


def by_slice(pairs: Sequence[Preference], right: Sequence[float], key: Callable[[Preference], str]) -> dict[str, Share]:
    """The share in each slice of the pairs, in the order of their names, and of the numbers in these."""
    slices: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        slices.setdefault(key(pair), []).append(i)
    shares = {}
    for name, rows in sorted(slices.items(), key=lambda entry: in_order(entry[0])):
        members = [pairs[i] for i in rows]
        shares[name] = share_of(members, over_prompts(members, [right[i] for i in rows]))
    return shares


def several(slices: dict[str, Share]) -> dict[str, Share] | None:
    """The slices, unless all pairs are in one."""
    return slices if len(slices) > 1 else None


def in_order(name: str) -> list[str | int]:
    """A key by which `round 2` comes before `round 10`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def interval_of(share: Share) -> Interval:
    """The interval of a share in a report; what is not known of it is anything from 0 to 1."""
    low, high = share.ci_low, share.ci_high
    return Interval(number(share), 0.0 if low is None else low, 1.0 if high is None else high, share.prompts)


def percent(share: Interval) -> str:
    """`71% [64%, 78%]`."""
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def points(difference: Interval) -> str:
    """`-1.1 points [-10.9, +9.2]`."""
    value, low, high = (100 * each for each in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
