"""The memory that is predicted before PPO starts, against what a real training then takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import another_base
import pytest
import torch
from manifests import card_of
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf.align.config.online import PPOConfig
from rlhf.align.ppo import memory
from rlhf.align.ppo.roles import Roles, SeparateModels, SharedBase
from trueup.config import SplitConfig
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.training import loop

MIB = 2**20


@pytest.fixture
def made(tmp_path: Path, tiny_base: Path) -> Callable[..., tuple[PPOConfig, Roles]]:
    """A config and the roles that it casts on the tiny base, without a reward model."""

    def make(**keys: Any) -> tuple[PPOConfig, Roles]:
        model = ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu")
        adapter = {} if keys.get("full_finetuning") else {"lora": {"r": 4}}
        config = PPOConfig(run_dir=tmp_path, model=model, split=SplitConfig(), **{**adapter, **keys})
        policy = loading.load_policy(tiny_base, model)
        if config.full_finetuning:
            return config, SeparateModels(config, policy, tiny_base, None)
        return config, SharedBase(config, policy, None)

    return make


# ---- Against measurement ----------------------------------------------------------------------------------------

MEASURE = """
import json, sys
import psutil
import torch
import rlhf.align.ppo.stage, rlhf.align.ppo.trainer
from rlhf.align.ppo import memory
from pathlib import Path
from trueup.campaign import load_campaign

predict, predictions, on_gpu = memory.predict, [], sys.argv[3] == "cuda"

def watched(config, roles, longest=None):
    predictions.append(predict(config, roles, int(sys.argv[2])))
    # The peak so far, of loading the models, is forgotten.
    torch.cuda.reset_peak_memory_stats() if on_gpu else Path("/proc/self/clear_refs").write_text("5")
    return predictions[-1]

memory.predict = watched
memory.return_freed_memory()
before = 0 if on_gpu else psutil.Process().memory_info().rss
rlhf.align.ppo.stage.run(load_campaign(Path(sys.argv[1])).stages["align"])
if on_gpu:
    peak = torch.cuda.max_memory_allocated()
else:
    peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print("MEASURED", json.dumps([predictions[0].total_bytes, peak - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
                # An H100 took 260 MiB with adapters and 909 with whole models. What was then predicted, 104 and 644,
                # lacked cuBLAS's workspaces, the optimiser's and most of the head's; on a GPU it was not tried since.
                pytest.mark.xfail(reason="not seen to hold on a GPU yet"),
            ],
        ),
    ],
)
@pytest.mark.timeout(900)  # three trainings in processes of their own, which a busy machine takes minutes for
@pytest.mark.parametrize(
    "keys",
    [
        {"trainer_args": {"gradient_checkpointing": False}},
        {"trainer_args": {"gradient_checkpointing": True}},
        {"full_finetuning": True, "learning_rate": 1e-5},
        {"rewards": {"reward_model": 1.0}},
    ],
    ids=["adapters", "adapters, recomputed", "full", "a larger reward model of another base"],
)
def test_a_real_training_peaks_within_a_quarter_of_what_was_predicted(
    keys: dict[str, Any], device: str, campaign: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """17M parameters, and activations of some hundred MiB, before which a process's own overhead is small. The reward
    model of another base has 29M."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases("plain"))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "rewards.py").write_text("def ones(completions, **columns):\n    return [1.0] * len(completions)\n")
    answer, prompt = 48, 25  # no answer of this policy ends by itself
    align = {
        "algorithm": "ppo",
        "prompts": "prompts.jsonl",
        "rewards": {"rewards.py:ones": 1.0},
        "rollout_batch_size": 16,
        "train_batch_size": 16,
        "num_ppo_epochs": 2,
        "max_new_tokens": answer,
        "max_length": 96,
        "max_steps": 2,
        "eval_prompts": 0,
        **({} if keys.get("full_finetuning") else {"lora": {"r": 8}}),
        **keys,
    }
    model = {"name": str(tmp_path / "base"), "device": device, "dtype": "auto"}
    labels = {"source": "import", "path": "prompts.jsonl"}
    reward = {"base": {"name": "another/base", "device": device}}
    made = campaign(tmp_path, align=align, model=model, split={"heldout_fraction": 0.0}, label=labels, reward=reward)
    from trueup import runs

    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    if "rewards" in keys:
        runs.begin(made.stages["label"]).finish()
        stage = runs.begin(made.stages["reward"])
        another_base.tokenizer_of(bases("llama"), stage.dir / "model")
        heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
        sizes = {"hidden_size": 512, "intermediate_size": 1365, "num_labels": 1, **heads}
        larger = LlamaConfig(**{**shape.to_diff_dict(), **sizes})
        LlamaForSequenceClassification(larger).save_pretrained(stage.dir / "model")
        stage.write_json("report.json", card_of())
        stage.finish()
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "campaign.yaml"), str(prompt + answer), device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert done.returncode == 0, done.stderr
    predicted, measured = json.loads(done.stdout.split("MEASURED")[1])
    print(f"predicted {predicted / MIB:.0f} MiB, measured {measured / MIB:.0f} MiB, ratio {predicted / measured:.2f}")
    assert measured > 300 * MIB or device == "cuda"  # whose allocator counts tensors alone
    assert 0.75 < predicted / measured < 1.33


# ---- What more of anything costs --------------------------------------------------------------------------------

MORE = {
    "max_length": 1024,
    "max_new_tokens": 384,
    "rollout_batch_size": 256,
    "train_batch_size": 32,
    "eval_prompts": 256,
    "lora": {"r": 64},
    "full_finetuning": True,
}


@pytest.mark.parametrize("key", MORE)
def test_more_of_anything_is_never_predicted_to_take_less(key: str, made: Callable[..., Any]) -> None:
    keys = {"train_batch_size": 8, "rollout_batch_size": 32, "eval_prompts": 8}
    less, more = memory.predict(*made(**keys)), memory.predict(*made(**{**keys, key: MORE[key]}))
    assert more.total_bytes >= less.total_bytes
    assert all(
        getattr(more, part) >= getattr(less, part) for part in ("training_state", "buffer", "sampling", "updating")
    )
    assert sum(vars(more).values()) != sum(vars(less).values())


def test_layers_below_the_first_adapter_cost_no_activations(made: Callable[..., Any]) -> None:
    names = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    last_names = [f"1.{name}" for name in names]
    every = memory.predict(*made(lora={"r": 4, "target_modules": names}, max_new_tokens=1))
    last = memory.predict(*made(lora={"r": 4, "target_modules": last_names}, max_new_tokens=1))
    assert last.updating < 0.7 * every.updating


def test_checkpointing_keeps_a_fraction_of_the_activations(made: Callable[..., Any]) -> None:
    kept = memory.predict(*made(max_new_tokens=1))
    again = memory.predict(*made(max_new_tokens=1, trainer_args={"gradient_checkpointing": True}))
    assert again.updating < kept.updating


def test_predicting_leaves_the_roles_as_they_were(made: Callable[..., Any]) -> None:
    config, roles = made()
    before, state = roles.fingerprint(), torch.get_rng_state()
    memory.predict(config, roles)
    assert roles.fingerprint() == before and torch.equal(torch.get_rng_state(), state)
    assert roles.role == "policy" and all(weight.grad is None for weight in roles.model.parameters())
    assert all(weight.requires_grad for weight in roles.trained_weights.values())


# ---- What it says -----------------------------------------------------------------------------------------------


def test_it_is_said_in_one_line_and_warns_of_nothing_where_it_fits(made: Callable[..., Any]) -> None:
    prediction = memory.predict(*made())
    assert prediction.warning() is None
    line = prediction.describe()
    assert "\n" not in line and line.startswith("about 0.") and "GiB free" in line


def test_what_does_not_fit_is_a_finding_that_names_the_rows_that_would(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, roles = made(train_batch_size=64, per_device_train_batch_size=64)
    needed = memory.predict(config, roles)
    third = needed.training_state + needed.buffer + needed.updating // 3
    monkeypatch.setattr(loop, "free_memory", lambda device: third)
    found = memory.predict(config, roles).warning()
    assert found is not None and found.level == "warn" and "per_device_train_batch_size: 8 " in found.message
    fitting = config.model_copy(update={"per_device_train_batch_size": 8})
    assert memory.predict(fitting, roles).warning() is None


@pytest.mark.parametrize(("free", "given_back"), [(1.5, True), (3.0, False)])
def test_freed_memory_is_given_back_at_the_price_of_time_only_where_little_is_free(
    made: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: float,
    given_back: bool,
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append(True))
    predicted = memory.predict(*made())
    scarce = replace(predicted, free=int(free * (predicted.total_bytes - predicted.weights)))
    capsys.readouterr()
    memory.spare_time_or_memory(scarce, torch.device("cpu"))
    assert bool(calls) is given_back and ("costs time" in capsys.readouterr().out) is given_back


def test_where_not_even_one_row_fits_no_number_of_rows_is_advised(made: Callable[..., Any]) -> None:
    nothing = replace(memory.predict(*made()), free=0, fitting_rows=0)
    found = nothing.warning()
    assert found is not None and "per_device" not in found.message and "smaller model" in found.message
