"""The SFT stage on dialogues that are too long, on all tokens, and on packed rows: what it says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sft.train
from sft import duplicates, encode
from sft.data import answerable, read_data
from trueup import runs
from trueup.check import check
from trueup.config import SplitConfig
from trueup.data.containers import spool
from trueup.data.duplicates import training
from trueup.data.records import Message
from trueup.data.split import is_heldout, opening_id
from trueup.errors import DataError
from trueup.models import loading

TURNS = 4


def dialogue(n: int, exchanges: int) -> dict[str, Any]:
    turns = [(f"Say {n}.{i}", f"It is {n}. " + "la " * 12) for i in range(exchanges)]
    messages = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    return {"messages": [{"role": role, "content": text} for role, text in messages]}


LONG, SHORT = 12, 20
"""Dialogues of TURNS exchanges, which do not fit, and of one, which do."""


def of_sft(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("sft")]


def findings(directory: Path) -> dict[str, str]:
    manifest = json.loads((directory / "manifest.json").read_text())
    return {one["code"]: one["message"] for one in manifest["verdict"]["findings"]}


@pytest.fixture
def long_rows(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    jsonl(tmp_path / "long.jsonl", [dialogue(n, TURNS if n < LONG else 1) for n in range(LONG + SHORT)])

    def make(**keys: Any) -> Any:
        sft = {"data": ["long.jsonl"], "max_length": 140, "max_steps": -1, "num_train_epochs": 1, **keys}
        return campaign(tmp_path, sft=sft)

    return make


def test_parts_of_a_dialogue_stay_on_its_side_and_packed_rows_are_what_steps_count(
    long_rows: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = long_rows(overlong="split", packing=True, warmup_steps=0.5)
    config = made.stages["sft"]
    directory = sft.train.run(config)
    report = json.loads((directory / "report.json").read_text())
    rows, long = report["rows"], report["rows"]["long"]

    whole = [[Message(**message) for message in dialogue(n, TURNS)["messages"]] for n in range(LONG + SHORT)]
    sides = [is_heldout(messages, config.split) for messages in whole]
    assert 0 < sum(sides[:LONG]) < LONG, "there are long dialogues on both sides"
    begins_heldout = [[is_heldout(messages[2 * i :], config.split) for i in (0, 2)] for messages in whole[:LONG]]
    assert any(any(begins[1:]) for begins, side in zip(begins_heldout, sides, strict=False) if not side)
    asked = {opening_id(messages[2 * i :]): (n, i) for n, messages in enumerate(whole) for i in range(TURNS)}
    trained = [asked[one] for one in json.loads((directory / "trained_prompts.json").read_text())]
    assert not any(sides[n] for n, _ in trained), "no part of a held-out dialogue is trained on"
    assert not any(is_heldout(whole[n][2 * i :], config.split) for n, i in trained), "nor a held-out question"
    assert any(i for n, i in trained if n < LONG), "parts begin with later questions"

    assert rows["dropped"] == {} and long["demonstrations"] == LONG and long["exchanges_left_out"] == 0
    assert long["parts"] == 2 * LONG and long["parts_left_out"] > 0
    assert rows["train"] == len(trained) and rows["heldout"] > sum(sides)
    texts = findings(directory)
    assert (
        f"{LONG} of {LONG + SHORT} demonstrations are longer than sft.max_length, 140 tokens, and are split"
        in (texts["split"])
    )
    assert texts["heldout_parts"].startswith(f"{long['parts_left_out']} parts of dialogues")

    steps = json.loads((directory / "manifest.json").read_text())["steps"]
    assert rows["packed"] < rows["train"]
    assert steps == math.ceil(rows["packed"] / config.train_batch_size)
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in metrics if "loss" in row]
    assert rates.index(max(rates)) == math.ceil(steps * 0.5), "half of the steps warm up"
    assert max(row.get("num_tokens", 0) for row in metrics) == report["tokens"]["all"], "each token is read once"
    assert "rows do not see each other" in capsys.readouterr().out

    notes = check(made)[1]
    (note,) = [one for one in notes if one.startswith("sft.overlong")]
    in_training = LONG - sum(sides[:LONG])
    assert note.startswith(f"sft.overlong: {in_training} of ") and "and are split into" in note


def test_a_cut_dialogue_loses_its_end_and_all_tokens_carry_loss(long_rows: Callable[..., Any]) -> None:
    made = long_rows(overlong="cut", train_on="all", max_steps=1, num_train_epochs=None)
    directory = sft.train.run(made.stages["sft"])
    report = json.loads((directory / "report.json").read_text())
    rows, tokens = report["rows"], report["tokens"]
    assert rows["long"]["demonstrations"] == rows["long"]["parts"] == LONG and rows["dropped"] == {}
    assert rows["long"]["tokens_cut"] > LONG * 5 and "packed" not in rows
    assert tokens["with_loss"] == tokens["all"] - rows["train"], "each but the first of a row"
    assert "a cut answer teaches no end of turn" in findings(directory)["cut"]
    problems, notes = check(made)
    assert not of_sft(problems)
    assert any(one.startswith("sft.overlong") and " are cut, " in one for one in notes)


def test_check_names_turns_that_are_not_to_be_learnt_where_every_token_is(
    long_rows: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    row = dialogue(0, 2)
    row["messages"][1]["train"] = False
    made = long_rows(train_on="all")
    jsonl(tmp_path / "long.jsonl", [dialogue(n, 1) for n in range(1, 20)] + [row])
    (problem,) = of_sft(check(made)[0])
    assert problem == (
        "sft.train_on: all trains every token, and 1 of 20 demonstrations have turns that are not to be learnt: "
        f"{tmp_path}/long.jsonl:20"
    )


UNLEARNT = dialogue(99, 2)
"""A dialogue with a turn that is not to be learnt, which `sft.train_on: all` refuses."""
UNLEARNT["messages"][1]["train"] = False


@pytest.mark.parametrize(
    ("overlong", "train_on", "processes"), [("drop", "all", 1), ("cut", "assistant", 1), ("split", "assistant", 2)]
)
def test_a_source_that_lies_on_disk_trains_the_same_and_is_encoded_once(
    overlong: str,
    train_on: str,
    processes: int,
    long_rows: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    source = {"path": "long.jsonl", "weight": 1.5, "on_bad_rows": "drop"}
    keys = {"overlong": overlong, "train_on": train_on, "near_duplicates": "drop"}
    config = long_rows(data=["demonstrations.jsonl", source], **keys).stages["sft"]
    with (tmp_path / "long.jsonl").open("a") as file:
        file.write('{"prompt": "Spell it.", "completion": "An end\\u0001</s> of text"}\n{"prompt": 3}\n')
        file.write(json.dumps(UNLEARNT) + "\n")
        file.writelines(json.dumps(dialogue(n, 1)).replace("Say", "say") + "\n" for n in range(LONG, LONG + SHORT))

    def read() -> dict[str, Any]:
        stage = runs.begin(config)
        data = read_data(config, stage, loading.load_base_tokenizer(config.model))
        parts = {name: getattr(data, name).tolist() for name in ("train", "again", "heldout")}
        rows = data.tokens.training_rows(data.train)
        texts = [data.tokens.demonstration(part).model_dump() for part in parts["train"]]
        figures = [rows.tokens, rows.tokens_with_loss, rows.ends, data.by_category, data.long_counts, data.changes]
        asked = [answerable(data, data.train, room, 150).tolist() for room in (10, 60, 120)]
        inputs = [one.model_dump() for one in stage.inputs]
        listed = [one.model_dump() for one in stage.near_duplicates]
        given = {"rows": list(rows), "texts": texts, "figures": figures, "asked": asked, "inputs": inputs}
        return {**parts, **given, "near": listed}

    in_memory = read()
    assert in_memory["rows"] and in_memory["again"] and in_memory["heldout"]
    bad = [reason for reason in in_memory["inputs"][1]["dropped"] if reason.startswith("bad row: ")]
    assert len(bad) == (2 if train_on == "all" else 1), "a row that no reader takes, and one that cannot be encoded"
    assert len(in_memory["near"]) > 5
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    monkeypatch.setattr(encode, "_CHUNK", 10)
    monkeypatch.setattr(encode, "_processes", lambda: processes)
    assert read() == in_memory
    monkeypatch.setattr(encode, "fit_each", None)
    monkeypatch.setattr(duplicates, "_found", None)
    assert read() == in_memory, "and it is not encoded and compared again"
    monkeypatch.setattr(training, "MOST_COMPARED", 10)
    assert len(read()["near"]) == 0
    assert capsys.readouterr().out.count("near-duplicates are not looked for among ") == 1


def test_what_cannot_be_encoded_of_small_and_large_sources_is_named_at_once(
    long_rows: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    small, large = jsonl(tmp_path / "small.jsonl", [dialogue(0, 1), UNLEARNT]), tmp_path / "long.jsonl"
    config = long_rows(data=["small.jsonl", "long.jsonl"], train_on="all").stages["sft"]
    with large.open("a") as file:
        file.write(json.dumps(UNLEARNT) + "\n")
    monkeypatch.setattr(spool, "LARGE_BYTES", large.stat().st_size)
    with pytest.raises(DataError, match="2 rows cannot be encoded") as refused:
        read_data(config, runs.begin(config), loading.load_base_tokenizer(config.model))
    assert f"{small}:2: " in str(refused.value) and f"(and in {large}:{LONG + SHORT + 1})" in str(refused.value)
    assert not list((tmp_path / "cache" / "tokens").rglob("*.arrow"))


@pytest.mark.parametrize("near", ["drop", "keep"])
@pytest.mark.parametrize("least_bytes", [0, spool.LARGE_BYTES])
def test_a_later_part_that_nearly_asks_a_held_out_question_is_not_trained_on(
    near: str,
    least_bytes: int,
    campaign: Callable[..., Any],
    jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_held(text: str, split: SplitConfig) -> bool:
        return is_heldout([Message(role="user", content=text)], split)

    held, asked = "Why does bread go stale in the cold?", "Hm, why does bread go stale in the cold"
    salts = (SplitConfig(salt=str(n)) for n in range(1000))
    split = next(one for one in salts if is_held(held, one) and not any(is_held(t, one) for t in (asked, "Say 0.0")))
    long = dialogue(0, TURNS)
    long["messages"][4]["content"] = asked
    jsonl(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": held}, long["messages"][1]]}, long])
    made = campaign(
        tmp_path,
        split={"salt": split.salt, "near_duplicates": near},
        sft={"data": ["rows.jsonl"], "max_length": 140, "overlong": "split"},
    )
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(spool, "LARGE_BYTES", least_bytes)
    stage = runs.begin(config := made.stages["sft"])
    data = read_data(config, stage, loading.load_base_tokenizer(config.model))
    questions = list(data.questions)
    assert "Say 0.0" in questions, "the other part of the dialogue is trained on"
    assert (asked in questions) == (near == "keep")
    assert data.long_counts.parts_left_out == (near == "drop")
    listed = [(row.where.rpartition(":")[2], row.text, row.like_text) for row in stage.near_duplicates]
    assert listed == ([("2", asked, held)] if near == "drop" else [])
    messages = [one.message for one in stage.findings if one.code == "near_duplicates"]
    assert any("1 parts of dialogues that were split are left out" in one for one in messages) == (near == "drop")


def test_where_nothing_is_looked_for_nothing_is_said_of_it(
    long_rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "MOST_COMPARED", 10)
    made = long_rows()
    kept = made.config.split.model_copy(update={"near_duplicates": "keep"})
    for keys, said in (({}, 1), ({"split": kept}, 0), ({"split": kept, "near_duplicates": "drop"}, 1)):
        config = made.stages["sft"].model_copy(update=keys)
        stage = runs.begin(config)
        read_data(config, stage, loading.load_base_tokenizer(config.model))
        assert sum(one.code == "near_duplicates" for one in stage.findings) == said
        assert capsys.readouterr().out.count("near-duplicates are not looked for") == said
