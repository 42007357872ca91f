"""Configuration of the reward model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from trueup.training.config import PreferenceConfig


class RewardConfig(PreferenceConfig):
    """Bradley-Terry reward model, from the SFT policy. Its loss is -log sigmoid(r(chosen) - r(rejected))."""

    stage: ClassVar[str] = "reward"
    run: ClassVar[str] = "reward.train:run"
    check_rows: ClassVar[str | None] = "reward.check:check_rows"
    report: ClassVar[str] = "reward.report:RewardReport"
    trial: ClassVar[str] = "reward.train:trial"

    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate at its peak."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the pairs. One is usual, because reward models overfit early (Ouyang et al. 2022, appendix C.2)."""
    center_rewards_coefficient: float = Field(0.01, ge=0)
    """Weight of (r(chosen) + r(rejected))^2, which keeps rewards near 0 (https://arxiv.org/abs/2312.09244)."""

    score_candidates: bool = False
    """Whether every sampled answer is scored too, into candidate_scores.jsonl. `label.scores` takes a copy of that
    file, so that people label the pairs of which this reward model is least sure."""

    def parents(self) -> tuple[str, ...]:
        return (*super().parents(), "sample") if self.score_candidates else super().parents()
