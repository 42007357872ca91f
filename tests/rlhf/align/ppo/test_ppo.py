"""The real PPO stage on a tiny policy: what it leaves behind, what it refuses, what must not disturb its arithmetic."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from manifests import card_of
from transformers import TrainerCallback
from transformers.models.llama.modeling_llama import LlamaAttention

import reward.train
import rlhf.align.ppo.stage
import ui.label.run
from rlhf.align.ppo.trainer import PPOTrainer
from trueup import runs
from trueup.data.records import Message
from trueup.data.split import is_heldout
from trueup.errors import RunError
from trueup.models import loading
from trueup.models.sampling import Decoding, sample
from trueup.runs import find_stage
from trueup.stages import load_object
from trueup.training.trunk import Trunk

LIKES_RED = """
def likes_red(prompts, completions, category, **columns):
    return [said[-1]["content"].count("e") + 0.1 * len(said[-1]["content"]) for said in completions]

def undecided(prompts, completions, **columns):
    return [None if i % 2 else 1.0 for i in range(len(completions))]
"""
TINY = {
    "algorithm": "ppo",
    "prompts": "prompts.jsonl",
    "rewards": {"rewards.py:likes_red": 1.0},
    "rollout_batch_size": 8,
    "train_batch_size": 4,
    "num_ppo_epochs": 2,
    "max_new_tokens": 8,
    "max_steps": 12,
    "eval_prompts": 2,
    "keep_steps": 1,
    "learning_rate": 1e-2,
    "kl_target": 1.0,
    "kl_horizon": 50,
}
GROUPED = {"num_ppo_epochs": None, "kl_target": None, "kl_horizon": None}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories with sft and reward stages, made once, by the name of what was asked of them."""
    return {"parent": tmp_path_factory.mktemp("ready")}


@pytest.fixture
def aligned(campaign: Callable[..., Any], ready: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """Run the align stage. Its SFT parent is the base model, as if it had been trained; the reward model is real."""

    def run(folder: str = "a", until: str = "align", **keys: Any) -> tuple[Any, Path]:
        where = tmp_path / folder
        where.mkdir(exist_ok=True)
        (where / "rewards.py").write_text(LIKES_RED)
        # Without held-out prompts the reward model's report card is empty, and its verdict is not fail.
        sections = {
            "split": {"heldout_fraction": 0.0},
            "label": {"source": "simulated"},
            "sample": {"num_candidates": 3},
        }
        made = campaign(where, align={**TINY, **keys}, **sections)
        kept = ready["parent"] / "run"
        if not kept.exists():
            stage = runs.begin(made.stages["sft"])
            loading.save(loading.load_base(made.config.model), stage.dir / "model")
            stage.finish()
            load_object(made.stages["sample"].run)(made.stages["sample"])
            ui.label.run.run(made.stages["label"])
            reward.train.run(made.stages["reward"])
            shutil.copytree(made.run_dir, kept)
        elif find_stage(made.run_dir, "sft") is None:
            shutil.copytree(kept, made.run_dir, dirs_exist_ok=True)
        if until == "align":
            load_object(made.stages["align"].run)(made.stages["align"])
        return made, runs.stage_dir(made.run_dir, "align")

    return run


def metrics(directory: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "adapter" / "adapter_model.safetensors")


# ---- What it leaves behind --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_two_passes_over_the_prompts_are_the_rollouts_that_ask_each_prompt_twice(
    aligned: Callable[..., Any], algorithm: str
) -> None:
    keys = {} if algorithm == "ppo" else {**GROUPED, "algorithm": "grpo", "num_generations": 2, "num_iterations": 2}
    _, directory = aligned(**keys, num_train_epochs=2, max_steps=-1, keep_steps=0, eval_prompts=0)
    report = json.loads((directory / "report.json").read_text())
    # 16 prompts, two answers each, twice, in rollouts of 8 answers; two passes over a rollout, of two steps each.
    assert report["steps_trained"] == 16 * 2 * 2 // 8 * 4
    if algorithm == "ppo":
        assert len(report["rollouts"]) == 8


def test_it_leaves_a_policy_its_steps_its_samples_and_what_it_measured(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(rewards={"reward_model": 1.0, "rewards.py:likes_red": 0.5})
    assert {path.name for path in directory.iterdir()} == {
        "adapter",
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "model",
        "report.html",
        "report.json",
        "samples.jsonl",
        "steps",
        "trained_prompts.json",
        "trained_questions.jsonl",
    }
    assert sorted(path.name for path in (directory / "steps").iterdir()) == ["step-12", "step-6"]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert {parent["stage"] for parent in manifest["parents"]} == {"sft", "reward"}
    assert manifest["steps"] in (6, 12) and manifest["trained_parameters"] > 0
    report = json.loads((directory / "report.json").read_text())
    assert report["chosen_step"] == manifest["steps"] and [row["step"] for row in report["evaluations"]] == [0, 6, 12]
    assert len(report["rollouts"]) == 3 and report["rollouts"][0]["kl"] == 0
    sample = json.loads((directory / "samples.jsonl").read_text().splitlines()[-1])
    assert sample["total"] == pytest.approx(sample["score"] - report["kl_coef"]["last"] * sample["kl"], abs=0.1)
    assert {"prompt", "completion"} < sample.keys() and "reward_model" in sample["rewards"]
    logged = {key for line in (directory / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"objective/kl", "objective/scores", "objective/entropy", "policy/clipfrac_avg", "val/ratio"} < logged


def test_the_saved_adapter_on_the_sft_policy_is_the_saved_model(aligned: Callable[..., Any]) -> None:
    made, directory = aligned()
    sft = runs.stage_dir(made.run_dir, "sft") / "model"
    prompt, decoding = [[Message(role="user", content="Tell me about red things.")]], Decoding(8, temperature=0)
    by_adapter = loading.SavedPolicy(sft, directory / "adapter").load(made.config.model)
    whole = loading.load_policy(directory / "model", made.config.model)
    assert sample(by_adapter, prompt, decoding, 1, 8)[0][0].text == sample(whole, prompt, decoding, 1, 8)[0][0].text


def test_no_heldout_prompt_is_asked(aligned: Callable[..., Any], campaign: Callable[..., Any]) -> None:
    made, directory = aligned()
    split = made.config.split.model_copy(update={"heldout_fraction": 0.5})
    config = made.stages["align"].model_copy(update={"split": split, "run_dir": made.run_dir})
    rlhf.align.ppo.stage.run(config)
    asked = {json.loads(line)["prompt"][-1]["content"] for line in (directory / "samples.jsonl").open()}
    assert asked and not any(is_heldout([Message(role="user", content=text)], split) for text in asked)


def test_a_learning_rate_of_zero_leaves_the_policy_as_it_was(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(learning_rate=0)
    sft = loading.load_policy(runs.stage_dir(made.run_dir, "sft") / "model", made.config.model)
    after = loading.load_policy(directory / "model", made.config.model)
    asked = [[Message(role="user", content="Tell me about red things.")]]
    assert sample(sft, asked, Decoding(8), 4, 8) == sample(after, asked, Decoding(8), 4, 8)
    assert max(map(abs, metrics(directory, "objective/kl"))) == 0


def test_warming_up_trains_the_critic_and_not_the_policy(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(critic_warmup_rollouts=2)
    assert metrics(directory, "objective/kl")[:2] == [0, 0] and metrics(directory, "objective/kl")[2] == 0
    values = metrics(directory, "loss/value_avg")
    assert values[0] != values[4]
    assert metrics(directory, "eval/kl")[-1] != 0, "after the warm-up the policy moves"


def test_every_weight_may_be_trained(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(full_finetuning=True, learning_rate=1e-3, rewards={"reward_model": 1.0})
    assert not (directory / "adapter").exists() and (directory / "model" / "model.safetensors").exists()
    assert metrics(directory, "objective/kl")[0] == pytest.approx(0, abs=1e-5)
    assert metrics(directory, "objective/kl")[-1] != 0


def test_demonstrations_that_are_mixed_in_change_what_is_learnt(aligned: Callable[..., Any]) -> None:
    _, without = aligned("a")
    _, mixed = aligned("b", ptx_coef=1.0, ptx_data=["demonstrations.jsonl"])
    assert metrics(mixed, "loss/ptx_avg")[-1] < metrics(mixed, "loss/ptx_avg")[0]
    assert any(not torch.equal(weight, weights(mixed)[name]) for name, weight in weights(without).items())


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_grpo_and_rloo_run_by_the_same_key(aligned: Callable[..., Any], algorithm: str) -> None:
    keys = {**GROUPED, "algorithm": algorithm, "rewards": {"reward_model": 1.0}, "num_generations": 4, "max_steps": 4}
    _, directory = aligned(**keys)
    report = json.loads((directory / "report.json").read_text())
    assert report["algorithm"] == algorithm and report["chosen_step"] > 0
    assert metrics(directory, "eval/kl")[0] == pytest.approx(0, abs=1e-4) and metrics(directory, "eval/kl")[-1] != 0
    assert (directory / "adapter").exists() and (directory / "report.html").exists()


# ---- What it refuses --------------------------------------------------------------------------------------------


def test_a_reward_model_with_the_verdict_fail_is_refused_with_its_reason(aligned: Callable[..., Any]) -> None:
    made, _ = aligned(until="reward", rewards={"reward_model": 1.0})
    path = runs.stage_dir(made.run_dir, "reward") / "manifest.json"
    manifest = json.loads(path.read_text())
    failed = {"status": "fail", "findings": [{"level": "fail", "code": "x", "message": "it is no better than a coin"}]}
    path.write_text(json.dumps({**manifest, "verdict": failed}))
    with pytest.raises(RunError, match=r"verdict is fail \(it is no better than a coin\)"):
        rlhf.align.ppo.stage.run(made.stages["align"])


def test_a_policy_that_is_not_its_reference_at_step_0_stops_the_run(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = aligned(until="reward")
    begin = PPOTrainer.train

    def moved(self: PPOTrainer, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            for weight in self.roles.parameters("policy").values():
                weight.add_(0.1)
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(PPOTrainer, "train", moved)
    with pytest.raises(AssertionError, match="at step 0 policy and reference differ by"):
        rlhf.align.ppo.stage.run(made.stages["align"])


def test_a_policy_that_moved_between_rollout_and_first_update_stops_the_run(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = aligned(until="reward")
    roll_out = PPOTrainer._generate_and_score_completions

    def moved(self: PPOTrainer, inputs: Any) -> Any:
        batch = roll_out(self, inputs)
        with torch.no_grad():
            for weight in self.roles.parameters("policy").values():
                weight.add_(0.1)
        return batch

    monkeypatch.setattr(PPOTrainer, "_generate_and_score_completions", moved)
    with pytest.raises(AssertionError, match="before the first update from a rollout, log-ratios are"):
        rlhf.align.ppo.stage.run(made.stages["align"])


def test_a_frozen_weight_that_changes_stops_the_run(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = aligned(until="reward")
    roll_out = PPOTrainer._generate_and_score_completions

    def meddled(self: PPOTrainer, inputs: Any) -> Any:
        with torch.no_grad():
            next(iter(self.roles.frozen_weights())).view(-1)[0] += 1e-4
        return roll_out(self, inputs)

    monkeypatch.setattr(PPOTrainer, "_generate_and_score_completions", meddled)
    with pytest.raises(AssertionError, match="a frozen weight of base, reference or reward model changed"):
        rlhf.align.ppo.stage.run(made.stages["align"])


def test_a_guard_that_may_stop_does_and_says_why(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(guards="stop", kl_budget=0.01, max_steps=40, kl_target=None)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert json.loads((directory / "report.json").read_text())["steps_trained"] < 40
    assert "kl_over_budget" in {finding["code"] for finding in manifest["verdict"]["findings"]}


# ---- What must not change the result ----------------------------------------------------------------------------


def test_a_step_of_all_rows_at_once_is_the_step_of_its_parts(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[dict[str, torch.Tensor]] = []
    train = PPOTrainer.training_step

    def noted(self: PPOTrainer, *args: Any) -> Any:
        loss = train(self, *args)
        gradients.append({name: weight.grad.clone() for name, weight in self.roles.trained_weights.items()})  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(PPOTrainer, "training_step", noted)
    keys = {"train_batch_size": 8, "max_steps": 1, "num_ppo_epochs": 1, "rewards": {"reward_model": 1.0}}
    aligned("a", **keys)
    aligned("b", **keys, per_device_train_batch_size=2)
    whole, *parts = gradients  # those of parts add up, so the last is the step's
    assert len(parts) == 4 and max(grad.abs().max() for grad in whole.values()) > 1e-3
    for name, grad in whole.items():
        torch.testing.assert_close(parts[-1][name], grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_below_the_adapters_are_read_once_a_rollout_which_changes_no_gradient(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    gradients: list[dict[str, torch.Tensor]] = []
    reads = {0: 0, 1: 0}
    train, attend = PPOTrainer.training_step, LlamaAttention.forward

    def noted(self: PPOTrainer, *args: Any) -> Any:
        loss = train(self, *args)
        gradients.append({name: weight.grad.clone() for name, weight in self.roles.trained_weights.items()})  # type: ignore[union-attr]
        return loss

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Sampling has a cache, reading and training have none.
        reads[self.layer_idx] += kwargs.get("cache") is None and kwargs.get("past_key_values") is None
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(PPOTrainer, "training_step", noted)
    monkeypatch.setattr(LlamaAttention, "forward", counted)
    keys = {"lora": {"r": 4, "last_layers": 1}, "max_steps": 4, "eval_prompts": 0, "keep_steps": 0}
    keys["trainer_args"] = {"gradient_checkpointing": checkpointing}
    aligned("kept", **keys)
    with_trunk = dict(reads)
    monkeypatch.setattr(Trunk, "recording", lambda self: nullcontext([]))
    aligned("read", **keys)
    read_anew = {layer: reads[layer] - with_trunk[layer] for layer in reads}
    # Of 2 parts of the rollout, reference and critic; of 4 steps, policy and critic, which checkpointing reads twice.
    assert with_trunk[1] - with_trunk[0] == 2 * 2 + 4 * 2 * (2 if checkpointing else 1)
    assert read_anew[0] == read_anew[1]
    kept, anew = gradients[:4], gradients[4:]
    assert max(grad.abs().max() for grad in anew[-1].values()) > 1e-3
    for one, other in zip(kept, anew, strict=True):
        for name, grad in other.items():
            torch.testing.assert_close(one[name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_answers_without_an_opinion_are_not_trained_on(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    roll_out = PPOTrainer._generate_and_score_completions

    def watched(self: PPOTrainer, inputs: Any) -> Any:
        seen.append(roll_out(self, inputs))
        return seen[-1]

    monkeypatch.setattr(PPOTrainer, "_generate_and_score_completions", watched)
    aligned(rewards={"rewards.py:undecided": 1.0}, max_steps=4, eval_prompts=0)
    mask = seen[0]["mask"]
    assert mask[::2].any(dim=1).all() and not mask[1::2].any()
    assert not seen[0]["advantages"][1::2].any()


def test_padding_on_either_side_changes_no_log_probability_and_no_value(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps: list[float] = []
    roll_out = PPOTrainer._generate_and_score_completions

    def padded(self: PPOTrainer, inputs: Any) -> Any:
        batch = roll_out(self, inputs)
        plain = {key: value for key, value in batch.items() if key.startswith(("prompt_", "completion_"))}
        width, mask = plain["completion_ids"].size(1), plain["completion_mask"].bool()
        wide = {
            key: torch.nn.functional.pad(value, (7, 0) if key.startswith("prompt_") else (0, 5), value=0)
            for key, value in plain.items()
        }
        with torch.no_grad():
            for read in (
                lambda part: self.token_logprobs(self.model, part)[0],
                lambda p: self.token_values(self.model, p),
            ):
                gaps.append((read(wide)[:, :width] - read(plain))[mask].abs().max().item())
        return batch

    monkeypatch.setattr(PPOTrainer, "_generate_and_score_completions", padded)
    aligned(rewards={"reward_model": 1.0})
    assert len(gaps) == 6 and max(gaps) < 1e-5


RESUMED = """
import os, signal, sys
from pathlib import Path
from rlhf.align.ppo.trainer import PPOTrainer
from trueup.training.trunk import Trunk
from trueup.campaign import load_campaign
from trueup.stages import load_object

save, kill_at = PPOTrainer._save_checkpoint, int(sys.argv[2])

def killed(self, model, trial):
    save(self, model, trial)
    if self.state.global_step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

PPOTrainer._save_checkpoint = killed
stage = load_campaign(Path(sys.argv[1])).stages["align"]
load_object(stage.run)(stage)
"""


def test_a_run_that_was_killed_goes_on_to_the_same_policy_bit_by_bit(
    aligned: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"rewards": {"reward_model": 1.0}}
    _, whole = aligned("a", **keys)
    made, killed = aligned("b", until="reward", **keys)
    process = warm.start(RESUMED, str(made.source), "8", said=tmp_path / "said")(200)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (killed / "manifest.json").exists() and (killed / "checkpoint-8").exists()
    rlhf.align.ppo.stage.run(made.stages["align"])
    assert all(torch.equal(weight, weights(killed)[name]) for name, weight in weights(whole).items())
    for key in ("loss", "objective/scores", "objective/kl_coef", "eval/reward", "loss/value_avg"):
        assert metrics(killed, key) == metrics(whole, key), key
    one, other = (json.loads((path / "report.json").read_text()) for path in (whole, killed))
    assert one["rollouts"] == other["rollouts"] and one["kl_coef"] == other["kl_coef"]


def test_every_checkpoint_falls_between_two_rollouts(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = PPOTrainer._save_checkpoint

    def noted(self: PPOTrainer, model: Any, trial: Any) -> None:
        saved.append(self.state.global_step)
        save(self, model, trial)

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", noted)
    aligned(save_steps=3)
    assert saved == [4, 8, 12]


class Gradients(TrainerCallback):
    """The gradients of policy and critic as the optimiser gets them, of every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        found = {"policy": [], "critic": []}  # type: dict[str, list[torch.Tensor]]
        for name, weight in model.named_parameters():
            for role, adapter in (("policy", ".default."), ("critic", ".critic.")):
                if adapter in name and weight.grad is not None:
                    found[role].append(weight.grad.flatten().clone())
        self.seen.append({role: torch.cat(parts) for role, parts in found.items()})


def test_a_critic_that_is_far_off_does_not_shrink_the_step_of_the_policy(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped together, the policy's gradient would get smaller as the critic's grows."""
    seen = {}
    build = rlhf.align.ppo.stage.build_trainer
    for name, vf_coef in (("near", 0.1), ("far", 1e4)):
        watcher = Gradients()

        def building(*args: Any, watcher: Gradients = watcher) -> Any:
            trainer = build(*args)
            trainer.add_callback(watcher)
            return trainer

        monkeypatch.setattr(rlhf.align.ppo.stage, "build_trainer", building)
        _, directory = aligned(name, vf_coef=vf_coef, max_steps=1, max_grad_norm=1e-3, keep_steps=0)
        seen[name] = watcher.seen[0]
        for key in ("policy/grad_norm", "val/grad_norm"):
            assert metrics(directory, key)[0] > 1e-3, "both are clipped, and logged as they were before"
    for role in ("policy", "critic"):
        assert seen["far"][role].norm() == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(seen["far"]["policy"], seen["near"]["policy"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_result_is_the_step_that_the_second_reward_model_prefers(
    aligned: Callable[..., Any], algorithm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = aligned("a", until="reward", rewards={"reward_model": 1.0})
    parent = runs.stage_dir(made.run_dir, "reward")
    # A second reward model that likes the opposite, and is far away in scale.
    judge = loading.load_reward_model(parent / "model", made.config.model)
    with torch.no_grad():
        judge.model.score.weight.mul_(-3)
    loading.save(judge, parent / "judge" / "model")
    report = json.loads((parent / "report.json").read_text())
    report["judge"] = card_of(normalisation={"mean": 1.0, "std": 2.0})
    (parent / "report.json").write_text(json.dumps(report))
    keys = {} if algorithm == "ppo" else {**GROUPED, "algorithm": "grpo", "num_generations": 2}
    _, directory = aligned("a", rewards={"reward_model": 1.0}, missing_eos_penalty=0.0, keep_steps=3, **keys)
    evaluated = json.loads((directory / "report.json").read_text())
    rows = {row["step"]: row for row in evaluated["evaluations"]}
    assert len(rows) == 5 and len({row["second_reward"] for row in rows.values()}) > 1
    for row in rows.values():  # report.json of the reward stage has no normalisation of its own: mean 0, std 1
        assert row["second_reward"] == pytest.approx((-3 * row["reward"] - 1.0) / 2.0, abs=1e-3)
    later = {step: row["second_reward"] for step, row in rows.items() if step}
    assert later[evaluated["chosen_step"]] == max(later.values())
    assert evaluated["chosen_by"] == "second_reward"
    assert "chosen by the second reward model" in capsys.readouterr().out
    assert "by the second reward model, which was trained on other prompts" in (directory / "report.html").read_text()
