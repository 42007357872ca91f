"""LoRA adapters: which modules get one, how they are saved, and the kept steps of a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils import TrainableTokensWrapper
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from trueup.errors import ConfigError
from trueup.files import obey_umask
from trueup.models.policies import ADAPTER as ADAPTER
from trueup.runs import StageRun
from trueup.training.config import TrainConfig
from trueup.training.loop import require_finite

# ---- Adapters ---------------------------------------------------------------------------------------------------


def adapter(config: TrainConfig, model: PreTrainedModel, task: TaskType, new_tokens: list[int] | None = None) -> Any:
    """The LoRA adapter that the config asks for, or None with full fine-tuning.

    new_tokens  ids whose embeddings are trained too, because they are new to the base model
    """
    if config.full_finetuning:
        return None
    lora = config.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=_last_linears(config, model) if lora.last_layers else lora.target_modules,
        exclude_modules=None if lora.last_layers else _unadapted(model),
        # A reward model's fresh head is trained whole, and must be saved with the adapter in every checkpoint.
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        trainable_token_indices=_new_rows(model, new_tokens) if new_tokens else None,
        task_type=task,
    )


def _is_mamba(model: PreTrainedModel) -> bool:
    return model.config.model_type in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


def _is_adaptable(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether an adapter on the linear module of a name can learn: text passes through it, which in a model that reads
    images too is so within the decoder alone; and no kernel of Mamba reads its weight directly, past any adapter."""
    decoder, embeddings = model.get_decoder(), model.get_input_embeddings()
    is_whole = all(module is not embeddings for module in decoder.modules())  # some classes call their head a decoder
    prefix = next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")
    read_directly = ("out_proj",) if _is_mamba(model) else ()
    return lambda name: name.startswith("" if is_whole else prefix) and not name.endswith(read_directly)


def _unadapted(model: PreTrainedModel) -> list[str] | None:
    """Full names of the linear modules that get no adapter, whatever names are asked for."""
    adaptable = _is_adaptable(model)
    heads = (model.get_output_embeddings(), getattr(model, "score", None))  # PEFT decides on them
    linear = [name for name, module in model.named_modules() if _is_linear(module) and module not in heads]
    return [name for name in linear if not adaptable(name)] or None


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def _new_rows(model: PreTrainedModel, ids: list[int]) -> list[int] | dict[str, list[int]]:
    """Rows of the new tokens in the embeddings, and in the output head if it is not tied to them."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embeddings.weight:
        return ids
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)]: ids for module in (embeddings, head)}


def let_head_be_read(model: PreTrainedModel | PeftModel) -> None:
    """TRL's fused head reads weight and bias of the output head; PEFT's wrapper of new tokens lacks the bias."""
    head = model.get_base_model().get_output_embeddings() if isinstance(model, PeftModel) else None
    if isinstance(head, TrainableTokensWrapper):
        object.__setattr__(head, "bias", head.original_module.bias)


def _last_linears(config: TrainConfig, model: PreTrainedModel) -> list[str]:
    """Full names of the linear modules in the last blocks. PEFT's own `layers_to_transform` refuses `all-linear`."""
    layers = model.config.get_text_config().num_hidden_layers
    blocks = config.lora.last_layers or layers
    if blocks > layers:
        raise ConfigError(f"{config.stage}.lora.last_layers", [f"{blocks}, but the model has {layers} layers"])
    targets = config.lora.target_modules
    names, adaptable = [], _is_adaptable(model)
    for name, module in model.named_modules():
        block = next((int(part) for part in name.split(".") if part.isdigit()), -1)
        matches = targets == "all-linear" or name.rsplit(".", 1)[-1] in (
            [targets] if isinstance(targets, str) else targets
        )
        if _is_linear(module) and adaptable(name) and block >= layers - blocks and matches:
            names.append(name)
    if not names:
        raise ConfigError(f"{config.stage}.lora.target_modules", [f"no linear module of that name: {targets!r}"])
    return names


def keep_adapter_dropout(model: torch.nn.Module, rate: float) -> None:
    """Set the dropout before the adapters to `lora.lora_dropout`. TRL turns it off together with the base model's."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" in name.split("."):
            module.p = rate


STEPS = "steps"
"""Folder of the kept steps: step-10/, step-20/, ..."""


def save_adapter(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Write the adapter in PEFT's format. After full fine-tuning there is none."""
    if isinstance(model, PeftModel):
        require_finite(model, "the adapter")
        # The adapter holds the rows of new tokens; the other embeddings are the base model's.
        # If the base has several adapters, the one called `default` is the stage's result.
        model.save_pretrained(directory, save_embedding_layers=False, selected_adapters=["default"])
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's model card
        obey_umask(directory)


class KeepSteps(TrainerCallback):
    """Keeps the adapter of `count` evenly spaced steps, so that one can look at a policy during training."""

    def __init__(self, run: StageRun, count: int):
        self.run, self.count = run, count

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step in kept_steps(state.max_steps, self.count):
            save_adapter(model, self.run.dir / STEPS / f"step-{state.global_step}")


def kept_steps(steps: int, count: int) -> list[int]:
    """`count` steps that divide a training evenly, without the last step, whose adapter is the result."""
    even_steps = (round(steps * part / (count + 1)) for part in range(1, count + 1))
    return sorted({step for step in even_steps if 0 < step < steps})


def under_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model with the adapter still in its layers."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
