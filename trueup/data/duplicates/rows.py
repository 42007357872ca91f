"""What is listed of a row that a stage left out, since it is nearly the same as another. No NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from trueup.data.jsonl import cut
from trueup.data.records import Row

NEAR_DUPLICATES = "near_duplicates.jsonl"
"""In a stage's folder: the rows that it left out as near-duplicates."""
QUESTIONS = "trained_questions.jsonl"
"""In a stage's folder: the first questions of the dialogues that it trained on."""
NEAR_HELDOUT = "nearly the same as a held-out prompt"
REPEATED = "nearly the same as an earlier demonstration"
NEAR_TRAINED = "nearly the same as a prompt that was trained on"

CONTAMINATION = "contamination.jsonl"
"""In a stage's folder: the rows that share words in a row with a held-out prompt or a check."""
SHARES_HELDOUT = "has the words of a held-out prompt"
SHARES_CHECK = "has the words of a check"


class NearDuplicate(Row):
    """A row of near_duplicates.jsonl, which was not trained on, or not compared on."""

    where: str
    """File and line."""
    reason: str
    like: str
    """File and line of the row that it resembles."""
    alike: float
    """How far, from 0.8 to 1: the share of runs of 5 characters that both have, of those that either has."""
    text: str
    """Its first question, or the beginning of that."""
    like_text: str


class Contaminated(Row):
    """A row of contamination.jsonl, which has words in a row of what the model is examined on."""

    where: str
    """File and line."""
    reason: str
    exam: str
    """File and line of the held-out prompt, or of the check's row."""
    words: str
    """13 words in a row that both have; all of a shorter text."""
    trained: bool
    """Whether it is trained on nevertheless (`sft.contamination: keep`)."""


def near_duplicate(reason: str, where: str, text: str, like: str, like_text: str, alike: float) -> NearDuplicate:
    return NearDuplicate(
        where=where, reason=reason, like=like, alike=round(alike, 4), text=cut(text, 200), like_text=cut(like_text, 200)
    )


def examples(near: Sequence[NearDuplicate]) -> str:
    """The first of them, with what they resemble."""
    first = ", ".join(f"{one.where} is like {one.like} ({one.alike:.0%})" for one in near[:3])
    return first + (f", and {len(near) - 3} more" if len(near) > 3 else "")
