"""Kinds of tasks that SFT leaves out train nothing, and are read before and after beside those that were trained on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sft.train
from sft import kinds
from sft.check import check_demonstrations, check_sft
from sft.data import read_data, without_category
from trueup import runs
from trueup.checking.rows import Rows
from trueup.data.records import Demonstration, Message, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.errors import DataError
from trueup.models import loading
from trueup.models.chat import encode_demonstration
from trueup.models.sampling import Decoding, sample
from trueup.statistics.intervals import bootstrap_mean


def f1(text: str, other: str) -> float:
    """Of the words of two texts, by precision and recall."""
    one, two = (Counter(re.findall(r"\w+", each.lower())) for each in (text, other))
    if not (shared := sum(min(one[word], two[word]) for word in one)):
        return 0.0
    precision, recall = shared / sum(one.values()), shared / sum(two.values())
    return 2 * precision * recall / (precision + recall)


@torch.inference_mode()
def loss_of(policy: loading.Loaded, row: Demonstration) -> float:
    """By the model's own loss, of one demonstration."""
    (encoded,) = encode_demonstration(policy.tokenizer, row.messages)
    ids, labels = (torch.tensor([values]) for values in (encoded.input_ids, encoded.labels))
    return float(policy.model.eval()(input_ids=ids, labels=labels).loss)


def test_a_kind_that_is_left_out_trains_nothing_and_both_are_scored_on_what_nothing_trained_on(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    made = campaign(tmp_path, sft={"leave_out": ["creative"]})
    config = made.stages["sft"]
    directory = sft.train.run(config)
    rows = read_rows(tmp_path / "demonstrations.jsonl", Demonstration)
    heldout = [is_heldout(row.messages, config.split) for row in rows]
    trained = {
        opening_id(row.messages)
        for row, held in zip(rows, heldout, strict=True)
        if not held and row.category == "conversation"
    }
    assert runs.open_stage(config.run_dir, "sft").trained_prompts == trained
    report = json.loads((directory / "report.json").read_text())
    assert report["by_category"] == {"conversation": len(trained)}
    manifest = json.loads((directory / "manifest.json").read_text())
    left_out = sum(not held and row.category == "creative" for row, held in zip(rows, heldout, strict=True))
    assert left_out > 2 and manifest["inputs"][0]["dropped"] == {"in sft.leave_out": left_out}

    found = report["kinds"]
    read = {
        "seen": [row for row, held in zip(rows, heldout, strict=True) if held and row.category == "conversation"],
        "unseen": [row for row in rows if row.category == "creative"],
    }
    assert found["left_out"] == ["creative"] and found["by_kind"].keys() == {"conversation", "creative"}
    base, policy = loading.load_base(config.model), loading.load_policy(directory / "model", config.model)
    assert found["neither"] == [] and found["told"] == 0
    for name, demonstrations in read.items():
        loss, exact, overlap = (found[name][figure] for figure in ("loss", "exact", "overlap"))
        before = [loss_of(base, row) for row in demonstrations]
        after = [loss_of(policy, row) for row in demonstrations]
        change = bootstrap_mean([[b - a] for a, b in zip(before, after, strict=True)], seed=config.seed, bounds=None)
        assert loss["demonstrations"] == loss["n"] == len(demonstrations)
        assert loss["before"] == pytest.approx(np.mean(before), abs=1e-3)
        assert loss["after"] == pytest.approx(np.mean(after), abs=1e-3)
        assert loss["value"] == pytest.approx(change.value, abs=1e-3) and loss["value"] < 0
        assert loss["ci_low"] == pytest.approx(change.low, abs=1e-2)
        for moment, model in (("before", base), ("after", policy)):
            answers = sample(model, [row.messages[:-1] for row in demonstrations], Decoding(48, temperature=0.0), 1, 9)
            own = [row.messages[-1].content for row in demonstrations]
            hits = [one.finished and one.text.lower() == text.lower() for [one], text in zip(answers, own, strict=True)]
            shared = [f1(one.text, text) for [one], text in zip(answers, own, strict=True)]
            assert exact[moment] == pytest.approx(np.mean(hits)) and exact["demonstrations"] == len(demonstrations)
            assert overlap[moment] == pytest.approx(np.mean(shared), abs=1e-6)
        assert exact["ci_low"] < exact["value"] < exact["ci_high"], "that none or all change is no certainty"
        assert overlap["value"] > 0, "it has learnt how such answers begin"
    told = [one["message"] for one in manifest["verdict"]["findings"] if one["code"] == "kinds"]
    assert [text.partition(" (")[0] for text in told] == ["kinds that were trained on", "kinds that were left out"]


def test_a_kind_that_no_demonstration_has_is_refused_with_a_guess(campaign: Callable[..., Any], tmp_path: Path) -> None:
    made = campaign(tmp_path, sft={"leave_out": ["creativ"]})
    says = "no demonstration is of the kind 'creativ'; did you mean creative"
    with pytest.raises(DataError, match=says):
        sft.train.run(made.stages["sft"])
    problems: list[str] = []
    rows = Rows(check_sft(made.stages["sft"], made.stages, problems, []))
    check_demonstrations(made.stages["sft"], made.stages, rows, problems, [])
    assert problems and says in problems[0]


def asked(n: int) -> list[dict[str, Any]]:
    """Rows of a translation and of a sum, by their words alone; a dialogue whose second question is of another kind;
    and a category of the data that is a name for a kind of ours."""
    return [
        {"prompt": f"Translate 'house {n}' into French.", "completion": "maison"},
        {"prompt": f"What is {n} + 4?", "completion": f"{n + 4}"},
        {
            "messages": [
                {"role": "user", "content": f"Translate 'tree {n}' into German."},
                {"role": "assistant", "content": "Baum " * 20},
                {"role": "user", "content": f"What is {n} + 5?"},
                {"role": "assistant", "content": "It is more. " * 8},
            ]
        },
        {"prompt": f"Tell me more of {n}.", "completion": "Tout.", "category": "translate"},
    ]


def test_rows_without_a_category_are_of_the_kind_that_their_words_tell_and_none_of_a_kind_left_out_is_trained_on(
    campaign: Callable[..., Any], tmp_path: Path, jsonl: Callable[..., Path]
) -> None:
    jsonl(tmp_path / "asked.jsonl", [row for n in range(12) for row in asked(n)])
    keys = {"data": ["asked.jsonl"], "leave_out": ["translation"], "overlong": "split"}
    made = campaign(tmp_path, sft=keys)
    config = made.stages["sft"]
    stage = runs.begin(config)
    data = read_data(config, stage, loading.load_base_tokenizer(config.model))
    assert set(data.questions) == {
        row["prompt"] for n in range(12) for row in asked(n)[1:2] if not is_heldout(messages_of(row), config.split)
    }
    of_kinds = kinds.scored(data, config)
    assert of_kinds.keys() == {"mathematics", "translate", "translation"}
    dialogues = list(data.tokens.questions(of_kinds["translation"]))
    assert any("+ 5" in text for text in dialogues), "each part of a dialogue is of its dialogue's kind"
    assert int(without_category(data.tokens).sum()) == len(data.tokens) - 12
    problems: list[str] = []
    rows = Rows(check_sft(config, made.stages, problems, []))
    check_demonstrations(config, made.stages, rows, problems, [])
    assert [one for one in problems if "leave_out" in one] == []


def messages_of(row: dict[str, Any]) -> list[Message]:
    return [Message(role="user", content=row["prompt"]), Message(role="assistant", content=row["completion"])]


def test_a_kind_of_which_nothing_is_trained_on_counts_as_neither_and_is_named(
    campaign: Callable[..., Any], tmp_path: Path, jsonl: Callable[..., Path]
) -> None:
    rows = [
        {"prompt": f"Say {n}.", "completion": f"It is {n}.", "category": "creative" if n % 2 else "qa"}
        for n in range(24)
    ]
    heldout = [is_heldout(messages_of(row), campaign(tmp_path).config.split) for row in rows]
    for row, held in zip(rows, heldout, strict=True):
        if row["category"] == "qa":
            row["category"] = "rare" if held else "common"
    jsonl(tmp_path / "rows.jsonl", rows)
    made = campaign(tmp_path, sft={"data": ["rows.jsonl"], "leave_out": ["creative"], "max_steps": 1})
    directory = sft.train.run(made.stages["sft"])
    report = json.loads((directory / "report.json").read_text())["kinds"]
    assert report["neither"] == ["rare"] and report["seen"] is None and report["unseen"]["loss"]["n"] == 12
    found = json.loads((directory / "manifest.json").read_text())["verdict"]["findings"]
    told = [one["message"] for one in found if one["code"] == "kinds"]
    assert any("which are not left out: rare" in text for text in told)
    assert any("nothing is held out: common" in text for text in told)


@pytest.mark.parametrize(
    ("text", "own", "same"),
    [
        ("Platz.", "platz", True),
        (' "The  cat" ', "the cat", True),
        ("Cafe\u0301", "café", True),
        ("-5", "5", False),
        ("C++", "C", False),
        ("not the same", "the same", False),
        ("", "", True),
    ],
)
def test_an_answer_is_the_same_whatever_its_case_and_the_marks_around_it(text: str, own: str, same: bool) -> None:
    assert (kinds.plain(text) == kinds.plain(own)) == same


def test_words_in_common_are_counted_as_often_as_both_texts_have_them() -> None:
    assert kinds.overlap("the the cat", "The cat sat.") == pytest.approx(2 * 2 / 6)
    assert kinds.overlap("", "a") == 0 and kinds.overlap("...", "") == 1
