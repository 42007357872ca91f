"""Converters of rows that say which answers are better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, StrictInt, field_validator, model_validator

from trueup.data.formats import oasst, published, vocabulary
from trueup.data.formats.columns import Columns, Values
from trueup.data.formats.format import Format, Skipped, any_of
from trueup.data.formats.turns import answer, prompt_of, say, turns, utterances, waits, with_preface
from trueup.data.formats.verdicts import (
    SIDE_KEYS,
    against,
    as_number,
    find_sides,
    number,
    refuse_other_verdict,
    tie_of_pair,
    tiers_of_scores,
    verdict_of_sides,
    whole,
)
from trueup.data.jsonl import excerpt, loads
from trueup.data.records import Message, Preference, Ranking, Row, moment
from trueup.files import Json

# ---- What comes out ---------------------------------------------------------------------------------------------


class Provenance(Row):
    """What Trueup's own files say of a label besides the verdict; the names are those of `records.Ranking`."""

    label_id: str = Field(min_length=1, max_length=200)
    source: str
    created_utc: str
    both_bad: bool = False
    criteria: dict[str, int | None] | None = None
    note: str | None = None
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    guideline_sha256: str | None = None
    sampler: Json = Field({})

    _moment = field_validator("created_utc")(moment)


class ImportedRanking(Row):
    """What one annotator said of the answers to one prompt, in a file. A pair is a ranking of two."""

    where: str
    """File and line."""
    prompt: list[Message]
    completions: list[str]
    completion_token_ids: list[list[int] | None] | None = None
    finished: list[bool] | None = None
    logps: list[float | None] | None = None
    reasonings: list[str] | None = None
    """What a model that reasons wrote before each completion."""
    tiers: list[list[StrictInt]]
    """Indices into `completions`, best tier first; answers in one tier are tied; left out: not ranked."""
    annotator: str = Field(min_length=1, max_length=200)
    category: str | None = None
    strength: int | None = Field(None, ge=1, le=3)
    both_bad: bool = False
    """A tie because neither answer is good."""
    explanation: str | None = None
    """Why it is so; shown to annotators who practise with this row."""
    display_order: list[int] | None = None
    """Indices into `completions` in the order in which they stood on the page."""
    provenance: Provenance | None = None
    """Where the row comes from, if Trueup wrote it."""
    ranks: tuple[int, int] | None = None
    """Tiers that the two completions of a pair have in its ranking, if Trueup wrote the pair."""

    @model_validator(mode="after")
    def _ranks_answers(self) -> ImportedRanking:
        indices, count = [index for tier in self.tiers for index in tier], len(self.completions)
        if len(indices) < 2 or len(set(indices)) < len(indices) or not set(indices) <= set(range(count)):
            raise ValueError(f"{excerpt(self.tiers)} is no order of two or more of {count} completions")
        if not all(self.tiers):
            raise ValueError(f"{excerpt(self.tiers)} has a tier without completions; take it out")
        if self.both_bad and len(self.tiers) > 1:
            raise ValueError(f"both_bad goes with a tie, and {excerpt(self.tiers)} prefers an answer: mend one of them")
        if self.display_order is not None and sorted(self.display_order) != list(range(count)):
            raise ValueError(f"display_order {excerpt(self.display_order)} is no order of {count} completions")
        criteria = (self.provenance.criteria if self.provenance else None) or {}
        if any(better is not None and not 0 <= better < count for better in criteria.values()):
            raise ValueError(f"criteria {excerpt(criteria)} name no completion of {count}")
        for key in OF_AN_ANSWER:
            if (values := getattr(self, key)) is not None and len(values) != count:
                raise ValueError(f"{key}: expected one for each of {count} completions, found {len(values)}")
        return self


# ---- Trueup's own -----------------------------------------------------------------------------------------------

OF_AN_ANSWER = ("completion_token_ids", "finished", "logps", "reasonings")


def is_own(row: Columns) -> bool:
    """Whether Trueup wrote this row: a column `seconds` of somebody else's file may mean anything."""
    return {"label_id", "prompt_id", "source", "annotator", "created_utc"} <= row.values.keys()


def provenance(row: Columns) -> Values | None:
    """What our own row says of its label; its other columns count as read."""
    if not is_own(row):
        return None
    row.names_read |= Ranking.model_fields.keys() | Preference.model_fields.keys()
    return {key: row.values[key] for key in Provenance.model_fields if key in row}


def _trueup_ranking(row: Columns, path: Path) -> list[Values]:
    more = {key: row.get(key) for key in ("display_order", *OF_AN_ANSWER)} if is_own(row) else {}
    if (both_bad := row.get("both_bad")) not in (True, False, None):
        raise ValueError(f"{row.at('both_bad')}: expected true or false, found {excerpt(both_bad)}")
    completions, tiers = row.get("completions"), row.get("tiers")
    if not is_own(row):
        refuse_other_verdict(row, completions, tiers)
        _refuse_other_columns(row, tiers, completions)
    return [
        {"prompt": prompt_of(row), "completions": completions, "tiers": tiers, "both_bad": both_bad or False, **more}
    ]


def _own_pair(row: Columns, sides: list[str]) -> Values:
    """What Trueup's rows say of the two answers and of the ranking that they are part of."""
    if (first := row.get("display_first")) not in ("chosen", "rejected", None):
        raise ValueError(f"display_first: expected chosen, rejected or nothing, found {excerpt(first)}")
    ranks = {key: row.get(f"{key}_rank") for key in ("chosen", "rejected")}
    chosen, rejected = ranks.values()
    if type(chosen) is not int or type(rejected) is not int or chosen >= rejected:
        raise ValueError(f"chosen_rank, rejected_rank: expected a lower and a higher number, found {excerpt(ranks)}")
    return {
        "completion_token_ids": [row.get(f"{side}_token_ids") for side in sides],
        "finished": [row.get(f"{side}_finished") is not False for side in sides],
        "logps": [row.get(f"{side}_logp") for side in sides],
        "reasonings": [row.get(f"{side}_reasoning") or "" for side in sides],
        "display_order": None if first is None else [sides.index(first), 1 - sides.index(first)],
        "ranks": [ranks[side] for side in sides],
    }


# ---- Chosen and rejected ----------------------------------------------------------------------------------------


def read_pair(row: Columns) -> tuple[list[Values], list[str]]:
    """The prompt of a row, and its two answers, the preferred one first."""
    names = [row.first(vocabulary.CHOSEN) or row.first(vocabulary.ANSWERS), row.first(vocabulary.REJECTED)]
    assert names[0] is not None and names[1] is not None
    own: list[Values] = []
    whole = [name for name in vocabulary.CONVERSATIONS if row.holds(name)]
    if any(map(row.holds, vocabulary.QUESTIONS)) or (whole and waits(row, whole[0])):
        prompt = prompt_of(row)
    else:
        own = turns(row, names[0], "assistant")[:-1]
        prompt = with_preface(row, own)
        if not prompt:
            raise ValueError(
                f"{row.at(names[0])}: plain text without a prompt; add a column `prompt`, or write both answers as "
                "messages that begin with it"
            )
    return prompt, [answer(row, name, prompt, len(own)) for name in names if name]


def _pair(row: Columns, path: Path) -> list[Values]:
    prompt, answers = read_pair(row)
    # Not the better one first: whoever disagrees judged the same two answers, and they are one item.
    sides = sorted((0, 1), key=lambda side: (answers[side], side))
    pair: Values = {
        "prompt": prompt,
        "completions": [answers[side] for side in sides],
        "tiers": [[sides.index(0)], [sides.index(1)]],
    }
    if is_own(row):
        return [pair | _own_pair(row, [("chosen", "rejected")[side] for side in sides])]
    if tie := tie_of_pair(row):
        pair |= {"tiers": [[sides.index(0), sides.index(1)]], "both_bad": tie.both_bad}
    return [pair]


# ---- Two answers and a verdict ----------------------------------------------------------------------------------


def _side_by_side(row: Columns, path: Path) -> list[Values]:
    names, sides = find_sides(row)
    verdict = verdict_of_sides(row, names, sides)
    if names[0].startswith("conversation"):
        prompt, answers = _two_conversations(row, names)
    elif all(
        isinstance(row.values.get(one), str) and isinstance(loads(row.values[one]), list) for one in (*names, "prompt")
    ):
        prompt, answers = _two_lists(row, names)
    else:
        prompt = prompt_of(row)
        answers = [answer(row, name, prompt) for name in names]
    return [{"prompt": prompt, "completions": answers, **verdict}]


def _two_conversations(row: Columns, names: list[str]) -> tuple[list[Values], list[str]]:
    """The judged turn of two conversations: `turn` of them, or the last."""
    conversations = []
    for name in names:
        messages = turns(row, name)
        users = [i for i, one in enumerate(messages) if one["role"] == "user"]
        turn = whole(row.get("turn")) if row.there("turn") else len(users)
        if turn is None or not 0 < turn <= len(users):
            raise ValueError(
                f"{row.at('turn')}: expected the number of the judged turn, 1 to {len(users)}, found "
                f"{excerpt(row.values['turn'])}"
            )
        if turn < len(users):
            messages = messages[: users[turn]]
        conversations.append(messages)
    if utterances(conversations[0][:-1]) != utterances(conversations[1][:-1]) or any(
        messages[-1]["role"] != "assistant" for messages in conversations
    ):
        raise ValueError(
            f"{row.at(names[1])}: its conversation parts from {row.at(names[0])} before the last answer, "
            "so the two answer different prompts; take the row out"
        )
    return with_preface(row, conversations[0][:-1]), [str(messages[-1]["content"]) for messages in conversations]


def _two_lists(row: Columns, names: list[str]) -> tuple[list[Values], list[str]]:
    """The arena's 55k rows: prompt and answers are JSON lists of texts, one for each turn."""
    lists = []
    for name in ("prompt", *names):
        texts = loads(row.take(name, str))
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{row.at(name)}: expected a JSON list of texts, found {excerpt(row.values[name])}")
        lists.append(texts)
    asks, first, second = lists
    if not len(asks) == len(first) == len(second) or first[:-1] != second[:-1]:
        raise ValueError(
            f"{row.at(names[1])}: its turns part from {row.at(names[0])} before the last answer, so the "
            "two answer different prompts; take the row out"
        )
    before = [
        say(*turn) for ask, reply in zip(asks, first, strict=True) for turn in (("user", ask), ("assistant", reply))
    ]
    return with_preface(row, before[:-1]), [first[-1], second[-1]]


# ---- Rankings of several ----------------------------------------------------------------------------------------

_LISTS = "completions responses answers candidates outputs generations".split()
_RANKS, _SCORES = ["ranks", "rank"], ["scores", "ratings", "rewards"]
_RANK_KEYS = ["rank"]
_SCORE_KEYS = "fine_grained_score overall_score score pm_score rating reward".split()
_TEXT_KEYS = "text response answer completion content output generation".split()


def _ranking(row: Columns, path: Path) -> list[Values]:
    """Several answers with a rank (1 is best) or a score (the highest is best) of each; equal ones are tied."""
    prompt = prompt_of(row)
    name = row.first(_LISTS)
    assert name is not None
    if all(isinstance(one, str) for one in row.take(name, list)):
        completions = row.items(name, str)
        key = row.first_there([*_RANKS, *_SCORES])
        if key is None:
            raise ValueError(f"{row.at(name)}: no column says which is better; add `ranks`, `scores` or `tiers`")
        values = row.take(key, list)
        if len(values) != len(completions):
            raise ValueError(f"{row.at(key)}: expected one for each of {len(completions)}, found {len(values)}")
        numbers = [
            number(Columns({str(i): value}, row.ledger, f"{row.at(key)}."), str(i)) for i, value in enumerate(values)
        ]
        tiers = tiers_of_scores(numbers, key in _SCORES)
        _refuse_other_columns(row, tiers, completions)
        refuse_other_verdict(row, completions, tiers)
        return [{"prompt": prompt, "completions": completions, "tiers": tiers}]
    completions, numbers = [], []
    scores: list[float | None] = []
    keys: set[str] = set()
    for one in row.objects(name):
        key = one.first_there([*_RANK_KEYS, *_SCORE_KEYS])
        text = one.first(_TEXT_KEYS)
        if key is None or text is None:
            raise ValueError(
                f"{one.within.rstrip('.')}: expected an answer with its rank or score, found "
                f"{excerpt(list(one.values))}"
            )
        keys.add(key)
        completions.append(one.take(text, str))
        numbers.append(number(one, key))
        scores.append(as_number(one.values.get(one.first_there(_SCORE_KEYS) or "")))
    if len(keys) > 1:
        raise ValueError(f"{row.at(name)}: expected one kind of score for all, found {', '.join(sorted(keys))}")
    if len(completions) < 2:
        return [Skipped("one answer alone")]  # type: ignore[list-item]
    tiers = tiers_of_scores(numbers, keys != {"rank"})
    _refuse_other_order(row.at(name), tiers, scores, "their scores")
    refuse_other_verdict(row, completions, tiers)
    return [{"prompt": prompt, "completions": completions, "tiers": tiers}]


def _refuse_other_columns(row: Columns, tiers: Any, completions: Any) -> None:
    """Raise where ranks or scores of a row put two of its answers the other way round than `tiers` do."""
    for name in [one for one in (*_RANKS, *_SCORES) if isinstance(row.values.get(one), list)]:
        numbers = [as_number(value) for value in row.values[name]]
        if isinstance(completions, list) and len(numbers) == len(completions):
            _refuse_other_order(row.at(name), tiers, numbers, "these", name in _SCORES)


def _refuse_other_order(
    column: str, tiers: list[list[int]], others: list[float | None], what: str, higher: bool = True
) -> None:
    """Raise where other numbers of the same answers put two of them the other way round."""
    numbers = [one for one in others if one is not None]
    if len(numbers) == len(others) and (two := against(tiers, tiers_of_scores(numbers, higher))):
        raise ValueError(
            f"{column}: {what} put answers {two[0]} and {two[1]} the other way round than what they are ranked by, so "
            "the row contradicts itself; mend it, or list one of the two columns in ignore_columns"
        )


def join_ratings(rows: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """HelpSteer2: rows of one answer with its ratings become one row for each prompt, where its first one stands.

    The answers are ordered by `helpfulness`. Other rows stay as they are.
    """
    groups: dict[Any, tuple[str, Any]] = {}
    for n, (where, row) in enumerate(rows):
        if not isinstance(row, dict) or not {"prompt", "response", "helpfulness"} <= row.keys():
            groups[n] = where, row
            continue
        one = {"response": row["response"], "score": row["helpfulness"]}
        prompt = {key: value for key, value in row.items() if key not in ("response", *_RATINGS)}
        first = groups.setdefault(excerpt(prompt, 10**9), (where, {**prompt, "responses": []}))
        first[1]["responses"].append(one)
    return list(groups.values())


_RATINGS = "helpfulness correctness coherence complexity verbosity".split()


def _single_answer(row: Columns, path: Path) -> list[Values]:
    name = row.first([*vocabulary.LABELS, "score", "rating"])
    assert name is not None
    raise ValueError(
        f"{row.at(name)}: says that one answer is good or bad, and compares it with no other; a preference needs two "
        "answers to a prompt: pair them as `prompt`, `chosen`, `rejected`, or train on the good ones (sft.data)"
    )


_QUESTION = any_of([*vocabulary.QUESTIONS, *vocabulary.CONVERSATIONS])

PREFERENCES = [
    Format("Trueup's rankings", ("prompt", "completions", "tiers"), _trueup_ranking),
    Format("Label Studio", ("data", "annotations"), published.label_studio),
    Format("Argilla", ("fields", "responses"), published.argilla),
    Format("PandaLM", ("instruction", "response1", "response2", "annotator1"), published.pandalm),
    Format("finegrained_qa", ("question", "passages", "prediction_1", "preference"), published.finegrained_qa),
    Format(
        "OASST trees", ("message_tree_id", "prompt"), oasst.convert_by(oasst.rankings, "tree without ranked answers")
    ),
    Format("summaries", ("info", "summaries", "choice"), published.summaries),
    Format("SHP", ("history", "human_ref_a", "human_ref_b", "labels"), published.shp),
    Format(
        "chosen and rejected", (any_of([*vocabulary.CHOSEN, *vocabulary.ANSWERS]), any_of(vocabulary.REJECTED)), _pair
    ),
    Format("ranked or scored", (_QUESTION, any_of(_LISTS)), _ranking),
    Format("side by side", (SIDE_KEYS,), _side_by_side),
    Format(
        "unpaired",
        (
            _QUESTION,
            any_of([*vocabulary.ANSWERS, *vocabulary.REFERENCES]),
            any_of([*vocabulary.LABELS, "score", "rating"]),
        ),
        _single_answer,
    ),
]
