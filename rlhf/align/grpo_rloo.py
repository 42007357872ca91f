"""GRPO and RLOO: each answer against its siblings, no critic. Prompts, rewards and the choice of the step are PPO's.

Reads   sft/model, from which policy and reference start (or the last round's align/model, see `align.start`); prompts,
        or those of candidates/; reward/ where the reward model pays.
Writes  align/: model/ (the best step, adapter merged), adapter/ and steps/step-N/ (relative to the reference),
        metrics.jsonl, report.json, report.html, manifest.json.
Source  Shao et al. 2024, https://arxiv.org/abs/2402.03300; Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740;
        trained by trl.GRPOTrainer and trl.RLOOTrainer, with answers that Trueup draws.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from torch import Tensor

from rlhf.align import online
from rlhf.align.best_step import EvaluateSteps, conclude, second_rewards
from rlhf.align.config.online import GRPOConfig, RLOOConfig
from rlhf.align.prompts import schedule, schedule_of_one
from rlhf.align.rewards import Conversation, WeightedRewards, make_rewards, normalisation
from rlhf.align.rollouts import Sampler, online_arguments, reference_logps
from trueup.artifacts.reports import RewardCard
from trueup.console import say
from trueup.models.chat import answer_text
from trueup.models.loading import Loaded
from trueup.models.templates.ends import turn_ends
from trueup.runs import StageRun
from trueup.training import adapters, loop
from trueup.training.arguments import build_arguments
from trueup.training.merging import merged


def run(config: GRPOConfig | RLOOConfig) -> Path:
    # 1. Inputs -------------------------------------------------------------------------------------------------------
    stage, start, reward, policy, prompts, _ = online.begin(config)
    say(f"{'policy':<12} from {config.start_title}, which is also the reference; {policy.placement.reason}")

    # 2. Rewards ------------------------------------------------------------------------------------------------------
    units = normalisation(reward.report(RewardCard) if reward else None)
    pays = online.scorer_of(config, reward, units) if reward else None
    text_of = partial(answer_text, policy.tokenizer)
    rewards = make_rewards(config, pays, prompts.checks, turn_ends(policy.tokenizer), text_of)

    # 3. Train --------------------------------------------------------------------------------------------------------
    with loop.scored_completions_only():
        trainer = build_trainer(config, stage, policy, rewards, schedule(prompts.train, config))
        policy.model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
        trainer.add_callback(
            EvaluateSteps(
                config,
                stage,
                policy,
                prompts.evaluation,
                rewards,
                reference_logps(config.model, policy, trainer.model, start),
                second_rewards(config, reward, prompts.checks, turn_ends(policy.tokenizer)),
            )
        )
        loop.train(trainer, stage)

    # 4. The best step ------------------------------------------------------------------------------------------------
    report = conclude(config, stage, trainer.model, trainer.state.global_step, rewards, units)

    # 5. Save ---------------------------------------------------------------------------------------------------------
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    policy.model = merged(trainer.model, stage, online.proof_rows(policy, prompts))
    return online.save(stage, policy, report)


def trial(config: GRPOConfig | RLOOConfig, stage: StageRun, policy: Loaded) -> Any:
    """The trainer over a prompt that stands for all (`trueup.training.trial`)."""
    return build_trainer(config, stage, policy, WeightedRewards({}, {}), schedule_of_one(config))


def build_trainer(
    config: GRPOConfig | RLOOConfig, stage: StageRun, policy: Loaded, rewards: WeightedRewards, dataset: Any
) -> Any:
    """trl.GRPOTrainer or trl.RLOOTrainer, with answers drawn by `trueup.models.sampling`."""
    import trl

    name = config.algorithm.upper()
    schema, trainer_class = getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")
    arguments = online_arguments(config, stage, policy, dataset)
    arguments |= {"num_iterations": config.num_iterations, "beta": config.beta}
    sampler = Sampler(config, policy)
    trainer = trainer_class(
        model=policy.model,
        reward_funcs=rewards,
        args=build_arguments(schema, arguments, config),
        train_dataset=dataset,
        processing_class=policy.tokenizer,
        peft_config=adapters.adapter(config, policy.model, TaskType.CAUSAL_LM),
        **({"rollout_func": sampler} if config.algorithm == "grpo" else {}),
    )
    if config.algorithm == "rloo":
        _draw_by(sampler, trainer)
    return trainer


def _draw_by(sampler: Sampler, trainer: Any) -> None:
    """Let a trl.RLOOTrainer, which has no `rollout_func` and no `env_mask`, draw by `sampler` and learn from what was
    drawn. Its own reading of prompts would take a text that spells a control token for one."""
    rollout: dict[str, Any] = {}
    drawn_of: dict[tuple[int, ...], list[int]] = {}

    def ask(prompts: list[Conversation]) -> tuple[list[list[int]], None, dict[str, object]]:
        rollout.update(sampler(prompts, trainer))
        drawn_of.clear()
        for ids, drawn in zip(map(tuple, rollout["completion_ids"]), rollout["env_mask"], strict=True):
            # An answer may come twice, its reasoning closed by the policy in one and by force in the other. Rows are
            # told by their tokens alone, so what was forced in any is taken for drawn in none.
            drawn_of[ids] = [both * one for both, one in zip(drawn_of.get(ids, drawn), drawn, strict=True)]
        return rollout["prompt_ids"], None, {}

    read = trainer._get_per_token_logps_and_entropies

    def read_drawn(model: Any, input_ids: Tensor, mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any) -> Any:
        """Log-probabilities (B, T), 0 where a token was not drawn: it then changes no ratio and no KL."""
        logps, *others = read(model, input_ids, mask, logits_to_keep, *args, **kwargs)
        answers = zip(input_ids[:, -logits_to_keep:], mask[:, -logits_to_keep:].bool(), strict=True)
        drawn = torch.zeros_like(logps)
        for row, (ids, answer_mask) in zip(drawn, answers, strict=True):
            if answer := tuple(ids[answer_mask].tolist()):  # mask_truncated_completions leaves nothing of some
                row[answer_mask] = row.new_tensor(drawn_of[answer])
        return logps * drawn, *others

    trainer._tokenize_prompts, trainer._generate_single_turn = ask, lambda *_: rollout["completion_ids"]
    trainer._get_per_token_logps_and_entropies = read_drawn
