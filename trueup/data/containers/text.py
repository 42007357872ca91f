"""Rows of text files: JSON Lines, one JSON list, and tables with commas or tabs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from trueup.data.containers.streams import text_of
from trueup.data.jsonl import DECODER, Entry, Unreadable, load_document, loads, sound
from trueup.errors import DataError

_CHUNK = 2**20
"""Characters of a JSON list that are read at once."""
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN = 16
"""More characters than any token takes that may be cut at the end of what was read, but for texts and numbers."""


def lines(path: Path) -> Iterator[Entry]:
    """One JSON value a line."""
    with text_of(path, "\n") as text:
        first = True
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            value = loads(line.rstrip("\n"))
            if first and isinstance(value, Unreadable | list) and line.lstrip().startswith("["):
                _refuse_a_list(path)
            first = False
            yield f"{path}:{number}", value


def _refuse_a_list(path: Path) -> None:
    """Refuse a file whose name promises lines, and which is one list."""
    try:
        count = sum(1 for _ in document(path))
    except DataError:
        return  # its first line is broken, and will be named
    raise DataError(f"{path}: is one JSON list of {count} values; name it .json")


def document(path: Path) -> Iterator[Entry]:
    """The values of one JSON list, read one after the other; another JSON value is one row."""
    with text_of(path, "") as text:
        window = _Window(text)
        if window.next_character() != "[":
            yield str(path), sound(load_document(window.rest()))
            return
        number = 0
        try:
            for value in window.elements():
                number += 1
                yield f"{path}: entry {number}", sound(value)
        except RecursionError:
            raise DataError(f"{path}: entry {number + 1}: nested too deeply") from None
        except json.JSONDecodeError as error:
            line, column = window.place(error.pos)
            where = f"line {line}, column {column}" if line > 1 else f"column {column}"
            raise DataError(f"{path}: not JSON ({error.msg} at {where}, in or behind entry {number + 1})") from None


class _Window:
    """The part of a JSON text that is being read, and where it stands in the text."""

    def __init__(self, text: TextIO):
        self._text = text
        self._buffer = ""
        self._at = 0
        self._line, self._column = 1, 0
        """Of the buffer's first character."""

    def elements(self) -> Iterator[Any]:
        """The values of the list that begins here. The text ends behind it."""
        self._at += 1
        if self.next_character() == "]":
            self._at += 1
        else:
            separator = ","
            while separator == ",":
                self.next_character()
                yield self._value()
                separator = self.next_character()
                if separator not in (",", "]") or not separator:
                    raise json.JSONDecodeError("Expecting ',' delimiter", self._buffer, self._at)
                self._at += 1
        if self.next_character():
            raise json.JSONDecodeError("Extra data", self._buffer, self._at)

    def next_character(self) -> str:
        """The next one that is no space; empty at the end of the text."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it fits anywhere
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def rest(self) -> str:
        """All of a text of which nothing was taken yet."""
        return self._buffer + self._text.read()

    def place(self, position: int) -> tuple[int, int]:
        """Line and column in the text of a position in the buffer; both count from 1."""
        before = self._buffer[:position]
        ends = before.count("\n")
        return self._line + ends, (position - before.rfind("\n") if ends else self._column + position + 1)

    def _value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # What is read so far may end within a value.
                is_cut = error.msg.startswith("Unterminated") or error.pos + _LONGEST_TOKEN >= len(self._buffer)
                if not is_cut or not self._more():
                    raise
            else:
                if self._buffer[end : end + 1] in (*",] \t\r\n",) or not self._more():  # else a number may go on
                    self._at = end
                    return value

    def _more(self) -> bool:
        """Read on, as much as is there already and not yet taken, and forget what was taken."""
        line, column = self.place(self._at)
        taken, self._at = self._at, 0
        more = self._text.read(max(_CHUNK, len(self._buffer) - taken))
        self._buffer = self._buffer[taken:] + more
        self._line, self._column = line, column - 1
        return bool(more)


def table(path: Path, delimiter: str) -> Iterator[Entry]:
    """Rows of a table with a header: every value is text. A row stands where its last line does."""
    csv.field_size_limit(2**31 - 1)
    with text_of(path, "") as text:
        # Strict, or a quote that nobody closes takes all rows behind it into one text.
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        whole = 0
        try:
            header = next(reader, [])
            whole = reader.line_num
            for cells in reader:
                whole = reader.line_num
                if len(cells) == len(header) == len(set(header)):
                    yield f"{path}:{whole}", sound(dict(zip(header, cells, strict=True)))
                elif cells:
                    problem = f"expected {len(set(header))} columns of different names, found {len(cells)}"
                    yield f"{path}:{whole}", Unreadable(problem, ",".join(cells))
        except csv.Error as error:
            raise DataError(
                f"{path}:{whole + 1}: not CSV ({error}, at line {reader.line_num}); look at the quotes of this row: a "
                "text with one in it stands in quotes, and writes each of its own twice"
            ) from None
