"""Whom the online algorithms ask and when, how they draw answers, and which step they call the best."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import TaskType, get_peft_model

import rlhf.align.grpo_rloo
from rlhf.align.best_step import EvaluateSteps, best_step, choose_step, evaluations
from rlhf.align.prompts import Prompts, RolloutPrompt, choose_prompts, num_rollouts, schedule
from rlhf.align.rewards import WeightedRewards
from rlhf.align.rollouts import Sampler, logps_of
from rlhf.align.schema import Evaluation
from trueup import runs
from trueup.config import StageConfig
from trueup.data.records import Candidate, CandidateSet, Message, prompt_id, write_rows
from trueup.data.split import is_for_judge, is_heldout, split_name
from trueup.errors import ConfigError, DataError
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.stages import load_object
from trueup.training import adapters


def make(config: StageConfig, write: Callable[[Path], Any] = lambda folder: None) -> None:
    stage = runs.begin(config)
    write(stage.dir)
    stage.finish()


@pytest.fixture
def opened(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """The align stage begun, over these prompts, paid by the rubric: (config, stage, tokenizer)."""

    def begin(texts: list[str] | None = None, split: dict[str, float] | None = None, **keys: Any) -> Any:
        jsonl(tmp_path / "asked.jsonl", [{"prompt": text, "category": "c"} for text in texts or []])
        keys = {"rollout_batch_size": 8, "eval_prompts": 5, "max_new_tokens": 16, "rewards": {"rubric": 1.0}, **keys}
        if texts is not None:
            keys["prompts"] = "asked.jsonl"
        made = campaign(tmp_path, split=split or {}, align={"algorithm": "ppo", **keys})
        if runs.find_stage(made.run_dir, "sft") is None:
            make(made.stages["sft"])
        config = made.stages["align"]
        if "sample" in config.parents():
            make(made.stages["sample"], lambda folder: write_rows(folder / "candidates.jsonl", sampled(config)))
        return config, runs.begin(config), loading.load_base_tokenizer(config.model)

    return begin


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_processes_that_would_draw_a_part_of_a_group_are_refused_by_the_trainer(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    config, stage, _ = opened(algorithm=algorithm, num_generations=8, train_batch_size=8)
    policy = loading.load_base(config.model)
    policy.model.to("meta")  # as the trial of a stage has it
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes draw 4 answers each, which are no whole groups of 8"):
        load_object(config.trial)(config, stage, policy)


def sampled(config: Any) -> list[CandidateSet]:
    """What the sample stage leaves: every prompt with its answers, held out or not."""
    answer = Candidate(text="It is.", token_ids=[5, 0], finished=True)
    prompts = [[Message(role="user", content=f"What is {n}?")] for n in range(60)]
    return [
        CandidateSet(
            prompt_id=prompt_id(prompt),
            prompt=prompt,
            split=split_name(prompt, config.split),
            candidates=[answer],
            sampler={},
        )
        for prompt in prompts
    ]


def texts(rows: list[RolloutPrompt]) -> list[str]:
    return [row.prompt[-1].content for row in rows]


def dropped(stage: Any) -> list[dict[str, int]]:
    return [entry.dropped for entry in stage.inputs]


QUESTIONS = [f"Why {n}?" for n in range(200)]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_what_a_prompt_spells_is_asked_as_text(opened: Any, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, stage, tokenizer = opened(QUESTIONS, algorithm=algorithm, num_generations=2)
    policy = loading.load_base(config.model)
    asked = [Message(role="user", content=f"What is {tokenizer.eos_token} in a text?")]
    rows = schedule([RolloutPrompt(asked)], config)
    rewards = WeightedRewards({}, {})
    trainer = rlhf.align.grpo_rloo.build_trainer(config, stage, policy, rewards, rows)
    read: list[Any] = []
    forward = policy.model.forward

    def reads(*args: Any, **keys: Any) -> Any:
        read.append(keys["input_ids"])
        return forward(*args, **keys)

    monkeypatch.setattr(policy.model, "forward", reads)
    trainer.model.eval()
    trainer._generate([rows[0]["prompt"]] * 2)
    assert read[0][0].tolist() == encode_prompt(tokenizer, asked)


# ---- Whom to ask ------------------------------------------------------------------------------------------------


def test_no_prompt_that_is_held_out_or_kept_for_the_judge_is_asked(opened: Any) -> None:
    config, stage, tokenizer = opened(QUESTIONS, split={"heldout_fraction": 0.3, "judge_fraction": 0.2})
    chosen = choose_prompts(config, stage, tokenizer)
    asked = [*chosen.train, *chosen.evaluation]
    assert not any(is_heldout(row.prompt, config.split) or is_for_judge(row.prompt, config.split) for row in asked)
    (left_out,) = dropped(stage)
    assert 40 < left_out["held out"] < 80 and 20 < left_out["for the second reward model"] < 60
    assert len(asked) + sum(left_out.values()) == 200
    assert stage.inputs[0].rows == len(asked)


def test_the_prompts_that_choose_the_step_are_not_trained_on_and_follow_from_the_seed(opened: Any) -> None:
    chosen: Prompts = choose_prompts(*opened(QUESTIONS))
    assert len(chosen.evaluation) == 5 and not set(texts(chosen.evaluation)) & set(texts(chosen.train))
    assert choose_prompts(*opened(QUESTIONS)) == chosen
    other = choose_prompts(*opened(QUESTIONS, seed=1))
    assert set(texts(other.evaluation)) != set(texts(chosen.evaluation))
    assert choose_prompts(*opened(QUESTIONS, eval_prompts=0)).evaluation == []


def test_the_prompts_of_the_sample_stage_are_asked_where_no_file_is_named(opened: Any) -> None:
    config, stage, tokenizer = opened()
    chosen = choose_prompts(config, stage, tokenizer)
    heldout = sum(row.split == "heldout" for row in sampled(config))
    assert len(chosen.train) + 5 == 60 - heldout and 0 < heldout < 60
    assert stage.inputs == []
    (finding,) = stage.findings
    assert (finding.level, finding.message) == (
        "info",
        f"prompts of the sample stage: {60 - heldout} used; left out: {heldout} held out",
    )


def test_a_prompt_without_room_for_an_answer_is_counted_in_the_manifest_and_not_asked(opened: Any) -> None:
    config, stage, tokenizer = opened([*QUESTIONS[:30], "Why " + "so " * 200 + "?"], split={"heldout_fraction": 0.0})
    chosen = choose_prompts(config, stage, tokenizer)
    assert len(chosen.train) == 25 and max(map(len, texts(chosen.train))) < 10
    manifest = json.loads((stage.finish() / runs.MANIFEST).read_text())
    assert manifest["inputs"][0]["dropped"] == {"no room for an answer within max_length": 1}
    assert manifest["inputs"][0]["rows"] == 30


def test_room_is_what_max_length_leaves_to_the_last_token(opened: Any) -> None:
    _, _, tokenizer = opened(["Why 1?"])
    room = 96 - len(encode_prompt(tokenizer, [Message(role="user", content="Why 1?")]))
    keys = {"split": {"heldout_fraction": 0.0}, "eval_prompts": 0, "num_generations": 8}
    config, stage, _ = opened(["Why 1?"], max_new_tokens=room, **keys)
    assert len(choose_prompts(config, stage, tokenizer).train) == 1
    config, stage, _ = opened(["Why 1?"], max_new_tokens=room + 1, **keys)
    with pytest.raises(DataError, match="left out: 1 no room for an answer within max_length"):
        choose_prompts(config, stage, tokenizer)


def test_a_prompt_that_comes_twice_is_asked_once_and_counted(opened: Any, tmp_path: Path, jsonl: Any) -> None:
    rows = [{"question": text, "answer": "#### 1"} for text in [*QUESTIONS[:3], "How many?", "How\u200b many?"]]
    path = jsonl(tmp_path / "g.jsonl", rows)
    config, stage, tokenizer = opened(
        [*QUESTIONS[:20], QUESTIONS[0]],
        split={"heldout_fraction": 0.0},
        rewards={"rubric": 1.0, "gsm8k": 1.0},
        checks=[{"kind": "gsm8k", "path": str(path)}],
    )
    chosen = choose_prompts(config, stage, tokenizer)
    asked = [*chosen.train, *chosen.evaluation]
    assert Counter(Counter(texts(asked)).values()) == {1: 21}
    assert dropped(stage) == [{"duplicate": 4}, {"duplicate": 1}]
    assert [entry.rows for entry in stage.inputs] == [17, 4]
    verified = {row.prompt[-1].content: row for row in asked if row.check >= 0}
    assert set(verified) == {*QUESTIONS[:3], "How many?"}, "of the two, the one whose answers can be verified"
    for text, row in verified.items():
        assert chosen.checks[row.check].prompts[row.check_row].prompt[-1].content == text


def test_a_file_of_code_is_an_input_without_rows(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(**columns): ...\n")
    config, stage, tokenizer = opened(QUESTIONS, rewards={"mine.py:f": 1.0})
    choose_prompts(config, stage, tokenizer)
    assert [Path(entry.path).name for entry in stage.inputs] == ["asked.jsonl", "mine.py"]
    assert (stage.inputs[1].rows, stage.inputs[1].dropped) == (0, {})


def test_too_few_prompts_are_an_error_that_says_what_was_left_out(opened: Any) -> None:
    config, stage, tokenizer = opened(["Why 1?", "Why 2?", "Why 3?"], split={"heldout_fraction": 0.0}, eval_prompts=0)
    with pytest.raises(DataError) as caught:
        choose_prompts(config, stage, tokenizer)
    assert str(caught.value) == (
        "align.rollout_batch_size: 3 prompts may be trained on (left out: none); 0 of them choose the step, and a "
        "rollout asks 4: lower it or align.eval_prompts, or give more prompts (align.prompts)"
    )


# ---- The schedule -----------------------------------------------------------------------------------------------

ROWS = [RolloutPrompt([Message(role="user", content=f"Why {n}?")], "c", check=0, check_row=n) for n in range(10)]


def scheduled(opened: Any, **keys: Any) -> list[list[str]]:
    """The prompts of each rollout; four in a rollout of 8."""
    config, *_ = opened(QUESTIONS, **keys)
    asked = [row["prompt"][-1]["content"] for row in schedule(ROWS, config)]
    return [asked[start : start + 4] for start in range(0, len(asked), 4)]


def test_every_prompt_comes_once_in_a_pass_and_each_pass_has_an_order_of_its_own(opened: Any) -> None:
    rollouts = scheduled(opened, max_steps=-1, num_train_epochs=4)
    assert [len(rollout) for rollout in rollouts] == [4] * 10
    asked = [text for rollout in rollouts for text in rollout]
    passes = [asked[start : start + 10] for start in range(0, 40, 10)]
    assert all(set(one) == set(texts(ROWS)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_the_order_follows_from_the_seed_and_a_longer_training_begins_as_a_shorter_one(opened: Any) -> None:
    one = scheduled(opened, max_steps=-1, num_train_epochs=2)
    assert scheduled(opened, max_steps=-1, num_train_epochs=2) == one
    assert scheduled(opened, max_steps=-1, num_train_epochs=2, seed=1) != one
    assert scheduled(opened, max_steps=-1, num_train_epochs=4)[: len(one)] == one


def test_a_row_brings_what_rewards_are_told(opened: Any) -> None:
    config, *_ = opened(QUESTIONS)
    for row in schedule(ROWS, config):
        assert row["prompt"] == [{"role": "user", "content": f"Why {row['check_row']}?"}]
        assert row["prompt_id"] == prompt_id(ROWS[row["check_row"]].prompt)
        assert (row["category"], row["check"]) == ("c", 0)


@pytest.mark.parametrize(
    ("keys", "rollouts"),
    [
        ({"max_steps": 8}, 1),
        ({"max_steps": 1}, 1),
        ({"max_steps": 9}, 2),
        ({"max_steps": 16, "num_train_epochs": 50}, 2),
        ({"max_steps": 9, "num_ppo_epochs": 1}, 5),
        ({"max_steps": 9, "num_ppo_epochs": 1, "train_batch_size": 8}, 9),
        ({"max_steps": -1, "num_train_epochs": 1}, 3),
        ({"max_steps": -1, "num_train_epochs": 2}, 5),
        ({"max_steps": -1, "num_train_epochs": 2, "num_generations": 4}, 10),
        ({"max_steps": -1, "num_train_epochs": 0.1}, 1),
    ],
)
def test_rollouts_are_counted_whole_by_steps_or_until_every_prompt_was_asked(
    opened: Any, keys: dict[str, Any], rollouts: int
) -> None:
    """A rollout holds 8 answers, which are two optimiser steps of 4 in each of four passes; there are 10 prompts."""
    config, *_ = opened(QUESTIONS, **keys)
    assert num_rollouts(10, config) == rollouts
    assert len(schedule(ROWS, config)) == rollouts * 8 // config.num_generations


# ---- Drawing ----------------------------------------------------------------------------------------------------


def at(step: int) -> Any:
    return SimpleNamespace(state=SimpleNamespace(global_step=step), _log_metric=lambda name, value: None)


def test_a_rollout_draws_so_many_answers_in_a_row_to_each_prompt_and_others_at_another_step(opened: Any) -> None:
    config, *_ = opened(QUESTIONS, num_generations=4)
    policy = loading.load_base(config.model)
    policy.model.train()
    prompts = [[message.model_dump() for message in row.prompt] for row in ROWS[:2] for _ in range(4)]

    def rollout(asked: Any, step: int) -> Any:
        return Sampler(config, policy)(asked, at(step))

    drawn = rollout(prompts, 0)
    assert policy.model.training, "what was being trained goes on being trained"
    expected = [encode_prompt(policy.tokenizer, row.prompt) for row in ROWS[:2] for _ in range(4)]
    assert drawn["prompt_ids"] == expected
    answers = [tuple(ids) for ids in drawn["completion_ids"]]
    assert len(set(answers)) == 8 and all(1 <= len(ids) <= config.max_new_tokens for ids in answers)
    assert rollout(prompts, 0) == drawn
    again = rollout(prompts, 8)["completion_ids"]
    assert not set(map(tuple, again)) & set(answers)
    one_alone = rollout(prompts[4:], 0)["completion_ids"]
    assert one_alone == drawn["completion_ids"][4:], "who else is asked changes nothing"


@pytest.mark.parametrize("masks", list(permutations([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]])))
def test_rloo_trains_no_token_that_was_forced_in_any_of_equal_answers(masks: tuple[list[int], ...]) -> None:
    rollout = {
        "prompt_ids": [[3]] * 4,
        "completion_ids": [[5, 6, 7, 8]] * 3 + [[5, 6, 7]],
        "env_mask": [*masks, [1] * 3],
    }

    def read(model: Any, input_ids: torch.Tensor, mask: torch.Tensor, width: int) -> tuple[torch.Tensor, None]:
        return torch.full((len(input_ids), width), -1.0), None

    trainer = SimpleNamespace(_get_per_token_logps_and_entropies=read)
    rlhf.align.grpo_rloo._draw_by(lambda prompts, trainer: rollout, trainer)  # type: ignore[arg-type]
    trainer._tokenize_prompts([])
    tokens = torch.tensor([[3, *ids] for ids in [[5, 6, 7, 8]] * 3 + [[5, 6, 7, 0]]])
    logps, _ = trainer._get_per_token_logps_and_entropies(None, tokens, tokens != 0, 4)
    assert (logps != 0).tolist() == [[False, False, False, True]] * 3 + [[True, True, True, False]]


# ---- The best step ----------------------------------------------------------------------------------------------


def found(*rows: tuple[float, float]) -> dict[int, Evaluation]:
    return {4 * i: Evaluation(step=4 * i, reward=reward, kl=kl) for i, (reward, kl) in enumerate(rows)}


@pytest.mark.parametrize(
    ("rows", "budget", "step"),
    [
        ([(0.1, 0.0), (0.5, 1.0), (0.9, 3.0)], None, 8),
        ([(0.1, 0.0), (0.5, 1.0), (0.9, 3.0)], 2.0, 4),
        ([(0.1, 0.0), (0.5, 1.0), (0.9, 3.0)], 3.0, 8),
        ([(0.1, 0.0), (0.5, 1.0), (0.9, 3.0)], 0.5, None),
        ([(0.1, 0.0), (0.9, 1.0), (0.5, 3.0)], None, 4),
        ([(0.1, 0.0), (0.5, 1.0), (0.5, 0.2)], None, 4),
        ([(0.9, 0.0), (0.1, 1.0), (0.2, 1.0)], None, 8),
        ([(0.9, 0.0)], None, None),
        ([], 1.0, None),
    ],
)
def test_the_best_step_has_the_highest_reward_within_the_budget_and_the_first_wins_a_tie(
    rows: list[tuple[float, float]], budget: float | None, step: int | None
) -> None:
    assert best_step(found(*rows), budget) == step


def ending(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Pays for length, so that the answers of a step can be told by their reward."""
    return [float(len(ids)) for ids in completion_ids]


def test_a_step_is_judged_by_its_answers_and_by_how_far_it_is_from_the_sft_policy(opened: Any) -> None:
    config, stage, _ = opened(QUESTIONS)
    policy, sft = loading.load_base(config.model), loading.load_base(config.model)
    rewards = WeightedRewards({"f": ending}, {"f": 1.0})
    judge = EvaluateSteps(config, stage, policy, ROWS, rewards, lambda *asked: logps_of(sft, *asked))
    judge.evaluate(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.2)
    judge.evaluate(8)
    judge.evaluate(4)
    rows = evaluations(stage)
    assert list(rows) == [0, 4, 8]
    assert rows[0].kl == pytest.approx(0, abs=1e-4)
    assert rows[8].kl > 0.5
    assert rows[4] == rows[8].model_copy(update={"step": 4}), "all steps draw with the same random numbers"


def test_a_step_of_which_no_reward_has_an_opinion_is_an_error(opened: Any) -> None:
    config, stage, _ = opened(QUESTIONS)
    rewards = WeightedRewards({"f": lambda prompts, **_: [None] * len(prompts)}, {"f": 1.0})
    judge = EvaluateSteps(
        config, stage, loading.load_base(config.model), ROWS, rewards, lambda prompts, answers: [0.0] * len(answers)
    )
    with pytest.raises(DataError) as caught:
        judge.evaluate(0)
    assert str(caught.value) == (
        "align.rewards: none of them has an opinion on any of the prompts that choose the step"
    )


@pytest.fixture
def trained(opened: Any) -> Callable[..., Any]:
    """(config, stage, model) of a training whose step N left an adapter that is N everywhere; the model's is 99."""

    def make_steps(*rows: tuple[float, float], **keys: Any) -> Any:
        config, stage, _ = opened(QUESTIONS, **keys)
        base = loading.load_base(config.model).model
        model: Any = get_peft_model(base, adapters.adapter(config, base, TaskType.CAUSAL_LM))
        for step, row in found(*rows).items():
            stage.log({"step": step, "eval/reward": row.reward, "eval/kl": row.kl})
            fill(model, step)
            adapters.save_adapter(model, stage.dir / adapters.STEPS / f"step-{step}")
        fill(model, 99)
        return config, stage, model

    return make_steps


def fill(model: Any, value: float) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.fill_(value)


def values(model: Any) -> set[float]:
    return {float(x) for name, weight in model.named_parameters() if "lora_" in name for x in weight.detach().flatten()}


def test_the_best_step_becomes_the_policy(trained: Any) -> None:
    config, stage, model = trained((0.1, 0.0), (0.9, 1.0), (0.5, 3.0))
    assert choose_step(config, stage, model, last=8) == 4
    assert values(model) == {4.0} and stage.findings == []


def test_where_no_step_is_within_the_budget_the_nearest_is_taken_and_told(trained: Any) -> None:
    config, stage, model = trained((0.1, 0.0), (0.5, 2.0), (0.9, 1.5), (0.9, 3.0), kl_budget=1.0)
    assert choose_step(config, stage, model, last=12) == 8
    assert values(model) == {8.0}
    (finding,) = stage.findings
    assert (finding.level, finding.code, finding.message) == (
        "warn",
        "no_step_within_budget",
        "no kept step is within kl_budget, 1: step 8 is nearest, at 1.50 nats",
    )


def test_the_last_step_is_the_result_where_none_was_looked_at(trained: Any) -> None:
    for rows in ((), ((0.5, 0.0),)):
        config, stage, model = trained(*rows)
        assert choose_step(config, stage, model, last=12) == 12
        assert values(model) == {99.0}


def test_the_second_reward_model_chooses_where_there_is_one() -> None:
    rows = found((0.1, 0.0), (0.5, 1.0), (0.9, 3.0))
    second = {step: row.model_copy(update={"second_reward": 1.0 - row.reward}) for step, row in rows.items()}
    assert (best_step(rows, None), best_step(second, None)) == (8, 4)
