"""Checks by `trueup check` of the reward model: a base of its own, and the pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reward.config import RewardConfig
from trueup.checking.places import find_base
from trueup.checking.rows import Rows, check_pair_lengths
from trueup.config import Stages
from trueup.errors import TrueupError
from trueup.models.config import ModelConfig


def check(config: RewardConfig, stages: Stages, problems: list[str], notes: list[str]) -> None:
    """Check that a base of its own is there, and can be trained or used as it is."""
    from reward.base import in_section, needs_head, require_score_head
    from trueup.models.loading import context_length
    from trueup.training.trial import try_stages

    if config.base is None or find_base("reward.base", config.base, config.base.name, problems, notes) is None:
        return
    try:
        fresh = needs_head(config.base)
        stage = _trial_of(config.base)
        require_score_head(config.base, stage.model(scores=True).model)
        context = context_length(stage.settings, stage.tokenizer)
    except TrueupError as error:
        problems.append(in_section(str(error)))
        return
    if fresh and not config.learning_rate:
        problems.append(
            f"reward.learning_rate: 0 trains nothing, and {config.base.name} has no head that scores: name a reward "
            "model in reward.base, or train it"
        )
    if context and config.max_length > context:
        problems.append(f"reward.max_length: {config.max_length}, but the context of reward.base has {context} tokens")
    problems += try_stages({"reward": config}, stage)


def check_rows(config: RewardConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that the pairs fit `max_length`, in the tokens of the model that is trained."""
    if config.base is not None:
        lines: list[str] = []
        rows = Rows([replace(file) for file in rows.files if file.key in ("label.path", "sample.prompts")])
        try:
            if find_base("reward.base", config.base, config.base.name, [], []) is None:
                return  # `check` reports that
            rows.encode(_trial_of(config.base).tokenizer, lines, [])
        except TrueupError:
            return  # `check` reports that
        problems += [f"reward.base: {line}" for line in lines]
    check_pair_lengths("reward", config.max_length, stages["label"].parents(), rows, problems, notes)


def _trial_of(base: ModelConfig) -> Any:
    from trueup.training.trial import stage_of

    return stage_of(base)
