"""What `trueup check` finds in the keys of PPO, GRPO and RLOO: their rewards, and the files that they train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.align.config import OnlineConfig, PPOConfig
from rlhf.align.rewards import load_function
from rlhf.checks import verified_files
from trueup.campaign import why_stale
from trueup.check import ReadFile, read_file
from trueup.data.formats import read_demonstrations, read_prompts
from trueup.data.records import touches_heldout
from trueup.errors import DataError
from trueup.runs import find_stage


def check(config: OnlineConfig, stages: Mapping[str, Any], problems: list[str], notes: list[str]) -> list[ReadFile]:
    """What the rewards need, and the files of prompts and demonstrations that it trains on, which are returned."""
    for name in config.rewards:
        if ":" in name:
            try:
                load_function(name)
            except DataError as error:
                problems.append(f"align.{error}")
    if "reward_model" in config.rewards:
        _check_reward_model(config, stages["reward"], problems)
    files: list[ReadFile | None] = []
    for path in config.ptx_data if isinstance(config, PPOConfig) else []:
        file = read_file("align.ptx_data", path, read_demonstrations, config, problems, notes)
        if file and file.rows and all(touches_heldout(row, config.split) for row in file.rows):
            problems.append(f"align.ptx_data: {path}: all {len(file.rows)} demonstrations are held out")
        files.append(file)
    if config.prompts is not None:
        files.append(read_file("align.prompts", config.prompts, read_prompts, config, problems, notes))
    return [file for file in files if file] + verified_files("align", config.checks, config.seed, problems)


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
