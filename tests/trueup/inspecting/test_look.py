"""`trueup data inspect`: what is in a file is told as a stage would read it, and all that cannot be used is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trueup.cli import main
from trueup.data.containers import spool
from trueup.data.formats import read_demonstrations, read_preferences, read_prompts
from trueup.data.records import Dropped
from trueup.errors import DataError
from trueup.inspecting import look
from trueup.inspecting.look import inspect
from trueup.inspecting.page import page_of
from trueup.inspecting.text import lines

CASES = Path(__file__).parents[2] / "data" / "cases"
FILES = sorted((CASES / "shapes").iterdir())
READERS: dict[str, Any] = {
    "demonstrations": read_demonstrations,
    "prompts": read_prompts,
    "preferences": read_preferences,
}
Jsonl = Callable[[Path, list[Any]], Path]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_finds_the_rows_that_a_stage_would_train_on_and_shows_their_texts(path: Path) -> None:
    try:
        report = inspect(path, None, [], None, samples=10_000)
    except DataError:  # no row can be read, which is what a stage says of the file too
        for read in READERS.values():
            with pytest.raises(DataError):
                read(path, Dropped(), "drop", [])
        return
    dropped = Dropped()
    rows = READERS[report.use](path, dropped, "drop", [])
    assert (report.rows, report.bad_rows) == (len(rows), len(dropped.left_out))
    assert sum(report.left_out.values()) + report.bad_rows == sum(dropped.counts.values())
    assert sum(report.formats.values()) >= 1 and len({sample.where for sample in report.samples}) <= len(rows)
    shown = {part.content for sample in report.samples for part in sample.parts}
    texts = {m.said for row in rows for m in getattr(row, "messages", None) or getattr(row, "prompt", [])}
    assert shown >= texts | {text for row in rows for text in getattr(row, "completions", [])}


def test_what_is_marked_is_exactly_what_the_model_learns_to_write(tmp_path: Path, campaign: Any, jsonl: Jsonl) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Say red."},
        {"role": "assistant", "content": "It is red.", "weight": 0},
        {"role": "user", "content": "Say blue."},
        {"role": "assistant", "content": "It is blue."},
    ]
    made = campaign(tmp_path)
    report = inspect(jsonl(tmp_path / "rows.jsonl", [{"messages": turns}]), None, [], made, samples=1)
    [sample] = report.samples
    assert [part.content for part in sample.parts if part.trained] == ["It is blue.<|endoftext|>"]
    whole = "".join(part.content for part in sample.parts)
    assert all(turn["content"] in whole for turn in turns) and report.template is not None
    assert report.lengths["learnt, tokens"].largest < report.lengths["row, tokens"].largest
    assert report.split and report.split.train + report.split.heldout == 1


def test_rows_longer_than_the_stage_takes_are_counted(tmp_path: Path, campaign: Any, jsonl: Jsonl) -> None:
    rows = [{"prompt": "Say red.", "completion": "red " * n} for n in (1, 200)]
    report = inspect(jsonl(tmp_path / "rows.jsonl", rows), "demonstrations", [], campaign(tmp_path), samples=0)
    assert (report.rows, report.over_max_length, report.overlong) == (2, 1, "drop")
    assert "1 row of more than max_length tokens, which are left out" in "\n".join(lines(report, colour=False))
    made = campaign(tmp_path, sft={"overlong": "split", "train_on": "all"})
    report = inspect(tmp_path / "rows.jsonl", "demonstrations", [], made, samples=1)
    assert "which are split at turns" in "\n".join(lines(report, colour=False))
    assert "which are split at turns" in page_of(report)
    learnt, whole = report.lengths["learnt, tokens"], report.lengths["row, tokens"]
    assert learnt.largest == whole.largest - 1, "all tokens carry loss but the first"


def test_a_large_file_is_shown_as_the_model_sees_it_and_what_is_drawn_is_said(
    tmp_path: Path, campaign: Any, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Say {n}.", "completion": "red " * (200 if n % 4 == 0 else 1)} for n in range(12)]
    path, made = jsonl(tmp_path / "rows.jsonl", rows), campaign(tmp_path)
    small = inspect(path, "demonstrations", [], made, samples=3)
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    assert inspect(path, "demonstrations", [], made, samples=3) == small and small.over_max_length == 3
    monkeypatch.setattr(look, "RENDERED", 5)
    drawn = inspect(path, "demonstrations", [], made, samples=3)
    assert (drawn.rows, drawn.drawn, sum(drawn.turns.values())) == (12, 5, 5)
    assert drawn.split and drawn.split.train + drawn.split.heldout == 5
    assert "5 of them, drawn at random" in "\n".join(lines(drawn, colour=False))
    assert "5 of 12 rows, drawn at random" in page_of(drawn)


def test_every_bad_row_is_named_and_the_others_are_looked_at(tmp_path: Path, jsonl: Jsonl, capsys: Any) -> None:
    good = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(3)]
    bad = ['{"prompt": "a", "prompt": "b", "completion": "c"}', {"prompt": "Why?", "completion": 5}, "{"]
    path = jsonl(tmp_path / "rows.jsonl", [good[0], *bad, *good[1:]])
    assert main(["data", "inspect", str(path)]) == 1
    said = capsys.readouterr().out
    assert "3 demonstrations" in said and "3 rows cannot be used" in said
    for number in (2, 3, 4):
        assert f"rows.jsonl:{number}: " in said


def test_problems_that_many_rows_have_are_told_once(tmp_path: Path, jsonl: Jsonl) -> None:
    rows = [{"prompt": "Hi", "completion": "Hello"}, *({"prompt": "Why?", "completion": None} for _ in range(30))]
    report = inspect(jsonl(tmp_path / "rows.jsonl", rows), "demonstrations", [], None, samples=0)
    [problem] = report.problems
    assert (report.bad_rows, problem.rows) == (30, 30) and "and 27 more" in "\n".join(lines(report, colour=False))


def test_preferences_tell_ties_annotators_agreement_and_the_pull_of_length(tmp_path: Path, jsonl: Jsonl) -> None:
    def row(number: int, who: str, chosen: str, rejected: str) -> Any:
        return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, "annotator": who}

    long, short = "a much longer answer", "short"
    rows = [row(n, who, long, short) for n in range(8) for who in ("ann", "bob")]
    rows += [row(8, "ann", long, short), row(8, "bob", short, long)]
    found = inspect(jsonl(tmp_path / "rows.jsonl", rows), None, [], None, samples=0).judgements
    assert found is not None
    assert (found.pairs, found.ties, found.annotators) == (18, 0, {"ann": 9, "bob": 9})
    assert found.shared_pairs == 9 and found.agreement == pytest.approx(8 / 9)
    assert found.longer_is_better and found.longer_is_better.value == pytest.approx(8.5 / 9)


@pytest.mark.parametrize("use", ["demonstrations", "prompts", "preferences"])
def test_rows_are_read_as_what_is_asked_for(use: Any, tmp_path: Path, jsonl: Jsonl) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}])
    assert inspect(path, use, [], None, samples=0).use == use
    assert inspect(path, None, [], None, samples=0).use == "preferences"


def test_no_text_of_a_row_is_markup_or_moves_the_cursor(tmp_path: Path, jsonl: Jsonl) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e"
    rows = [{"prompt": evil, "completion": evil, "category": "<u>"}, {"prompt": "a", "completion": 5, "<i>": "x"}]
    report = inspect(jsonl(tmp_path / "rows.jsonl", rows), "demonstrations", [], None, samples=1)
    page = page_of(report)
    assert "<script>alert" not in page and "<u>" not in page
    assert not re.search("[\x1b\u202e]", "\n".join(lines(report, colour=False)) + page)


def test_the_json_file_has_the_figures_and_no_file_is_overwritten(tmp_path: Path, jsonl: Jsonl, capsys: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Hello"}])
    figures = tmp_path / "figures.json"
    assert main(["data", "inspect", str(path), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["rows"] == 1
    assert main(["data", "inspect", str(path), "--json", str(figures)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "not json", '{"a": 1}', "5\n"])
def test_a_file_without_a_row_is_refused_in_a_sentence(tmp_path: Path, content: str, capsys: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert main(["data", "inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and "Traceback" not in said


def test_a_file_of_which_the_template_takes_no_row_is_told_of_in_whole_sentences(
    tmp_path: Path, campaign: Any, jsonl: Jsonl, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    tool = {"type": "function", "function": {"name": "f"}}
    file = jsonl(tmp_path / "rows.jsonl", [{"messages": turns, "tools": [tool]}])
    assert main(["data", "inspect", str(file), "--config", str(campaign(tmp_path).source)]) == 1
    said = capsys.readouterr().out
    assert "rows.jsonl:1: the chat template does not write tools" in said
    assert not [line for line in said.splitlines() if line.split()[:1] in (["kinds"], ["turns"], ["languages"])]
