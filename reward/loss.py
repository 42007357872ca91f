"""The loss of the reward model: the likelihood of what people said, given its scores. Pure functions.

A comparison is a row of coefficients over scores: 1 for the better answer and -1 for the other one, or 1/n for each of
n answers that stand on one side together. Its gap is their product with the scores:

    gap_k = sum_n contrasts[k, n] r_n

Strict comparisons and ties are of one model (Rao and Kupper 1967, https://doi.org/10.2307/2282923): with a threshold h,
    P(i before j) = sigmoid(gap - h)        P(tie) = (e^{2h} - 1) sigmoid(gap - h) sigmoid(-gap - h)
    P(j before i) = sigmoid(-gap - h)
which sum to 1. Without ties h is 0, and this is the model of Bradley and Terry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def strict_loss(gaps: Tensor, margins: Tensor | float = 0.0, threshold: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(gap - m - h), nats, of comparisons whose first side is preferred.

    gaps     (M,)
    margins  (M,) the least gap that the grade of a preference asks for (Touvron et al. 2023,
             https://arxiv.org/abs/2307.09288, eq. 2)
    """
    return -logsigmoid(gaps - margins - threshold)


def tie_loss(gaps: Tensor, threshold: Tensor | float) -> Tensor:
    """-log P(tie), nats, of comparisons (M,) whose sides are equally good. `threshold` is above 0."""
    h = torch.as_tensor(threshold, dtype=gaps.dtype, device=gaps.device)
    return -torch.log(torch.expm1(2 * h)) - logsigmoid(gaps - h) - logsigmoid(-gaps - h)


def even_loss(gaps: Tensor) -> Tensor:
    """The loss of a tie as half a preference for each side: (L(gap) + L(-gap)) / 2, with L = -log sigmoid."""
    return (strict_loss(gaps) + strict_loss(-gaps)) / 2


def preference_loss(
    gaps: Tensor,
    margins: Tensor,
    is_tie: Tensor,
    weights: Tensor,
    threshold: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """The sum of weight times loss over all comparisons, nats.

    gaps, margins, weights  (M,)
    is_tie                  (M,) True where neither side is preferred
    threshold               of Rao and Kupper, a scalar; None: a tie is half a preference for each side
    smoothing               share e of preferences that are taken to be the wrong way round (conservative loss, Mitchell
                            2023, https://ericmitchell.ai/cdpo.pdf): (1 - e) L(gap - m) + e L(-gap - m), so that the
                            margin stays the least distance on either side
    """
    h = 0.0 if threshold is None else threshold
    strict = (1 - smoothing) * strict_loss(gaps, margins, h) + smoothing * strict_loss(-gaps, margins, h)
    tied = even_loss(gaps) if threshold is None else tie_loss(gaps, threshold)
    return (weights * torch.where(is_tie, tied, strict)).sum()


def threshold_of(share: float) -> float:
    """The threshold at which answers that are equally good are tied in this share of comparisons: P(tie) at gap 0 is
    (e^{2h} - 1) / (1 + e^h)^2 = tanh(h / 2)."""
    return 2 * math.atanh(share)
