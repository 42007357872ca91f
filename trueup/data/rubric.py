"""Simulated preference: a rubric written down, for demonstrations and tests of the system.

`says-why` prefers an answer that gives a reason, a condition or a consequence, about the subject that was asked, in
its own words. It is a program's taste, recorded as simulated wherever it is used, and never a person's.
It knows nothing of truth: an answer that is wrong in good form scores well. It asks for no length: a rubric that
does is learnt by a ruler, and the report's length-only baselines show how far this one is.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from trueup.data.own_code import error_boundary, file_of, from_base, in_identity, is_own, load_own, short_name
from trueup.data.records import Message
from trueup.data.words import ngrams, words
from trueup.errors import DataError, did_you_mean
from trueup.provenance import definition

# From a line's first blank, so that a text of blank lines is not read again from each of them.
_MARKUP = re.compile(r"^[^\S\n]*+(?:[-*•#>|]|\d++[.)])\s|```|\*\*|<\|", re.MULTILINE)
_REASON = re.compile(
    r"\b(?:because|since|so|therefore|thus|due to|as a result|that is why|in order to|if|when|while|until"
    r"|which (?:means|makes|helps|lets|keeps|gives|is why))\b",
    re.IGNORECASE,
)
_STOP_WORDS = frozenset(
    """a about after all also am an and any are as at be because been before but by can could did do does each explain
    few for from get give go had has have he help her him his how i if in into is it its just like make many me more
    most much my name need no not of on one only or other our out over please say sentence sentences she should so some
    something such tell than that the their them then there these they thing this those to too two up us use used very
    was way we were what when where which while who why will with word words would write you your""".split()
)


Criterion = Callable[[Sequence[Message], str, bool], float]


@dataclass(frozen=True)
class Rubric:
    """A named preference. `criteria` are (weight, what is asked, function), each met to a degree between 0 and 1."""

    name: str
    criteria: tuple[tuple[float, str, Criterion], ...]

    def score(self, prompt: Sequence[Message], text: str, finished: bool) -> float:
        """Weighted sum of the criteria, here out of 10; higher is preferred, equal is a tie."""
        total = sum(weight * self._degree(criterion, prompt, text, finished) for weight, _, criterion in self.criteria)
        return round(total, 6)

    def _degree(self, criterion: Criterion, prompt: Sequence[Message], text: str, finished: bool) -> float:
        degree = criterion(prompt, text, finished)
        if not isinstance(degree, Real) or not math.isfinite(degree):
            raise DataError(f"rubric {self.name}: gave {degree!r}; a finite number is wanted")
        return float(degree)


def stem(word: str) -> str:
    """A word without its commonest English endings; enough to see that `sinks` and `sinking` are one subject."""
    word = re.sub(r"['’]s$", "", word)
    for ending in ("ingly", "edly", "ings", "ing", "ies", "ied", "est", "ers", "er", "ed", "es", "ly", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def content_stems(text: str) -> set[str]:
    """Stems of the words that carry the subject."""
    return {stem(word) for word in words(text) if len(word) > 2 and word not in _STOP_WORDS}


# ---- Criteria: (prompt, text, finished) -> degree in [0, 1] -----------------------------------------------------


def is_finished(prompt: Sequence[Message], text: str, finished: bool) -> float:
    """The turn was ended by the model and its last sentence is closed."""
    return float(finished and text.rstrip().rstrip("\"'”’)").endswith((".", "!", "?")))


def is_plain_prose(prompt: Sequence[Message], text: str, finished: bool) -> float:
    """One paragraph that starts with a capital, without list, heading, code fence or markup."""
    start = text.lstrip().lstrip("\"'“‘(")[:1]  # no point hangs on a space in front
    return float("\n" not in text.strip() and not _MARKUP.search(text) and (start.isupper() or start.isdigit()))


def gives_reason(prompt: Sequence[Message], text: str, finished: bool) -> float:
    """Says why, when or with what result: holds because, since, so, if, when, which means or the like."""
    return float(bool(_REASON.search(text)))


def takes_up_subject(prompt: Sequence[Message], text: str, finished: bool) -> float:
    """Shares content words with the question: two or more in full, one by half."""
    subject_stems = content_stems(prompt[-1].content)
    target = min(2, len(subject_stems)) or 1
    return min(target, len(subject_stems & content_stems(text))) / target


def in_own_words(prompt: Sequence[Message], text: str, finished: bool) -> float:
    """Neither echoes six words of the question in a row nor repeats three of its own."""
    echoes = set(ngrams(text, 6)) & set(ngrams(prompt[-1].content, 6))
    trigrams = ngrams(text, 3)
    return float(not echoes and len(set(trigrams)) == len(trigrams))


SAYS_WHY = Rubric(
    "says-why",
    (
        (4.0, "reason: says why, when or with what result (because, so, if, when, which means, ...)", gives_reason),
        (2.0, "subject: takes up two content words of the question", takes_up_subject),
        (2.0, "own words: echoes no six words of the question in a row, repeats no three", in_own_words),
        (1.0, "end: the model ended its turn, and the last sentence is closed", is_finished),
        (1.0, "prose: one paragraph, a capital first, no list or markup", is_plain_prose),
    ),
)
RUBRICS = {rubric.name: rubric for rubric in (SAYS_WHY,)}
"""The rubrics that come with Trueup, by name."""

# ---- Rubrics by name --------------------------------------------------------------------------------------------


def _check_name(name: str) -> str:
    if name not in RUBRICS and not is_own(name):
        names = ", ".join(RUBRICS)
        raise ValueError(f"{name!r} is neither {names} nor of the form file.py:name{did_you_mean(name, list(RUBRICS))}")
    return name


RubricName = Annotated[str, BeforeValidator(from_base), AfterValidator(_check_name), PlainSerializer(in_identity)]
"""A field type for a rubric: one of `RUBRICS`, or `file.py:name`, with the file relative to the campaign file."""


def rubric_files(name: str | None) -> list[Path]:
    """The file of a rubric of the user's own, which is an input of the stage that uses it."""
    return [file_of(name)] if name and is_own(name) else []


def rubric_version(name: str | None) -> str | None:
    """Hash of what a rubric means. Labels and verdicts by another version of it are stale.

    A comment, a docstring or a new line break in its code makes nothing stale.
    """
    if name is None:
        return None
    if is_own(name):
        return definition.digest(file_of(name), name.rpartition(":")[2])
    variable = next(variable for variable, value in globals().items() if value is RUBRICS[name])
    return definition.digest(Path(__file__), variable)


def load_rubric(name: str) -> Rubric:
    """The rubric of that name. A file of one's own has a `Rubric`, or a function (prompt, text, finished) -> points."""
    if name in RUBRICS:
        return RUBRICS[name]
    own = load_own(name, "rubric: ")
    title = short_name(name)
    if isinstance(own, Rubric):
        try:
            criteria = tuple(
                (float(weight), str(what), error_boundary(criterion, name, "rubric "))
                for weight, what, criterion in own.criteria
            )
        except (TypeError, ValueError) as error:
            raise DataError(
                f"rubric: {name}: its criteria are not (weight, what is asked, function): {error}"
            ) from None
        return replace(own, name=title, criteria=criteria)
    if not callable(own) or not _takes_three(own):
        raise DataError(f"rubric: {name}: is neither a Rubric nor a function of (prompt, text, finished)")
    what = getattr(own, "__name__", title)
    return Rubric(title, ((1.0, what, error_boundary(own, name, "rubric ")),))


def _takes_three(function: Criterion) -> bool:
    try:
        inspect.signature(function).bind((), "", True)
    except (TypeError, ValueError):
        return False
    return True
