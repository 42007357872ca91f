"""What the columns of a row say of which of two answers is better, all of them: refused where they disagree.

A row may say it several times: by the names of its columns (`chosen`), a `winner`, a tie, scores, ranks. The first of
these is no better than the others, so each that can be read is read. Scores of several kinds are one voice: they are
tied only where all are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from trueup.data.formats import vocabulary
from trueup.data.formats.columns import Columns, Values
from trueup.data.formats.format import any_of
from trueup.data.formats.vocabulary import IGNORE
from trueup.data.jsonl import cut, excerpt

TIE, FIRST, SECOND = [[0, 1]], [[0], [1]], [[1], [0]]
VERDICTS = "winner preference preferred choice better better_response better_response_id verdict vote label".split()
VERDICTS += ["labels", "selected", "overall_preference", "preference_strength"]
STRENGTHS = ("overall_preference", "preference_strength")
"""-3 to 3: below 0 the first is better (HelpSteer2 and 3)."""
SWAP_COLUMNS = "swapped is_swapped flipped is_flipped reversed inverted".split()
_TIES = "tie draw equal same both both_good both_bad bothbad neither".split()
_OF_A_SIDE = "response completion answer output reply generation candidate".split()
_A_SIDE = re.compile(r"(?:(?:model|completion|response|answer|output|assistant|side)_?)?(a|b|[0-9])")
_RANKS = "ranks ranking rankings rank".split()
_MARGINS = "margin score_margin reward_margin rating_margin score_diff score_difference rating_diff delta".split()
_OF_A_LOSS = ("margin", "delta")
"""Columns in which 0 may be how sure somebody was, and no tie."""
_MEASURES = "score scores rating ratings reward rewards grade quality points stars votes upvotes likes rank".split()
_KINDS = "avg average mean overall total final rm human llm judge gpt4 normalized of".split()
"""What may stand beside one of _MEASURES in a name. Any other word may turn it round: the toxicity score."""


class Claim(NamedTuple):
    """What one column says of which of two answers is better."""

    column: str
    """As an error names it."""
    tiers: list[list[int]]
    both_bad: bool = False


def common_claim(claims: Sequence[Claim]) -> Claim:
    """The claim that all of them make; a ValueError names two that disagree."""
    first = claims[0]
    for other in claims[1:]:
        if other.tiers != first.tiers:
            raise ValueError(
                f"{other.column}: says that {_in_words(other)}, and {first.column} that {_in_words(first)}, so the row "
                "contradicts itself; mend it, or list one of the two columns in ignore_columns"
            )
    return next((one for one in claims if one.both_bad), first)


def _in_words(claim: Claim) -> str:
    if claim.tiers == TIE:
        return "the two are equal"
    return f"the {'first' if claim.tiers == FIRST else 'second'} is better"


def refuse_swap(row: Columns) -> None:
    for name in SWAP_COLUMNS:
        if vocabulary.truth(row.get(name)):
            raise ValueError(
                f"{row.at(name)}: the verdict may be of the sides as they were swapped; write it of these, or {IGNORE}"
            )


# ---- Chosen and rejected ----------------------------------------------------------------------------------------


def tie_of_pair(row: Columns) -> Claim | None:
    """The tie that a row of chosen and rejected says its answers are, or None; refuses whatever turns the two round."""
    refuse_swap(row)
    claims = [
        *_tie_claims(row),
        *_name_claims(row),
        *_rank_claims(row, ("chosen", "rejected")),
        *_pair_score_claims(row),
    ]
    for one in claims:
        if one.tiers == SECOND:
            raise ValueError(
                f"{one.column}: says that the rejected answer is better, so the row contradicts itself; swap the "
                f"answers, or {IGNORE}"
            )
    verdict = common_claim(claims) if claims else None
    return verdict if verdict and verdict.tiers == TIE else None


def _tie_claims(row: Columns) -> Iterator[Claim]:
    for name in ("tie", "is_tie"):
        if vocabulary.truth(row.get(name)):
            yield Claim(row.at(name), TIE)
    if row.values.get("status") == "tie":
        row.names_read.add("status")
        yield Claim(row.at("status"), TIE)


def _name_claims(row: Columns) -> Iterator[Claim]:
    sides = [row.first(vocabulary.CHOSEN) or row.first(vocabulary.ANSWERS), row.first(vocabulary.REJECTED)]
    texts = [row.values.get(side or "") for side in sides]
    for name in [name for name in VERDICTS if row.there(name) and name not in sides]:
        value = row.values[name]
        if name in STRENGTHS:
            if value in (0, "0"):
                row.names_read.add(name)
                yield Claim(row.at(name), TIE)
        elif isinstance(value, str) and value in texts:
            row.names_read.add(name)
            yield Claim(row.at(name), (FIRST, SECOND)[texts.index(value)])
        elif isinstance(value, str) and (text := _text_of_side(row, _word(value))) in texts and text is not None:
            row.names_read.add(name)
            yield Claim(row.at(name), (FIRST, SECOND)[texts.index(text)])
        elif isinstance(value, str) and (word := _word(value)) in ("chosen", "rejected"):
            row.names_read.add(name)
            yield Claim(row.at(name), (FIRST, SECOND)[word == "rejected"])
        elif isinstance(value, str) and (tie := tie_in_words(value, row.at(name))):
            row.names_read.add(name)
            yield tie
        elif value is True:
            row.names_read.add(name)
        elif value is False or str(value).strip() in ("-1", "0", "1", "2", "0.0", "1.0", "2.0"):
            raise ValueError(
                f"{row.at(name)}: {excerpt(value)} may say which of the two is better, or that they are equal; write "
                f"chosen, rejected or tie, or {IGNORE}"
            )


def _text_of_side(row: Columns, word: str) -> Any:
    """The answer that a side's name stands for, where the row has the answers by side too."""
    side = _A_SIDE.fullmatch(word)
    names = [f"{base}{_}{side[1]}" for base in _OF_A_SIDE for _ in ("_", "")] if side else []
    return next((row.values[name] for name in names if name in row), None)


def _pair_score_claims(row: Columns) -> list[Claim]:
    """What scores and ranks of the two say, and a margin between them."""
    claims = []
    for name in row.values:
        words = name.split("_")
        at = next((i for i, word in enumerate(words) if word in ("chosen", "preferred")), None)
        if at is None or words[at - 1 : at] in (["non"], ["not"]):
            continue
        rest = words[:at] + words[at + 1 :]
        if not any(word in _MEASURES for word in rest) or not set(rest) <= {*_MEASURES, *_KINDS}:
            continue
        others = ["rejected"] if words[at] == "chosen" else ["rejected", "dispreferred", "non_preferred"]
        other = next((one for end in others if (one := "_".join([*words[:at], end, *words[at + 1 :]])) in row), None)
        if other is None or not all(map(row.there, (name, other))):
            continue
        if any(isinstance(row.values[one], list | dict) for one in (name, other)):
            continue
        better, worse = number(row, name), number(row, other)
        lower_is_better = "rank" in rest
        if better != worse and (better < worse) != lower_is_better:
            how = "above" if lower_is_better else "below"
            raise ValueError(
                f"{row.at(name)}: {better:g} is {how} {row.at(other)}, {worse:g}, so the row contradicts itself; swap "
                "the answers, or list both columns in ignore_columns"
            )
        claims.append(Claim(row.at(name), TIE if better == worse else FIRST))
    for name in _MARGINS:
        margin = as_number(row.values.get(name))
        if margin is not None and (margin < 0 or (margin == 0 and name not in _OF_A_LOSS)):
            row.names_read.add(name)
            claims.append(Claim(row.at(name), SECOND if margin < 0 else TIE))
    return one_voice(claims)


def one_voice(claims: list[Claim]) -> list[Claim]:
    """The strict ones among several scores, or a tie if none is strict."""
    return [one for one in claims if one.tiers != TIE] or claims[:1]


# ---- Two sides --------------------------------------------------------------------------------------------------

_SIDE = re.compile(
    r"(response|completion|answer|output|reply|generation|candidate|conversation|summary)_?(a|b|[0-9]|j|k)$"
)
_SIDES = [("a", "b"), ("1", "2"), ("0", "1"), ("j", "k")]
SIDE_KEYS = any_of(
    f"{base}{_}{side}" for base in _SIDE.pattern[1:].split(")")[0].split("|") for _ in ("_", "") for side in "a10j"
)


def _groups(row: Columns) -> dict[str, dict[str, str]]:
    """Columns that hold answers, by what they are called and what tells them apart."""
    groups: dict[str, dict[str, str]] = {}
    for name in row.values:
        if (match := _SIDE.match(name)) and row.values[name] is not None:
            groups.setdefault(match[1], {})[match[2]] = name
    return groups


def find_answers(row: Columns) -> list[str]:
    """The columns of two or more answers."""
    row.answers = next((list(sides.values()) for sides in _groups(row).values() if len(sides) > 2), [])
    return row.answers or find_sides(row)[0]


def find_sides(row: Columns) -> tuple[list[str], tuple[str, str]]:
    """The columns of the two answers, and how they are told apart."""
    groups = _groups(row)
    for sides in groups.values():
        for pair in _SIDES:
            if set(sides) == set(pair):
                row.answers = [sides[side] for side in pair]
                return row.answers, pair
    raise ValueError("expected two answers, as response_a and response_b; found " + (_names(groups) or "none"))


def _names(groups: dict[str, dict[str, str]]) -> str:
    return cut(", ".join(name for sides in groups.values() for name in sides.values()), 80)


def verdict_of_sides(row: Columns, names: list[str], sides: tuple[str, str]) -> Values:
    """Tiers of two answers, their columns `names` told apart by `sides`, with the strength where a row says it."""
    refuse_swap(row)
    claims, more = list(_tie_claims(row)), Values()
    if sides == ("j", "k"):  # lvwerra/stack-exchange-paired: j is the better one
        claims.append(Claim(row.at(names[0]), FIRST))
    one_hot = [f"winner_model_{side}" for side in sides] + ["winner_tie"]
    if all(name in row for name in one_hot):
        votes = [vocabulary.truth(row.get(name)) for name in one_hot]
        if votes.count(True) != 1:
            raise ValueError(
                f"{row.at(one_hot[0])}: expected one of {', '.join(one_hot)} to be 1, found {excerpt(votes)}"
            )
        claims.append(Claim(row.at(one_hot[votes.index(True)]), (FIRST, SECOND, TIE)[votes.index(True)]))
    claims += _selected(row)
    main = None if claims else row.first_there(VERDICTS)
    for name in [name for name in VERDICTS if row.there(name) or name == main]:
        one = _strength(row, name, more) if name in STRENGTHS else named_side(row, name, names, sides)
        if one is not None:
            row.names_read.add(name)
            claims.append(one)
        elif name == main:
            raise ValueError(
                f"{row.at(name)}: expected {_allowed_values(name, sides)}, found {excerpt(row.values[name])}"
            )
    claims += [*_rank_claims(row, sides), *side_score_claims(row, names, sides, alone=not claims)]
    if not claims:
        raise ValueError(f"{row.at(names[1])}: no column says which answer is better; known are {', '.join(VERDICTS)}")
    verdict = common_claim(claims)
    if verdict.tiers != TIE and (grade := _grade_of_scores(row, sides)):
        more.setdefault("strength", grade)
    return {"tiers": verdict.tiers, "both_bad": verdict.both_bad, **more}


def _selected(row: Columns) -> Iterator[Claim]:
    """The pairwise verdict of a row in Label Studio's JSON_MIN, whatever its control is called."""
    for name, value in row.values.items():
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(one, dict) and one.get("selected") in ("left", "right") and not vocabulary.criterion(name):
            row.names_read.add(name)
            yield Claim(row.at(name), (FIRST, SECOND)[one["selected"] == "right"])


def _allowed_values(name: str, sides: tuple[str, str]) -> str:
    if name in STRENGTHS:
        return "-3 to 3"
    return "a, b, model_a, model_b or tie" if sides == ("a", "b") else f"{sides[0]}, {sides[1]} or tie"


def _grade_of_scores(row: Columns, sides: tuple[str, str]) -> int | None:
    """How much better one side is, where the scores are s and -s, not above 1: slightly up to 1/3, better up to 2/3."""
    first, second = (as_number(row.values.get(f"score_{side}")) for side in sides)
    if first is None or second is None or first != -second or not 0 < abs(first) <= 1:
        return None
    return math.ceil(3 * abs(first) - 1e-9)


def _strength(row: Columns, name: str, more: Values) -> Claim | None:
    value = whole(row.values[name])
    if value is None or not -3 <= value <= 3:
        return None
    more.setdefault("strength", abs(value) or None)
    return Claim(row.at(name), TIE if value == 0 else FIRST if value < 0 else SECOND)


def named_side(row: Columns, name: str, names: Sequence[str], sides: Sequence[str]) -> Claim | None:
    """What a column says that names one of two sides, or a tie; None where it names neither."""
    value = row.values[name]
    if isinstance(value, float) and 1 < value < 2 and tuple(sides) == ("1", "2"):  # AlpacaEval: an expectation
        return Claim(row.at(name), _order([1.5, value]))
    if (count := whole(value)) is not None and tuple(sides) != ("a", "b"):
        value = str(count)
    if not isinstance(value, str):
        return None
    word = _word(value)
    side = _A_SIDE.fullmatch(word)
    if word in names:
        return Claim(row.at(name), (FIRST, SECOND)[list(names).index(word)])
    if side and side[1] in sides:
        return Claim(row.at(name), (FIRST, SECOND)[list(sides).index(side[1])])
    if word in ("left", "right"):
        return Claim(row.at(name), (FIRST, SECOND)[word == "right"])
    if tie := tie_in_words(value, row.at(name)):
        return tie
    models = [row.values.get(f"model_{one}") for one in sides]
    return Claim(row.at(name), (FIRST, SECOND)[models.index(value)]) if models.count(value) == 1 else None


def side_score_claims(row: Columns, names: list[str], sides: tuple[str, str], alone: bool = False) -> list[Claim]:
    """What scores of the two sides say; `alone`: nothing else does, so that they must be numbers."""
    claims = []
    for measure in ("score", "rating", "reward"):
        patterns = [f"{measure}_{{}}", f"{measure}{{}}", f"{{}}_{measure}", f"{{}}{measure}"]
        for keys in [[pattern.format(one) for one in pair] for pattern in patterns for pair in (sides, names)]:
            if all(key in row for key in keys):
                values = [as_number(row.values[key]) for key in keys]
                if alone or None not in values:
                    claims.append(Claim(row.at(keys[0]), _order([number(row, key) for key in keys])))
        if (name := f"{measure}s") in row and isinstance(row.values[name], list) and len(row.values[name]) == 2:
            values = [as_number(value) for value in row.values[name]]
            if None not in values:
                row.names_read.add(name)
                claims.append(Claim(row.at(name), _order(values)))
    return one_voice(claims)


# ---- Words and numbers ------------------------------------------------------------------------------------------


def _rank_claims(row: Columns, sides: Sequence[str]) -> Iterator[Claim]:
    """What a ranking beside two answers says: their ranks in order (1 is best), by name, or their names in order."""
    for name in [name for name in _RANKS if row.there(name)]:
        value = row.values[name]
        if isinstance(value, dict):
            value = [{vocabulary.canonical(str(key)): rank for key, rank in value.items()}.get(side) for side in sides]
        tiers = None
        if isinstance(value, list) and len(value) == 2:
            ranks = [as_number(one) for one in value]
            if None not in ranks:
                tiers = _order([-rank for rank in ranks if rank is not None])
            elif (order := [vocabulary.canonical(str(one)) for one in value]) in (list(sides), list(sides)[::-1]):
                tiers = FIRST if order == list(sides) else SECOND
        elif name == "rank" and value in (0, 1, "0", "1") and not isinstance(value, bool):
            continue  # of a list that these two are the best of
        if tiers is None:
            raise ValueError(
                f"{row.at(name)}: {excerpt(value)} may say which of the two is better; write a rank of each, such as "
                f"[1, 2] where the first is better, or {IGNORE}"
            )
        row.names_read.add(name)
        yield Claim(row.at(name), tiers)


def _order(scores: Sequence[float | None]) -> list[list[int]]:
    first, second = scores
    assert first is not None and second is not None
    return TIE if first == second else FIRST if first > second else SECOND


def tiers_of_scores(scores: Sequence[float], higher: bool = True) -> list[list[int]]:
    levels = sorted(set(scores), reverse=higher)
    return [[i for i, score in enumerate(scores) if score == level] for level in levels]


def _word(text: str) -> str:
    return re.sub(r"[\s()\-]+", "_", text.strip().lower()).strip("_")


def tie_in_words(text: str, column: str) -> Claim | None:
    """The tie that a text names, if it does."""
    word = _word(text)
    if word in _TIES or re.match(r"tied?(_|$)", word):
        return Claim(column, TIE, "bad" in word or word == "neither")
    return None


def as_number(value: Any) -> float | None:
    """A finite number, as such or as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """A whole number, be it written as 1.0: so a table with an empty cell writes all numbers of its column."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(row: Columns, name: str) -> float:
    value = as_number(row.get(name))
    if value is None:
        raise ValueError(f"{row.at(name)}: expected a number, found {excerpt(row.values.get(name))}")
    return value


def refuse_other_verdict(row: Columns, completions: Any, tiers: Any) -> None:
    """Raise where a row that ranks several answers also says that they are equal, or that another one is the best."""
    try:
        best = {completions[i] for i in tiers[0]}
    except (TypeError, IndexError, KeyError):
        return  # it is refused for what it is
    for one in _tie_claims(row):
        if len(tiers) > 1:
            raise ValueError(
                f"{one.column}: says that the answers are equal, and they are ranked; mend it, or {IGNORE}"
            )
    for name in [name for name in VERDICTS if row.there(name)]:
        value = row.values[name]
        winners = {value} if isinstance(value, str) and value in completions else set()
        count = whole(value)
        if count is not None and 0 <= count <= len(completions):  # counted from 0, or from 1
            winners = {completions[i] for i in (count, count - 1) if 0 <= i < len(completions)}
        if winners and not winners & best:
            raise ValueError(
                f"{row.at(name)}: {excerpt(value)} is not the answer that is ranked best, so the row contradicts "
                f"itself; mend it, or {IGNORE}"
            )


def against(first: list[list[int]], second: list[list[int]]) -> tuple[int, int] | None:
    """Two answers that one order puts this way round and the other that way round."""
    try:
        places = [{i: level for level, tier in enumerate(order) for i in tier} for order in (first, second)]
    except TypeError:
        return None  # no order at all, which is refused for what it is
    both: Iterable[int] = sorted(places[0].keys() & places[1].keys())
    for i in both:
        for j in both:
            if places[0][i] < places[0][j] and places[1][i] > places[1][j]:
                return i, j
    return None
