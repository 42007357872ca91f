"""Rows of large files, parsed once and read back one at a time: memory holds one of them, and not all.

They lie in Arrow files in the cache folder, under a key of all that they depend on: the contents of the input, what is
taken of it, and the code that reads it. So a second start reads nothing again.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import random
import time
from array import array
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from trueup.console import say
from trueup.data.containers.numbered import Batches, Numbered, row_of
from trueup.data.records import Dropped, LeftOut, Row
from trueup.errors import DataError
from trueup.files import PARTIAL, Json, files_under, replacing, write_atomically
from trueup.provenance.contents import cache_dir
from trueup.provenance.inputs import PACKED, contents_of, files_of

LARGE_BYTES = 64 * 2**20
"""Size of an input, all its files together, from which its rows lie on disk. A row takes about seven times its bytes in
memory."""
_PACKED = (*PACKED, ".parquet", ".pq")
_UNPACKED = 4
"""Times that the rows of a packed file are larger than the file, about."""
_CHUNK = 1000
"""Rows that are written together."""
_ROWS, _PLACES, _REPORT = "rows.arrow", "places.arrow", "report.json"
_ABANDONED_SECONDS = 24 * 3600
"""A file that is half written and was left alone for so long belongs to a process that was killed."""

R = TypeVar("R", bound=Row)
T = TypeVar("T")


class Spool(Numbered[R], Generic[R]):
    """Rows that lie on disk. Each is parsed when it is asked for."""

    def __init__(
        self, file: Path, schema: type[R], numbers: array[int] | range | None = None, batches: Batches | None = None
    ):
        """
        numbers  which rows of the file these are, in their order; None: all
        batches  of the file, where it was opened before
        """
        self.file, self.schema = file, schema
        self._batches = batches or Batches(read_table(file))
        self._count = self._batches.table.num_rows
        super().__init__(range(self._count) if numbers is None else numbers)

    def __reduce__(self) -> Any:
        """Another process opens the file itself."""
        return Spool, (self.file, self.schema, self._numbers)

    def _of(self, numbers: Any) -> Spool[R]:
        return Spool(self.file, self.schema, numbers, self._batches)

    def _read(self, numbers: Sequence[int]) -> Iterator[R]:
        for where, text in self._batches.read(numbers, "where", "row"):
            yield row_of(self.schema, text, where)

    @property
    def key(self) -> str:
        """What tells these rows from others."""
        whole = self._numbers == range(self._count)
        which = "" if whole else hashlib.sha256(array("q", self._numbers).tobytes()).hexdigest()
        return f"{self.file.parent.name} {which}"

    @property
    def note(self) -> str:
        """Where the rows lie, for the console."""
        size = self.file.stat().st_size / 1e9
        return f"{self._count} rows lie in {self.file.parent} ({size:.1f} GB); the folder may be removed"


def rows_at(rows: Sequence[T], indices: Sequence[int]) -> Sequence[T]:
    """The rows at these places, in this order: on disk if they lie there."""
    return rows.at(indices) if isinstance(rows, Numbered) else [rows[index] for index in indices]


def draw(rows: Sequence[T], most: float | None, seed: int) -> Sequence[T]:
    """At most so many rows, or this share of them, drawn by the seed."""
    count = len(rows) if most is None else most if most >= 1 else max(1, round(most * len(rows)))
    return rows if count >= len(rows) else rows_at(rows, random.Random(seed).sample(range(len(rows)), int(count)))


class Seen:
    """Numbers of 64 bits that were met before: 16 to 32 bytes each, where a set of Python takes about a hundred.

    Hashes of 64 bits tell ten million texts apart, but for a chance of 3 in a million that two of them share one.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 << 10))
        self._count = 0

    def add(self, number: int) -> bool:
        """Whether the number is new."""
        if 2 * self._count >= len(self._table):
            old, self._table, self._count = self._table, array("Q", bytes(16 * len(self._table))), 0
            for one in filter(None, old):
                self.add(one)
        mask, number = len(self._table) - 1, number or 1  # 0 stands for an empty place
        place = number & mask
        while found := self._table[place]:
            if found == number:
                return False
            place = (place + 1) & mask
        self._table[place] = number
        self._count += 1
        return True


def is_large(path: Path) -> bool:
    return sum(map(_bytes_of_rows, files_of(path))) >= LARGE_BYTES


def _bytes_of_rows(file: Path) -> int:
    return file.stat().st_size * (_UNPACKED if file.suffix.lower() in _PACKED else 1)


def spooled(
    path: Path, schema: type[R], rules: Sequence[Any], dropped: Dropped, read: Callable[[Dropped], Iterator[R]]
) -> Spool[R]:
    """The rows of a large input, from the cache if they were read before, else read now.

    rules    all that decides which rows there are, besides the contents of the files
    dropped  collects what was not used, also if that happened at the first reading
    read     yields the rows; what it raises is raised, and nothing is kept then
    """
    import pyarrow

    columns = pyarrow.schema({"where": pyarrow.large_string(), "row": pyarrow.large_string()})
    contents = contents_of(path)

    def write(folder: Path) -> Json:
        fresh, texts = Dropped(), pyarrow.large_string()
        with replacing(folder / _ROWS, by_process=True) as partial, table_rows(partial, columns) as add:
            for row in _of_input(path, read(fresh)):
                add({"where": row.where, "row": row.model_dump_json()})  # type: ignore[attr-defined]
            with _input_errors(path):
                now = contents_of(path)
            if now != contents:
                raise DataError(f"{path}: was changed while it was read; start again when it is written")
        with replacing(folder / _PLACES, by_process=True) as partial:
            names = {
                "question": pyarrow.array(fresh.places, texts),
                "where": pyarrow.array(fresh.places.values(), texts),
            }
            with pyarrow.ipc.new_file(str(partial), (places := pyarrow.table(names)).schema) as file:
                file.write_table(places, _CHUNK)
        return plain(fresh)

    folder, report = cache_entry("rows", [str(path), contents, schema.__name__, rules, code_of("data")], write)
    add_to(dropped, report)
    dropped.places = ChainMap(dict(dropped.places), _Places(folder / _PLACES))  # type: ignore[arg-type]
    return Spool(folder / _ROWS, schema)


class _Places(Mapping[str, str]):
    """`Dropped.places` of rows that lie on disk, read when they are asked for: most starts do not need them."""

    def __init__(self, file: Path):
        self._file = file

    @cached_property
    def _all(self) -> dict[str, str]:
        table = read_table(self._file)
        return dict(zip(*(table[name].to_pylist() for name in ("question", "where")), strict=True))

    def __getitem__(self, question: str) -> str:
        return self._all[question]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def _of_input(path: Path, rows: Iterator[R]) -> Iterator[R]:
    with _input_errors(path):
        yield from rows


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """An error of the input is told of as one, and not as one of the cache that it is read into."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


# ---- The cache --------------------------------------------------------------------------------------------------


def cache_entry(kind: str, key: Any, write: Callable[[Path], Json]) -> tuple[Path, Json]:
    """The folder in the cache of what depends on a key alone, and its report.

    write  fills the folder and gives the report: at the first time, and if a file of the folder is damaged.
           The code of its module is a part of the key

    Of several processes that want it at once, which may train together, one writes it and the others wait.
    """
    whole_key = [key, code_of(inspect.getsourcefile(write) or "")]
    digest = hashlib.sha256(json.dumps(whole_key, sort_keys=True, default=str).encode()).hexdigest()[:20]
    folder = cache_dir() / kind / digest
    report = _report_of(folder)
    if report is not None:
        return folder, report
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as is_alone:
            report = _report_of(folder)
            if report is None:
                _remove_abandoned(folder, is_alone)
                report = write(folder)
                files = {file.name: file.stat().st_size for file in folder.glob("*.arrow")}
                write_atomically(folder / _REPORT, json.dumps({"files": files, "report": report}), by_process=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot keep the {kind} of a large file ({error}); make room there, or name another folder "
            "in the environment variable TRUEUP_CACHE"
        ) from error
    return folder, report


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Wait until no other process writes in a folder. Gives False where the file system knows no locks: then several
    write the same, and the last one counts."""
    locks = cache_dir() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / folder.name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_alone = True
        except BlockingIOError:
            say(f"{'data':<12} another process writes {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
            is_alone = True
        except OSError:
            is_alone = False
        yield is_alone


def _report_of(folder: Path) -> Json | None:
    """The report of a folder; None if there is none yet, or if one of the files is missing or cut."""
    try:
        values = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        report: Json = values["report"]
        is_whole = all((folder / name).stat().st_size == size for name, size in values["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if is_whole else None


def _remove_abandoned(folder: Path, is_alone: bool) -> None:
    """Remove what killed processes left half written: in this folder at once, if nobody else writes in it, and in the
    others of its kind when nobody can write it any more."""
    for partial in folder.parent.glob(f"*/*{PARTIAL}"):
        with suppress(OSError):  # another process may remove it now
            if (partial.parent == folder and is_alone) or time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                partial.unlink()


@cache
def code_of(*places: str) -> str:
    """A hash of the code in rooms of `trueup`, and in files that are named whole."""
    top = Path(__file__).parents[2]
    files = sorted(file for place in places for file in files_under(top / place) if file.suffix == ".py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@contextmanager
def table_rows(sink: Any, schema: Any) -> Iterator[Callable[[Json], None]]:
    """What adds a row to an Arrow file.

    sink  a path, or an Arrow stream in memory
    """
    import pyarrow

    chunk: list[Json] = []
    with pyarrow.ipc.new_file(str(sink) if isinstance(sink, Path) else sink, schema) as writer:

        def add(row: Json) -> None:
            chunk.append(row)
            if len(chunk) == _CHUNK:
                flush()

        def flush() -> None:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema))
            chunk.clear()

        yield add
        flush()


def read_table(source: Any) -> Any:
    """The Arrow table of a file, which stays there, or of a buffer."""
    import pyarrow

    file = pyarrow.memory_map(str(source)) if isinstance(source, Path) else source
    return pyarrow.ipc.open_file(file).read_all()


def plain(dropped: Dropped) -> Json:
    return {
        "counts": dropped.counts,
        "ignored": dropped.ignored,
        "formats": dropped.formats,
        "not_placed": dropped.not_placed,
        "left_out": [row.model_dump(mode="json") for row in dropped.left_out],
    }


def add_to(dropped: Dropped, values: Json) -> None:
    dropped.counts.update(values["counts"])
    dropped.ignored.update(values["ignored"])
    dropped.formats.update(values["formats"])
    dropped.not_placed += values["not_placed"]
    dropped.left_out += [LeftOut.model_validate(row) for row in values["left_out"]]
