"""A true base model, which has read plain text and knows no turns, learns to answer and to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sft.train
from trueup.config import STARTER
from trueup.data.records import Message
from trueup.models import loading
from trueup.models.sampling import Decoding, sample

QUESTIONS = [[Message(role="user", content=f"Say {colour}.")] for colour in ("mauve", "cyan", "amber", "ivory")]
STEPS, ROWS, LENGTH = 300, 16, 128
"""About a minute on two cores."""


def plain_text() -> list[str]:
    """The texts of the starter demonstrations, one after the other, without any mark of who speaks."""
    lines = (STARTER / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()
    return [message["content"] for line in lines for message in json.loads(line)["messages"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, folder = plain_text(), tmp_path_factory.mktemp("base")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    stream = torch.tensor(
        [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        starts = torch.randint(len(stream) - LENGTH, (ROWS,))
        rows = torch.stack([stream[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 4, "it has read its text: a random model's loss is 6.9"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("template", ["alpaca", "vicuna_v1.1"])
def test_a_base_model_learns_to_stop_in_the_form_of_an_instruct_model(
    base: Path, campaign: Callable[..., Any], tmp_path: Path, template: str
) -> None:
    training = {"full_finetuning": True, "lora": None, "max_steps": 60, "learning_rate": 2.0e-3, "max_length": 160}
    loaded = campaign(tmp_path, model={"name": str(base), "chat_template": template}, sft=training)
    decoding = Decoding(12, temperature=1.0, seed=0)  # half of the 25 tokens after which its text ends

    def share_that_ends(policy: Any) -> float:
        answers = sample(policy, QUESTIONS, decoding, 16, 64)
        return sum(one.finished for row in answers for one in row) / 64

    before = share_that_ends(loading.load_base(loaded.config.model))
    folder = sft.train.run(loaded.stages["sft"])
    after = loading.load_policy(folder / "model", loaded.config.model)
    assert before < 0.5
    assert share_that_ends(after) >= 0.9
    assert json.loads((folder / "report.json").read_text())["eos_rate"] >= 0.9
    ((answer,),) = sample(after, [QUESTIONS[0]], Decoding(40, temperature=0.0, seed=0), 1, 1)
    assert answer.text.startswith("It is ") and answer.text.endswith("."), "as its demonstrations answer"
