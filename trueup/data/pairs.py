"""The pairs of a ranking, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Literal

from trueup.data.records import Better, Label, Message, Preference, Ranking


def pairs_of(ranking: Ranking) -> list[Preference]:
    """All strict pairs of a ranking. Ties give none."""
    return [
        _pair(ranking, (i, better), (j, worse))
        for (better, tier), (worse, lower_tier) in combinations(enumerate(ranking.tiers), 2)
        for i in tier
        for j in lower_tier
    ]


def ties_of(ranking: Ranking) -> list[Preference]:
    """All pairs of a ranking whose answers are tied: neither is preferred, and their order means nothing."""
    return [
        _pair(ranking, (i, rank), (j, rank))
        for rank, tier in enumerate(ranking.tiers)
        for i, j in combinations(tier, 2)
    ]


def _pair(ranking: Ranking, first: tuple[int, int], second: tuple[int, int]) -> Preference:
    """Two answers of a ranking, each as its index and its rank."""
    (i, rank), (j, lower_rank) = first, second
    order = ranking.display_order
    fields: dict[str, Any] = {}
    for side, index, its_rank in (("chosen", i, rank), ("rejected", j, lower_rank)):
        fields |= {
            side: [Message(role="assistant", content=ranking.completions[index])],
            f"{side}_token_ids": ranking.completion_token_ids[index],
            f"{side}_finished": ranking.finished[index],
            f"{side}_reasoning": ranking.reasonings[index] if ranking.reasonings else "",
            f"{side}_logp": ranking.logps[index] if ranking.logps else None,
            f"{side}_rank": its_rank,
        }
    return Preference(
        **{key: getattr(ranking, key) for key in Label.model_fields},
        **fields,
        better_by=dict(better_by(ranking.criteria or {}, i, j)),
        both_bad=ranking.both_bad and rank == lower_rank,
        num_tiers=len(ranking.tiers),
        display_first=order and ("chosen" if order.index(i) < order.index(j) else "rejected"),
    )


def better_by(criteria: Mapping[str, Better], i: int, j: int) -> Iterator[tuple[str, BetterSide]]:
    """Which of answers i (chosen) and j is better by each criterion that they were judged by; None: they are tied."""
    for name, better in criteria.items():
        if isinstance(better, list):
            ranks = {index: rank for rank, tier in enumerate(better) for index in tier}
            if {i, j} <= ranks.keys():
                yield name, None if ranks[i] == ranks[j] else "chosen" if ranks[i] < ranks[j] else "rejected"
        elif better in (None, i, j):
            yield name, None if better is None else "chosen" if better == i else "rejected"


BetterSide = Literal["chosen", "rejected"] | None
PairRule = Literal["all", "extremes", "nested"]


def choose_pairs(preferences: list[Preference], rule: PairRule) -> list[Preference]:
    """Which pairs of each ranking to use.

    all       every strict pair
    extremes  one pair: an answer of the best tier against one of the worst, the cleanest there is
    nested    best against worst, then second-best against second-worst, ...: each answer at most once
    """
    if rule == "all":
        return preferences
    selection: list[Preference] = []
    by_label: dict[str, list[Preference]] = {}
    for preference in preferences:
        by_label.setdefault(preference.label_id, []).append(preference)
    for pairs in by_label.values():
        paired_answers: set[str] = set()
        for pair in sorted(pairs, key=lambda pair: pair.chosen_rank - pair.rejected_rank):  # widest first
            answers = {pair.chosen[0].content, pair.rejected[0].content}
            if not answers & paired_answers and not (paired_answers and rule == "extremes"):
                selection.append(pair)
                paired_answers |= answers
    return selection
