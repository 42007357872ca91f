"""From one file to its rows, by what the file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trueup.data.containers import tables, text
from trueup.data.containers.streams import PACKINGS, opened
from trueup.data.containers.tables import Leave
from trueup.data.jsonl import Entry
from trueup.errors import DataError
from trueup.provenance.inputs import KINDS, kind_by_name, plain_ending


def read_entries(file: Path, leave: Leave = lambda name: False) -> Iterator[Entry]:
    """Where each row of a file stands, and its value: Unreadable where that is not sound.

    leave  the columns that are not to be read, whose values may be unsound
    Raises DataError where the file as a whole cannot be read.
    """
    match kind_by_name(file) or _kind_by_content(file):
        case "lines":
            return text.lines(file)
        case "list":
            return text.document(file)
        case "table":
            return text.table(file, "\t" if plain_ending(file) == ".tsv" else ",")
        case "parquet":
            _refuse_packed(file)
            return tables.parquet(file, leave)
        case "arrow":
            _refuse_packed(file)
            return tables.arrow(file, leave)
    raise DataError(
        f"{file}: neither its name nor its content says what it holds; name it {', '.join(KINDS)} (.jsonl has one "
        "value a line, .json a list), and packed .jsonl.gz or .jsonl.zst"
    )


def _kind_by_content(file: Path) -> str | None:
    """What a file holds whose name does not say."""
    with opened(file) as stream:
        start = stream.read(2**16)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "list" if start.startswith(b"[") else "lines" if start.startswith(b"{") else None


def _refuse_packed(file: Path) -> None:
    """Parquet and Arrow are read from several places at once, and are packed within."""
    with opened(file):
        pass
    with file.open("rb") as stream:
        start = stream.read(8)
    if packing := next((name for mark, name in PACKINGS.items() if start.startswith(mark)), None):
        raise DataError(f"{file}: is packed by {packing}, and a table of this kind is packed within: unpack it")
