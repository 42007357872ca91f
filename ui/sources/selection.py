"""The order in which people label pairs. Pure functions.

Selection by uncertainty gives a pair a larger weight in the draw if the reward model is unsure of its order (of an
ensemble, if its heads disagree on it), or if people disagree on its prompt. Such a draw is biased, and so is a figure
over it. Therefore every pair keeps a chance, a control share is drawn uniformly, and each pair is stored with the
selection that drew it and its probability: figures come from the control share, or weigh by the inverse of the
propensity.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from ui.labels.items import QueueEntry

FLOOR = 0.02
"""Smallest weight, so that every pair has a chance."""


def uncertainty(score_a: float, score_b: float) -> float:
    """The reward model's uncertainty about a pair: 4 p (1 - p), with p = sigmoid(score_a - score_b), in [0, 1].

    p is the Bradley-Terry probability that a is preferred; the variance of that coin is greatest, here 1, at p = 1/2.
    """
    p = 1 / (1 + math.exp(-min(abs(score_a - score_b), 700.0)))
    return 4 * p * (1 - p)


def information(margins: Sequence[float]) -> float:
    """What a label of a pair would tell of the heads of a reward model, in bits: the entropy of their mean probability
    less the mean of their entropies (Houlsby et al. 2011, https://arxiv.org/abs/1112.5745, eq. 2).

    margins  by each head, the score of one answer minus that of the other

    It is 0 where all heads give one probability, even if that is 1/2: such a pair is a coin to all of them, and another
    toss settles nothing. It is 1 where half of them are sure of one order and half of the other.
    """
    chances = [1 / (1 + math.exp(-max(-700.0, min(700.0, margin)))) for margin in margins]
    mean = math.fsum(chances) / len(chances)
    return max(0.0, _bits(mean) - math.fsum(map(_bits, chances)) / len(chances))


def _bits(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def disagreement(votes: Sequence[int]) -> float:
    """Probability that two different labels of an item differ, in [0, 1], from the counts of each judgement.

    Simpson's index, without replacement. It is 0 for fewer than two labels.
    """
    n = sum(votes)
    return 1 - sum(count * (count - 1) for count in votes) / (n * (n - 1)) if n > 1 else 0.0


def weight(open_by_model: float, open_by_people: float) -> float:
    """Weight of a pair in the draw."""
    return max(FLOOR, (open_by_model + open_by_people) / 2)


def uniform(item_ids: Sequence[str], chance: Sequence[float]) -> list[QueueEntry]:
    """Items in a random order that was drawn before; `chance` is each item's probability to be in it."""
    return [QueueEntry(name, "random", p) for name, p in zip(item_ids, chance, strict=True)]


def draw(weights: Mapping[str, float], number: int, control_share: float, rng: random.Random) -> list[QueueEntry]:
    """`number` of the items without replacement, in the order for labelling.

    Before each draw a coin decides: with probability `control_share` the item is drawn uniformly from the rest
    (selection `random`), otherwise in proportion to its weight (selection `uncertainty`). The propensity is the
    probability of this draw, given the earlier ones. Weighted draws are races of exponential clocks (Efraimidis and
    Spirakis 2006), which have no memory: removing an item for the control share keeps the other chances in proportion.
    """
    clocks = sorted(weights, key=lambda name: rng.expovariate(1.0) / weights[name])
    control = list(weights)
    rng.shuffle(control)
    rest = dict.fromkeys(weights)
    by_weight, uniformly = _remaining(clocks, rest), _remaining(control, rest)
    total = math.fsum(weights.values())
    entries = []
    for _ in range(min(number, len(weights))):
        if rng.random() < control_share:
            name, selection, chance = next(uniformly), "random", 1 / len(rest)
        else:
            name = next(by_weight)
            selection, chance = "uncertainty", min(1.0, weights[name] / max(total, weights[name]))
        entries.append(QueueEntry(name, selection, chance))
        del rest[name]
        total -= weights[name]
    return entries


def _remaining(order: Sequence[str], rest: Mapping[str, None]) -> Iterator[str]:
    return (name for name in order if name in rest)
