"""JSON that people bring, read strictly: what Python's reader would repair or lose in silence is a ValueError.

A key that stands twice, a number that is not finite, NUL and half surrogate pairs in a text, nesting beyond MAX_DEPTH:
no database stores these, or not all of them the same.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from trueup.errors import DataError
from trueup.files import require_file


class Unreadable(ValueError):
    """Stands for an entry that is not sound JSON: why, and the text of its line."""

    def __init__(self, problem: str, line: str = ""):
        super().__init__(problem)
        self.line = line


MAX_DEPTH = 200
"""Objects and lists within each other. A reply in an OASST tree takes two."""
ROW_FILES = {".jsonl": "lines", ".ndjson": "lines", ".json": "list", ".csv": "table", ".tsv": "table"}


def excerpt(value: Any, most: int = 60) -> str:
    """A value as JSON for an error message, of bounded length."""
    try:
        text = value if isinstance(value, _Flaw) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """A text of bounded length, on one line, for an error message."""
    text = text.replace("\n", " ").encode(errors="backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."


def read_entries(path: Path) -> list[tuple[str, Any]]:
    """Where each entry of a file stands, and its value: Unreadable where that is not sound JSON.

    Raises DataError where the file as a whole cannot be read.
    """
    kind = ROW_FILES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path}: expected a .jsonl file (one value a line), a .json file (a list) or a .csv file; another kind of "
            f"table is converted by pandas: pandas.read_parquet('{path.name}').to_json('{path.stem}.jsonl', "
            "orient='records', lines=True)"
        )
    text = _read_text(path)
    if kind == "table":
        entries = _table(path, text)
    elif kind == "lines":
        if text.lstrip().startswith("[") and isinstance(whole := loads(text), list) and "\n" in text.strip():
            raise DataError(f"{path}: is one JSON list of {len(whole)} values over several lines; name it .json")
        entries = [(f"{path}:{n}", loads(line)) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    elif isinstance(document := _loads(text), list):
        entries = [(f"{path}: entry {n}", _sound(value)) for n, value in enumerate(document, start=1)]
    else:
        entries = [(str(path), _sound(document))]
    if not entries:
        raise DataError(f"{path}: holds no rows")
    return entries


def _table(path: Path, text: str) -> list[tuple[str, Any]]:
    """Rows of a CSV file with a header: every value is text. A row stands where its last line does."""
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Strict, or a quote that nobody closes takes all rows behind it into one text.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    entries: list[tuple[str, Any]] = []
    whole = 0
    try:
        header = next(reader, [])
        whole = reader.line_num
        for cells in reader:
            whole = reader.line_num
            if len(cells) == len(header) == len(set(header)):
                entries.append((f"{path}:{reader.line_num}", _sound(dict(zip(header, cells, strict=True)))))
            elif cells:
                problem = f"expected {len(set(header))} columns of different names, found {len(cells)}"
                entries.append((f"{path}:{reader.line_num}", Unreadable(problem, ",".join(cells))))
    except csv.Error as error:
        raise DataError(
            f"{path}:{whole + 1}: not CSV ({error}, at line {reader.line_num}); look at the quotes of this row: a text "
            "with one in it stands in quotes, and writes each of its own twice"
        ) from None
    return entries


def _read_text(path: Path) -> str:
    """UTF-8, or UTF-16 and UTF-32 where the byte order mark says so."""
    try:
        require_file(path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    marks = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise DataError(f"{path}: not {name} ({error.reason} at byte {error.start}); save it as UTF-8") from None


def loads(text: str) -> Any:
    """The value of a JSON text, or an Unreadable that says why there is none."""
    value = _sound(_loads(text))
    if isinstance(value, Unreadable):
        value.line = text
    return value


class _Flaw(str):
    """Stands in a value for what could not be read soundly; its text says what was found."""


def _object(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    return _Flaw(f"the key {excerpt(twice, 40)} stands twice in one object; take one of them out")


def _float(text: str) -> Any:
    value = float(text)
    return value if math.isfinite(value) else _Flaw(f"{cut(text, 20)} is no finite number")


def _constant(name: str) -> Any:
    return _Flaw(f"{name} is no JSON number; write null where there is none")


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
    except RecursionError:
        return Unreadable("nested too deeply")
    except json.JSONDecodeError as error:
        hint = "; is it one value a line? Then name it .jsonl" if error.lineno > 1 and "Extra" in error.msg else ""
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return Unreadable(f"not JSON ({error.msg} at {line}column {error.colno}){hint}")
    except ValueError as error:  # an integer of thousands of digits
        return Unreadable(f"not JSON ({cut(str(error), 80)})")


def _sound(value: Any) -> Any:
    """The value, or an Unreadable for a flaw in it."""
    if isinstance(value, Unreadable):
        return value
    stack: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while stack:
        one, path = stack.pop()
        problem = None
        if isinstance(one, _Flaw):
            problem = str(one)
        elif isinstance(one, str):
            problem = _text_problem(one)
        elif isinstance(one, list | dict):
            if len(path) >= MAX_DEPTH:
                return Unreadable(f"{cut(str(path[0]), 40)}: nested too deeply (more than {MAX_DEPTH} levels)")
            items: Any = one.items() if isinstance(one, dict) else enumerate(one)
            for key, inner in items:
                if isinstance(key, str) and (problem := _text_problem(key)):
                    break
                if isinstance(inner, str | list | dict):
                    stack.append((inner, (*path, key)))
        if problem:
            where = ".".join(cut(str(key), 40) for key in path[:6])
            return Unreadable(f"{where}: {problem}" if where else problem)
    return value


def _text_problem(text: str) -> str | None:
    if "\0" in text:
        return "holds the character NUL (\\u0000), which no database stores; take it out"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair, {text[error.start]!a}"
            return f"not Unicode text ({half}); write the whole character, or take it out"
    return None
