"""Configuration of the reward model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trueup.config import Problems
from trueup.models.config import A_REWARD_MODEL, ModelConfig, ModelStageConfig
from trueup.provenance.commits import HubId
from trueup.provenance.contents import Contents
from trueup.training.config import BelievedConfig

Margin = Annotated[float, Field(ge=0)]

HEAD_OF_ITS_OWN = (
    "probe, but the model in reward.base has a head of its own, which a probe would replace: leave the key out"
)


class RewardConfig(BelievedConfig):
    """Bradley-Terry reward model, from the SFT policy or from a base of its own. Its loss is -log sigmoid(r(chosen) -
    r(rejected) - margin), and that of ties is of the same family."""

    stage: ClassVar[str] = "reward"
    run: ClassVar[str] = "reward.train:run"
    check_rows: ClassVar[str | None] = "reward.check:check_rows"
    report: ClassVar[str] = "reward.report:RewardReport"
    trial: ClassVar[str] = "reward.train:trial"

    base: ModelConfig | None = None
    """Base of the reward model, if it is another one than the policy's, in the keys of `model`: smaller or larger, with
    any tokenizer and template. A reward model of your own (a sequence-classification model with one output) keeps its
    head. Empty: the SFT policy."""
    start: Literal["random", "probe"] = "random"
    """How a fresh head starts. `random`: with small random weights, at the last token behind all layers. `probe`: as a
    logistic regression of the pairs on hidden states, behind the layer and with the pooling that suit the training
    prompts best. A fifth of these prompts is kept out of training and decides whether it improves on the probe."""
    learning_rate: float = Field(1e-4, ge=0)
    """Learning rate at its peak. 0 trains nothing: a reward model of your own in `base` is used as it is, and measured
    on the held-out pairs."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the labels. One is usual, because reward models overfit early (Ouyang et al. 2022, appendix C.2)."""
    train_batch_size: int = Field(8, ge=1)
    """Labels per optimiser step, over all devices. A ranking is one label, however many pairs are in it."""
    center_rewards_coefficient: float = Field(0.01, ge=0)
    """Weight of (r(chosen) + r(rejected))^2, which keeps rewards near 0 (https://arxiv.org/abs/2312.09244). Those
    of a tie count in it too."""
    grade_margins: list[Margin] = Field([1 / 3, 2 / 3, 1.0], min_length=3, max_length=3)
    """Least difference in score that a grade asks for: slightly better, better, much better (Touvron et al. 2023,
    https://arxiv.org/abs/2307.09288, eq. 2 and table 27). [0, 0, 0]: grades count for nothing."""
    ties: Literal["rao_kupper", "half", "leave_out"] = "rao_kupper"
    """How answers count that somebody found equally good: by the model of Rao and Kupper, which learns how near two
    scores are in a tie; as half a preference for each; or not at all."""
    ensemble: int = Field(1, ge=1, le=100)
    """Heads on the one trunk. Several agree where the labels settle which answer is better, and differ elsewhere: their
    spread chooses what people are asked (`label.selection`) and makes a cautious reward (`align.reward_caution`). The
    mean of the heads is the head that one alone would be. A head costs next to nothing."""
    score_candidates: bool = False
    """Whether every sampled answer is scored too, into candidate_scores.jsonl. A further round does
    not need it: there the sample stage scores the new answers."""

    @field_validator("base")
    @classmethod
    def _is_named_by_errors(cls, base: ModelConfig | None) -> ModelConfig | None:
        return base and base.of_section("reward.base")

    @model_validator(mode="after")
    def _base_can_score(self) -> RewardConfig:
        lines = []
        if self.base and self.base.new_tokens:
            lines.append(
                "base.new_tokens: the embeddings of new tokens are not trained here: choose a template whose markers "
                "the tokenizer has, or plain"
            )
        if self.base and self.base.adapter:
            lines.append("base.adapter: is an adapter of a language model: merge it into its base, and name the result")
        if self.base and self.base.load_in_4bit:
            lines.append("base.load_in_4bit: a reward model is trained on whole weights: leave it out")
        if self.base and self.base.thinking:
            lines.append("base.thinking: a reward model reads answers without reasoning: leave it out")
        if self.start == "probe" and (sharding := {"fsdp", "fsdp_config", "deepspeed"} & self.trainer_args.keys()):
            lines.append(
                f"start: probe compares steps of a training, for which each process needs all weights, and "
                f"trainer_args.{min(sharding)} shares them out: leave one of them out"
            )
        if not self.learning_rate and not self.base:
            lines.append(
                "learning_rate: 0 trains nothing, and the SFT policy has no scores: name a reward model in base"
            )
        if not self.learning_rate and self.base and (idle := self._training_keys()):
            lines.append(
                f"{', '.join(idle)}: only training reads {'it' if len(idle) == 1 else 'them'}, and learning_rate: 0 "
                "trains nothing: leave it out, or train"
            )
        if not self.learning_rate and self.split.judge_fraction:
            lines.append(
                "learning_rate: 0 trains nothing, and split.judge_fraction asks for a second reward model that is "
                "trained: set one of them otherwise"
            )
        if lines:
            raise Problems(lines)
        return self

    def _training_keys(self) -> list[str]:
        """The keys that are set and say how to train."""
        read_anyway = {"base", "learning_rate", "max_length", "score_candidates"}
        return sorted(self.model_fields_set - ModelStageConfig.model_fields.keys() - read_anyway)

    @property
    def scorer(self) -> ModelConfig | None:
        return self.base

    @property
    def headless(self) -> str | None:
        return None if self.learning_rate else f"name {A_REWARD_MODEL}, or train it (reward.learning_rate)"

    def parents(self) -> tuple[str, ...]:
        parents = (*super().parents(), "sample") if self.score_candidates else super().parents()
        return tuple(parent for parent in parents if not (parent == "sft" and self.base))

    def contents(self) -> dict[str, Contents | None]:
        files = self.base.contents() if self.base else {}
        return {f"base.{key.removeprefix('model.')}": value for key, value in files.items()} | super().contents()

    def hub_ids(self) -> list[HubId]:
        return self.base.hub_ids() if self.base else []
