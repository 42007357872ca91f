"""The tokens at which a turn of the assistant ends.

A model may end its turn with one of several tokens: Llama 3, Gemma and Qwen name two or three. The chat template writes
one of them, which is trained and is the tokenizer's EOS (`trueup.models.templates.choice`). Any of them ends an answer.
They stand in the tokenizer's own settings, so they are saved, read and copied with it. So do the choice of its template
and the template before it was settled. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEY, _CHOICE, _BEFORE = "turn_end_ids", "chat_template_choice", "chat_template_before"
_SECTION = "chat_template_section"
"""The keys in tokenizer_config.json."""


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all tokens that end an answer. The first is the one that is trained."""
    others = tokenizer.init_kwargs.get(_KEY) or []
    return list(dict.fromkeys([tokenizer.eos_token_id, *others]))


def set_turn_ends(tokenizer: PreTrainedTokenizerBase, token: str, others: Collection[int]) -> None:
    """Let the tokenizer's EOS be `token`, and let an answer end with any of `others` too."""
    tokenizer.eos_token = token
    known = [id for id in others if isinstance(id, int) and 0 <= id < len(tokenizer)]
    tokenizer.init_kwargs[_KEY] = list(dict.fromkeys([tokenizer.eos_token_id, *known]))


def ends_turn(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether an answer's last token ends its turn, so that the answer is finished."""
    return bool(ids) and ids[-1] in turn_ends(tokenizer)


def as_trained(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """The tokens of an answer with the end that is trained, whichever token ended it."""
    return [*ids[:-1], tokenizer.eos_token_id] if ends_turn(tokenizer, ids) else list(ids)


def set_choice(tokenizer: PreTrainedTokenizerBase, sentence: str, section: str | None) -> None:
    """Keep what was chosen for the tokenizer, and why; and the section of the campaign file that chose it."""
    tokenizer.init_kwargs |= {_CHOICE: sentence, _SECTION: section}


def section_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The section whose keys can choose otherwise, for errors; None if no key can."""
    section: str | None = tokenizer.init_kwargs.get(_SECTION, "model")
    return section


def choice_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What was chosen for the tokenizer, and why: chat template, thinking, end of turn, pad. None if nothing was."""
    return tokenizer.init_kwargs.get(_CHOICE)


def keep_template(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Keep a chat template as it was before it was settled, so that whoever starts from a saved policy can settle it
    otherwise."""
    tokenizer.init_kwargs[_BEFORE] = {"text": text, "settled": _sha256(tokenizer)}


def template_before(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template before it was settled; None if it never was, or if somebody has changed it since."""
    before = tokenizer.init_kwargs.get(_BEFORE)
    return before["text"] if before and before["settled"] == _sha256(tokenizer) else None


def _sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()
