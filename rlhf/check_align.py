"""What `trueup check` finds in the keys of PPO, GRPO and RLOO: their rewards, and the prompts that they train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.checks import prompts_of
from rlhf.config import OnlineConfig, PPOConfig
from rlhf.rewards import load_function
from trueup.campaign import why_stale
from trueup.check import answered, read_file
from trueup.errors import DataError
from trueup.formats import read_demonstrations, read_prompts
from trueup.records import Prompt, is_for_judge, is_heldout, touches_heldout
from trueup.runs import find_stage


def check(
    config: OnlineConfig,
    stages: Mapping[str, Any],
    sampled: list[Prompt] | None,
    problems: list[str],
    notes: list[str],
) -> list[Prompt]:
    """What the rewards need, and the prompts that will be trained on, which are returned."""
    for name in config.rewards:
        if ":" in name:
            try:
                load_function(name)
            except DataError as error:
                problems.append(f"align.{error}")
    if "reward_model" in config.rewards:
        _check_reward_model(config, stages["reward"], problems)
    for path in config.ptx_data if isinstance(config, PPOConfig) else []:
        rows = read_file("align.ptx_data", path, read_demonstrations, config, problems, notes)
        if rows and all(touches_heldout(row, config.split) for row in rows):
            problems.append(f"align.ptx_data: {path}: all {len(rows)} demonstrations are held out")

    prompts = sampled
    if config.prompts is not None:
        prompts = read_file("align.prompts", config.prompts, read_prompts, config, problems, notes)
    verified = prompts_of(config, problems)
    if prompts is None:
        return []
    if config.prompts is None:
        prompts = answered(stages["sample"], prompts)
    kept = {
        row.prompt_id: row
        for row in [
            *prompts,
            *(Prompt(prompt=prompt).model_copy(update={"where": "align.checks"}) for prompt in verified),
        ]
        if not is_heldout(row.prompt, config.split) and not is_for_judge(row.prompt, config.split)
    }
    _check_enough(config, len(kept), problems)
    return list(kept.values())


def _check_enough(align: OnlineConfig, left: int, problems: list[str]) -> None:
    asks = align.rollout_batch_size // align.num_generations
    if left < align.eval_prompts + asks:
        problems.append(
            f"align: {left} prompts may be trained on; {align.eval_prompts} of them choose the step, and a rollout "
            f"asks {asks}: lower rollout_batch_size or eval_prompts, or give more prompts (align.prompts)"
        )


def _check_reward_model(align: OnlineConfig, reward: Any, problems: list[str]) -> None:
    """What would make the align stage refuse it, as far as that is known."""
    if isinstance(align, PPOConfig) and reward.full_finetuning and not align.full_finetuning:
        problems.append(
            "align.full_finetuning: false, but the reward model is trained whole (reward.full_finetuning) and leaves "
            "no adapter that could share the policy's base: set both, or neither"
        )
    made = find_stage(reward.run_dir, "reward")
    if made is not None and made.manifest.verdict.status == "fail" and why_stale(reward) is None:
        problems.append(
            f"align.rewards: reward_model: the verdict of {made.dir} is fail, and it will be refused: mend it, or "
            "reward with something else"
        )
