"""Which pairs people are asked about first. Pure functions.

By uncertainty means: pairs whose order a reward model leaves open, or whose prompt people judge differently, are drawn
with a weight. What is drawn so is no sample of anything, and a figure over it is biased. Therefore every pair keeps a
chance, a control share is drawn uniformly, and each pair is stored with the selection that drew it and the probability
with which it did: figures come from the control share, or weigh by the inverse of the propensity.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from ui.labels.items import QueueEntry

FLOOR = 0.02
"""Smallest weight: even a pair that the reward model is sure of has a chance."""


def uncertainty(score_a: float, score_b: float) -> float:
    """How open a reward model leaves a pair: 4 p (1 - p), with p = sigmoid(score_a - score_b), in [0, 1].

    p is the Bradley-Terry probability that a is preferred; the variance of that coin is greatest, here 1, at p = 1/2.
    """
    p = 1 / (1 + math.exp(-min(abs(score_a - score_b), 700.0)))
    return 4 * p * (1 - p)


def disagreement(votes: Sequence[int]) -> float:
    """Probability that two different labels of an item differ, in [0, 1], from the counts of each judgement.

    Simpson's index, without replacement. Of fewer than two labels: 0.
    """
    n = sum(votes)
    return 1 - sum(count * (count - 1) for count in votes) / (n * (n - 1)) if n > 1 else 0.0


def weight(open_by_model: float, open_by_people: float) -> float:
    """Weight of a pair in the draw."""
    return max(FLOOR, (open_by_model + open_by_people) / 2)


def uniform(item_ids: Sequence[str], chance: Sequence[float]) -> list[QueueEntry]:
    """Items in a random order that was drawn before; `chance` is that of each to be asked about at all."""
    return [QueueEntry(name, "random", p) for name, p in zip(item_ids, chance, strict=True)]


def draw(weights: Mapping[str, float], number: int, control_share: float, rng: random.Random) -> list[QueueEntry]:
    """`number` of the items without replacement, in the order in which they are to be asked.

    Before each draw a coin decides: with probability `control_share` the item is drawn uniformly from those that are
    left (selection `random`), else in proportion to its weight (selection `uncertainty`). The propensity is that of
    this draw, given what was drawn before. Weighted draws are races of exponential clocks (Efraimidis and Spirakis
    2006), which have no memory: what the control share takes out leaves the others' chances in proportion.
    """
    clocks = sorted(weights, key=lambda name: rng.expovariate(1.0) / weights[name])
    control = list(weights)
    rng.shuffle(control)
    left = dict.fromkeys(weights)
    by_weight, uniformly = _remaining(clocks, left), _remaining(control, left)
    total = math.fsum(weights.values())
    drawn = []
    for _ in range(min(number, len(weights))):
        if rng.random() < control_share:
            name, selection, chance = next(uniformly), "random", 1 / len(left)
        else:
            name = next(by_weight)
            selection, chance = "uncertainty", min(1.0, weights[name] / max(total, weights[name]))
        drawn.append(QueueEntry(name, selection, chance))
        del left[name]
        total -= weights[name]
    return drawn


def _remaining(order: Sequence[str], left: Mapping[str, None]) -> Iterator[str]:
    return (name for name in order if name in left)
