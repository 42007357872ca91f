"""No stage trains on a prompt that is nearly the same as a held-out one, whatever its rows come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ui.label.run
from rlhf.align.ppo.stage import demonstrations
from rlhf.align.prompts import choose_prompts as choose_asked
from rlhf.compare.inputs import unlike_trained
from sft.check import check_sample
from sft.data import read_data
from sft.sample import choose_prompts as choose_answered
from trueup import runs
from trueup.config import SplitConfig
from trueup.data.duplicates.rows import NEAR_HELDOUT, NEAR_TRAINED, QUESTIONS, REPEATED, NearDuplicate
from trueup.data.records import CandidateSet, Message, read_rows
from trueup.data.split import is_heldout
from trueup.errors import DataError, RunError
from trueup.models import loading
from trueup.runs import StageRun
from trueup.training.pairs import read_pairs

HELD = "Why does bread go stale faster in the fridge than on the kitchen counter?"
NEAR = f"Tell me: {HELD.lower()}"
OTHERS = [f"What is the colour of {what}?" for what in "grass snow coal blood the-sea milk sand gold rust".split()]
REPEATS = "How do I sharpen a kitchen knife well?"


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def falls(salt: str) -> bool:
    split = SplitConfig(heldout_fraction=0.3, salt=salt)
    return is_heldout(user(HELD), split) and not any(
        is_heldout(user(t), split) for t in (NEAR, REPEATS, REPEATS.upper(), *OTHERS[:3])
    )


SALT = next(str(n) for n in range(1000) if falls(str(n)))


@pytest.fixture
def made(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """The campaign over rows of which one is held out, and one that may be trained on is nearly the same."""
    rows = [{"prompt": text, "completion": f"It is {n}."} for n, text in enumerate([HELD, NEAR, *OTHERS, REPEATS])]
    rows.append({"prompt": REPEATS.upper(), "completion": rows[-1]["completion"] + "."})
    jsonl(tmp_path / "rows.jsonl", rows)
    answers = {"chosen": "It is so.", "rejected": "It is not so."}
    jsonl(tmp_path / "preferences.jsonl", [{"prompt": row["prompt"], **answers} for row in rows[:-1]])
    jsonl(tmp_path / "asked.jsonl", [{"prompt": row["prompt"]} for row in rows[:-1]])

    def make(near: str = "drop", **sections: Any) -> Any:
        split = {"heldout_fraction": 0.3, "salt": SALT, "near_duplicates": near}
        sample = {"prompts": "asked.jsonl"}
        sft = {"data": ["rows.jsonl"], "contamination": near}
        return campaign(tmp_path, split=split, **{"sft": sft, "sample": sample, **sections})

    return make


def listed(stage: StageRun) -> list[tuple[str, str, str]]:
    path = stage.dir / "near_duplicates.jsonl"
    rows = read_rows(path, NearDuplicate) if path.exists() else []
    return [(Path(row.where).name, row.reason, Path(row.like).name) for row in rows]


def begun(made: Any, stage: str) -> tuple[Any, StageRun, Any]:
    config = made.stages[stage]
    for parent in config.parents():
        if runs.find_stage(made.run_dir, parent) is None:
            runs.begin(made.stages[parent]).finish()
    return config, runs.begin(config), loading.load_base_tokenizer(made.config.model)


def of_sft(made: Any) -> tuple[StageRun, list[str]]:
    config, stage, tokenizer = begun(made, "sft")
    return stage, list(read_data(config, stage, tokenizer).questions)


def of_sample(made: Any) -> tuple[StageRun, list[str]]:
    config, stage, tokenizer = begun(made, "sample")
    rows = choose_answered(config, stage, tokenizer)
    assert {row.prompt_id for row in check_sample(config, made.stages, [], [])[0].rows} == {r.prompt_id for r in rows}
    return stage, [row.prompt[0].content for row in rows if not is_heldout(row.prompt, config.split)]


def of_labels(made: Any) -> tuple[StageRun, list[str]]:
    ui.label.run.run(made.stages["label"])
    config, stage, _ = begun(made, "align")
    pairs = read_pairs(runs.open_stage(made.run_dir, "label"), config)
    stage.leave_out_near(pairs.near_duplicates, "labelled prompts")
    assert HELD in [pair.prompt[0].content for pair in pairs.heldout]
    return stage, [pair.prompt[0].content for pair in pairs.train]


def of_prompts(made: Any) -> tuple[StageRun, list[str]]:
    config, stage, tokenizer = begun(made, "align")
    chosen = choose_asked(config, stage, tokenizer)
    return stage, [row.prompt[0].content for row in [*chosen.train, *chosen.evaluation]]


def of_ptx(made: Any) -> tuple[StageRun, list[str]]:
    config, stage, tokenizer = begun(made, "align")
    policy = loading.Loaded(None, tokenizer, None)  # type: ignore[arg-type]
    batch = demonstrations(config, stage, policy)(0, 13)
    return stage, tokenizer.batch_decode(batch["input_ids"])


PPO = {"algorithm": "ppo", "rollout_batch_size": 4, "eval_prompts": 1, "max_new_tokens": 4, "rewards": {"rubric": 1.0}}
READ: dict[str, tuple[Callable[[Any], tuple[StageRun, list[str]]], dict[str, Any]]] = {
    "sft.data": (of_sft, {}),
    "sample.prompts": (of_sample, {}),
    "label.path": (of_labels, {"label": {"source": "import", "path": "preferences.jsonl"}}),
    "align.prompts": (of_prompts, {"align": {**PPO, "prompts": "asked.jsonl"}}),
    "align.ptx_data": (
        of_ptx,
        {"align": {**PPO, "prompts": "asked.jsonl", "ptx_coef": 1.0, "ptx_data": ["rows.jsonl"]}},
    ),
}


@pytest.mark.parametrize("source", READ)
def test_what_is_nearly_held_out_trains_nothing_and_is_listed(made: Callable[..., Any], source: str) -> None:
    read, sections = READ[source]
    stage, trained = read(made(**sections))
    assert not any(NEAR in text or HELD in text for text in trained) and any(OTHERS[0] in text for text in trained)
    (row,) = listed(stage)
    assert row[1] == NEAR_HELDOUT and [where.rpartition(":")[2] for where in (row[0], row[2])] == ["2", "1"]
    (finding,) = [finding for finding in stage.findings if finding.code == "near_duplicates"]
    assert finding.level == "info" and "nearly the same as a held-out prompt" in finding.message
    if stage.inputs and source != "label.path":
        assert stage.inputs[0].dropped[NEAR_HELDOUT] == 1
    manifest = json.loads((stage.finish() / runs.MANIFEST).read_text())
    assert "near_duplicates.jsonl" in [output["path"] for output in manifest["outputs"]]


@pytest.mark.parametrize("source", READ)
def test_a_split_that_keeps_them_trains_on_them(made: Callable[..., Any], source: str) -> None:
    read, sections = READ[source]
    stage, trained = read(made("keep", **sections))
    assert any(NEAR in text for text in trained) and listed(stage) == []


def test_demonstrations_that_repeat_an_earlier_one_are_left_out_where_the_campaign_says_so(
    made: Callable[..., Any],
) -> None:
    stage, trained = of_sft(made())
    assert trained[-1] == REPEATS.upper() and trained[-2] == REPEATS
    stage, trained = of_sft(made(sft={"data": ["rows.jsonl"], "near_duplicates": "drop"}))
    assert trained[-1] == REPEATS and [reason for _, reason, _ in listed(stage)] == [NEAR_HELDOUT, REPEATED]
    assert listed(stage)[1] == ("rows.jsonl:13", REPEATED, "rows.jsonl:12")
    assert stage.inputs[0].dropped == {NEAR_HELDOUT: 1, REPEATED: 1}


def test_where_nothing_else_is_left_the_refusal_says_so(made: Callable[..., Any], jsonl: Any, tmp_path: Path) -> None:
    sections = made(sft={"data": ["two.jsonl"]})
    jsonl(tmp_path / "two.jsonl", [{"prompt": text, "completion": "So."} for text in (HELD, NEAR)])
    with pytest.raises(DataError, match="nearly the same as a held-out prompt"):
        of_sft(sections)


def test_what_a_stage_nearly_trained_on_is_not_compared_on_from_another_file(
    made: Callable[..., Any],
) -> None:
    stage, split = runs.begin(made().stages["sft"]), made().config.split
    stage.trained_on(map(user, ["Something else?", NEAR, "And more."]))
    stage.finish()
    trained = runs.open_stage(stage.config.run_dir, "sft")
    rows = [
        CandidateSet(prompt_id=text, prompt=user(text), split="heldout", candidates=[], sampler={})
        for text in (OTHERS[5], HELD, OTHERS[6])
    ]
    assert unlike_trained(rows, [trained], stage, split) == [rows[0], rows[2]]
    assert [(reason, like) for _, reason, like in listed(stage)] == [(NEAR_TRAINED, "trained_questions.jsonl:2")]
    with pytest.raises(DataError, match="nothing can be compared"):
        unlike_trained(rows[1:2], [trained], stage, split)
    keeping = split.model_copy(update={"near_duplicates": "keep"})
    (trained.dir / QUESTIONS).unlink()
    assert unlike_trained(rows, [trained], stage, keeping) == rows, "and their list is not read"
    with pytest.raises(RunError, match="nothing proves that sft trained on none of these prompts"):
        unlike_trained(rows, [trained], stage, split)
