"""LoRA adapters: which modules get one, how they are saved, and the adapters that are kept along the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils import TrainableTokensWrapper
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from trueup.errors import ConfigError
from trueup.models.loading import obey_umask
from trueup.runs import StageRun
from trueup.training.config import TrainConfig
from trueup.training.loop import require_finite

# ---- Adapters ---------------------------------------------------------------------------------------------------


def adapter(config: TrainConfig, model: PreTrainedModel, task: TaskType, new_tokens: list[int] | None = None) -> Any:
    """The LoRA adapter that the config asks for, or None with full fine-tuning.

    new_tokens  ids whose embeddings are trained too, because the base model never saw them
    """
    if config.full_finetuning:
        return None
    lora = config.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=_last_linears(config, model) if lora.last_layers else lora.target_modules,
        # A reward model's fresh head is trained whole, and must be saved with the adapter in every checkpoint.
        exclude_modules=list(_UNADAPTED) if lora.target_modules == "all-linear" and _is_mamba(model) else None,
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        trainable_token_indices=_new_rows(model, new_tokens) if new_tokens else None,
        task_type=task,
    )


_UNADAPTED = ("out_proj", "conv1d")
"""Modules of Mamba that its kernels read past any adapter; PEFT refuses them."""


def _is_mamba(model: PreTrainedModel) -> bool:
    return model.config.model_type in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


def _new_rows(model: PreTrainedModel, ids: list[int]) -> list[int] | dict[str, list[int]]:
    """Where new tokens have weights: in the embeddings, and in the output head where that is not tied to them."""
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
    wanted = config.lora.last_layers or layers
    if wanted > layers:
        raise ConfigError(f"{config.stage}.lora.last_layers", [f"{wanted}, but the model has {layers} layers"])
    targets = config.lora.target_modules
    names = []
    for name, module in model.named_modules():
        block = next((int(part) for part in name.split(".") if part.isdigit()), -1)
        chosen = targets == "all-linear" or name.rsplit(".", 1)[-1] in (
            [targets] if isinstance(targets, str) else targets
        )
        chosen &= not (_is_mamba(model) and name.endswith(_UNADAPTED))
        if isinstance(module, torch.nn.Linear | Conv1D) and block >= layers - wanted and chosen:
            names.append(name)
    if not names:
        raise ConfigError(f"{config.stage}.lora.target_modules", [f"no linear module of that name: {targets!r}"])
    return names


def keep_adapter_dropout(model: torch.nn.Module, rate: float) -> None:
    """Dropout before the adapters, as `lora.lora_dropout` says: TRL turns off theirs with that of the base."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" in name.split("."):
            module.p = rate


ADAPTER = "adapter"
"""Folder of a stage's adapter, beside the merged model: several policies can then share one base in memory."""
STEPS = "steps"
"""Folder of the adapters that were kept along the way: step-10/, step-20/, ..."""


def save_adapter(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Write the adapter as PEFT reads it; after full fine-tuning there is none."""
    if isinstance(model, PeftModel):
        require_finite(model, "the adapter")
        # New tokens' rows are stored with the adapter; the rest of the embeddings is the base model's.
        # Of several adapters on one base, it is the default one that a stage's result is.
        model.save_pretrained(directory, save_embedding_layers=False, selected_adapters=["default"])
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's model card
        obey_umask(directory)


class KeepSteps(TrainerCallback):
    """Keeps the adapter of `count` steps along the way, evenly spaced: the path of a training can be looked at."""

    def __init__(self, run: StageRun, count: int):
        self.run, self.count = run, count

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step in kept_steps(state.max_steps, self.count):
            save_adapter(model, self.run.dir / STEPS / f"step-{state.global_step}")


def kept_steps(steps: int, count: int) -> list[int]:
    """`count` steps that divide a training evenly; the last step, whose adapter is the result, is not among them."""
    wanted = (round(steps * part / (count + 1)) for part in range(1, count + 1))
    return sorted({step for step in wanted if 0 < step < steps})


def under_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model as it was trained, its adapter in its layers, for whoever asks for a plain one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
