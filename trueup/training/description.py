"""What a model is, told in seconds: from its settings, its tokenizer and a model without memory. No weight is read."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import torch
from peft import TaskType, get_peft_model

from trueup.config import Stages
from trueup.models.placement import place
from trueup.models.sources.settings import context_length
from trueup.training.adapters import adapter
from trueup.training.config import TrainConfig
from trueup.training.trial import Stage, aside


class ModelSummary(NamedTuple):
    """A model in a few lines."""

    key: str
    """What names it in the campaign file."""
    model: str
    """Class, architecture, parameters, context."""
    place: str
    """Device, precision and attention, with the reason."""
    tokenizer: str
    """Chat template and end of turn, as the tokenizer's loading announces them."""
    trained: list[str]
    """What each stage trains of it."""

    @property
    def text(self) -> str:
        return "\n         ".join([f"{self.key}: {self.model}", self.place, self.tokenizer, *self.trained])


def describe(stage: Stage, tokenizer: str, stages: Stages) -> ModelSummary:
    """The description of a base model that `try_model` can build.

    tokenizer  what its loading announced
    """
    with aside():
        model = stage.named()
    size = sum(weight.numel() for weight in model.parameters())
    context = context_length(stage.settings, stage.tokenizer)
    limit = f"context {context:,} tokens" if context else "no limit of its context known"
    kind = f"{type(model).__name__} ({stage.settings.model_type})"
    by_what: dict[str, list[str]] = {}
    for name, config in stages.items():
        if isinstance(config, TrainConfig):
            with suppress(Exception):  # `try_stages` reports a stage that cannot be built
                by_what.setdefault(_trained(stage, config), []).append(name)
    trained = [f"{', '.join(names)}: {what}" for what, names in by_what.items()]
    key = stage.config.key("name").removesuffix(".name")
    return ModelSummary(
        key, f"{kind}, {_amount(size)} parameters, {limit}", place(stage.config).reason, tokenizer, trained
    )


def _trained(stage: Stage, config: TrainConfig) -> str:
    """The modules with an adapter, as PEFT chooses them, or all weights."""
    if config.full_finetuning:
        return "all weights are trained"
    with aside(), torch.device("meta"):
        model = stage.named()
        task = TaskType.CAUSAL_LM if stage.fresh_head is None else TaskType.SEQ_CLS
        adapted = get_peft_model(model, adapter(config, model, task)).base_model.targeted_module_names
    modules = dict.fromkeys(name.rpartition(".")[2] for name in adapted)
    layers = {number for name in adapted if (number := next((part for part in name.split(".") if part.isdigit()), ""))}
    of = model.config.get_text_config().num_hidden_layers
    which = f"all {of}" if len(layers) == of else f"{len(layers)} of {of}"
    return f"adapters (r {config.lora.r}) in {' '.join(modules)} of {which} layers"


def _amount(count: int) -> str:
    """A number of parameters as people say it: 134.5 M, 7.2 B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
