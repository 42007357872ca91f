"""A cautious reward: the mean of the reward model's heads less standard deviations over them, as the folder says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reward.train
import ui.label.run
from rlhf.align import online
from rlhf.align.check import check
from rlhf.align.ppo.stage import cast_roles, scores
from rlhf.align.rewards import WeightedRewards, normalisation
from trueup import runs
from trueup.artifacts.reports import RewardCard
from trueup.data.records import CandidateSet, read_rows
from trueup.errors import ConfigError
from trueup.models import heads, loading
from trueup.models.scoring import score_answers_by_heads
from trueup.stages import load_object
from trueup.training.loop import read_metrics

TINY: dict[str, Any] = {
    "rollout_batch_size": 8,
    "num_generations": 2,
    "max_new_tokens": 8,
    "max_steps": 2,
    "eval_prompts": 2,
    "keep_steps": 1,
    "on_failed_reward_model": "use",
}
CAUTION = 1.5
TO = 2e-5
"""Largest difference of two readings of a score, by the adapter and by the folder; a spread is read with it."""
WAYS: list[dict[str, Any]] = [
    {"algorithm": "ppo"},
    {"algorithm": "ppo", "full_finetuning": True},
    {"algorithm": "grpo"},
    {"algorithm": "rloo"},
    {"algorithm": "best_of_n", "rollout_batch_size": None, "missing_eos_penalty": 0.0},
]


@pytest.fixture
def until_align(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def make(reward_keys: dict[str, Any], **align: Any) -> Any:
        made = campaign(tmp_path, reward=reward_keys, align={**TINY, **align})
        for stage in ("sft", "sample"):
            load_object(made.stages[stage].run)(made.stages[stage])
        ui.label.run.run(made.stages["label"])
        reward.train.run(made.stages["reward"])
        return made

    return make


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_every_algorithm_pays_the_mean_of_the_heads_less_caution_times_their_spread(
    until_align: Callable[..., Any], way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = until_align({"ensemble": 3, "full_finetuning": "full_finetuning" in way}, reward_caution=CAUTION, **way)
    stage = runs.open_stage(made.run_dir, "reward")
    units = normalisation(stage.report(RewardCard))
    model = loading.load_reward_model(stage.dir / "model", made.config.model)
    rows = read_rows(runs.stage_dir(made.run_dir, "sample") / "candidates.jsonl", CandidateSet)
    prompts, answers = [row.prompt for row in rows], [row.candidates[0] for row in rows]
    by_heads = [one.heads for one in score_answers_by_heads(model, prompts, answers) if one]
    expected = (np.mean(by_heads, axis=1) - CAUTION * np.std(by_heads, axis=1, ddof=1) - units.mean) / units.std
    paid = paying(made.stages["align"], units)(prompts, answers)
    assert paid.rewards == pytest.approx(expected.tolist(), abs=TO / units.std)
    assert paid.spread == pytest.approx(np.mean(np.std(by_heads, axis=1, ddof=1)) / units.std, rel=1e-5)

    seen: list[tuple[Any, Any, list[float]]] = []  # what the stage itself pays
    call = WeightedRewards.__call__

    def kept(self: Any, prompts: Any, completions: Any, **columns: Any) -> Any:
        result = call(self, prompts, completions, **columns)
        seen.append((prompts, columns["completion_ids"], self.parts["reward_model"]))
        return result

    monkeypatch.setattr(WeightedRewards, "__call__", kept)
    directory = load_object(made.stages["align"].run)(made.stages["align"])
    policy = loading.load_policy(runs.stage_dir(made.run_dir, "sft") / "model", made.config.model)
    for prompts, ids, rewards in seen:
        assert rewards == pytest.approx(by_hand(model, policy.tokenizer, prompts, ids, units), abs=TO / units.std)
    report = json.loads((directory / "report.json").read_text())
    assert report["reward_caution"] == CAUTION and all(row["spread"] > 0 for row in report["evaluations"])
    rows_of_training = [row for row in read_metrics(directory / "metrics.jsonl") if "rewards/spread" in row]
    assert bool(rows_of_training) == (way["algorithm"] != "best_of_n")
    assert "standard deviations over its heads" in (directory / "report.html").read_text()
    assert not heads.has_ensemble(directory / "model"), "the policy has none"


def by_hand(model: Any, tokenizer: Any, prompts: Any, ids: Any, units: Any) -> list[float]:
    from trueup.data.records import Message
    from trueup.models.course import candidate

    asked = [[Message(**message) for message in prompt] for prompt in prompts]
    scores = score_answers_by_heads(model, asked, [candidate(tokenizer, list(one), 0.0) for one in ids])
    return [(one.score - CAUTION * one.spread - units.mean) / units.std for one in scores if one]


def paying(config: Any, units: Any) -> Any:
    """The reward model as the algorithm has it."""
    _, sft, stage, policy, _, on_one_base = online.begin(config)
    assert on_one_base and stage is not None, "PPO shares the policy's base"
    if config.algorithm == "ppo":
        return scores(cast_roles(config, policy, sft, stage, on_one_base), units, config.reward_caution)
    return online.scorer_of(config, stage, units)


def test_caution_without_an_ensemble_is_refused_by_check_and_by_the_stage(
    until_align: Callable[..., Any], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    made = until_align({}, algorithm="grpo", reward_caution=1)
    problems: list[str] = []
    check(made.stages["align"], made.stages, problems, [])
    assert [one for one in problems if one.startswith("align.reward_caution: 1, but the reward model has one head")]
    with pytest.raises(
        ConfigError, match=r"(?s)reward_caution.* 1, but the reward model has one head.*reward.ensemble: 3"
    ):
        load_object(made.stages["align"].run)(made.stages["align"])
    keys = {"rewards": {"rubric": 1.0}, "on_failed_reward_model": "refuse"}
    with pytest.raises(ConfigError, match="reward_caution: has no meaning, since no reward model pays"):
        campaign(tmp_path, align={**TINY, **keys, "algorithm": "grpo", "reward_caution": 1})
