"""Names that people sign in with: one form to compare, and one to see whether two look alike.

    folded    NFKC, blanks as one, without case: equal means the same name, whatever keyboard typed it
    skeleton  what the folded name looks like: equal means that an admin could take one for the other

The skeleton follows the idea of UTS 39 (https://www.unicode.org/reports/tr39/) on a subset: Latin, Greek and Cyrillic
letters that look alike, the digits 0 and 1, accents, blanks and punctuation between words. Names that mix these scripts
are refused, and so are invisible characters.
"""

from __future__ import annotations

import unicodedata

import regex

from trueup.data.visible import SHAPELESS
from trueup.errors import TrueupError

MAX_NAME = 64
_TAKES_NO_ROOM = regex.compile(rf"[{SHAPELESS}\u2800]", regex.V1)
"""What has no shape, and the blank Braille pattern, which has none either and counts as a symbol."""


class AccountError(TrueupError):
    """A name, password, role or invitation that cannot be used; the text says why."""


def is_name_length(typed: str) -> bool:
    """Whether this can be a name at all. Check it before any other work: normalising a long run of combining marks
    takes time quadratic in its length."""
    return 0 < len(typed) <= 2 * MAX_NAME  # decomposed, letters have their accents beside them


def folded(name: str) -> str:
    """The form in which names are compared. Only for names that pass `is_name_length`."""
    return unicodedata.normalize("NFKC", " ".join(unicodedata.normalize("NFKC", name).split()).casefold())


def checked_name(typed: str) -> str:
    """The name as it is stored; AccountError if it is not valid."""
    name = " ".join(unicodedata.normalize("NFKC", typed).split(" ")) if is_name_length(typed) else ""
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise AccountError(f"a name has 1 to {MAX_NAME} printable characters")
    if _TAKES_NO_ROOM.search(name):
        raise AccountError("a name has no invisible characters; type it anew")
    scripts = {script for character in name if (script := _script(character))}
    if len(scripts) > 1:
        raise AccountError(f"a name keeps to one alphabet, and this one mixes {' and '.join(sorted(scripts))}")
    if not skeleton(name):
        raise AccountError("a name has at least one letter or digit")
    return name


def skeleton(name: str) -> str:
    """The look of a name: equal for two names that a reader could confuse."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name))
    lookalike = "".join(_ALIKE.get(character, character) for character in plain).casefold()
    visible = (character for character in lookalike if unicodedata.category(character)[0] in "LNMS")
    shapes = "".join(_SHAPES.get(c, c) for c in visible if not "\u0300" <= c <= "\u036f")
    return shapes.replace("rn", "m").replace("vv", "w")


def _script(character: str) -> str | None:
    """The alphabet of this letter, if it is one of those that share shapes."""
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "").partition(" ")[0].title()
    return script if script in ("Latin", "Greek", "Cyrillic", "Armenian", "Cherokee", "Coptic") else None


_PAIRS = (
    "A АΑ a аα B ВΒ b ь C СϹ c сϲ d ԁ E ЕΕ e еε G Ԍ g ɡ H НΗ h һ I ІΙ i іι J ЈͿ j јϳ K КΚ k кκ M МΜ m м N Ν n пη "
    "O ОΟ o оοσ P РΡ p рρ Q Ԛ q ԛ r г S Ѕ s ѕ T ТΤ t тτ u υ v ν W Ԝ w ԝω X ХΧ x хχ Y УΥҮ y уγү Z Ζ l Ӏӏ"
).split()
_ALIKE = {other: letter for letter, others in zip(_PAIRS[::2], _PAIRS[1::2], strict=True) for other in others}
"""Cyrillic and Greek letters by the Latin one that they look like."""
_SHAPES = {"0": "o", "1": "l", "i": "l", "ı": "l", "|": "l"}
