"""Demonstrations as training rows: read, split by prompt, tokenised with labels on the assistant's turns."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, TypeVar

from sft.config import DataSource, SFTConfig
from sft.report import LongCounts
from trueup.config import SplitConfig
from trueup.data.containers.spool import taken
from trueup.data.formats import read_demonstrations
from trueup.data.near_duplicates import across_split
from trueup.data.records import Demonstration, Dropped, Message
from trueup.data.split import touches_heldout
from trueup.errors import DataError
from trueup.models.chat import IGNORED, Encoded
from trueup.models.encoding import (
    FittedDemonstration,
    RefusedRows,
    Trainable,
    TrainOn,
    encode_demonstrations,
    with_loss_on,
)
from trueup.runs import StageRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass
class Data:
    """The demonstrations of all sources, split by prompt. Each part of one that was split is a demonstration here."""

    train: list[Trainable] = field(default_factory=list)
    again: list[Trainable] = field(default_factory=list)
    """Those of `train` that a pass takes once more, by the weight of their source; several times, if it is above 2."""
    heldout: list[Trainable] = field(default_factory=list)
    long: list[FittedDemonstration] = field(default_factory=list)
    """Demonstrations of either side that are longer than `max_length`, with what is left of them."""
    heldout_parts: int = 0
    """Parts of training dialogues that were left out since they begin with a held-out question."""
    refused: RefusedRows = field(default_factory=RefusedRows)
    count: int = 0
    """Demonstrations that could be encoded, as they stand in their files."""

    @property
    def too_long(self) -> list[Demonstration]:
        """Demonstrations of which nothing fits."""
        return [one.whole for one in self.long if not one.parts]

    @property
    def long_counts(self) -> LongCounts:
        """What is left of those of which something fits."""
        left = [one for one in self.long if one.parts]
        return LongCounts(
            demonstrations=len(left),
            tokens_cut=sum(one.tokens_cut for one in left),
            parts=sum(len(one.parts) for one in left),
            exchanges_left_out=sum(one.exchanges_left_out for one in left),
            parts_left_out=self.heldout_parts,
        )


def read_data(config: SFTConfig, stage: StageRun, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The demonstrations of all sources, in tokens; each file is recorded in the manifest."""
    data, places = Data(), dict[str, str]()
    for source in config.data:
        dropped = Dropped()
        rows = read_source(source, config.seed, dropped)
        encoded = encode_demonstrations(rows, tokenizer, config.fitting, data.refused, source.on_bad_rows, dropped)
        places = dropped.places | places
        data.count += len(encoded)
        data.long += [one for one in encoded if one.long]
        fitting = [one for one in encoded if one.parts]
        heldout = [one for one in fitting if touches_heldout(one.whole, config.split)]
        others = [one for one in fitting if not touches_heldout(one.whole, config.split)]
        train, again = weighted(others, source.weight, config.seed)
        dropped.add("beyond the weight", len(others) - len(train))
        parts = trained_parts(train, config.split)
        data.heldout_parts += sum(len(one.parts) for one in train) - len(parts)
        stage.add_input(source.path, len(heldout) + len(train), dropped)
        data.heldout += [part for one in heldout for part in one.parts]
        data.train += parts
        data.again += trained_parts(again, config.split)
    data.refused.stop()
    if not data.train:
        if any(not touches_heldout(row, config.split) for row in data.too_long):
            raise DataError(f"every demonstration is longer than sft.max_length, {config.max_length} tokens")
        raise DataError(
            f"{', '.join(str(source.path) for source in config.data)}: no demonstration is left to train on"
        )
    if sentence := across_split(places, config.split):
        stage.find("info", "near_duplicates", sentence)
    return data


def read_source(source: DataSource, seed: int, dropped: Dropped) -> Sequence[Demonstration]:
    """The demonstrations of one source, at most `max_per_category` of each category that rows name."""
    rows = read_demonstrations(source.path, dropped, source.on_bad_rows, source.ignore_columns, source.choice(seed))
    if source.max_per_category is None:
        return rows
    categories = [row.category for row in rows]
    counts: Counter[str | None] = Counter()
    kept = []
    for i in random.Random(seed).sample(range(len(rows)), len(rows)):
        counts[categories[i]] += 1
        if categories[i] is None or counts[categories[i]] <= source.max_per_category:
            kept.append(i)
    dropped.add("over max_per_category", len(rows) - len(kept))
    return taken(rows, sorted(kept))


def trained_parts(demonstrations: Sequence[FittedDemonstration], split: SplitConfig) -> list[Trainable]:
    """The parts of training dialogues that may be trained on. A dialogue that was not split is its own part. A further
    part of one that was begins with another question, which may be held out as the beginning of other dialogues."""
    parts = [part for one in demonstrations for part in one.parts]
    return [part for part in parts if not touches_heldout(part[0], split)]


def weighted(rows: list[T], weight: float, seed: int) -> tuple[list[T], list[T]]:
    """(the rows that a pass takes, those that it takes again). A part of them is drawn by the seed."""
    whole = int(weight)
    rest = random.Random(seed).sample(rows, round((weight - whole) * len(rows)))
    return (rows, rows * (whole - 1) + rest) if whole else (rest, [])


def last_trained(demonstration: Demonstration) -> tuple[list[Message], str]:
    """The last trained turn of a demonstration, as (prompt, answer). Turns after it may be no answers to imitate."""
    turns = enumerate(demonstration.messages)
    last = max(i for i, message in turns if message.role == "assistant" and message.trained)
    return demonstration.messages[:last], demonstration.messages[last].content


def answerable(rows: Sequence[Trainable], new_tokens: int, context: int | None) -> list[Trainable]:
    """The demonstrations whose last prompt leaves room for `new_tokens` in the model's context."""
    return [one for one in rows if context is None or _prompt_length(one[1][-1]) + new_tokens <= context]


def _prompt_length(row: Encoded) -> int:
    """Tokens before the last answer of a training row."""
    answer = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    return max(i for i, label in enumerate(row.labels[:answer]) if label == IGNORED) + 1


def spread(rows: Sequence[Trainable], count: int, seed: int) -> list[Trainable]:
    """At most `count` rows, drawn in turn from every category, since files are often sorted by category."""
    by_category: dict[str | None, list[Trainable]] = {}
    for row in random.Random(seed).sample(rows, len(rows)):
        by_category.setdefault(row[0].category, []).append(row)
    in_turn = chain.from_iterable(zip_longest(*by_category.values()))
    return list(islice((row for row in in_turn if row is not None), count))


def trained_tokens(rows: list[Encoded]) -> int:
    return sum(label != IGNORED for row in rows for label in row.labels)


def training_rows(rows: Sequence[Trainable], train_on: TrainOn) -> list[Encoded]:
    return [row for _, many in rows for row in with_loss_on(many, train_on)]
