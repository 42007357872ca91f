"""Pure tensor functions that stages share. No model, no config."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Token rows as (B, T) int64 padded on the right with `value`, and their mask (B, T), True on real tokens."""
    return _pad(rows, value, left=False)


def pad_left(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Token rows as (B, T) int64 padded on the left with `value`, and their mask (B, T), True on real tokens."""
    return _pad(rows, value, left=True)


def _pad(rows: Sequence[Sequence[int]], value: int, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return tokens, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids (B, T) that count real tokens only, so that padding on either side changes no result.

    mask  (B, T) bool, True on real tokens; padding gets position 0
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(token) under each position's distribution, in float32.

    logits  (..., V), of the distribution that each token was drawn from (already shifted)
    tokens  (...) int64
    """
    token_logits = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float()
    return token_logits - logits.float().logsumexp(dim=-1)


def kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(p || q) in nats of each position, in float32 and never below 0: sum over tokens of p (log p - log q).

    logits            (..., V) of p
    reference_logits  (..., W) of q; W differs from V if a vocabulary grew or its matrix was padded, and the sum is over
                      the tokens that both have
    """
    shared = min(logits.size(-1), reference_logits.size(-1))
    log_p = logits.float().log_softmax(dim=-1)[..., :shared]
    log_q = reference_logits.float().log_softmax(dim=-1)[..., :shared]
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)
