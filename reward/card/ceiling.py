"""The ceiling of a reward model: how often even a perfect one agrees with an annotator, since annotators disagree.

Two annotators agree on a pair with probability a. Let an annotator prefer the answer that is better with probability q,
the same for every pair and annotator and independent of the others (`trueup.statistics.reliability`). Then a = q^2 +
(1 - q)^2, and q is the best accuracy. Where some pairs are harder than others the best accuracy is lower than this,
since q is concave in a, and never lower than a itself, since max(q, 1 - q) >= q^2 + (1 - q)^2 on each pair.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward.card.shares import over_prompts, share_of
from reward.report import Ceiling
from trueup.data.annotators import votes_by_pair
from trueup.data.records import Preference
from trueup.statistics.intervals import Interval
from trueup.statistics.reliability import agreement_of, best_accuracy


def ceiling(labelled: Sequence[Preference]) -> Ceiling | None:
    """The ceiling by the pairs of answers that several annotators put in a strict order; None if there are none.

    labelled  the strict pairs of all labels
    """
    shared = {key: votes for key, votes in votes_by_pair(labelled).items() if len(votes) > 1}
    if not shared:
        return None
    pair_of = {pair.prompt_id: pair for pair in labelled}
    pairs = [pair_of[prompt] for _, prompt, *_ in shared]
    agreement = over_prompts(pairs, [agreement_of(votes) for votes in shared.values()])
    value, low, high = map(best_accuracy, (agreement.value, agreement.low, agreement.high))
    return Ceiling(agreement=share_of(pairs, agreement), accuracy=Interval(value, low, high, agreement.n).estimate())
