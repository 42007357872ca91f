"""Rows that lie in Arrow tables, in memory or on disk, and are read by their numbers."""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any, Self, TypeVar, overload

from pydantic import ValidationError

from trueup.data.records import FiledRow, Row, parse_row

T = TypeVar("T")
R = TypeVar("R", bound=Row)
_AT_ONCE = 1000
"""Rows that are read together by who reads all of them."""


class Numbered(Sequence[T]):
    """Rows that are made when they are asked for: some of those that lie somewhere, in an order of their own."""

    def __init__(self, numbers: Any):
        """numbers: which of the rows these are, as a range or an array"""
        self._numbers: Any = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        if isinstance(index, slice):
            return self._of(self._numbers[index])
        return next(self._read([int(self._numbers[index])]))

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._read([int(number) for number in self._numbers[start : start + _AT_ONCE]])

    def at(self, indices: Sequence[int]) -> Self:
        """The rows at these places, in this order."""
        return self._of(array("q", (int(self._numbers[index]) for index in indices)))

    @abstractmethod
    def _of(self, numbers: Any) -> Self:
        """The rows of these numbers."""

    @abstractmethod
    def _read(self, numbers: Sequence[int]) -> Iterator[T]:
        """The rows of a few numbers."""


class Batches:
    """The columns of a table by the numbers of its rows. Of neighbours a batch of the table is read once."""

    def __init__(self, table: Any):
        self.table = table
        self._batches = table.to_batches()
        self._begins = [0, *accumulate(batch.num_rows for batch in self._batches)]

    def read(self, numbers: Iterable[int], *columns: str) -> Iterator[tuple[Any, ...]]:
        """The values of some columns in the rows of these numbers, in their order."""
        import pyarrow

        for of_batch, some in groupby(numbers, lambda number: bisect_right(self._begins, number) - 1):
            batch, places = self._batches[of_batch], [number - self._begins[of_batch] for number in some]
            if len(places) == 1:
                yield tuple(batch.column(name)[places[0]].as_py() for name in columns)
            else:
                rows = batch.select(columns).take(pyarrow.array(places, pyarrow.int64()))
                yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def row_of(schema: type[R], text: str, where: str) -> R:
    """A row as `model_dump_json` wrote it, and where it stands; a DataError as `parse_row` has it."""
    try:
        row = schema.model_validate_json(text)
    except ValidationError:
        return parse_row(schema, json.loads(text), where)
    if isinstance(row, FiledRow):
        row.__dict__["where"] = where
    return row
