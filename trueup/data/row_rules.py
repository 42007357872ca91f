"""The keys that every section of a file of rows has."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from trueup.config import Section
from trueup.data.containers.choice import Choice, comparison

BadRows = Literal["refuse", "drop"]
"""Treatment of rows that cannot be read, or that the chat template refuses: `refuse` refuses the file, `drop` leaves
the rows out, counts them and sets them aside."""
Name = Annotated[str, Field(min_length=1)]
Value = StrictBool | StrictInt | StrictFloat | StrictStr | None


class RowRules(Section):
    """The rows and columns of a file that a stage takes."""

    on_bad_rows: BadRows = "refuse"
    """What happens to a file with bad rows, which cannot be read or which the chat template refuses: `refuse` stops
    with all its problems, `drop` leaves those rows out, counts them by reason in the manifest and keeps them in the
    stage's left_out.jsonl."""
    ignore_columns: list[Name] = Field([])
    """Columns to leave out, at any depth of a row: they are not read, and their content refuses or drops no row."""
    columns: dict[Name, Name] = Field({})
    """Names of columns, ours and the file's: {prompt: question, response: answer}. Columns are renamed before their
    names say which format they have. This key and the next two concern `path` or `prompts`, and no further file."""
    filter: dict[Name, Value | list[Value]] = Field({})
    """Conditions on columns, by the file's names, that a row must all meet: a value, a list of values, or `>=`, `>`,
    `<=`, `<` with a number, or `!=` with a value. {language: en, score: ">= 0.5", category: [qa, code]}. `null` wants
    no value. Rows that do not meet them are counted in the manifest (docs/formats.md)."""
    max_rows: float | None = Field(None, gt=0)
    """Rows to use, or below 1 a share of them, drawn with the stage's seed. Empty: all."""

    @field_validator("filter")
    @classmethod
    def _compares_with_numbers(cls, value: dict[str, Value | list[Value]]) -> dict[str, Value | list[Value]]:
        for name, condition in value.items():
            if condition == []:
                raise ValueError(f"{name}: an empty list takes no row; name the values")
            try:
                comparison(condition)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return value

    @field_validator("max_rows", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"a number of rows, or a share of them (found {str(value).lower()})")
        return value

    @field_validator("max_rows")
    @classmethod
    def _is_whole_from_one(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"a whole number of rows, or a share below 1 (found {value:g})")
        return int(value) if value is not None and value >= 1 else value

    @model_validator(mode="after")
    def _names_each_column_once(self) -> Self:
        theirs = list(self.columns.values())
        if twice := next((name for name in theirs if theirs.count(name) > 1), None):
            raise ValueError(f"columns: {twice!r} is to have two names; keep one of them")
        return self

    def idle_elsewhere(self, section: str, key: str) -> str:
        """What is said where a file is read that is not the one under `key`; empty if no key chooses rows of that."""
        idle = [f"{section}.{name}" for name in ("columns", "filter", "max_rows") if getattr(self, name)]
        concern = f"{'concerns' if len(idle) == 1 else 'concern'} {key} alone"
        return f"; {' and '.join(idle)} {concern}, so all rows of this file were read as they stand" if idle else ""

    def choice(self, seed: int) -> Choice:
        """What these keys take of a file."""
        return Choice(self.columns, self.filter, self.ignore_columns, self.max_rows, seed)
