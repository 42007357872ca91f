"""Reasoning that a model writes before its answer, in text. Pure functions.

What a policy samples is its reasoning and then its answer. All of it is trained on. The answer alone is shown as the
answer, judged and measured.
"""

from __future__ import annotations

import re
import string

BLOCKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("[think]", "[/think]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis", "<|channel|>final"),
)
"""Tags around a model's reasoning. Case does not matter."""
_SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SPACE = re.compile(r"[ \t\r\n]*")


def split(text: str, opened: bool) -> tuple[str, str]:
    """The reasoning at the beginning of what a policy wrote, with its tags and the space behind it, and the answer.

    opened  the prompt ends inside a block, so the text begins in it

    Both together are the text. A block that does not end is all reasoning, and the answer is empty.
    """
    small = _small(text)
    begin = small.lstrip()
    ends = [end for start, end in BLOCKS if opened or begin.startswith(start)]
    if not ends:
        return "", text
    stops = [at + len(end) for end in ends if (at := small.find(end)) >= 0]
    stop = _SPACE.match(text, min(stops)).end() if stops else len(text)  # type: ignore[union-attr]
    return text[:stop], text[stop:]


def inside(block: str) -> str:
    """The text of a block, without its tags. The space around it says nothing."""
    text, small = block.strip(), _small(block.strip())
    start = next((start for start, _ in BLOCKS if small.startswith(start)), "")
    end = next((end for _, end in BLOCKS if small.endswith(end)), "")
    return text[len(start) : len(text) - len(end)].strip()


def without_reasoning(reply: str) -> str | None:
    """The reply of a model behind a server, without reasoning anywhere in it; None if a block begins and does not end.

    Nobody knows the template of that model, so a block's start may be missing: some templates put it into the prompt.
    """
    for start, end in BLOCKS:
        close = _small(reply).rfind(end)
        if close >= 0:
            begins = _small(reply).find(start, 0, close)
            reply = reply[: max(0, begins)] + reply[close + len(end) :]
        if start in _small(reply):
            return None
    return reply


def _small(text: str) -> str:
    """The text in lower case with its length unchanged, which str.lower does not promise."""
    return text.translate(_SMALL)
