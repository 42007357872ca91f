"""The mathematics of PPO, as pure functions of tensors. No model, no trainer.

Shapes: B answers in a batch, T tokens of the longest. `mask` is (B, T) bool, True on tokens that the policy wrote, its
end of turn included; an answer's tokens come first and padding behind them. What stands on padding, NaN too, is never
read, and what a function returns is 0 there.

Sources: Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593), Stiennon et al. 2020
(https://arxiv.org/abs/2009.01325), Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), Schulman et al. 2016 (GAE,
https://arxiv.org/abs/1506.02438) and 2017 (PPO, https://arxiv.org/abs/1707.06347), Huang et al. 2024 (the N+ details,
https://arxiv.org/abs/2403.17031), and Ziegler's code (https://github.com/openai/lm-human-preferences,
lm_human_preferences/train_policy.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _valid(x: Tensor, mask: Tensor) -> Tensor:
    """x with 0 on padding. Not x * mask, which leaves NaN and infinity where they are."""
    return x.masked_fill(~mask, 0)


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards (B, T): r_t = -kl_coef (log pi - log pi_ref), plus the answer's score at its last token.

    Ouyang et al. 2022, first term of eq. 2, its log ratio split into tokens. The difference is the unbiased estimate k1
    of the KL divergence (http://joschu.net/blog/kl-approx.html) and is negative for some tokens; clamped at 0 it would
    be biased upwards and charge for a divergence that is not there.

    logprobs, ref_logprobs  (B, T), of the sampled tokens, under the policy that sampled them and under the reference
    scores                  (B,); a row without tokens has no last one, and its score is not read
    """
    last = mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))
    return _valid(-kl_coef * (logprobs - ref_logprobs), mask) + _valid(scores.unsqueeze(1).expand_as(mask), last)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both (B, T). Schulman et al. 2016, eq. 16 as a recursion:

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   return_t = A_t + V_t

    V behind an answer's last token is 0: the episode is over there, cut short or not.
    """
    rewards, values = _valid(rewards, mask), _valid(values, mask)
    advantages = torch.zeros_like(rewards)
    following_value = following_advantage = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = (delta + gamma * lam * following_advantage) * mask[:, t]
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, advantages + values


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, a scalar; 0 where the mask holds nothing."""
    return _valid(x, mask).sum() / mask.sum().clamp(min=1)


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """(3,) float64: sum, sum of squares and count over the mask. They add up over processes; `spread` reads them."""
    device = "cpu" if x.is_mps else x.device  # Apple's GPUs have no float64
    values = _valid(x, mask).to(device, torch.float64)
    return torch.stack([values.sum(), values.square().sum(), mask.sum().to(values)])


def spread(moments: Tensor) -> tuple[float, float]:
    """Mean and variance (over n - 1) of what `moments` summed up."""
    total, squares, count = moments.tolist()
    mean = total / max(count, 1.0)
    deviation = squares - count * mean**2
    # Values that float32 cannot tell apart leave rounding noise here, of either sign: that is no variance.
    return mean, 0.0 if deviation <= 1e-12 * squares else deviation / max(count - 1.0, 1.0)


def whiten(x: Tensor, mask: Tensor, mean: float, variance: float, shift_mean: bool = True) -> Tensor:
    """(x - mean) / std over the mask; with shift_mean=False the mean stays, as for rewards, whose sign counts.

    Huang et al. 2024, details 24 (rewards) and 25 (advantages).
    """
    whitened = (x - mean) / math.sqrt(variance + 1e-8)
    return _valid(whitened if shift_mean else whitened + mean, mask)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss and whether the clip held it, both (B, T). Schulman et al. 2017, eq. 7:

    L_t = -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t),   rho_t = pi(a_t) / pi_old(a_t)
    """
    # Before the arithmetic: masked only afterwards, NaN on padding would still reach the gradient, as 0 * NaN.
    logprobs, old_logprobs, advantages = (_valid(x, mask) for x in (logprobs, old_logprobs, advantages))
    ratio = (logprobs - old_logprobs).exp()
    free = -ratio * advantages
    clipped = -ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    return torch.maximum(free, clipped), clipped > free


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Clipped squared error of the critic and whether the clip held it, both (B, T), as in Ziegler's code:

    L_t = max((V_t - R_t)^2, (clip(V_t, V_old - eps, V_old + eps) - R_t)^2) / 2
    """
    values, old_values, returns = (_valid(x, mask) for x in (values, old_values, returns))
    near = torch.minimum(torch.maximum(values, old_values - cliprange_value), old_values + cliprange_value)
    free, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(return - V) / Var(return): 1 a critic that knows, 0 one that says a constant, below 0 a harmful one."""
    _, residual = spread(moments(returns - values, mask))
    _, total = spread(moments(returns, mask))
    return 1 - residual / total if total > 0 else math.nan


def adapted_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, answers: int) -> float:
    """The coefficient after a rollout of so many answers, whose KL was `kl` nats per sequence.

    Ziegler et al. 2019, section 2.2; the gain of 0.1 a rollout there is answers / horizon in their code:

    e = clip(kl / target - 1, -0.2, 0.2),   kl_coef <- kl_coef (1 + e answers / horizon)
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * answers / horizon)
