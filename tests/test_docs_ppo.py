"""docs/ppo.md says what the code does: its keys, their defaults, its guards, and the reward function that it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.align import guards
from rlhf.align.config.online import PPOConfig
from rlhf.align.config.paid import BUILT_IN_REWARDS
from rlhf.align.rewards import load_function

PAGE = (Path(__file__).parents[1] / "docs" / "ppo.md").read_text(encoding="utf-8")
NOT_OF_PPO = ("run_dir", "seed", "model", "split", "algorithm")
AS_IN_EVERY_STAGE = (
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "report_to",
    "max_length",
    "trainer_args",
    "per_device_train_batch_size",
)


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "][1:]


def test_every_key_of_ppo_stands_on_the_page_with_its_default() -> None:
    told: dict[str, str] = {}
    for keys, defaults, _ in rows("Keys"):
        names = re.findall(r"`(\w+)`", keys)
        values = defaults.split(", ")
        told |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=False))
    assert set(told) == set(PPOConfig.model_fields) - {*NOT_OF_PPO, *AS_IN_EVERY_STAGE, "rubric"}
    for key, said in told.items():
        default: Any = PPOConfig.model_fields[key].default
        value = re.match(r"-?[\d.]+(e-?\d+)?", said)
        if value:
            assert float(value[0]) == default, key
        elif said in ("true", "false"):
            assert (said == "true") == default, key
        elif said == "none":
            assert not default and default != 0, key


def test_every_guard_stands_on_the_page() -> None:
    told = {re.findall(r"`(\w+)`", cells[0])[0] for cells in rows("What is checked while it runs") if "`" in cells[0]}
    blamed = set(re.findall(r"`(\w+_at_fault)`", PAGE))
    assert told == {*(guard.__name__ for guard in guards.GUARDS), "kl_over_budget"} and blamed == set(guards.BEGIN_WITH)


def test_the_rewards_that_the_page_shows_are_accepted() -> None:
    shown = re.findall(r"^rewards: (\{.*?\})", PAGE, re.MULTILINE)
    named = {name for line in shown for name in yaml.safe_load(line)}
    assert named <= {*BUILT_IN_REWARDS, "brevity.py:short"}


def test_the_reward_function_that_the_page_shows_can_be_used_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "brevity.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], encoding="utf-8")
    short = load_function(f"{tmp_path}/brevity.py:short")
    answers = [[{"role": "assistant", "content": text}] for text in ("", "yes", "word " * 20, "word " * 100)]
    paid = short(prompts=[[]] * 4, completions=answers, completion_ids=[[1]] * 4, category=[None] * 4)
    assert paid[0] is None and paid[1:] == pytest.approx([0.975, 0.5, 0.0])
