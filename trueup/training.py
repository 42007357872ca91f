"""What the training stages share around TRL's trainers: arguments, adapters, progress, resume, merging.

TRL is reached in one function of each stage (`build_trainer`); what is private to TRL 1.16 and needed anyway stands in
`scored_completions_only` below, and has a test that fails when TRL changes it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils import TrainableTokensWrapper
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from trueup.config import TrainConfig
from trueup.console import progress, say
from trueup.errors import ConfigError, ModelError, did_you_mean
from trueup.models import Loaded, let_router_be, obey_umask
from trueup.records import write_rows
from trueup.runs import METRICS, StageRun, checkpoints
from trueup.trunk import Trunk, kept_over_epochs

# ---- Arguments --------------------------------------------------------------------------------------------------


def trainer_arguments(config: TrainConfig, run: StageRun, loaded: Loaded, longest: list[int]) -> dict[str, Any]:
    """Arguments that every TRL config takes from a TrainConfig.

    longest  token counts of the training rows (of a pair: of its two sequences together), to fit a batch in memory
    """
    on_cpu = loaded.placement.device.type == "cpu"
    rows = rows_per_forward(config, loaded, longest)
    return {
        "output_dir": str(run.dir),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": config.train_batch_size // (rows * num_processes()),
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "max_grad_norm": config.max_grad_norm,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show a loss that is not a number as 0
        "report_to": config.report_to or "none",
        "seed": config.seed,
        "use_cpu": on_cpu,
        "bf16": loaded.placement.autocast,
        # Recomputing activations saves memory that a CPU has, for time that it has not.
        "gradient_checkpointing": not on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "max_length": None,  # rows that are too long were dropped and counted, so nothing is cut in silence
    }


A = TypeVar("A", bound=TrainingArguments)


def with_user_arguments(arguments: dict[str, Any], config: TrainConfig, schema: type) -> dict[str, Any]:
    """`arguments` with the user's `trainer_args:` on top.

    Those that would do nothing were refused as the campaign file was read (trueup.trainer_args); what the installed TRL
    does not know is refused here.
    """
    known = [field.name for field in dataclasses.fields(schema) if field.init]
    problems = [
        f"{config.stage}.trainer_args.{key}: trl.{schema.__name__} has no such argument{did_you_mean(key, known)}"
        for key in config.trainer_args
        if key not in known
    ]
    if problems:
        raise ConfigError("trainer_args", problems)
    return {**arguments, **config.trainer_args}


def build_arguments(schema: type[A], arguments: dict[str, Any], config: TrainConfig) -> A:
    """The TRL config of a stage, of `arguments` and the user's; a ConfigError where TRL or transformers refuse it."""
    merged = with_user_arguments(arguments, config, schema)
    try:
        return schema(**merged)
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        given = ", ".join(f"{key}: {value!r}" for key, value in config.trainer_args.items()) or "none"
        problem = f"{config.stage}: trl.{schema.__name__} refuses its arguments: {reason} (trainer_args: {given})"
        raise ConfigError("trainer_args", [problem]) from error


_ROWS_ON_CPU = 16
"""Rows that go through the model at once without a GPU, at most."""


def num_processes() -> int:
    """Processes that train together, as `accelerate launch` and `torchrun` tell each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_per_forward(config: TrainConfig, loaded: Loaded, lengths: list[int]) -> int:
    """Rows that go through the model at once on each process; a divisor of a process's share of `train_batch_size`, so
    that the step stays what it was."""
    total, rest = divmod(config.train_batch_size, num_processes())
    if rest:
        key = f"{config.stage}.train_batch_size"
        raise ConfigError(key, [f"{config.train_batch_size} rows cannot be shared by {num_processes()} processes"])
    if config.per_device_train_batch_size != "auto":
        if total % config.per_device_train_batch_size:
            key = f"{config.stage}.per_device_train_batch_size"
            raise ConfigError(key, [f"{config.per_device_train_batch_size} does not divide train_batch_size {total}"])
        return config.per_device_train_batch_size
    if loaded.placement.device.type != "cuda":
        rows = next(n for n in range(min(total, _ROWS_ON_CPU), 0, -1) if total % n == 0)
        if rows < total:
            say(f"{'batch':<12} {rows} of {total} rows at once: more would take memory and save no time on a CPU")
        return rows
    row_bytes = _bytes_per_token(loaded) * max(lengths)
    free = 0.8 * free_memory(loaded.placement.device)
    rows = next(n for n in range(total, 0, -1) if total % n == 0 and (n == 1 or n * row_bytes <= free))
    say(
        f"{'batch':<12} {rows} of {total} rows at once: {row_bytes / 2**20:.0f} MiB a row measured, "
        f"{free / 2**30:.1f} GiB free"
    )
    return rows


def _bytes_per_token(loaded: Loaded) -> float:
    """Peak memory per token of a forward and backward pass. An upper bound: TRL's head needs less."""
    device, tokens = loaded.placement.device, 512
    ids = torch.zeros((1, tokens), dtype=torch.long, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    embedded = loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
    loaded.model(inputs_embeds=embedded, use_cache=False)[0].float().mean().backward()
    loaded.model.zero_grad(set_to_none=True)
    return (torch.cuda.max_memory_allocated(device) - before) / tokens


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
SAMPLES = "samples.jsonl"
"""What an online algorithm sampled on its way, a few answers of each rollout."""
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


# ---- Training ---------------------------------------------------------------------------------------------------


class LengthGrouped(Sampler[int]):
    """Rows of like length in one batch, batches in random order, the longest first, so that memory peaks at once.

    The order depends on the seed and the epoch alone: the sampler of transformers draws from the global generator, with
    which a resumed epoch repeats some rows and misses others, and goes from long to short, which would be a curriculum.
    """

    _POOL = 50  # batches that are sorted among themselves: enough to match lengths, few enough to stay random

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        self.batch_size, self.lengths, self.seed, self.epoch = batch_size, lengths, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1000003 + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches = []
        for start in range(0, len(rows), self._POOL * self.batch_size):
            pool = sorted(rows[start : start + self._POOL * self.batch_size], key=lambda row: -self.lengths[row])
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        # A batch that is not full has to stay last, or the loader would cut all that follow it elsewhere.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        if full:
            full.insert(0, full.pop(max(range(len(full)), key=lambda i: self.lengths[full[i][0]])))
        return iter([row for batch in [*full, *short] for row in batch])


def grouped_by_length(trainer: type[Trainer], config: TrainConfig, lengths: list[int]) -> type[Trainer]:
    """A subclass of `trainer` whose batches hold rows of like length: a quarter less padding to compute on the demo.

    It reads a row through the layers below the first adapter once, not once an epoch, where memory allows.
    """

    class GroupedTrainer(trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
            return LengthGrouped(config.train_batch_size, lengths, config.seed)

        def train(self, *args: Any, **kwargs: Any) -> Any:
            with _kept_over_epochs(self, config):
                return super().train(*args, **kwargs)

    return GroupedTrainer


def _kept_over_epochs(trainer: Trainer, config: TrainConfig) -> AbstractContextManager[None]:
    """What the layers below the first adapter make of a row is kept for the next epochs; what is chosen is said.

    Not with several processes, each of which sees other rows in every epoch, nor with gradient checkpointing, which
    computes those layers anew on the way back whatever was kept.
    """
    epochs = config.num_train_epochs
    if config.max_steps > 0:
        epochs = config.max_steps * config.train_batch_size / len(trainer.train_dataset)
    alone = num_processes() == 1 and not trainer.args.gradient_checkpointing
    if epochs <= 1 or not alone or not isinstance(trainer.model, PeftModel):
        return nullcontext()
    decoder = trainer.model.get_base_model().base_model
    trunk = Trunk(decoder)
    if not trunk.depth:
        return nullcontext()
    tokens = sum(len(ids) for row in trainer.train_dataset for key, ids in row.items() if key.endswith("_ids"))
    size = tokens * decoder.config.get_text_config().hidden_size * decoder.dtype.itemsize
    free = free_memory(decoder.device)
    below = f"{trunk.depth} of {len(decoder.layers)} layers are below the first adapter; what they make of a row"
    if size > free / 4:
        say(f"{'trunk':<12} {below} is computed anew in each epoch: {size / 2**30:.1f} GiB, {free / 2**30:.1f} free")
        return nullcontext()

    def tell(random: bool) -> None:
        kept = "is computed anew in each epoch: it draws random numbers (dropout, or noise on the embeddings)"
        say(f"{'trunk':<12} {below} {kept if random else f'is kept over the epochs, {size / 2**20:.0f} MiB'}")

    return kept_over_epochs(trunk, tell)


def free_memory(device: torch.device) -> int:
    """Bytes; on a GPU with what PyTorch holds and would use again."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


class Watch(TrainerCallback):
    """Writes metrics.jsonl, shows progress, measures tokens per second, and stops a run whose loss, gradient or weights
    are no numbers any more. It does so before anything of that step is logged or saved."""

    def __init__(self, run: StageRun, samples: bool = False):
        """samples  the trainer lets the model write between steps, so a broken one must be seen before the next loss"""
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
    """The error of a training whose numbers are none any more.

    where  `STAGE, step N` or `STAGE, what is done`, with which the message begins
    """
    stage, known, _ = where.partition(",")
    prefix = f"{stage}." if known else ""
    return ModelError(
        f"{where}: {what}, and no model was saved. Nearly always the learning rate is too high: lower "
        f"{prefix}learning_rate, or raise {prefix}warmup_steps"
    )


def require_finite(model: torch.nn.Module, where: str, every: bool = False) -> None:
    """A ModelError unless the weights that are trained, or with `every` all, are finite; `where` as in `not_finite`."""
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


def train(trainer: Trainer, run: StageRun) -> None:
    """Train to the end, from the last checkpoint if the stage was interrupted; record tokens per second."""
    watch = Watch(run, samples=hasattr(trainer, "num_generations"))
    let_router_be(trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model)
    trainer.remove_callback(PrinterCallback)  # a line a step, in place of which there is metrics.jsonl
    trainer.callback_handler.callbacks.insert(
        1, watch
    )  # after the flow of the loop, before whatever saves or evaluates
    checkpoint = last_checkpoint(run.dir) if run.resumed else None
    if run.resumed:
        step = _step(checkpoint) if checkpoint else 0
        _forget_metrics_after(run.dir / METRICS, step)
        _forget_samples_from(run.dir / SAMPLES, step)
    if checkpoint:
        say(f"{'resume':<12} from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    require_sound(trainer.model, f"{run.config.stage}, step {trainer.state.global_step}")
    (run.dir / "README.md").unlink(missing_ok=True)  # the model card that TRL writes with each checkpoint
    run.facts["steps"] = trainer.state.global_step
    run.facts["tokens_per_s"] = round(watch.tokens_per_s, 1)
    run.facts["trained_parameters"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint. Of one that was being written when the run was killed, trainer_state.json is missing
    or cut, since it is written last; such a one is removed, or transformers would choose it and fail."""
    for path in checkpoints(directory):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(path)
    return max(checkpoints(directory), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def _forget_metrics_after(path: Path, step: int) -> None:
    """Remove the rows of steps that will be done again, and a last row that was cut."""
    rows = read_metrics(path)
    # A row of the step itself is kept that was written before its checkpoint: its loss, or how the step was evaluated.
    before = ("loss", "eval/reward")
    kept = [
        row
        for row in rows
        if row["step"] < step or row["step"] == 0 or (row["step"] == step and any(key in row for key in before))
    ]
    write_rows(path, kept)


def _forget_samples_from(path: Path, step: int) -> None:
    """Remove what was sampled in rollouts that will be done again, and a last row that was cut."""
    if path.exists():
        write_rows(path, [row for row in read_metrics(path) if row.get("step", -1) < step])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, or of another log of steps, without a last one that was cut."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def loss_before(trainer: Trainer, run: StageRun) -> float:
    """Held-out loss before the first step; of an interrupted run, what it measured then."""
    for row in read_metrics(run.dir / METRICS) if run.resumed else []:
        if row["step"] == 0 and "eval_loss" in row:
            return row["eval_loss"]
    value = trainer.evaluate()["eval_loss"]
    run.log({"step": 0, "eval_loss": value})
    return value


@contextmanager
def scored_completions_only() -> Iterator[None]:
    """Let TRL's fused head score, on every device, only the positions that carry loss.

    TRL 1.16 does so where Triton runs and scores every position elsewhere, which makes an SFT step of the demo 1.2
    times as long on a CPU (benchmarks/training.py). Results are equal; tests/trueup/test_training.py holds that.
    """
    from trl.trainer import utils

    original = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = original
