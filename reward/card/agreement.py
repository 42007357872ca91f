"""What the heads of an ensemble tell on held-out pairs: where they disagree, the model should be wrong more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward.card.shares import difference_of_parts, over_prompts, percent, points, share_of
from reward.report import HeadAgreement
from trueup.artifacts.reports import Share
from trueup.console import say
from trueup.data.records import Preference


def agreement(
    pairs: Sequence[Preference], right: Sequence[float], margins: np.ndarray, spreads: Sequence[float], std: float
) -> HeadAgreement:
    """
    right    of each of N pairs: whether the mean of the heads puts it in the order of its label
    margins  (N, K) of each head
    spreads  standard deviation over heads of the score of each answer
    std      standard deviation of the scores
    """
    agreed = (np.sign(margins) == np.sign(margins[:, :1])).all(axis=1).tolist()
    share = over_prompts(pairs, [float(one) for one in agreed])
    difference = difference_of_parts(pairs, right, agreed) if len(set(agreed)) == 2 else None
    where, elsewhere = (_accuracy(pairs, right, [one is part for one in agreed]) for part in (True, False))
    if difference:
        say(
            f"{'heads':<12} {margins.shape[1]} agree on {percent(share)} of the held-out pairs; where they do, the "
            f"accuracy is higher by {points(difference)}"
        )
    return HeadAgreement(
        heads=margins.shape[1],
        agree=share_of(pairs, share),
        right_where_agreed=where,
        right_elsewhere=elsewhere,
        difference=difference and difference.estimate(),
        spread=float(np.mean(spreads)) / (std or 1.0),
    )


def _accuracy(pairs: Sequence[Preference], right: Sequence[float], which: Sequence[bool]) -> Share | None:
    members = [pair for pair, one in zip(pairs, which, strict=True) if one]
    if not members:
        return None
    return share_of(members, over_prompts(members, [value for value, one in zip(right, which, strict=True) if one]))
