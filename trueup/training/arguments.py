"""Arguments of TRL's trainers, from a stage's config and the user's `trainer_args`.

Each stage calls TRL in one function (`build_trainer`). The one private part of TRL 1.16 that we need stands in
`trueup.training.loop.scored_completions_only`; a test fails when TRL changes it.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from transformers import TrainingArguments

from trueup.errors import ConfigError, did_you_mean
from trueup.files import Json
from trueup.launching import processes
from trueup.models.loading import Loaded
from trueup.runs import StageRun
from trueup.training.batches import Lengths, rows_per_forward
from trueup.training.config import TrainConfig

# ---- Arguments --------------------------------------------------------------------------------------------------


def trainer_arguments(config: TrainConfig, run: StageRun, loaded: Loaded, longest: Lengths) -> Json:
    """Arguments that every TRL config takes from a TrainConfig.

    longest  token counts of the training rows (of a pair: of its two sequences together), to fit a batch in memory
    """
    on_cpu = loaded.placement.device.type == "cpu"
    rows = rows_per_forward(config, loaded, longest)
    return {
        "output_dir": str(run.home),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": config.train_batch_size // (rows * processes.count()),
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "max_grad_norm": config.max_grad_norm,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log a loss that is not a number as 0
        "report_to": config.report_to or "none",
        "seed": config.seed,
        "use_cpu": on_cpu,
        "bf16": loaded.placement.autocast,
        # Recomputing activations saves memory and costs time; a CPU has the memory.
        "gradient_checkpointing": not on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "max_length": None,  # rows that are too long were dropped and counted; nothing may be cut in silence
    }


A = TypeVar("A", bound=TrainingArguments)


def with_user_arguments(arguments: Json, config: TrainConfig, schema: type) -> Json:
    """`arguments` with the user's `trainer_args:` on top.

    Those that would do nothing were refused when the campaign file was read (trueup.training.allowed). Those that the
    installed TRL does not know are refused here.
    """
    fields = [field.name for field in dataclasses.fields(schema) if field.init]
    problems = [
        f"{config.stage}.trainer_args.{key}: trl.{schema.__name__} has no such argument{did_you_mean(key, fields)}"
        for key in config.trainer_args
        if key not in fields
    ]
    if problems:
        raise ConfigError("trainer_args", problems)
    return {**arguments, **config.trainer_args}


def build_arguments(schema: type[A], arguments: Json, config: TrainConfig) -> A:
    """The TRL config of a stage from `arguments` and the user's; a ConfigError if TRL or transformers refuse it."""
    merged = with_user_arguments(arguments, config, schema)
    try:
        made = schema(**merged)
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        values = ", ".join(f"{key}: {value!r}" for key, value in config.trainer_args.items()) or "none"
        problem = f"{config.stage}: trl.{schema.__name__} refuses its arguments: {reason} (trainer_args: {values})"
        raise ConfigError("trainer_args", [problem]) from error
    if made.n_gpu > 1:  # transformers would share a batch among all GPUs that it sees (DataParallel), and TRL refuses
        made._n_gpu = 1
    return made
