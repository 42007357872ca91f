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
