"""What SFT read is shown in its folder: sources, bad rows, rows with what is learnt marked; also when the files are
gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from sft.data import read_data
from trueup import runs
from trueup.inspecting import stage as inspecting
from trueup.models.loading import load_base_tokenizer

Jsonl = Callable[[Path, list[Any]], Path]


@pytest.fixture
def read(campaign: Callable[..., Any], tmp_path: Path, jsonl: Jsonl) -> Callable[..., Any]:
    """`read(**keys)` is (what a stage at work read of two sources, the stage), with its page."""

    def make(**keys: Any) -> Any:
        first = [{"prompt": f"Who was person {i}?", "completion": f"Somebody {i}."} for i in range(12)]
        second = [{"prompt": f"Write a poem about {i}.", "completion": f"Rose {i}.", "more": "x"} for i in range(4)]
        one = jsonl(tmp_path / "one.jsonl", [*first, {"prompt": "Why?", "completion": 5}, first[0]])
        other = jsonl(tmp_path / "other.jsonl", second)
        sources = [{"path": str(one), "on_bad_rows": "drop"}, {"path": str(other), "ignore_columns": ["more"]}]
        config = campaign(tmp_path, sft={"data": sources, **keys}).stages["sft"]
        stage = runs.begin(config)
        data = read_data(config, stage, load_base_tokenizer(config.model))
        for path in (one, other):
            path.unlink()
        return data, stage

    return make


def test_the_page_of_a_run_tells_what_went_in_of_each_source_and_why_rows_did_not(read: Callable[..., Any]) -> None:
    data, stage = read()
    found = json.loads((stage.dir / "data.json").read_text())
    assert (found["rows"], found["bad_rows"]) == (16, 1)
    assert found["split"] == {"train": len(data.train), "heldout": len(data.heldout), "near_duplicates": None}
    assert [source["rows"] for source in found["sources"]] == [12, 4]
    assert sum(found["sources"][0]["left_out"].values()) == 2 and found["sources"][1]["left_out"] == {}
    assert found["diversity"]["kinds"]["rows"] == {"question_answering": 12, "creative_writing": 4}
    page = unescape((stage.dir / "data.html").read_text())
    assert "one.jsonl:13" in page and "other.jsonl" in page and "12, 75" in page and "left_out.jsonl" in page
    assert {"data.json", "data.html"} <= {path.name for path in stage.finish().iterdir()}
    outputs = json.loads((stage.dir / "manifest.json").read_text())["outputs"]
    assert {"data.json", "data.html"} <= {entry["path"] for entry in outputs}, "they are sealed"


@pytest.mark.parametrize(("train_on", "learnt"), [("assistant", "Somebody"), ("all", "Who was person")])
def test_what_is_marked_is_what_the_stage_learns(read: Callable[..., Any], train_on: str, learnt: str) -> None:
    _, stage = read(train_on=train_on)
    parts = [part for row in json.loads((stage.dir / "data.json").read_text())["samples"] for part in row["parts"]]
    marked = "".join(part["content"] for part in parts if part["trained"])
    plain = "".join(part["content"] for part in parts if not part["trained"])
    assert (learnt in marked) and ("Who was person" in plain) == (train_on == "assistant") and "Somebody" not in plain


def test_of_many_rows_some_are_drawn_and_all_are_counted(
    read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspecting, "DRAWN", 5)
    _, stage = read()
    found = json.loads((stage.dir / "data.json").read_text())
    assert (found["rows"], found["drawn"], found["diversity"]["rows"]) == (16, 5, 5)
    assert "5 of 16 rows, drawn at random" in (stage.dir / "data.html").read_text()


def test_a_stage_that_goes_on_keeps_its_page_and_one_that_begins_anew_writes_another(
    campaign: Callable[..., Any], tmp_path: Path, jsonl: Jsonl
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": f"Who was {i}?", "completion": f"Some {i}."} for i in range(12)])

    def begun(**keys: Any) -> tuple[bool, float, int]:
        config = campaign(tmp_path, sft={"data": [str(path)], **keys}).stages["sft"]
        stage = runs.begin(config)
        read_data(config, stage, load_base_tokenizer(config.model))
        rows = json.loads((stage.dir / "data.json").read_text())["rows"]
        return stage.resumed, (stage.dir / "data.html").stat().st_mtime_ns, rows

    _, written, rows = begun()
    assert begun() == (True, written, rows)
    assert begun(max_length=95)[1] > written, "the marks of what is learnt may be others"
    with path.open("a") as file:
        file.write('{"prompt": "Who else?", "completion": "Nobody."}\n')
    resumed, _, more = begun(max_length=95)
    assert (resumed, more) == (False, rows + 1)
