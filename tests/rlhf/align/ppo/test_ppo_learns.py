"""PPO learns: a tiny random policy that is paid for words of one kind comes to say them. benchmarks/ppo_toy.py does the
same with more seeds, for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_toy import learn


@pytest.mark.parametrize("seed", [0, 1])
def test_a_policy_comes_to_say_what_it_is_paid_for(tmp_path: Path, seed: int) -> None:
    rewards = learn(tmp_path, seed, rollouts=16, num_ppo_epochs=4)
    first, last = sum(rewards[:2]) / 2, sum(rewards[-2:]) / 2
    assert first < 0.2, "by chance a tenth of the words"
    assert last > first + 0.15
