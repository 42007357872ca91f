"""How many rows go through a model at once, and batches of rows of like length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import BatchRebalanceSampler

from trueup.console import say
from trueup.errors import ConfigError
from trueup.launching import processes
from trueup.models.chat import IGNORED
from trueup.models.loading import Loaded
from trueup.training import loop
from trueup.training.config import TrainConfig
from trueup.training.trunk import Trunk, kept_over_epochs

Lengths = Sequence[int] | np.ndarray
"""Tokens of each training row."""
_ROWS_ON_CPU = 16
"""Most rows that go through the model at once without a GPU."""


def rows_per_forward(config: TrainConfig, loaded: Loaded, lengths: Lengths) -> int:
    """Rows that go through the model at once on each process. It divides a process's share of `train_batch_size`, so
    that the optimiser step stays the same, and is at least `least_rows`."""
    require_shared(config)
    total = config.train_batch_size // processes.count()
    if config.per_device_train_batch_size != "auto":
        return config.per_device_train_batch_size
    divisors = [n for n in range(config.least_rows, total + 1) if total % n == 0]
    if loaded.placement.device.type != "cuda":
        rows = max((n for n in divisors if n <= _ROWS_ON_CPU), default=divisors[0])
        if rows < total:
            say(f"{'batch':<12} {rows} of {total} rows at once: more would take memory and save no time on a CPU")
        return rows
    # One measures for all, since they must take the same number of steps.
    row_bytes = processes.agreed(lambda: _bytes_per_token(loaded)) * max(lengths)
    free = 0.8 * processes.least(loop.free_memory(loaded.placement.device))
    rows = max((n for n in divisors if n * row_bytes <= free), default=divisors[0])
    say(
        f"{'batch':<12} {rows} of {total} rows at once: {row_bytes / 2**20:.0f} MiB a row measured, "
        f"{free / 2**30:.1f} GiB free"
    )
    return rows


def require_shared(config: TrainConfig) -> None:
    """A ConfigError if so many processes cannot train the stage together."""
    for key, problem in config.not_shared(processes.count()).items():
        raise ConfigError(f"{config.stage}.{key}", [problem])


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


class Among(NamedTuple):
    """Which of several processes this one is."""

    processes: int
    process: int


ALL = Among(1, 0)


class LengthGrouped(BatchRebalanceSampler):
    """The rows of each forward pass of one process. Those of an optimiser step have like lengths; steps come in random
    order, the longest first, so that memory peaks at once.

    The order depends on the seed and the epoch alone. The sampler of transformers draws from the global generator, so a
    resumed epoch repeats some rows and misses others; it also goes from long to short, which would be a curriculum. All
    processes together read the rows that one would, step by step, and none has more forward passes than another.

    Of its base it takes nothing but the name, by which transformers knows that these are batches, and this process's.
    """

    _POOL = 50  # steps whose rows are sorted among themselves: enough to match lengths, few enough to stay random

    def __init__(self, rows: int, lengths: Lengths, seed: int, at_once: int, least: int = 1, among: Among = ALL):
        """
        rows     in an optimiser step; `at_once`, times the processes, divides it
        at_once  rows of a forward pass of a process
        least    the fewest that it may compute. If the last step has fewer, the epoch's first rows come again in it
        """
        self.rows, self.lengths, self.seed, self.epoch = rows, np.asarray(lengths), seed, 0
        self.at_once, self.among = at_once, among
        self.left = len(lengths) % rows
        self.last_passes = math.ceil(self.left / (at_once * among.processes))
        """Forward passes of a process in the last step, if that is not full."""
        self.again = max(0, self.last_passes * among.processes * least - self.left)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(len(self.lengths) / self.rows)

    def __len__(self) -> int:
        passes = self.rows // (self.at_once * self.among.processes)
        return len(self.lengths) // self.rows * passes + self.last_passes

    def __iter__(self) -> Iterator[list[int]]:
        full, short = self.order()
        for step in full:
            yield from self._passes(step, len(step) // self.at_once)
        if len(short):
            yield from self._passes(short, self.last_passes * self.among.processes)

    def _passes(self, step: np.ndarray, number: int) -> Iterator[list[int]]:
        """This process's of the forward passes into which the rows of a step are cut."""
        return (part.tolist() for part in np.array_split(step, number)[self.among.process :: self.among.processes])

    def weights(self, step: int) -> list[float]:
        """The weight of each forward pass of a step, by which the mean of their mean losses, over all processes, is the
        mean over rows. It is 1, but in a last step that cannot be cut evenly; and 0 where all rows come again."""
        if (step + 1) % self.steps or not self.left:
            return [1.0] * (self.rows // (self.at_once * self.among.processes))
        number = self.last_passes * self.among.processes
        passes = self._passes(np.arange(self.left + self.again), number)
        return [sum(row < self.left for row in of_pass) * number / self.left for of_pass in passes]

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the epoch's full steps, (S, B), and of the one behind them that is not full."""
        generator = torch.Generator().manual_seed(self.seed * 1000003 + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).numpy()
        pool = self._POOL * self.rows
        for start in range(0, len(rows), pool):
            of_pool = rows[start : start + pool]
            rows[start : start + pool] = of_pool[np.argsort(-self.lengths[of_pool], kind="stable")]
        number = len(rows) // self.rows
        full, short = np.split(rows, [number * self.rows])
        full = full.reshape(-1, self.rows)[torch.randperm(number, generator=generator).numpy()]
        longest = self.lengths[full[:, 0]].argmax() if number else 0
        full = np.concatenate([full[longest : longest + 1], full[:longest], full[longest + 1 :]])
        first = np.concatenate([full.ravel()[: self.again], short])
        return full, np.concatenate([short, np.resize(first, self.again)])


def grouped_by_length(trainer: type[Trainer], config: TrainConfig, lengths: Lengths) -> type[Trainer]:
    """A subclass of `trainer` whose batches hold rows of like length: a quarter less to compute on the demo.

    If memory allows, each row goes through the layers below the first adapter once, not once per epoch.
    """

    class GroupedTrainer(trainer):
        pass_weight = 1.0
        """The weight of the forward pass at work, also for figures of which TRL takes the mean over passes."""

        def __init__(self, *args: Any, **kwargs: Any):
            self._weights: list[float] = []  # none outside of the loop, where a test or a check asks for a loss
            super().__init__(*args, **kwargs)
            if processes.count() > 1:
                self.accelerator.gather = processes.gather_rows(self.accelerator.gather)

        def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
            at_once, among = self.args.per_device_train_batch_size, Among(processes.count(), processes.rank())
            self._order = LengthGrouped(
                config.train_batch_size, lengths, config.seed, at_once, config.least_rows, among
            )
            return self._order

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            # Behind a resume on several processes accelerate does not find the order to tell it the epoch.
            self._order.set_epoch(self.state.global_step // self._order.steps)
            self._weights = self._order.weights(self.state.global_step)
            return super().get_batch_samples(*args, **kwargs)

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
            counted = zip(batch_samples, self._weights, strict=True)
            return super()._get_num_items_in_batch(
                [batch if weight else without_labels(batch) for batch, weight in counted], device
            )

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
        ) -> Any:
            if not model.training:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            weight = self._weights.pop(0) if self._weights else 1.0
            # With a number of items the loss is a sum over them, divided by the number in all forward passes.
            self.pass_weight = weight if num_items_in_batch is None or not weight else 1.0
            return self.pass_weight * super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def train(self, *args: Any, **kwargs: Any) -> Any:
            with _kept_over_epochs(self, config):
                return super().train(*args, **kwargs)

    return GroupedTrainer


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch, of which no token is learnt."""
    return {name: torch.full_like(value, IGNORED) if name == "labels" else value for name, value in batch.items()}


def _kept_over_epochs(trainer: Trainer, config: TrainConfig) -> AbstractContextManager[None]:
    """Keep each row's output of the layers below the first adapter for the next epochs, and print the choice.

    It is not kept with several processes, where each sees other rows in every epoch, nor with gradient checkpointing,
    which computes those layers anew in the backward pass, nor of packed rows, which come with other rows each time.
    """
    epochs = config.num_train_epochs
    if config.max_steps > 0:
        epochs = config.max_steps * config.train_batch_size / len(trainer.train_dataset)
    alone = processes.count() == 1 and not trainer.args.gradient_checkpointing
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
