"""Padding, positions and log-probabilities, against hand-worked numbers and a second form."""

from __future__ import annotations

import math

import pytest
import torch

from trueup.models import tensors


def test_rows_are_padded_on_the_side_asked_for_and_the_mask_says_what_is_real() -> None:
    tokens, mask = tensors.pad_right([[5, 6, 7], [8], []], 0)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    tokens, mask = tensors.pad_left([[5, 6, 7], [8], []], 0)
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, False, False]]


def test_the_mask_comes_from_lengths_so_that_a_real_token_may_equal_the_padding() -> None:
    assert tensors.pad_right([[0, 0], [0]], 0)[1].tolist() == [[True, True], [True, False]]


def test_positions_count_real_tokens_from_zero_on_either_side_of_padding() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, False], [True, True, True, True]])
    assert tensors.positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2], [0, 1, 2, 3]]


def test_token_logprobs_are_those_of_a_distribution_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)], [7.0, 7.0, 7.0]])
    assert tensors.token_logprobs(logits, torch.tensor([1, 0])).exp().tolist() == pytest.approx([2 / 8, 1 / 3])


def test_token_logprobs_are_as_exact_from_half_precision_as_from_what_it_holds() -> None:
    logits = torch.randn(4, 7, 50, dtype=torch.bfloat16) * 5
    tokens = torch.randint(50, (4, 7))
    expected = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), tokens.flatten(), reduction="none")
    found = tensors.token_logprobs(logits, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().flatten(), -expected, atol=1e-5, rtol=0)


def test_kl_is_by_hand_never_negative_and_between_vocabularies_of_two_sizes() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    assert tensors.kl(p.log(), q.log()).tolist() == pytest.approx([0.5 * math.log(2) + 0.25 * math.log(0.5)])
    assert tensors.kl(p.log(), p.log() + 3).tolist() == [0.0]
    padded = torch.cat([q.log(), torch.full((1, 5), -1e4)], dim=-1)
    for one, other in ((p.log(), padded), (torch.cat([p.log(), torch.full((1, 5), -1e4)], dim=-1), q.log())):
        assert tensors.kl(one, other).tolist() == pytest.approx(tensors.kl(p.log(), q.log()).tolist())
    near = torch.randn(50, 300)
    assert tensors.kl(near, near + 1e-6 * torch.randn(50, 300)).min() >= 0
