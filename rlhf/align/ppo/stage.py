"""Proximal policy optimisation: the policy writes, the reward model pays, a critic says what was to be expected.

Reads   sft/model, from which policy and reference start (or the last round's align/model, see `align.start`); prompts,
        or those of candidates/; reward/ where the reward model pays, from which the critic starts too if both are of
        one base.
Writes  align/: model/ (the best step, adapter merged), adapter/ and steps/step-N/ (relative to the reference),
        metrics.jsonl, samples.jsonl, report.json, report.html, manifest.json.
Source  Ouyang et al. 2022, https://arxiv.org/abs/2203.02155; details as Huang et al. 2024 reproduce them,
        https://arxiv.org/abs/2403.17031. Rollouts, checkpoints and processes by trl.GRPOTrainer.

One frozen base in memory plays all four roles (`rlhf.align.ppo.roles`); a reward model of another base stays a model of
its own. While it runs the stage checks that policy and reference are one at step 0, that ratios are 1 before the first
update from a rollout, and that nothing frozen changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.align import online
from rlhf.align.best_step import EvaluateSteps, conclude, second_rewards
from rlhf.align.config.online import PPOConfig
from rlhf.align.ppo import memory
from rlhf.align.ppo.roles import Roles, SeparateModels, SharedBase
from rlhf.align.prompts import schedule, schedule_of_one
from rlhf.align.rewards import ModelRewards, Scorer, WeightedRewards, make_rewards, normalisation, scorer
from rlhf.align.rollouts import Sampler, logps_of, online_arguments
from rlhf.align.schema import KLPrice
from trueup.artifacts.reports import Normalisation, RewardCard
from trueup.console import say
from trueup.data.duplicates.rows import NEAR_HELDOUT
from trueup.data.duplicates.training import near_heldout
from trueup.data.formats import read_demonstrations
from trueup.data.records import Dropped, Message
from trueup.data.split import touches_heldout
from trueup.errors import DataError
from trueup.models.chat import IGNORED, Encoded, answer_text
from trueup.models.encoding import Fitting, RefusedRows, encode_demonstrations
from trueup.models.heads import load_ensemble
from trueup.models.loading import Loaded
from trueup.models.templates.ends import turn_ends
from trueup.models.tensors import pad_right
from trueup.runs import FinishedStage, StageRun
from trueup.training import adapters, batches, loop
from trueup.training.arguments import build_arguments


def run(config: PPOConfig) -> Path:
    # 1. Inputs -------------------------------------------------------------------------------------------------------
    stage, start, reward, policy, prompts, on_one_base = online.begin(config)

    # 2. Roles --------------------------------------------------------------------------------------------------------
    roles = cast_roles(config, policy, start, reward, on_one_base)
    say(f"{'roles':<12} {describe(roles)}; {policy.placement.reason}")
    rows = batches.rows_per_forward(config, policy, [config.max_length])
    config = config.model_copy(update={"per_device_train_batch_size": rows})  # on a GPU it was measured; once is enough
    prediction = memory.predict(config, roles)
    say(f"{'memory':<12} {prediction.describe()}")
    if (warning := prediction.warning()) is not None:
        say(f"{'memory':<12} {warning.message}")  # now, since a run that dies for lack of memory shows no verdict
        stage.findings.append(warning)
    memory.spare_time_or_memory(prediction, policy.placement.device)
    units = normalisation(reward.report(RewardCard) if reward else None)
    roles.scale_critic(1 / units.std)
    text_of = partial(answer_text, policy.tokenizer)
    rewards = make_rewards(
        config, scores(roles, units, config.reward_caution), prompts.checks, turn_ends(policy.tokenizer), text_of
    )
    second = second_rewards(config, reward, prompts.checks, turn_ends(policy.tokenizer))

    # 3. Train --------------------------------------------------------------------------------------------------------
    with loop.scored_completions_only():
        trainer = build_trainer(config, stage, roles, rewards, schedule(prompts.train, config))
        trainer.add_callback(
            EvaluateSteps(config, stage, policy, prompts.evaluation, rewards, reference_logps(roles, policy), second)
        )
        loop.train(trainer, stage)

    # 4. The best step ------------------------------------------------------------------------------------------------
    stage.findings += trainer.guard_findings.values()
    report = conclude(
        config,
        stage,
        roles.model,
        trainer.state.global_step,
        rewards,
        units,
        history=trainer.history,
        kl_coef=KLPrice(first=config.kl_coef, last=trainer.kl_coef),
    )
    first, last = trainer.history[0], trainer.history[-1]
    for name in ("scores", "kl", "length", "entropy", "eos_rate"):
        say(f"{name:<12} {getattr(first, name):8.2f} -> {getattr(last, name):8.2f}")

    # 5. Save ---------------------------------------------------------------------------------------------------------
    adapters.save_adapter(roles.model, stage.dir / adapters.ADAPTER)
    return online.save(stage, roles.merged(stage, online.proof_rows(policy, prompts)), report)


# ---- Roles and rewards ------------------------------------------------------------------------------------------


def cast_roles(
    config: PPOConfig, policy: Loaded, start: FinishedStage, reward: FinishedStage | None, on_one_base: bool
) -> Roles:
    other = online.load_reward_model(config, reward) if reward and not on_one_base else None
    torch.manual_seed(config.seed)  # a fresh adapter's first matrix is drawn at random
    if config.full_finetuning:
        critic = reward.dir / "model" if reward and on_one_base else None
        return SeparateModels(config, policy, start.dir / "model", critic, other)
    shared = SharedBase(config, policy, reward.dir / adapters.ADAPTER if reward and on_one_base else None, other)
    if reward and on_one_base:
        load_ensemble(shared.model.get_base_model(), reward.dir / "model")
    return shared


def describe(roles: Roles) -> str:
    kind = "one base" if isinstance(roles, SharedBase) else "a model each"
    critic = "from the reward model" if roles.critic_from_reward else "fresh: no reward model pays"
    if roles.reward and not roles.critic_from_reward:
        weights = sum(weight.numel() for weight in roles.reward.model.parameters())
        kind += f", and the reward model by itself with {weights:,} weights"
        critic = (
            "fresh on the policy's base: the reward model reads other tokens, or hidden states of another depth, or "
            "comes of another policy"
        )
    counts = [sum(weight.numel() for weight in roles.parameters(role).values()) for role in ("policy", "critic")]
    return f"{kind}; policy {counts[0]:,} and critic {counts[1]:,} weights trained, critic {critic}"


def scores(roles: Roles, units: Normalisation, caution: float = 0.0) -> Scorer | None:
    """The reward model as a function, in standard deviations from the mean of held-out answers; `caution` as in
    `rlhf.align.rewards.scorer`."""
    if roles.reward:
        return scorer(roles.reward, units, caution)
    if not roles.critic_from_reward:
        return None

    def by_adapter(prompts: Any, answers: Any) -> ModelRewards:
        with roles.playing("reward") as model:
            # Under an adapter, the base itself reads; its layers have the reward model's adapter in them now.
            model = model.get_base_model()
            was_training = model.training
            model.eval()
            loaded = Loaded(model, roles.policy.tokenizer, roles.policy.placement)
            paid = scorer(loaded, units, caution)(prompts, answers)
            model.train(was_training)
        return paid

    return by_adapter


def reference_logps(roles: Roles, policy: Loaded) -> Callable[[Any, Any], list[float]]:
    def logps(prompts: Any, answers: Any) -> list[float]:
        with roles.playing("reference") as model:
            model = model.get_base_model() if isinstance(roles, SharedBase) else model
            return logps_of(Loaded(model, policy.tokenizer, policy.placement), prompts, answers)

    return logps


# ---- Training ---------------------------------------------------------------------------------------------------


def build_trainer(config: PPOConfig, stage: StageRun, roles: Roles, rewards: Any, dataset: Any) -> Any:
    """rlhf.align.ppo.trainer.PPOTrainer with arguments from the config."""
    from trl import GRPOConfig as TRLConfig

    from rlhf.align.ppo.trainer import PPOTrainer

    arguments = online_arguments(config, stage, roles.policy, dataset)
    arguments |= {
        "num_iterations": config.num_ppo_epochs,
        "beta": 0.0,  # our KL is in the reward
        "adam_epsilon": 1e-5,
        "ddp_find_unused_parameters": False,  # every weight gets a gradient from two passes and one backward
    }
    return PPOTrainer(
        config,
        stage,
        roles,
        rewards,
        demonstrations(config, stage, roles.policy) if config.ptx_coef else None,
        args=build_arguments(TRLConfig, arguments, config),
        train_dataset=dataset,
        processing_class=roles.policy.tokenizer,
        rollout_func=Sampler(config, roles.policy),
    )


def trial(config: PPOConfig, stage: StageRun, policy: Loaded) -> Any:
    """The trainer over a prompt that stands for all, with a fresh critic (`trueup.training.trial`)."""
    config = config.model_copy(update={"ptx_coef": 0.0, "full_finetuning": False})
    with torch.device("meta"):
        roles = SharedBase(config, policy, None)
    roles.fingerprint = lambda: 0  # type: ignore[method-assign]  # of weights, which are not there
    return build_trainer(config, stage, roles, WeightedRewards({}, {}), schedule_of_one(config))


def demonstrations(config: PPOConfig, stage: StageRun, policy: Loaded) -> Callable[[int, int], dict[str, Tensor]]:
    """Batches of demonstrations for ptx_coef, by the number of the micro-batch alone."""
    rows: list[Encoded] = []
    dialogues: list[list[Message]] = []
    refused = RefusedRows()
    for path in config.ptx_data:
        dropped = Dropped()
        file_rows = read_demonstrations(path, dropped, config.on_bad_rows, config.ignore_columns)
        near = near_heldout(file_rows, config.split)
        stage.leave_out_near(list(near.values()), "demonstrations")
        dropped.add(NEAR_HELDOUT, len(near))
        others = [row for i, row in enumerate(file_rows) if i not in near]
        train_rows = [row for row in others if not touches_heldout(row, config.split)]
        dropped.add("held out", len(others) - len(train_rows))
        encoded = encode_demonstrations(
            train_rows, policy.tokenizer, Fitting(config.max_length), refused, config.on_bad_rows, dropped
        )
        fitting = [part for one in encoded for part in one.parts]
        rows += [row for _, many in fitting for row in many]
        dialogues += [row.messages for row, _ in fitting]
        stage.add_input(path, len(fitting), dropped)
        say(f"{'ptx':<12} {path.name}: {len(fitting)} demonstrations; left out: {dropped}")
    refused.stop()
    for what, count in refused.changes.items():
        say(f"{'ptx':<12} {count} demonstrations {what}")
    if not rows:
        raise DataError("align.ptx_data: no demonstration is left to mix in")
    stage.trained_on(dialogues)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed)).tolist()

    def batch(number: int, size: int) -> dict[str, Tensor]:
        batch_rows = [rows[order[(number * size + i) % len(rows)]] for i in range(size)]
        tokens, mask = pad_right([row.input_ids for row in batch_rows], policy.tokenizer.pad_token_id)
        labels, _ = pad_right([row.labels for row in batch_rows], IGNORED)
        return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}

    return batch
