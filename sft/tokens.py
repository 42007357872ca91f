"""Demonstrations in tokens, read from the Arrow tables in which they lie: in memory, or on disk (`sft.encode`).

A demonstration becomes one part or several (`sft.overlong`), and a part one training row, or several if the
template requires it. Of each part and training row memory holds a few numbers, and no text.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from trueup.data.containers.numbered import Batches, Numbered, row_of
from trueup.data.records import Demonstration
from trueup.models.chat import IGNORED, Encoded

if TYPE_CHECKING:
    from datasets import Dataset


CODE = __file__
"""This file, on which depends what lies in the cache."""


@dataclass
class Long:
    """What is left of a demonstration that is longer than `max_length`."""

    where: str
    heldout: bool
    parts: int
    tokens_cut: int
    exchanges_left_out: int
    turns_left_out: int


@dataclass
class Source:
    """The demonstrations of one source in tokens."""

    demonstrations: Sequence[Demonstration]
    parts: Any
    """Arrow table with a row for each part."""
    rows: Any
    """Arrow table with a row for each training row, those of one part behind each other."""
    count: int
    """Demonstrations that could be encoded."""
    long: list[Long]
    key: str | None = None
    """What tells one that lies on disk from others."""


class Tokens:
    """P parts of all sources and their N training rows: those of part p are `first[p]` to `first[p + 1]`."""

    def __init__(self, sources: Sequence[Source]):
        import pyarrow

        self._sources = sources
        self._begins = np.cumsum([0] + [source.parts.num_rows for source in sources]).tolist()
        self._parts = parts = pyarrow.concat_tables([source.parts for source in sources])
        self._rows = pyarrow.concat_tables([source.rows for source in sources])
        self._row_batches = Batches(self._rows)
        self.first: np.ndarray = np.concatenate([[0], np.cumsum(parts["rows"].to_numpy())]).astype(np.int64)
        self.of_demonstration: np.ndarray = parts["demonstration"].to_numpy()
        """(P,) the demonstration of its source that each part is of."""
        self.heldout: np.ndarray = parts["heldout"].to_numpy()
        """(P,) whether the part begins with a held-out question."""
        self.of_heldout: np.ndarray = parts["of_heldout"].to_numpy()
        """(P,) whether the dialogue that it is of does."""
        self.openings: np.ndarray = parts["opening"].to_numpy()
        """(P,) `opening_id` as a number."""
        self.asked: np.ndarray = self._rows["asked"].to_numpy()
        """(N,) tokens of a training row before its last answer."""
        self.count = sum(source.count for source in sources)
        self.long = [one for source in sources for one in source.long]

    def __len__(self) -> int:
        return len(self.of_demonstration)

    @cached_property
    def categories(self) -> tuple[np.ndarray, list[str]]:
        """(P,) the category of each part as an index into the names; -1 for none."""
        coded = self._parts["category"].combine_chunks().dictionary_encode()
        return coded.indices.fill_null(-1).to_numpy(), coded.dictionary.to_pylist()

    def questions(self, parts: np.ndarray) -> Iterator[str]:
        """What these parts begin with."""
        return (text for (text,) in Batches(self._parts).read(map(int, parts), "question"))

    def whole(self, part: int) -> Demonstration:
        """The demonstration that a part is of, as it stands in its file."""
        source = self._sources[bisect_right(self._begins, part) - 1]
        return source.demonstrations[int(self.of_demonstration[part])]

    def demonstration(self, part: int) -> Demonstration:
        whole, text = self.whole(part), self._parts["text"][part].as_py()
        return whole if text is None else row_of(Demonstration, text, whole.where)

    def training_rows(self, parts: np.ndarray) -> TrainingRows:
        """Those of the parts, in their order."""
        return TrainingRows(self._row_batches, ranges(self.first[parts], self.first[parts + 1]))


class TrainingRows(Numbered[Encoded]):
    """Training rows, read from where they lie when they are asked for."""

    def __init__(self, batches: Batches, numbers: np.ndarray):
        """
        batches  of a table with the columns of `rows_batch`
        numbers  (N,) which of its rows these are
        """
        super().__init__(numbers)
        self._batches, self._table = batches, batches.table

    @classmethod
    def of(cls, rows: Sequence[Encoded], end: int = -1) -> TrainingRows:
        """Rows that lie in memory; `end` is the token that ends a turn."""
        import pyarrow

        return cls(Batches(pyarrow.Table.from_batches([rows_batch(rows, rows, end)])), np.arange(len(rows)))

    def _of(self, numbers: np.ndarray) -> TrainingRows:
        return TrainingRows(self._batches, numbers)

    def _read(self, numbers: Sequence[int]) -> Iterator[Encoded]:
        return (Encoded(*columns) for columns in self._batches.read(numbers, "input_ids", "labels"))

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row."""
        return self._column("length")

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def tokens_with_loss(self) -> int:
        return int(self._column("with_loss").sum())

    @property
    def ends(self) -> int:
        """Labels that end a turn."""
        return int(self._column("ends").sum())

    def _column(self, name: str) -> np.ndarray:
        column: np.ndarray = self._table[name].to_numpy()
        return column[self._numbers]

    def dataset(self) -> Dataset:
        from datasets import Dataset
        from datasets.table import InMemoryTable

        table = InMemoryTable(self._table.select(["input_ids", "labels"]))
        # Without a fingerprint of our own all tokens would be hashed.
        return Dataset(table, fingerprint=uuid.uuid4().hex[:16]).select(self._numbers)


def rows_batch(rows: Sequence[Encoded], learnt: Sequence[Encoded], end: int) -> Any:
    """Training rows as an Arrow batch, with what is counted of each.

    rows    with loss on the assistant's turns
    learnt  the same with loss on what is trained
    end     the token that ends a turn
    """
    import pyarrow as pa

    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int32)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids, labels, answers = (
        np.fromiter(chain.from_iterable(many), np.int32, bounds[-1])
        for many in ([row.input_ids for row in learnt], [row.labels for row in learnt], [row.labels for row in rows])
    )
    counts = {
        "length": lengths,
        "with_loss": _sums(labels != IGNORED, bounds),
        "asked": _prompt_lengths(answers != IGNORED, bounds),
        "ends": _sums(labels == end, bounds),
    }
    tokens = [pa.ListArray.from_arrays(bounds, values, type=pa.list_(pa.int32())) for values in (ids, labels)]
    return pa.RecordBatch.from_arrays([*tokens, *map(pa.array, counts.values())], schema=rows_columns())


def rows_columns() -> Any:
    import pyarrow as pa

    tokens = pa.list_(pa.int32())
    counts = dict.fromkeys(("length", "with_loss", "asked", "ends"), pa.int32())
    return pa.schema({"input_ids": tokens, "labels": tokens, **counts})


def _sums(marks: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(N,) how many marks each row has; row n is `bounds[n]` to `bounds[n + 1]`."""
    sums = np.concatenate([[0], np.cumsum(marks)])
    counts: np.ndarray = sums[bounds[1:]] - sums[bounds[:-1]]
    return counts.astype(np.int32)


def _prompt_lengths(in_answer: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(N,) tokens before the last answer of each row; 0 of one without an answer.

    in_answer  whether a token is one of an answer
    """
    starts = bounds[:-1]
    last = _last_before(in_answer, bounds[1:])
    asked = _last_before(~in_answer, np.maximum(last, starts)) + 1 - starts
    return np.maximum(asked, 0).astype(np.int32)


def _last_before(marks: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """(N,) the place of the last mark before each stop; -1 where there is none."""
    places = np.concatenate([[-1], np.flatnonzero(marks)])
    return places[np.searchsorted(places, stops) - 1]


def ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers from each start to before its stop, behind each other."""
    counts = stops - starts
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def dialogues(of_demonstration: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,), (D,): the parts of each dialogue of a source, from the first one to behind the last one."""
    first = np.flatnonzero(np.diff(of_demonstration, prepend=-1))
    return first, np.append(first[1:], len(of_demonstration))[: len(first)]
