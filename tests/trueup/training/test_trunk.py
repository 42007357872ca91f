"""What is kept over the epochs is what would be computed again; what is random is computed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM

import sft.train
from trueup.stages import load_object
from trueup.training import batches, loop


def losses(made: Any) -> list[float]:
    directory = load_object(made.stages["sft"].run)(made.stages["sft"])
    return [row["loss"] for row in loop.read_metrics(directory / "metrics.jsonl") if "loss" in row]


@pytest.fixture
def both(
    campaign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[float], list[float], str]]:
    """Losses of two epochs with the trunk and without it, and what the stage with it said."""

    def run(base: Path | None = None, **keys: Any) -> tuple[list[float], list[float], str]:
        more = {"model": {"name": str(base)}} if base else {}
        section = {"max_steps": -1, "num_train_epochs": 2, "lora": {"last_layers": 1}, **keys}
        monkeypatch.setattr(sft.train, "answer_heldout", lambda *_: [])
        capsys.readouterr()
        kept = losses(campaign(tmp_path / "kept", sft=section, **more))
        said = capsys.readouterr().out
        monkeypatch.setattr(batches, "_kept_over_epochs", lambda *_: nullcontext())
        return kept, losses(campaign(tmp_path / "anew", sft=section, **more)), said

    (tmp_path / "kept").mkdir()
    (tmp_path / "anew").mkdir()
    return run


def base_with(source: Path, folder: Path, **settings: Any) -> Path:
    """The tiny Llama with other settings, or with another architecture's, beside the same tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    kind = settings.pop("kind", None)
    if kind is None:
        model = LlamaForCausalLM.from_pretrained(source, **settings)
    else:
        configuration, architecture = kind
        model = architecture(configuration(vocab_size=len(tokenizer), **settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_plain_base_is_kept_and_trains_alike(both: Callable[..., Any]) -> None:
    kept, anew, said = both()
    assert kept == pytest.approx(anew, abs=1e-5) and "is kept over the epochs" in said


def test_what_does_not_fit_into_memory_is_computed_anew(
    both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "free_memory", lambda device: 2**10)
    kept, anew, said = both()
    assert kept == anew and "is computed anew in each epoch: more than 0.0 GiB, 0.0 free" in said


def test_noise_on_the_embeddings_is_new_in_every_epoch(both: Callable[..., Any]) -> None:
    kept, anew, said = both(trainer_args={"neftune_noise_alpha": 50.0})
    assert kept == anew and "is computed anew in each epoch: it draws random numbers" in said


NEOX = {
    "kind": (GPTNeoXConfig, GPTNeoXForCausalLM),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
DROPOUTS = {
    "attention": {"attention_dropout": 0.2},
    "attention, rare": {"attention_dropout": 1e-6},
    "hidden states": {**NEOX, "hidden_dropout": 0.2},
}


@pytest.mark.parametrize("settings", DROPOUTS.values(), ids=DROPOUTS.keys())
def test_dropout_below_the_adapters_is_drawn_anew_whatever_its_name(
    settings: dict[str, Any], both: Callable[..., Any], tiny_base: Path, tmp_path: Path
) -> None:
    kept, anew, said = both(base_with(tiny_base, tmp_path / "base", **settings))
    assert kept == anew and "is computed anew in each epoch: it draws random numbers" in said


def test_dropout_of_the_adapter_is_above_the_trunk_and_may_stay_random(both: Callable[..., Any]) -> None:
    kept, anew, said = both(lora={"last_layers": 1, "lora_dropout": 0.3})
    assert kept == pytest.approx(anew, abs=1e-5) and "is kept over the epochs" in said
