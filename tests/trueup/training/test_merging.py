"""An adapter folded into the weights is what was trained, in float32; and what a lower precision takes away is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from trueup import runs
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.loading import SavedPolicy
from trueup.models.policies import aligned
from trueup.stages import load_object
from trueup.training.merging import merged

ROWS = [[5, 9, 33, 70, 12, 8], [4, 250, 60], [7, 7, 8, 100, 41]]


def stage_of(made: Any) -> runs.StageRun:
    return runs.StageRun(made.stages["align"], made.run_dir, False, [])


def adapted(base: Path, dtype: str, size: float) -> PeftModel:
    """A policy in bf16 or float32 under an adapter whose change of a weight is about `size` of it."""
    model = loading.load_base(ModelConfig(name=str(base), device="cpu", dtype=dtype)).model
    torch.manual_seed(0)
    made: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    return made


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[0].float().log_softmax(-1) for row in ROWS])


def test_every_weight_that_an_adapter_changes_in_bf16_is_changed_in_what_is_saved(
    tiny_base: Path, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    """Beside it what was saved before: the adapter added to bf16 weights."""
    model = adapted(tiny_base, "bfloat16", 3e-4)
    exact = copy.deepcopy(model).to(torch.float32)
    wanted = logprobs(exact)
    with exact.disable_adapter():
        before = logprobs(exact)
    weights = {n: p.float().clone() for n, p in model.get_base_model().named_parameters() if ".base_layer." in n}

    def kept(folded: Any) -> tuple[float, float]:
        """Share of the adapted weights that differ from the base's, and of the change in log-probability."""
        now = dict(folded.named_parameters())
        moved = [(now[n.replace(".base_layer", "")].float() != w).float().mean() for n, w in weights.items()]
        after = logprobs(folded.to(torch.float32))
        return torch.stack(moved).mean().item(), 1 - ((after - wanted).norm() / (wanted - before).norm()).item()

    rounded = kept(copy.deepcopy(model).merge_and_unload())
    stage = stage_of(campaign(tmp_path))
    now = kept(merged(model, stage, ROWS))
    print(f"weights changed: {rounded[0]:.0%}, now {now[0]:.0%}; log-probability: {rounded[1]:.0%}, now {now[1]:.0%}")
    assert rounded[0] < 0.5 and rounded[1] < 0.8, "added to bf16 weights"
    assert now[0] > 0.99 and now[1] > 0.999
    facts = vars(stage.facts["merge"])
    assert facts["saved_dtype"] == "float32" and facts["max_logit_difference"] < 1e-3 < facts["max_logit_change"]
    assert facts["read_dtype"] == "bfloat16" and facts["lost_as_read"] > 0.1
    (finding,) = stage.findings
    assert (finding.level, finding.code) == ("warn", "rounded_away") and "in bfloat16 loses" in finding.message


def test_in_float32_nothing_is_lost_and_a_large_change_survives_bf16(
    tiny_base: Path, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    for dtype, size in (("float32", 3e-4), ("bfloat16", 0.3)):
        stage = stage_of(campaign(tmp_path))
        merged(adapted(tiny_base, dtype, size), stage, ROWS)
        facts = vars(stage.facts["merge"])
        assert stage.findings == [] and facts["max_logit_difference"] < 1e-3 < facts["max_logit_change"]
        assert (facts["lost_as_read"] or 0.0) < 0.1


def test_where_training_changed_no_logit_no_share_of_the_change_is_lost(
    tiny_base: Path, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    stage = stage_of(campaign(tmp_path))
    merged(adapted(tiny_base, "bfloat16", 0.0), stage, ROWS)
    facts = vars(stage.facts["merge"])
    assert facts["max_logit_change"] == 0 and facts["read_dtype"] == "bfloat16"
    assert facts["lost_as_read"] is None and stage.findings == []


def test_a_merge_that_is_not_what_was_trained_fails_the_stage(
    tiny_base: Path, campaign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(campaign(tmp_path))
    model = adapted(tiny_base, "float32", 0.1)
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    merged(model, stage, ROWS)
    (finding,) = stage.findings
    assert (finding.level, finding.code) == ("fail", "merge_differs")


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "ppo", "grpo"])
def test_every_stage_says_how_far_its_model_is_from_its_adapter_and_later_ones_read_what_was_trained(
    campaign: Callable[..., Any], tmp_path: Path, algorithm: str
) -> None:
    """The real stages in bf16 on a CPU, as a GPU runs them."""
    online: dict[str, Any] = {"rollout_batch_size": 8, "max_new_tokens": 6, "max_steps": 2, "eval_prompts": 2}
    online |= {"keep_steps": 1, "on_failed_reward_model": "use"}  # over so few held-out pairs it fails
    small = {"learning_rate": 1e-4}
    made = campaign(
        tmp_path,
        model={"dtype": "bfloat16"},
        sft=small,
        reward=small,
        align={"algorithm": algorithm, **small, **(online if algorithm in ("ppo", "grpo") else {})},
    )
    for name in ("sft", "sample", "label", "reward", "align"):
        load_object(made.stages[name].run)(made.stages[name])
    findings = runs.open_stage(made.run_dir, "align").manifest.verdict.findings
    assert ("failed_reward_model" in {finding.code for finding in findings}) == (algorithm in ("ppo", "grpo"))
    for name in ("sft", "reward", "align"):
        folder = runs.stage_dir(made.run_dir, name)
        facts = json.loads((folder / "manifest.json").read_text())["merge"]
        assert facts["rows"] > 0 and facts["max_logit_difference"] < 1e-3 and facts["read_dtype"] == "bfloat16"
        assert {w.dtype for w in load_file(folder / "model" / "model.safetensors").values()} == {torch.float32}
        assert {w.dtype for w in load_file(folder / "adapter" / "adapter_model.safetensors").values()} == {
            torch.float32
        }

    # A comparison samples the aligned policy with its adapter beside bf16 weights: nothing that it changed is rounded.
    sft, align = (runs.stage_dir(made.run_dir, name) for name in ("sft", "align"))
    saved = aligned(runs.open_stage(made.run_dir, "align"))
    assert saved == SavedPolicy(sft / "model", align / "adapter", align / "model")
    in_bf16 = saved.load(made.config.model).model
    tuned = saved.load(made.config.model.model_copy(update={"dtype": "float32"})).model
    assert {module.base_layer.weight.dtype for module in in_bf16.modules() if hasattr(module, "base_layer")} == {
        torch.bfloat16
    }
    delta = {
        name: module.get_delta_weight("default")
        for name, module in in_bf16.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    before = load_file(sft / "model" / "model.safetensors")
    after = dict(tuned.named_parameters())
    assert delta
    for name, change in delta.items():
        weight = f"{name}.weight"
        started = before[weight].to(torch.bfloat16).float()  # as the alignment read it
        torch.testing.assert_close(after[weight] - started, change.float(), atol=1e-6, rtol=1e-3)
