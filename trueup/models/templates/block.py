"""The block in which a model reasons before its answer, where `model.thinking` lets it.

It stands in the tokenizer's own settings, so it is saved, read and copied with it. No torch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAGS = "think|thinking|reasoning"
OPEN = re.compile(rf"<({TAGS})>\s*$")
"""The end of a prompt that opens a block."""
CLOSED = re.compile(rf"</({TAGS})>\s*$")
"""The end of a prompt that has closed one."""
BEGINS = re.compile(rf"\s*<({TAGS})>")
"""The beginning of an answer that brings reasoning."""
TAG = re.compile(rf"</?({TAGS})>")

_KEY = "reasoning_block"
"""The key in tokenizer_config.json."""


class Block(NamedTuple):
    """A block of reasoning, by its tag."""

    tag: str
    opened: bool
    """The prompt opens it. Otherwise the model writes its start itself, or answers without a block."""

    @property
    def start(self) -> str:
        return f"<{self.tag}>"

    @property
    def end(self) -> str:
        return f"</{self.tag}>"

    @property
    def closing(self) -> str:
        """The text that ends a block which the model did not end, with the line breaks that Qwen 3 writes."""
        return f"\n{self.end}\n\n"

    def holds(self, text: str) -> bool:
        """Whether the text of an answer brings reasoning of its own."""
        return self.end in text

    def within(self, text: str) -> str:
        """The text of an answer as it continues a prompt that opened the block."""
        if not self.holds(text):
            return self.closing + text
        return text.removeprefix(self.start).removeprefix("\n") if text.startswith(self.start) else text


def reasoning_block(tokenizer: PreTrainedTokenizerBase) -> Block | None:
    """The block of a model that reasons; None for one that does not."""
    value = tokenizer.init_kwargs.get(_KEY)
    return Block(value["tag"], value["opened"]) if value else None


def set_reasoning_block(tokenizer: PreTrainedTokenizerBase, template: str, ask: str | None) -> None:
    """Write down the block of a chat template.

    ask  a prompt as the template renders it; None: the model does not reason
    """
    tokenizer.init_kwargs.pop(_KEY, None)
    if ask is not None:
        opened = OPEN.search(ask)
        tag = opened or TAG.search(template)
        tokenizer.init_kwargs[_KEY] = {"tag": tag[1] if tag else "think", "opened": bool(opened)}
