"""How often annotators are right, from how they agree with each other, with themselves and with known answers.

The model has one parameter for each annotator (Dawid and Skene 1979, https://doi.org/10.2307/2346806, with the same
probability for every pair): of a pair, one answer is better, and annotator a says so with probability q_a, whatever the
others say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

Votes = Mapping[str, Sequence[bool]]
"""Of one pair: by annotator, whether each of their labels prefers the first answer."""

START = 0.75
WORTH = 4.0
"""How many labels the first guess, START, is worth beside those of an annotator: few labels say little."""
_STEPS, _STILL = 500, 1e-7


def best_accuracy(agreement: float) -> float:
    """The accuracy of a perfect model against one annotator, from the agreement of two who are right equally often.

    They agree with probability a = q^2 + (1 - q)^2, so q = (1 + sqrt(2a - 1)) / 2, and a half where a is less.
    """
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def agreement_of(votes: Votes) -> float:
    """The mean over all two annotators of the probability that a vote of the one equals a vote of the other."""
    shares = [sum(of_one) / len(of_one) for of_one in votes.values()]
    both = [p * q + (1 - p) * (1 - q) for p, q in combinations(shares, 2)]
    return sum(both) / len(both)


def right_probabilities(pairs: Sequence[Votes], checks: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """q_a of everybody who labelled a pair that was labelled more than once, or a hidden check.

    pairs   votes on each pair. An annotator who was asked twice says by that how far they agree with themselves
    checks  by annotator, how many checks with a known answer they answered rightly, and how many there were

    Expectation and maximisation in turn: the probability of each pair's better answer given all q_a, and q_a as the
    share of an annotator's labels that is right by it, with a weak first guess.
    """
    shared = [votes for votes in pairs if sum(map(len, votes.values())) > 1]
    names = sorted({name for votes in shared for name in votes} | {name for name, (_, n) in checks.items() if n})
    q = dict.fromkeys(names, START)
    for _ in range(_STEPS):
        before = q
        right = {name: WORTH * START + checks.get(name, (0, 0))[0] for name in names}
        labels = {name: WORTH + checks.get(name, (0, 0))[1] for name in names}
        for votes in shared:
            odds = sum(_log_odds(q[name]) * (2 * sum(own) - len(own)) for name, own in votes.items())
            first = 1 / (1 + math.exp(-odds))
            for name, own in votes.items():
                right[name] += sum(first if vote else 1 - first for vote in own)
                labels[name] += len(own)
        q = {name: right[name] / labels[name] for name in names}
        if all(abs(q[name] - before[name]) < _STILL for name in names):
            break
    return q


def _log_odds(q: float) -> float:
    q = min(0.99, max(0.01, q))
    return math.log(q / (1 - q))


def label_weight(q: float) -> float:
    """What a label counts whose annotator is right with probability q: 2q - 1, and nothing below a half.

    With equal scores a pair moves them by 1/2 in the direction of the label, so on average by (2q - 1) / 2 in the right
    one. Labels by chance cancel, and only add noise.
    """
    return max(0.0, 2 * q - 1)
