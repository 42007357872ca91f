"""Configuration of the algorithms that sample, are paid and learn in turns: PPO, GRPO and RLOO."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlhf.align.config.paid import PaidConfig
from trueup.config import DemonstrationsPath
from trueup.provenance.commits import HubId
from trueup.provenance.inputs import hub_ids_of


class OnlineConfig(PaidConfig):
    """What PPO, GRPO and RLOO share: each rollout is drawn from the policy as it is by then."""

    kl_key: ClassVar[str]
    """The key that holds the policy near the reference."""

    rollout_batch_size: int = Field(64, ge=2)
    """Answers that are sampled before the policy is updated with them."""
    learning_rate: float = Field(1e-5, ge=0)
    """Learning rate at its peak. 0 trains nothing: it makes a control, whose comparison finds no change."""
    lr_scheduler_type: str = "linear"
    """How the learning rate falls, by the names of transformers: `cosine`, `linear`, `constant`, ..."""
    train_batch_size: int = Field(64, ge=1)
    """Answers per optimiser step. It divides `rollout_batch_size`."""
    save_steps: int = Field(1, ge=1)
    """Optimiser steps between checkpoints, rounded up to whole rollouts."""

    @model_validator(mode="after")
    def _divides(self) -> OnlineConfig:
        for name in ("train_batch_size", "num_generations"):
            if self.rollout_batch_size % getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} does not divide rollout_batch_size {self.rollout_batch_size}"
                )
        if self.lora.lora_dropout:
            raise ValueError(
                f"lora.lora_dropout: {self.lora.lora_dropout:g} would make the log-probabilities of one policy differ "
                f"from reading to reading, and {self.algorithm} lives on their ratios: leave it at 0"  # type: ignore[attr-defined]
            )
        return self

    @property
    def prompts_at_once(self) -> int:
        return self.rollout_batch_size // self.num_generations

    @property
    def passes(self) -> int:
        """Passes over each rollout."""
        raise NotImplementedError

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps."""
        return self.passes * (self.rollout_batch_size // self.train_batch_size)

    def not_shared(self, processes: int) -> dict[str, str]:
        share, k = self.rollout_batch_size // processes, self.num_generations
        drawn = f"{processes} processes draw {share} answers each, which are no whole groups of {k} to a prompt"
        return super().not_shared(processes) | ({"rollout_batch_size": drawn} if share % k or not share else {})


class PPOConfig(OnlineConfig):
    """Proximal policy optimisation with a critic (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).

    Defaults are those of Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593) as Huang et al. 2024 reproduce them
    (https://arxiv.org/abs/2403.17031), but for the learning rate, which is for adapters.
    """

    run: ClassVar[str] = "rlhf.align.ppo.stage:run"
    trial: ClassVar[str] = "rlhf.align.ppo.stage:trial"
    kl_key: ClassVar[str] = "kl_coef"

    algorithm: Literal["ppo"] = "ppo"
    """The algorithm that aligns the policy."""
    num_generations: int = Field(2, ge=2)
    """Answers to each prompt of a rollout."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over each rollout."""
    kl_coef: float = Field(0.05, ge=0)
    """Price of a nat of KL to the SFT policy, in units of reward. With `kl_target` this is the price at the start."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per sequence that the price is adapted to reach (Ziegler et al. 2019, 2.2). Empty: the price is fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Answers over which the price adapts to `kl_target`."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, per token. 1: none."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation (GAE)."""
    cliprange: float = Field(0.2, gt=0)
    """Change of a token's probability, as a share of it, beyond which a rollout moves the policy no further."""
    cliprange_value: float = Field(0.2, gt=0)
    """Change of a value, in units of reward, beyond which a rollout moves the critic no further."""
    vf_coef: float = Field(0.1, ge=0)
    """Weight of the critic's loss beside the policy's."""
    whiten_rewards: bool = False
    """Whether rewards are divided by their standard deviation in the rollout. Their mean stays."""
    critic_learning_rate: float | None = Field(None, ge=0)
    """Learning rate of the critic. Empty: that of the policy."""
    critic_warmup_rollouts: int = Field(0, ge=0)
    """Rollouts at the start that train the critic alone."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of a loss on demonstrations that is mixed in against forgetting (Ouyang et al. 2022, eq. 2)."""
    ptx_data: list[DemonstrationsPath] = Field([])
    """Files of demonstrations for that loss: `starter`, or paths."""
    guards: Literal["warn", "stop"] = "warn"
    """What happens when length, repetition, entropy, ends, KL or the critic go wrong: `warn` reports it, `stop` reports
    it and ends the training."""

    @property
    def passes(self) -> int:
        return self.num_ppo_epochs

    @model_validator(mode="after")
    def _complete(self) -> PPOConfig:
        if self.rollout_batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                "kl_horizon: must be more than a fifth of rollout_batch_size, or one rollout may turn kl_coef 0"
            )
        if bool(self.ptx_coef) != bool(self.ptx_data):
            raise ValueError("ptx_coef and ptx_data go together: a weight, and files of demonstrations")
        return self

    def input_paths(self) -> list[Path]:
        return [*super().input_paths(), *self.ptx_data]

    def hub_ids(self) -> list[HubId]:
        of_rows = {f"align.ptx_data.{n}": path for n, path in enumerate(self.ptx_data)}
        return [*super().hub_ids(), *hub_ids_of(of_rows)]


class GroupedConfig(OnlineConfig):
    """What GRPO and RLOO share: an answer is held against its siblings, and there is no critic."""

    run: ClassVar[str] = "rlhf.align.grpo_rloo:run"
    trial: ClassVar[str] = "rlhf.align.grpo_rloo:trial"
    kl_key: ClassVar[str] = "beta"

    beta: float = Field(0.05, ge=0)
    """Weight of the KL to the SFT policy: in the loss with `grpo`, in the reward with `rloo`."""
    num_iterations: int = Field(1, ge=1)
    """Passes over each rollout."""

    @property
    def passes(self) -> int:
        return self.num_iterations


class GRPOConfig(GroupedConfig):
    """Group-relative policy optimisation (Shao et al. 2024, https://arxiv.org/abs/2402.03300), by trl.GRPOTrainer."""

    algorithm: Literal["grpo"] = "grpo"
    """The algorithm that aligns the policy."""


class RLOOConfig(GroupedConfig):
    """REINFORCE with the mean reward of an answer's siblings as its baseline (Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740), by trl.RLOOTrainer."""

    algorithm: Literal["rloo"] = "rloo"
    """The algorithm that aligns the policy."""
