"""Heads of models: a reward model's one output and where it is read, and the router of a mixture of experts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
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


# ---- Where the head reads ---------------------------------------------------------------------------------------

Pooling = Literal["last token", "mean over the answer"]
POOLING = "trueup_pooling"
"""Key in the config.json of a reward model whose score is read elsewhere than at the answer's last token."""


def pooling_of(model: Any) -> Pooling:
    return getattr(model.config, POOLING, None) or "last token"


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector of each answer, (B, H) float32.

    hidden  (B, T, H)
    mask    (B, T), True on the tokens of the answers, each of which has one at least
    """
    if pooling == "last token":
        last = (mask * torch.arange(1, mask.size(1) + 1, device=mask.device)).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    return (hidden.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def read_scores(model: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """Scores (B,) float32 of answers: the head on what it reads of their hidden states. `hidden` and `mask` as in
    `pool`."""
    return model.score(pool(hidden, mask, pooling_of(model)).to(hidden.dtype)).squeeze(-1).float()


def read_heads(model: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """Scores of answers, and by how much the score of each head of the ensemble differs from it: (B, 1 + K) float32,
    where K is 0 of a model without one."""
    pooled = pool(hidden, mask, pooling_of(model))
    score = model.score(pooled.to(hidden.dtype)).float()
    deviations = getattr(model, _DEVIATIONS, None)
    return score if deviations is None else torch.cat([score, pooled @ deviations.T], dim=1)


# ---- The ensemble -----------------------------------------------------------------------------------------------

ENSEMBLE = "heads.json"
"""File in the folder of a reward model: what each of its K heads has more than the head of the model, K lists of H
numbers. They sum to 0, so the mean of the heads is the head that every reader of the folder finds. JSON, since engines
take every .safetensors file of a folder for weights of the model."""
_DEVIATIONS = "head_deviations"


def set_ensemble(model: Any, deviations: Tensor | None) -> None:
    """Give a reward model these heads (K, H), or none. They are no part of the weights that transformers saves."""
    if hasattr(model, _DEVIATIONS):
        delattr(model, _DEVIATIONS)
    if deviations is not None:
        own = next(model.parameters())
        model.register_buffer(_DEVIATIONS, deviations.to(own.device, torch.float32), persistent=False)


def has_ensemble(folder: Path) -> bool:
    return (folder / ENSEMBLE).is_file()


def load_ensemble(model: Any, folder: Path) -> None:
    """Give a reward model the heads that lie in a folder, if any do."""
    if has_ensemble(folder):
        values = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        set_ensemble(model, torch.tensor(values[_DEVIATIONS], dtype=torch.float32))


def save_ensemble(model: Any, folder: Path) -> None:
    """Write the heads of a reward model beside its weights, if it has any."""
    if (deviations := getattr(model, _DEVIATIONS, None)) is not None:
        values = {_DEVIATIONS: deviations.float().cpu().tolist()}
        (folder / ENSEMBLE).write_text(json.dumps(values) + "\n", encoding="utf-8")


# ---- A trunk of fewer layers ------------------------------------------------------------------------------------


def can_be_cut(model: PreTrainedModel, layers: int) -> bool:
    """Whether the class of a reward model builds the model of its first layers from a config alone, so that it can be
    loaded again."""
    settings = copy.deepcopy(model.config)
    _cut_settings(settings, layers)
    try:
        with torch.device("meta"):
            cut: Any = type(model)(settings)
    except Exception:
        return False
    own = {name: weight.shape for name, weight in model.state_dict().items()}
    return all(own.get(name) == weight.shape for name, weight in cut.state_dict().items())


def cut_trunk(model: Any, layers: int) -> None:
    """Remove the layers of a reward model behind the first ones, if there are any: not every family keeps its layers
    where they could be taken from."""
    if layers == model.config.get_text_config().num_hidden_layers:
        return
    _cut_settings(model.config, layers)
    model.base_model.layers = model.base_model.layers[:layers]


def _cut_settings(settings: PretrainedConfig, layers: int) -> None:
    text = settings.get_text_config()
    whole = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == whole:  # one entry a layer
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers


def fits_policy(folder: Path, policy: PreTrainedModel) -> bool:
    """Whether the reward model in a folder reads where a head on all layers of the policy does, so that its adapter may
    share the policy's base."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = type(policy.config).from_dict(values)  # families call their number of layers by several names
    layers = (config.get_text_config().num_hidden_layers for config in (settings, policy.config))
    return not values.get(POOLING) and len(set(layers)) == 1


def let_router_be(model: PreTrainedModel) -> None:
    """Stop a mixture of experts from returning its router's choices unless a call asks for them. Otherwise it computes
    the balance of its experts in every forward pass, which fails with a cache."""
    settings = model.config.get_text_config()
    if getattr(settings, "output_router_logits", False):
        settings.output_router_logits = False
