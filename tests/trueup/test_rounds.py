"""Rounds of a campaign: what each reads, what is stale, and that a campaign of several reaches its last verdict."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.compare.inputs import find_training_stages
from trueup import runs
from trueup.campaign import Campaign, load_campaign, plan, resolve
from trueup.cli import main
from trueup.data.records import CandidateScores, CandidateSet, Message, Preference, Ranking, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.errors import ConfigError, RunError
from trueup.exporting.export import export
from trueup.models.loading import load_policy
from trueup.models.lockstep import Engine
from trueup.models.scoring import completion_logps
from trueup.stages import OF_EVERY_ROUND, load_object, stages_of
from trueup.verify import verify

FIRST = ["sft", *OF_EVERY_ROUND]
SECOND, THIRD = ([f"round-{number}/{stage}" for stage in OF_EVERY_ROUND] for number in (2, 3))


@pytest.fixture(scope="module")
def done(campaign: Callable[..., Campaign], tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign of two rounds that is complete."""
    made = campaign(tmp_path_factory.mktemp("rounds"), rounds=2, labels_per_round=12, sample={"num_candidates": 4})
    for stage in made.needed():
        load_object(made.stages[stage].run)(made.stages[stage])
    return made


def read(done: Campaign, stage: str, file: str, schema: Any) -> list[Any]:
    return list(read_rows(runs.stage_dir(done.run_dir, stage) / file, schema))


def actions(campaign: Campaign, *arguments: Any) -> dict[str, str]:
    return {step.stage: step.reason for step in plan(campaign, *arguments) if step.action != "keep"}


def changed(campaign: Campaign, *overrides: str) -> dict[str, str]:
    return actions(load_campaign(campaign.source, list(overrides)))


# ---- What each round reads and leaves ---------------------------------------------------------------------------


def test_a_campaign_of_two_rounds_is_complete_and_verified(done: Campaign) -> None:
    assert [step.stage for step in plan(done)] == [*FIRST, *SECOND] == stages_of(done.run_dir)
    assert actions(load_campaign(done.source)) == {}
    outcome = verify(done.run_dir)
    assert (outcome.problems, outcome.notes) == ([], [])
    assert verify(done.run_dir / "round-2").root == outcome.root


def test_most_answers_of_a_further_round_are_by_the_last_ones_policy_and_the_others_are_anchors(
    done: Campaign,
) -> None:
    first, second = (read(done, stage, "candidates.jsonl", CandidateSet) for stage in ("sample", "round-2/sample"))
    scores = read(done, "round-2/sample", "candidate_scores.jsonl", CandidateScores)
    assert [row.prompt_id for row in second] == [row.prompt_id for row in first] == [row.prompt_id for row in scores]
    for row, scored in zip(second, scores, strict=True):
        assert Counter(answer.policy for answer in row.candidates) == {"round-1": 2, "sft": 1, "best of 4": 1}
        assert len(scored.scores) == 4 and None not in scored.scores
        assert row.sampler["policy_sha256"] is None, "nobody takes their log-probabilities for those of one policy"
    answers = [[answer.token_ids for answer in row.candidates] for row in first]
    anchors = [row.candidates[2].token_ids for row in second]
    assert any(anchor not in known for anchor, known in zip(anchors, answers, strict=True)), "drawn anew"


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["sample.sft_share=0.5"], {"round-1": 1, "sft": 2, "best of 4": 1}),
        (["sample.best_share=0.5", "sample.best_of=3"], {"round-1": 1, "sft": 1, "best of 3": 2}),
        (["sample.best_share=0", "sample.sft_share=0.2"], {"round-1": 4}),
    ],
)
def test_the_shares_say_who_answers(
    done: Campaign, tmp_path: Path, overrides: list[str], counts: dict[str, int]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(done.run_dir, copy)
    config = load_campaign(done.source, [f"run_dir={copy}", *overrides]).stages["round-2/sample"]
    load_object(config.run)(config)
    rows = read_rows(copy / "round-2/candidates/candidates.jsonl", CandidateSet)
    assert all(Counter(answer.policy for answer in row.candidates) == counts for row in rows)


def test_the_labels_of_a_round_are_all_labels_so_far_and_say_which_round_asked(done: Campaign) -> None:
    first, second = (read(done, stage, "rankings.jsonl", Ranking) for stage in ("label", "round-2/label"))
    assert len(first) == 12 and second[:12] == first and len(second) == 24
    assert [row.round for row in second] == [1] * 12 + [2] * 12
    assert len({row.label_id for row in second}) == 24
    pairs = read(done, "round-2/label", "preferences.jsonl", Preference)
    assert {pair.round for pair in pairs} == {1, 2}
    report = json.loads((done.run_dir / "round-2/labels/report.json").read_text())
    assert report["by_round"] == {"1": 12, "2": 12} and report["labels"] == 24
    card = json.loads((done.run_dir / "round-2/reward/report.json").read_text())
    assert sum(share["n"] for share in card["by_round"].values()) == card["accuracy"]["n"]
    assert not (done.run_dir / "round-2/labels/labels.sqlite").exists(), "one store has the labels of all rounds"
    assert all("by_round" not in (done.run_dir / name / "report.json").read_text() for name in ("labels", "reward"))


def test_no_prompt_that_is_held_out_trains_anything_in_any_round(done: Campaign) -> None:
    heldout = {
        opening_id(row.prompt)
        for row in read(done, "sample", "candidates.jsonl", CandidateSet)
        if is_heldout(row.prompt, done.config.split)
    }
    trained = {stage: runs.open_stage(done.run_dir, stage).trained_prompts for stage in stages_of(done.run_dir)}
    assert heldout and all(trained[stage] for stage in ("reward", "align", "round-2/reward", "round-2/align"))
    assert not heldout & set().union(*trained.values())
    assert trained["round-2/align"] - trained["align"], "another round asks about other prompts first"


def test_a_further_round_is_compared_with_sft_and_with_the_last_round_on_the_first_ones_prompts(done: Campaign) -> None:
    first, second = (json.loads((done.run_dir / name).read_text()) for name in REPORTS)
    assert (first["prompts"], first["decoding"]) == (second["prompts"], second["decoding"])
    assert "round-1" in second["policies_compared"]["policies"] and "round-1" not in first["policies"]
    samples = [(done.run_dir / name).read_text().splitlines() for name in ("compare/samples.jsonl", SAMPLES)]
    before, after = ([json.loads(line) for line in lines] for lines in samples)
    for row, again in zip(before, after, strict=True):
        assert [answer["text"] for answer in row["sft"]] == [answer["text"] for answer in again["sft"]]
        assert [a["text"] for a in row["aligned"]] == [a["text"] for a in again["others"]["round-1"]], "the same draws"


def test_the_report_says_how_a_round_does_against_the_last_one_and_what_another_would_add(done: Campaign) -> None:
    first, second = (json.loads((done.run_dir / name).read_text()) for name in REPORTS)
    assert "last_round" not in first
    beside = second["last_round"]
    assert (beside["judge"], beside["labels"], beside["hours"]) == (second["verdict"]["judge"], 12, None)
    (against,) = [
        pair["win_rate"]
        for pair in second["policies_compared"]["pairs"]
        if (pair["a"], pair["b"], pair["judge"]) == ("aligned", "round-1", beside["judge"])
    ]
    assert beside["win_rate"]["value"] == pytest.approx(1 - against["value"])
    findings = runs.open_stage(done.run_dir, "round-2/compare").manifest.verdict.findings
    (told,) = [finding for finding in findings if finding.code == "another_round"]
    assert told.message.startswith("Round 2 wins ") and "Another 12 labels would p" in told.message
    page = (done.run_dir / "round-2/compare/report.html").read_text()
    assert page.count("against round 1. Another 12 labels would p") == 2, "in its head, and among the findings"


REPORTS = ("compare/report.json", "round-2/compare/report.json")
SAMPLES = "round-2/compare/samples.jsonl"


# ---- Alignment from the last round ------------------------------------------------------------------------------

PAID = {"rewards": {"reward_model": 1.0}, "eval_prompts": 2, "max_new_tokens": 6, "keep_steps": 1}
ROLLOUTS = {**PAID, "rollout_batch_size": 8, "train_batch_size": 8, "num_generations": 2}
HOW: dict[str, dict[str, Any]] = {
    "dpo": {"keep_steps": 1},
    "simpo": {"keep_steps": 1},
    "kto": {"keep_steps": 1},
    "best_of_n": {**PAID, "missing_eos_penalty": 0.0},
    "ppo": ROLLOUTS,
    "grpo": ROLLOUTS,
    "rloo": ROLLOUTS,
}


def aligned_again(done: Campaign, run_dir: Path, align: dict[str, Any]) -> Campaign:
    """A copy of the campaign whose second round was aligned anew, from the first one's policy unless `align` says
    otherwise."""
    shutil.copytree(done.run_dir, run_dir)
    values = {**done.values, "run_dir": str(run_dir)}
    values["align"] = {**values["align"], "start": "last_round", "on_failed_reward_model": "use", **align}
    if values["align"]["algorithm"] in ("dpo", "simpo", "kto"):
        del values["align"]["on_failed_reward_model"]
    made = resolve(done.source, values)
    load_object(made.stages["round-2/align"].run)(made.stages["round-2/align"])
    return made


@pytest.mark.parametrize("algorithm", list(HOW))
def test_by_key_each_algorithm_begins_at_the_last_rounds_policy(done: Campaign, tmp_path: Path, algorithm: str) -> None:
    """Its own checks of step 0 hold there, and without training the result is that policy."""
    align = {**HOW[algorithm], "algorithm": algorithm, "learning_rate": 0.0}
    made = aligned_again(done, tmp_path / "run", align)
    first, second = (runs.open_stage(made.run_dir, name) for name in ("align", "round-2/align"))
    parents = {parent.stage: parent.manifest_sha256 for parent in second.parents}
    assert parents["align"] == first.sha256 and "sft" not in parents
    before, after = (load_file(stage.dir / "model" / "model.safetensors") for stage in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)
    sft = load_file(made.run_dir / "sft" / "model" / "model.safetensors")
    assert any(not torch.equal(before[name], sft[name]) for name in before), "the first round moved"


@pytest.mark.parametrize(("start", "of_each_prompt"), [("sft", 4 + 1), ("last_round", 2)])
def test_best_of_n_chooses_among_all_answers_that_its_policy_gave_and_no_others(
    done: Campaign, tmp_path: Path, start: str, of_each_prompt: int
) -> None:
    align = {**HOW["best_of_n"], "algorithm": "best_of_n", "start": start, "max_new_tokens": 8, "num_generations": 6}
    made = aligned_again(done, tmp_path / "run", align)
    report = json.loads((made.run_dir / "round-2" / "align" / "report.json").read_text())
    assert report["from_sample"] == of_each_prompt * report["answers"] / 6


def test_what_began_at_the_last_round_is_compared_served_exported_and_verified_as_what_it_is(
    done: Campaign, tmp_path: Path
) -> None:
    made = aligned_again(done, tmp_path / "run", {})
    load_object(made.stages["round-2/compare"].run)(made.stages["round-2/compare"])
    folder = made.run_dir / "round-2"
    assert actions(made, "round-2/compare") == {} and verify(made.run_dir).problems == []

    report = json.loads((folder / "compare" / "report.json").read_text())
    measures = report["policies_compared"]["measures"]
    start, end = report["checkpoints"][0], report["checkpoints"][-1]
    assert start["step"] == 0 and start["kl_nats"]["value"] > 0, "the distance is that to the SFT policy"
    assert start["kl_nats"] == measures["round-1"]["kl_nats"] and end["kl_nats"] == measures["aligned"]["kl_nats"]
    trained = {stage.stage for stage in find_training_stages(folder)}
    assert {"sft", "reward", "align", "round-1/align"} == trained

    # The adapters of SFT and of both rounds add up to the weights that were saved.
    engine, prompt = Engine(folder), [Message(role="user", content="Tell me about red things.")]
    assert len(engine.policies["aligned"].adapters) == 3
    ids = load_policy(folder / "align" / "model", engine.config).tokenizer.encode(" It is red.")
    sft, aligned = (load_policy(path / "model", engine.config) for path in (made.run_dir / "sft", folder / "align"))
    expected = completion_logps(aligned, [prompt], [ids])[0] - completion_logps(sft, [prompt], [ids])[0]
    assert engine.log_ratios(prompt, ids, "aligned").sum().item() == pytest.approx(expected, abs=1e-3)

    export(made.run_dir, "policy", tmp_path / "taken")
    provenance = json.loads((tmp_path / "taken" / "provenance.json").read_text())
    assert [one["manifest"]["stage"] for one in provenance["made_from"]].count("align") == 1


# ---- The plan ---------------------------------------------------------------------------------------------------


FROM_LAST_ROUND = ("round-2/align", "start: 'sft' -> 'last_round'")


def test_another_round_keeps_all_that_is_there(done: Campaign) -> None:
    assert changed(done, "rounds=3") == dict.fromkeys(THIRD, "not run yet")


@pytest.mark.parametrize(
    ("override", "first", "reason", "stale"),
    [
        ("sample.sft_share=0.5", "round-2/sample", "sft_share: 0.25 -> 0.5", SECOND),
        ("compare.greedy=false", "compare", "greedy: True -> False", ["compare", "round-2/compare"]),
        (
            "align.beta=0.2",
            "align",
            "-> 0.2",
            ["align", "compare", *SECOND],
        ),
        ("sft.seed=5", "sft", "seed: 0 -> 5", [*FIRST, *SECOND]),
        ("align.start=last_round", *FROM_LAST_ROUND, ["round-2/align", "round-2/compare"]),
    ],
)
def test_a_change_makes_stale_what_it_reaches_in_all_rounds(
    done: Campaign, override: str, first: str, reason: str, stale: list[str]
) -> None:
    steps = changed(done, override)
    assert sorted(steps) == sorted(stale) and reason in steps[first]


def test_a_target_is_of_the_last_round_unless_a_round_is_named(done: Campaign) -> None:
    three = load_campaign(done.source, ["rounds=3"])
    assert list(actions(three, three.in_round("label", None).address)) == ["round-3/sample", "round-3/label"]
    assert next(iter(actions(three, three.in_round("label", 2).address, ("round-2/label",)))) == "round-2/label"
    assert three.at_work("align").address == "round-3/align"
    assert done.at_work("align").address == "round-2/align", "all are finished: the last"
    with pytest.raises(ConfigError, match=r"rounds: there is no round 4 \(found 3\)"):
        three.in_round("align", 4)


def test_the_folder_of_a_round_in_the_wrong_place_is_found(done: Campaign) -> None:
    stray = done.run_dir / "round-2" / "notes.txt"
    stray.write_text("x")
    manifest = runs.stage_dir(done.run_dir, "round-2/reward") / "manifest.json"
    text = manifest.read_text()
    try:
        manifest.write_text(text.replace('"round-1', '"round-9').replace('"device"', '"device" '))
        problems = verify(done.run_dir).problems
    finally:
        manifest.write_text(text)
        stray.unlink()
    assert f"{stray}: not a part of this run" in problems
    assert any("round-2/reward/manifest.json" in problem for problem in problems)
    assert verify(done.run_dir).problems == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("round-3", "round-3: not a part of this run"),
        ("round-1\u0663/align/model.bin", "round-1\u0663: not a part of this run"),
        ("round-2/sft/model/evil.bin", "round-2/sft: not a part of this run"),
        ("round-2/seals.jsonl", "round-2/seals.jsonl: not a part of this run"),
        ("round-2/labels/labels.sqlite", "round-2/labels/labels.sqlite: not in the manifest of round-2/label"),
    ],
)
def test_what_a_stranger_put_beside_the_rounds_is_found(
    done: Campaign, tmp_path: Path, name: str, problem: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(done.run_dir, copy)
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("x")
    assert verify(copy).problems == [f"{copy}/{problem}"]


def test_a_round_that_is_a_link_is_told_and_one_that_leads_nowhere_is_found(done: Campaign, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(done.run_dir, copy)
    (copy / "round-2").rename(tmp_path / "elsewhere")
    (copy / "round-2").symlink_to(tmp_path / "elsewhere")
    assert verify(copy).problems == [] and any("round-2: a link" in note for note in verify(copy).notes)
    (copy / "round-3").symlink_to(tmp_path / "nowhere")
    assert verify(copy).problems == [f"{copy}/round-3: not a part of this run"]


@pytest.mark.parametrize("number", ["0", "-1", "100", "two"])
def test_a_round_that_cannot_be_is_refused(done: Campaign, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(done.source), f"--round={number}"])
    assert f"expected a round, 1 to 99 (found '{number}')" in capsys.readouterr().err


def test_a_refusal_names_the_command_that_makes_what_is_missing(
    done: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["align", str(done.source), "--set", "rounds=3"]) == 2
    assert "run `trueup label CONFIG --round 3` first" in capsys.readouterr().err


def test_the_end_of_a_run_tells_the_verdict_of_the_last_round(
    done: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(done.source)]) == 0
    told = capsys.readouterr().out
    assert "Round 2 wins" in told and f"Report: {done.run_dir}/round-2/compare/report.html" in told


def test_an_anchor_is_no_copy_of_what_a_policy_says_that_did_not_move(done: Campaign, tmp_path: Path) -> None:
    """The SFT policy's k-th answer and the newest one's must not share their random numbers."""
    copy = tmp_path / "run"
    shutil.copytree(done.run_dir, copy)
    for folder in ("model", "adapter"):
        shutil.rmtree(copy / "align" / folder, ignore_errors=True)
    shutil.copytree(copy / "sft" / "model", copy / "align" / "model")
    config = load_campaign(done.source, [f"run_dir={copy}"]).stages["round-2/sample"]
    load_object(config.run)(config)
    rows = list(read_rows(copy / "round-2/candidates/candidates.jsonl", CandidateSet))
    same = sum(row.candidates[2].token_ids in [one.token_ids for one in row.candidates[:2]] for row in rows)
    assert same < len(rows) / 2


# ---- What a file may say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
        ({"rounds": 2, "labels_per_round": 3, "label": {"target_labels": 3}}, "label.target_labels: labels_per_round"),
        ({"name": "round-2", "run_dir": None}, "round-2: names like round-2 are those of rounds within a run"),
        (
            {"rounds": 2, "compare": {"others": {"round-1": "elsewhere"}}},
            "others: round-1 is the name of a policy or round of this run",
        ),
        ({"align": {"start": "last_round"}}, "align.start: only further rounds read it, and rounds is 1"),
        ({"sample": {"sft_share": 0.1}}, "sample.sft_share: only further rounds read it, and rounds is 1"),
        ({"sample": {"best_share": 0.1}}, "sample.best_share: only further rounds read it, and rounds is 1"),
        ({"sample": {"best_of": 3}}, "sample.best_of: only further rounds read it, and rounds is 1"),
        ({"sample": {"sft_share": 0.5, "best_share": 0.5}}, "leave no answer to the policy of the last round"),
        (
            {"rounds": 2, "label": {"source": "import", "path": "prompts.jsonl", "also_use": ["human"]}},
            "rounds: a further round asks about answers of the aligned policy",
        ),
    ],
)
def test_what_no_campaign_of_rounds_can_be_is_refused_by_key(
    campaign: Callable[..., Campaign], tmp_path: Path, overrides: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        campaign(tmp_path, **overrides)


def test_what_is_taken_home_is_the_last_rounds_unless_a_round_is_named(done: Campaign, tmp_path: Path) -> None:
    for number, name in ((None, "last"), (1, "first")):
        export(done.run_dir, "policy", tmp_path / name, number)
    last, first = ((tmp_path / name / "README.md").read_text() for name in ("last", "first"))
    assert "`run`, round 2." in last and "`run`." in first
    provenance = json.loads((tmp_path / "last" / "provenance.json").read_text())
    assert provenance["manifest_sha256"] == runs.open_stage(done.run_dir, "round-2/align").sha256
    made_from = [one["manifest"]["stage"] for one in provenance["made_from"]]
    assert made_from.count("label") == 2 and made_from.count("align") == 1, "round 1 aligned what round 2 sampled"
    with pytest.raises(RunError, match="round-3/align"):
        export(done.run_dir, "policy", tmp_path / "none", 3)


# ---- Interruption -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_in_its_second_round_continues_there(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    stage = "round-2/align"
    made = campaign(tmp_path, rounds=2, labels_per_round=12, sample={"num_candidates": 4})
    command = [sys.executable, "-m", "trueup", "run", str(made.source)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0)
    begun = runs.stage_dir(made.run_dir, stage) / runs.BEGUN
    while not begun.exists():
        assert running.poll() is None, running.stdout and running.stdout.read().decode()
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    finished = {name: found.sha256 for name in FIRST if (found := runs.find_stage(made.run_dir, name))}
    assert finished.keys() >= set(FIRST) - {"compare"} and runs.find_stage(made.run_dir, stage) is None
    assert verify(made.run_dir).problems == []
    subprocess.run(command, check=True, capture_output=True)
    assert {name: runs.open_stage(made.run_dir, name).sha256 for name in finished} == finished
    assert verify(made.run_dir).problems == [] and actions(made) == {}
