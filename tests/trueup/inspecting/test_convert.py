"""`trueup data convert`: a row says the same in another shape, or is left out and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trueup.cli import main
from trueup.commandline import data
from trueup.data.formats import read_demonstrations, read_preferences
from trueup.data.pairs import pairs_of
from trueup.data.records import Dropped
from trueup.errors import DataError, TrueupError
from trueup.inspecting.convert import DEMONSTRATION_SHAPES, PREFERENCE_SHAPES, convert
from trueup.inspecting.look import READERS

CASES = Path(__file__).parents[2] / "data" / "cases" / "shapes"
Jsonl = Callable[[Path, list[Any]], Path]


def readable(reader: Callable[..., Sequence[Any]]) -> list[Path]:
    """The files of the cases that this reader takes."""
    files = []
    for path in sorted(CASES.iterdir()):
        try:
            reader(path, Dropped(), "refuse", [])
        except DataError:
            continue
        files.append(path)
    return files


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("shape", ["messages", "sharegpt", "alpaca"])
@pytest.mark.parametrize("path", readable(read_demonstrations), ids=lambda path: path.name)
def test_demonstrations_come_back_from_every_shape(path: Path, shape: str, ending: str, tmp_path: Path) -> None:
    target = tmp_path / f"rows{ending}"
    before = read_demonstrations(path, Dropped(), "refuse", [])
    try:
        count, dropped = convert(path, target, shape, "refuse", [])
    except TrueupError as error:
        assert not before or (shape == "alpaca" and re.search("alpaca|table", str(error)))
        return
    after = read_demonstrations(target, Dropped(), "refuse", [])
    assert len(after) == count and len(before) == count + sum(
        rows for reason, rows in dropped.counts.items() if "alpaca" in reason
    )
    assert all(row in before for row in after)


def strict(rows: list[Any]) -> list[tuple[Any, ...]]:
    return sorted((row.annotator, pair.prompt_id, *pair.texts) for row in rows for pair in pairs_of(row.ranking()))


@pytest.mark.parametrize("path", readable(read_preferences), ids=lambda path: path.name)
def test_preferences_come_back_as_the_same_pairs(path: Path, tmp_path: Path) -> None:
    before = read_preferences(path, Dropped(), "refuse", [])
    target = tmp_path / "rows.jsonl"
    if not strict(before):
        with pytest.raises(DataError, match="left out: "):
            convert(path, target, "preference", "refuse", [])
        return
    convert(path, target, "preference", "refuse", [])
    assert strict(read_preferences(target, Dropped(), "refuse", [])) == strict(before)


def test_the_ends_of_a_ranking_are_good_and_bad_and_a_tie_is_neither(tmp_path: Path, jsonl: Jsonl) -> None:
    rows = [
        {"prompt": "Q?", "completions": ["a", "b", "c"], "tiers": [[1], [0], [2]], "annotator": "ann"},
        {"prompt": "R?", "completions": ["a", "b"], "tiers": [[0, 1]], "annotator": "ann"},
        {"prompt": "S?", "completions": ["a", "b"], "tiers": [[0, 1]], "both_bad": True, "annotator": "ann"},
    ]
    target = tmp_path / "rows.json"
    count, dropped = convert(jsonl(tmp_path / "in.jsonl", rows), target, "kto", "refuse", [])
    assert count == 4 and dropped.counts["tie: neither answer is good or bad"] == 1
    said = [
        (row["prompt"][0]["content"], row["completion"][0]["content"], row["label"])
        for row in json.loads(target.read_text())
    ]
    assert said == [("Q?", "b", True), ("Q?", "c", False), ("S?", "a", False), ("S?", "b", False)]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_column_that_only_later_rows_have_is_written(tmp_path: Path, jsonl: Jsonl, ending: str) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "category": "code"}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    convert(source, tmp_path / f"rows{ending}", "messages", "refuse", [])
    read = [read_demonstrations(path, Dropped(), "refuse", []) for path in (source, tmp_path / f"rows{ending}")]
    assert read[0] == read[1]


def test_parquet_has_the_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    convert(CASES / "d_alpaca.jsonl", tmp_path / "rows.parquet", "messages", "refuse", [])
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["messages"][-1]["role"] for row in rows] == ["assistant"] * 3


@pytest.mark.parametrize(
    ("target", "words"), [("there.jsonl", "is there already"), ("rows.txt", "a name that ends in .jsonl")]
)
def test_a_place_that_cannot_take_the_rows_is_refused(tmp_path: Path, target: str, words: str, capsys: Any) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    assert main(["data", "convert", str(CASES / "d_alpaca.jsonl"), str(tmp_path / target), "--to", "messages"]) == 2
    assert words in capsys.readouterr().err and (tmp_path / "there.jsonl").read_text() == "mine"


def test_the_command_takes_every_shape_that_is_written_and_every_use_that_is_read() -> None:
    assert set(data.SHAPES) == {*DEMONSTRATION_SHAPES, *PREFERENCE_SHAPES} and set(data.USES) == set(READERS)
