"""Content of the label store: items, their queue, known answers, labels of programs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from trueup.data.records import Message, Ranking, prompt_id
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


# ---- Rows of the store as labels --------------------------------------------------------------------------------

OF_EVENT = (
    *("tiers", "strength", "both_bad", "criteria", "note", "seconds", "round", "selection", "propensity"),
    *("guideline_sha256", "source", "annotator", "created_utc", "row_id"),
)
OF_ITEM = "prompt_id prompt category split sampler".split()


def ranking_of(row: Any) -> Ranking:
    return Ranking(
        label_id=row.client_uuid,
        completions=[answer["text"] for answer in row.completions],
        completion_token_ids=[answer["token_ids"] for answer in row.completions],
        finished=[answer["finished"] for answer in row.completions],
        logps=[answer.get("logp") for answer in row.completions],
        reasonings=_reasonings(row.completions),
        sampled_by=row.sampler.get("policy_sha256"),
        display_order=row.drawn or _order_of_pair(row),
        **{key: row._mapping[key] for key in (*OF_EVENT, *OF_ITEM)},
    )


def ideal_of(row: Any) -> Ranking:
    shown = row.completions
    reasonings = _reasonings(shown)
    return Ranking(
        label_id=row.client_uuid,
        completions=[row.note, *(answer["text"] for answer in shown)],
        completion_token_ids=[None, *(answer["token_ids"] for answer in shown)],
        finished=[True, *(answer["finished"] for answer in shown)],
        logps=[None, *(answer.get("logp") for answer in shown)],
        reasonings=reasonings and ["", *reasonings],
        tiers=[[0], [*range(1, len(shown) + 1)]],
        **{
            key: row._mapping[key]
            for key in ("source", "annotator", "created_utc", "guideline_sha256", "round", *OF_ITEM)
        },
    )


def _reasonings(completions: list[TableRow]) -> list[str] | None:
    """What was written before each answer; None where no model reasoned."""
    texts = [answer.get("reasoning", "") for answer in completions]
    return texts if any(texts) else None


def _order_of_pair(row: Any) -> list[int] | None:
    """The order of a pair on the screen, if it is known without a view, as for a promoted vote."""
    if row.first_shown is None or len(row.completions) != 2:
        return None
    return [row.first_shown, 1 - row.first_shown]
