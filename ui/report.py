"""The figures of `labels/report.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from trueup.records import Preference, Ranking
from trueup.statistics import wilson
from ui.answers import Tiers, agrees, names_itself

ENOUGH_GOLD = 5
"""Hidden checks below which nobody is said to have passed or failed."""


Answered = Mapping[Any, Mapping[str, Sequence[str]]]
"""source: item: kinds of its current events (label, skip, flag, late)."""


def summarise(
    sources: Sequence[str], rankings: Sequence[Ranking], pairs: Sequence[Preference], answered: Answered
) -> dict[str, Any]:
    """Counts of labels (a ranking is one), of the strict pairs in them and of what is no label; the length baseline."""
    kinds = {source: Counter(chain(*answered[source].values())) for source in sources}
    return {
        "sources": list(sources),
        "labels": len(rankings),
        "by_source": _counts(ranking.source for ranking in rankings),
        "by_annotator": _counts(ranking.annotator for ranking in rankings),
        "by_category": _counts(ranking.category or "none" for ranking in rankings),
        "by_split": _counts(ranking.split for ranking in rankings),
        "pairs": {"train": 0, "heldout": 0} | _counts(pair.split for pair in pairs),
        "ties": sum(len(list(combinations(tier, 2))) for ranking in rankings for tier in ranking.tiers),
        "skips": {source: counts["skip"] for source, counts in kinds.items()},
        "flags": {source: counts["flag"] for source, counts in kinds.items()},
        "late": {source: counts["late"] for source, counts in kinds.items()},
        "self_identified": self_identified(rankings),
        "length_baseline": length_baseline(pairs),
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def self_identified(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Labels in which an answer says which model it is from: they are kept, and can be excluded by their ids."""
    found = {}
    for ranking in rankings:
        phrases = [phrase for text in ranking.completions if (phrase := names_itself(text))]
        if phrases:
            found[ranking.label_id] = phrases[0]
    phrases = [phrase for phrase, _ in Counter(found.values()).most_common(5)]
    return {"labels": len(found), "of": len(rankings), "label_ids": sorted(found), "phrases": phrases}


def gold(checks: Mapping[str, Sequence[tuple[Tiers, Tiers]]], wanted: float) -> dict[str, dict[str, Any]]:
    """Of each annotator the share of hidden checks answered as known. `passed` is None below ENOUGH_GOLD of them."""
    found = {}
    for annotator, answers in sorted(checks.items()):
        right = sum(agrees(tiers, known) for tiers, known in answers)
        passed = right >= wanted * len(answers) if len(answers) >= ENOUGH_GOLD else None
        found[annotator] = {**share(right, len(answers)), "right": right, "passed": passed}
    return found


def length_baseline(pairs: Sequence[Preference]) -> dict[str, Any] | None:
    """In which share of the pairs the longer answer won, in characters. Pairs of equal length say nothing of it."""
    lengths = [(len(pair.chosen[0].content), len(pair.rejected[0].content)) for pair in pairs]
    differing = [(chosen, rejected) for chosen, rejected in lengths if chosen != rejected]
    return share(sum(chosen > rejected for chosen, rejected in differing), len(differing)) if differing else None


def share(successes: int, n: int) -> dict[str, Any]:
    """A proportion with its 95% score interval, which treats the n observations as independent."""
    return wilson(successes, n).as_json()


def line(summary: dict[str, Any]) -> str:
    """The report in one line."""
    who = ", ".join(f"{number} {source}" for source, number in summary["by_source"].items()) or "none"
    pairs = summary["pairs"]
    strict = f"{pairs['train'] + pairs['heldout']} strict pairs ({pairs['heldout']} held out)"
    return f"{who}; {strict}, {summary['ties']} tied, {sum(summary['skips'].values())} skipped"
