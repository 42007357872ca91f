"""Demonstrations in tokens, in Arrow tables: in memory, or in the cache folder where the rows of a source lie on disk.

A demonstration becomes one part or several (`sft.overlong`), and a part one training row, or several if the
template requires it. Of each part and training row memory holds a few numbers, and no text.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from trueup.config import SplitConfig
from trueup.console import exit_with_parent, progress, say
from trueup.data.containers.spool import Spool, add_to, code_of, kept, plain, read_table, table_rows
from trueup.data.records import Demonstration, Dropped, parse_row
from trueup.data.row_rules import BadRows
from trueup.data.split import opening_id, question, touches_heldout
from trueup.errors import DataError
from trueup.files import Json, replacing
from trueup.models.chat import IGNORED, Encoded
from trueup.models.encoding import (
    TOO_LONG,
    Bad,
    FittedDemonstration,
    Fitting,
    RefusedRows,
    encode_each,
    fit,
    settle,
    with_loss_on,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_FILES = "parts.arrow", "rows.arrow"
_CHUNK = 1000
"""Demonstrations that are encoded together."""


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
        self._questions = parts["question"]
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

    def question(self, part: int) -> str:
        """What a part begins with."""
        text: str = self._questions[part].as_py()
        return text

    def whole(self, part: int) -> Demonstration:
        """The demonstration that a part is of, as it stands in its file."""
        source = self._sources[bisect_right(self._begins, part) - 1]
        return source.demonstrations[int(self.of_demonstration[part])]

    def demonstration(self, part: int) -> Demonstration:
        whole, text = self.whole(part), self._parts["text"][part].as_py()
        return whole if text is None else parse_row(Demonstration, json.loads(text), whole.where)

    def training_rows(self, parts: np.ndarray) -> TrainingRows:
        """Those of the parts, in their order."""
        return TrainingRows(self._rows, ranges(self.first[parts], self.first[parts + 1]))


class TrainingRows(Sequence[Encoded]):
    """Training rows, read from where they lie when they are asked for."""

    def __init__(self, table: Any, numbers: np.ndarray):
        """
        table    with the columns of `_rows_columns`
        numbers  (N,) which of its rows these are
        """
        self._table, self._numbers = table, numbers

    @classmethod
    def of(cls, rows: Sequence[Encoded], end: int = -1) -> TrainingRows:
        """Rows that lie in memory; `end` is the token that ends a turn."""
        import pyarrow

        with table_rows(sink := pyarrow.BufferOutputStream(), _rows_columns()) as add:
            for row in rows:
                add(_row(row, row, end))
        return cls(read_table(sink.getvalue()), np.arange(len(rows)))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> TrainingRows: ...
    def __getitem__(self, index: int | slice) -> Encoded | TrainingRows:
        if isinstance(index, slice):
            return TrainingRows(self._table, self._numbers[index])
        place = int(self._numbers[index])
        return Encoded(self._table["input_ids"][place].as_py(), self._table["labels"][place].as_py())

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


def ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers from each start to before its stop, behind each other."""
    counts = stops - starts
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def dialogues(of_demonstration: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,), (D,): the parts of each dialogue of a source, from the first one to behind the last one."""
    first = np.flatnonzero(np.diff(of_demonstration, prepend=-1))
    return first, np.append(first[1:], len(of_demonstration))[: len(first)]


# ---- Encode -----------------------------------------------------------------------------------------------------


def encode(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    fitting: Fitting,
    split: SplitConfig,
    refused: RefusedRows,
    on_bad_rows: BadRows,
    dropped: Dropped,
) -> Source:
    """The demonstrations of a source in tokens, with the side of the split on which each part is.

    They lie in memory, or where the demonstrations lie on disk, in the cache folder: then several processes share the
    work, and a second start encodes nothing again.
    """
    import pyarrow

    encoder = Encoder(tokenizer, fitting, split)

    def write(parts_sink: Any, rows_sink: Any) -> tuple[RefusedRows, Json]:
        bad, long, count, changes = list[Bad](), list[Json](), 0, Counter[str]()
        parts_file = pyarrow.ipc.new_file(parts_sink, _parts_columns())
        with parts_file, pyarrow.ipc.new_file(rows_sink, _rows_columns()) as rows_file:
            for number, chunk in enumerate(_chunks(demonstrations, encoder), start=1):
                if isinstance(demonstrations, Spool):
                    progress(min(number * _CHUNK, len(demonstrations)), len(demonstrations))
                parts_file.write_batch(chunk.parts)
                rows_file.write_batch(chunk.rows)
                long += map(asdict, chunk.long)
                bad += chunk.bad
                changes += chunk.changes
                count += chunk.count
        left_out, own = Dropped(), RefusedRows()
        settle(bad, on_bad_rows if count else "refuse", own, left_out)
        left_out.add(TOO_LONG, sum(not one["parts"] for one in long))
        return own, {"count": count, "long": long, "changes": changes, **plain(left_out)}

    def write_files(folder: Path) -> Json:
        with ExitStack() as stack:
            files = [stack.enter_context(replacing(folder / name, by_process=True)) for name in _FILES]
            bad, report = write(*map(str, files))
            if bad.problems:  # nothing is kept of a source that is refused
                refused.take_over(bad)
                refused.stop()
        return report

    if isinstance(demonstrations, Spool):
        settings = [asdict(fitting), split.model_dump(mode="json"), on_bad_rows]
        key = [demonstrations.key, _known(tokenizer), *settings, code_of("data", "models")]
        folder, report = kept("tokens", key, write_files)
        tables, name = [read_table(folder / file) for file in _FILES], folder.name
    else:
        sinks = [pyarrow.BufferOutputStream() for _ in _FILES]
        bad, report = write(*sinks)
        refused.take_over(bad)
        tables, name = [read_table(sink.getvalue()) for sink in sinks], None
    refused.changes.update(report["changes"])
    add_to(dropped, report)
    parts, rows = tables
    return Source(demonstrations, parts, rows, report["count"], [Long(**one) for one in report["long"]], name)


@dataclass
class Chunk:
    """Some demonstrations of a source in tokens."""

    parts: Any
    rows: Any
    """Arrow batches."""
    count: int
    """Demonstrations that could be encoded."""
    long: list[Long]
    bad: list[Bad]
    changes: Counter[str]


@dataclass
class Encoder:
    """What turns demonstrations into tokens, in this process or in another one."""

    tokenizer: PreTrainedTokenizerBase
    fitting: Fitting
    split: SplitConfig

    def chunk(self, demonstrations: Sequence[Demonstration], start: int) -> Chunk:
        """start: the place of the first of them in the source"""
        import pyarrow

        parts, rows, long, bad = list[Json](), list[Json](), list[Long](), list[Bad]()
        changes, count, end = Counter[str](), 0, self.tokenizer.eos_token_id
        for index, _, one in encode_each(demonstrations, self._fit, changes, bad):
            count += 1
            of_heldout = touches_heldout(one.whole, self.split)
            if one.long:
                counts = one.tokens_cut, one.exchanges_left_out, one.turns_left_out
                long.append(Long(one.whole.where, of_heldout, len(one.parts), *counts))
            for demonstration, encoded in one.parts:
                parts.append(_part(start + index, one, demonstration, len(encoded), of_heldout, self.split))
                learnt = with_loss_on(encoded, self.fitting.train_on)
                rows += [_row(row, trained, end) for row, trained in zip(encoded, learnt, strict=True)]
        return Chunk(
            pyarrow.RecordBatch.from_pylist(parts, _parts_columns()),
            pyarrow.RecordBatch.from_pylist(rows, _rows_columns()),
            count,
            long,
            bad,
            changes,
        )

    def _fit(self, row: Demonstration, changes: set[str]) -> FittedDemonstration:
        return fit(self.tokenizer, row, self.fitting, changes)


def _chunks(demonstrations: Sequence[Demonstration], encoder: Encoder) -> Iterator[Chunk]:
    """The chunks of a source in their order. Those of one that lies on disk are shared by half as many processes as
    there are processors, and a few of them are in memory at once."""
    starts = range(0, len(demonstrations), _CHUNK)
    workers = min(_processes(), len(starts)) if isinstance(demonstrations, Spool) else 1
    if workers <= 1:
        yield from (encoder.chunk(demonstrations[start : start + _CHUNK], start) for start in starts)
        return
    say(f"{'tokens':<12} {len(demonstrations)} demonstrations are encoded by {workers} processes")
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (demonstrations, encoder))
    with pool:
        try:
            waiting: deque[Future[Chunk]] = deque()
            for start in starts:
                waiting.append(pool.submit(_work, start, start + _CHUNK))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                f"one of {workers} processes that encode demonstrations was stopped, perhaps for want of memory; the "
                "same command begins the encoding again"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _processes() -> int:
    return (os.cpu_count() or 1) // 2


_worker: tuple[Sequence[Demonstration], Encoder]


def _start_worker(demonstrations: Sequence[Demonstration], encoder: Encoder) -> None:
    global _worker
    exit_with_parent()
    _worker = demonstrations, encoder


def _work(start: int, stop: int) -> Chunk:
    demonstrations, encoder = _worker
    return encoder.chunk(demonstrations[start:stop], start)


def _parts_columns() -> Any:
    import pyarrow as pa

    kinds = {"demonstration": pa.int64(), "text": pa.large_string(), "rows": pa.int32(), "category": pa.string()}
    return pa.schema(
        kinds | {"heldout": pa.bool_(), "of_heldout": pa.bool_(), "opening": pa.uint64(), "question": pa.large_string()}
    )


def _part(
    index: int, one: FittedDemonstration, part: Demonstration, rows: int, of_heldout: bool, split: SplitConfig
) -> Json:
    whole = part is one.whole
    return {
        "demonstration": index,
        "text": None if whole else part.model_dump_json(),
        "rows": rows,
        "category": part.category,
        "heldout": of_heldout if whole else touches_heldout(part, split),
        "of_heldout": of_heldout,
        "opening": int(opening_id(part.messages), 16),
        "question": question(part.messages),
    }


def _rows_columns() -> Any:
    import pyarrow as pa

    tokens = pa.list_(pa.int32())
    counts = dict.fromkeys(("length", "with_loss", "asked", "ends"), pa.int32())
    return pa.schema({"input_ids": tokens, "labels": tokens, **counts})


def _row(row: Encoded, learnt: Encoded, end: int) -> Json:
    """A training row.

    row     with loss on the assistant's turns
    learnt  with loss on what is trained
    end     the token that ends a turn
    """
    return {
        "input_ids": learnt.input_ids,
        "labels": learnt.labels,
        "length": len(learnt.input_ids),
        "with_loss": sum(label != IGNORED for label in learnt.labels),
        "asked": prompt_length(row),
        "ends": learnt.labels.count(end),
    }


def prompt_length(row: Encoded) -> int:
    """Tokens before the last answer of a training row."""
    answer = max((i for i, label in enumerate(row.labels) if label != IGNORED), default=0)
    return max((i for i, label in enumerate(row.labels[:answer]) if label == IGNORED), default=-1) + 1


def _known(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides how a tokenizer writes a conversation."""
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    facts = [vocabulary, tokenizer.chat_template, tokenizer.init_kwargs, transformers.__version__]
    return hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()
