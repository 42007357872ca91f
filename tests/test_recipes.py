"""The recipes of the systems that made the field: their texts, their masks, their numbers, and that each runs.

Every text and number that a recipe is held against stands here by hand, from the sources that its file names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import recipes

import architectures
import sft.train
from rlhf.align.config.online import PPOConfig
from sft.tokens import TrainingRows
from trueup import runs
from trueup.campaign import load_campaign
from trueup.check import check
from trueup.data.records import Message
from trueup.models import loading
from trueup.models.chat import IGNORED, Encoded, encode_demonstration
from trueup.models.encoding import with_loss_on
from trueup.models.templates.choice import set_template
from trueup.stages import STAGES, load_object
from trueup.verify import verify


def stages_of(name: str) -> dict[str, Any]:
    return dict(load_campaign(recipes.file_of(name)).stages)


HEADINGS = ("Source", "Hardware", "Hours", "Hold against", "Not yet")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_begins_with_its_source_what_it_takes_and_what_to_hold_it_against(name: str) -> None:
    header = recipes.file_of(name).read_text(encoding="utf-8").split("\n\n")[0]
    for heading in HEADINGS:
        assert re.search(rf"^# {heading} +\S", header, re.MULTILINE), heading
    readme = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"[{name}](../configs/recipes/{name}.yaml)" in readme


BILLIONS = {
    "huggyllama/llama-7b": 6.74,
    "mistralai/Mistral-7B-v0.1": 7.24,
    "HuggingFaceTB/SmolLM2-360M": 0.36,
    "HuggingFaceTB/SmolLM2-1.7B": 1.71,
    "EleutherAI/pythia-1.4b": 1.41,
    "EleutherAI/pythia-2.8b": 2.78,
    "EleutherAI/pythia-6.9b": 6.86,
}
"""Weights of each base."""


@pytest.mark.parametrize("name", recipes.NAMES)
def test_the_gpu_that_a_recipe_names_holds_the_weights_of_every_stage(name: str) -> None:
    header = recipes.file_of(name).read_text(encoding="utf-8").split("\n\n")[0]
    sizes = re.findall(r"\bGPU of (\d+) GB", header)
    needs = [0.0]
    for stage, config in stages_of(name).items():
        if getattr(config, "full_finetuning", False):
            base = getattr(config, "base", None) or config.model
            trained = 2 if isinstance(config, PPOConfig) else 1  # with a critic, on the policy's base or as large
            needs.append(16 * trained * BILLIONS[base.name])
        elif stage == "sft":
            needs.append((0.5 if config.model.load_in_4bit else 2) * BILLIONS[config.model.name])
    assert sizes and max(needs) < float(sizes[0]), "and activations need room, too"


# ---- Texts and masks --------------------------------------------------------------------------------------------

E = "<|endoftext|>"
BELOW = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ZEPHYR = f"<|user|>\nName a fruit.{E}\n<|assistant|>\n[A plum.{E}]\n<|user|>\nAnother?{E}\n<|assistant|>\n[A pear.{E}]"
TEXTS = {
    "alpaca": f"{BELOW}### Instruction:\nName a fruit.\n\n### Response:[A plum.{E}]",
    "dolly": f"{BELOW}### Instruction:\nName a fruit.\n\n### Response:\n[A plum.{E}]",
    "vicuna": f"{CURIOUS}USER: Name a fruit. ASSISTANT:[ A plum.{E}]USER: Another? ASSISTANT:[ A pear.{E}]",
    "openassistant": f"<|prompter|>Name a fruit.{E}<|assistant|>[A plum.{E}]"
    f"<|prompter|>Another?{E}<|assistant|>[A pear.{E}]",
    "llama-lora": f"[### Human: Name a fruit.### Assistant: A plum.{E}### Human: Another?### Assistant: A pear.{E}]",
    "mistral-qlora": f"[{ZEPHYR.replace('[', '').replace(']', '')}]",
    "constitutional": f"[{ZEPHYR.replace('[', '').replace(']', '')}]",
    "smollm2": f"[{SMOL}<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\nA plum.<|im_end|>\n"
    "<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\nA pear.<|im_end|>]",
    "chatgpt": f"<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n[A plum.{E}]\n"
    f"<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\n[A pear.{E}]",
    "instructgpt": f"User:\nName a fruit.\n\nAssistant:\n[A plum.{E}]",
}
"""A dialogue as the source writes it, with brackets around what carries loss. Where its end is no EOS, EOS stands for
it. Not published, and so our own: instructgpt, chatgpt."""


def tokenizer_of(name: str) -> Any:
    """Bytes, and the control tokens that the recipe's base has."""
    tokenizer = architectures.tiny_tokenizer()
    if "<|im_end|>" in TEXTS[name]:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    set_template(tokenizer, load_campaign(recipes.file_of(name)).config.model)
    return tokenizer


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_dialogue_is_written_as_its_source_writes_it_and_what_carries_loss_is_the_same(name: str) -> None:
    expected, config = TEXTS[name], stages_of(name)["sft"]
    said = [("user", "Name a fruit."), ("assistant", "A plum."), ("user", "Another?"), ("assistant", "A pear.")]
    messages = [Message(role=role, content=text) for role, text in said[: 2 if "Another?" not in expected else 4]]
    tokenizer = tokenizer_of(name)
    (row,) = with_loss_on(encode_demonstration(tokenizer, messages), config.train_on)
    first = row.labels[:1] == [IGNORED] and config.train_on == "all"
    labels = [row.input_ids[0], *row.labels[1:]] if first else row.labels  # nothing comes before the first token
    runs_of_loss = groupby(zip(row.input_ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    texts = [(trained, tokenizer.decode([token for token, _ in run])) for trained, run in runs_of_loss]
    assert "".join(f"[{text}]" if trained else text for trained, text in texts) == expected


# ---- Numbers ----------------------------------------------------------------------------------------------------

NUMBERS = {
    "alpaca": (52_002, 1_219, 37, 128 * 512),
    "dolly": (15_011 - 200, 618, 50, 48 * 1024),
    "vicuna": (70_000, 1_641, 66, 128 * 2048),
    "instructgpt": (12_725, 6_368, 0, 32 * 2048),
    "mistral-qlora": (207_865, 25_984, 2_599, 8 * 2048),
}
"""Rows of the source's data (of Vicuna, about); and of its SFT: steps, warm-up steps, tokens of a step at most."""


@pytest.mark.parametrize("name", NUMBERS)
def test_steps_warm_up_and_tokens_of_a_step_are_those_of_the_source_at_full_scale(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    rows, steps, warm_up, tokens = NUMBERS[name]
    config = stages_of(name)["sft"]
    model = config.model.model_copy(
        update={"name": str(tiny_base), "chat_template": "plain", "load_in_4bit": False, "device": "cpu"}
    )
    config = config.model_copy(update={"run_dir": tmp_path, "model": model})
    base = loading.load_base(model)
    train_rows = TrainingRows.of([Encoded([5, 6], [IGNORED, 6])] * rows)
    trainer = sft.train.build_trainer(config, runs.begin(config), base, train_rows, TrainingRows.of([]))
    *_, total = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert (total, trainer.args.get_warmup_steps(total)) == (steps, warm_up)
    args = trainer.args
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * config.max_length == tokens
    assert args.learning_rate == config.learning_rate and args.weight_decay == 0


def test_the_reward_models_batches_and_the_rollouts_of_ppo_are_those_of_the_sources() -> None:
    stages = stages_of("instructgpt")
    reward, align = stages["reward"], stages["align"]
    assert reward.train_batch_size * (9 * 8 // 2) == 2_304, "pairs of a batch, with nine answers to a prompt"
    assert reward.trainer_args["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}, "the rate falls to a tenth"
    assert isinstance(align, PPOConfig)
    rollouts = align.max_steps // align.updates_per_rollout
    assert (rollouts, rollouts * align.rollout_batch_size) == (500, 256_000)
    assert align.warmup_steps // align.updates_per_rollout == 10

    align = stages_of("openassistant")["align"]
    assert isinstance(align, PPOConfig)
    assert (align.rollout_batch_size, align.passes, align.kl_coef, align.kl_target) == (1_024, 4, 0.1, 6)


DPO = {
    "mistral-qlora": (0.01, 5e-6, 4 * 4, 1, "cosine"),
    "constitutional": (0.1, 5e-7, 8 * 2, 3, "linear"),
    "smollm2": (0.5, 1e-6, 8 * 2 * 8, 2, "cosine"),
}
"""Beta, learning rate, pairs of a step over the source's GPUs, epochs and schedule (alignment-handbook)."""


@pytest.mark.parametrize("name", DPO)
def test_what_dpo_learns_by_is_as_in_the_source(name: str) -> None:
    align = stages_of(name)["align"]
    found = (align.beta, align.learning_rate, align.train_batch_size, align.num_train_epochs, align.lr_scheduler_type)
    assert found == DPO[name] and (align.max_length, align.warmup_steps) == (1_024, 0.1)


# ---- Scaled down ------------------------------------------------------------------------------------------------


@pytest.fixture
def scaled_down(bases: Callable[[str], Path], tmp_path: Path, jsonl: Callable[..., Path]) -> Callable[[str], Any]:
    def make(name: str) -> Any:
        return recipes.scaled_down(name, bases("chatml" if "<|im_end|>" in TEXTS[name] else "plain"), tmp_path, jsonl)

    return make


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_reads_rows_in_the_shape_of_its_data_and_nothing_in_it_is_refused(
    name: str, scaled_down: Callable[[str], Any]
) -> None:
    campaign = scaled_down(name)
    problems, notes = check(campaign)
    assert problems == []
    counted = [int(found[1]) for note in notes if (found := re.match(r"(?:sft|label)\.\w+: .*: (\d+) rows", note))]
    assert counted and set(counted) == {recipes.ROWS}, "every row is read"


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.NAMES)
def test_two_steps_of_every_stage_of_a_recipe_run_and_verify(name: str, scaled_down: Callable[[str], Any]) -> None:
    campaign = scaled_down(name)
    for stage in STAGES:
        config = campaign.stages[stage]
        load_object(config.run)(config)
    assert verify(campaign.run_dir).problems == []
