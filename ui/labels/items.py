"""Content of the label store: items, their queue, known answers, labels of programs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from trueup.data.records import Message, prompt_id
from trueup.data.words import count_words
from trueup.models.templates.block import unasked_block
from ui.labels import judgements
from ui.labels.judgements import Tiers
from ui.labels.tables import TableRow, now


class AnswerLike(Protocol):
    """The stored parts of an answer; `trueup.data.records.Candidate` has them."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Any: ...
    @property
    def finished(self) -> bool: ...
    @property
    def logp(self) -> float | None: ...
    @property
    def reasoning(self) -> str: ...


@dataclass(frozen=True)
class Text:
    """An answer that was not sampled here, and counts as finished."""

    text: str
    token_ids: list[int] | None = None
    finished: bool = True
    logp: float | None = None
    reasoning: str = ""

    def kept_apart(self) -> Text:
        """The answer as a sampled one is stored: without a block of reasoning that its text begins with. A finished
        text in which that block does not end only begins with a tag, and is an answer."""
        block = None if self.reasoning else unasked_block(self.text)
        if block is None or (self.finished and block.end not in self.text):
            return self
        reasoning, text = block.split(self.text)
        return replace(self, text=text, reasoning=reasoning)


@dataclass(frozen=True)
class Item:
    """A prompt and the answers to judge against each other."""

    prompt: list[Message]
    answers: list[AnswerLike]
    category: str | None
    split: Literal["train", "heldout"]
    sampler: dict[str, Any]
    """Origin of the completions, from the sample stage or a file, as JSON."""

    @cached_property
    def item_id(self) -> str:
        """Hash of prompt and answers; the category, the split and the origin do not change it."""
        content = [[(message.role, message.content) for message in self.prompt], self._answers()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def _answers(self) -> list[TableRow]:
        return [
            {"text": a.text, "token_ids": a.token_ids, "finished": a.finished}
            | ({"reasoning": a.reasoning} if a.reasoning else {})
            for a in self.answers
        ]

    def row(self) -> TableRow:
        return {
            "item_id": self.item_id,
            "prompt_id": prompt_id(self.prompt),
            "prompt": [message.model_dump() for message in self.prompt],
            "category": self.category,
            "split": self.split,
            "completions": [
                {**answer, "logp": a.logp} for answer, a in zip(self._answers(), self.answers, strict=True)
            ],
            "sampler": self.sampler,
            "created_utc": now(),
        }


@dataclass
class Content:
    """The parts of an item that a task needs. They never change, so they are read once.

    The texts come from a model and may be long, so they are prepared outside of any transaction.
    """

    prompt: list[Message]
    raw: list[str]
    """The answers as they are stored."""
    policies: list[str]
    """The policy of each text, in a comparison."""
    reasonings: list[str]
    """What was written before each answer, by a model that reasons."""

    @cached_property
    def texts(self) -> list[str]:
        return [judgements.clean(text) for text in self.raw]

    @cached_property
    def words(self) -> int:
        return round(sum(map(count_words, [*self.texts, *(message.content for message in self.prompt)])))


class QueueEntry(NamedTuple):
    """An item in the queue, and how it was selected."""

    item_id: str
    selection: str
    """random or uncertainty."""
    propensity: float
    """Probability that the selection chooses it, in (0, 1]."""


class Gold(NamedTuple):
    """An item with a known answer."""

    item_id: str
    tiers: Tiers
    explanation: str | None = None
    """Shown after the answer, in the qualification round."""


class ProgramLabel(NamedTuple):
    """A program's label of an item."""

    item_id: str
    tiers: Tiers | None
    """Indices into the item's answers, best tier first; None: the program gave no answer."""
    strength: int | None = None
