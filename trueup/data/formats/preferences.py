"""Converters of rows that say which answers are better."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, StrictInt, field_validator, model_validator

from trueup.data.formats import columns, oasst
from trueup.data.formats.columns import Columns, Values, is_empty
from trueup.data.formats.format import Format, Skipped, any_of
from trueup.data.formats.turns import asked, continues_hh, is_plain_answer, rendered, say, turns, waits, with_preface
from trueup.data.formats.verdicts import (
    FIRST,
    SECOND,
    TIE,
    Said,
    against,
    agreed,
    as_number,
    number,
    refuse_other_verdict,
    scored,
    tie_of_pair,
    verdict_of_sides,
    whole,
)
from trueup.data.jsonl import cut, loads, shown
from trueup.data.records import Message, Preference, Ranking, Row, moment

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
    sampler: dict[str, Any] = Field({})

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
    tiers: list[list[StrictInt]]
    """Indices into `completions`, best tier first; answers in one tier are tied; left out: not ranked."""
    annotator: str = Field(min_length=1, max_length=200)
    category: str | None = None
    strength: int | None = Field(None, ge=1, le=3)
    both_bad: bool = False
    """A tie because neither answer is good."""
    explanation: str | None = None
    """Why it is so; shown to annotators who practise with this row."""
    shown: list[int] | None = None
    """Indices into `completions` in the order in which they were shown."""
    provenance: Provenance | None = None
    """Of a row that Trueup wrote."""
    ranks: tuple[int, int] | None = None
    """Of a pair that Trueup wrote: tiers of its two completions in the ranking that it is part of."""

    @model_validator(mode="after")
    def _ranks_answers(self) -> ImportedRanking:
        ranked, count = [index for tier in self.tiers for index in tier], len(self.completions)
        if len(ranked) < 2 or len(set(ranked)) < len(ranked) or not set(ranked) <= set(range(count)):
            raise ValueError(f"{shown(self.tiers)} is no order of two or more of {count} completions")
        if not all(self.tiers):
            raise ValueError(f"{shown(self.tiers)} has a tier without completions; take it out")
        if self.shown is not None and sorted(self.shown) != list(range(count)):
            raise ValueError(f"shown {shown(self.shown)} is no order of {count} completions")
        criteria = (self.provenance.criteria if self.provenance else None) or {}
        if any(better is not None and not 0 <= better < count for better in criteria.values()):
            raise ValueError(f"criteria {shown(criteria)} name no completion of {count}")
        for key in ("completion_token_ids", "finished", "logps"):
            if (values := getattr(self, key)) is not None and len(values) != count:
                raise ValueError(f"{key}: expected one for each of {count} completions, found {len(values)}")
        return self


# ---- Trueup's own -----------------------------------------------------------------------------------------------

OF_AN_ANSWER = ("completion_token_ids", "finished", "logps")


def is_own(row: Columns) -> bool:
    """Whether Trueup wrote this row: a column `seconds` of somebody else's file may mean anything."""
    return {"label_id", "prompt_id", "source", "annotator", "created_utc"} <= row.values.keys()


def provenance(row: Columns) -> Values | None:
    """What our own row says of its label; its other columns count as read."""
    if not is_own(row):
        return None
    row.read |= Ranking.model_fields.keys() | Preference.model_fields.keys()
    return {key: row.values[key] for key in Provenance.model_fields if key in row}


def _trueup_ranking(row: Columns, path: Path) -> list[Values]:
    more = {key: row.get(key) for key in ("shown", *OF_AN_ANSWER)} if is_own(row) else {}
    completions, tiers = row.get("completions"), row.get("tiers")
    if not is_own(row):
        refuse_other_verdict(row, completions, tiers)
        _refuse_other_columns(row, tiers, completions)
    return [{"prompt": asked(row), "completions": completions, "tiers": tiers, **more}]


def _own_pair(row: Columns, sides: list[str]) -> Values:
    """What Trueup's rows say of the two answers and of the ranking that they are part of."""
    if (first := row.get("shown_first")) not in ("chosen", "rejected", None):
        raise ValueError(f"shown_first: expected chosen, rejected or nothing, found {shown(first)}")
    ranks = {key: row.get(f"{key}_rank") for key in ("chosen", "rejected")}
    chosen, rejected = ranks.values()
    if type(chosen) is not int or type(rejected) is not int or chosen >= rejected:
        raise ValueError(f"chosen_rank, rejected_rank: expected a lower and a higher number, found {shown(ranks)}")
    return {
        "completion_token_ids": [row.get(f"{side}_token_ids") for side in sides],
        "finished": [row.get(f"{side}_finished") is not False for side in sides],
        "logps": [row.get(f"{side}_logp") for side in sides],
        "shown": None if first is None else [sides.index(first), 1 - sides.index(first)],
        "ranks": [ranks[side] for side in sides],
    }


# ---- Chosen and rejected ----------------------------------------------------------------------------------------


def read_pair(row: Columns) -> tuple[list[Values], list[str]]:
    """The prompt of a row, and its two answers, the preferred one first."""
    names = [row.first(columns.CHOSEN) or row.first(columns.ANSWERS), row.first(columns.REJECTED)]
    assert names[0] is not None and names[1] is not None
    own: list[Values] = []
    whole = [name for name in columns.CONVERSATIONS if row.holds(name)]
    if any(map(row.holds, columns.QUESTIONS)) or (whole and waits(row, whole[0])):
        prompt = asked(row)
    else:
        own = turns(row, names[0], "assistant")[:-1]
        prompt = with_preface(row, own)
        if not prompt:
            raise ValueError(
                f"{row.at(names[0])}: plain text without a prompt; add a column `prompt`, or write both answers as "
                "messages that begin with it"
            )
    return prompt, [answer(row, name, prompt, len(own)) for name in names if name]


def answer(row: Columns, name: str, prompt: list[Values], least: int = 0) -> str:
    """One completion; a conversation that begins with the prompt is taken without it.

    least  how many turns of the prompt it repeats, if any; what other columns put before them it need not repeat
    """
    value = row.values.get(name)
    if isinstance(value, str) and continues_hh(row) and not rendered(value, row.at(name), "assistant"):
        row.read.add(name)
        return value.strip()
    if is_plain_answer(row, name) and not rendered(str(value), row.at(name), "assistant"):
        return str(row.get(name))
    found = turns(row, name, "assistant")
    counts = [*range(min(len(prompt), len(found)), max(least, 1) - 1, -1), 0]
    repeated = next(n for n in counts if _same(found[:n], prompt[len(prompt) - n :]))
    found = found[repeated:]
    if [turn["role"] for turn in found] != ["assistant"]:
        roles = ", ".join(turn["role"] for turn in found[:8]) or "none"
        asks = [row.at(one) for one in row.values if one in row.read and one in _OF_A_PROMPT]
        within = f" ({', '.join(asks)})" if asks else ""
        raise ValueError(
            f"{row.at(name)}: expected one assistant turn after the prompt{within}, found {roles}; both answers must "
            "follow the same conversation"
        )
    return str(found[0]["content"])


_OF_A_PROMPT = {*columns.CONVERSATIONS, *columns.QUESTIONS, *columns.GIVEN, *columns.HISTORY, *columns.SYSTEM}


def _same(turns: list[Values], others: list[Values]) -> bool:
    return [(one["role"], one["content"].strip()) for one in turns] == [
        (one["role"], one["content"].strip()) for one in others
    ]


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

_SIDE = re.compile(
    r"(response|completion|answer|output|reply|generation|candidate|conversation|summary)_?(a|b|[0-9]|j|k)$"
)
_SIDES = [("a", "b"), ("1", "2"), ("0", "1"), ("j", "k")]
SIDE_KEYS = any_of(
    f"{base}{_}{side}" for base in _SIDE.pattern[1:].split(")")[0].split("|") for _ in ("_", "") for side in "a10j"
)


def _find_sides(row: Columns) -> tuple[list[str], tuple[str, str]]:
    """The columns of the two answers, and how they are told apart."""
    found: dict[str, dict[str, str]] = {}
    for name in row.values:
        if (match := _SIDE.match(name)) and row.values[name] is not None:
            found.setdefault(match[1], {})[match[2]] = name
    for sides in found.values():
        for pair in _SIDES:
            if set(sides) == set(pair):
                row.answers = [sides[side] for side in pair]
                return row.answers, pair
    raise ValueError("expected two answers, as response_a and response_b; found " + (_names(found) or "none"))


def _names(found: dict[str, dict[str, str]]) -> str:
    return cut(", ".join(name for sides in found.values() for name in sides.values()), 80)


def _side_by_side(row: Columns, path: Path) -> list[Values]:
    names, sides = _find_sides(row)
    verdict = verdict_of_sides(row, names, sides)
    if names[0].startswith("conversation"):
        prompt, answers = _two_conversations(row, names)
    elif all(
        isinstance(row.values.get(one), str) and isinstance(loads(row.values[one]), list) for one in (*names, "prompt")
    ):
        prompt, answers = _two_lists(row, names)
    else:
        prompt = asked(row)
        answers = [answer(row, name, prompt) for name in names]
    return [{"prompt": prompt, "completions": answers, **verdict}]


def _two_conversations(row: Columns, names: list[str]) -> tuple[list[Values], list[str]]:
    """The judged turn of two conversations: `turn` of them, or the last."""
    asks = []
    for name in names:
        found = turns(row, name)
        users = [i for i, one in enumerate(found) if one["role"] == "user"]
        turn = whole(row.get("turn")) if row.there("turn") else len(users)
        if turn is None or not 0 < turn <= len(users):
            raise ValueError(
                f"{row.at('turn')}: expected the number of the judged turn, 1 to {len(users)}, found "
                f"{shown(row.values['turn'])}"
            )
        if turn < len(users):
            found = found[: users[turn]]
        asks.append(found)
    if not _same(asks[0][:-1], asks[1][:-1]) or any(found[-1]["role"] != "assistant" for found in asks):
        raise ValueError(
            f"{row.at(names[1])}: its conversation parts from {row.at(names[0])} before the last answer, "
            "so the two answer different prompts; take the row out"
        )
    return with_preface(row, asks[0][:-1]), [str(found[-1]["content"]) for found in asks]


def _two_lists(row: Columns, names: list[str]) -> tuple[list[Values], list[str]]:
    """The arena's 55k rows: prompt and answers are JSON lists of texts, one for each turn."""
    lists = []
    for name in ("prompt", *names):
        texts = loads(row.take(name, str))
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{row.at(name)}: expected a JSON list of texts, found {shown(row.values[name])}")
        lists.append(texts)
    asks, first, second = lists
    if not len(asks) == len(first) == len(second) or first[:-1] != second[:-1]:
        raise ValueError(
            f"{row.at(names[1])}: its turns part from {row.at(names[0])} before the last answer, so the "
            "two answer different prompts; take the row out"
        )
    before = [
        say(*turn) for ask, said in zip(asks, first, strict=True) for turn in (("user", ask), ("assistant", said))
    ]
    return with_preface(row, before[:-1]), [first[-1], second[-1]]


def tiers_of_scores(scores: list[float], higher: bool = True) -> list[list[int]]:
    levels = sorted(set(scores), reverse=higher)
    return [[i for i, score in enumerate(scores) if score == level] for level in levels]


# ---- Rankings of several ----------------------------------------------------------------------------------------

_LISTS = "completions responses answers candidates outputs generations".split()
_RANKS, _SCORED = ["ranks", "rank"], ["scores", "ratings", "rewards"]
_RANK_KEYS = ["rank"]
_SCORE_KEYS = "fine_grained_score overall_score score pm_score rating reward".split()
_TEXT_KEYS = "text response answer completion content output generation".split()


def _ranking(row: Columns, path: Path) -> list[Values]:
    """Several answers with a rank (1 is best) or a score (the highest is best) of each; equal ones are tied."""
    prompt = asked(row)
    name = row.first(_LISTS)
    assert name is not None
    if all(isinstance(one, str) for one in row.take(name, list)):
        completions = row.items(name, str)
        key = row.first_there([*_RANKS, *_SCORED])
        if key is None:
            raise ValueError(f"{row.at(name)}: no column says which is better; add `ranks`, `scores` or `tiers`")
        values = row.take(key, list)
        if len(values) != len(completions):
            raise ValueError(f"{row.at(key)}: expected one for each of {len(completions)}, found {len(values)}")
        numbers = [
            number(Columns({str(i): value}, row.ledger, f"{row.at(key)}."), str(i)) for i, value in enumerate(values)
        ]
        tiers = tiers_of_scores(numbers, key in _SCORED)
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
                f"{one.within.rstrip('.')}: expected an answer with its rank or score, found {shown(list(one.values))}"
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
    for name in [one for one in (*_RANKS, *_SCORED) if isinstance(row.values.get(one), list)]:
        numbers = [as_number(value) for value in row.values[name]]
        if isinstance(completions, list) and len(numbers) == len(completions):
            _refuse_other_order(row.at(name), tiers, numbers, "these", name in _SCORED)


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


def rated(rows: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """HelpSteer2: rows of one answer with its ratings become one row for each prompt, where its first one stands.

    The answers are ordered by `helpfulness`. Other rows stay as they are.
    """
    found: dict[Any, tuple[str, Any]] = {}
    for n, (where, row) in enumerate(rows):
        if not isinstance(row, dict) or not {"prompt", "response", "helpfulness"} <= row.keys():
            found[n] = where, row
            continue
        one = {"response": row["response"], "score": row["helpfulness"]}
        prompt = {key: value for key, value in row.items() if key not in ("response", *_RATINGS)}
        first = found.setdefault(shown(prompt, 10**9), (where, {**prompt, "responses": []}))
        first[1]["responses"].append(one)
    return list(found.values())


_RATINGS = "helpfulness correctness coherence complexity verbosity".split()


# ---- One set each -----------------------------------------------------------------------------------------------


def _pandalm(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    prompt = asked(row)
    answers = [row.take(key, str) for key in ("response1", "response2")]
    for key in [key for key in row.values if re.fullmatch(r"annotator\d+", key)]:
        if row.get(key) is None:
            yield Skipped("annotator without a verdict")
        else:
            yield {"prompt": prompt, "completions": answers, "tiers": _of_three(row, key), "annotator": key}


def _of_three(row: Columns, key: str) -> list[list[int]]:
    value = row.get(key)
    if isinstance(value, bool) or value not in (0, 1, 2):
        raise ValueError(f"{row.at(key)}: expected 0 (tie), 1 or 2, found {shown(value)}")
    return (TIE, FIRST, SECOND)[int(value)]


def _finegrained_qa(row: Columns, path: Path) -> list[Values]:
    """Four answers judged in all six pairs: one ranking where the verdicts make an order, else one for each pair."""
    passages = row.items("passages", list) if row.holds("passages") else []
    row.read.add("passages")
    texts = []
    for i, lines in enumerate(passages):
        if not all(isinstance(line, str) for line in lines):
            raise ValueError(f"passages.{i}: expected texts, found {shown(lines)}")
        texts.append("\n".join(lines))
    prompt = with_preface(row, [say("user", "\n\n".join([row.take("question", str), *texts]))])
    answers = [row.take(f"prediction_{k}", str) for k in (1, 2, 3, 4)]
    if len(verdicts := row.take("preference", list)) != 6:
        raise ValueError(f"preference: expected 6 verdicts, found {shown(verdicts)}")
    sides = [_of_three(Columns({"preference": verdict}, row.ledger), "preference") for verdict in verdicts]
    pairs = list(zip(combinations(range(4), 2), sides, strict=True))

    # Wins less losses: if the verdicts make an order at all, it is the one of these scores.
    score = [0.0, 0.0, 0.0, 0.0]
    for (i, j), side in pairs:
        score[i] += (side == FIRST) - (side == SECOND)
        score[j] -= (side == FIRST) - (side == SECOND)
    if all(
        side == (TIE if score[i] == score[j] else FIRST if score[i] > score[j] else SECOND) for (i, j), side in pairs
    ):
        return [{"prompt": prompt, "completions": answers, "tiers": tiers_of_scores(score)}]
    return [{"prompt": prompt, "completions": [answers[i], answers[j]], "tiers": side} for (i, j), side in pairs]


def _summaries(row: Columns, path: Path) -> list[Values]:
    """openai/summarize_from_feedback: a post, or an article, and two summaries of it."""
    info = row.object("info")
    parts = [f"{name.upper()}: {info.take(name, str)}" for name in ("subreddit", "title") if info.holds(name)]
    body = info.first(("post", "article"))
    parts.append(f"{(body or 'post').upper()}: {info.take(body or 'post', str)}")
    completions = [one.take("text", str) for one in row.objects("summaries")]
    choice = whole(row.get("choice"))
    if len(completions) != 2 or choice not in (0, 1):
        raise ValueError(f"{row.at('choice')}: expected 0 or 1 of two summaries, found {shown(row.get('choice'))}")
    prompt = with_preface(row, [say("user", "\n\n".join([*parts, "TL;DR:"]))])
    return [{"prompt": prompt, "completions": completions, "tiers": (FIRST, SECOND)[choice]}]


def _shp(row: Columns, path: Path) -> list[Values]:
    """stanfordnlp/SHP: `labels` is 1 where the first of two comments to a post is preferred, 0 for the second."""
    label = row.get("labels")
    if isinstance(label, bool) or label not in (0, 1):
        raise ValueError(f"{row.at('labels')}: expected 0 or 1, found {shown(label)}")
    completions = [row.take(f"human_ref_{side}", str) for side in "ab"]
    prompt = [say("user", row.take("history", str))]
    said = [
        Said(row.at("labels"), (SECOND, FIRST)[int(label)]),
        *scored(row, ["human_ref_a", "human_ref_b"], ("a", "b")),
    ]
    return [{"prompt": prompt, "completions": completions, "tiers": agreed(said).tiers}]


def _label_studio(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    """A task of Label Studio, with a pairwise verdict of each annotator."""
    data = row.object("data")
    names, _ = _find_sides(data)
    prompt = asked(data)
    texts = {name: answer(data, name, prompt) for name in names}
    for annotation in row.objects("annotations"):
        if annotation.get("was_cancelled"):
            yield Skipped("annotation that was cancelled")
            continue
        by = annotation.get("completed_by")
        by = by.get("email") or by.get("id") if isinstance(by, dict) else by
        verdicts = [one for one in annotation.objects("result") if one.get("type") == "pairwise"]
        if len(verdicts) != 1:
            raise ValueError(f"{annotation.at('result')}: expected one pairwise verdict, found {len(verdicts)}")
        side = verdicts[0].object("value").get("selected")
        order = [columns.canonical(name) for name in str(verdicts[0].get("to_name") or "").split(",")]
        order = order if set(order) == set(names) else names
        if side not in ("left", "right"):
            raise ValueError(f"{verdicts[0].at('value')}: expected left or right, found {shown(side)}")
        said = {"annotator": name_of(by)} if not is_empty(by) or by == 0 else {}
        yield {
            "prompt": prompt,
            "completions": [texts[name] for name in order],
            "tiers": (FIRST, SECOND)[side == "right"],
            **said,
        }


def _argilla(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    """A record of Argilla 2, with a verdict of each annotator: the name of the better field, or all in order."""
    if row.get("status") == "discarded":
        yield Skipped("status: discarded")
        return
    fields = row.object("fields")
    names, _ = _find_sides(fields)
    prompt = asked(fields)
    texts = [answer(fields, name, prompt) for name in names]
    questions = row.object("responses")
    if len(questions.values) != 1:
        raise ValueError(f"responses: expected one question, found {cut(', '.join(questions.values), 80)}")
    [name] = questions.values
    for response in questions.objects(name):
        if response.get("status") not in ("submitted", None):
            yield Skipped(f"response that is {cut(str(response.get('status')), 20)}")
            continue
        value = response.get("value")
        order = [
            columns.canonical(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)
        ]
        if not order or not set(order) <= set(names):
            raise ValueError(f"{response.at('value')}: expected {' or '.join(names)}, found {shown(value)}")
        by = response.get("user_id")
        said = {"annotator": name_of(by)} if not is_empty(by) or by == 0 else {}
        yield {"prompt": prompt, "completions": texts, "tiers": (FIRST, SECOND)[names.index(order[0])], **said}


def name_of(value: Any) -> str:
    """An annotator's name as text, however a file writes it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected the name of an annotator, found {shown(value)}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _unpaired(row: Columns, path: Path) -> list[Values]:
    name = row.first([*columns.LABELS, "score", "rating"])
    assert name is not None
    raise ValueError(
        f"{row.at(name)}: says that one answer is good or bad, and compares it with no other; a preference needs two "
        "answers to a prompt: pair them as `prompt`, `chosen`, `rejected`, or train on the good ones (sft.data)"
    )


_QUESTION = any_of([*columns.QUESTIONS, *columns.CONVERSATIONS])

PREFERENCES = [
    Format("Trueup's rankings", ("prompt", "completions", "tiers"), _trueup_ranking),
    Format("Label Studio", ("data", "annotations"), _label_studio),
    Format("Argilla", ("fields", "responses"), _argilla),
    Format("PandaLM", ("instruction", "response1", "response2", "annotator1"), _pandalm),
    Format("finegrained_qa", ("question", "passages", "prediction_1", "preference"), _finegrained_qa),
    Format(
        "OASST trees", ("message_tree_id", "prompt"), oasst.convert_by(oasst.rankings, "tree without ranked answers")
    ),
    Format("summaries", ("info", "summaries", "choice"), _summaries),
    Format("SHP", ("history", "human_ref_a", "human_ref_b", "labels"), _shp),
    Format("chosen and rejected", (any_of([*columns.CHOSEN, *columns.ANSWERS]), any_of(columns.REJECTED)), _pair),
    Format("ranked or scored", (_QUESTION, any_of(_LISTS)), _ranking),
    Format("side by side", (SIDE_KEYS,), _side_by_side),
    Format(
        "unpaired",
        (_QUESTION, any_of([*columns.ANSWERS, *columns.REFERENCES]), any_of([*columns.LABELS, "score", "rating"])),
        _unpaired,
    ),
]
