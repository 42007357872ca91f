"""Which architectures go through every stage? A tiny random model of each is trained, sampled, scored and aligned.

    python benchmarks/architectures.py                    the table of docs/models.md
    python benchmarks/architectures.py llama mamba        of these alone, with the reason of what fails

A column is a stage on two rows of data: its own code, its checks on itself, and its saved model opened by the next.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import yaml

COLOURS = "red blue green black white brown pink grey gold teal lime plum navy rose sand mint".split()
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
_IMAGES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "patch_size": 8}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
TINY: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": {**SMALL, "sliding_window": 16},
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 16},
    "qwen3_moe": {**SMALL, **_EXPERTS, "head_dim": 16, "num_experts": 4},
    "mixtral": {**SMALL, "num_local_experts": 4},
    "gemma": {**SMALL, "head_dim": 16},
    "gemma2": {**SMALL, "head_dim": 16, "sliding_window": 16},
    "gemma3_text": {**SMALL, "head_dim": 16, "sliding_window": 16},
    "gemma3": {
        "text_config": {**SMALL, "head_dim": 16, "sliding_window": 16},
        "vision_config": {**_IMAGES, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16},
        "mm_tokens_per_image": 4,
    },
    "qwen3_5": {
        "text_config": {
            **SMALL,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "vision_config": {**_IMAGES, "depth": 2, "num_heads": 2, "out_hidden_size": 32},
    },
    "phi3": SMALL,
    "olmo": SMALL,
    "olmo2": SMALL,
    "granite": {**SMALL, "logits_scaling": 4.0},
    "cohere": SMALL,
    "cohere2": {**SMALL, "sliding_window": 16},
    "starcoder2": SMALL,
    "stablelm": SMALL,
    "smollm3": SMALL,
    "gpt_neox": {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    "gpt2": _GPT,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 256},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256},
    "deepseek_v3": {
        **SMALL,
        **_EXPERTS,
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {**SMALL, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "falcon_h1": {**SMALL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 256},
}
STAGES = ("sft", "sample", "label", "reward", "align", "compare")
ONLINE = ("ppo", "grpo")


def tiny_tokenizer() -> Any:
    """Every byte a token, an EOS and a pad."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<pad>")


def tiny_model(kind: str, folder: Path) -> Path:
    """The directory of a random model of two layers, with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    text: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    text |= {"vocab_size": len(tokenizer), "initializer_range": 0.1}
    settings, form = {**text, **TINY[kind]}, AutoModelForCausalLM
    if "text_config" in settings:  # as its files come: with a part for images
        settings["text_config"] = {**text, **settings["text_config"]}
        form = AutoModelForImageTextToText
    form.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_campaign(folder: Path, base: Path, **sections: Any) -> Any:
    """The campaign of a base model, over sixteen rows of data."""
    from trueup.campaign import load_campaign

    rows = [{"prompt": f"Say {colour}.", "completion": f"It is {colour}, because so."} for colour in COLOURS]
    training = {"train_batch_size": 4, "max_steps": 2, "max_length": 96, "learning_rate": 1e-2, "lora": {"r": 4}}
    online = {"rollout_batch_size": 4, "num_generations": 2, "max_new_tokens": 8, "eval_prompts": 2}
    align = {"algorithm": "dpo", **training, **{name: {**online, "rewards": {"rubric": 1.0}} for name in ONLINE}}
    values: dict[str, Any] = {
        "name": "architectures",
        "run_dir": str(folder / "run"),
        "model": {"name": str(base), "chat_template": "plain", "device": "cpu"},
        "split": {"heldout_fraction": 0.3},
        "sft": {**training, "data": ["rows.jsonl"]},
        "sample": {"prompts": "prompts.jsonl", "num_candidates": 2, "max_new_tokens": 8},
        "label": {"source": "simulated"},
        "reward": training,
        "align": {**align, **sections.pop("align", {})},
        "compare": {"step_prompts": 2},
    }
    values |= {name: {**values[name], **section} for name, section in sections.items()}
    import json

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prompts = [{"prompt": row["prompt"]} for row in rows]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    (folder / "campaign.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_campaign(folder / "campaign.yaml")


def through(kind: str, folder: Path, online: tuple[str, ...] = ONLINE, verbose: bool = False) -> dict[str, str]:
    """What each stage came to: `yes`, or the reason why not."""
    from trueup.stages import load_object

    found: dict[str, str] = {}

    def attempt(name: str, config: Any) -> bool:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_object(config.run)(config)
            found[name] = "yes"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            if verbose:
                traceback.print_exc()
        return found[name] == "yes"

    try:
        base = tiny_model(kind, folder / "base")
    except Exception as error:
        return {"base": f"{type(error).__name__}: {error}"}
    layers = {"lora": {"r": 4, "last_layers": 1}, "max_steps": 4}
    attempt("last_layers", tiny_campaign(folder, base, sft=layers).stages["sft"])
    campaign = tiny_campaign(folder, base)
    for stage in STAGES:
        if all(found.get(parent) == "yes" for parent in campaign.stages[stage].parents()):
            attempt(stage, campaign.stages[stage])
    if found.get("sample") == "yes":
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found["agrees"] = agrees(campaign)
    for algorithm in online:
        changed = tiny_campaign(folder, base, align={"algorithm": algorithm})
        if all(found.get(parent) == "yes" for parent in changed.stages["align"].parents()):
            attempt(algorithm, changed.stages["align"])
    return found


def agrees(campaign: Any) -> str:
    """Whether sampling, scoring and training read one text alike: `yes`, or by how much they differ."""
    import torch

    from trueup import runs
    from trueup.data.records import CandidateSet, read_rows
    from trueup.models import loading, scoring
    from trueup.models.chat import encode_prompt

    config = campaign.config.model
    rows = read_rows(runs.stage_dir(campaign.run_dir, "sample") / "candidates.jsonl", CandidateSet)
    asked = [(row.prompt, candidate) for row in rows for candidate in row.candidates]
    prompts, ids = [prompt for prompt, _ in asked], [candidate.token_ids for _, candidate in asked]
    policy = loading.load_policy(runs.stage_dir(campaign.run_dir, "sft") / "model", config)
    policy.model.eval()
    sampled = torch.tensor([candidate.logp for _, candidate in asked])
    apart = {"logp": (torch.tensor(scoring.completion_logps(policy, prompts, ids)) - sampled).abs().max().item()}
    if (reward := runs.find_stage(campaign.run_dir, "reward")) is not None:
        scorer = loading.load_reward_model(reward.dir / "model", config)
        scorer.model.eval()
        scores = torch.tensor(scoring.score(scorer, prompts, ids))
        with torch.inference_mode():
            alone = [
                scorer.model(torch.tensor([[*encode_prompt(scorer.tokenizer, prompt), *answer]])).logits.item()
                for prompt, answer in zip(prompts, ids, strict=True)
            ]
        apart["score"] = (torch.tensor(alone) - scores).abs().max().item()
    apart |= adapted(campaign, prompts[:4])
    wrong = [f"{name} differs by {value:.2g}" for name, value in apart.items() if not value < 1e-3]
    return ", ".join(wrong) or "yes"


def adapted(campaign: Any, prompts: list[Any]) -> dict[str, float]:
    """How far the SFT policy as plain weights is from its adapter on the base: in logits (times ten: they are held to
    1e-4), and in the share of answers that it gives otherwise in lockstep with the base than alone."""
    import torch
    from peft import PeftModel

    from trueup import runs
    from trueup.models import loading, lockstep, sampling, tensors
    from trueup.models.chat import encode_prompt

    config, folder = campaign.config.model, runs.stage_dir(campaign.run_dir, "sft")
    plain, base = loading.load_policy(folder / "model", config), loading.load_base(config)
    beside = PeftModel.from_pretrained(base.model, folder / "adapter").eval()
    plain.model.eval()
    rows = [encode_prompt(plain.tokenizer, prompt) for prompt in prompts]
    tokens, mask = tensors.pad_right(rows, plain.tokenizer.pad_token_id)
    with torch.inference_mode():
        logits, others = (model(input_ids=tokens, attention_mask=mask).logits[mask] for model in (plain.model, beside))
    decoding, engine = sampling.Decoding(8, seed=3), lockstep.Engine(campaign.run_dir)
    alone = sampling.sample(plain, prompts, decoding, 1, len(prompts))
    apart = 0
    for prompt, (answer,) in zip(prompts, alone, strict=True):
        steps = list(engine.stream(["base", "sft"], prompt, decoding))
        apart += [step.tokens["sft"].id for step in steps if "sft" in step.tokens] != answer.token_ids
    return {"merged logits": 10 * (logits - others).abs().max().item(), "lockstep": apart / len(prompts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types of transformers; empty: all")
    kinds = parser.parse_args().kinds
    if unknown := [kind for kind in kinds if kind not in TINY]:
        parser.error(f"not tried here: {', '.join(unknown)}; expected some of {', '.join(TINY)}")
    columns = ["last_layers", *STAGES, "agrees", *ONLINE]
    print("| architecture |", " | ".join(columns), "|", flush=True)
    print("|---" * (len(columns) + 1) + "|")
    for kind in kinds or TINY:
        with tempfile.TemporaryDirectory() as folder:
            found = through(kind, Path(folder), verbose=bool(kinds))
        row = ["yes" if found.get(name) == "yes" else "no" if name in found else "" for name in columns]
        print(f"| {kind} |", " | ".join(row), "|", flush=True)
        for name, reason in found.items():
            if reason != "yes":
                print(f"    {kind} {name}: {reason}", flush=True)


if __name__ == "__main__":
    main()
