"""Demonstrations as training rows: read, split by prompt, tokenised with labels on the assistant's turns only."""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sft.config import DataSource, SFTConfig
from trueup.chat import IGNORED, encode_demonstration
from trueup.errors import DataError
from trueup.formats import read_demonstrations
from trueup.records import Demonstration, Dropped, touches_heldout
from trueup.runs import StageRun


@dataclass(frozen=True)
class Encoded:
    """A demonstration in tokens. labels is -100 wherever the assistant does not speak."""

    input_ids: list[int]
    labels: list[int]


def read_data(config: SFTConfig, run: StageRun) -> tuple[list[Demonstration], list[Demonstration]]:
    """(train, held-out) demonstrations of all sources; each file is recorded in the manifest."""
    train: list[Demonstration] = []
    heldout: list[Demonstration] = []
    for source in config.data:
        dropped = Dropped()
        rows = read_source(source, config.seed, dropped)
        run.add_input(source.path, len(rows), dropped)
        for row in rows:
            (heldout if touches_heldout(row, config.split) else train).append(row)
    if not train:
        raise DataError(
            f"{', '.join(str(source.path) for source in config.data)}: no demonstration is left to train on"
        )
    return train, heldout


def read_source(source: DataSource, seed: int, dropped: Dropped) -> list[Demonstration]:
    """The demonstrations of one file, at most `max_rows` of them."""
    rows = read_demonstrations(source.path, dropped, source.on_bad_rows)
    if source.max_rows is not None and len(rows) > source.max_rows:
        dropped.add("over max_rows", len(rows) - source.max_rows)
        rows = random.Random(seed).sample(rows, source.max_rows)
    return rows


def encode(
    demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int, dropped: Dropped
) -> list[Encoded]:
    """Training rows. One longer than `max_length` tokens is dropped and counted: cutting it would cut an EOS."""
    rows = []
    for demonstration in demonstrations:
        ids, labels = encode_demonstration(tokenizer, demonstration.messages)
        if len(ids) > max_length:
            dropped.add("longer than max_length")
        else:
            rows.append(Encoded(ids, labels))
    return rows


def trained_tokens(rows: list[Encoded]) -> int:
    return sum(label != IGNORED for row in rows for label in row.labels)


def category_counts(demonstrations: list[Demonstration]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in demonstrations:
        counts[row.category or "none"] = counts.get(row.category or "none", 0) + 1
    return dict(sorted(counts.items()))
