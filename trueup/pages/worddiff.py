"""Words that two answers share, for pages that show them side by side.

The labelling page marks its answers in the browser by the same rules (`ui/static/diff.js`): a longest common
subsequence of words, and if there are several, the one that `_matches` yields. A test compares both on one table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import regex
from markupsafe import Markup

from trueup.data.visible import seen
from trueup.data.words import UNSPACED

_WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[^\p{{White_Space}}{UNSPACED}]++")
"""A word: text between blanks, or each character in a script without blanks."""
MAX_WORDS = 5_000
"""Most words of either answer, without their equal ends; time grows with the product of both."""
LEAST_SHARED = 0.3
"""Share of common words (Dice) below which marks would cover everything and be useless."""


def word_diff(before: str, after: str) -> tuple[list[bool], list[bool]] | None:
    """Whether the other text has each word of `before`, and of `after`, in order; None: too long to compare."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    start = _alike(a, b)
    end = _alike(a[start:][::-1], b[start:][::-1])
    middle = a[start : len(a) - end], b[start : len(b) - end]
    if max(map(len, middle)) > MAX_WORDS:
        return None
    shared = [True] * len(a), [True] * len(b)
    for flags in shared:
        flags[start : len(flags) - end] = [False] * (len(flags) - end - start)
    for place in _matches(*middle):
        for flags, at in zip(shared, place, strict=True):
            flags[start + at] = True
    return shared


def _alike(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words are the same at the start."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _matches(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places (i, j) of a longest common subsequence, the last first.

    Row j of the table of lengths, over all starts of `a`, is one number: its bit i is 0 if the length grows at word i.
    A few operations on it make the next row (Crochemore et al. 2001, https://doi.org/10.1016/S0020-0190(00)00214-X).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    rows = [every]
    for word in b:
        both = rows[-1] & places.get(word, 0)
        rows.append((rows[-1] + both | rows[-1] - both) & every)
    i, j = len(a), len(b)
    while i and j:
        if rows[j] >> i - 1 & 1:
            i -= 1
        elif rows[j - 1] >> i - 1 & 1:
            i, j = i - 1, j - 1
            yield i, j
        else:
            j -= 1


def marked(before: str, after: str) -> tuple[Markup, Markup] | None:
    """Both texts as HTML: words that only `before` has in <del>, words that only `after` has in <ins>.

    None if marks would not help: the texts are too long to compare, or have hardly a word in common.
    """
    shared = word_diff(before, after)
    if shared is None:
        return None
    total = len(shared[0]) + len(shared[1])
    if total and (sum(shared[0]) + sum(shared[1])) / total < LEAST_SHARED:
        return None
    return _markup(before, shared[0], "del"), _markup(after, shared[1], "ins")


def _markup(text: str, shared: Sequence[bool], tag: str) -> Markup:
    """The text with a mark around each run of words that the other text lacks; white space stays outside of it."""
    mark = Markup(f"<{tag}>{{}}</{tag}>")
    parts, at = [], 0
    words = zip(_WORD.finditer(text), shared, strict=True)
    for is_shared, run in groupby(words, key=lambda word: word[1]):
        matches = [match for match, _ in run]
        start, end = matches[0].start(), matches[-1].end()
        inside = seen(text[start:end])
        parts += [seen(text[at:start]), inside if is_shared else mark.format(inside)]
        at = end
    return Markup("").join([*parts, seen(text[at:])])
