"""What the pages of this package are made with: the templates, and the names of policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment

from trueup.artifacts.reports import Estimate
from trueup.pages import frame, wording
from trueup.pages.wording import title


def environment() -> Environment:
    """The templates of this package, in the frame of all reports."""
    return frame.environment(Path(__file__).parent)


POLICIES = {"base": "Base", "sft": "SFT", "aligned": "Aligned", "best_of_n": "Best of n"}


# ---- Words ------------------------------------------------------------------------------------------------------


def policy_title(name: str) -> str:
    """A policy as people read it."""
    return POLICIES.get(name, title(name))


def value_of(figures: Estimate | float | None) -> float | None:
    """The number of a figure, with or without an interval."""
    return figures.value if isinstance(figures, Estimate) else figures


# ---- What answers are like --------------------------------------------------------------------------------------


class MeasureRow(NamedTuple):
    """A row of a table of measures."""

    key: str
    """The name of the figure in the report."""
    what: str
    meaning: str
    form: str
    """As `wording.measure` takes it."""


LENGTH = ("Length, tokens", "mean of all answers, with the end-of-turn token", ".1f")
ENDS = ("Ends by itself", "share of answers; the others were cut at the limit", "share")
REPEATS = ("Repeats itself", "share of answers that say three words in a row twice", "share")


def measure_rows(
    measures: Iterable[MeasureRow], columns: Sequence[object], unknown: str = wording.UNKNOWN
) -> list[tuple[str, str, list[str]]]:
    """(what, what it means, its value in each column) of what was measured; the rest is left out."""
    rows = []
    for key, what, meaning, form in measures:
        values = [value_of(getattr(figures, key)) for figures in columns]
        if any(value is not None for value in values):
            rows.append((what, meaning, [wording.measure(value, form, unknown) for value in values]))
    return rows
