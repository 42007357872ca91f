"""A format: a name, the columns that a row of it is recognised by, and its converter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from trueup.data.formats.columns import Columns, Values


class Skipped(NamedTuple):
    """What a converter gives in place of a row that is sound but of no use; it is counted by its reason."""

    reason: str


Convert = Callable[[Columns, Path], Iterable[Values | Skipped]]


class Format(NamedTuple):
    name: str
    keys: tuple[str, ...]
    """What a row is recognised by: it has all of these, where `a|b` is either."""
    convert: Convert


def any_of(names: Iterable[str]) -> str:
    return "|".join(dict.fromkeys(names))
