"""Columns are renamed, rows are filtered and drawn, and each that is left out is counted by its reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from trueup.data.formats import read_demonstrations, read_preferences, read_prompts
from trueup.data.records import Dropped
from trueup.data.row_rules import RowRules
from trueup.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"ask": "1", "say": "a", "language": "en", "score": 0.5, "category": "qa", "tags": ["x", "y"], "checked": True},
    {"ask": "2", "say": "b", "language": "de", "score": 1, "category": "code", "tags": [], "checked": False},
    {"ask": "3", "say": "c", "language": "en", "score": 0.1, "category": "code", "tags": ["z"], "checked": True},
    {"ask": "4", "say": "d", "language": None, "score": None, "meta": {"from": "web", "year": 2020}},
]


def rules(**keys: Any) -> RowRules:
    return RowRules.model_validate({"columns": {"prompt": "ask", "completion": "say"}, **keys})


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def taken(path: Path, choice: RowRules, seed: int = 0) -> tuple[str, dict[str, int]]:
    """The prompts that are read, as one text, and what was left out."""
    rows = read_prompts(path, dropped := Dropped(), choice=choice.choice(seed))
    return "".join(row.prompt[0].content for row in rows), dict(dropped.counts)


FILTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a value": ({"language": "en"}, "13"),
    "one of several": ({"category": ["qa", "code"]}, "123"),
    "a number": ({"score": 1}, "2"),
    "at least": ({"score": ">= 0.5"}, "12"),
    "below": ({"score": "<0.5"}, "3"),
    "another value": ({"language": "!= en"}, "2"),
    "no value": ({"language": None}, "4"),
    "a value or none": ({"language": [None, "de"]}, "24"),
    "a flag": ({"checked": True}, "13"),
    "one of a list": ({"tags": "y"}, "1"),
    "within a column": ({"meta.from": "web", "meta.year": ">2019"}, "4"),
    "all conditions": ({"language": "en", "category": "code"}, "3"),
    "a text that looks like an operator": ({"language": [">= 0.5", "en"]}, "13"),
}


@pytest.mark.parametrize("kind", FILTERS)
def test_a_filter_takes_the_rows_that_meet_all_its_conditions(kind: str, tmp_path: Path) -> None:
    conditions, expected = FILTERS[kind]
    prompts, counts = taken(written(tmp_path / "rows.jsonl"), rules(filter=conditions))
    assert prompts == expected
    assert sum(counts.values()) == len(ROWS) - len(prompts) and all(reason.startswith("filter: ") for reason in counts)


def test_a_table_of_texts_meets_the_same_conditions(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ask", "say", "score", "checked"])
        writer.writerows([["1", "a", "0.5", "True"], ["2", "b", "1", "false"], ["3", "c", "n/a", "true"]])
    for conditions, expected in [({"score": ">= 0.5"}, "12"), ({"score": 1}, "2"), ({"checked": True}, "13")]:
        assert taken(tmp_path / "rows.csv", rules(filter=conditions))[0] == expected


def test_what_is_left_out_is_counted_by_its_condition(tmp_path: Path) -> None:
    _, counts = taken(written(tmp_path / "rows.jsonl"), rules(filter={"language": "en", "score": "> 0.2"}))
    assert counts == {"filter: language": 1, "filter: language (no value)": 1, "filter: score": 1}


@pytest.mark.parametrize(("most", "number"), [(2, 2), (0.5, 2), (0.01, 1), (9, 4)])
def test_max_rows_draws_a_number_or_a_share_by_the_seed(most: float, number: int, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl")
    draws = [taken(path, rules(max_rows=most), seed) for seed in range(20)]
    assert all(len(prompts) == number and sum(counts.values()) == 4 - number for prompts, counts in draws)
    assert (len(set(draws_ for draws_, _ in draws)) > 1) == (number < 4)
    assert taken(path, rules(max_rows=most), 3) == draws[3]


def test_columns_are_renamed_before_they_say_which_format_they_have(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"ask": "1", "good": "a", "evil": "b"}])
    choice = rules(columns={"prompt": "ask", "chosen": "good", "rejected": "evil"}).choice(0)
    [ranking] = read_preferences(path, Dropped(), choice=choice)
    assert ranking.completions == ["a", "b"]


def test_two_names_may_change_places_and_no_column_is_hidden_by_another(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "1"}])
    swapped = rules(columns={"prompt": "completion", "completion": "prompt"})
    assert taken(path, swapped)[0] == "1"
    path = written(tmp_path / "rows.jsonl", [{"ask": "1", "prompt": "2", "completion": "a"}])
    with pytest.raises(DataError, match=r":1: prompt: columns names 'ask' so, and the row has a 'prompt' too"):
        taken(path, rules(columns={"prompt": "ask"}))
    assert taken(path, rules(columns={"prompt": "ask"}, ignore_columns=["prompt"]))[0] == "1"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"columns": {"prompt": "asked"}}, "columns: prompt: no row has a value in a column 'asked'"),
        ({"filter": {"langage": "en"}}, "filter: langage: no row has a value in a column 'langage'"),
    ],
)
def test_a_column_that_no_row_has_is_answered_with_those_that_there_are(
    keys: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.jsonl")
    with pytest.raises(DataError) as error:
        read_demonstrations(path, Dropped(), choice=rules(**keys).choice(0))
    columns = "the columns are ask, say, language, score, category, tags, checked, meta"
    assert str(error.value) == f"{path}: {problem}; {columns}"


@pytest.mark.parametrize(
    "keys",
    [
        {"filter": {"score": ">= much"}},
        {"filter": {"score": "> nan"}},
        {"filter": {"score": "!="}},
        {"filter": {"score": {"above": 1}}},
        {"filter": {"score": [[1]]}},
        {"filter": {"": 1}},
        {"max_rows": 2.5},
        {"max_rows": 0},
        {"columns": {"prompt": "a", "completion": "a"}},
        {"columns": {"prompt": ["a", "b"]}},
    ],
)
def test_what_the_grammar_does_not_know_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rules(**keys)


def test_a_filter_that_no_row_meets_refuses_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row meets the conditions .*3 filter: language"):
        taken(written(tmp_path / "rows.jsonl", ROWS[:3]), rules(filter={"language": "fr"}))


@pytest.mark.parametrize("condition", ["== 1", "= 1", [], ">= x"])
def test_a_condition_that_means_nothing_is_refused(condition: Any) -> None:
    with pytest.raises(ValidationError, match="filter"):
        rules(filter={"score": condition})


def test_numbers_too_long_for_a_float_are_told_apart(tmp_path: Path) -> None:
    ids = [9007199254740992, 9007199254740993]
    path = written(tmp_path / "rows.jsonl", [{"ask": str(n), "say": "a", "id": one} for n, one in enumerate(ids)])
    assert taken(path, rules(filter={"id": ids[1]}))[0] == "1"


def test_a_column_that_gives_its_name_away_may_be_ignored(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"ask": "1", "say": "a", "prompt": "not this"}])
    with pytest.raises(DataError, match="ignore_columns"):
        taken(path, rules())
    assert taken(path, rules(ignore_columns=["prompt"]))[0] == "1"


def test_a_filter_reads_a_column_that_is_ignored_in_every_container(tmp_path: Path) -> None:
    rows = [{"ask": row["ask"], "say": row["say"], "language": row["language"]} for row in ROWS[:3]]
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (written(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet"):
        assert taken(path, rules(filter={"language": "en"}, ignore_columns=["language"]))[0] == "13"


def test_a_row_that_cannot_be_renamed_is_kept_whole_where_rows_are_left_out(tmp_path: Path) -> None:
    good = {"ask": "1", "say": "a"}
    path = written(tmp_path / "rows.jsonl", [good, good | {"prompt": "both"}])
    read_prompts(path, dropped := Dropped(), "drop", choice=rules().choice(0))
    assert '"both"' in str(dropped.left_out[0].row)
