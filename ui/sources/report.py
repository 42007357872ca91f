"""labels/report.json: its schema, and the figures in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import median
from typing import Any

import numpy as np

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.manifest import LabelCounts
from trueup.artifacts.reports import Estimate, LabelSources, PairCounts, Reliability
from trueup.data.criteria import OVERALL
from trueup.data.pairs import better_by
from trueup.data.records import Preference, Ranking
from trueup.statistics.intervals import Interval, draws, percentiles, wilson
from ui.labels.judgements import Tiers, agrees, names_itself

RESAMPLES = 2_000
ENOUGH_GOLD = 5
"""Least number of hidden checks for an annotator to pass or fail."""


KindsByItem = Mapping[Any, Mapping[str, Sequence[str]]]
"""source: item: kinds of its current events (label, skip, flag, late)."""


class SelfIdentified(Artifact):
    """Labels in which a completion names its model. They stay, and can be excluded by their ids."""

    labels: int
    of: int
    label_ids: list[str]
    phrases: list[str]
    """The most frequent phrases."""


class KnownAnswers(Estimate):
    """Share of the hidden checks that an annotator answered rightly."""

    right: int
    passed: bool | None
    """Null below ENOUGH_GOLD of them."""


class CriterionFigures(Artifact):
    """How the labels by one criterion fall out."""

    labels: int
    """Labels of pairs that were judged by it."""
    ties: int
    with_others: dict[str, Estimate]
    """Correlation with each other criterion, and with the overall choice: 1 if both always find the same answer better,
    -1 if they never do. Which answer comes first is chance, so it is taken about 0; the interval is over prompts."""


class LabelReport(LabelSources, extra="forbid"):
    """labels/report.json. A ranking counts as one label."""

    sources: list[str]
    labels: int
    by_annotator: dict[str, int]
    by_category: dict[str, int]
    by_split: dict[str, int]
    pairs: PairCounts
    """Strict pairs in the labels."""
    ties: int
    """Pairs whose completions are in one tier."""
    skips: dict[str, int]
    """Skipped items, by source."""
    flags: dict[str, int]
    """Flagged items, by source."""
    late: dict[str, int]
    """Labels that came after their item was full, by source."""
    self_identified: SelfIdentified
    length_baseline: Estimate | None
    """Share of the pairs in which the longer completion, in characters, is preferred; null if none differ."""
    dropped: dict[str, int]
    """Pairs and labels that are not in preferences.jsonl, by reason."""
    gold: dict[str, KnownAnswers]
    """Results of hidden checks, by annotator."""
    demonstrations: int
    """Ideal completions that people wrote."""
    identical_pairs_not_shown: int
    left_choice: Estimate | None
    """Share of strict labels in which the completion on the left is preferred; null without any."""
    criteria: dict[str, CriterionFigures] | None = absent()
    """Absent where nobody was asked for any."""

    def counts(self) -> LabelCounts:
        """The counts for the manifest."""
        shared = ("by_source", "by_split", "ties", "skips")
        return LabelCounts(pairs=self.pairs.plain(), **{key: getattr(self, key) for key in shared})


@dataclass(frozen=True)
class Beside:
    """Figures for the report that do not come from the labels."""

    dropped: dict[str, int]
    gold: dict[str, KnownAnswers]
    demonstrations: int
    identical_pairs_not_shown: int
    left_choice: Estimate | None
    reliability: dict[str, Reliability] | None
    agreement: float | None


def summarise(
    sources: Sequence[str],
    rankings: Sequence[Ranking],
    pairs: Sequence[Preference],
    answered: KindsByItem,
    beside: Beside,
) -> LabelReport:
    """Counts of labels, of their strict pairs and of other events; the length baseline."""
    rounds = Counter(ranking.round for ranking in rankings)
    kinds = {source: Counter(chain(*answered[source].values())) for source in sources}
    by_split = _counts(pair.split for pair in pairs)
    return LabelReport(
        sources=list(sources),
        labels=len(rankings),
        by_source=_counts(ranking.source for ranking in rankings),
        by_round=dict(sorted(rounds.items())) if len(rounds) > 1 else None,
        seconds=median(times) if (times := [row.seconds for row in rankings if row.seconds is not None]) else None,
        by_annotator=_counts(ranking.annotator for ranking in rankings),
        by_category=_counts(ranking.category or "none" for ranking in rankings),
        by_split=_counts(ranking.split for ranking in rankings),
        pairs=PairCounts(train=by_split.get("train", 0), heldout=by_split.get("heldout", 0)),
        ties=sum(len(list(combinations(tier, 2))) for ranking in rankings for tier in ranking.tiers),
        skips={source: counts["skip"] for source, counts in kinds.items()},
        flags={source: counts["flag"] for source, counts in kinds.items()},
        late={source: counts["late"] for source, counts in kinds.items()},
        self_identified=self_identified(rankings),
        length_baseline=length_baseline(pairs),
        criteria=criteria_figures(rankings) or None,
        **vars(beside),
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def self_identified(rankings: Sequence[Ranking]) -> SelfIdentified:
    """The labels in which a completion names its model."""
    phrase_of = {}
    for ranking in rankings:
        phrases = [phrase for text in ranking.completions if (phrase := names_itself(text))]
        if phrases:
            phrase_of[ranking.label_id] = phrases[0]
    phrases = [phrase for phrase, _ in Counter(phrase_of.values()).most_common(5)]
    return SelfIdentified(labels=len(phrase_of), of=len(rankings), label_ids=sorted(phrase_of), phrases=phrases)


def gold(checks: Mapping[str, Sequence[tuple[Tiers, Tiers]]], least: float) -> dict[str, KnownAnswers]:
    """The share of hidden checks that each annotator answered rightly, and whether it is at least `least`."""
    by_annotator = {}
    for annotator, answers in sorted(checks.items()):
        right = sum(agrees(tiers, answer) for tiers, answer in answers)
        passed = right >= least * len(answers) if len(answers) >= ENOUGH_GOLD else None
        by_annotator[annotator] = KnownAnswers(**dict(share(right, len(answers))), right=right, passed=passed)
    return by_annotator


def length_baseline(pairs: Sequence[Preference]) -> Estimate | None:
    """Share of the pairs in which the longer answer won, in characters. Pairs of equal length do not count."""
    lengths = [(len(pair.chosen[0].content), len(pair.rejected[0].content)) for pair in pairs]
    differing = [(chosen, rejected) for chosen, rejected in lengths if chosen != rejected]
    return share(sum(chosen > rejected for chosen, rejected in differing), len(differing)) if differing else None


def share(successes: int, n: int) -> Estimate:
    """A proportion with its 95% score interval, which treats the n observations as independent."""
    return wilson(successes, n).estimate()


def criteria_figures(rankings: Sequence[Ranking]) -> dict[str, CriterionFigures]:
    """The figures of each criterion by which pairs were judged. Two are correlated where both were asked."""
    rows = [row for row in rankings if row.criteria and len(row.completions) == 2]
    signs: list[dict[str, int]] = []
    for row in rows:
        sides = better_by({**(row.criteria or {}), OVERALL: row.tiers}, 0, 1)
        signs.append({name: {"chosen": 1, "rejected": -1, None: 0}[side] for name, side in sides})
    names = sorted({name for row in rows for name in row.criteria or {}})
    figures = {}
    for name in names:
        own = [i for i, sign in enumerate(signs) if name in sign]
        others = {
            other: estimate
            for other in [*names, OVERALL]
            if other != name
            and (both := [i for i in own if other in signs[i]])
            and (estimate := _correlation([(rows[i].prompt_id, signs[i][name], signs[i][other]) for i in both]))
        }
        ties = sum(signs[i][name] == 0 for i in own)
        figures[name] = CriterionFigures(labels=len(own), ties=ties, with_others=others)
    return figures


def _correlation(values: Sequence[tuple[str, int, int]]) -> Estimate | None:
    """sum xy / sqrt(sum x^2 sum y^2) of (prompt, x, y), with a bootstrap interval over prompts; None if all x or all
    y are 0."""
    sums: dict[str, np.ndarray] = {}
    for prompt, x, y in values:
        sums[prompt] = sums.get(prompt, 0) + np.array([x * y, x * x, y * y])
    table = np.stack(list(sums.values())).astype(float)

    def of(totals: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return totals[:, 0] / np.sqrt(totals[:, 1] * totals[:, 2])

    (value,) = of(table.sum(axis=0)[None])
    if np.isnan(value):
        return None
    resampled = np.concatenate([of(counts @ table) for counts in draws(len(table), RESAMPLES, seed=0)])
    resampled = resampled[np.isfinite(resampled)]
    low, high = percentiles(resampled, 0.95, len(table)) if len(table) > 1 else (-1.0, 1.0)
    return Interval(float(value), max(-1.0, float(low)), min(1.0, float(high)), len(table)).estimate()


def line(report: LabelReport) -> str:
    """The report in one line."""
    who = ", ".join(f"{number} {source}" for source, number in report.by_source.items()) or "none"
    pairs = report.pairs
    strict = f"{pairs.train + pairs.heldout} strict pairs ({pairs.heldout} held out)"
    return f"{who}; {strict}, {report.ties} tied, {sum(report.skips.values())} skipped"
