"""Converters of rows that say which answers are better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trueup.data.formats import oasst, published, vocabulary
from trueup.data.formats.columns import Columns, Ledger, Values
from trueup.data.formats.criteria import criteria_of_ratings, criteria_of_sides, ratings_of
from trueup.data.formats.format import OF_AN_ANSWER, Format, Skipped, any_of, is_own
from trueup.data.formats.turns import answer, prompt_of, say, turns, utterances, waits, with_preface
from trueup.data.formats.verdicts import (
    SIDE_KEYS,
    STRENGTHS,
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

# ---- Trueup's own -----------------------------------------------------------------------------------------------


def _trueup_ranking(row: Columns, path: Path) -> list[Values]:
    more = {key: row.get(key) for key in ("display_order", *OF_AN_ANSWER)} if is_own(row) else {}
    if (both_bad := row.get("both_bad")) not in (True, False, None):
        raise ValueError(f"{row.at('both_bad')}: expected true or false, found {excerpt(both_bad)}")
    completions, tiers = row.get("completions"), row.get("tiers")
    more["criteria"] = row.get("criteria")
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


def _names_of_pair(row: Columns) -> list[str]:
    """The columns of the better and the worse answer. Where the better one has none, it ends the conversation."""
    better = row.first([*vocabulary.CHOSEN, *vocabulary.ANSWERS]) or row.first(vocabulary.CONVERSATIONS)
    worse = row.first(vocabulary.REJECTED)
    assert better is not None and worse is not None
    return [better, worse]


def _pair_strength(row: Columns) -> Values:
    """How much better the chosen answer is, where a row says it as a number from 1 to 3 on either side of 0."""
    for name in STRENGTHS:
        grade = whole(row.values.get(name))
        if grade is not None and 1 <= abs(grade) <= 3:
            row.names_read.add(name)
            return {"strength": abs(grade)}
    return {}


def read_pair(row: Columns) -> tuple[list[Values], list[str]]:
    """The prompt of a row, and its two answers, the preferred one first."""
    names = _names_of_pair(row)
    if names[0] in vocabulary.CONVERSATIONS:  # ms-swift: the conversation, and another answer to its last turn
        conversation = with_preface(row, turns(row, names[0]))
        if conversation[-1]["role"] != "assistant":
            raise ValueError(f"{row.at(names[0])}: ends without an answer, so {row.at(names[1])} is worse than none")
        prompt = conversation[:-1]
        return prompt, [conversation[-1]["content"], answer(row, names[1], prompt)]
    own: list[Values] = []
    whole = row.held(vocabulary.CONVERSATIONS)
    if _asks_within(row, names):
        own = turns(row, names[0], "assistant")[:-1]
        row.names_read.update(vocabulary.QUESTIONS)
        prompt = with_preface(row, own)
    elif row.held(vocabulary.QUESTIONS) or (whole and waits(row, whole[0])):
        prompt = prompt_of(row)
    else:
        own = turns(row, names[0], "assistant")[:-1]
        prompt = with_preface(row, own)
        if not prompt:
            raise ValueError(
                f"{row.at(names[0])}: plain text without a prompt; add a column `prompt`, or write both answers as "
                "messages that begin with it"
            )
    return prompt, [answer(row, name, prompt, len(own)) for name in names]


def _asks_within(row: Columns, names: list[str]) -> bool:
    """Whether both answers are conversations of several turns, and the one text that asks is a later turn of them."""
    answers = [row.values.get(name) for name in names]
    if not all(isinstance(one, list) for one in answers):
        return False
    asks = [row.values[name] for name in vocabulary.QUESTIONS if row.holds(name)]
    if len(asks) != 1 or not isinstance(asks[0], str):
        return False
    scratch = Columns(dict(zip(names, answers, strict=True)), Ledger(row.ledger.ignore, row.ledger.with_tools))
    conversations = [turns(scratch, name, "assistant") for name in names]
    asked = [[one["content"].strip() for one in turns if one["role"] == "user"] for turns in conversations]
    return all(len(one) > 1 and asks[0].strip() in one[1:] for one in asked)


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
    pair |= _pair_strength(row)
    by = criteria_of_sides(row, _names_of_pair(row), ("chosen", "rejected"))
    pair["criteria"] = {name: sides.index(better) if isinstance(better, int) else better for name, better in by.items()}
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
    criteria = criteria_of_sides(row, names, sides) or None
    return [{"prompt": prompt, "completions": answers, "criteria": criteria, **verdict}]


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
_SCORE_KEYS = "fine_grained_score overall_score score pm_score rating reward helpfulness overall mark".split()
_TEXT_KEYS = "text response answer completion content output generation".split()


def _ranking(row: Columns, path: Path) -> list[Values]:
    """Several answers with a rank (1 is best) or a score (the highest is best) of each; equal ones are tied."""
    prompt = published.post_to_summarise(row) if row.holds("info") else prompt_of(row)
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
    completions, numbers, ratings = [], [], []
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
        completions.append(answer(one, text, prompt))
        numbers.append(number(one, key))
        ratings.append(ratings_of(one))
        scores.append(as_number(one.values.get(one.first_there(_SCORE_KEYS) or "")))
    if len(keys) > 1:
        raise ValueError(f"{row.at(name)}: expected one kind of score for all, found {', '.join(sorted(keys))}")
    if len(completions) < 2:
        return [Skipped("one answer alone")]  # type: ignore[list-item]
    tiers = tiers_of_scores(numbers, keys != {"rank"})
    _refuse_other_order(row.at(name), tiers, scores, "their scores")
    refuse_other_verdict(row, completions, tiers)
    both_bad = keys == {"mark"} and not any(numbers)
    criteria = criteria_of_ratings(ratings) or None
    return [{"prompt": prompt, "completions": completions, "tiers": tiers, "both_bad": both_bad, "criteria": criteria}]


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


def is_rating(row: Any) -> bool:
    """Whether a row is one answer, with its ratings or a mark."""
    return isinstance(row, dict) and _answer_alone(row) is not None


def join_ratings(rows: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Rows of one answer each, with its ratings or a mark, become one row for each prompt, where its first one stands.

    HelpSteer2 orders the answers by `helpfulness`, evaluations of summaries by `overall`; of marks (KTO, thumbs) what
    is good is above what is bad. A mark whose prompt no other row has compares nothing: it stays as it is, and so do
    other rows.
    """
    groups: dict[Any, tuple[str, Any]] = {}
    alone: dict[Any, Any] = {}
    for n, (where, row) in enumerate(rows):
        asked, answers = (_answer_alone(row) if isinstance(row, dict) else None) or (None, [])
        if asked is None:
            groups[n] = where, row
            continue
        key = excerpt(asked, 10**9)
        first = groups.setdefault(key, (where, {**asked, **_of_the_first(row), "responses": []}))
        alone[key] = row if "mark" in answers[0] and key not in alone else None
        first[1]["responses"] += answers
    return [(where, alone.get(key) or row) for key, (where, row) in groups.items()]


def _of_the_first(row: Values) -> Values:
    return {key: value for key, value in row.items() if vocabulary.canonical(key) in vocabulary.ROW_IDS}


def _answer_alone(row: Values) -> tuple[Values, list[Values]] | None:
    """What a row of one answer is about, and that answer with what is said of it; None for any other row."""
    names = {vocabulary.canonical(key): key for key in row}
    if not {"prompt", "response", "helpfulness"} - names.keys():
        ratings = {key: row[key] for name, key in names.items() if vocabulary.criterion(name)}
        answer = {"response": row[names["response"]], **ratings}
    elif not {"info", "summary"} - names.keys() and isinstance(row["summary"], dict):
        axes = row["summary"].get("axes")
        answer = {"response": row["summary"].get("text"), **(axes if isinstance(axes, dict) else {})}
    else:
        return _marked_answer(row, names)
    return _without(row, {"response", "summary", *(vocabulary.canonical(key) for key in answer)}), [answer]


def _marked_answer(row: Values, names: dict[str, str]) -> tuple[Values, list[Values]] | None:
    label = next((name for name in vocabulary.LABELS if name in names), None)
    good = vocabulary.truth(row[names[label]], words=True) if label else None
    if label is None or good is None or (label == "label" and not isinstance(row[names[label]], bool)):
        return None
    if any(name in names for name in (*vocabulary.CHOSEN, *vocabulary.REJECTED)):
        return None
    text = next((name for name in (*vocabulary.ANSWERS, *vocabulary.REFERENCES) if name in names), None)
    if text is not None:
        return _without(row, {label, text}), [{"response": row[names[text]], "mark": int(good)}]
    name = next((name for name in vocabulary.CONVERSATIONS if name in names), None)
    messages = row[names[name]] if name else None
    if not isinstance(messages, list) or len(messages) < 2:
        return None
    asked = _without(row, {label}) | {names[name]: messages[:-1]}  # type: ignore[index]
    return asked, [{"response": messages[-1:], "mark": int(good)}]


def _without(row: Values, names: set[str]) -> Values:
    """A row without these columns, its id, and what differs from answer to answer."""
    return {
        key: value
        for key, value in row.items()
        if (name := vocabulary.canonical(key)) not in names
        and name not in vocabulary.ROW_IDS
        and not vocabulary.OF_A_ROW.search(name)
    }


def _single_answer(row: Columns, path: Path) -> list[Values]:
    name = row.first([*vocabulary.LABELS, "score", "rating"])
    assert name is not None
    raise ValueError(
        f"{row.at(name)}: says that one answer is good or bad, and no other row has an answer to the same prompt with "
        "such a mark; a preference needs two: pair them as `prompt`, `chosen`, `rejected`, or train on the good ones "
        "(sft.data)"
    )


_QUESTION = any_of([*vocabulary.QUESTIONS, *vocabulary.CONVERSATIONS])

PREFERENCES = [
    Format("Trueup's rankings", ("prompt", "completions", "tiers"), _trueup_ranking),
    Format("Label Studio", ("data", "annotations"), published.label_studio),
    Format("Argilla", ("fields", "responses"), published.argilla),
    # Its models said nothing in some rows, and an empty answer is judged like any other.
    Format("PandaLM", ("instruction", "response1|response2", "annotator1"), published.pandalm),
    Format("finegrained_qa", ("question", "passages", "prediction_1", "preference"), published.finegrained_qa),
    Format(
        "OASST trees", ("message_tree_id", "prompt"), oasst.convert_by(oasst.rankings, "tree without ranked answers")
    ),
    Format("summaries", ("info", "summaries", "choice"), published.summaries),
    Format("SHP", ("history", "human_ref_a", "human_ref_b", "labels"), published.shp),
    Format(
        "chosen and rejected",
        (any_of([*vocabulary.CHOSEN, *vocabulary.ANSWERS, *vocabulary.CONVERSATIONS]), any_of(vocabulary.REJECTED)),
        _pair,
    ),
    Format("ranked or scored", (any_of([_QUESTION, "info"]), any_of(_LISTS)), _ranking),
    Format("side by side", (SIDE_KEYS,), _side_by_side),
    Format(
        "unpaired",
        (
            _QUESTION,
            any_of([*vocabulary.ANSWERS, *vocabulary.REFERENCES, *vocabulary.CONVERSATIONS]),
            any_of([*vocabulary.LABELS, "score", "rating"]),
        ),
        _single_answer,
    ),
]
