"""The loss of DPO over pairs that do not all count alike: by grades, by label, and with ties.

TRL's trainer takes the plain mean over strict pairs, and computes it by itself. What stands here is used only where a
key asks for more. Pure functions; n pairs in a batch, all tensors of shape (n,):

    chosen, rejected                log pi - log pi_ref of the two answers, in nats
    chosen_tokens, rejected_tokens  their lengths
    is_tie                          True where the two are equally good; their order then means nothing
    offsets                         how far the margin must be above 0, in units of beta times nats; 0 for ties
    weights                         of each pair; 1 on average over all pairs that are trained on

Sources: the losses of strict pairs as in `rlhf.align.config.labelled.LOSSES`; offsets Amini et al. 2024,
https://arxiv.org/abs/2402.10571, eq. 8 with a logarithm for f and alpha = 1; ties by Davidson Chen et al. 2024,
https://arxiv.org/abs/2409.17431.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NU = 1.0
"""Davidson's nu: answers that are equally good are tied with probability nu / (1 + nu), a half."""


@dataclass(frozen=True)
class Batch:
    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    is_tie: Tensor
    offsets: Tensor
    weights: Tensor

    def at_reference(self) -> Batch:
        """The same pairs under a policy that is the reference."""
        zeros = torch.zeros_like(self.chosen)
        return replace(self, chosen=zeros, rejected=zeros)


def weighted_loss(batch: Batch, name: str, beta: float, smoothing: float, davidson: bool) -> Tensor:
    """Mean over the pairs of weight times loss, a number. Its expectation over batches is the weighted mean over all
    pairs, since weights are 1 on average over them; a batch's own weights need not be."""
    return (batch.weights * pair_losses(batch, name, beta, smoothing, davidson)).mean()


def pair_losses(batch: Batch, name: str, beta: float, smoothing: float, davidson: bool) -> Tensor:
    """The loss of each pair, (n,).

    name       an entry of the table `LOSSES`; ties and offsets have a meaning with `sigmoid`, `sigmoid_norm`
    smoothing  share of labels that are assumed to be wrong, with `sigmoid` and `robust`
    davidson   a tie is a third outcome, which makes strict pairs less likely too; False: half a preference for each

    With x = beta times the margin, o the offset and L = -log sigmoid,
        strict    L(x - o)
        tie       1/2 L(x) + 1/2 L(-x)
        davidson  P(chosen wins) = e^(x/2) / Z,  P(tie) = 2 nu / Z,  Z = e^(x/2) + e^(-x/2) + 2 nu; minus the logarithm
    """
    x = beta * _margins(batch, name)
    if name not in ("sigmoid", "sigmoid_norm"):
        return _of_strict(batch, name, x, beta, smoothing)
    if davidson:
        log_tie = torch.full_like(x, math.log(2 * NU))
        log_all = torch.logsumexp(torch.stack([x / 2, -x / 2, log_tie]), dim=0)
        return log_all - torch.where(batch.is_tie, log_tie, x / 2)
    share = torch.where(batch.is_tie, 0.5, smoothing)  # of the preference that goes the other way
    x = x - batch.offsets
    return -(1 - share) * logsigmoid(x) - share * logsigmoid(-x)


def _margins(batch: Batch, name: str) -> Tensor:
    """By how much the policy prefers the chosen answer, in nats (n,); per token for `ipo` and `sigmoid_norm`,
    where an answer without a token, which is empty and unfinished, counts as one."""
    if name in ("ipo", "sigmoid_norm"):
        return batch.chosen / batch.chosen_tokens.clamp(min=1) - batch.rejected / batch.rejected_tokens.clamp(min=1)
    return batch.chosen - batch.rejected


def _of_strict(batch: Batch, name: str, x: Tensor, beta: float, smoothing: float) -> Tensor:
    """Losses that know no tie, (n,)."""
    if name == "hinge":
        return torch.relu(1 - x)
    if name == "ipo":
        return (x / beta - 1 / (2 * beta)) ** 2
    if name == "robust":
        return (-(1 - smoothing) * logsigmoid(x) + smoothing * logsigmoid(-x)) / (1 - 2 * smoothing)
    chosen, rejected = torch.sigmoid(beta * batch.chosen), torch.sigmoid(beta * batch.rejected)
    if name == "apo_zero":
        return 1 - chosen + rejected
    if name == "apo_down":
        return chosen + 1 - torch.sigmoid(x)
    raise ValueError(f"no weighted form of the loss {name} is known")


def imitation_loss(batch: Batch, chosen_logps: Tensor) -> Tensor:
    """Nats per token of the chosen answers, a number; each token weighs as its pair, and those of ties nothing.

    chosen_logps  (n,), log pi of the chosen answers
    """
    weights = batch.weights * ~batch.is_tie
    return -(weights * chosen_logps).sum() / (weights * batch.chosen_tokens).sum().clamp(min=1e-9)
