"""The rows of a file that a section takes, and the names of their columns: rename, filter, draw.

A condition is a value that a column must have, a list of such values, or an operator with a number: `>= 0.5`. Nothing
is evaluated.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueup.data.jsonl import cut, excerpt
from trueup.files import Json

Scalar = str | int | float | bool | None
Condition = Scalar | list[Scalar]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"\s*(>=|<=|!=|>|<|==|=)\s*(.*?)\s*")
_SHOWN = 30


def comparison(condition: Condition) -> tuple[str, str] | None:
    """The operator and the text behind it of a condition such as `>= 0.5`; None if the condition is a value.

    Raises ValueError if the operator wants a number and another text follows.
    """
    match = _COMPARISON.fullmatch(condition) if isinstance(condition, str) else None
    if match is None:
        return None
    sign, text = match[1], match[2]
    if sign in ("=", "=="):
        raise ValueError(f"{condition!r}: write the value alone, or a text that begins so as a list: [{condition!r}]")
    if (sign in _OPERATORS and _as_number(text) is None) or not text:
        raise ValueError(
            f"{condition!r}: a {'value' if sign == '!=' else 'number'} follows {sign}; a text that begins so is "
            f"written as a list: [{condition!r}]"
        )
    return sign, text


@dataclass
class Choice:
    """What is taken of a file, and how its columns are called. It collects the names of the columns that there are."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """{our name: the file's}."""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    """What a column must hold, by the file's name."""
    ignored: Sequence[str] = ()
    most: float | None = None
    """Rows to draw, or a share of them."""
    seed: int = 0
    names: dict[str, None] = field(default_factory=dict)
    """The columns of the rows so far."""
    _used: set[str] = field(default_factory=set)

    @property
    def needed(self) -> set[str]:
        """The file's columns that are renamed or have a condition."""
        return {*self.columns.values(), *self.conditions, *(name.split(".")[0] for name in self.conditions)}

    def why_left_out(self, row: Mapping[str, Any]) -> str | None:
        """The condition that a row does not meet, as a reason to count it by; None for a row that is taken."""
        if not self.columns and not self.conditions:
            return None
        self.names.update(dict.fromkeys(row))
        self._used.update(name for name in self.columns.values() if name in row)
        left_out = None
        for name, condition in self.conditions.items():
            value = _look_up(row, name)
            if value is not None:
                self._used.add(name)
            if left_out is None and not _meets(value, condition):
                left_out = f"filter: {name}" + (" (no value)" if value is None else "")
        return left_out

    def renamed(self, row: Mapping[str, Any]) -> Json:
        """A row with our names. A ValueError if it has a column of a name that another is to have."""
        names = {theirs: ours for ours, theirs in self.columns.items() if theirs in row}
        taken = set(names.values()) & (row.keys() - names.keys())
        if both := sorted(taken - set(self.ignored)):
            raise ValueError(
                f"{both[0]}: columns names {self.columns[both[0]]!r} so, and the row has a {both[0]!r} too; name that "
                "one otherwise in columns, or leave it out with ignore_columns"
            )
        return {names.get(name, name): value for name, value in row.items() if name not in taken}

    def unknown(self) -> str | None:
        """The sentence that a column is named which no row has; None if all are there."""
        wanted = [(f"columns: {ours}", theirs) for ours, theirs in self.columns.items()]
        wanted += [(f"filter: {name}", name) for name in self.conditions if self.conditions[name] is not None]
        missing = next(((key, name) for key, name in wanted if name not in self._used), None)
        if missing is None or not self.names:
            return None
        shown = ", ".join(cut(name, 40) for name in list(self.names)[:_SHOWN])
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        return f"{missing[0]}: no row has a value in a column {missing[1]!r}; the columns are {shown}{more}"


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    """A column's value; of `metadata.language`, the value within the column `metadata`."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _meets(value: Any, condition: Condition) -> bool:
    """Whether a value is what is wanted. A list of values is, if one of them is."""
    if isinstance(value, list):
        is_negative = (compared := comparison(condition)) is not None and compared[0] == "!="
        return (all if is_negative else any)(_meets(one, condition) for one in value)
    if isinstance(condition, list):
        return any(_same(value, one) for one in condition)
    if (compared := comparison(condition)) is None:
        return _same(value, condition)
    sign, text = compared
    if sign == "!=":
        return value is not None and not _same(value, text)
    number = _as_number(value)
    return number is not None and _OPERATORS[sign](number, float(text))


def _same(value: Any, wanted: Scalar) -> bool:
    """Whether a value is the wanted one. Tables of texts have `2` for 2 and `True` for true."""
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return value is wanted or (value is not None and str(value).lower() == excerpt(wanted).strip('"').lower())
    if isinstance(value, str) and isinstance(wanted, str):
        return value == wanted
    if isinstance(value, int) and isinstance(wanted, int):
        return value == wanted  # exact, where a float has too few digits
    number = _as_number(value)
    return number is not None and number == _as_number(wanted)


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
