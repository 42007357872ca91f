"""Calibration of a reward model's margins as probabilities, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trueup.statistics.intervals import Interval, draws, percentiles
from trueup.statistics.length_control import sigmoid

# ---- Reward models ----------------------------------------------------------------------------------------------


def expected_calibration_error(
    margins: Sequence[float], bins: int = 10, temperature: float = 1.0, weights: Sequence[float] | None = None
) -> float:
    """The distance between a reward model's confidence and its accuracy, averaged over its predictions.

    margins  (N,) r(chosen) - r(rejected)
    weights  (N,); all the same by default

    The model predicts the answer that it scores higher, with confidence sigmoid(|margin| / T) in [0.5, 1], which is cut
    into `bins` of equal width. It is right if the margin is positive, and half right at 0. Confidence in `chosen` would
    not do: chosen is always right, so overconfidence could not show. Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, eq. 3.
    """
    m, w = _weighted(margins, weights)
    confidence, right = sigmoid(abs(m) / temperature), (np.sign(m) + 1) / 2
    gap = np.bincount(_bin(confidence, bins), w * (confidence - right), minlength=bins)
    return float(abs(gap).sum() / w.sum())


def by_confidence(
    margins: Sequence[float], bins: int = 10, prompts: Sequence[str] | None = None
) -> list[tuple[float, np.ndarray]]:
    """Mean confidence and members (indices) of every bin of `expected_calibration_error` that has some.

    prompts  (N,) the prompt of each margin: within a bin all prompts weigh the same. By default all margins do
    """
    m, _ = _weighted(margins, None)
    confidence = sigmoid(abs(m))
    index = _bin(confidence, bins)
    members = [np.flatnonzero(index == number) for number in range(bins)]
    weights = [
        np.ones(rows.size) if prompts is None else _prompts(np.asarray(prompts)[rows].tolist())[1] for rows in members
    ]
    return [
        (float(np.average(confidence[rows], weights=of_bin)), rows)
        for rows, of_bin in zip(members, weights, strict=True)
        if rows.size
    ]


def brier(margins: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The mean of (1 - sigmoid(margin))^2: 0 is certain and right, 0.25 a coin toss, 1 certain and wrong (Brier 1950,
    https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2)."""
    m, w = _weighted(margins, weights)
    return float(np.average(sigmoid(-m) ** 2, weights=w))


TEMPERATURES = (0.01, 100.0)
"""Bounds of a fitted temperature. It meets the lower if every pair is right, the upper if scores mean nothing."""


def fit_temperature(margins: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The T that minimises the mean of -log sigmoid(margin / T): above 1 the reward model is overconfident.

    margins  (N,) r(chosen) - r(rejected)
    weights  (N,); all the same by default

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. The loss is convex in 1/T, so we bisect its slope.
    """
    m, w = _weighted(margins, weights)
    return float(_fit(m, w[None])[0])


def temperature_interval(
    margins: Sequence[float], prompts: Sequence[str], confidence: float = 0.95, resamples: int = 200
) -> Interval:
    """The fitted temperature with its bootstrap interval over prompts, each of which weighs the same.

    prompts  (N,) the prompt of each margin
    """
    prompt, weights = _prompts(prompts)
    m, w = _weighted(margins, weights.tolist())
    number = int(prompt.max()) + 1
    value = float(_fit(m, w[None])[0])
    if number < 2:
        return Interval(value, *TEMPERATURES, number)
    fits = [_fit(m, counts[:, prompt] * w) for counts in draws(number, resamples, 0, len(m))]
    low, high = percentiles(np.concatenate(fits), confidence, number)
    return Interval(value, max(low, TEMPERATURES[0]), min(high, TEMPERATURES[1]), number)


def cross_fitted(margins: Sequence[float], prompts: Sequence[str], folds: int = 5) -> list[float] | None:
    """(N,) margins, each divided by the temperature that was fitted on the prompts of the other folds; None with a
    single prompt.

    A temperature suits the pairs on which it is fitted better than others, so no pair may measure its own.
    """
    prompt, weights = _prompts(prompts)
    m, w = _weighted(margins, weights.tolist())
    number = int(prompt.max()) + 1
    if number < 2:
        return None
    folds = min(folds, number)
    fold = np.random.default_rng(0).permutation(np.arange(number) % folds)[prompt]  # (N,)
    temperatures = _fit(m, (fold[None] != np.arange(folds)[:, None]) * w)  # (folds,)
    return (m / temperatures[fold]).tolist()


def _fit(m: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) temperatures of the margins (N,) under R sets of weights (R, N)."""
    low = np.full(len(weights), math.log(1 / TEMPERATURES[1]))
    high = np.full(len(weights), math.log(1 / TEMPERATURES[0]))
    for _ in range(32):
        middle = (low + high) / 2
        rises = (weights * m * sigmoid(-np.exp(middle)[:, None] * m)).sum(axis=1) > 0  # the likelihood, in 1 / T
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return np.exp(-(low + high) / 2)


def _weighted(margins: Sequence[float], weights: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    m = np.asarray(margins, dtype=float)
    if not m.size:
        raise ValueError("no margins: nothing to calibrate")
    return m, np.ones(len(m)) if weights is None else np.asarray(weights, dtype=float)


def _prompts(prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Number of the prompt of each pair, and weights with which all prompts weigh the same; both (N,)."""
    _, prompt, sizes = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    return prompt, 1 / sizes[prompt]


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)


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
