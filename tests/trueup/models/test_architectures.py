"""Architectures that differ in what matters here go through the stages; benchmarks/architectures.py tries all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, ModernBertDecoderConfig

import architectures
from trueup.check import check
from trueup.models import loading
from trueup.models.heads import add_score_head
from trueup.training import trial
from trueup.training.adapters import adapter


@pytest.mark.parametrize(
    "kind",
    [
        "mixtral",  # experts, whose router's logits TRL asks for
        "cohere",  # scaled logits, and no reward model among the classes of transformers
        "opt",  # drops by a function, counts positions by the mask
        "lfm2",  # a cache that carries a state beside keys and values
        "bloom",  # positions by distance, and no fused attention
        "gemma3",  # a part for images, whose linear modules no text passes through
    ],
)
def test_an_architecture_goes_through_every_stage_and_its_stages_read_one_text_alike(kind: str, tmp_path: Path) -> None:
    found = architectures.through(kind, tmp_path, online=())
    assert found == dict.fromkeys(("last_layers", *architectures.STAGES, "agrees"), "yes")


@pytest.mark.parametrize("lora", [{}, {"last_layers": 1}, {"target_modules": ["q_proj"]}])
def test_only_modules_that_text_passes_through_get_an_adapter(lora: dict[str, Any], tmp_path: Path) -> None:
    campaign = architectures.tiny_campaign(
        tmp_path, architectures.tiny_model("gemma3", tmp_path / "base"), sft={"lora": {"r": 4, **lora}}
    )
    model = loading.load_base(campaign.config.model).model
    adapted = get_peft_model(model, adapter(campaign.stages["sft"], model, TaskType.CAUSAL_LM))
    names = {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    layers = {name.split(".layers.")[1][0] for name in names}
    assert all(".language_model." in name for name in names) and layers == (
        {"1"} if "last_layers" in lora else {"0", "1"}
    )


def test_a_class_that_calls_its_head_a_decoder_gets_adapters_in_its_body(tmp_path: Path) -> None:
    campaign = architectures.tiny_campaign(tmp_path, tmp_path)
    small = {key: value for key, value in architectures.SMALL.items() if key != "num_key_value_heads"}
    settings = ModernBertDecoderConfig(vocab_size=64, pad_token_id=0, cls_token_id=0, sep_token_id=0, **small)
    model = AutoModelForCausalLM.from_config(settings)
    adapted = get_peft_model(model, adapter(campaign.stages["sft"], model, TaskType.CAUSAL_LM))
    names = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert len(names) > 4 and all(".layers." in name for name in names[:-1])


def test_every_architecture_is_tried_or_refused_and_the_docs_say_which() -> None:
    assert architectures.TINY.keys() >= trial.TRIED
    assert architectures.TINY.keys() <= trial.TRIED | trial.REFUSED.keys()
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    for kind in trial.TRIED:
        assert f"| {kind} |" in text, kind
    for kind in trial.REFUSED:
        assert f"`{kind}`" in text, kind


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1"])
def test_an_architecture_that_does_not_work_is_refused_before_anything_is_trained(kind: str, tmp_path: Path) -> None:
    campaign = architectures.tiny_campaign(tmp_path, architectures.tiny_model(kind, tmp_path / "base"))
    (problem,) = check(campaign)[0]
    assert problem.startswith(f"model.name: {tmp_path}/base: {kind} is not supported: ")


def test_it_is_said_that_the_part_for_images_is_left_out(tmp_path: Path) -> None:
    base = architectures.tiny_model("qwen3_5", tmp_path / "base")
    problems, notes = check(architectures.tiny_campaign(tmp_path, base))
    told = f"model.name: {base}: qwen3_5 is read as Qwen3_5ForCausalLM: text alone, without images"
    assert problems == [] and notes.count(told) == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("qwen3_vl", "has no class for the text part of this model alone"),
        ("mistral3", "has no class for the text part of this model alone"),
        ("llava", "has no class for the text part of this model alone"),
        ("t5", "is no decoder"),
    ],
)
def test_a_model_that_continues_no_text_by_itself_is_refused_in_one_sentence(
    kind: str, reason: str, tmp_path: Path
) -> None:
    base = architectures.tiny_model("llama", tmp_path / "base")
    AutoConfig.for_model(kind).save_pretrained(base)
    problems = check(architectures.tiny_campaign(tmp_path, base))[0]
    assert problems[0] == (
        f"model.name: {base}: {kind} has no language model in transformers, since it {reason}: name a model of text"
    )


def test_an_architecture_that_nobody_tried_is_a_note(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, HeliumConfig

    torch.manual_seed(0)
    tokenizer = architectures.tiny_tokenizer()
    settings = HeliumConfig(vocab_size=len(tokenizer), head_dim=16, pad_token_id=1, **architectures.SMALL)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    problems, notes = check(architectures.tiny_campaign(tmp_path, tmp_path / "base"))
    assert problems == []
    assert "model.name: helium is not among the architectures tried (docs/models.md)" in notes


def test_a_decoder_without_a_reward_model_in_transformers_gets_one_and_others_keep_theirs() -> None:
    from transformers import AutoModelForSequenceClassification, GraniteConfig, LlamaConfig, T5Config

    mapping = AutoModelForSequenceClassification._model_mapping
    for settings in (GraniteConfig(), LlamaConfig(), T5Config()):
        before = mapping.get(type(settings), None)
        add_score_head(settings)
        assert mapping[type(settings)].__name__ == type(settings).__name__.replace(
            "Config", "ForSequenceClassification"
        )
        assert before in (None, mapping[type(settings)])
