"""Control tokens that a text spells, and where to cut it so that they are read as text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Control(NamedTuple):
    """Tokens to search a text for: a pattern of their first characters, their lengths (longest first), the tokens."""

    first: re.Pattern[str]
    lengths: list[int]
    tokens: set[str]

    @classmethod
    def of(cls, tokens: set[str]) -> Control:
        firsts = "".join(re.escape(first) for first in sorted({token[0] for token in tokens}))
        return cls(re.compile(f"[{firsts}]"), sorted({len(token) for token in tokens}, reverse=True), tokens)


def cuts_in(text: str, spans: Iterable[tuple[int, int, Control]]) -> list[int]:
    """Where to cut a text so that no span is read as a control token: within each control token that it spells.

    spans  start, stop, and the tokens that count as control tokens there
    """
    cuts = set()
    for begin, stop, control in spans:
        # A control token that begins before the span and reaches into it counts too.
        for match in control.first.finditer(text, max(0, begin - control.lengths[0] + 1), stop):
            start = match.start()
            if any(
                start + length > begin and text[start : start + length] in control.tokens for length in control.lengths
            ):
                cuts.add(max(start + 1, begin))
    return sorted(cuts)


def parted(text: str, cuts: list[int]) -> list[str]:
    """The text in pieces."""
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
