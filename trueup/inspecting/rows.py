"""What the rows of a file say, whatever they are: what is asked, and the answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trueup.data.formats import ImportedRanking
from trueup.data.records import Demonstration, Message, Prompt
from trueup.data.split import opening
from trueup.data.words import count_words

Row = Demonstration | Prompt | ImportedRanking
Rows = Sequence[Any]
"""Demonstrations, prompts or imported rankings."""


def messages_of(row: Row) -> list[Message]:
    """The conversation of a row; of preferences the prompt."""
    return row.messages if isinstance(row, Demonstration) else row.prompt


def opening_of(row: Row) -> str:
    """The first question of a row, which says what kind of task it is."""
    first = opening(messages_of(row))
    return first.content if first else ""


def asked_in(row: Row) -> list[str]:
    """What people say in a row."""
    return [one.content for one in messages_of(row) if one.role == "user"]


def words_asked(row: Row) -> float:
    """Words of what the assistant answers: of people and system messages, and not of a tool's results."""
    return sum(count_words(one.content) for one in messages_of(row) if one.role in ("system", "user"))


def answers_of(row: Row) -> list[str]:
    """The answers of a row: of a demonstration those that are learnt, of preferences all."""
    if isinstance(row, ImportedRanking):
        return row.completions
    return [one.said for one in messages_of(row) if one.role == "assistant" and one.trained]


def text_of(row: Row) -> str:
    """All that people and the assistant say in a row."""
    answers = row.completions if isinstance(row, ImportedRanking) else []
    return "\n".join([*(one.said for one in messages_of(row) if one.role not in ("system", "tool")), *answers])


_PLACE = re.compile(r":(?:\d+| (?:row|entry) \d+)$")


def file_of(row: Row) -> str:
    """The file that a row stands in."""
    return _PLACE.sub("", row.where)
