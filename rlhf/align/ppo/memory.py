"""How much memory PPO will take, said before it starts.

At its peak an update holds what two forward passes, the policy's and the critic's, keep for one backward pass. That
depends on the architecture, on which layers have adapters and on the attention, so it is counted in passes over a few
tokens; everything else follows from shapes. tests/rlhf/align/ppo/test_memory.py holds it against the peak of real
trainings."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.align.config.online import PPOConfig
from rlhf.align.ppo.roles import Role, Roles
from trueup.console import say
from trueup.models import tensors
from trueup.runs import Finding
from trueup.training import batches, loop

_DRAWN_AT_ONCE, _READ_AT_ONCE, _SCORED_AT_ONCE = 64, 16, 32
"""Answers that `rlhf.align.rollouts.draw` draws side by side, that `trueup.models.scoring.completion_logps` reads at
once, and that `trueup.models.scoring.score_readings` scores at once."""
_TILE = (4096, 32768)
"""Positions and vocabulary that TRL's fused head scores at once (trl.kernels.chunked_logprob)."""
_TILE_PARTS = 7.25
"""Tiles of float32 that its backward pass holds without Triton, beside the logits: them scaled twice, log p, p, their
gradient, where the target is as bool and as number, and its difference from p."""

_HOLES = 2.2
"""Times what is held that malloc may come to take for it: see `return_freed_memory`."""


@dataclass(frozen=True)
class Prediction:
    """In bytes. Sampling and updating take turns, so the larger of the two counts."""

    weights: int
    """All roles', and those of a reward model of another base. They are in memory when the prediction is made; on a GPU
    with what cuBLAS took for its work."""
    training_state: int
    """Gradients of what is trained and Adam's two moments; on a GPU, where it steps all weights at once, a third."""
    buffer: int
    """The rollout: tokens, masks, log-probabilities, values, advantages, returns."""
    sampling: int
    """Keys and values of the answers that are drawn side by side; or, if larger, the logits of those that are read, or
    the keys and values of those that a reward model of another base scores."""
    updating: int
    """Activations of a micro-batch and the logits of the head."""
    free: int
    """On the device, beside the weights."""
    fitting_rows: int
    """The most rows of a micro-batch that fit; 0 if not even one does."""

    @property
    def total_bytes(self) -> int:
        return self.weights + self.training_state + self.buffer + max(self.sampling, self.updating)

    def describe(self) -> str:
        gib = {name: f"{value / 2**30:.1f}" for name, value in vars(self).items()}
        return (
            f"about {self.total_bytes / 2**30:.1f} GiB: weights {gib['weights']}, trained {gib['training_state']}, "
            f"rollout {gib['buffer']}, then the larger of sampling {gib['sampling']} and updating {gib['updating']}; "
            f"{gib['free']} GiB free beside the weights"
        )

    def warning(self) -> Finding | None:
        """A finding if this will not fit."""
        if self.total_bytes - self.weights <= self.free:
            return None
        if self.fitting_rows:
            advice = f"with per_device_train_batch_size: {self.fitting_rows} it would fit, and the steps stay the same"
        else:
            advice = "lower max_new_tokens, max_length or lora.r, or take a smaller model"
        return Finding("warn", "memory", f"more memory is predicted than there is: {self.describe()}. {advice}")


def predict(config: PPOConfig, roles: Roles, longest: int | None = None) -> Prediction:
    """What will be held at the peak. On a CPU a process that did not call `return_freed_memory` takes more.

    longest  tokens of the longest prompt and its answer together, where known; else `max_length`
    """
    device, model = roles.policy.placement.device, roles.policy.model
    text, item = model.config.get_text_config(), model.dtype.itemsize
    length, answer, layers = longest or config.max_length, config.most_tokens, text.num_hidden_layers
    rows = batches.rows_per_forward(config, roles.policy, [length])

    on_gpu, autocast = device.type == "cuda", roles.policy.placement.autocast
    training_state = _bytes(roles.trained_weights.values()) * (4 if on_gpu else 3)
    # Two of int64, a mask of each, four of float32, what the trunk made of it; and once more, shuffled.
    trunk = text.hidden_size * item if roles.trunk.depth else 0
    buffer = 2 * config.rollout_batch_size * length * (2 * 8 + 2 + 4 * 4 + trunk)

    answers_at_once = min(_DRAWN_AT_ONCE, max(config.rollout_batch_size, config.eval_prompts))
    sampling = max(
        _cache(model, answers_at_once, length)
        + 4 * answers_at_once * text.vocab_size * 4,  # logits, scaled, their softmax, its cumulative sum
        2 * min(_READ_AT_ONCE, config.eval_prompts) * answer * text.vocab_size * 4,  # logits, their exponentials
        _scoring(config, roles, length),
    )

    coefficients = {role: _activation_coefficients(roles, role) for role in ("policy", "critic")}
    checkpointing = config.trainer_args.get("gradient_checkpointing", device.type != "cpu")

    def updating(rows: int) -> int:
        passes = [c + rows * (a * length + b * length**2) for c, a, b in coefficients.values()]
        layer = max(passes) / layers  # gradients of one layer's activations, on their way down
        if checkpointing:  # a layer keeps its input, and one at a time is computed again
            passes, layer = [rows * length * layers * text.hidden_size * item] * 2, 2 * layer
        # TRL makes room for a whole tile, however small the vocabulary.
        tile = min(_TILE[0], rows * answer) * _TILE[1] * (2 if autocast else 4)
        if not on_gpu:
            tile += int(_TILE_PARTS * min(_TILE[0], rows * answer) * min(_TILE[1], text.vocab_size) * 4)
        if config.ptx_coef:  # a third pass, whose logits are whole: themselves, their log-softmax, its gradient
            passes.append(passes[0] + 3 * rows * config.max_length * text.vocab_size * 4)
        return int(max(sum(passes) + layer, passes[0] + tile))

    free = loop.free_memory(device)
    divisors = [n for n in range(1, config.train_batch_size + 1) if config.train_batch_size % n == 0]
    row_counts = [n for n in divisors if training_state + buffer + max(sampling, updating(n)) <= free]
    return Prediction(
        weights=torch.cuda.memory_allocated(device)
        if on_gpu
        else _bytes([*roles.trained_weights.values(), *roles.frozen_weights()]),
        training_state=training_state,
        buffer=buffer,
        sampling=sampling,
        updating=updating(rows),
        free=free,
        fitting_rows=max(row_counts, default=0),
    )


def _cache(model: Any, rows: int, length: int) -> int:
    """Keys and values of so many rows of tokens."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    heads = getattr(text, "num_key_value_heads", None) or heads
    return int(rows * length * text.num_hidden_layers * 2 * heads * head_size * model.dtype.itemsize)


def _scoring(config: PPOConfig, roles: Roles, length: int) -> int:
    """What a reward model of another base holds while it scores. One on the policy's base holds less than sampling."""
    if roles.reward is None or roles.critic_from_reward:
        return 0
    rows = min(_SCORED_AT_ONCE, max(config.rollout_batch_size, config.eval_prompts))
    # The prompts', a copy of them, and that with the answers behind it.
    return 3 * _cache(roles.reward.model, rows, length)


def _activation_coefficients(roles: Roles, role: Role) -> tuple[float, float, float]:
    """(c, a, b): a forward pass over B rows of L tokens keeps c + B (a L + b L^2) bytes for its backward pass.

    b is of attention that keeps its mask or its weights; c of what is no activation, as weights that autocast rounded.
    """
    rows, lengths = 2, (8, 16, 24)
    c, a, b = np.polynomial.polynomial.polyfit(lengths, [_activation_bytes(roles, role, rows, n) for n in lengths], 2)
    return max(c, 0.0), a / rows, max(b, 0.0) / rows


def _activation_bytes(roles: Roles, role: Role, rows: int, length: int) -> int:
    """Bytes that the forward pass of a role keeps, the head's logits aside."""
    device = roles.policy.placement.device
    weights = {weight.untyped_storage().data_ptr() for weight in roles.model.parameters()}
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    tokens = torch.zeros((rows, length), dtype=torch.long, device=device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, 0] = False  # a row is padded, as it will be: without padding attention needs no mask
    with (
        roles.playing(role) as model,
        torch.autocast(device.type, torch.bfloat16, enabled=roles.policy.placement.autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        module: Any = model.critic if hasattr(model, "critic") and role == "critic" else roles.policy.model
        out = module.base_model(
            input_ids=tokens, attention_mask=mask.long(), position_ids=tensors.positions(mask), use_cache=False
        )
    del out
    return sum(sizes.values())


def return_freed_memory() -> None:
    """Let the C library give tensors back to the system as soon as they are freed.

    By itself glibc comes to keep blocks of up to 32 MB in a heap, where what a forward pass keeps and what it drops
    alternate and leave holes. What they take depends on the shapes: 17M parameters and 16 rows of 145 tokens at once
    peaked at 2,567 MiB and, with this, at 1,235; four models in benchmarks/ppo.py memory at 1,503 and 1,440. But every
    tensor then comes as pages to be zeroed: a rollout of the embedded model took 123 s in place of 78 (one run each).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_mmap_threshold = -3  # malloc.h; setting it ends its adaptation, too
        mallopt(m_mmap_threshold, 1 << 20)


def spare_time_or_memory(prediction: Prediction, device: torch.device) -> None:
    """On a CPU: `return_freed_memory` only where the holes that it avoids might not fit."""
    if device.type == "cpu" and prediction.free < _HOLES * (prediction.total_bytes - prediction.weights):
        say(f"{'memory':<12} what is freed goes back to the system at once, which costs time: little more is free")
        return_freed_memory()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
