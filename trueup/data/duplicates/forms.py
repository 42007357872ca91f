"""Whether two texts that resemble each other are fillings of a form, such as "Write the plural of ...", or paraphrases.

The texts that resemble one of them, its kin, tell. What most of them have is what a form would fix, and what is left of
a text is its own. Fillings have all that is fixed, and their own at the same place. A paraphrase of a question changes
it here or there, or adds to it, and of a question as it was first asked nothing is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from trueup.data.duplicates.resemblance import distinct

FORM = 10
"""Texts that one may resemble by two thirds, of which none is yet taken for a form. Among more a form is looked for."""
_ASKED = 48
"""Kin of a text that say what is fixed, of more in even distances."""
_FIXED = 0.75
"""Share of the kin that have what is fixed."""
_OTHERWISE = 0.1
"""Share of the difference between two fillings that may be in what is fixed: endings that many fillings share."""
_PLACE = 5
"""Runs of 5 characters by which the places of two fillings may differ."""


class Shape(NamedTuple):
    """What the kin of a text say of it."""

    fixed: np.ndarray
    """What most of the kin have, in order of the numbers."""
    bare: list[np.ndarray]
    """Those of the kin that have no more: nothing was added to them."""


def shape_of(kin: np.ndarray, likest: Iterable[int], runs: Callable[[int], np.ndarray]) -> Shape:
    """
    kin     (K,) texts that resemble one
    likest  those of them that resemble it most
    runs    the hashes of all runs of characters of a text, in order
    """
    asked = kin[np.linspace(0, len(kin) - 1, min(len(kin), _ASKED)).astype(np.int64)].tolist()
    texts = [distinct(runs(index)) for index in asked]
    values, counts = np.unique(np.concatenate(texts), return_counts=True)
    fixed = values[counts >= _FIXED * len(texts)]
    every = (distinct(runs(index)) for index in dict.fromkeys([*likest, *asked]))
    return Shape(fixed, [one for one in every if np.isin(one, fixed, assume_unique=True).all()])


def are_fillings(a: np.ndarray, b: np.ndarray, shape: Shape) -> bool:
    """Whether two texts differ by nothing but what each has of its own at one place or several.

    a, b  the hashes of all runs of characters, in order
    """
    first, second = distinct(a), distinct(b)
    apart = np.setxor1d(first, second, assume_unique=True)
    if np.isin(apart, shape.fixed, assume_unique=True).sum() > _OTHERWISE * len(apart):
        return False
    own, others_own = (np.setdiff1d(one, shape.fixed, assume_unique=True) for one in (first, second))
    if _within(own, others_own) or _within(others_own, own):
        return False
    if any(_within(one, first) and _within(one, second) for one in shape.bare):
        return False
    places, others_places = (_own_places(one, shape.fixed) for one in (a, b))
    is_near = np.abs(places[:, None] - others_places) <= _PLACE
    return bool(is_near.any(axis=0).all() and is_near.any(axis=1).all())


def _within(some: np.ndarray, others: np.ndarray) -> bool:
    return bool(np.isin(some, others, assume_unique=True).all())


def _own_places(runs: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Where a text has something of its own: how much of what is fixed stands before it."""
    is_own = ~np.isin(runs, fixed)
    begins = is_own & ~np.r_[False, is_own[:-1]]
    return np.cumsum(~is_own)[begins]
