"""PPO's mathematics: by numbers worked out by hand, by property, and against forms that share no code with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from rlhf.align.ppo import mathematics

NAN, INF = math.nan, math.inf
EPS = 0.2
BY_TOKEN = ("logprobs", "old_logprobs", "ref_logprobs", "values", "old_values", "rewards")


def rollout(rows: int = 32, tokens: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Random answers of 1 to `tokens` tokens, at least one of them full."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=random)
    lengths[0] = tokens
    drawn = {name: torch.randn(rows, tokens, generator=random) * 0.3 for name in BY_TOKEN}
    return {**drawn, "scores": torch.randn(rows, generator=random), "mask": torch.arange(tokens) < lengths[:, None]}


def everything(r: dict[str, Tensor]) -> dict[str, Any]:
    """What each function makes of a rollout, gradients included."""
    logprobs, values = (r[name].clone().requires_grad_() for name in ("logprobs", "values"))
    mask, aims = r["mask"], r["rewards"]
    rewards = mathematics.token_rewards(r["old_logprobs"], r["ref_logprobs"], r["scores"], mask, 0.1)
    advantages, returns = mathematics.gae(aims, r["old_values"], mask, 0.99, 0.95)
    whitened = mathematics.whiten(aims, mask, *mathematics.spread(mathematics.moments(aims, mask)), shift_mean=False)
    policy, held = mathematics.policy_loss(logprobs, r["old_logprobs"], aims, mask, EPS)
    value, near = mathematics.value_loss(values, r["old_values"], aims, mask, EPS)
    gradients = torch.autograd.grad((policy + value).sum(), (logprobs, values))
    tokens = (rewards, advantages, returns, whitened, policy, value, held, near, *gradients)
    means = (mathematics.explained_variance(r["values"], aims, mask), mathematics.masked_mean(aims, mask).item())
    return {"by_token": tokens, "means": means}


def test_the_kl_penalty_is_paid_by_token_and_the_score_at_the_last_real_one() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0], [9.0, 9.0, 9.0]])
    reference = torch.tensor([[-2.0, -2.0, -1.0], [-3.0, -0.5, 8.0], [8.0, 8.0, 8.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    rewards = mathematics.token_rewards(logprobs, reference, torch.tensor([5.0, -1.0, NAN]), mask, 0.1)
    # log ratios 1, 0, -2 | 2, -0.5 | none. The third is negative and earns +0.2; clamped, it would earn nothing.
    assert_close(rewards, torch.tensor([[-0.1, 0.0, 5.0 + 0.2], [-0.2, -1.0 + 0.05, 0.0], [0.0, 0.0, 0.0]]))


def test_gae_gives_the_numbers_worked_out_by_hand() -> None:
    """gamma = lambda = 1/2. The value 9 behind the second answer's end counts for nothing: the episode is over.

    t   r   V   delta = r + V'/2 - V   A = delta + A'/4       return = A + V
    2   2   4   2 + 0 - 4 = -2         -2                     2
    1   0   2   0 + 2 - 2 =  0          0 - 2/4   = -0.5      1.5
    0   1   1   1 + 1 - 1 =  1          1 - 0.5/4 =  0.875    1.875

    1   1   4   1 + 0 - 4 = -3         -3                     1
    0   0   2   0 + 2 - 2 =  0          0 - 3/4   = -0.75     1.25
    """
    rewards, values = torch.tensor([[1.0, 0, 2], [0, 1, 7]]), torch.tensor([[1.0, 2, 4], [2, 4, 9]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages, returns = mathematics.gae(rewards, values, mask, 0.5, 0.5)
    assert_close(advantages, torch.tensor([[0.875, -0.5, -2.0], [-0.75, -3.0, 0.0]]))
    assert_close(returns, torch.tensor([[1.875, 1.5, 2.0], [1.25, 1.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (0.5, 1.0), (0.0, 0.5)])
def test_gae_is_the_discounted_sum_of_td_errors(gamma: float, lam: float) -> None:
    r = rollout()
    advantages, returns = mathematics.gae(r["rewards"], r["values"], r["mask"], gamma, lam)
    for row, length in enumerate(r["mask"].sum(dim=1).tolist()):
        reward, value = r["rewards"][row, :length].tolist(), [*r["values"][row, :length].tolist(), 0.0]
        errors = [reward[t] + gamma * value[t + 1] - value[t] for t in range(length)]
        sums = [sum((gamma * lam) ** k * error for k, error in enumerate(errors[t:])) for t in range(length)]
        assert_close(advantages[row, :length], torch.tensor(sums))
        assert_close(returns[row, :length], torch.tensor([a + v for a, v in zip(sums, value[:-1], strict=True)]))


def test_gamma_1_lambda_1_is_monte_carlo_and_lambda_0_is_one_step_td() -> None:
    rewards, values = torch.tensor([[1.0, -2.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, to_come = mathematics.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert_close(to_come, torch.tensor([[3.0, 2.0, 4.0]]))  # whatever the critic says
    advantages, targets = mathematics.gae(rewards, values, mask, gamma=1.0, lam=0.0)
    assert_close(advantages, torch.tensor([[1 + 20 - 10.0, -2 + 30 - 20.0, 4 - 30.0]]))
    assert_close(targets, torch.tensor([[21.0, 28.0, 4.0]]))


@pytest.mark.parametrize(("shift", "kept"), [(True, 0.0), (False, 50.0)])
def test_whitening_gives_variance_1_over_valid_tokens_and_mean_0_or_the_old_one(shift: bool, kept: float) -> None:
    r = rollout(rows=64)
    valid = r["rewards"][r["mask"]]
    x = torch.where(r["mask"], 7 * (r["rewards"] - valid.mean()) + 50, 1e6)
    whitened = mathematics.whiten(x, r["mask"], *mathematics.spread(mathematics.moments(x, r["mask"])), shift)
    variance, mean = torch.var_mean(whitened[r["mask"]])
    assert mean.item() == pytest.approx(kept, abs=1e-5) and variance.item() == pytest.approx(1, abs=1e-5)
    assert (whitened[~r["mask"]] == 0).all()


def test_the_moments_of_two_halves_add_up_to_those_of_the_whole() -> None:
    r = rollout()
    x, mask = r["values"] + 1000, r["mask"]  # a large mean, where sums of squares in float32 would lose the variance
    parts = mathematics.moments(x[:11], mask[:11]) + mathematics.moments(x[11:], mask[11:])
    assert_close(parts, mathematics.moments(x, mask))
    variance, mean = torch.var_mean(x[mask].double())
    assert mathematics.spread(parts) == pytest.approx((mean.item(), variance.item()))


@pytest.mark.parametrize("count", [1, 3, 10, 997])
def test_equal_values_have_no_variance_and_whiten_to_0(count: int) -> None:
    x, mask = torch.full((1, count), 0.1), torch.ones(1, count, dtype=torch.bool)
    mean, variance = mathematics.spread(mathematics.moments(x, mask))
    assert variance == 0
    assert_close(mathematics.whiten(x, mask, mean, variance), torch.zeros(1, count), atol=1e-3, rtol=0)


POLICY, CRITIC = mathematics.policy_loss, mathematics.value_loss
CLIPPED = [  # now (log ratio, V), before, aim (advantage, return), loss, held by the clip, gradient
    (POLICY, math.log(1.5), 0.0, 1.0, -1.2, True, 0.0),  # good and already likelier: enough
    (POLICY, math.log(0.5), 0.0, 1.0, -0.5, False, -0.5),  # good and less likely: bring it back
    (POLICY, math.log(1.5), 0.0, -1.0, 1.5, False, 1.5),  # bad and likelier: bring it back
    (POLICY, math.log(0.5), 0.0, -1.0, 0.8, True, 0.0),  # bad and already less likely: enough
    (POLICY, math.log(1.1), 0.0, 2.0, -2.2, False, -2.2),
    (POLICY, -2.0, -2.0, 3.0, -3.0, False, -3.0),  # the first minibatch: plain policy gradient
    (CRITIC, 3.5, 3.0, 4.0, 0.32, True, 0.0),  # (3.2 - 4)^2 / 2: on its way to the return, far enough
    (CRITIC, 3.5, 3.0, 2.0, 1.125, False, 1.5),  # (3.5 - 2)^2 / 2: went away from it, bring it back
    (CRITIC, 2.5, 3.0, 2.0, 0.32, True, 0.0),
    (CRITIC, 2.5, 3.0, 4.0, 1.125, False, -1.5),
    (CRITIC, 3.1, 3.0, 4.0, 0.405, False, -0.9),
]


@pytest.mark.parametrize(("function", "now", "before", "aim", "loss", "held", "slope"), CLIPPED)
def test_policy_and_critic_are_held_only_where_they_went_far_enough_the_right_way(
    function: Any, now: float, before: float, aim: float, loss: float, held: bool, slope: float
) -> None:
    x = torch.tensor([[now]], requires_grad=True)
    got, clipped = function(x, torch.tensor([[before]]), torch.tensor([[aim]]), torch.tensor([[True]]), EPS)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert (got.item(), gradient.item()) == pytest.approx((loss, slope), abs=1e-6) and clipped.item() is held


@pytest.mark.parametrize("garbage", [1e4, NAN, INF])
@pytest.mark.parametrize("columns", [0, 1, 40])
def test_what_stands_on_padding_and_how_much_changes_no_result_and_no_gradient(garbage: float, columns: int) -> None:
    r = rollout(tokens=9)
    mask = pad(r["mask"], (0, columns))
    spoilt = {name: pad(r[name], (0, columns)).masked_fill(~mask, garbage) for name in BY_TOKEN}
    clean, got = everything(r), everything({**r, **spoilt, "mask": mask})
    assert got["means"] == pytest.approx(clean["means"])
    for expected, x in zip(clean["by_token"], got["by_token"], strict=True):
        assert_close(x[:, :9], expected)
        assert (x[~mask] == 0).all()


def test_one_batch_of_32_has_the_loss_and_gradient_of_8_times_4_when_divided_by_all_tokens() -> None:
    r = rollout()
    r["features"] = torch.randn(32, 12, 5, generator=torch.Generator().manual_seed(1))
    r["advantages"], r["returns"] = mathematics.gae(r["rewards"], r["old_values"], r["mask"], 1.0, 0.95)

    def accumulated(rows: int, by_all_tokens: bool = True) -> Tensor:
        """Loss and gradient (11,) of a linear policy and critic after 32 / rows micro-batches."""
        weights, loss = torch.full((2, 5), 0.1, requires_grad=True), torch.zeros(())
        parts = [{name: x[i : i + rows] for name, x in r.items()} for i in range(0, 32, rows)]
        moments = torch.stack([mathematics.moments(part["advantages"], part["mask"]) for part in parts]).sum(dim=0)
        for part in parts:
            old, old_values, mask = part["old_logprobs"], part["old_values"], part["mask"]
            change = part["features"] @ weights.T
            advantages = mathematics.whiten(part["advantages"], mask, *mathematics.spread(moments))
            policy, _ = mathematics.policy_loss(old + change[..., 0], old, advantages, mask, EPS)
            value, _ = mathematics.value_loss(old_values + change[..., 1], old_values, part["returns"], mask, EPS)
            tokens = r["mask"].sum() if by_all_tokens else mask.sum() * len(parts)
            loss = loss + (policy + 0.1 * value).sum() / tokens
        return torch.cat([loss[None], torch.autograd.grad(loss, weights)[0].flatten()])

    assert_close(accumulated(4), accumulated(32), atol=1e-6, rtol=0)
    assert (accumulated(4, by_all_tokens=False) - accumulated(32)).abs().max() > 1e-3  # short answers would weigh more


def test_explained_variance_is_1_for_the_truth_0_for_a_constant_negative_for_harm_and_nan_without_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1, 4, dtype=torch.bool)
    assert mathematics.explained_variance(returns, returns, mask) == 1
    assert mathematics.explained_variance(torch.full((1, 4), 9.0), returns, mask) == pytest.approx(0)
    assert mathematics.explained_variance(-returns, returns, mask) == pytest.approx(-3)  # residual 2 R: 1 - 4
    assert math.isnan(mathematics.explained_variance(returns, torch.full((1, 4), 0.1), mask))
    assert math.isnan(mathematics.explained_variance(returns, torch.tensor([[1.0, NAN, 3.0, 4.0]]), mask))


@pytest.mark.parametrize(
    ("kl", "expected"),  # from 0.2, target 6, a tenth of the horizon: 0.2 * (1 + e / 10)
    [(6.0, 0.2), (6.6, 0.202), (5.4, 0.198), (7.2, 0.204), (60.0, 0.204), (0.0, 0.196), (-3.0, 0.196)],
)
def test_the_kl_coefficient_follows_the_error_which_counts_as_a_fifth_at_most(kl: float, expected: float) -> None:
    assert mathematics.adapted_kl_coef(0.2, kl, target=6.0, horizon=1000, answers=100) == pytest.approx(expected)
