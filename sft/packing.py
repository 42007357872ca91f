"""Packed rows: training rows behind one another in one of up to `max_length` tokens, so that little is padded.

TRL packs them (best fit, decreasing), lays the packed rows of a device's batch into one, and says where each row begins
by position ids that start at 0 again, and by no attention mask. Whether a model reads these boundaries is a matter of
its class and its attention. transformers builds a mask of blocks from them for `eager`, `sdpa` and FlashAttention; a
layer that carries a state (Mamba, RWKV) or counts positions by itself (Bloom, OPT) reads on over a boundary, and the
loss falls all the same. So no list of names is trusted: the model itself is asked, before anything is trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from torch import Tensor

from trueup.console import say
from trueup.errors import ConfigError
from trueup.models.loading import Loaded
from trueup.models.templates.rendered import first_line
from trueup.training.config import TrainConfig

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Share of what a leak would change that may be rounding, by the precision of the weights."""
_ROUNDING_IN_HALF = 0.05
"""SmolLM2-135M in bfloat16 changes by 0.007 of it, and the architectures that leak by 0.66 or more."""
_ROW, _STRANGER = 24, 17
"""Tokens of the row that is asked about, and of the one between its two copies."""


def packed(rows: Dataset, max_length: int) -> Dataset:
    """The rows packed by TRL; `seq_lengths` has the length of each. None may be longer than `max_length`: TRL would cut
    it."""
    from trl import pack_dataset

    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        return pack_dataset(rows, max_length)
    finally:
        if shown:
            enable_progress_bars()


C = TypeVar("C", bound=TrainConfig)


def one_at_once(config: C) -> C:
    """The config with one packed row at once on a device, if the choice is ours. TRL would lay several into one, and
    the mask of blocks grows with the square of its length."""
    if config.per_device_train_batch_size != "auto":
        return config
    say(f"{'batch':<12} 1 packed row at once on a device: TRL would lay more behind one another, and mask their square")
    return config.model_copy(update={"per_device_train_batch_size": 1})


class Leak(NamedTuple):
    """How much the logits of a row change, at most, where another copy of it and a stranger stand before it."""

    packed: float
    """With the boundaries that TRL gives. Infinite: the model refuses them."""
    joined: float
    """Without any, which is what a leak looks like."""
    refusal: str = ""
    """What the model says of the boundaries, if it refuses them."""


def require_no_leak(trainer: Any, base: Loaded, key: str) -> None:
    """A ConfigError under `key` unless the model that is trained reads nothing of a packed row but the row's own."""
    leak = leak_of(trainer.model, trainer.data_collator, base)
    if leak.packed <= _ROUNDING.get(base.model.dtype, _ROUNDING_IN_HALF) * leak.joined:
        say(
            f"{'packing':<12} rows do not see each other: the logits of one change by {leak.packed:.1e} with what "
            f"stands before it, and by {leak.joined:.1e} where no boundary parts them"
        )
        return
    attention = getattr(base.model.config, "_attn_implementation", None)
    why = (
        f"takes no boundaries of packed rows ({leak.refusal.rstrip('.')})"
        if leak.refusal
        else f"with attention {attention} reads over the boundaries of packed rows: the logits of one change by "
        f"{leak.packed:.1e} with what stands before it"
    )
    raise ConfigError(
        key, [f"{type(base.model).__name__} {why}. Rows would learn from strangers' text: leave the key out"]
    )


@torch.no_grad()
def leak_of(model: Any, collator: Any, base: Loaded) -> Leak:
    """The leak of a model that gets its rows from TRL's collator."""
    device = base.placement.device
    draw = torch.Generator().manual_seed(0)
    many = base.model.get_input_embeddings().num_embeddings
    row, stranger = (torch.randint(many, (length,), generator=draw).tolist() for length in (_ROW, _STRANGER))
    ids = [*row, *stranger, *row]
    collated = collator([{"input_ids": ids, "labels": ids, "seq_lengths": [_ROW, _STRANGER, _ROW]}])
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in collated.items()}
    del batch["labels"]

    def change(**inputs: Any) -> float:
        logits = model(**inputs, use_cache=False).logits[0].float()
        return (logits[:_ROW] - logits[len(ids) - _ROW : len(ids)]).abs().max().item()

    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=base.placement.autocast):
            joined = change(input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"]))
            try:
                return Leak(change(**batch), joined)
            except (TypeError, ValueError) as error:  # no such argument; or a kernel that keeps rows apart is missing
                return Leak(float("inf"), joined, first_line(error))
    finally:
        model.train(was_training)
