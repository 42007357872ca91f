"""Judgements: from places on the screen to an order of the item's answers, and back. Pure functions.

Places are those on the screen (0 is A), indices are the item's own order; `drawn[place]` is the index shown there.
Tiers are groups of answers, best first; answers in one tier are tied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, get_args

Tiers = list[list[int]]
Scale = Literal["plain", "graded"]
Choice = Literal[
    "a_much", "a", "a_slightly", "tie", "b_slightly", "b", "b_much", "both_bad", "skip", "flag"
]  # fmt: skip

GRADED: tuple[Choice, ...] = get_args(Choice)
PLAIN: tuple[Choice, ...] = ("a", "tie", "b", "both_bad", "skip", "flag")
_STRENGTHS = {"slightly": 1, "": 2, "much": 3}
_NAMES = {1: "_slightly", 2: "", 3: "_much", None: ""}


def choices(scale: Scale) -> tuple[Choice, ...]:
    """The choices for a pair."""
    return GRADED if scale == "graded" else PLAIN


def meaning_of(choice: str, scale: Scale) -> tuple[Tiers | None, int | None]:
    """Tiers of places, and strength, of a choice; (None, None) for a skip or a flag."""
    if choice in ("skip", "flag"):
        return None, None
    if choice in ("tie", "both_bad"):
        return [[0, 1]], None
    side, _, much = choice.partition("_")
    tiers = [[0], [1]] if side == "a" else [[1], [0]]
    return tiers, _STRENGTHS[much] if scale == "graded" else None


def choice_of(tiers: Tiers, strength: int | None, both_bad: bool, drawn: Sequence[int]) -> str:
    """The choice behind a stored label of a pair."""
    if len(tiers) == 1:
        return "both_bad" if both_bad else "tie"
    return "ab"[drawn.index(tiers[0][0])] + _NAMES[strength]


def to_indices(tiers: Tiers, drawn: Sequence[int]) -> Tiers:
    """Tiers of places as tiers of indices: the sides are undone."""
    return [sorted(drawn[place] for place in tier) for tier in tiers]


def to_places(tiers: Tiers, drawn: Sequence[int]) -> Tiers:
    """Tiers of indices as tiers of the places where they were shown."""
    return [sorted(list(drawn).index(index) for index in tier) for tier in tiers]


def is_order(tiers: Tiers, count: int) -> bool:
    """Whether each of `count` answers is placed once."""
    return all(tiers) and sorted(place for tier in tiers for place in tier) == list(range(count))


def agrees(tiers: Tiers, answer: Tiers) -> bool:
    """Whether a judgement agrees with the known answer.

    For a pair: the same winner, or a tie in both. For a ranking: at least three quarters of the pairs that differ in
    the known answer have its order. Answers that it leaves out do not count.
    """
    ranks, right = _ranks(tiers), _ranks(answer)
    pairs = [(i, j) for i, j in combinations(sorted(right), 2) if i in ranks and j in ranks]
    strict = [(i, j) for i, j in pairs if right[i] != right[j]]
    if not strict:
        return all(ranks[i] == ranks[j] for i, j in pairs)
    alike = sum((ranks[i] - ranks[j]) * (right[i] - right[j]) > 0 for i, j in strict)
    return alike >= 0.75 * len(strict)


def _ranks(tiers: Tiers) -> dict[int, int]:
    return {index: rank for rank, tier in enumerate(tiers) for index in tier}


# ---- Texts ------------------------------------------------------------------------------------------------------

_SPECIAL = (
    r"<\|[^|<>\n]{1,40}\|>"  # <|im_end|>, <|endoftext|>, <|eot_id|>
    r"|<｜[^｜<>\n]{1,40}｜>"
    r"|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
_ANYWHERE = re.compile(_SPECIAL)
_AT_THE_START = re.compile(r"\A(?:\s*+(?:<s>|<bos>|<pad>))+")
_AT_THE_END = re.compile(rf"(?:{_SPECIAL}|</s>|<eos>|<pad>|<unk>|<\|[a-z_]{{0,40}}\|?)\Z")
_LONGEST = 44
"""Most characters of a token."""
TOKEN = "\N{MATHEMATICAL LEFT ANGLE BRACKET}token\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
"""Replaces a token of a chat template within an answer, since its name would reveal the model."""

_MODELS = (
    r"(?:chat\s?gpt|gpt-?\d\w*|claude|gemini|bard|llama[\s-]?\d*|alpaca|vicuna|mistral|mixtral|qwen\w*|smol\s?lm\w*|"
    r"deepseek\w*|gemma\w*|phi-?\d\w*|falcon|bloom|pythia|open\s?assistant|command[\s-]r|grok|copilot)"
)
_MAKERS = (
    r"(?:open\s?ai|anthropic|google|deep\s?mind|meta(?:\s+ai)?|hugging\s?face|mistral(?:\s+ai)?|alibaba|microsoft)"
)
_I = r"(?:I\s+am|I[’']m|I\s+was|I\s+have\s+been)"
_ITSELF = re.compile(
    # "I am ChatGPT", "As SmolLM, I"; not "I am a gemini", nor "As Claude Monet"
    rf"\b(?:{_I}|my\s+name\s+is|call\s+me|this\s+is|as)\s+(?:called\s+|named\s+)?{_MODELS}\b(?!\s+(?-i:[A-Z]))"
    rf"|\b{_I}(?:\s+an?\s[\w -]{{1,50}},?)?\s+(?:trained|made|created|developed|built)\s+by\s+{_MAKERS}\b",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """An answer as people see it: all of its text, without the tokens of a chat template, which would reveal the model
    or whether the answer was cut."""
    body = text[: _without_end(text)]
    return _ANYWHERE.sub(TOKEN, _AT_THE_START.sub("", body))


def as_read(text: str) -> str:
    """The part of an answer that makes a difference to a reader: nobody compares two answers with equal parts.

    White space makes none, except the end of a line, the end of a paragraph, and indentation, which has a meaning in
    code.
    """
    lines = [line[: len(line) - len(line.lstrip())] + " ".join(line.split()) for line in clean(text).split("\n")]
    lines = [line if line.strip() else "" for line in lines]
    lines_to_read = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(lines_to_read).rstrip()


def _without_end(text: str) -> int:
    """The start of the tokens at the end. From the end, each character is read a bounded number of times."""
    end = at = len(text)
    while True:
        while at and text[at - 1].isspace():
            at -= 1
        token = _AT_THE_END.search(text[max(0, at - _LONGEST) : at])
        if token is None:
            return end
        end = at = at - len(token[0])


def names_itself(text: str) -> str | None:
    """The words in which an answer names its model ("I am ChatGPT"); None: it does not."""
    match = _ITSELF.search(text)
    return " ".join(match[0].split()) if match else None
