"""The order of pairs by a weighted sum of the criteria that people judged them by, in place of the overall choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from trueup.data.records import Preference
from trueup.errors import DataError

OVERALL = "overall"
"""The name by which weights mean the overall choice."""
GRADES = 3


def weighted_sum(pair: Preference, weights: Mapping[str, float], is_tie: bool) -> float | None:
    """How far the chosen answer is ahead, from -1 to 1; None where nobody judged the pair by any of these criteria.

        s = sum_c w_c g_c / sum_c |w_c|

    with g_c = 1 where the chosen answer is better by criterion c, -1 where the rejected one is, and 0 else.
    """
    if not {name for name, weight in weights.items() if weight} & pair.better_by.keys():
        return None
    sides = {OVERALL: None if is_tie else "chosen", **pair.better_by}
    signs = {"chosen": 1, "rejected": -1}
    total = sum(weight * signs.get(sides.get(name) or "", 0) for name, weight in weights.items())
    return total / sum(map(abs, weights.values()))


def by_criteria(
    strict: Sequence[Preference], ties: Sequence[Preference], weights: Mapping[str, float]
) -> tuple[list[Preference], list[Preference], Counter[str]]:
    """The strict pairs and the ties in the order of the weighted sum, and how many changed, by how.

    A pair whose sum is below 0 is turned round, one whose sum is 0 is a tie. The grade of a strict pair is 1, 2 or 3 by
    the third of the way to 1 that its sum falls in. Pairs that nobody judged by these criteria, and ties of two bad
    answers, stay as they are. An empty answer must not be preferred, nor tied with one that says something.
    """
    changes: Counter[str] = Counter()
    ordered: list[Preference] = []
    tied: list[Preference] = []
    for is_tie, pairs in ((False, strict), (True, ties)):
        for pair in pairs:
            ahead = None if pair.both_bad else weighted_sum(pair, weights, is_tie)
            if ahead is None:
                changes["keep the overall choice"] += 1
                (tied if is_tie else ordered).append(pair)
                continue
            pair = turned(pair) if ahead < 0 else pair
            blank = [not text.strip() for text in pair.texts]
            if blank[0] or (not ahead and any(blank)):
                changes["are left out, since an empty answer would be no worse"] += 1
            elif ahead:
                changes["turned round"] += ahead < 0 and not is_tie
                changes["no longer ties"] += is_tie
                grade = math.ceil(GRADES * abs(ahead) - 1e-9)
                ranks = {"chosen_rank": 0, "rejected_rank": 1, "num_tiers": 2} if is_tie else {}
                ordered.append(pair.model_copy(update={"strength": grade, **ranks}))
            else:
                changes["ties now"] += not is_tie
                ranks = {} if is_tie else {"chosen_rank": 0, "rejected_rank": 0, "num_tiers": 1}
                tied.append(pair.model_copy(update={"strength": None, **ranks}))
    return ordered, tied, +changes


def turned(pair: Preference) -> Preference:
    """The pair with its sides in the other order, and their ranks where they were."""
    other = {"chosen": "rejected", "rejected": "chosen", None: None}
    sides = [name for name in Preference.model_fields if name.startswith("chosen") and name != "chosen_rank"]
    update: dict[str, object] = {}
    for name in sides:
        mirrored = name.replace("chosen", "rejected", 1)
        update |= {name: getattr(pair, mirrored), mirrored: getattr(pair, name)}
    update["better_by"] = {name: other[side] for name, side in pair.better_by.items()}
    update["display_first"] = other[pair.display_first]
    return pair.model_copy(update=update)


def check_known(weights: Collection[str], pairs: Sequence[Preference], key: str) -> None:
    """Raise unless somebody judged a pair by each of the criteria; `key` names the weights."""
    known = {name for pair in pairs for name in pair.better_by}
    if unknown := sorted(set(weights) - known - {OVERALL}):
        names = ", ".join(sorted(known)) or "none"
        raise DataError(f"{key}: no label was judged by {', '.join(unknown)} (criteria of the labels: {names})")
