"""The training loop around TRL's trainers: metrics, checkpoints, and the watch for numbers that are not finite."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from trueup.console import progress, say
from trueup.data.records import read_jsonl, write_rows
from trueup.errors import ModelError
from trueup.files import mend_last_line
from trueup.launching import processes
from trueup.models.heads import let_router_be
from trueup.runs import METRICS, StageRun, checkpoints

SAMPLES = "samples.jsonl"
"""A few answers of each rollout of an online algorithm."""

KEPT_LOSS = "kept_loss"
"""Name in metrics.jsonl of the loss on prompts that are kept to choose a step by."""


def free_memory(device: torch.device) -> int:
    """Free bytes. On a GPU they include those that PyTorch has reserved and can use again."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


class Watch(TrainerCallback):
    """Writes metrics.jsonl, shows progress, measures tokens per second, and stops a training whose loss, gradient or
    weights are not finite, before anything of that step is logged or saved."""

    def __init__(self, run: StageRun, samples: bool = False):
        """samples  the trainer samples between steps, so a broken model must stop before the next loss"""
        self.run, self.samples = run, samples
        self.first_step: int | None = None
        self.started = 0.0
        self.first_tokens = 0.0
        self.tokens = 0.0
        self.tokens_per_s = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        where = f"{self.run.config.stage}, step {state.global_step}"
        if self.samples or control.should_save:
            require_sound(model, where)
        else:
            require_finite(model, where)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        row = {"step": state.global_step, **{key: value for key, value in (logs or {}).items()}}
        for key, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
            if not math.isfinite(row.get(key) or 0.0):
                raise not_finite(f"{self.run.config.stage}, step {row['step']}", f"{what} is {row[key]}")
        self.run.log(row)
        if "loss" not in row:
            return
        now, tokens = time.time(), row.get("num_tokens", self.tokens)  # PPO counts once a rollout
        self.tokens = tokens
        if self.first_step is None:
            self.first_step, self.started, self.first_tokens = state.global_step, now, tokens
        elif now > self.started:
            self.tokens_per_s = (tokens - self.first_tokens) / (now - self.started)
        progress(state.global_step, state.max_steps, loss=row["loss"], tokens_per_s=self.tokens_per_s)


def not_finite(where: str, what: str) -> ModelError:
    """The error of a training whose numbers are not finite.

    where  start of the message: `STAGE, step N` or `STAGE, activity`
    """
    stage, comma, _ = where.partition(",")
    prefix = f"{stage}." if comma else ""
    return ModelError(
        f"{where}: {what}, and no model was saved. Nearly always the learning rate is too high: lower "
        f"{prefix}learning_rate, or raise {prefix}warmup_steps"
    )


def require_finite(model: torch.nn.Module, where: str, every: bool = False) -> None:
    """A ModelError unless the trained weights (with `every`: all) are finite; `where` as in `not_finite`."""
    for name, weight in model.named_parameters():
        if (weight.requires_grad or every) and weight.is_floating_point() and not torch.isfinite(weight.detach()).all():
            raise not_finite(where, f"the weights {name} are not finite")


@torch.no_grad()
def require_sound(model: Any, where: str, every: bool = False) -> None:
    """A ModelError unless weights and outputs are finite: finite weights can be so large that no output is a number."""
    require_finite(model, where, every)
    was_training = model.training
    model.eval()
    ids = torch.arange(8, device=next(model.parameters()).device)[None]  # any tokens; every vocabulary has these
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    model.train(was_training)
    if not torch.isfinite(logits).all():
        raise not_finite(where, "the weights are so large that the model's outputs are not finite")


def train(trainer: Trainer, run: StageRun, samples: bool = False) -> None:
    """Train to the end, from the last checkpoint if the stage was interrupted; record tokens per second.

    samples  answers are drawn between steps, by a callback if not by the trainer
    """
    watch = Watch(run, samples or hasattr(trainer, "num_generations"))
    let_router_be(trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model)
    trainer.remove_callback(PrinterCallback)  # it prints a line per step; metrics.jsonl has them
    trainer.callback_handler.callbacks.insert(1, watch)  # behind the loop's own, before those that save or evaluate
    checkpoint = processes.agreed(lambda: last_checkpoint(run.home)) if run.resumed else None
    if run.resumed:
        step = _step(checkpoint) if checkpoint else 0
        _forget_metrics_after(run.dir / METRICS, step)
        _forget_samples_from(run.dir / SAMPLES, step)
    if checkpoint:
        say(f"{'resume':<12} from {checkpoint.name}")
    if processes.count() > 1:
        trainer._save_rng_state = _whole(trainer._save_rng_state)
    # Within the training: what is evaluated before it counts as prepared, and several processes would train apart.
    trainer.args.eval_on_start = trainer.eval_dataset is not None and loss_before(run) is None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    require_sound(trainer.model, f"{run.config.stage}, step {trainer.state.global_step}")
    (run.home / "README.md").unlink(missing_ok=True)  # the model card that TRL writes with each checkpoint
    run.facts["processes"] = processes.count() if processes.count() > 1 else None
    run.facts["steps"] = trainer.state.global_step
    run.facts["tokens_per_s"] = round(watch.tokens_per_s, 1)
    run.facts["trained_parameters"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def _whole(save: Any) -> Any:
    """A checkpoint has a file of random numbers of each process, and counts as whole when the first has written its
    last file: so it waits for theirs."""

    def saved(folder: str) -> None:
        save(folder)
        processes.wait()

    return saved


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint. trainer_state.json is written last, so a checkpoint whose writing was killed lacks
    it or has a part of it. Such a checkpoint is removed, or transformers would choose it and fail."""
    for path in checkpoints(directory):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(path)
    return max(checkpoints(directory), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def _forget_metrics_after(path: Path, step: int) -> None:
    """Remove the rows of steps that will be repeated, and a last row that was cut."""
    rows = read_metrics(path)
    # Rows of the step itself stay if they were written before its checkpoint: its loss, or its evaluation.
    before = ("loss", "eval/reward", KEPT_LOSS)
    rows_before = [
        row
        for row in rows
        if row["step"] < step or row["step"] == 0 or (row["step"] == step and any(key in row for key in before))
    ]
    write_rows(path, rows_before)


def _forget_samples_from(path: Path, step: int) -> None:
    """Remove the samples of rollouts that will be repeated, and a last row that was cut."""
    if path.exists():
        write_rows(path, [row for row in read_metrics(path) if row.get("step", -1) < step])


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl or another log of steps, without a last row that was cut."""
    mend_last_line(path)
    return [row for _, row in read_jsonl(path)] if path.exists() else []


def loss_before(run: StageRun) -> float | None:
    """Held-out loss before the first step, if it was measured."""
    rows = (row for row in read_metrics(run.dir / METRICS) if row["step"] == 0)
    return next((row["eval_loss"] for row in rows if "eval_loss" in row), None)


@contextmanager
def scored_completions_only() -> Iterator[None]:
    """Let TRL's fused head compute only the positions that carry loss, on every device.

    TRL 1.16 does so with Triton and computes every position without, which makes an SFT step of the demo 1.2 times as
    long on a CPU (benchmarks/training.py). Results are equal, by tests/trueup/training/test_training.py."""
    from trl.trainer import utils

    original = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = original
