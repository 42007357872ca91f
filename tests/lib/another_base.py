"""Tiny bases of a reward model that share nothing with the policy: architecture, size, tokenizer and chat template; and
the score of a text by plain transformers, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tokenizer_of(source: Path, folder: Path) -> Any:
    """The tokenizer of another base, with a template of its own, written to the folder."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def language_model(folder: Path, source: Path) -> Path:
    """A GPT-NeoX that is larger than the policy."""
    tokenizer = tokenizer_of(source, folder)
    torch.manual_seed(1)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def reward_model(folder: Path, source: Path, num_labels: int = 1) -> Path:
    """A GPT-2 with a trained head, as somebody publishes it."""
    tokenizer = tokenizer_of(source, folder)
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=len(tokenizer) + 3,
        n_embd=24,
        n_layer=1,
        n_head=2,
        n_positions=256,
        initializer_range=0.3,
        num_labels=num_labels,
        pad_token_id=tokenizer.unk_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return folder


class Plain:
    """A reward model in plain transformers."""

    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(self, prompt: Sequence[Any], text: str, finished: bool) -> float:
        """The score of a text, rendered and encoded here."""
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        asked = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = [token for part in (asked, text) for token in self.tokenizer(part, add_special_tokens=False)["input_ids"]]
        ids += [self.tokenizer.eos_token_id] * finished
        with torch.inference_mode():
            hidden = self.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
            return float(self.model.score(hidden[0, -1]))
