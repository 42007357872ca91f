"""Checks by `trueup check` of the pairs of the reward model."""

from __future__ import annotations

from reward.config import RewardConfig
from trueup.checking.rows import Rows, check_pair_lengths
from trueup.config import Stages


def check_rows(config: RewardConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that the pairs fit `max_length`."""
    check_pair_lengths("reward", config.max_length, stages["label"].parents(), rows, problems, notes)
