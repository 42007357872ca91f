"""Characters that cannot be seen, as marks that can: what people judge is all of the text, and nothing but the text."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex
from markupsafe import Markup

_NAMES = {"\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM"}
_NAMES |= {"\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2060": "WJ"}
_NAMES |= {"\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\u00ad": "SHY", "\ufeff": "BOM"}
SHAPELESS = r"[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cf}\p{Zl}\p{Zp}--[\u0600-\u0605\u06dd\u070f\u08e2]]"
"""Characters that have no shape of their own: zero width, direction, control, filler, tag. Some format characters of
Arabic and Syriac have one."""
_SPELLS = r"[\p{L}\p{M}--\p{Latin}--\p{Greek}--\p{Cyrillic}--\p{Han}--\p{Hiragana}--\p{Katakana}--\p{Hangul}]"
_EMOJI = r"[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f]"
INVISIBLE = regex.compile(
    # Where they shape what is read they are part of it: joiners within a script that joins, and within an emoji.
    rf"(?<={_SPELLS})[\u200c\u200d](?={_SPELLS})(*SKIP)(*FAIL)"
    rf"|(?<={_EMOJI})\u200d(?=\p{{Extended_Pictographic}})(*SKIP)(*FAIL)"
    r"|(?<=[\p{Emoji}])[\ufe0e\ufe0f](*SKIP)(*FAIL)"
    r"|(?<=[\p{Han}\p{Mongolian}])[\p{Variation_Selector}](*SKIP)(*FAIL)"
    r"|\r\n(*SKIP)(*FAIL)"
    rf"|(?P<one>[{SHAPELESS}--[\n\t]])(?P=one)*+",
    regex.V1,
)
"""A run of one such character that nothing around it needs."""


def mark(run: str) -> str:
    """How a run of an invisible character is shown: ZWSP, RLO, U+001B, ZWSP×12."""
    name = _NAMES.get(run[0]) or f"U+{ord(run[0]):04X}"
    return name if len(run) == 1 else f"{name}×{len(run)}"


def seen(text: str) -> Markup:
    """Text as HTML in which every character can be seen: the invisible ones as marks, which also do nothing any more.

    A direction override would show another text than the one that is judged; a zero-width character, none at all.
    """
    parts, at = [], 0
    for run in INVISIBLE.finditer(text):
        parts += [text[at : run.start()], _html(run["one"], mark(run[0]))]
        at = run.end()
    return Markup("").join([*parts, text[at:]])


@lru_cache(maxsize=1024)  # a text that stutters repeats a few of them thousands of times
def _html(one: str, sign: str) -> Markup:
    name = unicodedata.name(one, "control character").lower()
    return Markup('<span class="tu-mark" dir="ltr" title="{}">{}</span>').format(name, sign)
