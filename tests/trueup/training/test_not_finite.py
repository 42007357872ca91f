"""A training whose numbers are no numbers any more stops, in every stage that trains, and leaves no model behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ui.label.run
from trueup import runs
from trueup.config import StageConfig
from trueup.errors import ModelError
from trueup.models import loading
from trueup.stages import load_object
from trueup.training import loop

ONLINE = {
    "rewards": {"rubric": 1.0},
    "prompts": "prompts.jsonl",
    "rollout_batch_size": 8,
    "train_batch_size": 4,
    "max_new_tokens": 6,
    "eval_prompts": 2,
}
OFFLINE = {**ONLINE, "rollout_batch_size": None, "missing_eos_penalty": 0.0}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "dpo": ("align", {"algorithm": "dpo"}),
    "simpo": ("align", {"algorithm": "simpo"}),
    "kto": ("align", {"algorithm": "kto"}),
    "best_of_n": ("align", {"algorithm": "best_of_n", **OFFLINE}),
    "ppo": ("align", {"algorithm": "ppo", "num_generations": 2, **ONLINE}),
    "grpo": ("align", {"algorithm": "grpo", **ONLINE}),
    "rloo": ("align", {"algorithm": "rloo", **ONLINE}),
}


@pytest.fixture
def config(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., StageConfig]:
    """The config of a stage whose parents are there: the base model stands for the SFT policy."""

    def make(name: str, **keys: Any) -> StageConfig:
        stage, own = STAGES[name]
        rows = [{"prompt": f"Is {i} tea?", "chosen": "Tea is warm.", "rejected": "Milk is cold."} for i in range(16)]
        jsonl(tmp_path / "labels.jsonl", rows)
        label = {"source": "import", "path": "labels.jsonl"}
        made = campaign(tmp_path, label=label, **{stage: {"max_steps": 4, **own, **keys}})
        if stage != "sft":
            sft = runs.begin(made.stages["sft"])
            loading.save(loading.load_base(made.config.model), sft.dir / "model")
            sft.finish()
            ui.label.run.run(made.stages["label"])
        return made.stages[stage]

    return make


def refusal(config: StageConfig) -> tuple[str, Path]:
    with pytest.raises(ModelError) as caught:
        load_object(config.run)(config)
    return str(caught.value), runs.stage_dir(config.run_dir, config.stage)


def left_behind(directory: Path) -> list[str]:
    """What could be taken for a result. Checkpoints and steps on the way may stay: their weights are numbers."""
    for path in directory.rglob("*.safetensors"):
        assert all(weight.isfinite().all() for weight in load_file(path).values()), path
    return sorted({"manifest.json", "model", "adapter", "report.json"} & {path.name for path in directory.iterdir()})


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_at_a_learning_rate_of_1e25_fails_with_a_sentence_and_saves_nothing(
    name: str, whole: bool, config: Callable[..., StageConfig]
) -> None:
    made = config(name, learning_rate=1e25, full_finetuning=whole)
    message, directory = refusal(made)
    assert message.startswith(f"{made.stage}, step ") and "no model was saved" in message
    assert f"lower {made.stage}.learning_rate" in message
    assert left_behind(directory) == []
    for row in (directory / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in row and "Infinity" not in row


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto"])
def test_one_step_is_enough_though_its_own_loss_is_finite(name: str, config: Callable[..., StageConfig]) -> None:
    message, directory = refusal(config(name, learning_rate=1e25, max_steps=1))
    assert "not finite" in message and left_behind(directory) == []


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto"])
def test_a_gradient_that_is_not_finite_stops_the_stage_though_the_loss_is(
    name: str, config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(name, max_grad_norm=1e6)
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda *_, **__: torch.tensor(float("inf")))
    message, directory = refusal(made)
    assert message.startswith(f"{made.stage}, step 1: the norm of the gradient is inf")
    assert left_behind(directory) == []


def test_a_resumed_training_is_watched_like_any_other(config: Callable[..., StageConfig]) -> None:
    made = config("dpo", learning_rate=1e-3, save_steps=1, max_steps=3)

    class Stops(loop.Watch):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **keys: Any) -> None:
            super().on_log(args, state, control, logs, **keys)
            if state.global_step == 2:
                raise ModelError("interrupted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Watch", Stops)
        with pytest.raises(ModelError, match="interrupted"):
            load_object(made.run)(made)
    directory = runs.stage_dir(made.run_dir, "align")
    (checkpoint,) = directory.glob("checkpoint-*")
    path = checkpoint / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)
    message, directory = refusal(made)
    assert message.startswith("align, step 2: ") and "not finite" in message
    steps = [json.loads(row)["step"] for row in (directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1] and not (directory / "manifest.json").exists() and not (directory / "model").exists()
