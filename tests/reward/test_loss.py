"""The loss of the reward model, on numbers worked out by hand and against a second form of each equation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reward.loss import even_loss, preference_loss, strict_loss, threshold_of, tie_loss

GAPS = torch.tensor([-3.0, -0.4, 0.0, 0.7, 2.5], dtype=torch.float64)


def strengths(gaps: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """P(first), P(tie), P(second) by Rao and Kupper's own form, over strengths e^r and e^0 with theta = e^h."""
    first, second, theta = gaps.exp(), torch.ones_like(gaps), math.exp(threshold)
    wins = first / (first + theta * second), second / (second + theta * first)
    tie = (theta**2 - 1) * first * second / ((first + theta * second) * (second + theta * first))
    return wins[0], tie, wins[1]


@pytest.mark.parametrize("threshold", [0.05, 0.6, 2.0])
def test_strict_and_tied_comparisons_are_the_model_of_rao_and_kupper(threshold: float) -> None:
    first, tie, second = strengths(GAPS, threshold)
    assert torch.allclose(first + tie + second, torch.ones_like(GAPS))
    assert torch.allclose(strict_loss(GAPS, threshold=threshold), -first.log())
    assert torch.allclose(strict_loss(-GAPS, threshold=threshold), -second.log())
    assert torch.allclose(tie_loss(GAPS, threshold), -tie.log())


def test_numbers_by_hand() -> None:
    assert strict_loss(torch.tensor(0.0)).item() == pytest.approx(math.log(2))
    assert strict_loss(torch.tensor(2.0), 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert even_loss(torch.tensor(0.0)).item() == pytest.approx(math.log(2))
    # theta = 3: of two equals each wins 1 in 4, and they tie in 2 of 4
    assert tie_loss(torch.tensor(0.0), math.log(3)).item() == pytest.approx(math.log(2))
    assert threshold_of(0.5) == pytest.approx(math.log(3))


def test_a_tie_is_the_same_from_either_side_and_likeliest_between_equals() -> None:
    for loss in (even_loss(GAPS), tie_loss(GAPS, 0.6)):
        assert torch.equal(loss.argmin(), torch.tensor(2))
    assert torch.allclose(tie_loss(GAPS, 0.6), tie_loss(-GAPS, 0.6)) and torch.allclose(
        even_loss(GAPS), even_loss(-GAPS)
    )


def test_a_margin_asks_for_a_wider_gap_and_smoothing_believes_some_preferences_to_be_wrong() -> None:
    no, yes = torch.tensor(False), torch.tensor(True)
    gap, one = torch.tensor(1.5), torch.tensor(1.0)

    def loss(margin: float, is_tie: Tensor = no, smoothing: float = 0.0) -> float:
        return preference_loss(gap, torch.tensor(margin), is_tie, one, smoothing=smoothing).item()

    assert loss(0.0) == pytest.approx(math.log1p(math.exp(-1.5)))
    assert loss(0.5) == pytest.approx(math.log1p(math.exp(-1.0)))
    assert loss(0.0, smoothing=0.2) == pytest.approx(0.8 * loss(0.0) + 0.2 * (loss(0.0) + 1.5))
    assert loss(0.0, yes, smoothing=0.2) == loss(0.0, yes), "a tie has no wrong way round"


@pytest.mark.parametrize("threshold", [None, torch.tensor(0.6)])
def test_the_gradient_is_finite_far_from_the_truth(threshold: Tensor | None) -> None:
    gaps = torch.tensor([-90.0, 90.0, -90.0, 90.0], requires_grad=True)
    ties = torch.tensor([False, False, True, True])
    preference_loss(gaps, torch.zeros(4), ties, torch.ones(4), threshold).backward()
    assert gaps.grad is not None and gaps.grad.isfinite().all()
    assert gaps.grad.abs().max() <= 1.0 + 1e-6
