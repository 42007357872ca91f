"""Prompts that are nearly the same and fall on both sides of the split.

The split is a hash, so that every stage agrees on it without talking: it cannot know which prompts resemble each other.
What resembles a prompt of training is still an easier exam than it seems, and is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trueup.config import SplitConfig
from trueup.data.records import Message
from trueup.data.split import is_heldout
from trueup.data.words import words

ALIKE = 0.8
"""Resemblance from which two prompts count as nearly the same, as in Lee et al. 2022
(https://doi.org/10.18653/v1/2022.acl-long.577)."""
_SHINGLE = 5
_LONGEST = 20_000
_BANDS, _ROWS = 16, 4
"""A MinHash signature: pairs that resemble by 0.8 share a band with chance 0.9998, those that do by 0.5 with 0.64."""
_BUCKET = 50
"""Prompts that are kept of an equal band: one that thousands share is a template, and says nothing of its fillings."""


class Near(NamedTuple):
    heldout: int
    """Index of the held-out prompt."""
    train: int
    """Index of the prompt of training that is most like it, of those that were compared."""
    alike: float


def near_duplicates(train: Sequence[str], heldout: Sequence[str]) -> list[Near]:
    """The held-out prompts that resemble one of training by ALIKE or more.

    Resemblance is |A & B| / |A | B| of the sets of 5 characters in a row, in lower case and without punctuation
    (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900), exact, of pairs that MinHash proposes: the time grows
    with the number of prompts, and not with that of pairs.
    """
    buckets: dict[tuple[int, bytes], list[int]] = {}
    shingles = [_shingles(text) for text in train]
    for index, some in enumerate(shingles):
        for key in _bands(some):
            bucket = buckets.setdefault(key, [])
            if len(bucket) < _BUCKET:
                bucket.append(index)
    pairs = []
    for index, text in enumerate(heldout):
        own = _shingles(text)
        neighbours = {other for key in _bands(own) for other in buckets.get(key, ())}
        best = max(((_resemblance(own, shingles[other]), -other) for other in neighbours), default=(0.0, 0))
        if best[0] >= ALIKE:
            pairs.append(Near(index, -best[1], best[0]))
    return pairs


def _shingles(text: str) -> np.ndarray:
    """(S,) distinct hashes of all runs of 5 characters; of a shorter text one hash."""
    plain = " ".join(words(text[:_LONGEST]))
    codes = np.frombuffer(plain.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    size = min(_SHINGLE, len(codes))
    hashes = np.zeros(max(len(codes) - size + 1, 0) if size else 0, dtype=np.uint64)
    for offset in range(size):  # unsigned integers wrap around, as is meant
        hashes = (hashes + codes[offset : offset + len(hashes)]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


_DRAW = np.random.default_rng(0)
_FACTORS = _DRAW.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_TERMS = _DRAW.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)


def _bands(shingles: np.ndarray) -> list[tuple[int, bytes]]:
    """The bands of a MinHash signature; none of a text without words."""
    if not len(shingles):
        return []
    least = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(shingles), 4096):
        part = shingles[start : start + 4096, None] * _FACTORS + _TERMS
        part ^= part >> np.uint64(31)
        least = np.minimum(least, part.min(axis=0))
    return [(band, least[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]


def _resemblance(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def across_split(places: Mapping[str, str], split: SplitConfig) -> str | None:
    """What is said of held-out dialogues that begin nearly like one that may be trained on; None: there is none.

    places  of each first question of a dialogue where it stands, file and line
    """
    train, heldout = list[str](), list[str]()
    for question in places:
        (heldout if is_heldout([Message(role="user", content=question)], split) else train).append(question)
    pairs = near_duplicates(train, heldout)
    if not pairs:
        return None
    examples = ", ".join(
        f"{places[heldout[one.heldout]]} is like {places[train[one.train]]} ({one.alike:.0%})" for one in pairs[:3]
    )
    more = f", and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return (
        f"{len(pairs)} of {len(heldout)} held-out prompts are nearly the same as one that may be trained on, which "
        f"makes them an easy exam: {examples}{more}; leave out one of each two if their figures are to count"
    )
