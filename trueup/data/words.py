"""What a word is, in any script, and which texts are the same.

Words are counted here and nowhere else, so that lengths, repetition and reading speed mean the same everywhere.
Text of a model has any form and any length: everything here takes linear time.
"""

from __future__ import annotations

import re
import unicodedata

import regex

from trueup.data.visible import INVISIBLE, SHAPELESS

# ---- Words ------------------------------------------------------------------------------------------------------

_SIXTHS = {"latin": 6, "han": 4, "kana": 3, "cluster": 2}
"""Sixths of a word. In scripts without blanks a character, or a cluster of them, is a part of a word: Chinese takes 1.6
characters for a word and Japanese 1.85 (the same text in 17 languages: Trauzettel-Klosinski & Dietz 2012,
https://doi.org/10.1167/iovs.11-8284). For Thai, Lao, Khmer and Burmese three clusters are taken, without a dictionary.
"""
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}"
_TOKEN = regex.compile(
    r"(?P<han>\p{Han})(?:(?=\p{M})\X)?+"
    r"|(?P<kana>[\p{Hiragana}\p{Katakana}ー])\p{M}*+"
    r"|(?P<cluster>(?=[\p{L}\p{M}\p{N}])(?=\p{Line_Break=SA})\X)"
    rf"|(?P<latin>(?:(?![{UNSPACED}ー_])[\w])++(?:['’](?:(?![{UNSPACED}ー_])[\w])++)?)",
    regex.V1,
)
_ASCII_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
"""The same of ASCII, ten times as fast."""
_HAS_UNSPACED = regex.compile(rf"[{UNSPACED}]")


def tokens(text: str) -> list[tuple[str, int]]:
    """Words in lower case and without punctuation, each with its size in sixths of a word.

    A word of a script with blanks is whole, with an apostrophe inside; of Chinese and Japanese each character is a
    token, and of Thai, Lao, Khmer and Burmese each grapheme cluster (UAX #29, which leaves more to a dictionary).
    """
    matches = _TOKEN.finditer(text.lower())
    return [(match[0], _SIXTHS[match.lastgroup or "latin"]) for match in matches]


def words(text: str) -> list[str]:
    """The tokens of a text alone: of a language with blanks its words in lower case, without punctuation."""
    return _ASCII_TOKEN.findall(text.lower()) if text.isascii() else [token for token, _ in tokens(text)]


def count_words(text: str) -> float:
    """Length of a text in words: what stands between blanks, and parts of words where a script has no blanks."""
    if not _HAS_UNSPACED.search(text):
        return len(text.split())
    return sum(_size(chunk) for chunk in text.split())


def _size(chunk: str) -> float:
    if not _HAS_UNSPACED.search(chunk):
        return 1
    return sum(size for _, size in tokens(chunk)) / 6 or 1


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, one from each token on: in scripts without blanks of as many tokens as n words take."""
    sized_tokens = tokens(text)
    grams, end, size = [], 0, 0
    for start, (_, first) in enumerate(sized_tokens):
        while size < 6 * n and end < len(sized_tokens):
            size += sized_tokens[end][1]
            end += 1
        if size < 6 * n:
            break
        grams.append(tuple(token for token, _ in sized_tokens[start:end]))
        size -= first
    return grams


# ---- Texts that are the same ------------------------------------------------------------------------------------

_IGNORABLE = regex.compile(rf"[{SHAPELESS}--\s]+", regex.V1)


def normal(text: str) -> str:
    """A text without what nobody sees: canonically composed (NFC), without zero-width characters, direction marks and
    control characters, and with one blank for each run of white space."""
    return " ".join(unicodedata.normalize("NFC", _IGNORABLE.sub("", text)).split())


_LINE_END = regex.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")


def as_seen(text: str) -> str:
    """A text without what makes no difference to the eye: canonically composed, without the characters that
    `trueup.data.visible` marks, without blanks at the ends of lines, and without blank lines around it.

    Indentation, blank lines and wide gaps stay: they can be seen, and may be what a program means.
    """
    plain = INVISIBLE.sub("", _LINE_END.sub("\n", unicodedata.normalize("NFC", text)))
    return "\n".join(line.rstrip() for line in unicodedata.normalize("NFC", plain).split("\n")).strip("\n")
