"""The worth of another hundred labels."""

from __future__ import annotations

import math

from trueup.artifacts.reports import RewardCard
from ui.figures.schema import Figures, Quantity, ShareFigures, Worth

BAR = 0.03
"""Half-width of an interval, as a share, at which there are enough labels."""
MORE = 100
"""Number of further labels."""


def worth(figures: Figures, reward: RewardCard | None) -> Worth:
    """The effect of a hundred more labels on intervals, and their cost.

    reward  the report card, if there is a reward model

    Both answers of a pair come from one policy, so these labels have no win rate between two policies. More labels
    narrow the interval of other figures: how far people agree, which bounds what any reward model can learn; how far
    they follow length or the program whose labels are in the store; and the reward model's accuracy on held-out
    prompts, once there is one. Intervals narrow with 1/sqrt(labels), if further labels are like these.
    """
    labels = figures["progress"]["labels"]
    quantities = [
        _quantity("agree", "People agree on the best answer", figures["agreement"][0], labels),
        _quantity("longer", "People choose the longer answer", figures["overall"]["longer"], labels),
        *(
            _quantity("program", f"People agree with {one['annotator']}", one["same"], labels)
            for one in figures["programs"]
        ),
    ]
    if reward is not None and reward.accuracy is not None:
        name, right = "The reward model is right on held-out pairs", reward.accuracy
        share: ShareFigures = {
            "value": right.value,
            "ci_low": right.ci_low,
            "ci_high": right.ci_high,
            "n": right.n,
            "note": None,
        }
        quantities.append(_quantity("reward", name, share, reward.pairs.train + reward.pairs.heldout))
    seconds = figures["progress"]["seconds"]
    return {
        "more": MORE,
        "labels": labels,
        "hours": MORE * seconds / 3600 if seconds is not None else None,
        "reward_model": reward is not None,
        "quantities": quantities,
    }


def _quantity(key: str, name: str, share: ShareFigures, labels: int) -> Quantity:
    value, low, high = share["value"], share["ci_low"], share["ci_high"]
    half = (high - low) / 2 if value is not None and low is not None and high is not None else None
    valid = half is not None and labels > 0
    return {
        "key": key,
        "quantity": name,
        "share": {"value": value, "ci_low": low, "ci_high": high, "n": share["n"], "note": share["note"]},
        "labels": labels,
        "half_width": half,
        "half_width_after": half * math.sqrt(labels / (labels + MORE)) if half is not None and valid else None,
        "labels_to_bar": max(0, math.ceil(labels * (half / BAR) ** 2) - labels) if half is not None and valid else None,
    }
