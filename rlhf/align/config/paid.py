"""Configuration of the algorithms whose policy is paid for sampled answers: what they share, and best of n."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SerializationInfo, ValidationInfo, model_validator

from rlhf.align.config.shared import AlignConfig
from rlhf.config import CheckConfig
from trueup.artifacts.reports import Decoding
from trueup.config import PromptsPath
from trueup.data.own_code import file_of, from_base, in_identity, is_own
from trueup.data.row_rules import RowRules
from trueup.data.rubric import RubricName, rubric_files, rubric_version
from trueup.models.templates.block import LEAST_BUDGET
from trueup.provenance.commits import HubId
from trueup.provenance.inputs import hub_ids_of

BUILT_IN_REWARDS = ("reward_model", "rubric", "ifeval", "gsm8k")


def _from_base(value: Any, info: ValidationInfo) -> Any:
    return {from_base(name, info): weight for name, weight in value.items()} if isinstance(value, dict) else value


def _without_folder(value: dict[str, float], info: SerializationInfo) -> dict[str, float]:
    return {in_identity(name, info): weight for name, weight in value.items()}


Rewards = Annotated[dict[str, float], BeforeValidator(_from_base), PlainSerializer(_without_folder)]


class PaidConfig(RowRules, AlignConfig):
    """What all algorithms share whose policy answers prompts and learns from the rewards of its answers."""

    check: ClassVar[str | None] = "rlhf.align.check:check"
    check_rows: ClassVar[str | None] = "rlhf.align.check:check_prompts"

    prompts: PromptsPath | None = None
    """`starter`, or prompts as for `sft.data`, of which held-out ones are left out. Empty: those that the sample stage
    answered."""
    rewards: Rewards = Field({"reward_model": 1.0}, min_length=1)
    """Rewards of an answer, each with its weight in the sum: `reward_model` (in its standard deviations on held-out
    answers), `rubric`, `ifeval` and `gsm8k` (over the prompts of `checks`), or `file.py:function`. Such a function is
    called with (prompts, completions, **columns) as TRL calls it, and returns a number or None for each answer."""
    reward_caution: float = Field(0.0, ge=0)
    """How many standard deviations over the heads of the reward model (`reward.ensemble`) are taken from its score of
    an answer: it then pays less for what its labels did not settle. 0: the mean of the heads pays."""
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

    num_generations: int = Field(4, ge=2)
    """Answers to each prompt."""
    max_new_tokens: int = Field(128, ge=1)
    """Most tokens of an answer. Set it as `sample.max_new_tokens`, so that what is compared is what was trained."""
    max_thinking_tokens: int = Field(1024, ge=LEAST_BUDGET)
    """Most tokens of the reasoning before an answer, with `model.thinking`. Set it as `sample.max_thinking_tokens`."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of sampling and of all log-probabilities alike. There is no top-k or top-p here: they would make the
    sampled policy another one than the trained one."""

    keep_steps: int = Field(3, ge=0)
    """Adapters that are kept during training, evenly spaced. Each answers `eval_prompts`, and the best one within
    `kl_budget` becomes the result, which need not be the last."""
    eval_prompts: int = Field(32, ge=0)
    """Prompts that are kept from training to choose the best adapter by; held-out prompts would flatter the comparison.
    0: the last step is the result."""
    kl_budget: float | None = Field(None, gt=0)
    """Most nats per sequence that the result may be away from the SFT policy. Empty: any distance."""

    @model_validator(mode="after")
    def _pays(self) -> Self:
        for name in ("max_new_tokens", "max_thinking_tokens"):
            if any(name in check.model_fields_set for check in self.checks):
                raise ValueError(f"checks.{name}: answers are drawn with align.{name}: leave it out here")
        for reward in self.rewards:
            if reward not in BUILT_IN_REWARDS and not is_own(reward):
                names = ", ".join(BUILT_IN_REWARDS)
                raise ValueError(f"rewards.{reward}: neither one of {names}, nor of the form file.py:function")
        if self.on_failed_reward_model == "use" and "reward_model" not in self.rewards:
            raise ValueError("on_failed_reward_model: use has no meaning, since no reward model pays: leave it out")
        if self.reward_caution and "reward_model" not in self.rewards:
            raise ValueError("reward_caution: has no meaning, since no reward model pays: leave it out")
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
    def prompts_at_once(self) -> int:
        """The fewest prompts to train on."""
        raise NotImplementedError

    @property
    def most_tokens(self) -> int:
        """Of an answer with its reasoning."""
        return self.max_new_tokens + self.model.thinking_budget(self.max_thinking_tokens)

    def decoding(self, seed: int) -> Decoding:
        """How answers are drawn, from the whole distribution."""
        thinking = self.model.thinking_budget(self.max_thinking_tokens)
        return Decoding(self.max_new_tokens, self.temperature, seed=seed, max_thinking_tokens=thinking)

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
            self.start_stage,
            *(["sample"] if self.prompts is None else []),
            *(["reward"] if "reward_model" in self.rewards else []),
        )

    def input_paths(self) -> list[Path]:
        prompts = [self.prompts] if self.prompts else []
        return [*prompts, *(check.path for check in self.checks), *self.reward_files]

    def hub_ids(self) -> list[HubId]:
        return [*super().hub_ids(), *hub_ids_of({"align.prompts": self.prompts})]

    def fingerprint(self) -> dict[str, str | None]:
        return {"rubric": rubric_version(self.rubric)} if "rubric" in self.rewards else {}


class BestOfNConfig(PaidConfig):
    """Best of n: the policy answers each prompt n times before training, and imitates the answer that is paid best
    (rejection sampling, Touvron et al. 2023, https://arxiv.org/abs/2307.09288, 3.2.3), by trl.SFTTrainer."""

    run: ClassVar[str] = "rlhf.align.best_of_n:run"
    trial: ClassVar[str] = "rlhf.align.best_of_n:trial"

    algorithm: Literal["best_of_n"] = "best_of_n"
    """The algorithm that aligns the policy."""
    num_generations: int = Field(8, ge=2)
    """Answers to each prompt, of which the best is imitated. Those that sample stages drew from this very policy are
    among them. One that did not end by itself is imitated only with `missing_eos_penalty: 0`."""
    learning_rate: float = Field(2e-4, ge=0)
    """Learning rate at its peak. 0 trains nothing: it makes a control, whose comparison finds no change."""
    num_train_epochs: float = Field(2.0, gt=0)
    """Passes over the best answers."""

    @property
    def prompts_at_once(self) -> int:
        return 1

    def parents(self) -> tuple[str, ...]:
        """With the first round's sample stage, too, in a further round that starts from the SFT policy, which answered
        there."""
        answered = self.round > 1 and self.start_stage == "sft" and self.prompts is None
        return (*super().parents(), "round-1/sample") if answered else super().parents()
