"""Mixtures of sources: how often a pass takes each demonstration, and how many of a category there may be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sft.config import DataSource
from sft.data import read_source, weighted
from trueup.data.records import Dropped

ROWS = np.arange(200)


@pytest.mark.parametrize(
    ("weight", "times"), [(1.0, {1: 200}), (0.5, {1: 100}), (2.0, {2: 200}), (2.25, {2: 150, 3: 50})]
)
def test_a_weight_says_how_often_a_pass_takes_each_demonstration(weight: float, times: dict[int, int]) -> None:
    train, again = weighted(ROWS, weight, seed=0)
    assert Counter(Counter([*train, *again]).values()) == times
    assert len(set(train)) == len(train) and set(again) <= set(train)


def test_a_part_is_drawn_by_the_seed_and_the_whole_keeps_its_order() -> None:
    part, again, other = (weighted(ROWS, 0.5, seed)[0].tolist() for seed in (1, 1, 2))
    assert part == again != other
    assert [rows.tolist() for rows in weighted(ROWS, 3.0, 0)] == [ROWS.tolist(), ROWS.tolist() * 2]


def test_no_category_that_rows_name_has_more_than_its_most_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{category} {n}", "completion": "a", **({"category": category} if category != "none" else {})}
        for category, count in {"qa": 30, "code": 3, "none": 12}.items()
        for n in range(count)
    ]
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource.model_validate({"path": path, "max_per_category": 5})
    kept = read_source(source, 0, dropped := Dropped())
    assert Counter(row.category for row in kept) == {"qa": 5, "code": 3, None: 12}
    assert dropped.counts == {"over max_per_category": 30 - 5}
    texts = [row.messages[0].content for row in kept]
    assert texts == sorted(texts, key=[row["prompt"] for row in rows].index), "in the order of the file"
    other = read_source(source, 1, Dropped())
    assert [row.messages[0].content for row in other] != texts, "drawn, and not the first ones"
