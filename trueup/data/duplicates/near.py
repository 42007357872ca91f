"""Which of many texts are nearly the same: those that repeat an earlier one, and those that resemble a held-out one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from trueup.data.duplicates.resemblance import ALIKE, Signatures, Text, distinct, plain_parts, resemblance, shingles

FORM = 10
"""Texts that one may resemble by two thirds and still be a paraphrase of one. What resembles more of them is a filling
of a form, such as "Write the plural of ...", and differs from the others by that filling."""
_VERIFIED = 8
"""Texts that one is compared with exactly, of those that its signature says are most like it."""


class Near(NamedTuple):
    text: int
    """Index of the text that resembles another."""
    like: int
    """Index of that other."""
    alike: float


def repeated(texts: Sequence[Text]) -> list[Near]:
    """The texts that resemble an earlier one by ALIKE or more, in their order, each with that one. The earliest of
    texts that resemble stays, and what resembles none that stays, stays too."""
    signatures, exact = Signatures(texts), _Exact(texts)
    i, j, estimate = signatures.pairs()
    bounds = np.searchsorted(j, np.arange(len(texts) + 1))
    near: dict[int, Near] = {}
    for index in range(len(texts)):
        first = int(signatures.same[index])
        if first not in (-1, index):
            near[index] = Near(index, first, 1.0) if first not in near else near[first]._replace(text=index)
            continue
        start, end = bounds[index : index + 2]
        likely_first = i[start:end][np.argsort(-estimate[start:end], kind="stable")].tolist()
        staying = (other for other in likely_first if other not in near)
        for other in islice(staying, _VERIFIED):
            if (alike := exact(other, index)) >= ALIKE:
                near[index] = Near(index, other, alike)
                break
    return list(near.values())


def resembling(texts: Sequence[Text], heldout: Sequence[bool]) -> list[Near]:
    """The texts that resemble a held-out one by ALIKE or more, each with the one that it resembles most.

    A text that resembles more than FORM others by two thirds is a filling of their form, and counts only if it is the
    same as a held-out one but for case and punctuation.

    heldout  (N,) which texts are held out
    """
    signatures, exact, side = Signatures(texts), _Exact(texts), np.array(heldout, dtype=bool)
    heldout_as: dict[int, int] = {}  # by the first text that is the same
    for index in np.flatnonzero(side & (signatures.same >= 0)).tolist():
        heldout_as.setdefault(int(signatures.same[index]), index)
    also = np.zeros(len(texts), dtype=bool)
    also[list(heldout_as)] = True
    i, j, estimate = signatures.pairs(also)
    kin = np.bincount(np.r_[i, j], minlength=len(texts))
    i, j, estimate = np.r_[i, j], np.r_[j, i], np.tile(estimate, 2)
    of_heldout = also[i] & ~also[j] & (kin[j] <= FORM)
    order = np.lexsort((i[of_heldout], -estimate[of_heldout], j[of_heldout]))
    i, j = i[of_heldout][order], j[of_heldout][order]
    best: dict[int, Near] = {}
    for first in np.unique(j).tolist():
        start, end = np.searchsorted(j, [first, first + 1])
        others = i[start : min(end, start + _VERIFIED)].tolist()
        alike, other = max((exact(other, first), -other) for other in others)
        if alike >= ALIKE:
            best[first] = Near(first, heldout_as[-other], alike)
    near = []
    for index in np.flatnonzero(~side & (signatures.same >= 0)).tolist():
        first = int(signatures.same[index])
        if first in heldout_as:
            near.append(Near(index, heldout_as[first], 1.0))
        elif first in best:
            near.append(best[first]._replace(text=index))
    return near


class _Exact:
    """The resemblance of two texts by their indices. Each is read again, since not all fit into memory as sets."""

    def __init__(self, texts: Sequence[Text]):
        self._sets = lru_cache(maxsize=10_000)(lambda index: _sets(texts[index]))

    def __call__(self, i: int, j: int) -> float:
        return resemblance(self._sets(i), self._sets(j))


def _sets(text: Text) -> list[np.ndarray]:
    return [distinct(shingles(part)) for part in plain_parts(text)]
