"""`trueup export`: what is copied, where it comes from, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import card_of

from trueup import runs
from trueup.config import StageConfig
from trueup.errors import RunError, TrueupError
from trueup.exporting.export import export
from trueup.files import sha256_file


def make(config: StageConfig, files: dict[str, str], finding: str | None = None, **facts: Any) -> None:
    stage = runs.begin(config)
    for path in config.input_paths():
        stage.add_input(path, rows=16)
    for name, text in {"report.json": "{}", **files}.items():
        (stage.dir / name).parent.mkdir(exist_ok=True)
        (stage.dir / name).write_text(text)
    if finding:
        stage.find("info", "verdict", finding)
    stage.facts.update(facts)
    stage.finish()


def counts(**by_source: int) -> dict[str, Any]:
    return {"by_source": by_source, "by_split": {}, "pairs": {}, "ties": 0, "skips": {}}


@pytest.fixture
def run(campaign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete run whose weights are a line of text."""
    monkeypatch.setattr(runs, "_git_commit", lambda: None)
    stages = campaign(tmp_path).stages
    make(stages["sft"], {"model/model.safetensors": "sft weights", "model/config.json": "{}", "report.json": "{}"})
    make(stages["sample"], {"candidates.jsonl": "c"})
    labels = {"preferences.jsonl": "p", "ties.jsonl": "t", "rankings.jsonl": "r", "report.json": "{}"}
    make(stages["label"], labels, labels=counts(simulated=16))
    make(stages["reward"], {"model/model.safetensors": "reward weights", "report.json": json.dumps(card_of())})
    chosen = json.dumps({"schedule": {"beta": 0.1, "learning_rate": 0.01, "num_train_epochs": 5.0}})
    make(stages["align"], {"model/model.safetensors": "aligned weights", "report.json": chosen})
    make(stages["compare"], {"report.html": "h"}, "The aligned policy wins 68.0 % [62.3, 73.5].")
    return tmp_path / "run"


def files(folder: Path) -> dict[str, str]:
    """Name and content of what was copied."""
    own = ("provenance.json", "README.md")
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.name not in own}


@pytest.mark.parametrize(
    ("what", "copied"),
    [
        ("policy", {"model.safetensors": "aligned weights"}),
        ("sft", {"config.json": "{}", "model.safetensors": "sft weights"}),
        ("reward", {"model.safetensors": "reward weights"}),
        ("preferences", {"preferences.jsonl": "p", "rankings.jsonl": "r", "ties.jsonl": "t"}),
    ],
)
def test_a_result_is_copied_with_its_manifest_and_a_card(
    run: Path, tmp_path: Path, what: str, copied: dict[str, str]
) -> None:
    to = tmp_path / "exports" / what
    said = export(run, what, to)
    assert files(to) == copied
    assert said.startswith(f"{to}: ") and said.endswith(" MB, with provenance.json and README.md")
    assert (to / "README.md").read_text().startswith("# ") and not list(tmp_path.rglob("*.partial"))


def test_provenance_is_the_chain_of_manifests_by_their_hashes(run: Path, tmp_path: Path) -> None:
    export(run, "policy", tmp_path / "policy")
    provenance = json.loads((tmp_path / "policy/provenance.json").read_text())
    assert provenance["manifest_sha256"] == sha256_file(run / "align/manifest.json")
    assert provenance["manifest"] == json.loads((run / "align/manifest.json").read_text())
    chain = {entry["manifest"]["stage"]: entry["manifest_sha256"] for entry in provenance["made_from"]}
    folders = {"sft": "sft", "label": "labels", "sample": "candidates"}
    assert chain == {stage: sha256_file(run / folder / "manifest.json") for stage, folder in folders.items()}


def test_the_card_says_what_it_was_made_from_who_labelled_and_what_the_comparison_found(
    run: Path, tmp_path: Path
) -> None:
    export(run, "policy", tmp_path / "policy")
    card = (tmp_path / "policy/README.md").read_text()
    assert card.startswith(
        "# A language model aligned to the preferences of a team\n\nExported from the Trueup run `run`.\n"
    )
    assert "Its licence is unknown to Trueup and holds for this copy too: check it." in card
    assert "demonstrations.jsonl (16 rows)" in card and "algorithm dpo, beta 0.1, learning_rate 0.01" in card
    assert "16 simulated. SIMULATED: a program's rubric made these labels, and no person did." in card
    assert "held-out prompts: pass.\n\n- The aligned policy wins 68.0 % [62.3, 73.5]." in card
    export(run, "sft", tmp_path / "sft")
    card = (tmp_path / "sft/README.md").read_text()
    assert "SIMULATED" not in card and "Is it better?" not in card, "no label and no verdict is about this one"


def test_the_card_of_a_policy_that_a_program_paid_says_so_and_names_what_paid(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def f(**columns): ...\n")
    keys = {"algorithm": "ppo", "rollout_batch_size": 8, "rewards": {"rubric": 1.0, "mine.py:f": 0.5}, "kl_budget": 4}
    stages = campaign(tmp_path, align=keys).stages
    make(stages["sft"], {"model/model.safetensors": "w"})
    make(stages["sample"], {"candidates.jsonl": "c"})
    stage = runs.begin(stages["align"])
    stage.add_input(tmp_path / "mine.py", rows=0)
    (stage.dir / "model").mkdir()
    (stage.dir / "model/model.safetensors").write_text("aligned weights")
    (stage.dir / "report.json").write_text("{}")
    stage.finish()
    export(tmp_path / "run", "policy", tmp_path / "policy")
    card = (tmp_path / "policy/README.md").read_text()
    assert (
        ": mine.py; algorithm ppo, rewards 1 rubric + 0.5 mine.py:f, kl_coef 0.05, kl_budget 4.0, learning_rate 0.01, "
        "num_train_epochs 1.0, max_steps 4, seed 0; verdict pass\n"
    ) in card
    assert "## Rewards\n\nSIMULATED: a program's rubric rewarded its answers in training.\n" in card
    assert "## Labels" not in card


def test_labels_of_people_are_not_called_simulated(campaign: Callable[..., Any], tmp_path: Path) -> None:
    stages = campaign(tmp_path, label={"source": "import", "path": "prompts.jsonl"}).stages
    make(stages["label"], {"preferences.jsonl": "p"}, labels=counts(**{"human": 30, "import": 5}))
    export(tmp_path / "run", "preferences", tmp_path / "p")
    card = (tmp_path / "p/README.md").read_text()
    assert "\n30 human, 5 import.\n" in card and "SIMULATED" not in card


def test_a_verdict_about_another_policy_is_not_this_ones(
    run: Path, tmp_path: Path, campaign: Callable[..., Any]
) -> None:
    make(campaign(tmp_path, align={"beta": 0.5}).stages["align"], {"model/model.safetensors": "other weights"})
    export(run, "policy", tmp_path / "policy")
    assert (
        "Not known: the comparison in this run is about another policy." in (tmp_path / "policy/README.md").read_text()
    )
    (run / "compare/manifest.json").unlink()
    export(run, "policy", tmp_path / "again")
    assert "Not known: this run has no comparison with the SFT policy" in (tmp_path / "again/README.md").read_text()


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_is_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("keep me")
    with pytest.raises(RunError) as caught:
        export(run, "sft", tmp_path / "full")
    assert str(caught.value) == f"{tmp_path}/full: already there and not empty; name a new folder"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(TrueupError, match=r"full/mine/model: cannot be written \(Not a directory\)"):
        export(run, "sft", tmp_path / "full/mine/model")
    (tmp_path / "empty").mkdir()
    export(run, "sft", tmp_path / "empty")
    assert "model.safetensors" in files(tmp_path / "empty")


def test_what_is_not_there_or_not_what_was_made_is_refused(
    run: Path, tmp_path: Path, campaign: Callable[..., Any]
) -> None:
    (run / "reward/model/model.safetensors").write_text("edited")
    with pytest.raises(RunError) as caught:
        export(run, "reward", tmp_path / "to")
    assert (
        str(caught.value)
        == f"{run}/reward/model/model.safetensors: changed since reward wrote it; `trueup verify` says more"
    )
    make(campaign(tmp_path, sft={"max_steps": 9}).stages["sft"], {"model/model.safetensors": "new weights"})
    with pytest.raises(RunError) as caught:
        export(run, "policy", tmp_path / "to")
    assert str(caught.value) == (
        f"{run}/sft: not the sft that align was made from; bring the run up to date with `trueup run CONFIG`, "
        "then export"
    )
    (run / "align/manifest.json").unlink()
    with pytest.raises(RunError, match="align is unfinished: run `trueup align CONFIG` first"):
        export(run, "policy", tmp_path / "to")
    assert not (tmp_path / "to").exists() and not list(tmp_path.rglob("*.partial"))
