"""The figures of `labels/report.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from trueup.records import Preference, Ranking


def summarise(
    sources: Sequence[str], rankings: Sequence[Ranking], pairs: Sequence[Preference], skips: Counter[str]
) -> dict[str, Any]:
    """Counts of labels (a ranking is one) and of the strict pairs in them, and the length-only baseline."""
    return {
        "sources": list(sources),
        "labels": len(rankings),
        "by_source": _counts(ranking.source for ranking in rankings),
        "by_annotator": _counts(ranking.annotator for ranking in rankings),
        "by_category": _counts(ranking.category or "none" for ranking in rankings),
        "by_split": _counts(ranking.split for ranking in rankings),
        "pairs": {"train": 0, "heldout": 0} | _counts(pair.split for pair in pairs),
        "ties": sum(len(list(combinations(tier, 2))) for ranking in rankings for tier in ranking.tiers),
        "skips": dict(skips),
        "length_baseline": length_baseline(pairs),
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def length_baseline(pairs: Sequence[Preference]) -> dict[str, Any] | None:
    """In which share of the pairs the longer answer won, in characters. Pairs of equal length say nothing of it."""
    lengths = [(len(pair.chosen[0].content), len(pair.rejected[0].content)) for pair in pairs]
    differing = [(chosen, rejected) for chosen, rejected in lengths if chosen != rejected]
    return share(sum(chosen > rejected for chosen, rejected in differing), len(differing)) if differing else None


def share(successes: int, n: int, z: float = 1.959964) -> dict[str, Any]:
    """A proportion with its 95% score interval (Wilson 1927), which treats the n observations as independent."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "ci_low": max(0.0, centre - half), "ci_high": min(1.0, centre + half), "n": n}


def line(summary: dict[str, Any]) -> str:
    """The report in one line."""
    who = ", ".join(f"{number} {source}" for source, number in summary["by_source"].items()) or "none"
    pairs = summary["pairs"]
    strict = f"{pairs['train'] + pairs['heldout']} strict pairs ({pairs['heldout']} held out)"
    return f"{who}; {strict}, {summary['ties']} tied, {sum(summary['skips'].values())} skipped"
