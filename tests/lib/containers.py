"""The same rows in every container that Trueup reads."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Rows = Sequence[Any]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: Rows) -> Any:
    """An Arrow table, as `datasets` makes it of rows: each column has one type, and a value that a row lacks is null.

    Raises pyarrow.ArrowException if two rows have values of different types in one column.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pyarrow.table({name: pyarrow.array([row.get(name) for row in rows]) for name in names})


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def _parquet(rows: Rows, folder: Path) -> Path:
    pyarrow.parquet.write_table(table(rows), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def _arrow(rows: Rows, folder: Path) -> Path:
    one = table(rows)
    with pyarrow.ipc.new_file(folder / "rows.arrow", one.schema) as writer:
        writer.write_table(one, max_chunksize=2)
    return folder / "rows.arrow"


def _datasets(rows: Rows, folder: Path) -> Path:
    """What `Dataset.save_to_disk` leaves: a stream for each part, and the list of these."""
    one, place = table(rows), folder / "saved"
    place.mkdir()
    for part, start in enumerate(range(0, len(rows), 2)):
        with pyarrow.ipc.new_stream(place / f"data-{part:05}-of-n.arrow", one.schema) as writer:
            writer.write_table(one.slice(start, 2))
    names = [{"filename": path.name} for path in sorted(place.glob("*.arrow"))]
    (place / "state.json").write_text(json.dumps({"_data_files": names, "_split": None}))
    (place / "dataset_info.json").write_text("{}")
    return place


def _folder(rows: Rows, folder: Path) -> Path:
    """Two files of different kinds, and one without rows."""
    half = len(rows) // 2
    (folder / "rows" / "more").mkdir(parents=True)
    (folder / "rows" / "README.md").write_text("Rows.")
    _write(folder / "rows" / "a.jsonl", lines(rows[:half]))
    _write(folder / "rows" / "more" / "b.json", json.dumps(rows[half:]).encode())
    return folder / "rows"


def _pattern(rows: Rows, folder: Path) -> Path:
    half = len(rows) // 2
    _write(folder / "part-1.jsonl", lines(rows[:half]))
    _write(folder / "part-2.jsonl.gz", gzip.compress(lines(rows[half:])))
    _write(folder / "other.jsonl", b"no row of it")
    return folder / "part-*"


WRITERS: dict[str, Callable[[Rows, Path], Path]] = {
    "jsonl": lambda rows, folder: _write(folder / "rows.jsonl", lines(rows)),
    "json": lambda rows, folder: _write(folder / "rows.json", json.dumps(rows, indent=2).encode()),
    "jsonl.gz": lambda rows, folder: _write(folder / "rows.jsonl.gz", gzip.compress(lines(rows))),
    "jsonl.zst": lambda rows, folder: _write(folder / "rows.jsonl.zst", _zstd(lines(rows))),
    "json.zst": lambda rows, folder: _write(folder / "rows.json.zst", _zstd(json.dumps(rows).encode())),
    "ndjson.bz2": lambda rows, folder: _write(folder / "rows.ndjson.bz2", bz2.compress(lines(rows))),
    "json.xz": lambda rows, folder: _write(folder / "rows.json.xz", lzma.compress(json.dumps(rows).encode())),
    "lines without an ending": lambda rows, folder: _write(folder / "rows", gzip.compress(lines(rows))),
    "parquet": _parquet,
    "parquet without an ending": lambda rows, folder: _parquet(rows, folder).rename(folder / "rows"),
    "arrow file": _arrow,
    "datasets directory": _datasets,
    "folder": _folder,
    "pattern": _pattern,
}
TYPED = {"parquet", "parquet without an ending", "arrow file", "datasets directory"}
"""Containers whose columns have one type each."""
