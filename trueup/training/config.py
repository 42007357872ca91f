"""Configuration that all training stages share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from trueup.config import Problems, Section, from_campaign
from trueup.data.criteria import OVERALL
from trueup.data.pairs import PairRule
from trueup.files import Json
from trueup.models.config import ModelStageConfig
from trueup.provenance import contents
from trueup.provenance.contents import Contents
from trueup.training.allowed import problems as trainer_args_problems


class LoRAConfig(Section):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: int = Field(16, ge=1)
    """Rank of the adapters. A higher rank has more weights to train."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of the adapters: what they add is multiplied by `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters, while training. Dropout of the base model is off."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get adapters: `all-linear`, a list of names such as [q_proj, v_proj], or a regular expression over
    their full names."""
    last_layers: int | None = Field(None, ge=1)
    """Number of blocks that get adapters, counted from the last. Few are cheaper: gradients stop there, and the output
    of the blocks below is kept for the next epoch. Empty: all blocks."""


_FILES_OF_TRAINERS = ("deepspeed", "fsdp_config", "accelerator_config")
"""Arguments of TRL's trainers that may name a JSON file, relative to the campaign file."""


_SET_BY_LAUNCH = ("fsdp", "deepspeed", "accelerator_config", "ddp_backend", "ddp_timeout")


def _files_from_campaign(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, dict):
        return value
    files = {key: value[key] for key in _FILES_OF_TRAINERS if isinstance(value.get(key), str)}
    return {**value, **{key: str(from_campaign(file, info)) for key, file in files.items() if file.endswith(".json")}}


class TrainConfig(ModelStageConfig):
    """Keys that the training stages share. Their names are those of `transformers.TrainingArguments`."""

    trains: ClassVar[bool] = True
    trial: ClassVar[str]
    """`module:function` that builds the stage's trainer on a model without memory (`trueup.training.trial`)."""
    least_rows: ClassVar[int] = 1
    """Rows that a device must compute at once."""

    learning_rate: float = Field(gt=0)
    """Learning rate at its peak."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the training data: rows, or the prompts of an algorithm that samples its own answers."""
    max_steps: int = Field(-1, ge=-1)
    """Optimiser steps after which training stops. -1: after `num_train_epochs`."""
    per_device_train_batch_size: int | Literal["auto"] = "auto"
    """Rows that a device computes at once. `auto` measures memory and cuts `train_batch_size` into as many parts as it
    needs."""
    train_batch_size: int = Field(8, ge=1)
    """Rows per optimiser step, over all devices."""
    max_length: int = Field(512, ge=8)
    """Most tokens of a row, prompt and answer together. Longer rows are dropped and counted, never cut, but where
    `sft.overlong` says so."""
    lr_scheduler_type: str = "cosine"
    """How the learning rate falls, by the names of transformers: `cosine`, `linear`, `constant`, ..."""
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Optimiser steps over which the learning rate rises to its peak: a number of steps, or a share of all steps, such
    as 0.03."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which longer gradients are cut."""
    save_steps: int = Field(50, ge=1)
    """Optimiser steps between checkpoints. An interrupted stage continues from the last one."""
    report_to: list[str] = Field([])
    """Trackers to report to, by the names of transformers: `trackio`, `tensorboard`, `wandb`."""
    full_finetuning: bool = False
    """Whether every weight is trained instead of adapters."""
    lora: LoRAConfig = LoRAConfig()
    """The adapters."""
    trainer_args: Annotated[Json, BeforeValidator(_files_from_campaign)] = Field({})
    """Further arguments of TRL's trainer. One that would change nothing here is refused with its reason."""

    @model_validator(mode="after")
    def _adapts_or_trains_whole(self) -> TrainConfig:
        if self.full_finetuning and "lora" in self.model_fields_set:
            raise Problems(
                ["lora: does nothing beside full_finetuning, which trains no adapter: leave one of them out"]
            )
        return self

    @model_validator(mode="after")
    def _trainer_args_do_something(self) -> TrainConfig:
        if self.trainer_args:
            kind = getattr(self, "algorithm", self.stage)
            keys = type(self).model_fields
            section = (self.scorer and self.scorer.section) or "model"
            if lines := trainer_args_problems(
                kind, self.stage, keys, self.trainer_args, tracked=bool(self.report_to), section=section
            ):
                raise Problems(lines)
        return self

    def not_shared(self, processes: int) -> dict[str, str]:
        total, rest = divmod(self.train_batch_size, processes)
        if rest or total < self.least_rows:
            of_each = f", of which each must compute {self.least_rows} or more at once" if self.least_rows > 1 else ""
            problem = f"{self.train_batch_size} rows cannot be shared by {processes} processes{of_each}"
            return {"train_batch_size": problem}
        at_once = self.per_device_train_batch_size
        if at_once != "auto" and total % at_once:
            return {"per_device_train_batch_size": f"{at_once} does not divide the {total} rows of a process"}
        if processes > 1 and (own := [key for key in _SET_BY_LAUNCH if key in self.trainer_args]):
            return {f"trainer_args.{own[0]}": "cannot be set beside launch, which decides it"}
        return {}

    def contents(self) -> dict[str, Contents | None]:
        values = {key: self.trainer_args.get(key) for key in _FILES_OF_TRAINERS}
        return {f"trainer_args.{key}": contents.of_file(file) for key, file in values.items() if isinstance(file, str)}


Smoothing = Annotated[float, Field(ge=0, lt=0.5)] | Literal["measured"]


class PreferenceConfig(TrainConfig):
    """Keys that the stages share which train on people's preferences."""

    pairs: PairRule = "all"
    """Pairs of a ranking to train on: `all`, `extremes` (best, worst), `nested` (each answer at most once)."""
    ideal_answers: bool = True
    """Whether an ideal answer that somebody wrote counts as better than each answer that was shown with it. With `kto`
    it is desirable, and says nothing of the others."""

    criteria_weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field({})
    """Weights of criteria (`label.criteria`), such as `{helpful: 1, honest: 0.5}`: the weighted sum of who is better
    by each then orders the two answers of a pair, and grades how clearly; `overall` is the overall choice. Held-out
    pairs are ordered alike. Pairs that nobody judged by these criteria keep their overall choice. Empty: the overall
    choice alone."""

    @field_validator("criteria_weights")
    @classmethod
    def _say_something(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and not any(weight for name, weight in weights.items() if name != OVERALL):
            raise ValueError("no criterion has a weight: give one, or leave the key out")
        return weights

    def parents(self) -> tuple[str, ...]:
        return ("sft", "label")


class BelievedConfig(PreferenceConfig):
    """Keys on how far labels are believed."""

    label_smoothing: Smoothing = 0.0
    """Share of labels that are assumed to be the wrong way round. `measured` takes it from how often annotators
    disagree (docs/labels-to-learning.md)."""
    annotator_weights: Literal["equal", "reliability"] = "equal"
    """Weight of each annotator's labels. `reliability`: 2q - 1 for somebody who is right with probability q, measured
    by what several people said of the same pair, by hidden repeats and by hidden checks
    (https://doi.org/10.2307/2346806)."""
