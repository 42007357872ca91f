"""Converters of preferences as one published set, or one labelling tool, writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from trueup.data.formats.columns import Columns, Values
from trueup.data.formats.format import Skipped
from trueup.data.formats.turns import answer, prompt_of, say, with_preface
from trueup.data.formats.verdicts import (
    FIRST,
    SECOND,
    TIE,
    Claim,
    common_claim,
    find_sides,
    side_score_claims,
    tiers_of_scores,
    whole,
)
from trueup.data.formats.vocabulary import annotator_name, canonical, is_empty
from trueup.data.jsonl import cut, excerpt

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


def summaries(row: Columns, path: Path) -> list[Values]:
    """openai/summarize_from_feedback: a post, or an article, and two summaries of it."""
    info = row.object("info")
    parts = [f"{name.upper()}: {info.take(name, str)}" for name in ("subreddit", "title") if info.holds(name)]
    body = info.first(("post", "article"))
    parts.append(f"{(body or 'post').upper()}: {info.take(body or 'post', str)}")
    completions = [one.take("text", str) for one in row.objects("summaries")]
    choice = whole(row.get("choice"))
    if len(completions) != 2 or choice not in (0, 1):
        raise ValueError(f"{row.at('choice')}: expected 0 or 1 of two summaries, found {excerpt(row.get('choice'))}")
    prompt = with_preface(row, [say("user", "\n\n".join([*parts, "TL;DR:"]))])
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
    """A task of Label Studio, with a pairwise verdict of each annotator."""
    data = row.object("data")
    names, _ = find_sides(data)
    prompt = prompt_of(data)
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
        order = [canonical(name) for name in str(verdicts[0].get("to_name") or "").split(",")]
        order = order if set(order) == set(names) else names
        if side not in ("left", "right"):
            raise ValueError(f"{verdicts[0].at('value')}: expected left or right, found {excerpt(side)}")
        yield {
            "prompt": prompt,
            "completions": [texts[name] for name in order],
            "tiers": (FIRST, SECOND)[side == "right"],
            **_annotator(by),
        }


def argilla(row: Columns, path: Path) -> Iterator[Values | Skipped]:
    """A record of Argilla 2, with a verdict of each annotator: the name of the better field, or all in order."""
    if row.get("status") == "discarded":
        yield Skipped("status: discarded")
        return
    fields = row.object("fields")
    names, _ = find_sides(fields)
    prompt = prompt_of(fields)
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
        order = [canonical(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
        if not order or not set(order) <= set(names):
            raise ValueError(f"{response.at('value')}: expected {' or '.join(names)}, found {excerpt(value)}")
        yield {
            "prompt": prompt,
            "completions": texts,
            "tiers": (FIRST, SECOND)[names.index(order[0])],
            **_annotator(response.get("user_id")),
        }


def _annotator(value: Any) -> Values:
    return {} if is_empty(value) and value != 0 else {"annotator": annotator_name(value)}
