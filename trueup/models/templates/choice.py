"""The choice of a tokenizer's chat template, of its end of turn, and of a pad token that is none."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from trueup.errors import ModelError
from trueup.models.config import NAMED_TEMPLATES, TEMPLATES, ModelConfig
from trueup.models.templates.block import reasoning_block, set_reasoning_block
from trueup.models.templates.ends import keep_template, set_choice, set_turn_ends, template_before, turn_ends
from trueup.models.templates.form import Prepared, prepared, question, rendered, system_question
from trueup.models.templates.rendered import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def set_template(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, stops: Collection[int] = ()) -> str:
    """Give the tokenizer the chat template that the config names, its end of turn, and a pad token; returns what was
    chosen, and why.

    stops   ids at which the model stops by its own configuration

    The tokenizer's EOS becomes the token that the template writes behind an answer. What was EOS before ends an answer
    too, as each of `stops` does.
    """
    choice, reason = config.chat_template, "as the config says"
    if choice == "auto":
        choice = "own" if tokenizer.chat_template else "plain"
        reason = "the tokenizer brings it" if choice == "own" else "the tokenizer of a base model has none"
    if config.new_tokens:
        if choice != "chatml":
            raise ModelError(
                f"{config.key('new_tokens')}: adds the two markers of ChatML: set {config.key('chat_template')}: "
                "chatml with it"
            )
        tokenizer.add_special_tokens(
            {"extra_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"}, replace_extra_special_tokens=False
        )
    if tokenizer.eos_token is None:
        raise ModelError(f"{config.named}: the tokenizer has no EOS token, so no answer could ever end")
    if choice in NAMED_TEMPLATES:
        text = (TEMPLATES / f"{choice}.jinja").read_text(encoding="utf-8")
        has_bos = _starts_with_bos(tokenizer) and "bos_token" not in text
        tokenizer.chat_template = ("{{- bos_token -}}" if has_bos else "") + text
    elif choice != "own":
        tokenizer.chat_template = _read_template(choice, config.key("chat_template"))
    _check_syntax(tokenizer, choice, config.key("chat_template"))
    text = (template_before(tokenizer) if choice == "own" else None) or portable_template(tokenizer)
    form = prepared(tokenizer, text, config, [*stops, *turn_ends(tokenizer)])
    if form.text != tokenizer.get_chat_template():
        tokenizer.chat_template = form.text
    keep_template(tokenizer, text)
    asked = rendered(tokenizer, form.text, question(tokenizer, form.text), asks=True)
    if choice not in ("own", *NAMED_TEMPLATES) and _starts_with_bos(tokenizer) and tokenizer.bos_token not in asked:
        form.remarks.append(
            f"it writes no {tokenizer.bos_token!r}, which this tokenizer puts before a text: if the model was trained "
            "with it, begin the file with {{ bos_token }}"
        )
    set_reasoning_block(tokenizer, form.text, asked if config.thinking else None)
    if block := reasoning_block(tokenizer):
        form.remarks.append(f"reasoning in {block.start} is kept apart from the answer ({config.key('thinking')})")
    end, others = _set_end(tokenizer, form, stops)
    words = [f"chat template {choice} ({reason})", *form.remarks, end, *others, set_pad_token(tokenizer)]
    set_choice(tokenizer, ", ".join(words), config.section)
    return ", ".join(words)


def settle_from_elsewhere(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, stops: Collection[int] = ()) -> str:
    """Settle the chat template that a reward model's tokenizer brings, as `set_template`. No key of the campaign
    reaches it, so system text is folded if the template takes none: else it could score no conversation that has one.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{config.named}: the tokenizer has no chat template, so nobody knows how a conversation is written for "
            "this model: name one that has"
        )
    _check_syntax(tokenizer, "own", config.key("chat_template"))
    takes_system = system_question(tokenizer, portable_template(tokenizer))
    return set_template(tokenizer, config.model_copy(update={"fold_system": not takes_system}), stops)


def _set_end(tokenizer: PreTrainedTokenizerBase, form: Prepared, stops: Collection[int]) -> tuple[str, list[str]]:
    """Set the tokens that end a turn; returns words on the one that is trained, and on the others."""
    reason = "the chat template writes it" if form.end else "EOS, since the chat template writes none"
    set_turn_ends(tokenizer, form.end or str(tokenizer.eos_token), [*turn_ends(tokenizer), *stops])
    others = [repr(tokenizer.convert_ids_to_tokens(id)) for id in turn_ends(tokenizer)[1:]]
    also = f"an answer ends with {' or '.join(others)} too (EOS, or the model's generation config)"
    return f"end of turn {tokenizer.eos_token!r} ({reason})", [also] * bool(others)


def _read_template(choice: str, key: str) -> str:
    if not os.path.isfile(choice):  # false too for a name that is too long
        short_name = choice if len(choice) <= 200 else f"{choice[:200]}..."
        raise ModelError(f"{key}: {short_name!r} is neither auto, nor {', '.join(NAMED_TEMPLATES)}, nor a file")
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{key}: {choice}: cannot be read as UTF-8 text: {error}") from None


def _check_syntax(tokenizer: PreTrainedTokenizerBase, choice: str, key: str) -> None:
    subject = "the tokenizer's own chat template" if choice == "own" else f"the chat template {choice}"
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"{key}: {subject} is no Jinja: line {error.lineno}: {error.message}") from None
    except Exception as error:  # a template may refuse this conversation and take the rows; but there must be one
        if not tokenizer.chat_template or isinstance(tokenizer.chat_template, dict):
            raise ModelError(f"{key}: {subject} cannot be used: {first_line(error)}") from None


_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def portable_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template in the form of `portable_text`."""
    return portable_text(tokenizer.get_chat_template())


def portable_text(template: str) -> str:
    """A chat template without the tag `generation`, which transformers alone understands.

    A condition that always holds takes its place: it renders the same, white space included, in every engine.
    """
    return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose a pad token other than EOS. Code that finds padding by its id would take an end of turn for padding."""
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return f"pad {tokenizer.pad_token!r}"
    for token in (tokenizer.unk_token, "<|endoftext|>", "<pad>", "<|pad|>", "<unk>", tokenizer.bos_token):
        if token and token != tokenizer.eos_token and token in tokenizer.get_vocab():
            tokenizer.pad_token = token
            return f"pad {token!r} (not EOS, so that EOS stays a label)"
    tokenizer.pad_token = tokenizer.eos_token
    return "pad is EOS (the vocabulary has no other token for it; masks are made from lengths, never from ids)"
