"""Converters of preferences as one published set, or one labelling tool, writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from trueup.data.formats.columns import Columns, Ledger, Values
from trueup.data.formats.criteria import better_of
from trueup.data.formats.format import Skipped
from trueup.data.formats.turns import answer, prompt_of, say, with_preface
from trueup.data.formats.verdicts import (
    FIRST,
    SECOND,
    TIE,
    Claim,
    as_number,
    common_claim,
    find_answers,
    find_sides,
    named_side,
    side_score_claims,
    tie_in_words,
    tiers_of_scores,
    whole,
)
from trueup.data.formats.vocabulary import annotator_name, canonical, criterion, is_empty
from trueup.data.jsonl import cut, excerpt
from trueup.data.records import Better

# ---- Published sets ---------------------------------------------------------------------------------------------


def pandalm(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    prompt = prompt_of(row)
    answers = [row.take(key, str) for key in ("response1", "response2")]
    for key in [key for key in row.values if re.fullmatch(r"annotator\d+", key)]:
        if row.get(key) is None:
            yield Skipped("annotator without a verdict")
        else:
            yield {"prompt": prompt, "completions": answers, "tiers": _of_three(row, key), "annotator": key}


def _of_three(row: Columns, key: str) -> list[list[int]]:
    value = row.get(key)
    if isinstance(value, bool) or value not in (0, 1, 2):
        raise ValueError(f"{row.at(key)}: expected 0 (tie), 1 or 2, found {excerpt(value)}")
    return (TIE, FIRST, SECOND)[int(value)]


def finegrained_qa(row: Columns, path: Path) -> list[Values]:
    """Four answers judged in all six pairs: one ranking where the verdicts make an order, else one for each pair."""
    passages = row.items("passages", list) if row.holds("passages") else []
    row.names_read.add("passages")
    texts = []
    for i, lines in enumerate(passages):
        if not all(isinstance(line, str) for line in lines):
            raise ValueError(f"passages.{i}: expected texts, found {excerpt(lines)}")
        texts.append("\n".join(lines))
    prompt = with_preface(row, [say("user", "\n\n".join([row.take("question", str), *texts]))])
    answers = [row.take(f"prediction_{k}", str) for k in (1, 2, 3, 4)]
    if len(verdicts := row.take("preference", list)) != 6:
        raise ValueError(f"preference: expected 6 verdicts, found {excerpt(verdicts)}")
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


def post_to_summarise(row: Columns) -> list[Values]:
    """The prompt of openai/summarize_from_feedback: a post, or an article."""
    info = row.object("info")
    parts = [f"{name.upper()}: {info.take(name, str)}" for name in ("subreddit", "title") if info.holds(name)]
    body = info.first(("post", "article"))
    parts.append(f"{(body or 'post').upper()}: {info.take(body or 'post', str)}")
    return with_preface(row, [say("user", "\n\n".join([*parts, "TL;DR:"]))])


def summaries(row: Columns, path: Path) -> list[Values]:
    """openai/summarize_from_feedback: two summaries, of which `choice` is the better one."""
    prompt = post_to_summarise(row)
    completions = [one.take("text", str) for one in row.objects("summaries")]
    choice = whole(row.get("choice"))
    if len(completions) != 2 or choice not in (0, 1):
        raise ValueError(f"{row.at('choice')}: expected 0 or 1 of two summaries, found {excerpt(row.get('choice'))}")
    return [{"prompt": prompt, "completions": completions, "tiers": (FIRST, SECOND)[choice]}]


def shp(row: Columns, path: Path) -> list[Values]:
    """stanfordnlp/SHP: `labels` is 1 where the first of two comments to a post is preferred, 0 for the second."""
    label = row.get("labels")
    if isinstance(label, bool) or label not in (0, 1):
        raise ValueError(f"{row.at('labels')}: expected 0 or 1, found {excerpt(label)}")
    completions = [row.take(f"human_ref_{side}", str) for side in "ab"]
    prompt = [say("user", row.take("history", str))]
    claims = [
        Claim(row.at("labels"), (SECOND, FIRST)[int(label)]),
        *side_score_claims(row, ["human_ref_a", "human_ref_b"], ("a", "b")),
    ]
    return [{"prompt": prompt, "completions": completions, "tiers": common_claim(claims).tiers}]


# ---- Labelling tools --------------------------------------------------------------------------------------------


def label_studio(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    """A task of Label Studio, with a verdict of each annotator: by the tag Pairwise, or Choices that name a side.

    Choices whose control is named for a criterion are of it, and what TextArea holds says why.
    """
    data = row.object("data")
    names, sides = find_sides(data)
    prompt = prompt_of(data)
    texts = [answer(data, name, prompt) for name in names]
    for annotation in row.objects("annotations"):
        if annotation.get("was_cancelled"):
            yield Skipped("annotation that was cancelled")
            continue
        by = annotation.get("completed_by")
        by = by.get("email") or by.get("id") if isinstance(by, dict) else by
        orders, reasons = [], []
        criteria: dict[str, Better] = {}
        for result in annotation.objects("result"):
            kind, control = result.get("type"), canonical(str(result.get("from_name") or ""))
            if kind in ("pairwise", "choices"):
                claim = _choice(result, str(kind), names, sides)
                if named := criterion(control):
                    criteria[named] = better_of(claim.tiers, 2)
                else:
                    orders.append(claim)
            elif kind == "textarea":
                texts_of_it = result.object("value").get("text")
                reasons += texts_of_it if isinstance(texts_of_it, list) else [texts_of_it]
        if len(orders) != 1:
            raise ValueError(f"{annotation.at('result')}: expected one pairwise verdict, found {len(orders)}")
        yield {
            "prompt": prompt,
            "completions": texts,
            "tiers": orders[0].tiers,
            "both_bad": orders[0].both_bad,
            **_beside(by, criteria, reasons),
        }


def _choice(result: Columns, kind: str, names: list[str], sides: tuple[str, str]) -> Claim:
    """What one result of Label Studio says. Left is the first of `to_name`, where that names both answers."""
    value = result.object("value")
    choice = value.get("selected") if kind == "pairwise" else value.get("choices")
    choice = choice[0] if isinstance(choice, list) and len(choice) == 1 else choice
    order = [canonical(name) for name in str(result.get("to_name") or "").split(",")]
    if choice in ("left", "right") and set(order) == set(names):
        choice = order[choice == "right"]
    claim = named_side(Columns({"choice": choice}, Ledger()), "choice", names, sides)
    if claim is None:
        expectation = "left or right" if kind == "pairwise" else f"{' or '.join(names)} or tie"
        raise ValueError(f"{result.at('value')}: expected {expectation}, found {excerpt(choice)}")
    return claim


def argilla(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    """A record of Argilla 2, with a verdict of each annotator: the name of the better field, or all in order.

    A question that is named for a criterion is of it, and a text says why.
    """
    if row.get("status") == "discarded":
        yield Skipped("status: discarded")
        return
    fields = row.object("fields")
    names = find_answers(fields)
    prompt = prompt_of(fields)
    texts = [answer(fields, name, prompt) for name in names]
    questions = row.object("responses")
    by_user: dict[str, dict[str, Columns]] = {}
    for question in list(questions.values):
        for n, response in enumerate(questions.objects(question)):
            if response.get("status") not in ("submitted", None):
                yield Skipped(f"response that is {cut(str(response.get('status')), 20)}")
            else:
                user = response.get("user_id")
                by_user.setdefault(str(n if is_empty(user) else user), {})[question] = response
    for responses in by_user.values():
        orders, reasons = [], []
        criteria: dict[str, Better] = {}
        for question, response in responses.items():
            order = _order_of_names(response, names, alone=len(responses) == 1)
            if order is None:
                reasons.append(response.values.get("value"))
            elif named := criterion(question):
                criteria[named] = better_of(order.tiers, len(names))
            else:
                orders.append(order)
        if len(orders) != 1:
            raise ValueError(
                f"responses: expected one question that orders the answers, found {len(orders)} among "
                f"{cut(', '.join(responses), 80)}"
            )
        user = next(iter(responses.values())).get("user_id")
        yield {
            "prompt": prompt,
            "completions": texts,
            "tiers": orders[0].tiers,
            "both_bad": orders[0].both_bad,
            **_beside(user, criteria, reasons),
        }


def _order_of_names(response: Columns, names: list[str], alone: bool) -> Claim | None:
    """The order of the fields in a response: one or all of their names, each with its rank perhaps, or a tie. None: it
    is about something else, which the only response of an annotator is not."""
    value = response.get("value")
    at = response.at("value")
    entries = value if isinstance(value, list) else [value]
    if entries and all(isinstance(one, dict) and {"value", "rank"} <= one.keys() for one in entries):
        ranks = {canonical(str(one["value"])): as_number(one["rank"]) for one in entries}
        if set(ranks) == set(names) and None not in ranks.values():
            return Claim(at, tiers_of_scores([ranks[name] or 0 for name in names], higher=False))
    if isinstance(value, str) and (tie := tie_in_words(value, at)):
        return tie._replace(tiers=[list(range(len(names)))])
    order = [canonical(one) for one in entries if isinstance(one, str)]
    if order and set(order) <= set(names) and len(set(order)) == len(order) == len(entries):
        rest = [index for index, name in enumerate(names) if name not in order]
        return Claim(at, [*([names.index(name)] for name in order), *([rest] if rest else [])])
    if alone:
        raise ValueError(f"{at}: expected {' or '.join(names)}, found {excerpt(value)}")
    return None


def _beside(by: Any, criteria: dict[str, Better], reasons: list[Any]) -> Values:
    """Who said so, by which criteria, and why, of what is known."""
    values: Values = {} if is_empty(by) and by != 0 else {"annotator": annotator_name(by)}
    if criteria:
        values["criteria"] = criteria
    if texts := [one.strip() for one in reasons if isinstance(one, str) and one.strip()]:
        values["explanation"] = " ".join(texts)
    return values
