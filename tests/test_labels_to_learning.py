"""Every column that a label has on disk is read by somebody, or docs/labels-to-learning.md says why it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trueup.data.records import Preference, Ranking

PAGE = (Path(__file__).parents[1] / "docs/labels-to-learning.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if row.startswith("| ")]
READERS = {name: cells[1:] for cells in ROWS for name in re.findall(r"`(\w+)`", cells[0])}
"""By column, the cells of its row."""
AS_PAIRS = {"completions", "completion_token_ids", "finished", "reasonings", "logps"}
"""Columns of a ranking that its pairs have under the names of their sides."""


@pytest.mark.parametrize("column", sorted({*Ranking.model_fields, *Preference.model_fields} - AS_PAIRS))
def test_a_stored_column_has_a_row_that_says_of_everybody_whether_they_read_it(column: str) -> None:
    assert column in READERS, f"docs/labels-to-learning.md does not say who reads {column}"
    assert all(READERS[column]), f"a cell on {column} is empty"
