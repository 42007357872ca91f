"""What PPO takes: one base with adapters beside four models, and beside the last PPO that TRL had.

    python benchmarks/ppo.py memory          53M parameters, float32: peak memory of three ways to hold the four roles
    python benchmarks/ppo.py trl [REPEATS]   17M parameters: seconds and peak memory of an update, ours and TRL 1.12's

Every measurement is a process of its own. A peak is the resident memory over that of the libraries alone, from when
the models are loaded (Linux only). No answer of these random policies ends by itself, so all do the same work.

`memory` runs each way twice: with glibc's malloc as it comes, and as the stage sets it where little is free
(memory.return_freed_memory).
`trl` installs trl==1.12.0, the last with a PPOTrainer (trl.experimental.ppo), into an environment under a temporary
folder, with this environment's versions of torch, transformers, peft and accelerate, and alternates with it. Both sides
get one malloc setting, float32, prompts, lengths, micro-batches and passes, and neither recomputes activations. TRL's
`peft_config` gives the policy an adapter; its critic it trains whole.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
TRL = "1.12.0"
LARGE = {
    "vocab_size": 16384,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 14,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SMALL = {**LARGE, "hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "num_attention_heads": 6}
SMALL["num_key_value_heads"] = 3
WORK = {"rows": 16, "rows_at_once": 4, "new_tokens": 32, "passes": 4, "r": 16}
"""Answers of a rollout; one optimiser step a pass."""
MEMORY_WAYS = {
    "shared": "one base, four adapters",
    "lora": "four models, adapters on two",
    "full": "four models, two trained whole",
}
TRL_WAYS = [("ours-adapters", "trl-adapters"), ("ours-full", "trl-full")]


# ---- What is measured, in a process each --------------------------------------------------------------------------


def measure(way: str, folder: Path, updates: int, tidy: bool) -> None:
    """Print {"seconds": [of each update], "peak": bytes over the libraries}."""
    times, baseline = _trl(way, folder, updates) if way.startswith("trl") else _ours(way, folder, updates, tidy)
    high = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    seconds = [after - before for before, after in pairwise(times)]
    print("MEASURED", json.dumps({"seconds": seconds, "peak": high - baseline}))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _clock(every: int) -> tuple[Any, list[float]]:
    """A callback that notes the time when training begins and after each update, which is `every` steps."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0:
                times.append(time.perf_counter())

    return Clock(), times


def _ours(way: str, folder: Path, updates: int, tidy: bool) -> tuple[list[float], int]:
    import rlhf.align.ppo.trainer  # noqa: F401
    from rlhf.align.config.online import PPOConfig
    from rlhf.align.ppo import memory
    from rlhf.align.ppo.roles import SeparateModels, SharedBase
    from rlhf.align.ppo.stage import build_trainer, scores
    from rlhf.align.prompts import choose_prompts, schedule
    from rlhf.align.rewards import make_rewards
    from trueup import runs
    from trueup.artifacts.reports import Normalisation
    from trueup.campaign import load_campaign
    from trueup.models import loading
    from trueup.models.chat import answer_text
    from trueup.models.templates.ends import turn_ends
    from trueup.training import loop

    if tidy:
        memory.return_freed_memory()
    run = Path(tempfile.mkdtemp(dir=folder))
    (run / "sft").symlink_to(folder / "run" / "sft")
    made = load_campaign(folder / "campaign.yaml", [f"run_dir={run}"])
    config = made.stages["align"]
    assert isinstance(config, PPOConfig)
    passes = WORK["passes"] if way.startswith("ours") else 2  # from the second step on Adam's moments are there
    whole = way.endswith("full")
    changed = {"num_ppo_epochs": passes, "max_steps": updates * passes, "full_finetuning": whole}
    config = config.model_copy(update=changed)
    baseline = _resident()
    stage = runs.begin(config)
    policy = loading.load_policy(folder / "policy", config.model)
    if whole:
        roles: Any = SeparateModels(config, policy, folder / "policy", folder / "reward")
    elif way == "lora":
        roles = _separate_adapters()(config, policy, folder / "policy", folder / "reward")
    else:
        roles = SharedBase(config, policy, folder / "reward-adapter")
    by_model = config.model_copy(update={"rewards": {"reward_model": 1.0}})
    paid = scores(roles, Normalisation(mean=0.0, std=1.0))
    text_of = partial(answer_text, policy.tokenizer)
    rewards = make_rewards(by_model, paid, [], turn_ends(policy.tokenizer), text_of)
    prompts = choose_prompts(config, stage, policy.tokenizer)
    callback, times = _clock(passes)
    with loop.scored_completions_only():
        trainer = build_trainer(config, stage, roles, rewards, schedule(prompts.train, config))
        trainer.add_callback(callback)
        _forget_peak()
        trainer.train()
    return times, baseline


def _separate_adapters() -> Any:
    """Four models whose policy and critic have adapters: what one base saves, apart from what adapters save."""
    from peft import LoraConfig, inject_adapter_in_model

    from rlhf.align.ppo.roles import SeparateModels

    class SeparateAdapters(SeparateModels):
        def __init__(self, *args: Any):
            super().__init__(*args)
            lora = LoraConfig(r=WORK["r"], target_modules=r"model\.layers\..*_proj")
            inject_adapter_in_model(lora, self.model)
            inject_adapter_in_model(lora, self.model.critic)
            self.model.critic.score.requires_grad_(True)

        def parameters(self, role: Any) -> Any:
            return {name: weight for name, weight in super().parameters(role).items() if weight.requires_grad}

        def frozen_weights(self) -> Any:
            yield from super().frozen_weights()
            yield from (weight for weight in self.model.parameters() if not weight.requires_grad)

    return SeparateAdapters


def _trl(way: str, folder: Path, updates: int) -> tuple[list[float], int]:
    """In TRL's environment, where nothing of ours is installed."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    baseline = _resident()
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # it finds padding by the token, which must not be EOS then
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    reward, critic = (AutoModelForSequenceClassification.from_pretrained(folder / "reward") for _ in range(2))
    prompts = json.loads((folder / "prompt_ids.json").read_text())
    adapters = way.endswith("adapters")
    callback, times = _clock(1)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "trl-output"),
            per_device_train_batch_size=WORK["rows_at_once"],
            gradient_accumulation_steps=WORK["rows"] // WORK["rows_at_once"],
            num_ppo_epochs=WORK["passes"],
            total_episodes=updates * WORK["rows"],
            response_length=WORK["new_tokens"],
            temperature=1.0,
            stop_token="eos",
            missing_eos_penalty=1.0,
            learning_rate=1e-5,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None if adapters else reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts for _ in range(2)]),
        peft_config=LoraConfig(r=WORK["r"], target_modules="all-linear", task_type="CAUSAL_LM") if adapters else None,
        callbacks=[callback],
    )
    if adapters:
        del reference
    _forget_peak()
    trainer.train()
    return times, baseline


# ---- Around it ------------------------------------------------------------------------------------------------------


def prepare(folder: Path, shape: dict[str, int]) -> int:
    """A random policy, a reward model from it (whole, and as an adapter), prompts; returns the policy's parameters."""
    import torch
    import yaml
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from trueup import runs
    from trueup.campaign import load_campaign
    from trueup.data.records import Message
    from trueup.models import loading
    from trueup.models.chat import encode_prompt

    # What tests share. Their folder does not stay on the path: it has folders called trueup and ui, as the product has.
    tests = REPOSITORY / "tests"
    sys.path[:0] = [str(tests), str(tests / "lib")]
    from conftest import make_tokenizer, write_jsonl

    sys.path.remove(str(tests))

    torch.manual_seed(0)
    tokenizer = make_tokenizer("plain")
    base = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id))
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    questions = [
        f"Tell me about {colour} things." for colour in "red lime plum navy rose sand mint teal gold grey".split()
    ]
    write_jsonl(folder / "prompts.jsonl", [{"prompt": question} for question in questions])
    write_jsonl(folder / "demonstrations.jsonl", [])
    (folder / "rewards.py").write_text("def none(completions, **columns):\n    return [0.0] * len(completions)\n")
    align = {
        "algorithm": "ppo",
        "prompts": "prompts.jsonl",
        "rewards": {"rewards.py:none": 1.0},  # the reward model takes its place, without a stage that trained it
        "rollout_batch_size": WORK["rows"],
        "train_batch_size": WORK["rows"],
        "per_device_train_batch_size": WORK["rows_at_once"],
        "num_ppo_epochs": WORK["passes"],
        "max_new_tokens": WORK["new_tokens"],
        "max_length": 128,
        "eval_prompts": 0,
        "save_steps": 10_000,
        "learning_rate": 1e-5,
        "lora": {"r": WORK["r"]},
    }
    values = {
        "name": "benchmark",
        "run_dir": str(folder / "run"),
        "model": {"name": str(folder / "base"), "chat_template": "plain", "device": "cpu"},
        "split": {"heldout_fraction": 0.0},
        "sft": {"data": ["demonstrations.jsonl"]},
        "sample": {"prompts": "prompts.jsonl"},
        "label": {"source": "simulated"},
        "align": align,
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(values))
    made = load_campaign(folder / "campaign.yaml")
    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    (folder / "policy").symlink_to(stage.dir / "model")
    reward = loading.load_reward_model(folder / "policy", made.config.model, fresh_head=True)
    lora = LoraConfig(r=WORK["r"], target_modules="all-linear", modules_to_save=["score"], task_type=TaskType.SEQ_CLS)
    adapted = get_peft_model(reward.model, lora)
    adapted.save_pretrained(folder / "reward-adapter")
    reward.model = adapted.merge_and_unload()
    loading.save(reward, folder / "reward")
    ids = [encode_prompt(reward.tokenizer, [Message(role="user", content=question)]) for question in questions]
    (folder / "prompt_ids.json").write_text(json.dumps(ids))
    return base.num_parameters()


def measured(python: str, way: str, folder: Path, updates: int, tidy: bool) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if tidy:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # for TRL's side what return_freed_memory does for ours
    command = [python, __file__, "measure", way, str(folder), str(updates), str(int(tidy))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.split("MEASURED")[1])


def hardware() -> str:
    cpu = Path("/proc/cpuinfo").read_text()
    model = cpu.split("model name")[1].split(":")[1].split("\n")[0].strip()
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    return f"{model}, {os.cpu_count()} cores, float32; {names}"


def compare_memory() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{prepare(folder, LARGE) / 1e6:.1f}M parameters; {WORK['rows_at_once']} rows at once")
        print(f"{'':<32} {'malloc as it comes':>24} {'freed at once':>24}")
        first: dict[bool, int] = {}
        for way, said in MEMORY_WAYS.items():
            cells = []
            for tidy in (False, True):
                found = measured(sys.executable, way, folder, 1, tidy)
                first.setdefault(tidy, found["peak"])
                ratio = found["peak"] / first[tidy]
                cells.append(f"{_peak(found):5.0f} MiB x {ratio:4.2f} {found['seconds'][-1]:6.1f} s")
            print(f"{said:<32} {cells[0]:>24} {cells[1]:>24}", flush=True)
    print(hardware())


def compare_trl(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons = {"ours": sys.executable, "trl": _environment(folder / "trl")}
        size = prepare(folder, SMALL)
        found: dict[str, list[dict[str, Any]]] = {}
        for repeat in range(repeats):
            for pair in TRL_WAYS:
                for way in pair if repeat % 2 == 0 else reversed(pair):
                    result = measured(pythons[way.split("-")[0]], way, folder, 2, True)
                    found.setdefault(way, []).append(result)
                    print(
                        f"  {way}: {[round(s, 1) for s in result['seconds']]} s, {result['peak'] / 2**20:.0f} MiB",
                        flush=True,
                    )
    print(f"{size / 1e6:.1f}M parameters; {WORK}; {repeats} repeats, the second of two updates")
    for ours, theirs in TRL_WAYS:
        for what, of in (("seconds an update", _seconds), ("peak MiB", _peak)):
            pairs = [(of(a), of(b)) for a, b in zip(found[ours], found[theirs], strict=True)]
            ratios = [b / a for a, b in pairs]
            print(
                f"{ours:<14} {statistics.median(a for a, _ in pairs):8.1f}   {theirs:<13} "
                f"{statistics.median(b for _, b in pairs):8.1f}   {what:<18} TRL / ours "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    print(f"{hardware()}; beside trl {TRL}")


def _seconds(result: dict[str, Any]) -> float:
    return result["seconds"][-1]


def _peak(result: dict[str, Any]) -> float:
    return result["peak"] / 2**20


def _environment(folder: Path) -> str:
    """An environment with TRL 1.12 and this one's versions of all else; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and by version, or a machine without a GPU would get gigabytes for one.
    subprocess.run([*pip, f"torch=={version('torch').split('+')[0]}"], check=True)
    same = [f"{name}=={version(name)}" for name in ("transformers", "peft", "accelerate", "datasets")]
    subprocess.run([*pip, f"trl=={TRL}", "pandas", *same], check=True)
    return pip[0]


def main(arguments: list[str]) -> None:
    commands: dict[str, Callable[[], None]] = {
        "memory": compare_memory,
        "trl": lambda: compare_trl(int(arguments[1]) if len(arguments) > 1 else 3),
        "measure": lambda: measure(arguments[1], Path(arguments[2]), int(arguments[3]), arguments[4] == "1"),
    }
    if not arguments or arguments[0] not in commands:
        raise SystemExit(__doc__)
    commands[arguments[0]]()


if __name__ == "__main__":
    main(sys.argv[1:])
