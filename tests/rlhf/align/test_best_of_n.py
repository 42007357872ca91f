"""Best of n: which answers are imitated, whose they are, and that training starts where they were drawn, and learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from rlhf.align import best_of_n
from rlhf.align.best_of_n import Best, best_answer, encode
from rlhf.align.best_step import EvaluateSteps
from rlhf.align.prompts import RolloutPrompt
from rlhf.align.rewards import WeightedRewards
from trueup import runs
from trueup.data.records import Candidate, CandidateSet, Dropped, Message, read_rows
from trueup.data.split import is_heldout
from trueup.models import loading
from trueup.models.chat import IGNORED, encode_prompt
from trueup.stages import load_object

LIKES_E = """
def likes_e(completions, **columns):
    return [said[-1]["content"].count("e") + 0.1 * len(said[-1]["content"]) for said in completions]
"""
TINY: dict[str, Any] = {
    "algorithm": "best_of_n",
    "rewards": {"rewards.py:likes_e": 1.0},
    "num_generations": 6,
    "max_new_tokens": 8,
    "max_steps": 12,
    "eval_prompts": 4,
    "keep_steps": 1,
}


def likes_e(text: str) -> float:
    return text.count("e") + 0.1 * len(text)


@pytest.fixture
def aligned(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run the align stage after an SFT policy that ends some answers, of which three to a prompt are sampled."""

    def run(**keys: Any) -> tuple[Any, Path, dict[str, Any]]:
        (tmp_path / "rewards.py").write_text(LIKES_E)
        made = campaign(tmp_path, sft={"max_steps": 16}, sample={"num_candidates": 3}, align={**TINY, **keys})
        for name in ("sft", "sample", "align"):
            if name == "align" or runs.find_stage(made.run_dir, name) is None:
                load_object(made.stages[name].run)(made.stages[name])
        directory = runs.stage_dir(made.run_dir, "align")
        return made, directory, json.loads((directory / "report.json").read_text())

    return run


def test_it_imitates_its_best_answers_and_is_paid_more_for_new_ones(aligned: Callable[..., Any]) -> None:
    made, directory, report = aligned()
    before, *_ = report["evaluations"]
    chosen = next(row for row in report["evaluations"] if row["step"] == report["chosen_step"])
    assert before["step"] == 0 and before["kl"] == 0 and chosen["reward"] > before["reward"] + 0.3
    assert report["best_reward"] > report["mean_reward"]
    imitated = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert len(imitated) == report["imitated"] and all(
        row["score"] == pytest.approx(likes_e(row["completion"])) for row in imitated
    )
    candidates = read_rows(made.run_dir / "candidates" / "candidates.jsonl", CandidateSet)
    best_sampled = {
        row.prompt[-1].content: max((likes_e(one.text) for one in row.candidates if one.finished), default=-1.0)
        for row in candidates
    }
    assert all(row["score"] >= best_sampled[row["prompt"][-1]["content"]] - 1e-9 for row in imitated), "of all answers"
    page = (directory / "report.html").read_text()
    assert "alignment by best of n" in page and "Take best of n before the others" in page
    assert f"some of the {report['imitated']} best answers that were imitated" in page


def test_no_held_out_prompt_is_answered_or_imitated(aligned: Callable[..., Any]) -> None:
    made, directory, report = aligned(max_steps=2)
    heldout = [row.prompt for row in read_rows(made.run_dir / "candidates" / "candidates.jsonl", CandidateSet)]
    heldout = [prompt for prompt in heldout if is_heldout(prompt, made.config.split)]
    imitated = [json.loads(line)["prompt"] for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert heldout and not [one for one in imitated if one[-1]["content"] in {p[-1].content for p in heldout}]
    trained = runs.open_stage(made.run_dir, "align").trained_prompts
    assert len(trained) == report["imitated"] + sum(report["left_out"].values()) + TINY["eval_prompts"]


def test_answers_of_the_sample_stage_count_if_this_very_policy_drew_them(
    aligned: Callable[..., Any], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    made, _, report = aligned(max_steps=2)
    prompts = report["answers"] // TINY["num_generations"]
    assert (report["answers"], report["from_sample"]) == (6 * prompts, 3 * prompts)
    assert aligned(max_steps=2, num_generations=2)[2]["from_sample"] == 2 * prompts, "no more than are asked for"
    assert aligned(max_steps=2, prompts="prompts.jsonl")[2]["from_sample"] == 0, "a file has no answers"
    sampled = made.run_dir / "candidates" / "candidates.jsonl"
    other = sampled.read_text().replace(runs.open_stage(made.run_dir, "sft").sha256, "0" * 64)
    sampled.write_text(other)
    assert aligned(max_steps=2)[2]["from_sample"] == 0, "another policy drew them"


def test_a_first_loss_that_is_not_the_sft_policys_own_stops_the_run(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = SFTTrainer.train

    def moved(self: Any, *args: Any, **keys: Any) -> Any:
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.1)
        return begin(self, *args, **keys)

    monkeypatch.setattr(SFTTrainer, "train", moved)
    with pytest.raises(AssertionError, match="at step 0 the policy is not the one that drew the answers"):
        aligned()


def test_a_token_that_is_trained_and_was_not_drawn_stops_the_run(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_prompt(policy: Any, best: Best) -> Any:
        row = encode(policy, best)
        return type(row)(row.input_ids, list(row.input_ids))

    monkeypatch.setattr(best_of_n, "encode", with_prompt)
    with pytest.raises(AssertionError, match="at step 0 the policy is not the one that drew the answers"):
        aligned()


def test_an_interrupted_training_ends_where_a_whole_one_does(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory, report = aligned(save_steps=2)
    weights = load_file(directory / "adapter" / "adapter_model.safetensors")
    evaluate = EvaluateSteps.on_step_end

    def stops(self: Any, args: Any, state: Any, *others: Any, **keys: Any) -> None:
        evaluate(self, args, state, *others, **keys)
        if state.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EvaluateSteps, "on_step_end", stops)
        with pytest.raises(KeyboardInterrupt):
            aligned(save_steps=2)
    _, directory, again = aligned(save_steps=2)
    assert again == report
    resumed = load_file(directory / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


def test_what_is_trained_are_the_tokens_that_were_drawn(campaign: Callable[..., Any], tmp_path: Path) -> None:
    policy = loading.load_base(campaign(tmp_path).config.model)
    prompt = [Message(role="user", content="Why?")]
    answer = Candidate(text="So.", token_ids=[5, 6, policy.tokenizer.eos_token_id], finished=True)
    row = encode(policy, Best(RolloutPrompt(prompt), answer, 0.0, {}, []))
    start = encode_prompt(policy.tokenizer, prompt)
    assert row.input_ids == start + answer.token_ids
    assert row.labels == [IGNORED] * len(start) + answer.token_ids


@pytest.mark.parametrize(
    ("rewards", "finished", "index", "reason"),
    [
        ([1.0, 3.0, 2.0], [True, True, True], 1, None),
        ([1.0, 3.0, 2.0], [True, False, True], 2, None),
        ([3.0, 3.0, 2.0], [True, True, True], 0, None),
        ([1.0, None, 2.0], [True, True, True], 2, None),
        ([1.0, 3.0, 2.0], [False, False, False], None, "no answer ended by itself"),
        ([1.0, None, 2.0], [False, True, False], None, "no answer ended by itself"),
        ([2.0, 2.0, 2.0], [True, True, True], None, "all answers are paid alike"),
        ([2.0, None, 2.0], [False, True, False], None, "all answers are paid alike"),
        ([None, None, None], [True, True, True], None, "no reward has an opinion"),
    ],
)
def test_the_best_paid_answer_that_ended_is_imitated_or_the_prompt_is_left_out_with_the_reason(
    rewards: list[float | None], finished: list[bool], index: int | None, reason: str | None
) -> None:
    answers = [Candidate(text=str(i), token_ids=[5], finished=end) for i, end in enumerate(finished)]
    paid = WeightedRewards({"f": lambda **_: rewards}, {"f": 1.0}, missing_eos_penalty=1e-9)
    paid.ends = [5]
    dropped = Dropped()
    best = best_answer(RolloutPrompt([Message(role="user", content="Why?")]), answers, paid, dropped)
    assert (best and best.answer) == (None if index is None else answers[index])
    assert dict(dropped.counts) == ({reason: 1} if reason else {})


def test_where_an_end_is_worth_nothing_an_answer_that_was_cut_may_be_the_best() -> None:
    answers = [Candidate(text=str(i), token_ids=[5], finished=i == 0) for i in range(2)]
    paid = WeightedRewards({"f": lambda **_: [1.0, 2.0]}, {"f": 1.0})
    best = best_answer(RolloutPrompt([Message(role="user", content="Why?")]), answers, paid, Dropped())
    assert best and best.answer == answers[1]
