"""What a row says of its answers by single criteria (`vocabulary.CRITERIA`), beside the overall choice.

a verdict       `safer_response_id`, `honesty_preference`, `winner_safety`: a side, as a verdict is written
a number each   `helpfulness_a` and `helpfulness_b`, `chosen_honesty` and `rejected_honesty`: the higher is better
of an answer    `{"response": ..., "helpfulness": 4}`, or `{"annotations": {"helpfulness": {"Rating": "4"}}}`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from trueup.data.formats import vocabulary
from trueup.data.formats.columns import Columns
from trueup.data.formats.verdicts import TIE, as_number, named_side, tiers_of_scores
from trueup.data.records import Better

_VERDICTS = "winner preference preferred choice better better_response verdict vote response_id".split()
_RATINGS = "rating score value".split()


def better_of(tiers: list[list[int]], count: int) -> Better:
    """An order by one criterion as a ranking keeps it: of two answers the index of the better one, None for a tie."""
    return tiers if count > 2 else None if tiers == TIE else tiers[0][0]


def criteria_of_sides(row: Columns, names: Sequence[str], sides: Sequence[str]) -> dict[str, Better]:
    """The better one of two answers by each criterion that names a side, or has a number for each.

    names  columns of the answers
    sides  how they are told apart, such as a and b
    """
    criteria: dict[str, Better] = {}
    numbers: dict[str, dict[int, float]] = {}
    for name in list(row.values):
        if not row.there(name):
            continue
        if (by := _criterion_of_verdict(name)) and (claim := named_side(row, name, names, sides)):
            row.names_read.add(name)
            criteria[by] = better_of(claim.tiers, 2)
        for index, of_side in enumerate(zip(names, sides, strict=True)):
            by = next((one for side in of_side if (one := _beside(name, side))), None)
            if by is not None and (value := as_number(row.values[name])) is not None:
                row.names_read.add(name)
                numbers.setdefault(by, {})[index] = value
    for by, of_answers in numbers.items():
        if len(of_answers) == 2:
            criteria.setdefault(by, better_of(tiers_of_scores([of_answers[0], of_answers[1]]), 2))
    return criteria


@lru_cache(maxsize=10_000)
def _criterion_of_verdict(name: str) -> str | None:
    return next((by for word in _VERDICTS if (by := _beside(name, word))), None)


@lru_cache(maxsize=10_000)
def _beside(name: str, word: str) -> str | None:
    """The criterion that stands in a name beside a word, before or behind it."""
    if name.startswith(f"{word}_"):
        return vocabulary.criterion(name.removeprefix(f"{word}_"))
    return vocabulary.criterion(name.removesuffix(f"_{word}")) if name.endswith(f"_{word}") else None


def ratings_of(answer: Columns) -> dict[str, float]:
    """What one answer's object says of it by single criteria."""
    return dict([*_ratings(answer), *(_ratings(answer.object("annotations")) if _has_annotations(answer) else ())])


def _has_annotations(answer: Columns) -> bool:
    return isinstance(answer.values.get("annotations"), dict) and answer.holds("annotations")


def _ratings(row: Columns) -> Iterator[tuple[str, float]]:
    for name, value in row.values.items():
        if (by := vocabulary.criterion(name)) is None:
            continue
        if isinstance(value, dict):
            inner = row.object(name)
            key = inner.first(_RATINGS)
            value = inner.get(key) if key else None
        if (rating := as_number(value)) is not None:
            row.names_read.add(name)
            yield by, rating


def criteria_of_ratings(ratings: Sequence[Mapping[str, float]]) -> dict[str, Better]:
    """The order of several answers by each criterion, over those of them that it is known of."""
    criteria: dict[str, Better] = {}
    for by in dict.fromkeys(name for one in ratings for name in one):
        known = [index for index, one in enumerate(ratings) if by in one]
        if len(known) > 1:
            tiers = tiers_of_scores([ratings[index][by] for index in known])
            criteria[by] = better_of([[known[i] for i in tier] for tier in tiers], len(ratings))
    return criteria
