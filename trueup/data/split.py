"""The split: which prompts are held out, and which are for the second reward model. It is a function of a dialogue's
first user turn, so that every stage agrees on it without talking."""

from __future__ import annotations

import hashlib
from typing import Literal

from trueup.config import SplitConfig
from trueup.data.records import Demonstration, Message, digest
from trueup.data.words import normal


def opening(messages: list[Message]) -> Message | None:
    """The first user turn of a dialogue."""
    return next((message for message in messages if message.role == "user"), None)


def question(messages: list[Message]) -> str:
    """The text of the first user turn."""
    first = opening(messages)
    return first.content if first else ""


def opening_id(messages: list[Message]) -> str:
    """Family of a dialogue: its first user turn alone in normal form (`trueup.data.words.normal`), whatever its
    spacing, and whatever comes before it as instructions or after it.

    The split goes by it, so that all prefixes of a dialogue, its continuations, the same question under another system
    message and the same code with another indentation fall on one side.
    """
    first = opening(messages)
    turns = messages if first is None else [first]
    return digest("\x1e".join(f"{message.role}\x1f{normal(message.content)}" for message in turns))


def is_heldout(messages: list[Message], split: SplitConfig) -> bool:
    """Whether a dialogue is held out: a function of its first user turn, so every stage agrees without talking."""
    return is_family_heldout(opening_id(messages), split)


def is_family_heldout(opening: str, split: SplitConfig) -> bool:
    """The same of all dialogues with this `opening_id`."""
    return _position(opening, split) < split.heldout_fraction


def is_for_judge(messages: list[Message], split: SplitConfig) -> bool:
    """Whether a prompt's labels are kept for the second reward model, the one that only judges."""
    return 0 <= _position(opening_id(messages), split) - split.heldout_fraction < split.judge_fraction


def _position(opening: str, split: SplitConfig) -> float:
    digest = hashlib.sha256(f"{split.salt}\x1f{opening}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def touches_heldout(demonstration: Demonstration, split: SplitConfig) -> bool:
    """Whether it is a held-out dialogue: its turns stay together."""
    return is_heldout(demonstration.messages, split)


def split_name(messages: list[Message], split: SplitConfig) -> Literal["train", "heldout"]:
    return "heldout" if is_heldout(messages, split) else "train"
