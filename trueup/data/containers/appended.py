"""Files of rows that grow while a stage works, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Generic, TypeVar

from pydantic import BaseModel

from trueup.data.records import Row, parse_row, read_rows
from trueup.files import mend_last_line

R = TypeVar("R", bound=Row)


def append_rows(path: Path, rows: Iterable[BaseModel]) -> None:
    """Add rows to a file that grows while a stage works; `read_appended` reads it after an interruption."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(row.model_dump_json() + "\n" for row in rows)


def read_appended(path: Path, schema: type[R]) -> list[R]:
    """The rows that were appended whole; none where there is no file. A row that was cut is taken out of it."""
    mend_last_line(path)
    return read_rows(path, schema) if path.exists() else []


class Growing(Generic[R]):
    """The rows of a file that `append_rows` adds to meanwhile. Once it has been read, the file may be removed."""

    def __init__(self, path: Path, schema: type[R]):
        self.path, self.schema = path, schema
        self._file: IO[bytes] | None = None
        self._cut = b""
        """The beginning of a row whose end is not written yet."""

    def more(self) -> list[R]:
        """The rows that were added since the last call."""
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except FileNotFoundError:
                return []
        whole, _, self._cut = (self._cut + self._file.read()).rpartition(b"\n")
        return [parse_row(self.schema, json.loads(line), str(self.path)) for line in whole.split(b"\n") if line]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
