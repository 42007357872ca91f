"""A permutation test over prompts: how often chance alone would do as well."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

EXACT = 12
"""Prompts up to which all 2^P ways to shuffle are counted."""


def shuffled_labels_p(shares: Sequence[float], shuffles: int = 10_000, seed: int = 0) -> float:
    """The probability that shuffled labels give at least this mean share, one-sided.

    shares  (P,) of each prompt the share of its pairs that are ordered as the labels order them

    If the scores knew nothing of the labels, then a prompt with all of its labels turned round, whose share is 1 - s in
    place of s, would be as likely. The labels of a prompt are turned together, since its pairs share answers. The test
    assumes no form of the distribution and is exact for few prompts, where bootstrap intervals are not. With P prompts
    it is never below 1/2^P: four prompts that are all right are no evidence at 5 %. Fisher 1935, The Design of
    Experiments, section 21.
    """
    distance = np.asarray(shares, dtype=float) - 0.5
    if len(distance) <= EXACT:
        signs = np.array(list(product((1, -1), repeat=len(distance))))
        return float((signs @ distance >= distance.sum() - 1e-9).mean())
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (shuffles, len(distance)), dtype=np.int8) * 2 - 1
    return float((1 + (signs @ distance >= distance.sum() - 1e-9).sum()) / (1 + shuffles))
