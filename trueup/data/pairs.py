"""The pairs of a ranking, and which of them are trained on."""

from __future__ import annotations

from typing import Literal

from trueup.data.records import Label, Message, Preference, Ranking


def pairs_of(ranking: Ranking) -> list[Preference]:
    """All strict pairs of a ranking. Ties give none."""
    label_fields = {key: getattr(ranking, key) for key in Label.model_fields}
    pairs = []
    for better, tier in enumerate(ranking.tiers):
        for worse in range(better + 1, len(ranking.tiers)):
            for i in tier:
                for j in ranking.tiers[worse]:
                    first = None
                    if ranking.display_order is not None:
                        first = (
                            "chosen" if ranking.display_order.index(i) < ranking.display_order.index(j) else "rejected"
                        )
                    pairs.append(
                        Preference(
                            **label_fields,
                            display_first=first,
                            chosen=[Message(role="assistant", content=ranking.completions[i])],
                            rejected=[Message(role="assistant", content=ranking.completions[j])],
                            chosen_token_ids=ranking.completion_token_ids[i],
                            rejected_token_ids=ranking.completion_token_ids[j],
                            chosen_finished=ranking.finished[i],
                            rejected_finished=ranking.finished[j],
                            chosen_reasoning=ranking.reasonings[i] if ranking.reasonings else "",
                            rejected_reasoning=ranking.reasonings[j] if ranking.reasonings else "",
                            chosen_logp=ranking.logps[i] if ranking.logps else None,
                            rejected_logp=ranking.logps[j] if ranking.logps else None,
                            chosen_rank=better,
                            rejected_rank=worse,
                            num_tiers=len(ranking.tiers),
                        )
                    )
    return pairs


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
