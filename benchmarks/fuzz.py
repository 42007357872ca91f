"""Do the readers of files name whatever is wrong, whatever bytes they get? A fuzzer makes the bytes.

    pip install atheris
    python benchmarks/fuzz.py [SECONDS]

For so many seconds (60) atheris, which follows coverage, mutates the files of tests/data/cases. The first byte of an
input says which container the rest is, and which reader reads it. A reader gives rows or raises a DataError that names
the file; anything else stops the run with its traceback, and the input is kept in a file `crash-...`. It prints how
many inputs were tried.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

CASES = Path(__file__).parents[1] / "tests" / "data" / "cases"
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz", ".jsonl.zst")
LONGEST = 4096
"""Bytes of an input."""


def main() -> None:
    atheris = import_module("atheris")  # which no other part needs, and which is installed by hand
    with atheris.instrument_imports(include=["trueup.data"]):
        from trueup.data.formats import read_demonstrations, read_preferences, read_prompts
        from trueup.data.records import Dropped
        from trueup.errors import DataError

    readers: list[Any] = [read_demonstrations, read_prompts, read_preferences]
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def read_one(data: bytes) -> None:
            which, rest = data[:1] or b"\0", data[1:]
            reader, ending = divmod(which[0] % (len(readers) * len(ENDINGS)), len(ENDINGS))
            path = folder / f"rows{ENDINGS[ending]}"
            path.write_bytes(rest)
            try:
                readers[reader](path, Dropped(), "drop")
            except DataError as error:
                assert str(path) in str(error), f"the error names no file: {error}"

        cases = sorted(path for path in CASES.rglob("*") if path.is_file())
        (corpus := folder / "corpus").mkdir()
        for number, (case, kind) in enumerate((case, kind) for case in cases for kind in range(3)):
            ending = next((n for n, one in enumerate(ENDINGS) if case.name.endswith(one)), None)
            if ending is not None and case.stat().st_size < LONGEST:
                which = bytes([kind * len(ENDINGS) + ending])
                (corpus / str(number)).write_bytes(which + case.read_bytes())
        limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], str(corpus), *limits], read_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
