"""Demonstrations are turned into tokens: in memory, or in the cache folder where the rows of a source lie on disk. Then
several processes share the work, and a second start encodes nothing again (`sft.tokens` reads both)."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.tokens import CODE, Long, Source, rows_batch, rows_columns
from trueup.config import SplitConfig
from trueup.console import exit_with_parent, progress, say
from trueup.data.containers.spool import Spool, add_to, cache_entry, code_of, plain, read_table
from trueup.data.records import Demonstration, Dropped
from trueup.data.row_rules import BadRows
from trueup.data.split import is_family_heldout, opening_id, question
from trueup.errors import DataError
from trueup.files import Json, replacing
from trueup.models.chat import Encoded
from trueup.models.encoding import (
    TOO_LONG,
    Bad,
    FittedDemonstration,
    Fitting,
    RefusedRows,
    fit_each,
    settle,
    with_loss_on,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = "parts.arrow", "rows.arrow"
_CHUNK = 1000
"""Demonstrations that are encoded together."""


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
        with parts_file, pyarrow.ipc.new_file(rows_sink, rows_columns()) as rows_file:
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
        key = [demonstrations.key, _known(tokenizer), *settings, code_of("data", "models", CODE)]
        folder, report = cache_entry("tokens", key, write_files)
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

        parts, rows, learnt, long, bad = list[Json](), list[Encoded](), list[Encoded](), list[Long](), list[Bad]()
        changes, count = Counter[str](), 0
        for index, one in fit_each(self.tokenizer, demonstrations, self.fitting, changes, bad):
            count += 1
            opening = opening_id(one.whole.messages)
            of_heldout = is_family_heldout(opening, self.split)
            if one.long:
                counts = one.tokens_cut, one.exchanges_left_out, one.turns_left_out
                long.append(Long(one.whole.where, of_heldout, len(one.parts), *counts))
            for part, encoded in one.parts:
                parts.append(self._part(start + index, one, part, len(encoded), opening))
                rows += encoded
                learnt += with_loss_on(encoded, self.fitting.train_on)
        return Chunk(
            pyarrow.RecordBatch.from_pylist(parts, _parts_columns()),
            rows_batch(rows, learnt, self.tokenizer.eos_token_id),
            count,
            long,
            bad,
            changes,
        )

    def _part(
        self, index: int, one: FittedDemonstration, part: Demonstration, rows: int, opening_of_whole: str
    ) -> Json:
        is_whole = part is one.whole
        opening = opening_of_whole if is_whole else opening_id(part.messages)
        return {
            "demonstration": index,
            "text": None if is_whole else part.model_dump_json(),
            "rows": rows,
            "category": part.category,
            "heldout": is_family_heldout(opening, self.split),
            "of_heldout": is_family_heldout(opening_of_whole, self.split),
            "opening": int(opening, 16),
            "question": question(part.messages),
        }


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


def _known(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides how a tokenizer writes a conversation."""
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    facts = [vocabulary, tokenizer.chat_template, tokenizer.init_kwargs, transformers.__version__]
    return hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()
