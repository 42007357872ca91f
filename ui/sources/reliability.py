"""How often annotators are right, for labels/report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trueup.artifacts.reports import Reliability
from trueup.data.annotators import votes_by_pair
from trueup.data.pairs import pairs_of
from trueup.data.records import Preference, Ranking
from trueup.statistics.reliability import agreement_of, right_probabilities
from ui.sources.report import KnownAnswers


def reliability(
    pairs: Sequence[Preference], repeats: Sequence[Ranking], gold: Mapping[str, KnownAnswers]
) -> dict[str, Reliability] | None:
    """By annotator, from labels of pairs that were labelled more than once and from hidden checks; None without any.

    pairs    all strict pairs
    repeats  hidden repeats

    Prompts that are held out say nothing here, since the training stages weigh labels by it.
    """
    again = [pair for repeat in repeats for pair in pairs_of(repeat)]
    votes = list(votes_by_pair(pair for pair in [*pairs, *again] if pair.split == "train").values())
    checks = {name: (answers.right, answers.n) for name, answers in gold.items()}
    right = right_probabilities(votes, checks)
    shared = [of_pair for of_pair in votes if sum(map(len, of_pair.values())) > 1]
    return {
        name: Reliability(
            right=q,
            labels=sum(len(of_pair.get(name, ())) for of_pair in shared),
            checks=checks.get(name, (0, 0))[1],
        )
        for name, q in right.items()
    } or None


def agreement(pairs: Sequence[Preference]) -> float | None:
    """How often two annotators put the same pair, of a prompt to train on, in the same order; None where no two did."""
    votes = votes_by_pair(pair for pair in pairs if pair.split == "train").values()
    shares = [agreement_of(of_pair) for of_pair in votes if len(of_pair) > 1]
    return sum(shares) / len(shares) if shares else None
