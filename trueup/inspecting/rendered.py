"""The rows of a file as a campaign's model sees them: rendered by its chat template, with what it learns to write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from trueup.campaign import Campaign
from trueup.data.formats import ImportedRanking
from trueup.data.formats.settling import Use
from trueup.data.records import Demonstration, LeftOut, Message, Prompt
from trueup.inspecting.report import Part, ShownRow, Spread
from trueup.inspecting.rows import Row, Rows
from trueup.models.encoding import Fitting, TrainOn, with_loss_on
from trueup.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trueup.models.chat import Encoded

STAGES: dict[Use, str] = {"demonstrations": "sft", "preferences": "reward"}
"""The stage of a campaign whose `max_length` such rows have to fit."""


@dataclass(frozen=True)
class Rendered:
    """The rows of a file in tokens."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    """The choice of the chat template, with its reason."""
    rows: Rows
    """Those that can be rendered."""
    encoded: dict[int, list[tuple[str, Encoded]]]
    """By the identity of the row: what of it each sequence is, and its tokens."""
    left_out: list[LeftOut]
    over: int | None
    """Rows that are longer than the stage's `max_length`; None where no stage of the campaign has one."""
    fitting: Fitting | None
    """What the stage does with such rows, and which tokens carry loss; None where no stage of the campaign trains."""

    @classmethod
    def by(cls, campaign: Campaign, use: Use, rows: Rows) -> Rendered:
        """The rows by the template and the tokenizer of the campaign's model."""
        from trueup.errors import DataError, ModelError
        from trueup.models.loading import load_base_tokenizer

        stage = campaign.stages.get(STAGES.get(use, ""))
        fitting = _fitting(stage) if isinstance(stage, TrainConfig) else None
        choices: list[str] = []
        tokenizer = load_base_tokenizer(campaign.config.model, choices.append)
        encoded: dict[int, list[tuple[str, Encoded]]] = {}
        left_out = []
        for row in rows:
            try:
                encoded[id(row)] = list(sequences(tokenizer, row, fitting.train_on if fitting else "assistant"))
            except (DataError, ModelError) as error:
                left_out.append(LeftOut(where=row.where, problem=str(error), row=None))
        sizes = [max(len(one.input_ids) for _, one in many) for many in encoded.values()]
        over = None if fitting is None else sum(size > fitting.max_length for size in sizes)
        kept = [row for row in rows if id(row) in encoded]
        return cls(tokenizer, "; ".join(choices), kept, encoded, left_out, over, fitting)

    @property
    def lengths(self) -> dict[str, Spread]:
        """In tokens: the longest sequence of each row, and what of each sequence is learnt."""
        many = [self.encoded[id(row)] for row in self.rows]
        if not many:
            return {}
        whole = [max(len(one.input_ids) for _, one in each) for each in many]
        learnt = [learnt for each in many for _, one in each if (learnt := trained_tokens(one))]
        figures = {"row, tokens": whole, **({"learnt, tokens": learnt} if learnt else {})}
        return {what: spread(values) for what, values in figures.items()}

    def samples(self, row: Row) -> list[ShownRow]:
        return [
            ShownRow(where=row.where, title=title, parts=parts_of(self.tokenizer, one))
            for title, one in self.encoded[id(row)]
        ]


def _fitting(stage: TrainConfig) -> Fitting:
    """The fitting of a stage on demonstrations; pairs that are too long are left out, whatever their stage."""
    fitting = getattr(stage, "fitting", None)
    return fitting if isinstance(fitting, Fitting) else Fitting(stage.max_length)


def sequences(
    tokenizer: PreTrainedTokenizerBase, row: Row, train_on: TrainOn = "assistant"
) -> Iterable[tuple[str, Encoded]]:
    """What the model reads of a row, each with what it is: a dialogue, a prompt, or an answer behind its prompt."""
    from trueup.models.chat import IGNORED, Encoded, encode_completion, encode_demonstration, encode_prompt

    if isinstance(row, Demonstration):
        many = with_loss_on(encode_demonstration(tokenizer, row.messages), train_on)
        for number, one in enumerate(many, start=1):
            yield (f"part {number} of {len(many)}" if len(many) > 1 else "demonstration"), one
        return
    prompt = encode_prompt(tokenizer, row.prompt)
    nothing = [IGNORED] * len(prompt)
    if isinstance(row, Prompt):
        yield "prompt", Encoded(prompt, nothing)
        return
    finished = row.finished or [True] * len(row.completions)
    for index, (text, ends) in enumerate(zip(row.completions, finished, strict=True)):
        answer = encode_completion(tokenizer, text, ends)
        yield place_of(row, index), Encoded(prompt + answer, nothing + answer)


def place_of(row: ImportedRanking, index: int) -> str:
    """`better answer`, or `answer on place 2 of 4`: what the row says of one of its answers."""
    place = next((number for number, tier in enumerate(row.tiers, start=1) if index in tier), None)
    if place is None:
        return "answer without a place"
    if len(row.tiers) == 1:
        return "answer that is bad, as the other" if row.both_bad else "answer as good as the other"
    if len(row.tiers) == 2:
        return ("better answer", "worse answer")[place - 1]
    return f"answer on place {place} of {len(row.tiers)}"


def parts_of(tokenizer: PreTrainedTokenizerBase, one: Encoded) -> list[Part]:
    """The text of a sequence, cut where what carries loss begins or ends."""
    from trueup.models.chat import IGNORED

    runs = groupby(zip(one.input_ids, one.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    parts, before = [], ""
    ids: list[int] = []
    for trained, run in runs:
        ids += [token for token, _ in run]
        text = str(tokenizer.decode(ids))
        parts.append(Part(content=text[len(before) :], trained=trained))
        before = text
    return parts


def trained_tokens(one: Encoded) -> int:
    from trueup.models.chat import IGNORED

    return sum(label != IGNORED for label in one.labels)


def as_written(row: Row) -> list[ShownRow]:
    """A row as it stands in its file, where no model is known."""
    if isinstance(row, Demonstration):
        return [ShownRow(where=row.where, title="demonstration", parts=[*_offered(row), *map(said, row.messages)])]
    asked = [said(message) for message in row.prompt]
    if isinstance(row, Prompt):
        return [ShownRow(where=row.where, title="prompt", parts=asked)]
    return [
        ShownRow(
            where=row.where,
            title=place_of(row, index),
            parts=[*asked, Part(content=text, trained=True, role="assistant")],
        )
        for index, text in enumerate(row.completions)
    ]


def _offered(row: Demonstration) -> list[Part]:
    """The tools of a conversation, which stand before it."""
    tools = row.messages[0].tools
    return [Part(content=json.dumps(tools, ensure_ascii=False), trained=False, role="tools")] if tools else []


def said(message: Message) -> Part:
    return Part(content=message.said, trained=message.role == "assistant" and message.trained, role=message.role)


def spread(values: Sequence[float]) -> Spread:
    median, p95, largest = np.quantile(np.asarray(values, dtype=float), [0.5, 0.95, 1]).tolist()
    return Spread(median=median, p95=p95, largest=largest)
