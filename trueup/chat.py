"""Conversations as tokens: the one place where a chat template is applied.

Training and sampling both come through here, so a policy is asked in exactly the tokens it was trained on. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trueup.config import ModelConfig
from trueup.errors import DataError, ModelError
from trueup.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"
IGNORED = -100
"""Label of a token that carries no loss (the field's convention)."""


def set_template(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> str:
    """Give the tokenizer the chat template that the config names, and a pad token; returns what was chosen and why.

    The end of a turn is always the tokenizer's EOS token, so that a model which ends its turn also stops generating.
    """
    choice, reason = config.chat_template, "as the config says"
    if choice == "auto":
        choice = "own" if tokenizer.chat_template else "plain"
        reason = "the tokenizer brings it" if choice == "own" else "this tokenizer has none, as of a base model"
    if config.new_tokens:
        if choice != "chatml":
            raise ModelError("model.new_tokens adds the two markers of ChatML: set model.chat_template: chatml with it")
        tokenizer.add_special_tokens(
            {"extra_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"},
            replace_extra_special_tokens=False,
        )
    if choice in ("chatml", "plain"):
        if tokenizer.eos_token is None:
            raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so no answer could ever end")
        text = (TEMPLATES / f"{choice}.jinja").read_text(encoding="utf-8")
        tokenizer.chat_template = ("{{- bos_token -}}" if _starts_with_bos(tokenizer) else "") + text
    elif choice != "own":
        path = Path(choice)
        if not path.is_file():
            raise ModelError(f"model.chat_template: {choice!r} is neither auto, chatml, plain nor a file")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    pad = set_pad_token(tokenizer)
    return f"chat template {choice} ({reason}), end of turn {tokenizer.eos_token!r}, {pad}"


_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def portable_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template without the tag `generation`, which transformers alone understands.

    A condition that always holds takes its place: it renders the same, white space included, in every engine.
    """
    return _GENERATION.sub(
        lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", tokenizer.get_chat_template()
    )


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Keep padding apart from EOS: who looks for padding by its id would take an end of turn for it."""
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return f"pad {tokenizer.pad_token!r}"
    for token in (tokenizer.unk_token, "<|endoftext|>", "<pad>", "<|pad|>", "<unk>", tokenizer.bos_token):
        if token and token != tokenizer.eos_token and token in tokenizer.get_vocab():
            tokenizer.pad_token = token
            return f"pad {token!r} (not EOS, so that EOS stays a label)"
    tokenizer.pad_token = tokenizer.eos_token
    return "pad is EOS (the vocabulary has no other token for it; masks are made from lengths, never from ids)"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Tokens of a conversation that waits for the assistant's answer."""
    _refuse_spelled_eos(tokenizer, prompt)
    return tokenizer.apply_chat_template(_plain(prompt), add_generation_prompt=True, tokenize=True, return_dict=False)


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], text: str, finished: bool = True
) -> list[int]:
    """Tokens of an answer to `prompt`, which end with EOS exactly if the answer is finished."""
    ids, labels = encode_demonstration(tokenizer, [*prompt, Message(role="assistant", content=text)])
    last = len(ids) - 1 - next(i for i, label in enumerate(reversed(labels)) if label != IGNORED)
    start = len(encode_prompt(tokenizer, prompt))
    return ids[start : last + 1] if finished else ids[start:last]


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
    """Tokens and labels of a conversation; labels are -100 outside the assistant's turns and in those that are not
    `trained`.

    Each assistant turn's label ends with EOS. The tokens before the last turn are those that `encode_prompt` gives, so
    that what is trained is what is asked. Raises ModelError where the template cannot promise that.
    """
    _refuse_spelled_eos(tokenizer, messages)
    encoded = tokenizer.apply_chat_template(
        _plain(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    if not any(mask):
        # Most models' own templates do not mark what the assistant says; then a turn is what follows its prompt.
        mask = _mask_by_prefix(tokenizer, messages, ids)
    labels = [token if inside else IGNORED for token, inside in zip(ids, mask, strict=True)]
    ends = [i for i, inside in enumerate(mask) if inside and (i + 1 == len(mask) or not mask[i + 1])]
    turns = sum(message.role == "assistant" for message in messages)
    if len(ends) != turns or any(ids[i] != tokenizer.eos_token_id for i in ends):
        raise ModelError(
            f"the chat template does not end every assistant turn with {tokenizer.eos_token!r} (EOS) inside what is "
            "trained, so the model would never learn to stop: set model.chat_template to chatml or plain"
        )
    prompt = encode_prompt(tokenizer, messages[:-1])
    if ids[: len(prompt)] != prompt:
        raise ModelError(
            "the chat template renders a prompt differently alone and with its answer, so the model would be asked in "
            "other tokens than it was trained on: set model.chat_template to chatml or plain"
        )
    said = [message for message in messages if message.role == "assistant"]
    for message, stop in zip(said, ends, strict=True):
        if not message.trained:
            start = next((i + 1 for i in range(stop, -1, -1) if not mask[i]), 0)
            labels[start : stop + 1] = [IGNORED] * (stop + 1 - start)
    return ids, labels


def _mask_by_prefix(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ids: list[int]) -> list[bool]:
    mask = [False] * len(ids)
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        start = len(encode_prompt(tokenizer, messages[:i]))
        stop = next((j + 1 for j in range(start, len(ids)) if ids[j] == tokenizer.eos_token_id), start)
        mask[start:stop] = [True] * (stop - start)
    return mask


def _refuse_spelled_eos(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> None:
    """A tokenizer reads its EOS token in a text as the end of the turn, in training as in sampling."""
    for message in messages:
        if tokenizer.eos_token and tokenizer.eos_token in message.content:
            start = " ".join(message.content.split())[:60]
            raise DataError(
                f"a {message.role} turn spells {tokenizer.eos_token!r}, which this model reads as the end of a turn: "
                f"{start!r}; take it out of the text, or the row out of the file"
            )


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content.strip()} for message in messages]
