"""What a chat template renders: where the messages of a conversation stand in its text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trueup.data.records import Message
from trueup.models.templates.block import END

STRIPPED = "prompted without white space around a text, which the chat template or the tokenizer strips"
WITHOUT_REASONING = "prompted without the reasoning of earlier answers, which the chat template leaves out"


class Span(NamedTuple):
    """Where a message's text stands in the rendered prompt."""

    start: int
    stop: int
    message: int
    role: str


class Scaffold(NamedTuple):
    """What a template writes around the messages of given roles: pieces[0] text pieces[1] text ... pieces[-1]."""

    pieces: list[str]
    order: list[int]
    """Index of the message between two pieces. A template may move a message, leave it out, or write it twice."""


MARK = "\ue0f1{}\ue0f2"
"""A placeholder for a message's text, in characters of private use. It shows what a template writes around the text."""
MARKED = MARK + "{}\ue0f3"
"""The same with the text in it, for a template that depends on the text."""
_MARKS = re.compile("\ue0f1(\\d+)\ue0f2(?:[^\ue0f3]*\ue0f3)?")


def marked(messages: Sequence[Message]) -> list[Message]:
    """A conversation with a mark for each text. That of a turn that only calls a tool stays empty, since a template may
    write something around a text."""
    return [
        message.model_copy(update={"content": MARK.format(i)}) if message.content or not message.tool_calls else message
        for i, message in enumerate(messages)
    ]


def mark(role: str, index: int) -> Message:
    """The message at this place, with a mark for its text."""
    return Message(role=role, content=MARK.format(index))


def split_at_marks(text: str) -> Scaffold:
    """What a template wrote around the marks."""
    pieces = _MARKS.split(text)
    return Scaffold(pieces[::2], [int(index) for index in pieces[1::2]])


def joined(scaffold: Scaffold) -> str:
    """The rendered text of a conversation of marks."""
    return "".join(
        piece + (MARK.format(scaffold.order[i]) if i < len(scaffold.order) else "")
        for i, piece in enumerate(scaffold.pieces)
    )


def find_texts(scaffold: Scaffold, messages: Sequence[Message], text: str, changes: set[str]) -> list[Span] | None:
    """The spans of the texts if `text` is the scaffold's pieces with each text between them, whole or stripped."""
    if not text.startswith(scaffold.pieces[0]):
        return None
    spans, at, kinds = [], len(scaffold.pieces[0]), set()
    for index, piece in zip(scaffold.order, scaffold.pieces[1:], strict=True):
        fitting = (one for one in _as_rendered(messages[index]) if text.startswith(one[0] + piece, at))
        candidate, kind = next(fitting, (None, ""))
        if candidate is None:
            return None
        spans.append(Span(at, at + len(candidate), index, messages[index].role))
        at += len(candidate) + len(piece)
        kinds.add(kind)
    if at != len(text):
        return None
    changes |= kinds - {""}
    return spans


def _as_rendered(message: Message) -> Iterator[tuple[str, str]]:
    """The forms in which a template may write a text of an earlier turn, each with the change that it is."""
    text = message.content
    yield text, ""
    for stripped in (text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.lstrip("\n")):
        yield stripped, STRIPPED
    if message.role == "tool":  # in some templates a result is a text of JSON
        yield json.dumps(text, ensure_ascii=False)[1:-1], ""
        yield json.dumps(text.strip(), ensure_ascii=False)[1:-1], STRIPPED
    if message.role == "assistant" and END.search(text):
        rest = END.split(text)[-1]
        for answer in (rest, rest.lstrip("\n"), rest.strip(), rest.lstrip()):
            yield answer, WITHOUT_REASONING


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def start_of(text: str) -> str:
    """The start of a text, for an error message."""
    short = " ".join(text.split())
    return repr(short if len(short) <= 60 else f"{short[:57]}...")


def differ(text: str, decoded: str) -> str:
    """What a tokenizer made of a text, for an error message."""
    at = alike(text, decoded)
    return f"it turns {text[at : at + 20]!r} in {start_of(text)} into {decoded[at : at + 20]!r}; change the row"


def alike(one: str, other: str) -> int:
    """How many first characters two texts share."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))
