"""How many rows go through a model at once, and batches of rows of like length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import Trainer

from trueup.console import say
from trueup.errors import ConfigError
from trueup.models.loading import Loaded
from trueup.training import loop
from trueup.training.config import TrainConfig
from trueup.training.trunk import Trunk, kept_over_epochs

Lengths = Sequence[int] | np.ndarray
"""Tokens of each training row."""
_ROWS_ON_CPU = 16
"""Most rows that go through the model at once without a GPU."""


def num_processes() -> int:
    """Number of processes that train together, from `accelerate launch` or `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_per_forward(config: TrainConfig, loaded: Loaded, lengths: Lengths) -> int:
    """Rows that go through the model at once on each process. It divides a process's share of `train_batch_size`, so
    that the optimiser step stays the same, and is at least `least_rows`."""
    total, rest = divmod(config.train_batch_size, num_processes())
    if rest or total < config.least_rows:
        of_each = f", of which each must compute {config.least_rows} or more at once" if config.least_rows > 1 else ""
        problem = f"{config.train_batch_size} rows cannot be shared by {num_processes()} processes{of_each}"
        raise ConfigError(f"{config.stage}.train_batch_size", [problem])
    if config.per_device_train_batch_size != "auto":
        if total % config.per_device_train_batch_size:
            key = f"{config.stage}.per_device_train_batch_size"
            raise ConfigError(key, [f"{config.per_device_train_batch_size} does not divide train_batch_size {total}"])
        return config.per_device_train_batch_size
    divisors = [n for n in range(config.least_rows, total + 1) if total % n == 0]
    if loaded.placement.device.type != "cuda":
        rows = max((n for n in divisors if n <= _ROWS_ON_CPU), default=divisors[0])
        if rows < total:
            say(f"{'batch':<12} {rows} of {total} rows at once: more would take memory and save no time on a CPU")
        return rows
    row_bytes = _bytes_per_token(loaded) * max(lengths)
    free = 0.8 * loop.free_memory(loaded.placement.device)
    rows = max((n for n in divisors if n * row_bytes <= free), default=divisors[0])
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


# ---- Training ---------------------------------------------------------------------------------------------------


class LengthGrouped(Sampler[int]):
    """Rows of like length in one batch, batches in random order, the longest first, so that memory peaks at once.

    The order depends on the seed and the epoch alone. The sampler of transformers draws from the global generator, so a
    resumed epoch repeats some rows and misses others; it also goes from long to short, which would be a curriculum.
    """

    _POOL = 50  # batches that are sorted among themselves: enough to match lengths, few enough to stay random

    def __init__(self, batch_size: int, lengths: Lengths, seed: int, at_once: int = 1, least: int = 1):
        """
        at_once  rows that a device computes at once
        least    the fewest that it may. If fewer would be left for the last time, the first rows of the epoch come
                 again beside them
        """
        self.batch_size, self.lengths, self.seed, self.epoch = batch_size, np.asarray(lengths), seed, 0
        left = len(lengths) % at_once
        self.again = least - left if 0 < left < least else 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.again

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1000003 + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).numpy()
        pool = self._POOL * self.batch_size
        for start in range(0, len(rows), pool):
            of_pool = rows[start : start + pool]
            rows[start : start + pool] = of_pool[np.argsort(-self.lengths[of_pool], kind="stable")]
        # A batch that is not full must stay last, or the loader would cut the batches after it in other places.
        number = len(rows) // self.batch_size
        full, short = np.split(rows, [number * self.batch_size])
        full = full.reshape(-1, self.batch_size)[torch.randperm(number, generator=generator).numpy()]
        longest = self.lengths[full[:, 0]].argmax() if number else 0
        parts = full[longest : longest + 1], full[:longest], full[longest + 1 :], short
        order = np.concatenate([part.ravel() for part in parts])
        return map(int, np.concatenate([order, order[: self.again]]))


def grouped_by_length(trainer: type[Trainer], config: TrainConfig, lengths: Lengths) -> type[Trainer]:
    """A subclass of `trainer` whose batches hold rows of like length: a quarter less to compute on the demo.

    If memory allows, each row goes through the layers below the first adapter once, not once per epoch.
    """

    class GroupedTrainer(trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
            # Of several processes none is left with fewer: accelerate begins anew to fill the last batch.
            at_once = self.args.per_device_train_batch_size if num_processes() == 1 else 1
            return LengthGrouped(config.train_batch_size, lengths, config.seed, at_once, config.least_rows)

        def train(self, *args: Any, **kwargs: Any) -> Any:
            with _kept_over_epochs(self, config):
                return super().train(*args, **kwargs)

    return GroupedTrainer


def _kept_over_epochs(trainer: Trainer, config: TrainConfig) -> AbstractContextManager[None]:
    """Keep each row's output of the layers below the first adapter for the next epochs, and print the choice.

    It is not kept with several processes, where each sees other rows in every epoch, nor with gradient checkpointing,
    which computes those layers anew in the backward pass, nor of packed rows, which come with other rows each time.
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
    if getattr(trainer, "padding_free", False):
        say(f"{'trunk':<12} the layers below the first adapter are computed anew in each epoch: rows are packed")
        return nullcontext()
    bytes_per_token = decoder.config.get_text_config().hidden_size * decoder.dtype.itemsize
    free, size = loop.free_memory(decoder.device), 0
    below = f"{trunk.depth} of {len(decoder.layers)} layers are below the first adapter; their output for a row"
    for row in trainer.train_dataset:
        size += bytes_per_token * sum(len(ids) for key, ids in row.items() if key.endswith("_ids"))
        if size > free / 4:  # there may be millions behind it
            more = f"more than {size / 2**30:.1f} GiB, {free / 2**30:.1f} free"
            say(f"{'trunk':<12} {below} is computed anew in each epoch: {more}")
            return nullcontext()

    def tell(random: bool) -> None:
        why_not = "is computed anew in each epoch: it draws random numbers (dropout, or noise on the embeddings)"
        say(f"{'trunk':<12} {below} {why_not if random else f'is kept over the epochs, {size / 2**20:.0f} MiB'}")

    return kept_over_epochs(trunk, tell)
