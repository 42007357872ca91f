"""Which of many texts are nearly the same: those that repeat an earlier one, and those that resemble a held-out one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from trueup.data.duplicates.forms import FORM, Shape, are_fillings, shape_of
from trueup.data.duplicates.resemblance import (
    ALIKE,
    Signatures,
    Text,
    distinct,
    plain_parts,
    resemblance,
    shingles,
    shingles_of_all,
)

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

    A text that differs from a held-out one as others of the same form do (`forms`) is a question of its own, and counts
    only if it is the same but for case and punctuation.

    heldout  (N,) which texts are held out
    """
    signatures, exact, side = Signatures(texts), _Exact(texts), np.array(heldout, dtype=bool)
    heldout_as: dict[int, int] = {}  # by the first text that is the same
    for index in np.flatnonzero(side & (signatures.same >= 0)).tolist():
        heldout_as.setdefault(int(signatures.same[index]), index)
    also = np.zeros(len(texts), dtype=bool)
    also[list(heldout_as)] = True
    i, j, estimate = signatures.pairs(also)
    i, j, estimate = np.r_[i, j], np.r_[j, i], np.tile(estimate, 2)
    order = np.lexsort((i, -estimate, j))
    i, j = i[order], j[order]
    kin = _Kin(i, np.searchsorted(j, np.arange(len(texts) + 1)), texts)
    of_heldout = also[i] & ~also[j]
    i, j = i[of_heldout], j[of_heldout]
    best: dict[int, Near] = {}
    for first in np.unique(j).tolist():
        start, end = np.searchsorted(j, [first, first + 1])
        others = i[start : min(end, start + _VERIFIED)].tolist()
        for alike, other in sorted(((exact(other, first), -other) for other in others), reverse=True):
            if alike >= ALIKE and not kin.are_fillings(first, -other):
                best[first] = Near(first, heldout_as[-other], alike)
                break
    near = []
    for index in np.flatnonzero(~side & (signatures.same >= 0)).tolist():
        first = int(signatures.same[index])
        if first in heldout_as:
            near.append(Near(index, heldout_as[first], 1.0))
        elif first in best:
            near.append(best[first]._replace(text=index))
    return near


class _Kin:
    """The texts that each one resembles, by which a form is told."""

    def __init__(self, kin: np.ndarray, bounds: np.ndarray, texts: Sequence[Text]):
        """
        kin     the kin of all texts behind each other, of each those first that it resembles most
        bounds  (N + 1,) where those of a text begin
        """
        self._kin, self._bounds = kin, bounds
        self._runs = lru_cache(maxsize=10_000)(lambda index: _runs(texts[index]))
        self._shape = lru_cache(maxsize=1000)(self._shape_of)

    def are_fillings(self, a: int, b: int) -> bool:
        """Whether two texts that resemble each other are fillings of a form."""
        most = max((a, b), key=lambda index: len(self._of(index)))
        return len(self._of(most)) > FORM and are_fillings(self._runs(a), self._runs(b), self._shape(most))

    def _of(self, index: int) -> np.ndarray:
        return self._kin[self._bounds[index] : self._bounds[index + 1]]

    def _shape_of(self, index: int) -> Shape:
        kin = self._of(index)
        return shape_of(np.sort(kin), kin[:_VERIFIED].tolist(), self._runs)


class _Exact:
    """The resemblance of two texts by their indices. Each is read again, since not all fit into memory as sets."""

    def __init__(self, texts: Sequence[Text]):
        self._sets = lru_cache(maxsize=10_000)(lambda index: _sets(texts[index]))

    def __call__(self, i: int, j: int) -> float:
        return resemblance(self._sets(i), self._sets(j))


def _sets(text: Text) -> list[np.ndarray]:
    return [distinct(shingles(part)) for part in plain_parts(text)]


def _runs(text: Text) -> np.ndarray:
    return shingles_of_all([[f" {one} " for one in plain_parts(text)]])[0]
