"""What a chat template renders, and what a tokenizer makes of texts: one after the other, or of many at once.

A tokenizer takes a thousand texts at once in a part of the time of a thousand calls. So `Ahead` asks for what a batch
of conversations needs, and `rendered`, `ids_of` and `text_of` look there first. The answers are the same: what was not
asked ahead, or cannot be, is asked when it is needed. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from trueup.data.records import Message
from trueup.models.templates.tools import has_tools, written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[tuple[str, str], ...]
"""A conversation as (role, text) of each message."""


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], asks: bool) -> str:
    """The template's text of a conversation. Raises whatever the template does.

    asks  whether it ends where the assistant speaks
    """
    ahead = _AHEAD.get(tokenizer) if asks else None
    text = ahead.rendered.get(_turns(messages)) if ahead and not has_tools(messages) else None
    return written(tokenizer, messages, asks) if text is None else text


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, without any that the tokenizer puts around it."""
    ahead = _AHEAD.get(tokenizer)
    ids = ahead.ids.get(text) if ahead else None
    return list(tokenizer.encode(text, add_special_tokens=False) if ids is None else ids)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, control tokens included."""
    ahead = _AHEAD.get(tokenizer)
    text = ahead.texts.get(tuple(ids)) if ahead else None
    if text is None:
        text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _turns(messages: Sequence[Message]) -> Turns:
    return tuple([(message.role, message.content) for message in messages])


# ---- Many at once -----------------------------------------------------------------------------------------------


class Ahead:
    """What one tokenizer was asked for many texts at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.rendered: dict[Turns, str] = {}
        self.ids: dict[str, list[int]] = {}
        self.texts: dict[tuple[int, ...], str] = {}
        self._tokenizer, self._backend = tokenizer, _backend(tokenizer)
        if self._backend is not None:
            tokenizer("", add_special_tokens=False)  # nothing is padded or cut, and text is split as always

    def render(self, conversations: Sequence[Sequence[Message]]) -> Iterable[str]:
        """The texts of conversations that wait for the assistant; none, if the template refuses one of them."""
        many = [messages for messages in conversations if not has_tools(messages)]
        with suppress(Exception):  # each is rendered by itself then, and the error names it
            turns = [[{"role": one.role, "content": one.content} for one in messages] for messages in many]
            texts = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            self.rendered.update(zip(map(_turns, many), texts, strict=True))
        return self.rendered.values()

    def write(self, texts: Iterable[str]) -> None:
        """The tokens of texts."""
        if self._backend is not None:
            many = list(dict.fromkeys(texts))
            encodings = self._backend.encode_batch_fast(many, add_special_tokens=False)
            self.ids.update((text, one.ids) for text, one in zip(many, encodings, strict=True))

    def read(self, many: Iterable[Sequence[int]]) -> None:
        """The texts of tokens."""
        if self._backend is not None:
            keys = list(dict.fromkeys(map(tuple, many)))
            texts = self._backend.decode_batch(keys, skip_special_tokens=False)
            self.texts.update(zip(keys, texts, strict=True))


_AHEAD: WeakKeyDictionary[PreTrainedTokenizerBase, Ahead] = WeakKeyDictionary()


@contextmanager
def asked_ahead(tokenizer: PreTrainedTokenizerBase) -> Iterator[Ahead]:
    """Within it, this tokenizer's answers are looked up where it was asked ahead."""
    _AHEAD[tokenizer] = ahead = Ahead(tokenizer)
    try:
        yield ahead
    finally:
        del _AHEAD[tokenizer]


def is_ahead(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is asked ahead now; meanwhile nothing of it changes."""
    return tokenizer in _AHEAD


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer in Rust that does all of the work; None of a kind that does some of it in Python."""
    from transformers import PreTrainedTokenizerFast

    kind, methods = type(tokenizer), ("__call__", "encode", "_encode_plus", "decode", "_decode")
    is_plain = issubclass(kind, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in methods
    )
    return tokenizer.backend_tokenizer if is_plain else None
