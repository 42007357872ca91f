"""Which words two answers share, for pages that show them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

import regex
from markupsafe import Markup

from trueup.data.visible import seen
from trueup.data.words import UNSPACED

_WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[^\s{UNSPACED}]++")
"""What stands between blanks; of a script without blanks each character."""
MAX_WORDS = 1_000
"""Of either answer; the time grows with the product of both."""
LEAST_SHARED = 0.3
"""Share of the words in common (Dice) below which marks would cover everything and say nothing."""


def word_diff(before: str, after: str) -> tuple[list[bool], list[bool]] | None:
    """Of each word of `before` and of `after` whether the other has it too, in order; None: too long to compare."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    if max(len(a), len(b)) > MAX_WORDS:
        return None
    start = _alike(a, b)
    end = _alike(a[start:][::-1], b[start:][::-1])
    shared = [True] * len(a), [True] * len(b)
    for flags in shared:
        flags[start : len(flags) - end] = [False] * (len(flags) - end - start)
    # Of long texts a word that is more than 1 % of them is compared only beside others (autojunk): two answers that
    # repeat a few words for ever would take seconds.
    for block in SequenceMatcher(None, a[start : len(a) - end], b[start : len(b) - end]).get_matching_blocks():
        for flags, at in zip(shared, (block.a, block.b), strict=True):
            flags[start + at : start + at + block.size] = [True] * block.size
    return shared


def _alike(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words are the same at the start."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def marked(before: str, after: str) -> tuple[Markup, Markup] | None:
    """Both texts as HTML: words that only `before` has in <del>, words that only `after` has in <ins>.

    None where marks would not help: texts too long to compare, or with hardly a word in common.
    """
    shared = word_diff(before, after)
    if shared is None:
        return None
    total = len(shared[0]) + len(shared[1])
    if total and (sum(shared[0]) + sum(shared[1])) / total < LEAST_SHARED:
        return None
    return _markup(before, shared[0], "del"), _markup(after, shared[1], "ins")


def _markup(text: str, shared: Sequence[bool], tag: str) -> Markup:
    """One mark for each run of words that the other text does not have; white space around it stays outside."""
    parts, at = [], 0
    words = zip(_WORD.finditer(text), shared, strict=True)
    for kept, run in groupby(words, key=lambda word: word[1]):
        found = [match for match, _ in run]
        start, end = found[0].start(), found[-1].end()
        inside = seen(text[start:end])
        parts += [seen(text[at:start]), inside if kept else f"<{tag}>{inside}</{tag}>"]
        at = end
    return Markup("".join([*parts, seen(text[at:])]))
