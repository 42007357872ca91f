"""Kinds of tasks that SFT leaves out train nothing, and are read before and after beside those that were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sft.train
from sft.check import check_demonstrations, check_sft
from trueup import runs
from trueup.checking.rows import Rows
from trueup.data.records import Demonstration, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.errors import DataError
from trueup.models import loading
from trueup.models.chat import encode_demonstration
from trueup.statistics.intervals import bootstrap_mean


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

    kinds = report["kinds"]
    read = {
        "seen": [row for row, held in zip(rows, heldout, strict=True) if held and row.category == "conversation"],
        "unseen": [row for row in rows if row.category == "creative"],
    }
    assert kinds["left_out"] == ["creative"] and kinds["by_kind"].keys() == {"conversation", "creative"}
    base, policy = loading.load_base(config.model), loading.load_policy(directory / "model", config.model)
    for name, demonstrations in read.items():
        before = [loss_of(base, row) for row in demonstrations]
        after = [loss_of(policy, row) for row in demonstrations]
        change = bootstrap_mean([[b - a] for a, b in zip(before, after, strict=True)], seed=config.seed, bounds=None)
        assert kinds[name]["demonstrations"] == kinds[name]["n"] == len(demonstrations)
        assert kinds[name]["before"] == pytest.approx(np.mean(before), abs=1e-3)
        assert kinds[name]["after"] == pytest.approx(np.mean(after), abs=1e-3)
        assert kinds[name]["value"] == pytest.approx(change.value, abs=1e-3) and kinds[name]["value"] < 0
        assert kinds[name]["ci_low"] == pytest.approx(change.low, abs=1e-2)
    told = [one["message"] for one in manifest["verdict"]["findings"] if one["code"] == "kinds"]
    assert [text.partition(" (")[0] for text in told] == ["kinds that were trained on", "kinds that were left out"]


def test_a_kind_that_no_demonstration_has_is_refused_with_a_guess(campaign: Callable[..., Any], tmp_path: Path) -> None:
    made = campaign(tmp_path, sft={"leave_out": ["creativ"]})
    says = "no demonstration has the category 'creativ'; did you mean creative"
    with pytest.raises(DataError, match=says):
        sft.train.run(made.stages["sft"])
    problems: list[str] = []
    rows = Rows(check_sft(made.stages["sft"], made.stages, problems, []))
    check_demonstrations(made.stages["sft"], made.stages, rows, problems, [])
    assert problems and says in problems[0]
