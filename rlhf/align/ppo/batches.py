"""Batches of a rollout: prompts padded on the left, answers on the right, and micro-batches of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def join(batch: Batch) -> tuple[Tensor, Tensor, int]:
    """Prompt and answer as one: tokens and mask (B, S + T), and T."""
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).bool()
    return tokens, mask, batch["completion_ids"].size(1)


def parts(batch: Batch, rows: int) -> Iterator[Batch]:
    """Micro-batches of so many rows, without columns that hold nothing but padding."""
    for start in range(0, len(batch["prompt_ids"]), rows):
        part = {key: value[start : start + rows] for key, value in batch.items()}
        prompt, answer = int(part["prompt_mask"].sum(1).max()), int(part["completion_mask"].sum(1).max())
        yield {
            key: value[:, -prompt:] if key.startswith("prompt_") else value[:, :answer] for key, value in part.items()
        }


def widen(x: Tensor, width: int, left: bool = False) -> Tensor:
    """(B, W, ...) to (B, width, ...), with zeros after what is there, or before it."""
    zeros = x.new_zeros((len(x), width - x.size(1), *x.shape[2:]))
    return torch.cat([zeros, x] if left else [x, zeros], dim=1)
