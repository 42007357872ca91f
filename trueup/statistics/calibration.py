"""Calibration of a reward model's margins as probabilities, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trueup.statistics.length_control import sigmoid

# ---- Reward models ----------------------------------------------------------------------------------------------


def expected_calibration_error(margins: Sequence[float], bins: int = 10, temperature: float = 1.0) -> float:
    """The distance between a reward model's confidence and its accuracy, averaged over its predictions.

    margins  (N,) r(chosen) - r(rejected)

    The model predicts the answer that it scores higher, with confidence sigmoid(|margin| / T) in [0.5, 1], which is cut
    into `bins` of equal width. It is right if the margin is positive, and half right at 0. Confidence in `chosen` would
    not do: chosen is always right, so overconfidence could not show. Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, eq. 3.
    """
    m = np.asarray(margins, dtype=float)
    if not m.size:
        raise ValueError("no margins: nothing to calibrate")
    confidence, right = sigmoid(abs(m) / temperature), (np.sign(m) + 1) / 2
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    weight = np.bincount(index, minlength=bins)
    gap = np.bincount(index, confidence - right, minlength=bins)
    return float(abs(gap).sum() / weight.sum())


TEMPERATURES = (0.01, 100.0)
"""Bounds of a fitted temperature. It meets the lower if every pair is right, the upper if scores mean nothing."""


def fit_temperature(margins: Sequence[float]) -> float:
    """The T that minimises the mean of -log sigmoid(margin / T): above 1 the reward model is overconfident.

    margins  (N,) r(chosen) - r(rejected)

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. The loss is convex in 1/T, so we bisect its slope.
    """
    m = np.asarray(margins, dtype=float)
    if not m.size:
        raise ValueError("no margins: nothing to fit")
    low, high = math.log(1 / TEMPERATURES[1]), math.log(1 / TEMPERATURES[0])
    for _ in range(60):
        middle = (low + high) / 2
        slope = -float(np.mean(m * sigmoid(-math.exp(middle) * m)))
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation of two (N,) sequences, ties sharing their mean rank; None if one of them is constant."""
    rx, ry = _ranks(x), _ranks(y)
    rx, ry = rx - rx.mean(), ry - ry.mean()
    scale = math.sqrt(float((rx @ rx) * (ry @ ry)))
    return float(rx @ ry) / scale if scale else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, index, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[index]
