"""The keys that every section of a file of rows has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trueup.config import Section

BadRows = Literal["refuse", "drop"]
"""Treatment of rows that cannot be read, or that the chat template refuses: `refuse` refuses the file, `drop` leaves
the rows out, counts them and sets them aside."""


class RowRules(Section):
    """The rows and columns of a file that a stage does not take."""

    on_bad_rows: BadRows = "refuse"
    """What happens to a file with bad rows, which cannot be read or which the chat template refuses: `refuse` stops
    with all its problems, `drop` leaves those rows out, counts them by reason in the manifest and keeps them in the
    stage's left_out.jsonl."""
    ignore_columns: list[Annotated[str, Field(min_length=1)]] = Field([])
    """Columns to leave out, at any depth of a row: they are not read, and their content refuses or drops no row."""
