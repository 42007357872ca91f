"""The whole sequence on a GPU as it chooses by itself: bf16 weights, float32 adapters, recomputed activations.

Skipped without one. `TRUEUP_TEST_DEVICE=cuda pytest` runs the stages of all other tests there too, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trueup import runs
from trueup.stages import load_object

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ROLLOUTS: dict[str, Any] = {"rollout_batch_size": 8, "max_new_tokens": 8, "max_steps": 4, "eval_prompts": 2}
ROLLOUTS |= {"keep_steps": 1, "on_failed_reward_model": "use"}  # over so few held-out pairs it fails


def run(made: Any, *stages: str) -> None:
    for stage in stages:
        load_object(made.stages[stage].run)(made.stages[stage])


def manifest(made: Any, stage: str) -> dict[str, Any]:
    return json.loads((runs.stage_dir(made.run_dir, stage) / "manifest.json").read_text())


@pytest.mark.parametrize("algorithm", ["dpo", "simpo", "kto", "best_of_n", "ppo", "grpo", "rloo"])
@pytest.mark.parametrize("lora", [{"r": 4}, {"r": 4, "last_layers": 1}], ids=["all layers", "last layer"])
def test_every_stage_runs_and_says_where(
    algorithm: str, lora: dict[str, int], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    rollouts = {} if algorithm in ("dpo", "simpo", "kto") else ROLLOUTS
    if algorithm == "best_of_n":
        rollouts = {key: value for key, value in ROLLOUTS.items() if key != "rollout_batch_size"}
    model = {"device": "auto", "dtype": "auto"}
    # Adapters of fewer layers than the reward model's do not fit it.
    made = campaign(
        tmp_path,
        model=model,
        sft={"lora": lora},
        reward={"lora": lora},
        align={"algorithm": algorithm, "lora": lora, **rollouts},
    )
    run(made, "sft", "sample", "label", "reward", "align", "compare")
    for stage in ("sft", "reward", "align"):
        said = manifest(made, stage)
        assert said["device"] == torch.cuda.get_device_name() and said["dtype"] == "bfloat16"
    report = json.loads((runs.stage_dir(made.run_dir, "compare") / "report.json").read_text())
    assert report["verdict"]["outcome"] and report["kl_nats"]["value"] != 0


def test_an_alignment_that_changed_nothing_is_seen_to_be_none(campaign: Callable[..., Any], tmp_path: Path) -> None:
    made = campaign(tmp_path, model={"device": "auto", "dtype": "auto"}, align={"learning_rate": 0.0})
    run(made, "sft", "sample", "label", "reward", "align", "compare")
    report = json.loads((runs.stage_dir(made.run_dir, "compare") / "report.json").read_text())
    assert all(judge["win_rate"]["value"] == 0.5 for judge in report["judges"].values())
