"""Rows of Parquet and Arrow files, with the values that a JSON row would have.

A struct has the keys that have a value: in a column all have the same, and one that a JSON row has not is null.
A time is text as in ISO 8601. NaN is null, since pandas writes a missing number so. Bytes are text if they are UTF-8.
A value that JSON has not (an infinite number, other bytes, a duration) makes its row a bad one, which names the column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from trueup.data.jsonl import Entry, Flaw, Unreadable, cut, sound
from trueup.errors import DataError

_ROWS = 1000
"""Rows that are decoded at once."""
Convert = Callable[[Any], Any]
Leave = Callable[[str], bool]
"""Whether a column of this name is not to be read."""


def parquet(path: Path, leave: Leave) -> Iterator[Entry]:
    """Rows of a Parquet file, by its row groups."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    group = 0
    try:
        with ParquetFile(path, buffer_size=2**20) as file:
            names = _columns(path, file.schema_arrow, leave)
            number = 0
            for group in range(1, file.num_row_groups + 1):
                for batch in file.iter_batches(_ROWS, row_groups=[group - 1], columns=names):
                    for row in _rows(batch):
                        number += 1
                        yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(f"{path}: row group {group}" if group else f"{path}", "Parquet", error) from None


def arrow(path: Path, leave: Leave) -> Iterator[Entry]:
    """Rows of an Arrow file, or of a stream in one, as `datasets` writes it."""
    import pyarrow

    number = 0
    try:
        with pyarrow.OSFile(str(path), "rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
            names = _columns(path, reader.schema, leave)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                for start in range(0, batch.num_rows, _ROWS):
                    for row in _rows(batch.select(names).slice(start, _ROWS)):
                        number += 1
                        yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(f"{path}: behind row {number}" if number else f"{path}", "Arrow", error) from None


def _damaged(where: str, kind: str, error: Exception) -> DataError:
    reason = cut((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."), 160)
    return DataError(f"{where}: cannot be read as {kind} ({reason}); it is cut off, damaged, or something else")


def _columns(path: Path, schema: Any, leave: Leave) -> list[str]:
    """The names of the columns to read; a DataError for two of one name, of which one would hide the other."""
    names = [name for name in schema.names if not leave(name)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: the column {cut(twice, 40)} stands twice; take one of them out")
    return names


def _rows(batch: Any) -> Iterator[Any]:
    """The rows of a batch as JSON rows: Unreadable where one cannot be that."""
    converters = {field.name: convert for field in batch.schema if (convert := _converter(field.type))}
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # of one row; ArrowInvalid and UnicodeDecodeError are ValueErrors
        rows = [_row(batch, number) for number in range(batch.num_rows)]
    for row in rows:
        if not isinstance(row, Unreadable):
            for name, convert in converters.items():
                row[name] = convert(row[name])
        yield sound(row)


def _row(batch: Any, number: int) -> Any:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[number].as_py()
        except (ValueError, OverflowError) as error:
            return Unreadable(f"{cut(name, 40)}: cannot be read ({cut(str(error), 80)})")
    return row


# ---- Values -----------------------------------------------------------------------------------------------------


def _converter(type: Any) -> Convert | None:
    """What makes a value of a type one of JSON; None if it is one already."""
    from pyarrow import types

    if (storage := getattr(type, "storage_type", None)) is not None:
        return _uuid if types.is_fixed_size_binary(storage) else _converter(storage)  # a UUID; JSON text
    if types.is_dictionary(type) or types.is_run_end_encoded(type):
        return _converter(type.value_type)
    if types.is_struct(type):
        return _of_struct({field.name: _converter(field.type) for field in type})
    if types.is_map(type):
        return _of_map(_converter(type.item_type))
    if hasattr(type, "value_type"):  # lists of all kinds
        return _of_list(_converter(type.value_type))
    if types.is_floating(type):
        return _number
    if types.is_decimal(type):
        return _of_decimal
    if types.is_date(type) or types.is_time(type) or types.is_timestamp(type):
        return lambda value: value if value is None else value.isoformat()
    if any(test(type) for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)):
        return _text
    if types.is_null(type) or types.is_boolean(type) or types.is_integer(type) or "string" in str(type):
        return None
    return lambda value: value if value is None else Flaw(f"is a {type}, which JSON has not; leave the column out")


def _uuid(value: Any) -> str | None:
    return None if value is None else str(value)


def _of_struct(converters: dict[str, Convert | None]) -> Convert:
    def convert_struct(value: Any) -> Any:
        return value and {
            name: convert(value[name]) if (convert := converters[name]) else value[name]
            for name in value
            if value[name] is not None
        }

    return convert_struct


def _of_map(convert: Convert | None) -> Convert:
    def convert_map(value: Any) -> Any:
        if value is None:
            return None
        entries = {str(key): convert(item) if convert else item for key, item in value}
        return entries if len(entries) == len(value) else Flaw("holds a key twice; take one of them out")

    return convert_map


def _of_list(convert: Convert | None) -> Convert | None:
    return convert and (lambda value: value and [convert(item) for item in value])


def _number(value: float | None) -> Any:
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else Flaw(f"{value} is no finite number")


def _of_decimal(value: Decimal | None) -> Any:
    if value is None:
        return None
    if value == value.to_integral_value():
        return int(value)
    is_exact = Decimal(repr(float(value))) == value
    return float(value) if is_exact else Flaw(f"{value} has more digits than a number of JSON keeps")


def _text(value: bytes | None) -> Any:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return Flaw(f"holds {len(value or b'')} bytes that are no text; leave the column out (ignore_columns)")
