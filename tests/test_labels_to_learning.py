"""Every column that a label has on disk is read by a trainer, or docs/labels-to-learning.md says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trueup.data.records import Preference, Ranking

PAGE = (Path(__file__).parents[1] / "docs/labels-to-learning.md").read_text()
FIRST_CELLS = [row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| ")]
COLUMNS = {name for cell in FIRST_CELLS for name in re.findall(r"`(\w+)`", cell)}
AS_PAIRS = {"completions", "completion_token_ids", "finished", "reasonings", "logps"}
"""Columns of a ranking that its pairs have under the names of their sides."""


@pytest.mark.parametrize("column", sorted({*Ranking.model_fields, *Preference.model_fields}))
def test_a_stored_column_stands_on_the_page(column: str) -> None:
    whole = {
        "completions",
        "completion_token_ids",
        "finished",
        "reasonings",
        "logps",
    }  # of a ranking, by its pairs' names
    assert column in COLUMNS or column in whole, f"docs/labels-to-learning.md does not say who reads {column}"
