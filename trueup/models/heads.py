"""Heads of models: a reward model's one output, and the router of a mixture of experts."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from trueup.errors import ModelError
from trueup.models.config import A_REWARD_MODEL, ModelConfig


def needs_head(config: ModelConfig, settings: PretrainedConfig, headless: str | None) -> bool:
    """Whether a model that is to score is a language model, and gets a fresh head; False of a reward model. A
    ModelError if it can become none.

    headless  as in `trueup.models.config.ModelStageConfig`
    """
    classes = settings.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in classes):
        if settings.num_labels != 1:
            raise ModelError(
                f"{config.named}: has {settings.num_labels} outputs; a reward model has one: name {A_REWARD_MODEL}"
            )
        return False
    if headless:
        its = ", ".join(classes) or "no class"
        raise ModelError(
            f"{config.named}: its config.json names {its}, which is no ...ForSequenceClassification, so no head "
            f"that scores can be read: {headless}"
        )
    return True


def require_score_head(config: ModelConfig, model: PreTrainedModel) -> None:
    """A ModelError unless the head reads the last token, as a decoder's does. An encoder has a head of another form."""
    if not hasattr(model, "score"):
        raise ModelError(
            f"{config.named}: {model.config.model_type} has no head that reads the last token of an answer: name a "
            "decoder, as language models are"
        )


def train_in_float32(head: torch.nn.Module) -> None:
    """Keep a fully trained head in float32, whatever its input is: bf16 rounds small updates away."""
    head.to(torch.float32)
    head.register_forward_pre_hook(_in_float32)


def _in_float32(head: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.to(torch.float32) for value in args)


def add_score_head(settings: PretrainedConfig) -> None:
    """Register a reward model for an architecture for which transformers has none, such as Cohere and Granite: the
    decoder and one linear layer, as it has for the others."""
    kind = type(settings)
    if kind in AutoModelForSequenceClassification._model_mapping or kind not in AutoModelForCausalLM._model_mapping:
        return
    if not kind.__module__.startswith("transformers."):  # code that came with a model registers its own classes
        return
    causal = AutoModelForCausalLM._model_mapping[kind]
    pretrained = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))
    if pretrained is PreTrainedModel:
        return
    name = kind.__name__.removesuffix("Config") + "ForSequenceClassification"
    own = {"__module__": __name__, "base_model_prefix": causal.base_model_prefix}
    head = type(name, (GenericForSequenceClassification, pretrained), own)
    AutoModelForSequenceClassification.register(kind, head, exist_ok=True)  # else only for foreign code


def let_router_be(model: PreTrainedModel) -> None:
    """Stop a mixture of experts from returning its router's choices unless a call asks for them. Otherwise it computes
    the balance of its experts in every forward pass, which fails with a cache."""
    settings = model.config.get_text_config()
    if getattr(settings, "output_router_logits", False):
        settings.output_router_logits = False
