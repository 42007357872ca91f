"""Configuration of alignment, one schema per algorithm, and of the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SerializationInfo, ValidationInfo, model_validator

from rlhf.config import CheckConfig
from trueup.artifacts.reports import Decoding
from trueup.config import DemonstrationsPath, PromptsPath
from trueup.data.own_code import file_of, from_base, in_identity, is_own
from trueup.data.pairs import PairRule
from trueup.data.row_rules import RowRules
from trueup.data.rubric import RubricName, rubric_files, rubric_version
from trueup.models.templates.block import LEAST_BUDGET
from trueup.training.config import PreferenceConfig, TrainConfig


class Loss(NamedTuple):
    beta: float
    """What `beta: auto` stands for."""
    reason: str
    at_reference: Callable[[float], float]
    """The loss of any pair at a given beta, as long as the policy is the reference. The first step is checked by it."""
    smooths: bool = False
    """Whether it takes `label_smoothing`."""


def _ln_2(beta: float) -> float:
    return math.log(2)


def _one(beta: float) -> float:
    return 1.0


LOSSES = {
    "sigmoid": Loss(0.1, "the usual one of sigmoid", _ln_2, smooths=True),
    "hinge": Loss(0.1, "the usual one of hinge", _one),
    "ipo": Loss(
        1.0,
        "this loss takes means per token, and 1 / (2 beta) = 0.5 nats a token is the gap that it aims at",
        lambda beta: (0.5 / beta) ** 2,
    ),
    "robust": Loss(0.1, "the usual one of robust", _ln_2, smooths=True),
    "sigmoid_norm": Loss(
        5.0, "this loss takes means per token; 5 is the beta of OLMo 2, which was aligned by it", _ln_2
    ),
    "apo_zero": Loss(0.1, "as for sigmoid: this loss takes sums over tokens", _one),
    "apo_down": Loss(0.1, "as for sigmoid: this loss takes sums over tokens", _one),
}
"""The losses of DPO, by the names of trl.DPOTrainer, which computes them. `ipo` is that of Azar et al. 2023,
https://arxiv.org/abs/2310.12036, eq. 17, over means; `sigmoid_norm` that of the card of
https://huggingface.co/allenai/OLMo-2-1124-7B-DPO-Preview. The others take sums: Rafailov et al. 2023, appendix B;
`apo_zero` and `apo_down` are of D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266, eq. 7 and 8."""
IMITATION = "sft"
"""The loss of supervised fine-tuning on the chosen answers, nats per token, which may stand beside those losses."""

LOGISTIC = ("sigmoid", "sigmoid_norm")
"""Losses that are minus the logarithm of a preference's probability: in them a tie and an offset have a meaning."""

if TYPE_CHECKING:
    LossName = str
    MixedName = str
else:
    LossName = Literal[tuple(LOSSES)]  # a new entry of the table is a new value of the key
    MixedName = Literal[(*LOSSES, IMITATION)]


class AlignConfig(TrainConfig):
    """What every algorithm shares."""

    stage: ClassVar[str] = "align"
    report: ClassVar[str] = "rlhf.align.schema:AlignReport"


class LabelledConfig(PreferenceConfig, AlignConfig):
    """What DPO and KTO share: the policy learns from labelled answers."""

    check_rows: ClassVar[str | None] = "rlhf.align.check:check_pairs"

    learning_rate: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Learning rate at its peak. `auto` follows from the number of steps. 0 trains nothing: it makes a control, whose
    comparison finds no change."""
    num_train_epochs: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Passes over the pairs or answers. `auto` follows from their number."""
    keep_steps: int = Field(3, ge=0)
    """Adapters that are kept during training, evenly spaced. The comparison shows reward and KL of each."""

    @model_validator(mode="after")
    def _keeps_adapters(self) -> LabelledConfig:
        if self.full_finetuning and self.keep_steps and "keep_steps" in self.model_fields_set:
            raise ValueError("keep_steps: keeps adapters, and full_finetuning trains none: leave one of them out")
        return self


class DPOConfig(LabelledConfig):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

    run: ClassVar[str] = "rlhf.align.preferences.dpo:run"
    trial: ClassVar[str] = "rlhf.align.preferences.dpo:trial"

    algorithm: Literal["dpo"] = "dpo"
    """The algorithm that aligns the policy."""
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Strength of the pull to the SFT policy: a higher beta stays nearer to it. `auto` takes what suits `loss_type`."""
    loss_type: LossName | Annotated[dict[MixedName, Annotated[float, Field(gt=0)]], Field(min_length=1)] = "sigmoid"
    """Loss over a pair, by the names of TRL (docs/dpo.md), or several with their weights, such as `{sigmoid: 1, sft:
    0.2}`, where `sft` imitates the chosen answers."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels that are assumed to be wrong. With `sigmoid` this is cDPO (https://ericmitchell.ai/cdpo.pdf),
    with `robust` its unbiased form (https://arxiv.org/abs/2403.00409); the other losses take none."""
    grades: Literal["leave_out", "offset", "weight"] = "leave_out"
    """How it counts that one answer is slightly better, better or much better. `offset`: the margin of a pair must
    exceed 0, ln 2 or ln 3, in units of beta times nats (https://arxiv.org/abs/2402.10571). `weight`: a pair counts 1/2,
    1 or 3/2. Pairs that nobody graded have no offset, and count 1. `leave_out`: grades count for nothing."""
    pair_weight: Literal["equal", "per_label"] = "equal"
    """Weight of a pair. `equal`: every pair counts alike, so that a ranking of 4 answers counts as much as six
    labels of pairs. `per_label`: all pairs of one label count 1 together (Ouyang et al. 2022, eq. 1)."""
    ties: Literal["leave_out", "half", "davidson"] = "leave_out"
    """How answers count that somebody found equally good. `half`: as half a preference for each. `davidson`: as an
    outcome of its own, by Davidson's model (https://arxiv.org/abs/2409.17431). `leave_out`: not at all."""

    @model_validator(mode="after")
    def _complete(self) -> DPOConfig:
        names = self.pair_losses
        if not names:
            raise ValueError("loss_type: sft alone learns no preference: name a loss over pairs beside it")
        if self.label_smoothing and (deaf := [name for name in names if not LOSSES[name].smooths]):
            raise ValueError(
                f"label_smoothing: has no meaning in loss_type {deaf[0]}; use sigmoid (cDPO) or robust, or 0"
            )
        if self.label_smoothing and len(names) > 1:
            raise ValueError("label_smoothing: sigmoid and robust take it in two ways: leave one of them out, or 0")
        if self.beta == "auto" and len({LOSSES[name].beta for name in names}) > 1:
            wanted = ", ".join(f"{LOSSES[name].beta:g} for {name}" for name in names)
            raise ValueError(f"beta: auto has no one value for these losses ({wanted}): give a number")
        if IMITATION in self.losses and self.trainer_args.get("use_weighting"):
            raise ValueError("trainer_args.use_weighting: weighs pairs, and sft in loss_type is no loss over pairs")
        self._check_weighing()
        return self

    def _check_weighing(self) -> None:
        """The loss that obeys `grades`, `pair_weight` and `ties` is ours, not TRL's; it has fewer variants."""
        key = next((k for k in ("ties", "grades") if getattr(self, k) in ("half", "davidson", "offset")), None)
        if key and (others := [name for name in self.pair_losses if name not in LOGISTIC]):
            raise ValueError(
                f"{key}: {getattr(self, key)} has no meaning in loss_type {others[0]}; use {' or '.join(LOGISTIC)}"
            )
        if self.label_smoothing and (self.ties == "davidson" or self.grades == "offset"):
            key = "ties" if self.ties == "davidson" else "grades"
            raise ValueError(f"{key}: {getattr(self, key)} goes with no label_smoothing: set one of them otherwise")
        if self.ties == "davidson" and self.grades == "offset":
            raise ValueError("grades: offset has no meaning with ties: davidson; use weight, or ties: half")
        for name in ("f_divergence_type", "use_weighting"):
            if self.weighs and name in self.trainer_args:
                raise ValueError(f"trainer_args.{name}: does nothing beside grades, pair_weight or ties: leave it out")

    @property
    def weighs(self) -> bool:
        """Whether pairs do not all count alike."""
        return (self.grades, self.pair_weight, self.ties) != ("leave_out", "equal", "leave_out")

    @property
    def losses(self) -> dict[str, float]:
        """Weight of each loss."""
        return {self.loss_type: 1.0} if isinstance(self.loss_type, str) else self.loss_type

    @property
    def pair_losses(self) -> list[str]:
        """The losses that learn a preference."""
        return [name for name in self.losses if name != IMITATION]


Weight = Annotated[float, Field(gt=0)] | Literal["auto"]


class KTOConfig(LabelledConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306), by trl.KTOTrainer."""

    run: ClassVar[str] = "rlhf.align.preferences.kto:run"
    trial: ClassVar[str] = "rlhf.align.preferences.kto:trial"
    least_rows: ClassVar[int] = 2

    algorithm: Literal["kto"] = "kto"
    """The algorithm that aligns the policy."""
    pairs: PairRule = "extremes"
    """Pairs of a ranking whose answers are trained on: `extremes` (best, worst), `all`, by which an answer in the
    middle is desirable and undesirable at once, `nested` (each answer at most once). Of a ranking whose answers are
    all bad, each answer is trained on."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the SFT policy: a higher beta stays nearer to it."""
    desirable_weight: Weight = "auto"
    """Weight of an answer that was chosen. `auto` follows from how many answers there are of each kind, so that all
    desirable ones weigh between 1 and 4/3 times as much as all undesirable ones."""
    undesirable_weight: Weight = "auto"
    """Weight of an answer that was rejected, or that is tied with another because both are bad. `auto` as above."""
    train_batch_size: int = Field(8, ge=2)
    """Answers per optimiser step, over all devices. The KL is estimated over those that are computed at once, on all
    devices together (`per_device_train_batch_size`)."""

    @model_validator(mode="after")
    def _reads_several_at_once(self) -> KTOConfig:
        if self.per_device_train_batch_size == 1:
            raise ValueError("per_device_train_batch_size: KTO estimates the KL over two or more answers at once")
        return self


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


ALGORITHMS = {"dpo": DPOConfig, "kto": KTOConfig, "ppo": PPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}
"""`align.algorithm`; the first is the default."""
