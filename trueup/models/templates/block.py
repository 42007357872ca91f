"""The block in which a model reasons before its answer: its tags, and where the answer begins. No torch.

With `model.thinking` the block stands in the tokenizer's own settings, so it is saved, read and copied with it. A model
may also write a block that nobody asked for.
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
END = re.compile(rf"</(?:{TAGS})>")
_END_LINE = re.compile(rf"^[ \t]*</({TAGS})>[ \t\r]*$", re.MULTILINE)
_SPACE = re.compile(r"[ \t\r\n]*")

LEAST_BUDGET = 32
"""Tokens that hold both tags of any block with their line breaks: 26 bytes, which are at most as many tokens, and a few
more for a tokenizer that writes a space first."""

_KEY = "reasoning_block"
"""The key in tokenizer_config.json."""


class Block(NamedTuple):
    """A block of reasoning, by its tag."""

    tag: str
    opening: str = ""
    """The end of the prompt, which opens the block. Empty: the model writes its start itself, or answers without a
    block."""

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
        """Whether an answer brings reasoning: it begins with the block's start."""
        return text.lstrip().startswith(self.start)

    def continues(self, text: str) -> bool:
        """Whether an answer begins within the block that the prompt opens, as such models write it: the block's end
        stands on a line of its own, and its start nowhere before it."""
        end = _END_LINE.search(text) if self.opening else None
        return end is not None and end[1] == self.tag and not TAG.search(text, 0, end.start())

    def split(self, sampled: str) -> tuple[str, str]:
        """The reasoning of what a policy wrote behind its prompt, with its tags and the space behind it; the answer.

        Both together are the opening and what was sampled. A block that does not end is all reasoning, and the answer
        is empty.
        """
        text = self.opening + sampled
        if not self.holds(text):
            return "", text
        end = text.find(self.end)
        space = _SPACE.match(text, end + len(self.end)) if end >= 0 else None
        stop = space.end() if space else len(text)
        return text[:stop], text[stop:]

    def behind_prompt(self, text: str) -> str:
        """The text of an answer, with its reasoning or without, as it continues the prompt that opened the block."""
        if self.continues(text):
            return text
        if not self.holds(text):
            return self.closing + text
        begin = text.lstrip()
        return begin[len(self.opening if begin.startswith(self.opening) else self.start) :]


def budget(tokens: int) -> int:
    """Most tokens of a block, with those that close it: as many as are asked for, and enough for an empty one."""
    return max(tokens, LEAST_BUDGET)


def unasked_block(text: str) -> Block | None:
    """The block that an answer begins with, of a model that reasons although nobody asked it to."""
    start = BEGINS.match(text)
    return Block(start[1]) if start else None


def inside(reasoning: str) -> str:
    """The text of a block, without its tags. The space around it says nothing."""
    start = BEGINS.match(reasoning)
    return CLOSED.sub("", reasoning[start.end() :] if start else reasoning).strip()


def reasoning_block(tokenizer: PreTrainedTokenizerBase) -> Block | None:
    """The block of a model that may reason (`model.thinking`); None for one that may not."""
    value = tokenizer.init_kwargs.get(_KEY)
    return Block(**value) if value else None


def set_reasoning_block(tokenizer: PreTrainedTokenizerBase, template: str, ask: str | None) -> None:
    """Write down the block of a chat template.

    ask  a prompt as the template renders it; None: the model does not reason
    """
    tokenizer.init_kwargs.pop(_KEY, None)
    if ask is not None:
        opening = OPEN.search(ask)
        tag = opening or TAG.search(template)
        tokenizer.init_kwargs[_KEY] = {"tag": tag[1] if tag else "think", "opening": opening[0] if opening else ""}
