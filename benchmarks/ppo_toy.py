"""Does PPO learn? A tiny random policy is paid for words of one kind, with several seeds, and must come to say them.

    python benchmarks/ppo_toy.py                    4 seeds, 1 and 4 passes over each rollout
    python benchmarks/ppo_toy.py --algorithm grpo   ... or rloo

Prints the mean reward of the first and of the last rollouts, and how many runs collapsed: ended at or below where they
began. The reward is the share of an answer's words that are of the kind, 0 to 1; by chance 0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from trueup.campaign import Campaign, load_campaign

KIND = [f"red{i}" for i in range(6)]
WORDS = [*KIND, *(f"word{i}" for i in range(54))]
REWARD = f"""
KIND = {KIND!r}

def of_the_kind(prompts, completions, **columns):
    said = [completion[-1]["content"].split() for completion in completions]
    return [sum(word in KIND for word in words) / max(len(words), 1) for words in said]
"""


def make_base(folder: Path) -> None:
    """A random two-layer Llama of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = ["<|endoftext|>", "<unk>", "\n", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=0,
        tie_word_embeddings=False,
        initializer_range=0.2,  # the frozen head must be able to say one word much more likely than another
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def toy_campaign(folder: Path, seed: int, rollouts: int, **keys: Any) -> Campaign:
    """A campaign in `folder` over the random base, which `keys` of `align` change."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    prompts = [{"prompt": f"{word} {other}"} for word in WORDS[:20] for other in WORDS[20:30]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    align = {
        "algorithm": "ppo",
        "prompts": "prompts.jsonl",
        "rewards": {"reward.py:of_the_kind": 1.0},
        "missing_eos_penalty": 0.0,
        "rollout_batch_size": 64,
        "train_batch_size": 64,
        "max_new_tokens": 12,
        "max_length": 64,
        "learning_rate": 5e-3,
        "ppo": {"kl_coef": 0.02},
        "grpo": {"beta": 0.02},
        "rloo": {"beta": 0.02},
        "eval_prompts": 0,
        "keep_steps": 0,
        "save_steps": 100_000,
        "lora": {"r": 8, "lora_alpha": 16},
        **keys,
    }
    passes = align.get("num_ppo_epochs", 4) if align["algorithm"] == "ppo" else 1
    align["max_steps"] = rollouts * passes * align["rollout_batch_size"] // align["train_batch_size"]
    values = {
        "name": "toy",
        "seed": seed,
        "run_dir": str(folder / "run"),
        "model": {"name": str(folder / "base"), "chat_template": "plain", "device": "cpu"},
        "sft": {"data": ["starter"]},
        "sample": {"prompts": "prompts.jsonl"},
        "align": align,
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_campaign(folder / "toy.yaml")


def learn(folder: Path, seed: int, rollouts: int, **keys: Any) -> list[float]:
    """Mean reward of every rollout of a campaign in `folder`, whose SFT policy is the random base."""
    from trueup import runs
    from trueup.models import loading
    from trueup.stages import load_object

    campaign = toy_campaign(folder, seed, rollouts, **keys)
    make_base(folder / "base")
    stage = runs.begin(campaign.stages["sft"])
    loading.save(loading.load_base(campaign.config.model), stage.dir / "model")
    stage.finish()
    directory = load_object(campaign.stages["align"].run)(campaign.stages["align"])
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    key = "objective/scores" if keys.get("algorithm", "ppo") == "ppo" else "reward"
    return [row[key] for row in rows if row.get(key) is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=("ppo", "grpo", "rloo"), default="ppo")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=40)
    arguments = parser.parse_args()
    passes = (1, 4) if arguments.algorithm == "ppo" else (1,)
    collapsed = 0
    for count in passes:
        for seed in range(arguments.seeds):
            keys = {"num_ppo_epochs": count} if arguments.algorithm == "ppo" else {"algorithm": arguments.algorithm}
            with tempfile.TemporaryDirectory() as folder:
                started = time.time()
                with contextlib.redirect_stdout(io.StringIO()):
                    rewards = learn(Path(folder), seed, arguments.rollouts, **keys)
            few = max(1, len(rewards) // 10)
            first, last = sum(rewards[:few]) / few, sum(rewards[-few:]) / few
            collapsed += last <= first
            print(
                f"{arguments.algorithm}, {count} pass{'es' if count > 1 else ''} a rollout, seed {seed}: "
                f"reward {first:.2f} -> {last:.2f} in {len(rewards)} rollouts, {time.time() - started:.0f} s",
                flush=True,
            )
    print(f"collapsed: {collapsed} of {len(passes) * arguments.seeds}")


if __name__ == "__main__":
    main()
