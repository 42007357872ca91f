"""The ceiling of a reward model: how often even a perfect one agrees with an annotator, since annotators disagree.

Two annotators agree on a pair with probability a. Let an annotator prefer the answer that is better with probability q,
the same for every pair and annotator and independent of the others (the model of one parameter per annotator of Dawid
and Skene 1979, https://doi.org/10.2307/2346806). Then a = q^2 + (1 - q)^2, and the best accuracy is

    q = (1 + sqrt(2a - 1)) / 2,

which is a half if a is a half or less. Where some pairs are harder than others the best accuracy is lower than this,
since q is concave in a, and never lower than a itself, since max(q, 1 - q) >= q^2 + (1 - q)^2 on each pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from reward.card.shares import over_prompts, share_of
from reward.report import Ceiling
from trueup.data.records import Preference
from trueup.statistics.intervals import Interval


def best_accuracy(agreement: float) -> float:
    """The accuracy of a perfect model against one annotator, from the agreement of two."""
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def ceiling(labelled: Sequence[Preference]) -> Ceiling | None:
    """The ceiling by the pairs of answers that several annotators put in a strict order; None if there are none.

    labelled  the strict pairs of all labels; a person is not compared with a program
    """
    votes: dict[tuple[str, ...], dict[str, list[bool]]] = {}
    pair_of: dict[tuple[str, ...], Preference] = {}
    for pair in labelled:
        chosen, rejected = pair.chosen[0].content, pair.rejected[0].content
        if chosen != rejected:
            key = (pair.source, pair.prompt_id, min(chosen, rejected), max(chosen, rejected))
            votes.setdefault(key, {}).setdefault(pair.annotator, []).append(chosen < rejected)
            pair_of.setdefault(key, pair)
    shared = {key: list(by_annotator.values()) for key, by_annotator in votes.items() if len(by_annotator) > 1}
    if not shared:
        return None
    pairs = [pair_of[key] for key in shared]
    agreement = over_prompts(pairs, [_agreement(by_annotator) for by_annotator in shared.values()])
    value, low, high = map(best_accuracy, (agreement.value, agreement.low, agreement.high))
    return Ceiling(agreement=share_of(pairs, agreement), accuracy=Interval(value, low, high, agreement.n).estimate())


def _agreement(votes: Sequence[Sequence[bool]]) -> float:
    """The mean over all two annotators of the probability that a vote of the one equals a vote of the other.

    votes  of each annotator; an annotator may have judged the pair several times
    """
    shares = [sum(of_one) / len(of_one) for of_one in votes]
    both = [p * q + (1 - p) * (1 - q) for p, q in combinations(shares, 2)]
    return sum(both) / len(both)
