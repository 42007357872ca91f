"""What the report shows of samples.jsonl: every prompt with its answers, examples of them, and the lengths."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlhf.html import policy_title, title
from trueup.data.visible import seen
from trueup.pages import plots
from trueup.pages.worddiff import marked
from trueup.pages.wording import decimals, leans

EXAMPLES = 4
"""Prompts shown of each kind: won, lost, undecided."""

Row = Mapping[str, Any]
"""A row of samples.jsonl: a prompt with the completions of every policy."""


@dataclass(frozen=True)
class AnswerView:
    """An answer as the page shows it."""

    html: Markup
    """Empty where there is nothing but white space to read."""
    finished: bool
    notes: list[str]
    """Number of tokens, and the score of each judge."""


@dataclass(frozen=True)
class Side:
    """The answers of one policy."""

    title: str
    style: str
    answers: list[AnswerView]


@dataclass(frozen=True)
class PromptView:
    """A prompt with all answers to it."""

    id: str
    prompt: list[Mapping[str, Any]]
    line: str
    """What was asked, on one line."""
    category: str
    shares: dict[str, float | None]
    verdicts: list[tuple[str, str, Markup]]
    """(judge, what it says, bar)."""
    sides: list[Side]
    compared: bool
    """Whether the first answers show what differs."""
    others: list[Side]


def prompt_view(row: Row) -> PromptView:
    """All answers to one prompt, and how each judge saw them."""
    shares = row.get("win_share") or {}
    verdicts = [
        (
            title(judge),
            leans(share),
            plots.shares_bar([("won", share), ("lost", 1 - share)] if share is not None else [], 8),
        )
        for judge, share in shares.items()
    ]
    sft, aligned = row["sft"], row["aligned"]
    pair = marked(sft[0]["text"], aligned[0]["text"]) if sft and aligned else None
    before, after = pair if pair else (None, None)
    others = [
        Side(policy_title(name), "other", [_answer(completion) for completion in answers])
        for name, answers in row["others"].items()
    ]
    asked = next((turn["content"] for turn in reversed(row["prompt"]) if turn["role"] == "user"), "")
    return PromptView(
        row["prompt_id"],
        row["prompt"],
        " ".join(asked.split()) or "(no question)",
        row.get("category") or "",
        dict(shares),
        verdicts,
        [
            Side("SFT", "reference", [_answer(one, before if i == 0 else None) for i, one in enumerate(sft)]),
            Side("Aligned", "aligned", [_answer(one, after if i == 0 else None) for i, one in enumerate(aligned)]),
        ],
        pair is not None,
        others,
    )


def _answer(completion: Row, html: Markup | None = None) -> AnswerView:
    notes = [f"{completion['num_tokens']} tokens"] if completion.get("num_tokens") is not None else []
    for judge, score in (completion.get("scores") or {}).items():
        if score is not None:
            notes.append(f"{title(judge)} {decimals(score, 2)}")
    if html is None:
        html = seen(completion["text"]) if completion["text"].strip() else Markup("")
    return AnswerView(html, bool(completion.get("finished", True)), notes)


def pick_examples(rows: Sequence[Row], judge: str, seed: int) -> list[tuple[str, list[Row]]]:
    """A few prompts of each kind, drawn by the seed and not by eye: (kind, rows). Others fill up where ties are few."""
    draw = random.Random(seed)

    def some(of: Iterable[Row], count: int = EXAMPLES) -> list[Row]:
        listed = list(of)
        return draw.sample(listed, min(count, len(listed)))

    judged = [(row, row["win_share"][judge]) for row in rows if (row.get("win_share") or {}).get(judge) is not None]
    won = some(row for row, share in judged if share > 0.5)
    lost = some(row for row, share in judged if share < 0.5)
    tied = some(row for row, share in judged if share == 0.5)
    shown = {row["prompt_id"] for row in (*won, *lost, *tied)}
    filled = some((row for row in rows if row["prompt_id"] not in shown), EXAMPLES - len(tied))
    kinds = [("The aligned policy wins more of the comparisons", won), ("The SFT policy wins more of them", lost)]
    kinds += [("Neither wins more", tied), ("Drawn from all others", filled)]
    return [(kind, chosen) for kind, chosen in kinds if chosen]


def length_histogram(rows: Sequence[Row]) -> Markup:
    """How long the answers of the SFT and of the aligned policy are."""
    series = [
        plots.Series(name, style, [answer["num_tokens"] for row in rows for answer in row[policy]])
        for name, policy, style in (("SFT", "sft", "s-reference"), ("aligned", "aligned", "s-aligned"))
    ]
    return plots.histogram(series, "tokens")
