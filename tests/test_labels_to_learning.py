"""Every column that a label has on disk is read by somebody, or docs/labels-to-learning.md says why it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ui.label.run
from trueup import runs
from trueup.data.records import Preference, Ranking, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.models import loading
from trueup.runs import find_stage, stage_dir
from trueup.stages import load_object
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tasks import IdealCompletion, Judgement, Settings

PAGE = (Path(__file__).parents[1] / "docs/labels-to-learning.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if row.startswith("| ")]
READERS = {name: cells[1:] for cells in ROWS for name in re.findall(r"`(\w+)`", cells[0])}
"""By column, the cells of its row."""
AS_PAIRS = {"completions", "completion_token_ids", "finished", "reasonings", "logps"}
"""Columns of a ranking that its pairs have under the names of their sides."""


@pytest.mark.parametrize("column", sorted({*Ranking.model_fields, *Preference.model_fields} - AS_PAIRS))
def test_a_stored_column_has_a_row_that_says_of_everybody_whether_they_read_it(column: str) -> None:
    assert column in READERS, f"docs/labels-to-learning.md does not say who reads {column}"
    assert all(READERS[column]), f"a cell on {column} is empty"


# ---- Ideal answers ----------------------------------------------------------------------------------------------

IDEAL = "It is warm and red."


@pytest.fixture
def labelled_with_ideals(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A campaign whose pairs a person has labelled, with an ideal answer to each; the SFT policy is the base model."""

    def make(**sections: Any) -> Any:
        made = campaign(tmp_path, label={"source": "human", "repeat_share": 0.0, "gold_share": 0.0}, **sections)
        if find_stage(made.run_dir, "label"):
            return made
        stage = runs.begin(made.stages["sft"])
        loading.save(loading.load_base(made.config.model), stage.dir / "model")
        stage.finish()
        load_object(made.stages["sample"].run)(made.stages["sample"])
        config = made.stages["label"]
        store = Store(config.store_url)
        ui.label.run.prepare(config, store)
        service, number = LabelService(store, Settings.of(config)), 0
        while tasks := service.tasks("ann"):
            number += 1
            service.demonstrate("ann", IdealCompletion(f"ideal-{number:04}", tasks[0].token, IDEAL))
            service.label("ann", Judgement(f"press-{number:04}", tasks[0].token, "a"))
        store.close()
        ui.label.run.run(config)
        return made

    return make


def labels_of(made: Any, name: str) -> list[Preference]:
    return read_rows(stage_dir(made.run_dir, "label") / name, Preference)


def result_of(made: Any, stage: str) -> tuple[dict[str, Any], set[str]]:
    """The stage's report, and the dialogues that it trained on."""
    directory = load_object(made.stages[stage].run)(made.stages[stage])
    return json.loads((directory / "report.json").read_text()), set(json.loads((directory / runs.TRAINED).read_text()))


KINDS = {"reward": ("reward", {}), "dpo": ("align", {"algorithm": "dpo"}), "kto": ("align", {"algorithm": "kto"})}


@pytest.mark.parametrize("kind", KINDS)
def test_an_ideal_answer_is_learnt_unless_its_prompt_is_held_out_or_the_key_says_no(
    labelled_with_ideals: Callable[..., Any], kind: str
) -> None:
    stage, keys = KINDS[kind]
    made = labelled_with_ideals(**{stage: {**keys, "max_steps": 2}})
    ideals = labels_of(made, "ideals.jsonl")
    to_train = [pair for pair in ideals if not is_heldout(pair.prompt, made.config.split)]
    if kind == "kto":  # `extremes`: one pair of each label
        to_train = list({pair.label_id: pair for pair in to_train}.values())
    assert 0 < len(to_train) < len(ideals)
    report, dialogues = result_of(made, stage)
    assert (report["learnt"]["ideal"] if stage == "reward" else report["ideal_pairs"]) == len(to_train)
    preferences = labels_of(made, "preferences.jsonl")
    heldout = [pair for pair in preferences if is_heldout(pair.prompt, made.config.split)]
    of_heldout = {opening_id(p.prompt) for p in [*preferences, *ideals] if is_heldout(p.prompt, made.config.split)}
    assert of_heldout and not dialogues & of_heldout
    if stage == "reward":
        assert report["pairs"]["heldout"] == len(heldout), "the exam is of the policy's own answers"
    if kind == "kto":
        shown = report["pairs"] - report["ideal_pairs"]
        assert (report["desirable"], report["undesirable"]) == (shown + len(to_train), shown)
    made = labelled_with_ideals(**{stage: {**keys, "max_steps": 2, "ideal_answers": False}})
    without, _ = result_of(made, stage)
    assert (without["learnt"]["ideal"] if stage == "reward" else without["ideal_pairs"]) == 0


def test_an_sft_reads_the_ideal_answers_of_a_run_as_they_are(
    labelled_with_ideals: Callable[..., Any], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    made = labelled_with_ideals()
    path = stage_dir(made.run_dir, "label") / "demonstrations.jsonl"
    (tmp_path / "next").mkdir()
    following = campaign(tmp_path / "next", sft={"data": [str(path)], "max_steps": 1})
    directory = load_object(following.stages["sft"].run)(following.stages["sft"])
    (read,) = runs.open_stage(following.run_dir, "sft").manifest.inputs
    assert Path(read.path) == path and read.rows == len(path.read_text().splitlines()) > 0
    dialogues = set(json.loads((directory / runs.TRAINED).read_text()))
    assert dialogues == {
        opening_id(pair.prompt)
        for pair in labels_of(made, "ideals.jsonl")
        if not is_heldout(pair.prompt, made.config.split)
    }
