"""Demonstrations as training rows: read, split by prompt, tokenised with labels on the assistant's turns."""

from __future__ import annotations

import random
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.config import DataSource, SFTConfig
from sft.duplicates import contamination, near_duplicates
from sft.encode import encode
from sft.report import LongCounts
from sft.tokens import Source, Tokens, dialogues, ranges
from trueup.console import say
from trueup.data.containers.spool import Spool, rows_at
from trueup.data.duplicates.training import across_split
from trueup.data.formats import read_demonstrations
from trueup.data.records import Demonstration, Dropped, Message
from trueup.data.split import question
from trueup.errors import DataError, did_you_mean
from trueup.inspecting.kinds import is_named, told_kind
from trueup.inspecting.stage import ReadRow, ReadSource, write_data_page
from trueup.models.encoding import RefusedRows
from trueup.runs import StageRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Data:
    """The demonstrations of all sources, split by prompt, as parts of `tokens`. Each part of a dialogue that was split
    is a demonstration here."""

    tokens: Tokens
    train: np.ndarray
    again: np.ndarray
    """Those of `train` that a pass takes once more, by the weight of their source; several times, if it is above 2."""
    heldout: np.ndarray
    left_out: np.ndarray
    """Those of the kinds in `sft.leave_out` that might have been trained on."""
    heldout_parts: int
    """Parts of training dialogues that were left out since they begin with a held-out question, or with nearly one."""
    changes: Counter[str]
    """Demonstrations whose texts were changed, by what was done to them."""
    not_trained: Counter[str]
    """Demonstrations that were left out as near-duplicates or as contaminated, by reason."""

    @cached_property
    def kinds(self) -> tuple[np.ndarray, list[str]]:
        """As `kinds_of`."""
        return kinds_of(self.tokens)

    @property
    def questions(self) -> Iterator[str]:
        """What the demonstrations begin with that are trained on."""
        return self.tokens.questions(self.train)

    @property
    def too_long(self) -> list[str]:
        """Where the demonstrations stand of which nothing fits."""
        return [one.where for one in self.tokens.long if not one.parts]

    @property
    def long_counts(self) -> LongCounts:
        """What is left of those of which something fits."""
        left = [one for one in self.tokens.long if one.parts]
        return LongCounts(
            demonstrations=len(left),
            tokens_cut=sum(one.tokens_cut for one in left),
            parts=sum(one.parts for one in left),
            exchanges_left_out=sum(one.exchanges_left_out for one in left),
            turns_left_out=sum(one.turns_left_out for one in left),
            parts_left_out=self.heldout_parts,
        )

    @property
    def by_category(self) -> dict[str, int]:
        """Demonstrations that are trained on; `none` of those without a category."""
        codes, names = self.tokens.categories
        counts = np.bincount(codes[self.train] + 1, minlength=len(names) + 1).tolist()
        by_name = Counter[str]()
        for name, count in zip(["none", *names], counts, strict=True):
            by_name[name or "none"] += count
        return {name: count for name, count in sorted(by_name.items()) if count}


def read_data(config: SFTConfig, stage: StageRun, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The demonstrations of all sources, in tokens; each file is recorded in the manifest, and all are shown in
    data.html."""
    refused, encoded = RefusedRows(), list[tuple[DataSource, Source, Dropped]]()
    for source in config.data:
        dropped = Dropped()
        rows = read_source(source, config.seed, dropped)
        if isinstance(rows, Spool):
            say(f"{'data':<12} {source.path}: {rows.note}")
        one = encode(rows, tokenizer, config.fitting, config.split, refused, source.on_bad_rows, dropped)
        encoded.append((source, one, dropped))
    refused.stop()
    sources = [one for _, one, _ in encoded]
    near = near_duplicates(sources, config, stage)
    shared = contamination(sources, [one.reasons for one in near], config, stage)
    why = [of_source.reasons | of_exams for of_source, of_exams in zip(near, shared, strict=True)]
    train, again, heldout, left_out = ([np.zeros(0, dtype=np.int64)] for _ in range(4))
    read, heldout_parts, begin = list[ReadSource](), 0, 0
    for (source, one, dropped), (_, near_parts), reasons in zip(encoded, near, why, strict=True):
        dropped.counts.update(reasons.values())
        sides = Tokens([one])
        first, last = dialogues(sides.of_demonstration)
        not_learnt = sides.heldout | np.isin(np.arange(len(sides)), near_parts)
        others = ~sides.of_heldout[first]
        others[list(reasons)] = False
        left = others & of_kinds(sides, config.leave_out)[first]
        dropped.add("in sft.leave_out", int(left.sum()))
        left_out.append(begin + trained_parts(first, last, np.flatnonzero(left), not_learnt))
        others &= ~left
        taken_once, taken_again = weighted(np.flatnonzero(others), source.weight, config.seed)
        dropped.add("beyond the weight", int(others.sum()) - len(taken_once))
        parts = trained_parts(first, last, taken_once, not_learnt)
        heldout_parts += int((last - first)[taken_once].sum()) - len(parts)
        used = int(sides.of_heldout[first].sum()) + len(taken_once)
        stage.add_input(source.path, used, dropped)
        read.append(ReadSource.of(source.path, used, dropped))
        heldout.append(begin + np.flatnonzero(sides.of_heldout))
        train.append(begin + parts)
        again.append(begin + trained_parts(first, last, taken_again, not_learnt))
        begin += len(sides)
    data = Data(
        Tokens([one for _, one, _ in encoded]),
        train=np.concatenate(train),
        again=np.concatenate(again),
        heldout=np.concatenate(heldout),
        left_out=np.concatenate(left_out),
        heldout_parts=heldout_parts,
        changes=refused.changes,
        not_trained=Counter(reason for reasons in why for reason in reasons.values()),
    )
    if config.leave_out and (lines := unknown_kinds(config.leave_out, data.kinds[1])):
        raise DataError("\n".join(lines))
    if not len(data.train):
        raise DataError(_nothing_left(data, config))
    if config.split.near_duplicates == "keep":
        places: Mapping[str, str] = ChainMap(*[dict(dropped.places) for _, _, dropped in encoded])
        if sentence := across_split(places, config.split, sum(dropped.not_placed for _, _, dropped in encoded)):
            stage.find("info", "near_duplicates", sentence)
    train_side, heldout_side = (_Parts(data.tokens, parts) for parts in (data.train, data.heldout))
    write_data_page(stage, "demonstrations", read, train_side, heldout_side, tokenizer)
    return data


def _nothing_left(data: Data, config: SFTConfig) -> str:
    """The sentence that there is nothing to train on, and why."""
    reasons = {
        f"longer than sft.max_length, {config.max_length} tokens": sum(
            not one.heldout and not one.parts for one in data.tokens.long
        ),
        f"held out (split.heldout_fraction: {config.split.heldout_fraction})": len(data.heldout),
        **data.not_trained,
    }
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count) or "none was taken"
    paths = ", ".join(str(source.path) for source in config.data)
    return f"{paths}: no demonstration is left to train on ({why}); give more of them, or change these keys"


class _Parts(Sequence[ReadRow]):
    """Parts with their training rows, read from where they lie when they are asked for."""

    def __init__(self, tokens: Tokens, parts: np.ndarray):
        self._tokens, self._parts = tokens, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        return self._tokens.demonstration(int(self._parts[index])), list(
            self._tokens.training_rows(self._parts[index : index + 1])
        )


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
    return rows_at(rows, sorted(kept))


def kinds_of(tokens: Tokens) -> tuple[np.ndarray, list[str]]:
    """(P,) the kind of task of each part as an index into the names: its category, and without one what cue words tell
    of the first question of its dialogue."""
    codes, names = tokens.categories
    kinds, by_name = codes.copy(), {name: code for code, name in enumerate(names)}
    for part in np.flatnonzero(without_category(tokens)).tolist():
        told = told_kind(question(tokens.whole(part).messages)).kind
        kinds[part] = by_name.setdefault(told, len(by_name))
    return kinds, list(by_name)


def without_category(tokens: Tokens) -> np.ndarray:
    """(P,) whether the data name no category of a part."""
    codes, names = tokens.categories
    return np.isin(codes, [-1, *(code for code, name in enumerate(names) if not name)])


def of_kinds(tokens: Tokens, named: Sequence[str]) -> np.ndarray:
    """(P,) whether a part is of a kind that is named."""
    if not named:
        return np.zeros(len(tokens), dtype=bool)
    kinds, names = kinds_of(tokens)
    return np.isin(kinds, [code for code, name in enumerate(names) if is_named(name, named)])


def unknown_kinds(leave_out: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """Lines on kinds to leave out that no demonstration is of."""
    known = sorted({*kinds})
    return [
        f"sft.leave_out: no demonstration is of the kind {name!r}{did_you_mean(name, known)}"
        for name in leave_out
        if not any(is_named(kind, [name]) for kind in known)
    ]


def trained_parts(first: np.ndarray, last: np.ndarray, dialogues: np.ndarray, not_learnt: np.ndarray) -> np.ndarray:
    """The parts of training dialogues that may be trained on. A dialogue that was not split is its own part. A further
    part of one that was begins with another question, which may be held out as the beginning of other dialogues.

    first, last  (D,) the parts of each dialogue
    dialogues    (N,) those that are taken
    not_learnt   (P,) whether a part begins with a held-out question, or with nearly one
    """
    parts = ranges(first[dialogues], last[dialogues])
    return parts[~not_learnt[parts]]


def weighted(rows: np.ndarray, weight: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rows that a pass takes, those that it takes again). A part of them is drawn by the seed."""
    whole = int(weight)
    rest = rows[random.Random(seed).sample(range(len(rows)), round((weight - whole) * len(rows)))]
    return (rows, np.concatenate([np.tile(rows, whole - 1), rest])) if whole else (rest, rows[:0])


def last_trained(demonstration: Demonstration) -> tuple[list[Message], str]:
    """The last trained turn of a demonstration, as (prompt, answer). Turns after it may be no answers to imitate."""
    turns = enumerate(demonstration.messages)
    last = max(i for i, message in turns if message.role == "assistant" and message.trained)
    return demonstration.messages[:last], demonstration.messages[last].said


def answerable(data: Data, parts: np.ndarray, new_tokens: int, context: int | None) -> np.ndarray:
    """The demonstrations whose last prompt leaves room for `new_tokens` in the model's context."""
    last_rows = data.tokens.first[parts + 1] - 1
    return parts if context is None else parts[data.tokens.asked[last_rows] + new_tokens <= context]


def spread(data: Data, parts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` demonstrations, drawn in turn from every category, since files are often sorted by category."""
    codes, _ = data.tokens.categories
    by_category: dict[int, list[int]] = {}
    for part in parts[random.Random(seed).sample(range(len(parts)), len(parts))].tolist():
        of_category = by_category.setdefault(int(codes[part]), [])
        if len(of_category) < count:
            of_category.append(part)
    in_turn = chain.from_iterable(zip_longest(*by_category.values()))
    drawn = list(islice((part for part in in_turn if part is not None), count))
    return np.array(drawn, dtype=np.int64)
