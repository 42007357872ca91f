"""Configuration of alignment, one schema per algorithm, and of the comparison."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trueup.config import ModelConfig, SplitConfig, StageConfig, TrainConfig
from trueup.records import PairRule
from trueup.rubric import RUBRICS


class DPOConfig(TrainConfig):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

    stage: ClassVar[str] = "align"
    run: ClassVar[str] = "rlhf.dpo:run"

    algorithm: Literal["dpo"] = "dpo"
    model: ModelConfig
    split: SplitConfig
    pairs: PairRule = "all"
    """Which pairs of a ranking are trained on: `all`, `extremes` (best, worst), `nested` (each answer at most once)."""
    beta: float = Field(0.1, gt=0)
    """KL strength: higher stays nearer to the reference, which is the SFT policy."""
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels (cDPO; with `robust`, https://arxiv.org/abs/2403.00409)."""
    learning_rate: float = Field(5e-5, ge=0)
    """Peak. 0 trains nothing: a control, whose comparison must find no change."""
    num_train_epochs: float = Field(1.0, gt=0)

    def parents(self) -> tuple[str, ...]:
        return ("sft", "label")


ALGORITHMS = {"dpo": DPOConfig}
"""`align.algorithm`; the first is the default."""


class CompareConfig(StageConfig):
    """SFT policy against aligned policy on held-out prompts.

    The SFT policy's answers are the sample stage's; the aligned policy is sampled with the very same settings and seed,
    so there is nothing to say about decoding here.
    """

    stage: ClassVar[str] = "compare"
    run: ClassVar[str] = "rlhf.compare:run"

    model: ModelConfig
    split: SplitConfig
    judges: list[Literal["rubric", "reward_model"]] = Field(["rubric", "reward_model"], min_length=1)
    """What says which of two answers is preferred. The first decides the verdict."""
    rubric: Literal["says-why"] = "says-why"
    """Which rubric, of `trueup.rubric`."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of every interval."""
    batch_size: int = Field(64, ge=1)
    num_workers: int = Field(1, ge=1)
    """Processes on a CPU, each with its share of the cores and of the prompts."""

    def parents(self) -> tuple[str, ...]:
        return ("sft", "sample", "align", *(["reward"] if "reward_model" in self.judges else []))

    def fingerprint(self) -> dict[str, str | None]:
        """The rubric's own text, if it judges."""
        return {"rubric": RUBRICS[self.rubric].version} if "rubric" in self.judges else {}
