"""What `trueup check` finds in the keys of alignment: rewards, and the pairs or prompts that it trains on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.align.config.labelled import LabelledConfig
from rlhf.align.config.online import PPOConfig
from rlhf.align.config.paid import PaidConfig
from rlhf.align.prompts import too_few_prompts
from rlhf.align.rewards import INSTEAD, NO_ENSEMBLE, NO_ENSEMBLE_IN_BASE, load_function
from rlhf.checks import verified_files
from trueup.campaign import why_stale
from trueup.checking.labels import check_signals
from trueup.checking.rows import TOO_MANY_DROPPED, ReadFile, Rows, check_pair_lengths, check_rubric, read_file
from trueup.config import Stages
from trueup.data.formats import read_demonstrations, read_prompts
from trueup.data.records import Prompt
from trueup.data.split import is_for_judge, is_heldout, touches_heldout
from trueup.errors import DataError
from trueup.models.heads import has_ensemble
from trueup.runs import find_stage


def check(config: PaidConfig, stages: Mapping[str, Any], problems: list[str], notes: list[str]) -> list[ReadFile]:
    """What the rewards need, and the files of prompts and demonstrations that it trains on, which are returned."""
    for name in config.rewards:
        if ":" in name:
            try:
                load_function(name)
            except DataError as error:
                problems.append(f"align.{error}")
    if "rubric" in config.rewards and config.rubric:
        check_rubric("align", config.rubric, problems)
    if "reward_model" in config.rewards:
        _check_reward_model(config, stages["reward"], problems)
    files: list[ReadFile | None] = []
    for path in config.ptx_data if isinstance(config, PPOConfig) else []:
        file = read_file("align.ptx_data", path, read_demonstrations, config, None, problems, notes)
        if file and file.rows and all(touches_heldout(row, config.split) for row in file.rows):
            problems.append(f"align.ptx_data: {path}: all {len(file.rows)} demonstrations are held out")
        files.append(file)
    if config.prompts is not None:
        files.append(read_file("align.prompts", config.prompts, read_prompts, config, config.seed, problems, notes))
    return [file for file in files if file] + verified_files(
        "align", config.checks, config.seed, problems, config.model.thinking
    )


def _check_reward_model(align: PaidConfig, reward: Any, problems: list[str]) -> None:
    """What would make the align stage refuse it, as far as that is known."""
    if isinstance(align, PPOConfig) and reward.full_finetuning and not (align.full_finetuning or reward.scorer):
        problems.append(
            "align.full_finetuning: false, but the reward model is trained whole (reward.full_finetuning) and leaves "
            "no adapter that could share the policy's base: set both, or neither"
        )
    caution = f"align.reward_caution: {align.reward_caution:g}, but "
    if align.reward_caution and reward.learning_rate and reward.ensemble == 1:
        problems.append(caution + NO_ENSEMBLE)
    if align.reward_caution and not reward.learning_rate and (folder := Path(reward.base.name)).is_dir():
        problems += [] if has_ensemble(folder) else [caution + NO_ENSEMBLE_IN_BASE]
    finished = find_stage(reward.run_dir, "reward")
    if align.on_failed_reward_model == "use" or finished is None or why_stale(reward) is not None:
        return
    if failure := finished.failure():
        problems.append(f"align.rewards: reward_model: {failure}, and it will be refused: {INSTEAD}")


# ---- Rows -------------------------------------------------------------------------------------------------------


def check_pairs(config: LabelledConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Whether the pairs fit `max_length`, and say what the stage learns."""
    check_signals(config, stages["label"], problems)
    check_pair_lengths("align", config.max_length, stages["label"].parents(), rows, problems, notes)


def check_prompts(config: PaidConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Whether enough prompts may be trained on, and an answer fits behind them."""
    prompts = _training_prompts(config, rows)
    if prompts is None:
        return
    lengths = rows.tokens(prompts)
    if beyond := sum(length + config.most_tokens > config.max_length for length in lengths):
        with_reasoning = (
            f" ({config.most_tokens - config.max_new_tokens} of them max_thinking_tokens)" * config.model.thinking
        )
        text = (
            f"align.max_new_tokens: {beyond} of {len(lengths)} prompts with {config.most_tokens} new tokens"
            f"{with_reasoning} are longer than max_length, {config.max_length}, and are left out"
        )
        (problems if beyond / len(lengths) > TOO_MANY_DROPPED else notes).append(text)
    if len(prompts) < config.eval_prompts + config.prompts_at_once:
        problems.append(too_few_prompts(config, f"{len(prompts)} prompts may be trained on"))


def _training_prompts(config: PaidConfig, rows: Rows) -> list[Prompt] | None:
    """The prompts that alignment may train on; None where their file could not be read."""
    prompts = rows.of("align.prompts" if config.prompts else "sample.prompts")
    if prompts is None:
        return None
    distinct = {row.prompt_id: row for row in [*prompts, *(rows.of("align.checks") or [])]}
    return [
        row
        for row in distinct.values()
        if not is_heldout(row.prompt, config.split) and not is_for_judge(row.prompt, config.split)
    ]
