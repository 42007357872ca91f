"""The real DPO stage on a tiny policy and imported preferences: it starts at the reference, and moves from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlhf.dpo
import ui.label
from trueup import models, runs
from trueup.records import Message, Preference, is_heldout, read_rows
from trueup.runs import find_stage
from trueup.sampling import Decoding, completion_logps, sample


@pytest.fixture
def aligned(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Run the align stage after imported labels; its SFT parent is the base model, as if it had been trained."""

    def run(split: dict[str, float] | None = None, **keys: Any) -> tuple[Any, Path]:
        rows = [
            {"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk is cold."}
            for i in range(16)
        ]
        jsonl(tmp_path / "labels.jsonl", rows)
        made = campaign(tmp_path, label={"source": "import", "path": "labels.jsonl"}, align=keys, split=split or {})
        if find_stage(made.run_dir, "sft") is None:
            stage = runs.begin(made.stages["sft"])
            models.save(models.load_base(made.config.model), stage.dir / "model")
            stage.finish()
            ui.label.run(made.stages["label"])
        return made, rlhf.dpo.run(made.stages["align"])

    return run


def metrics(directory: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "rewards/margins" in row]


def test_it_starts_at_the_reference_and_learns_the_pairs(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=8)
    rows = metrics(directory)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(rows[0]["rewards/margins"]) < 1e-4
    assert rows[-1]["rewards/margins"] > 0.1 and rows[-1]["logps/chosen"] > rows[0]["logps/chosen"]
    change = json.loads((directory / "report.json").read_text())["logps_change_nats"]
    assert change["chosen"] > 0 > change["rejected"]
    assert {path.name for path in directory.iterdir()} == {
        "adapter",
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "model",
        "report.json",
        "steps",
        "trained_prompts.json",
    }
    assert runs.verify(made.run_dir)[1] == []


def test_adapters_are_kept_along_the_way_and_give_the_policies_of_those_steps(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=8, keep_steps=3)
    asked = [Message(role="user", content="Tea or milk?")]
    tokens = [models.load_base_tokenizer(made.config.model).encode("Tea is warm.")]

    def logp(saved: models.SavedPolicy) -> float:
        return completion_logps(saved.load(made.config.model), [asked], tokens)[0]

    sft, steps = made.run_dir / "sft" / "model", directory / "steps"
    way = [logp(models.SavedPolicy(sft, steps / f"step-{step}")) for step in (2, 4, 6)]
    assert sorted(path.name for path in steps.iterdir()) == ["step-2", "step-4", "step-6"]
    end = logp(models.SavedPolicy(directory / "model"))
    assert logp(models.SavedPolicy(sft)) < way[0] < way[1] < way[2] < end, "the answer that was chosen becomes likelier"
    assert logp(models.SavedPolicy(sft, directory / "adapter")) == pytest.approx(end, abs=1e-3)


def test_prompts_that_only_the_judge_may_learn_from_are_not_trained_on(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(max_steps=1)
    before = json.loads((directory / "trained_prompts.json").read_text())
    split = {"heldout_fraction": 0.3, "judge_fraction": 0.4}
    _, directory = aligned(max_steps=1, split=split)
    after = json.loads((directory / "trained_prompts.json").read_text())
    assert 0 < len(after) < len(before) and set(after) < set(before)


def test_it_trains_on_no_heldout_pair(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=1)
    pairs = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    kept = [pair for pair in pairs if not is_heldout(pair.prompt, made.config.split)]
    assert 0 < len(kept) < len(pairs)
    assert json.loads((directory / "report.json").read_text())["pairs"] == len(kept)


def test_a_learning_rate_of_zero_leaves_the_policy_as_it_was(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=3, learning_rate=0)
    asked = [[Message(role="user", content=text)] for text in ("Tea or milk?", "What is warm?")]
    decoding = Decoding(8, top_k=20)
    before, after = (
        sample(models.load_policy(path / "model", made.config.model), asked, decoding, 3, 8)
        for path in (runs.stage_dir(made.run_dir, "sft"), directory)
    )
    assert before == after
