"""What the online algorithms share: whom they ask, how answers are drawn, and which step is the best.

Everything that is drawn is a function of the seed and of how far the training is, and of nothing else: a run that was
killed and goes on draws what it would have drawn, on one process or on several.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from peft import load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase, TrainerCallback

from rlhf import guards
from rlhf.align_schema import Evaluation, KLPrice, OnlineReport, RolloutFigures
from rlhf.checks import Check, load_check
from rlhf.config import GRPOConfig, OnlineConfig, PPOConfig, RLOOConfig
from rlhf.rewards import WeightedRewards, make_rewards, normalisation
from trueup import training
from trueup.chat import encode_prompt
from trueup.console import say
from trueup.encoding import Refused, encode_rows
from trueup.errors import DataError
from trueup.formats import read_prompts
from trueup.models import Loaded, load_reward_model
from trueup.records import (
    Candidate,
    CandidateSet,
    Dropped,
    Message,
    Prompt,
    is_for_judge,
    is_heldout,
    prompt_id,
    read_rows,
)
from trueup.reports import Normalisation, RewardCards, SampledAnswers
from trueup.runs import FinishedStage, StageRun
from trueup.sampling import Decoding, completion_logps, sample, score

# ---- Whom to ask ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A prompt to train on, and the check that verifies its answers, if one does."""

    prompt: list[Message]
    category: str | None = None
    check: int = -1
    """Index into the config's checks."""
    check_row: int = -1


@dataclass(frozen=True)
class Prompts:
    train: list[Asked]
    evaluation: list[Asked]
    """Kept from training, to choose the best step by; not held out, so that the comparison stays untouched."""
    checks: list[Check]


def choose_prompts(config: OnlineConfig, stage: StageRun, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts that may be trained on and leave room for an answer; what is left out is counted. One that cannot be
    asked as it reads is refused by file and line, or left out where bad rows are."""
    checks = [load_check(check.kind, check.path, check.limit, config.seed) for check in config.checks]
    dropped = {n: Dropped() for n in range(-1, len(checks))}  # by index of the check; -1: prompts of none
    # Checks first: of a prompt that comes twice, the row whose answers can be verified stays.
    read = {n: check.prompts for n, check in enumerate(checks)} | {-1: _read(config, stage, dropped[-1])}
    known: set[str] = set()
    rows: list[Asked] = []
    refused = Refused()
    for n, prompts in read.items():
        allowed = _allowed(prompts, config, known, dropped[n])
        encoded = encode_rows(
            [prompts[i] for i in allowed.values()],
            lambda row, told: len(encode_prompt(tokenizer, row.prompt, told)),
            refused,
            config.on_bad_rows if n < 0 and config.prompts else "refuse",
            dropped[n],
        )
        for row, length in encoded:
            if length + config.max_new_tokens > config.max_length:
                dropped[n].add("no room for max_new_tokens within max_length")
            elif n < 0:
                rows.append(Asked(row.prompt, row.category))
            else:
                rows.append(Asked(row.prompt, checks[n].kind, n, allowed[row.prompt_id]))
    refused.stop()
    random.Random(config.seed).shuffle(rows)
    evaluation, train = rows[: config.eval_prompts], rows[config.eval_prompts :]
    used, total = Counter(row.check for row in rows), Dropped(sum((one.counts for one in dropped.values()), Counter()))
    # What is in the first files; of a reward's no row is asked, and PPO counts those of its demonstrations itself.
    holds = [*([-1] if config.prompts else []), *range(len(checks))]
    for path, n in zip_longest(OnlineConfig.input_paths(config), holds):
        stage.add_input(path, used[n], dropped.get(n))
    if config.prompts is None:
        stage.find("info", "dropped", f"prompts of the sample stage: {used[-1]} used; left out: {dropped[-1]}")
    if len(train) < config.rollout_batch_size // config.num_generations:
        raise DataError(
            f"align: {len(train)} prompts are left to train on, and a rollout asks "
            f"{config.rollout_batch_size // config.num_generations}: lower rollout_batch_size or eval_prompts, or give "
            f"more prompts (left out: {total})"
        )
    say(f"{'prompts':<12} {len(train)} to train on, {len(evaluation)} to choose the step by; left out: {total}")
    return Prompts(train, evaluation, checks)


def _allowed(prompts: Sequence[Prompt], config: OnlineConfig, known: set[str], left_out: Dropped) -> dict[str, int]:
    """Where each prompt stands that may be trained on, by its id; `known` are those that stand elsewhere already."""
    allowed: dict[str, int] = {}
    for i, row in enumerate(prompts):
        if row.prompt_id in known:
            left_out.add("duplicate")
        elif is_heldout(row.prompt, config.split):
            left_out.add("held out")
        elif is_for_judge(row.prompt, config.split):
            left_out.add("for the second reward model")
        else:
            known.add(row.prompt_id)
            allowed[row.prompt_id] = i
    return allowed


def _read(config: OnlineConfig, stage: StageRun, dropped: Dropped) -> list[Prompt]:
    if config.prompts is not None:
        return read_prompts(config.prompts, dropped, config.on_bad_rows, config.ignore_columns)
    sampled = next(parent for parent in stage.parents if parent.stage == "sample")
    rows = read_rows(sampled.dir / "candidates.jsonl", CandidateSet)
    return [Prompt(prompt=row.prompt, category=row.category).model_copy(update={"where": row.where}) for row in rows]


def schedule(rows: Sequence[Asked], config: OnlineConfig) -> Dataset:
    """The prompts of every rollout, in the order in which they are asked: each pass over them in an order of its own.

    Laid out whole, so that going on after an interruption needs no state of a sampler.
    """
    per_rollout = config.rollout_batch_size // config.num_generations
    asked: list[Asked] = []
    for epoch in range(math.ceil(num_rollouts(len(rows), config) * per_rollout / len(rows))):
        order = list(rows)
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        asked += order
    return Dataset.from_list(
        [
            {
                "prompt": [message.model_dump() for message in row.prompt],
                "prompt_id": prompt_id(row.prompt),
                "category": row.category,
                "check": row.check,
                "check_row": row.check_row,
            }
            for row in asked[: num_rollouts(len(rows), config) * per_rollout]
        ]
    )


def schedule_of_one(config: OnlineConfig) -> Dataset:
    """A schedule whose one prompt stands for all (trueup.trial)."""
    config = config.model_copy(update={"max_steps": config.updates_per_rollout})
    return schedule([Asked([Message(role="user", content="a")])], config)


def num_rollouts(prompts: int, config: OnlineConfig) -> int:
    """Rollouts until `max_steps`, or until every prompt was asked `num_train_epochs` times, in whole rollouts."""
    if config.max_steps > 0:
        return math.ceil(config.max_steps / config.updates_per_rollout)
    return math.ceil(config.num_train_epochs * prompts * config.num_generations / config.rollout_batch_size)


def online_arguments(config: OnlineConfig, stage: StageRun, policy: Loaded, asked: Dataset) -> dict[str, Any]:
    """Arguments that TRL's GRPO and RLOO configs, and PPO's, take from ours.

    asked  the schedule: all prompts of the training
    """
    updates = config.updates_per_rollout
    arguments = training.trainer_arguments(config, stage, policy, [config.max_length])
    del arguments["max_length"]
    return arguments | {
        "num_train_epochs": 1,  # the schedule is the whole training
        "max_steps": len(asked) * config.num_generations // config.rollout_batch_size * updates,
        "save_steps": math.ceil(config.save_steps / updates) * updates,
        "shuffle_dataset": False,
        "disable_dropout": True,
        "num_generations": config.num_generations,
        "generation_batch_size": config.rollout_batch_size,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "remove_unused_columns": False,
    }


# ---- Drawing answers --------------------------------------------------------------------------------------------


class Sampler:
    """TRL's `rollout_func`: draws the answers of a rollout with `trueup.sampling`.

    The seed of a rollout follows from the campaign's and the step, so that a prompt that comes again is answered anew.
    """

    def __init__(self, config: OnlineConfig, policy: Loaded):
        self.config, self.policy = config, policy

    def __call__(self, prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        k = self.config.num_generations
        asked = [[Message(**message) for message in prompt] for prompt in prompts[::k]]  # each comes k times in a row
        decoding = Decoding(
            self.config.max_new_tokens,
            self.config.temperature,
            seed=self.config.seed * 1_000_003 + trainer.state.global_step + 1,
        )
        answers = draw(self.policy, asked, decoding, k)
        encoded = [encode_prompt(self.policy.tokenizer, prompt) for prompt in asked for _ in range(k)]
        return {
            "prompt_ids": encoded,
            "completion_ids": [answer.token_ids for row in answers for answer in row],
            "logprobs": None,  # computed by the trainer, in the same way as during the update
        }


def draw(policy: Loaded, prompts: Sequence[list[Message]], decoding: Decoding, k: int) -> list[list[Candidate]]:
    """k answers to each prompt, from a model that is being trained."""
    was_training = policy.model.training
    policy.model.eval()  # checkpointing of activations, which is for training, forbids the cache
    try:
        return sample(policy, prompts, decoding, k, batch_size=64)
    finally:
        policy.model.train(was_training)


# ---- The best step ----------------------------------------------------------------------------------------------


class EvaluateSteps(TrainerCallback):
    """At the kept steps and at the end the policy answers the prompts that are kept for it; adapters are saved beside.

    All steps draw with the same random numbers, so that they differ by what they learnt.
    """

    def __init__(
        self,
        config: OnlineConfig,
        stage: StageRun,
        policy: Loaded,
        prompts: Sequence[Asked],
        rewards: WeightedRewards,
        reference_logps: Any,
        second: WeightedRewards | None = None,
    ):
        """second  what the best step is chosen by in place of `rewards`, which pay: `second_rewards`"""
        self.config, self.stage, self.policy, self.prompts = config, stage, policy, prompts
        self.rewards, self.reference_logps, self.second = rewards, reference_logps, second

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.evaluate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        kept = state.global_step in training.kept_steps(state.max_steps, self.config.keep_steps)
        last = state.global_step == state.max_steps or control.should_training_stop
        if kept or last:
            training.save_adapter(model, self.stage.dir / training.STEPS / f"step-{state.global_step}")
            self.evaluate(state.global_step)

    def evaluate(self, step: int) -> None:
        """One answer to each of the prompts: mean reward and KL in nats per sequence, as a row of metrics.jsonl."""
        if not self.prompts:
            return
        prompts = [row.prompt for row in self.prompts]
        decoding = Decoding(self.config.max_new_tokens, self.config.temperature, seed=self.config.seed)
        answers = [row[0] for row in draw(self.policy, prompts, decoding, 1)]
        told = {
            "prompts": [[message.model_dump() for message in prompt] for prompt in prompts],
            "completions": [[{"role": "assistant", "content": answer.text}] for answer in answers],
            "completion_ids": [answer.token_ids for answer in answers],
            "check": [row.check for row in self.prompts],
            "check_row": [row.check_row for row in self.prompts],
            "category": [row.category for row in self.prompts],
            "prompt_id": [prompt_id(prompt) for prompt in prompts],
        }
        ids = [answer.token_ids for answer in answers]
        reference = self.reference_logps(prompts, ids)
        kl = [(answer.logp or 0.0) - logp for answer, logp in zip(answers, reference, strict=True)]
        row = {"step": step, "eval/reward": _mean_paid(self.rewards, told), "eval/kl": sum(kl) / len(kl)}
        if self.second:
            row["eval/second_reward"] = _mean_paid(self.second, told)
        self.stage.log(row)
        by_second = f" (the second reward model: {row['eval/second_reward']:.2f})" if self.second else ""
        say(
            f"{f'step {step}':<12} reward {row['eval/reward']:.2f}{by_second}, KL {row['eval/kl']:.2f} on the prompts "
            "kept for it"
        )


def _mean_paid(rewards: WeightedRewards, told: dict[str, Any]) -> float:
    rewards(**told)
    paid = [total for total in rewards.totals if not math.isnan(total)]
    if not paid:
        raise DataError("align.rewards: none of them has an opinion on any of the prompts that choose the step")
    return sum(paid) / len(paid)


def second_rewards(
    config: OnlineConfig, reward: FinishedStage | None, checks: Sequence[Check], eos_token_id: int
) -> WeightedRewards | None:
    """`config.rewards` with the second reward model (split.judge_fraction) in place of the one that pays; None where
    there is none.

    Among the steps of one training the reward model that pays prefers those that found its mistakes. The second one was
    trained on other prompts, and does not share them.
    """
    directory = reward.dir / "judge" / "model" if reward else None
    if not config.eval_prompts or directory is None or not directory.is_dir():
        return None
    assert reward is not None
    mean, std = normalisation(reward.report(RewardCards).judge)

    def scores(prompts: Any, completions: Any) -> list[float]:
        # Loaded for each of the few evaluations: beside the roles of a training there may be no room for it.
        model = load_reward_model(directory, config.model)
        model.model.eval()
        return [(value - mean) / std for value in score(model, prompts, completions)]

    say(f"{'best step':<12} chosen by the second reward model, trained on other prompts than the one that pays")
    return make_rewards(config, scores, checks, eos_token_id)


def logps_of(policy: Loaded, prompts: Sequence[list[Message]], ids: Sequence[Sequence[int]]) -> list[float]:
    """log pi(answer | prompt) at temperature 1 of a model that is being trained."""
    was_training = policy.model.training
    policy.model.eval()
    try:
        return completion_logps(policy, prompts, ids)
    finally:
        policy.model.train(was_training)


def evaluations(stage: StageRun) -> dict[int, Evaluation]:
    """{step: its evaluation}, in order."""
    rows = training.read_metrics(stage.dir / "metrics.jsonl")
    steps = [
        Evaluation(
            step=row["step"],
            reward=row["eval/reward"],
            kl=row["eval/kl"],
            second_reward=row.get("eval/second_reward"),
        )
        for row in rows
        if "eval/reward" in row
    ]
    return {row.step: row for row in sorted(steps, key=lambda row: row.step)}


def chosen_by(evaluated: dict[int, Evaluation]) -> Literal["reward", "second_reward"]:
    """The figure that steps are chosen by: the second reward model's where there is one."""
    return "second_reward" if any(row.second_reward is not None for row in evaluated.values()) else "reward"


def best_step(evaluated: dict[int, Evaluation], kl_budget: float | None) -> int | None:
    """The step with the highest reward (`chosen_by`) within the KL budget; the first of equals; None if none is.

    Step 0, the SFT policy, does not stand for election: what to do when nothing beats it is the verdict's to say.
    """
    figure = chosen_by(evaluated)
    allowed = {
        step: getattr(row, figure)
        for step, row in evaluated.items()
        if step > 0 and (kl_budget is None or row.kl <= kl_budget)
    }
    return max(allowed, key=lambda step: (allowed[step], -step), default=None)


def choose_step(config: OnlineConfig, stage: StageRun, model: Any, last: int) -> int:
    """Put the best step's adapter into the trained model and return the step.

    It is the last one where nothing tells, or where every weight is trained and no adapter was kept.
    """
    evaluated = evaluations(stage)
    later = [step for step in evaluated if step > 0]
    if config.full_finetuning or not later:
        return last
    best = best_step(evaluated, config.kl_budget)
    if best is None:
        best = min(later, key=lambda step: evaluated[step].kl)
        kl = evaluated[best].kl
        stage.find(
            "warn",
            "no_step_within_budget",
            f"no kept step is within kl_budget, {config.kl_budget:g}: step {best} is nearest, at {kl:.2f} nats",
        )
    weights = load_peft_weights(str(stage.dir / training.STEPS / f"step-{best}"))
    set_peft_model_state_dict(model, weights, adapter_name="default")
    row = evaluated[best]
    say(f"{'best step':<12} {best} of {last}: reward {row.reward:.2f}, KL {row.kl:.2f}")
    return best


def conclude(
    config: PPOConfig | GRPOConfig | RLOOConfig,
    stage: StageRun,
    model: Any,
    last: int,
    rewards: WeightedRewards,
    spread: tuple[float, float],
    history: Sequence[guards.Rollout] = (),
    kl_coef: KLPrice | None = None,
) -> OnlineReport:
    """Put the best step's adapter into the trained model, find who is at fault if none beat the SFT policy, and return
    what the reports of all online algorithms hold.

    last     steps trained
    spread   mean and standard deviation that the reward model counts in
    history  PPO's rollouts
    kl_coef  PPO's
    """
    chosen = choose_step(config, stage, model, last)
    evaluated = evaluations(stage)
    parents = {parent.stage: parent for parent in stage.parents}
    sampled = parents["sample"].report(SampledAnswers) if "sample" in parents else None
    reward_verdict = parents["reward"].manifest.verdict if "reward" in parents else None
    finding = guards.whose_fault(history, evaluated, sampled, reward_verdict)
    stage.findings += [finding] if finding else []
    stage.facts["steps"] = chosen
    mean, std = spread
    return OnlineReport(
        algorithm=config.algorithm,
        rewards=rewards.weights,
        normalisation=Normalisation(mean=mean, std=std),
        rollouts=[RolloutFigures(**row) for row in history],
        evaluations=list(evaluated.values()),
        chosen_step=chosen,
        chosen_by=chosen_by(evaluated),
        steps_trained=last,
        kl_coef=kl_coef,
    )


def write_samples(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append to samples.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
