"""Configuration of the algorithms that learn from the answers that the policy samples, and from what these are paid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SerializationInfo, ValidationInfo, model_validator

from rlhf.align.config.shared import AlignConfig
from rlhf.config import CheckConfig
from trueup.artifacts.reports import Decoding
from trueup.config import DemonstrationsPath, PromptsPath
from trueup.data.own_code import file_of, from_base, in_identity, is_own
from trueup.data.row_rules import RowRules
from trueup.data.rubric import RubricName, rubric_files, rubric_version
from trueup.models.templates.block import LEAST_BUDGET

BUILT_IN_REWARDS = ("reward_model", "rubric", "ifeval", "gsm8k")


def _from_base(value: Any, info: ValidationInfo) -> Any:
    return {from_base(name, info): weight for name, weight in value.items()} if isinstance(value, dict) else value


def _without_folder(value: dict[str, float], info: SerializationInfo) -> dict[str, float]:
    return {in_identity(name, info): weight for name, weight in value.items()}


Rewards = Annotated[dict[str, float], BeforeValidator(_from_base), PlainSerializer(_without_folder)]


class OnlineConfig(RowRules, AlignConfig):
    """What PPO, GRPO and RLOO share: the policy answers prompts, and learns from the rewards of its answers."""

    check: ClassVar[str | None] = "rlhf.align.check:check"
    check_rows: ClassVar[str | None] = "rlhf.align.check:check_prompts"

    prompts: PromptsPath | None = None
    """`starter`, or a file of prompts, of which held-out ones are left out. Empty: those that the sample stage
    answered."""
    rewards: Rewards = Field({"reward_model": 1.0}, min_length=1)
    """Rewards of an answer, each with its weight in the sum: `reward_model` (in its standard deviations on held-out
    answers), `rubric`, `ifeval` and `gsm8k` (over the prompts of `checks`), or `file.py:function`. Such a function is
    called with (prompts, completions, **columns) as TRL calls it, and returns a number or None for each answer."""
    on_failed_reward_model: Literal["refuse", "use"] = "refuse"
    """What happens where the reward model pays and its report card failed: `refuse` stops before anything is loaded,
    `use` trains all the same, with a warning. A policy that is paid for chance learns chance."""
    rubric: RubricName | None = None
    """Rubric behind the reward `rubric`: `says-why`, or `file.py:name`. Empty: that of the label stage."""
    checks: list[CheckConfig] = Field([])
    """Prompts to train on whose answers a program verifies. They give the rewards `ifeval` and `gsm8k`: 1 right, 0
    wrong."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Amount that is taken from the reward of an answer that did not end by itself."""

    rollout_batch_size: int = Field(64, ge=2)
    """Answers that are sampled before the policy is updated with them."""
    num_generations: int = Field(4, ge=2)
    """Answers to each prompt of a rollout."""
    max_new_tokens: int = Field(128, ge=1)
    """Most tokens of an answer. Set it as `sample.max_new_tokens`, so that what is compared is what was trained."""
    max_thinking_tokens: int = Field(1024, ge=LEAST_BUDGET)
    """Most tokens of the reasoning before an answer, with `model.thinking`. Set it as `sample.max_thinking_tokens`."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of sampling and of all log-probabilities alike. There is no top-k or top-p here: they would make the
    sampled policy another one than the trained one."""

    learning_rate: float = Field(1e-5, ge=0)
    """Learning rate at its peak. 0 trains nothing: it makes a control, whose comparison finds no change."""
    lr_scheduler_type: str = "linear"
    """How the learning rate falls, by the names of transformers: `cosine`, `linear`, `constant`, ..."""
    train_batch_size: int = Field(64, ge=1)
    """Answers per optimiser step. It divides `rollout_batch_size`."""
    save_steps: int = Field(1, ge=1)
    """Optimiser steps between checkpoints, rounded up to whole rollouts."""
    keep_steps: int = Field(3, ge=0)
    """Adapters that are kept during training, evenly spaced. Each answers `eval_prompts`, and the best one within
    `kl_budget` becomes the result, which need not be the last."""
    eval_prompts: int = Field(32, ge=0)
    """Prompts that are kept from training to choose the best adapter by; held-out prompts would flatter the comparison.
    0: the last step is the result."""
    kl_budget: float | None = Field(None, gt=0)
    """Most nats per sequence that the result may be away from the SFT policy. Empty: any distance."""

    @model_validator(mode="after")
    def _divides(self) -> OnlineConfig:
        for name in ("train_batch_size", "num_generations"):
            if self.rollout_batch_size % getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} does not divide rollout_batch_size {self.rollout_batch_size}"
                )
        for name in ("max_new_tokens", "max_thinking_tokens"):
            if any(name in check.model_fields_set for check in self.checks):
                raise ValueError(f"checks.{name}: answers are drawn with align.{name}: leave it out here")
        if self.lora.lora_dropout:
            raise ValueError(
                f"lora.lora_dropout: {self.lora.lora_dropout:g} would make the log-probabilities of one policy differ "
                f"from reading to reading, and {self.algorithm} lives on their ratios: leave it at 0"  # type: ignore[attr-defined]
            )
        for reward in self.rewards:
            if reward not in BUILT_IN_REWARDS and not is_own(reward):
                names = ", ".join(BUILT_IN_REWARDS)
                raise ValueError(f"rewards.{reward}: neither one of {names}, nor of the form file.py:function")
        if self.on_failed_reward_model == "use" and "reward_model" not in self.rewards:
            raise ValueError("on_failed_reward_model: use has no meaning, since no reward model pays: leave it out")
        if not any(self.rewards.values()):
            raise ValueError("rewards: every weight is 0, so that no answer is worth more than another")
        short_names = [Path(reward).name for reward in self.rewards]
        if twice := [name for name in short_names if short_names.count(name) > 1]:
            # Without their folders, as in an identity, one would stand for both.
            raise ValueError(f"rewards: two functions are called {twice[0]}; rename one, or its file")
        for kind in ("ifeval", "gsm8k"):
            if (kind in self.rewards) != any(check.kind == kind for check in self.checks):
                raise ValueError(f"rewards.{kind}: goes with an entry of that kind in checks, which names its prompts")
        return self

    @property
    def most_tokens(self) -> int:
        """Of an answer with its reasoning."""
        return self.max_new_tokens + self.model.thinking_budget(self.max_thinking_tokens)

    def decoding(self, seed: int) -> Decoding:
        """How answers are drawn, from the whole distribution."""
        thinking = self.model.thinking_budget(self.max_thinking_tokens)
        return Decoding(self.max_new_tokens, self.temperature, seed=seed, max_thinking_tokens=thinking)

    @property
    def passes(self) -> int:
        """Passes over each rollout."""
        raise NotImplementedError

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps."""
        return self.passes * (self.rollout_batch_size // self.train_batch_size)

    @property
    def reward_files(self) -> list[Path]:
        """The files of one's own functions, and of a rubric of one's own."""
        own = [file_of(name) for name in self.rewards if name not in BUILT_IN_REWARDS]
        return own + (rubric_files(self.rubric) if "rubric" in self.rewards else [])

    def completed(self, stages: Mapping[str, Any]) -> Self:
        if "rubric" not in self.rewards or self.rubric is not None:
            return self
        return self.model_copy(update={"rubric": stages["label"].rubric})

    def parents(self) -> tuple[str, ...]:
        return (
            "sft",
            *(["sample"] if self.prompts is None else []),
            *(["reward"] if "reward_model" in self.rewards else []),
        )

    def input_paths(self) -> list[Path]:
        prompts = [self.prompts] if self.prompts else []
        return [*prompts, *(check.path for check in self.checks), *self.reward_files]

    def fingerprint(self) -> dict[str, str | None]:
        return {"rubric": rubric_version(self.rubric)} if "rubric" in self.rewards else {}


class PPOConfig(OnlineConfig):
    """Proximal policy optimisation with a critic (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).

    Defaults are those of Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593) as Huang et al. 2024 reproduce them
    (https://arxiv.org/abs/2403.17031), but for the learning rate, which is for adapters.
    """

    run: ClassVar[str] = "rlhf.align.ppo.stage:run"
    trial: ClassVar[str] = "rlhf.align.ppo.stage:trial"

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


class GroupedConfig(OnlineConfig):
    """What GRPO and RLOO share: an answer is held against its siblings, and there is no critic."""

    run: ClassVar[str] = "rlhf.align.grpo_rloo:run"
    trial: ClassVar[str] = "rlhf.align.grpo_rloo:trial"

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
