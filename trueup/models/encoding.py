"""Rows of files as tokens: which rows can be encoded, and which of those fit.

A row that the chat template or the tokenizer refuses is a bad row, like one that no reader takes, and `on_bad_rows`
applies to both: `refuse` names all of them at once; `drop` leaves them out, counts them by reason and sets them aside,
unless no row remains. The stages and `trueup check` share this module. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from trueup.data.formats import SHOWN_PROBLEMS
from trueup.data.records import Demonstration, Dropped, FiledRow
from trueup.data.row_rules import BadRows
from trueup.errors import DataError, ModelError, TrueupError
from trueup.models.chat import Encoded, encode_demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", bound=FiledRow)
T = TypeVar("T")

TOO_LONG = "longer than max_length"


class RefusedRows:
    """Rows that cannot be encoded, and the changes to the others. All problems of a stage's files come at once."""

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        """The places of each problem, by its message."""
        self.template_problems: set[str] = set()
        """Messages of problems that the template causes, not a row."""
        self.changes: Counter[str] = Counter()

    def add(self, where: str, error: TrueupError) -> None:
        self.problems.setdefault(str(error), []).append(where or "a row")
        if isinstance(error, ModelError):
            self.template_problems.add(str(error))

    def leave_out(self, reported: set[str]) -> None:
        """Leave out problems that were reported before, of the template or of the same row, and add the rest."""
        for text, rows in list(self.problems.items()):
            fresh = [] if text in reported else [where for where in rows if f"{where}: {text}" not in reported]
            reported |= {text} if text in self.template_problems else {f"{where}: {text}" for where in rows}
            self.problems[text] = fresh
            if not fresh:
                del self.problems[text]

    def lines(self) -> list[str]:
        """A line for each problem, with the rows that have it."""
        lines = [f"{rows[0]}: {text}{_more(rows[1:])}" for text, rows in self.problems.items()]
        more = sum(map(len, list(self.problems.values())[SHOWN_PROBLEMS:]))
        return lines[:SHOWN_PROBLEMS] + ([f"... and {more} more rows"] if more else [])

    def stop(self) -> None:
        """If there are problems, raise them all as one DataError, or as a ModelError if the template causes them."""
        if self.problems:
            count = sum(map(len, self.problems.values()))
            head = [f"{count} rows cannot be encoded"] if count > 1 else []
            kind = ModelError if self.template_problems == self.problems.keys() else DataError
            raise kind("\n  ".join(head + self.lines()))


def named(places: Sequence[str]) -> str:
    """The places of rows, in a few words: the first by file and line, three by line, the others by their count."""
    return f"{places[0]}{_more(places[1:])}"


def _more(places: Sequence[str]) -> str:
    if not places:
        return ""
    others = ", ".join(place.rpartition(":")[2] or place for place in places[:3])
    return f" (and in {others}{f' and {len(places) - 3} more rows' if len(places) > 3 else ''})"


def encode_rows(
    rows: Sequence[R],
    encode: Callable[[R, set[str]], T],
    refused: RefusedRows,
    on_bad_rows: BadRows = "refuse",
    dropped: Dropped | None = None,
    may_be_none: bool = False,
) -> list[tuple[R, T]]:
    """The rows of a file that can be encoded, each with the result of `encode`.

    encode       takes a row, and a set that collects the changes to its texts
    refused      collects the problems of the other rows, and the changes
    dropped      collects the other rows in place of `refused` if `on_bad_rows` is drop
    may_be_none  they are dropped even if no row remains: these rows are a part of something
    """
    encoded: list[tuple[R, T]] = []
    bad: list[tuple[R, TrueupError]] = []
    for row in rows:
        changes: set[str] = set()
        try:
            encoded.append((row, encode(row, changes)))
            refused.changes.update(changes)
        except (DataError, ModelError) as error:
            bad.append((row, error))
    drop = on_bad_rows == "drop" and (may_be_none or bool(encoded))
    for row, problem in bad:
        if drop and dropped is not None:
            dropped.leave_out(row.where, str(problem), row.model_dump(mode="json"))
        else:
            refused.add(row.where, problem)
    return encoded


def encode_demonstrations(
    rows: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    refused: RefusedRows,
    on_bad_rows: BadRows,
    dropped: Dropped,
) -> tuple[list[tuple[Demonstration, list[Encoded]]], list[Demonstration]]:
    """The demonstrations of a file that fit, each with its training rows (several if the template requires it), and
    those that do not fit.

    A demonstration is left out whole if one of its training rows is longer than `max_length`: cut, it would lose an
    EOS, and without some of its turns it would be another dialogue. Which turns those are would depend on the template.
    """

    def encode(row: Demonstration, changes: set[str]) -> list[Encoded]:
        return encode_demonstration(tokenizer, row.messages, changes)

    encoded = encode_rows(rows, encode, refused, on_bad_rows, dropped)
    fitting = [one for one in encoded if max(len(row.input_ids) for row in one[1]) <= max_length]
    too_long = [row for row, many in encoded if max(len(one.input_ids) for one in many) > max_length]
    if too_long:
        dropped.add(TOO_LONG, len(too_long))
    return fitting, too_long
