"""The comparison: its pure parts on hand-made answers, and the real stage on a tiny random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf import compare
from rlhf.compare import Answers, Judge, Judged, Labels
from rlhf.config import CompareConfig
from trueup import campaign as campaigns
from trueup import runs, statistics
from trueup.config import ModelConfig, SplitConfig
from trueup.errors import DataError, RunError
from trueup.records import Candidate, CandidateSet, Message, prompt_id, read_jsonl, read_rows, write_rows

CONFIG = CompareConfig(run_dir=Path("unused"), model=ModelConfig(), split=SplitConfig())


def said(text: str, finished: bool = True, logp: float = -1.0) -> Candidate:
    return Candidate(text=text, token_ids=[*text.encode(), *([0] if finished else [])], finished=finished, logp=logp)


def asked(i: int, candidates: list[Candidate]) -> CandidateSet:
    prompt = [Message(role="user", content=f"Question {i}?")]
    return CandidateSet(prompt_id=prompt_id(prompt), prompt=prompt, split="heldout", candidates=candidates, sampler={})


def judged(reference: Any, aligned: Any, name: str = "rubric", made_the_labels: bool = True) -> Judged:
    """Scores (P, K) of both policies, with lengths that say nothing."""
    by = Judge(name, f"{name}, simulated", made_the_labels, lambda rows, answers: [])
    reference, aligned = np.asarray(reference, dtype=float), np.asarray(aligned, dtype=float)
    noise = np.random.default_rng(0).normal(0, 0.3, (len(reference), reference.shape[1], reference.shape[1]))
    return compare.compare(by, reference.tolist(), aligned.tolist(), list(noise), CONFIG)


RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(0, 1, (60, 4))
BETTER = RNG.normal(1, 1, (60, 4))
ALIKE = RNG.normal(0, 1, (60, 4))
MEASURES = {"length_tokens": 30.0, "eos_rate": 0.9, "distinct_2": 0.8, "repetition": 0.1}

# ---- Verdict ----------------------------------------------------------------------------------------------------


def test_a_clear_win_is_a_preference_that_was_learnt() -> None:
    finding = compare.verdict(judged(REFERENCE, BETTER), 60, 0.0)
    assert (finding.level, finding.code) == ("info", "learnt_preference")
    assert finding.message.startswith("The aligned policy learnt this preference: it wins ")
    assert finding.message.endswith("of comparisons on 60 held-out prompts (judge: rubric, simulated).")


def test_a_clear_loss_fails() -> None:
    finding = compare.verdict(judged(BETTER, REFERENCE), 60, 0.0)
    assert (finding.level, finding.code) == ("fail", "moved_away")
    assert "moved away from this preference" in finding.message


def test_what_may_be_chance_is_no_detectable_change_and_says_what_it_could_have_seen() -> None:
    made = judged(REFERENCE, ALIKE)
    finding = compare.verdict(made, 60, 0.0)
    assert (finding.level, finding.code) == ("warn", "no_detectable_change")
    assert finding.message.startswith("No detectable change: ")
    assert f"could have detected {100 * made.minimum_detectable_effect:.1f} points." in finding.message


def test_an_unchanged_policy_wins_exactly_half_and_is_called_unchanged() -> None:
    finding = compare.verdict(judged(REFERENCE, REFERENCE), 60, 1.0)
    assert finding.code == "no_detectable_change"
    assert "50.0 % [50.0, 50.0]" in finding.message
    assert finding.message.endswith("both policies give the very same answers.")


def test_no_verdict_says_better_answers() -> None:
    for aligned in (BETTER, ALIKE, -BETTER):
        assert "better" not in compare.verdict(judged(REFERENCE, aligned), 60, 0.0).message


def test_a_single_prompt_decides_nothing() -> None:
    finding = compare.verdict(judged(REFERENCE[:1], REFERENCE[:1] + 9), 1, 0.0)
    assert finding.code == "no_detectable_change"
    assert "1 held-out prompt (" in finding.message


def test_a_judge_that_did_not_make_the_labels_is_not_said_to_speak_for_them() -> None:
    finding = compare.verdict(judged(REFERENCE, BETTER, made_the_labels=False), 60, 0.0)
    assert "learnt what this judge prefers" in finding.message
    assert "240 human" in compare.not_the_labeller(judged(REFERENCE, BETTER), Labels({"human": 240}, None))


def test_swapping_the_policies_mirrors_every_judges_figures() -> None:
    one, other = judged(REFERENCE, BETTER), judged(BETTER, REFERENCE)
    assert one.win_rate.interval.value == pytest.approx(1 - other.win_rate.interval.value, abs=1e-12)
    assert one.minimum_detectable_effect == pytest.approx(other.minimum_detectable_effect)


# ---- Warnings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"length_tokens": 46.0}, "longer"),
        ({"length_tokens": 20.0}, "shorter"),
        ({"eos_rate": 0.79}, "stops_less"),
        ({"distinct_2": 0.63}, "less_varied"),
    ],
)
def test_every_price_of_a_win_is_named(changed: dict[str, float], code: str) -> None:
    found = compare.warnings({"rubric": judged(REFERENCE, BETTER)}, MEASURES, {**MEASURES, **changed}, 60)
    assert [finding.code for finding in found] == [code]


def test_small_changes_are_no_price() -> None:
    after = {"length_tokens": 44.0, "eos_rate": 0.81, "distinct_2": 0.65, "repetition": 0.5}
    assert compare.warnings({"rubric": judged(REFERENCE, BETTER)}, MEASURES, after, 60) == []


def test_judges_that_disagree_are_both_quoted() -> None:
    judges = {
        "rubric": judged(REFERENCE, BETTER),
        "reward_model": judged(BETTER, REFERENCE, "reward_model"),
    }
    (finding,) = compare.warnings(judges, MEASURES, MEASURES, 60)
    assert finding.code == "judges_disagree"
    for made in judges.values():
        assert compare.percent(made.win_rate.interval) in finding.message


def test_judges_on_two_sides_of_half_by_chance_do_not_disagree() -> None:
    judges = {"rubric": judged(REFERENCE, ALIKE), "reward_model": judged(ALIKE, REFERENCE, "reward_model")}
    assert compare.warnings(judges, MEASURES, MEASURES, 60) == []


def test_few_prompts_are_called_few() -> None:
    found = compare.warnings({"rubric": judged(REFERENCE, BETTER)}, MEASURES, MEASURES, 19)
    assert [finding.code for finding in found] == ["few_prompts"]


# ---- Measures ---------------------------------------------------------------------------------------------------


def test_answers_are_described_as_counted_by_hand() -> None:
    made = compare.describe([[said("a b a b a b")], [said("c d", finished=False)]])
    assert made["length_tokens"] == (11 + 1 + 3) / 2
    assert made["eos_rate"] == 0.5
    assert made["distinct_2"] == 3 / 6  # ab, ba, cd of ab ba ab ba ab cd
    assert made["repetition"] == 0.5


def test_empty_answers_can_be_described() -> None:
    assert compare.describe([[said("", finished=False)]]) == {
        "length_tokens": 0,
        "eos_rate": 0,
        "distinct_2": 0,
        "repetition": 0,
    }


def test_identical_answers_are_counted_by_their_tokens() -> None:
    row = asked(0, [said("a"), said("b")])
    assert Answers([row], [row.candidates], [[said("a"), said("b", finished=False)]]).share_identical() == 0.5


def test_length_ratios_lie_as_outcomes_do() -> None:
    row = asked(0, [said("a"), said("abc")])
    (ratio,) = Answers([row], [row.candidates], [[said("abc"), said("abcdefg")]]).log_length_ratios()
    assert ratio[0, 1] == pytest.approx(np.log(8 / 2))
    assert ratio[1, 0] == pytest.approx(np.log(4 / 4))


def test_a_judge_sees_both_policies_answers_at_once_and_they_come_apart_again() -> None:
    rows = [asked(i, [said("x"), said("xx")]) for i in range(2)]
    aligned = [[said("xxx"), said("xxxx")] for _ in rows]
    by = Judge("length", "length", True, lambda rows, answers: [[len(c.text) for c in row] for row in answers])
    made = compare.judge(by, Answers(rows, [row.candidates for row in rows], aligned), CONFIG)
    assert made.reference == [[1, 2], [1, 2]]
    assert made.aligned == [[3, 4], [3, 4]]
    assert made.win_rate.wins == 4
    assert made.win_rate.interval.low == pytest.approx(statistics.wilson(2, 2).low)


def test_report_figures_are_json_even_where_nothing_is_known() -> None:
    json.dumps(judged(REFERENCE[:1], BETTER[:1]).as_json(), allow_nan=False)


# ---- The stage --------------------------------------------------------------------------------------------------

STAGE_FILES = {"config.yaml", "manifest.json", "report.html", "report.json", "samples.jsonl"}


HELDOUT = {"heldout_fraction": 0.5}
_sampled: list[Path] = []


@pytest.fixture
def run_dir(campaign, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run up to sampling, made once, whose aligned policy is the SFT policy: a planted no-op."""
    if not _sampled:
        made = campaign(tmp_path_factory.mktemp("sampled"), split=HELDOUT)
        for stage in ("sft", "sample"):
            campaigns.load_object(made.stages[stage].run)(made.stages[stage])
        _sampled.append(made.run_dir)
    run_dir = shutil.copytree(_sampled[0], tmp_path / "run")
    align = shutil.copytree(run_dir / "sft", run_dir / "align")
    manifest = json.loads((align / "manifest.json").read_text())
    (align / "manifest.json").write_text(json.dumps({**manifest, "stage": "align", "identity": {"algorithm": "dpo"}}))
    return run_dir


@pytest.fixture
def config(run_dir: Path, tiny_base: Path) -> CompareConfig:
    return CompareConfig(
        run_dir=run_dir,
        model=ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu"),
        split=SplitConfig(**HELDOUT),
        judges=["rubric"],
        batch_size=4,
    )


def test_an_unchanged_policy_answers_alike_and_no_change_is_detected(config: CompareConfig) -> None:
    directory = compare.run(config)

    assert {path.name for path in directory.iterdir()} == STAGE_FILES
    report = json.loads((directory / "report.json").read_text())
    assert report["identical_answers"] == 1
    assert report["verdict"]["code"] == "no_detectable_change"
    rate = report["judges"]["rubric"]["win_rate"]
    assert (rate["value"], rate["ci_low"], rate["ci_high"]) == (0.5, 0.5, 0.5)
    assert rate["n"] == rate["wins"] + rate["ties"] + rate["losses"] == report["prompts"] * 3 * 2
    assert report["kl_nats"]["value"] == pytest.approx(0, abs=1e-3)
    for key in ("length_tokens", "eos_rate", "distinct_2", "repetition"):
        assert report[key]["reference"] == report[key]["aligned"]
    assert report["heldout_loss"]["reference"] is not None
    assert report["heldout_loss"]["aligned"] is None

    manifest = json.loads((directory / "manifest.json").read_text())
    assert [parent["stage"] for parent in manifest["parents"]] == ["sft", "sample", "align"]
    assert manifest["verdict"]["findings"][0]["code"] == "no_detectable_change"
    assert {output["path"] for output in manifest["outputs"]} == STAGE_FILES - {"manifest.json"}
    assert manifest["device"] == "cpu"

    rows = [row for _, row in read_jsonl(directory / "samples.jsonl")]
    assert len(rows) == report["prompts"] > 1
    assert len(rows[0]["reference"]) == len(rows[0]["aligned"]) == 3
    assert set(rows[0]["aligned"][0]) == {"text", "finished", "num_tokens", "logp", "scores"}


def test_a_changed_policy_differs_is_scored_by_the_reward_model_and_has_moved(config: CompareConfig) -> None:
    plant_models(config)
    directory = compare.run(config.model_copy(update={"judges": ["reward_model", "rubric"]}))

    report = json.loads((directory / "report.json").read_text())
    assert list(report["judges"]) == ["reward_model", "rubric"]
    assert report["identical_answers"] < 1
    assert abs(report["kl_nats"]["value"]) > 0.01  # of a few answers of eight tokens: it may be below 0
    assert "learnt from the same labels" in report["verdict"]["message"]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert [parent["stage"] for parent in manifest["parents"]] == ["sft", "sample", "align", "reward"]


def plant_models(config: CompareConfig) -> None:
    """Another aligned policy, and a reward model with a fresh head."""
    import torch

    from trueup import models

    policy = models.load_policy(config.run_dir / "align" / "model", config.model)
    torch.manual_seed(1)
    for weight in policy.model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    models.save(policy, config.run_dir / "align" / "model")
    reward = models.load_reward_model(config.run_dir / "sft" / "model", config.model)
    models.save(reward, config.run_dir / "reward" / "model")
    manifest = json.loads((config.run_dir / "align" / "manifest.json").read_text())
    (config.run_dir / "reward" / "manifest.json").write_text(json.dumps({**manifest, "stage": "reward"}))


def test_answers_that_are_the_same_tie_by_the_reward_model_whatever_batch_they_were_in(config: CompareConfig) -> None:
    plant_models(config)
    reward = runs.open_stage(config.run_dir, "reward")
    by = compare.reward_model_judge(config, {"reward": reward}, Labels({}, None))
    rows = [row for row in read_rows(config.run_dir / "candidates" / "candidates.jsonl", CandidateSet)]
    scores = by.score(rows, [[*row.candidates, *row.candidates] for row in rows])
    assert all(row[:3] == row[3:] for row in scores)
    assert len({score for row in scores for score in row}) > 1


def test_answers_of_another_sft_policy_are_refused(config: CompareConfig) -> None:
    path = config.run_dir / "sft" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "duration_s": 1e6}))
    with pytest.raises(RunError, match="answers of another SFT policy"):
        compare.run(config)


def test_a_run_without_held_out_answers_says_what_to_do(config: CompareConfig) -> None:
    change_candidates(config, lambda row: row.model_copy(update={"split": "train"}))
    with pytest.raises(DataError, match=r"no held-out prompt among them.*heldout_fraction"):
        compare.run(config)


def test_a_prompt_that_this_campaign_does_not_hold_out_is_refused(config: CompareConfig) -> None:
    change_candidates(config, lambda row: row.model_copy(update={"split": "heldout"}))
    with pytest.raises(RunError, match="is not held out by this campaign's split"):
        compare.run(config)


def test_answers_that_were_sampled_differently_are_refused(config: CompareConfig) -> None:
    seeds = iter(range(1000))
    change_candidates(config, lambda row: row.model_copy(update={"sampler": {**row.sampler, "seed": next(seeds)}}))
    with pytest.raises(RunError, match="sampled with different settings"):
        compare.run(config)


def change_candidates(config: CompareConfig, change: Any) -> None:
    path = config.run_dir / "candidates" / "candidates.jsonl"
    write_rows(path, [change(row) for row in read_rows(path, CandidateSet)])


def test_a_rubric_that_made_the_labels_speaks_for_them(config: CompareConfig) -> None:
    label = config.run_dir / "labels"
    label.mkdir()
    (label / "report.json").write_text(json.dumps({"by_source": {"simulated": 12}}))
    identity = {"rubric": "says-why"}
    (label / "manifest.json").write_text(json.dumps({"stage": "label", "identity": identity}))
    labels = compare.read_labels(config.run_dir)
    assert labels == Labels({"simulated": 12}, "says-why")
    assert compare.rubric_judge(config, {}, labels).made_the_labels

    (label / "report.json").write_text(json.dumps({"by_source": {"human": 12}}))
    labels = compare.read_labels(config.run_dir)
    assert not compare.rubric_judge(config, {}, labels).made_the_labels
