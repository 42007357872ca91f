"""Demonstrations as training rows: read, split by prompt, tokenised with labels on the assistant's turns only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain, islice, zip_longest

from transformers import PreTrainedTokenizerBase

from sft.config import DataSource, SFTConfig
from trueup.chat import IGNORED, Encoded, Refused, encode_demonstration
from trueup.errors import DataError
from trueup.formats import read_demonstrations
from trueup.near_duplicates import across_split
from trueup.records import Demonstration, Dropped, drawn, touches_heldout
from trueup.runs import StageRun


def read_data(config: SFTConfig, run: StageRun) -> tuple[list[Demonstration], list[Demonstration]]:
    """(train, held-out) demonstrations of all sources; each file is recorded in the manifest."""
    train: list[Demonstration] = []
    heldout: list[Demonstration] = []
    places: dict[str, str] = {}
    for source in config.data:
        dropped = Dropped()
        rows = read_source(source, config.seed, dropped)
        run.add_input(source.path, len(rows), dropped)
        places = dropped.places | places
        for row in rows:
            (heldout if touches_heldout(row, config.split) else train).append(row)
    if not train:
        raise DataError(
            f"{', '.join(str(source.path) for source in config.data)}: no demonstration is left to train on"
        )
    if said := across_split(places, config.split):
        run.find("info", "near_duplicates", said)
    return train, heldout


def read_source(source: DataSource, seed: int, dropped: Dropped) -> list[Demonstration]:
    """The demonstrations of one file, at most `max_rows` of them."""
    rows = read_demonstrations(source.path, dropped, source.on_bad_rows, source.ignore_columns)
    kept = drawn(rows, source.max_rows, seed)
    dropped.add("over max_rows", len(rows) - len(kept))
    return kept


def encode(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropped: Dropped,
    refused: Refused,
) -> list[Encoded]:
    """Training rows: one for each demonstration, or several where the template wants it so (`encode_demonstration`).

    One longer than `max_length` tokens is dropped and counted: cutting it would cut an EOS.
    """
    rows = []
    for demonstration in demonstrations:
        with refused.row(demonstration.where) as told:
            for row in encode_demonstration(tokenizer, demonstration.messages, told):
                if len(row.input_ids) > max_length:
                    dropped.add("longer than max_length")
                else:
                    rows.append(row)
    return rows


def fitting(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropped: Dropped,
    refused: Refused,
) -> list[Demonstration]:
    """The demonstrations of which `encode` gives a row; of the others the model might not even read the prompt."""
    return [row for row in demonstrations if encode([row], tokenizer, max_length, dropped, refused)]


def spread(rows: Sequence[Demonstration], count: int, seed: int) -> list[Demonstration]:
    """At most `count` rows, drawn in turn from every category: files are often sorted by it."""
    by_category: dict[str | None, list[Demonstration]] = {}
    for row in random.Random(seed).sample(rows, len(rows)):
        by_category.setdefault(row.category, []).append(row)
    in_turn = chain.from_iterable(zip_longest(*by_category.values()))
    return list(islice((row for row in in_turn if row is not None), count))


def trained_tokens(rows: list[Encoded]) -> int:
    return sum(label != IGNORED for row in rows for label in row.labels)


def category_counts(demonstrations: list[Demonstration]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in demonstrations:
        counts[row.category or "none"] = counts.get(row.category or "none", 0) + 1
    return dict(sorted(counts.items()))
