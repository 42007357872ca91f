"""How much memory and time does a large file take to read, by the container that its rows lie in?

    python benchmarks/big_files.py [MILLIONS]

It writes so many million rows (1; about 270 bytes each) as JSON Lines, a JSON list, packed JSON Lines, CSV, Parquet and
an Arrow stream to a temporary folder, and reads each in a process of its own: once row by row, as far as a format is
not asked for, and of JSON Lines and Parquet once as prompts of a campaign, whose rows stay in memory. It prints the
processor's seconds for a million rows, and the peak of memory above that of a process that has read one row.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

COLUMNS = ("prompt", "completion", "category")
_AT_ONCE = 100_000


def rows(count: int) -> Iterator[dict[str, str]]:
    for n in range(count):
        yield {
            "prompt": f"Question {n}: what follows from it, and what would you do about it on the next day?",
            "completion": f"Answer {n * 7919 % 1_000_003}: first this, then that, because it is {n % 97}; " * 2,
            "category": ("qa", "code", "writing")[n % 3],
        }


def write_jsonl(path: Path, count: int) -> Path:
    with path.open("w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows(count))
    return path


def write_packed(path: Path, count: int) -> Path:
    with gzip.open(path, "wt", compresslevel=1) as packed:
        packed.writelines(json.dumps(row) + "\n" for row in rows(count))
    return path


def write_list(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for n, row in enumerate(rows(count)):
            file.write(("," if n else "[") + json.dumps(row))
        file.write("]")
    return path


def write_csv(path: Path, count: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(count))
    return path


def write_parquet(path: Path, count: int) -> Path:
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(path, _schema()) as parquet:
        for table in _tables(count):
            parquet.write_table(table)
    return path


def write_arrow(path: Path, count: int) -> Path:
    import pyarrow

    with pyarrow.ipc.new_stream(path, _schema()) as stream:
        for table in _tables(count):
            stream.write_table(table, max_chunksize=1000)
    return path


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema(dict.fromkeys(COLUMNS, pyarrow.string()))


def _tables(count: int) -> Iterator[Any]:
    import pyarrow

    every = rows(count)
    while part := list(islice(every, _AT_ONCE)):
        yield pyarrow.Table.from_pylist(part, _schema())


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    ".jsonl": write_jsonl,
    ".json": write_list,
    ".jsonl.gz": write_packed,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".arrow": write_arrow,
}


def read_by_row(path: Path) -> int:
    from trueup.data.containers.reading import read_entries

    return sum(1 for _ in read_entries(path))


def read_as_prompts(path: Path) -> int:
    from trueup.data.formats import read_prompts
    from trueup.data.records import Dropped

    return len(read_prompts(path, Dropped()))


READERS: dict[str, Callable[[Path], int]] = {"rows": read_by_row, "prompts": read_as_prompts}


def measure(reader: str, path: Path, count: int) -> tuple[float, float]:
    """(seconds of the processor for a million rows, MiB above a process that has read one row)."""

    def once(file: Path) -> Any:
        command = [sys.executable, __file__, "--read", reader, str(file)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ending = "".join(path.suffixes)
    base, result = once(WRITERS[ending](path.with_name(f"one{ending}"), 1)), once(path)
    assert result["rows"] == count, f"{path.name}: {result['rows']} of {count} rows were read"
    return result["seconds"] / count * 1e6, (result["peak"] - base["peak"]) / 2**10


def read(reader: str, path: Path) -> None:
    """What a process of its own does."""
    began = time.process_time()
    number = READERS[reader](path)
    # KiB. getrusage would tell the parent's, from before the process began.
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    print(json.dumps({"rows": number, "seconds": time.process_time() - began, "peak": peak}))


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        return read(sys.argv[2], Path(sys.argv[3]))
    count = int(float(sys.argv[1] if len(sys.argv) > 1 else 1) * 1e6)
    with tempfile.TemporaryDirectory() as temporary:
        paths = {ending: write(Path(temporary) / f"rows{ending}", count) for ending, write in WRITERS.items()}
        print(
            f"{count:,} rows\n\n| file | MB | read as | s per million rows | MiB above one row |\n|---|---|---|---|---|"
        )
        for ending, path in paths.items():
            for reader in ("rows", "prompts") if ending in (".jsonl", ".parquet") else ("rows",):
                seconds, memory = measure(reader, path, count)
                size = path.stat().st_size / 1e6
                print(f"| {ending} | {size:,.0f} | {reader} | {seconds:.1f} | {memory:,.0f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
