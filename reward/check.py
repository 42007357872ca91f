"""What `trueup check` finds in the rows that the reward model would be trained on."""

from __future__ import annotations

from collections.abc import Mapping

from reward.config import RewardConfig
from trueup.checking.rows import Rows, check_pair_lengths
from trueup.config import StageConfig


def check_rows(
    config: RewardConfig, stages: Mapping[str, StageConfig], rows: Rows, problems: list[str], notes: list[str]
) -> None:
    """Whether the pairs fit `max_length`."""
    check_pair_lengths("reward", config.max_length, stages["label"].parents(), rows, problems, notes)
