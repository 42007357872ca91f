"""An adapter that the user brings (`model.adapter`): it is read, held against the base model, and loaded onto it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import PreTrainedModel

from trueup.errors import ModelError
from trueup.models.config import ModelConfig, named
from trueup.models.loading import Loaded
from trueup.models.sources.embedded import EMBEDDED, EMBEDDED_NAME
from trueup.models.sources.files import adapter_folder
from trueup.models.sources.low_rank import SETTINGS, WEIGHTS, unmergeable
from trueup.models.templates.rendered import first_line


class OwnAdapter(NamedTuple):
    """An adapter's folder, and PEFT's settings of it."""

    folder: Path
    settings: Any


def read_adapter(config: ModelConfig) -> OwnAdapter:
    """The adapter that the config names; a ModelError unless it is a LoRA adapter of a language model."""
    folder = adapter_folder(config)
    assert folder is not None, "the caller knows that there is an adapter"
    key = named(config.key("adapter"), str(config.adapter))
    if missing := [name for name in (SETTINGS, WEIGHTS) if not (folder / name).is_file()]:
        raise ModelError(f"{key}: has no {' and no '.join(missing)}, which PEFT's save_pretrained writes")
    try:
        settings = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ModelError(f"{key}: {SETTINGS} cannot be read ({first_line(error)})") from error
    if settings.peft_type != PeftType.LORA:
        raise ModelError(f"{key}: is of PEFT's kind {_name(settings.peft_type)}; only LORA is merged into the weights")
    if settings.task_type not in (None, TaskType.CAUSAL_LM):
        raise ModelError(f"{key}: is for {_name(settings.task_type)}; a language model's, CAUSAL_LM, is wanted")
    if (setting := unmergeable(settings.to_dict())) is not None:
        raise ModelError(
            f"{key}: {SETTINGS} has {setting}: such an adapter cannot be merged into the weights that it was trained "
            "over; convert it to a plain LoRA adapter, or name a model into which it is merged"
        )
    return OwnAdapter(folder, settings)


def _name(kind: Any) -> str:
    return str(getattr(kind, "value", kind))


def require_fitting(config: ModelConfig, adapter: OwnAdapter, model: PreTrainedModel) -> None:
    """A ModelError, which names both, unless every weight of the adapter has its place in the model.

    model  a model of the base's shapes, on the meta device; it is changed
    """
    folder, settings = adapter
    over = settings.base_model_name_or_path or "a model that it does not name"
    key = named(config.key("adapter"), str(config.adapter))
    misfit = f"{key}: trained over {over}, does not fit {config.named}"
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ModelError(f"{key}: {WEIGHTS} is not a whole safetensors file ({error})") from error
    try:
        with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
            places: Any = get_peft_model(model, settings)
            expected = get_peft_model_state_dict(places, save_embedding_layers=False)
            shared = _shared_embeddings(places.get_base_model())
    except Exception as error:
        raise ModelError(f"{misfit}: {first_line(error)}") from error
    if shared:
        raise ModelError(
            f"{misfit}: it changes the embeddings, which are the output head's weights too, and merging would change "
            "both; name a model into which it is merged"
        )
    wrong = [f"it has no {name}" for name in expected if name not in shapes]
    wrong += [f"the model has no {name}" for name in shapes if "lora_" in name and name not in expected]
    wrong += [
        f"{name} is {shapes[name]}, not {list(weight.shape)}"
        for name, weight in expected.items()
        if name in shapes and shapes[name] != list(weight.shape)
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(f"{misfit}: {wrong[0]}{more}. Name the model that it was trained over")


def _shared_embeddings(model: Any) -> bool:
    """Whether an adapter is on embeddings, or an output head, that are one weight."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return model.config.get_text_config().tie_word_embeddings and any(isinstance(one, LoraLayer) for one in both)


def of_another(config: ModelConfig, adapter: OwnAdapter) -> str | None:
    """A sentence if the adapter says that it was trained over a model of another name; shapes alone do not tell a base
    model from its instruct model."""
    over = adapter.settings.base_model_name_or_path
    here = EMBEDDED_NAME if config.name == EMBEDDED else config.name
    if not over or Path(over).name.casefold() == Path(here).name.casefold():
        return None
    return f"the adapter {config.adapter} says that it was trained over {over}; it is put over {here}"


def load_adapter(adapter: OwnAdapter, base: Loaded) -> Any:
    """The base model under the adapter, both frozen."""
    return PeftModel.from_pretrained(base.model, adapter.folder)
