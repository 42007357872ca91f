"""The campaigns that benchmarks write are loaded: a key that was renamed would stop a benchmark that no test runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from few_labels import prepare
from ppo_toy import toy_campaign
from rlhf.align.config import GRPOConfig, PPOConfig, RLOOConfig
from rlhf.compare.config import CompareConfig


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_the_toy_has_a_campaign_for_every_algorithm(tmp_path: Path, algorithm: str) -> None:
    align = toy_campaign(tmp_path, seed=0, rollouts=3, algorithm=algorithm).stages["align"]
    assert isinstance(align, PPOConfig | GRPOConfig | RLOOConfig)
    assert (align.algorithm, align.max_steps) == (algorithm, 3 * align.updates_per_rollout)


def test_a_hundred_labels_have_a_campaign(tmp_path: Path) -> None:
    for stage in ("sft", "candidates"):
        (tmp_path / "run" / stage).mkdir(parents=True)
    campaign = prepare(Namespace(run=tmp_path / "run", overrides=[]), tmp_path / "kept", seed=0, labels=[])
    assert isinstance(campaign.stages["compare"], CompareConfig)
    assert campaign.stages["compare"].judges == ["rubric"]
