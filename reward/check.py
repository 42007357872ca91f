"""Checks by `trueup check` of the reward model's pairs; a base of its own is checked as every model that is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reward.config import HEAD_OF_ITS_OWN, RewardConfig
from trueup.checking.labels import check_signals
from trueup.checking.places import find_model
from trueup.checking.rows import Rows, check_pair_lengths
from trueup.config import Stages
from trueup.errors import TrueupError


def check_rows(config: RewardConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that the pairs fit `max_length`, in the tokens of the model that is trained, and say what it learns."""
    check_signals(config, stages["label"], problems)
    if config.base is not None:
        from trueup.models.loading import load_base_tokenizer, scorer_settings

        if find_model(config.base, Path(), [], []) is None:
            return  # it is not on this machine yet, or the check of the model reports what it lacks
        lines: list[str] = []
        rows = Rows([replace(file) for file in rows.files if file.key in ("label.path", "sample.prompts")])
        try:
            if config.start == "probe" and not scorer_settings(config.base, config.headless)[1]:
                problems.append(f"reward.start: {HEAD_OF_ITS_OWN}")
            rows.encode(load_base_tokenizer(config.base), lines, [])
        except TrueupError:
            return  # the check of the model reports that
        problems += [f"reward.base: {line}" for line in lines]
    check_pair_lengths("reward", config.max_length, stages["label"].parents(), rows, problems, notes)
