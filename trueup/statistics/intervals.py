"""Confidence intervals of a share and of a mean over prompts, and the resampling under them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from trueup.artifacts.reports import Estimate

Groups = Sequence[Sequence[float]] | Sequence[np.ndarray] | np.ndarray
"""The values of each prompt: a sequence or an array of any shape per prompt; sizes may differ."""

POWER = 0.8
"""Probability of detecting a change of the minimum detectable size."""

_CELLS = 2_000_000
"""Numbers that a bootstrap holds in memory at once: 16 MB, whatever the number of prompts."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; an unknown bound is not finite."""

    value: float
    low: float
    high: float
    n: int
    """Independent units: prompts, or trials."""

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high and not math.isnan(self.low + self.high)

    def estimate(self) -> Estimate:
        """The interval for a report. A number that is not finite becomes null, since JSON cannot write it."""
        value, low, high = (each if math.isfinite(each) else None for each in (self.value, self.low, self.high))
        return Estimate(value=value, ci_low=low, ci_high=high, n=self.n)


# ---- Proportions and means --------------------------------------------------------------------------------------


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """A proportion of independent trials with its score interval (Wilson 1927, https://doi.org/10.2307/2276774)."""
    if n < 1:
        return Interval(math.nan, 0.0, 1.0, 0)
    z, p = normal_quantile(confidence), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the bounds are exactly 0 and 1; rounding would put them an ulp beside the value.
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def bootstrap_mean(
    groups: Groups,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Interval:
    """The mean of all values with a bootstrap interval over prompts.

    groups  P sequences, the values of each prompt
    bounds  the possible range of the mean, which is the interval of a single prompt. None: anything

    Whole prompts are drawn with replacement, so that the values of one prompt stay together. The interval is the
    expanded percentile interval of Hesterberg 2015 (https://doi.org/10.1080/00031305.2015.1089789, section 5.3): plain
    percentiles are too narrow, like a standard error that divides by P in place of P - 1.

    A resample lies between the least and the greatest prompt. With five prompts or fewer these enclose the truth less
    than 95 times in 100, so the interval is Student's, over prompts.

    If all values are equal the interval has no width. `win_rate` is better for wins and ties, `positive_mean` for
    values that are never negative.
    """
    values, prompt = flat(groups)
    return bootstrap(*totals(values, prompt), confidence, seed, resamples, bounds)


def positive_mean(groups: Groups, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000) -> Interval:
    """The mean of values that are never negative and may have a heavy tail, such as KL, with an interval over prompts.

    groups  P sequences, the values of each prompt, as for `bootstrap_mean`

    A few prompts with large values dominate the mean. In a resample without them both the mean and its spread are too
    small, so its percentiles are too low. Therefore the logarithm of the mean is divided by its standard error in each
    resample (the bootstrap-t, Hall 1988, https://doi.org/10.1214/aos/1176350933, on the scale on which that error
    changes least, Tibshirani 1988, https://doi.org/10.1093/biomet/75.3.433). The percentiles are as wide as for half
    the prompts, but at least 12. The interval is never narrower than that of `bootstrap_mean`. With five prompts or
    fewer it is Student's, of the logarithm. benchmarks/interval_coverage.py measures its coverage.
    """
    sums, sizes = totals(*flat(groups))
    plain = bootstrap(sums, sizes, confidence, seed, resamples, (0.0, math.inf))
    if plain.n < 2 or not plain.value:
        return plain
    error = float(_ratio_error(np.ones((1, plain.n)), sums, sizes)[1][0]) / plain.value  # of the logarithm
    if 0.5 ** (plain.n - 1) > 1 - confidence:
        half = _t(plain.n, confidence) * error
        low, high = -half, half
    else:
        parts = []
        for counts in draws(plain.n, resamples, seed):
            value, spread = _ratio_error(counts, sums, sizes)
            valid = (value > 0) & (spread > 1e-12 * value)
            parts.append(np.log(value[valid] / plain.value) / (spread[valid] / value[valid]))
        tail = _tail(min(plain.n, max(plain.n / 2, 12)), confidence)
        pivot = np.concatenate(parts) if parts else np.zeros(0)
        if not pivot.size:
            return plain
        low, high = (-error * float(np.quantile(pivot, at)) for at in (1 - tail, tail))
    bounds = plain.value * math.exp(low), plain.value * math.exp(min(700.0, high))
    return Interval(plain.value, min(plain.low, bounds[0]), max(plain.high, bounds[1]), plain.n)


def _ratio_error(counts: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of each resample, both (R,): the sum of sums over the sum of sizes.

    counts  (R, P) how often each prompt is in it
    """
    total, number, squares, products, square_sizes = (
        counts @ np.stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes], axis=1)
    ).T
    value = total / number
    spread = np.maximum(0.0, squares - 2 * value * products + value * value * square_sizes)  # of sums - value * sizes
    prompts = len(sums)
    return value, np.sqrt(spread * prompts / (prompts - 1)) / number


def flat(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """All values one after the other, and the number of the prompt of each; both (N,)."""
    arrays = [np.asarray(group, dtype=float).ravel() for group in groups]
    if not arrays:
        return np.zeros(0), np.zeros(0, dtype=int)
    return np.concatenate(arrays), np.repeat(np.arange(len(arrays)), [array.size for array in arrays])


def totals(values: np.ndarray, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values (N,) of each prompt that has some, both (P,)."""
    sizes = np.bincount(prompt)
    non_empty = sizes > 0
    return np.bincount(prompt, values)[non_empty], sizes[non_empty].astype(float)


def bootstrap(
    sums: np.ndarray,
    sizes: np.ndarray,
    confidence: float,
    seed: int,
    resamples: int,
    bounds: tuple[float, float] | None,
) -> Interval:
    """The interval of `bootstrap_mean` from the sum and the number of each prompt's values, both (P,)."""
    if not len(sums):
        raise ValueError("no values, so there is no mean")
    value = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        low, high = bounds or (math.nan, math.nan)
        return Interval(value, low, high, len(sums))
    if 0.5 ** (len(sums) - 1) > 1 - confidence:
        low, high = _students(value, sums, sizes, confidence)
        least, most = bounds or (-math.inf, math.inf)
        return Interval(value, max(least, low), min(most, high), len(sums))
    both = np.stack([sums, sizes], axis=1)
    parts = (counts @ both for counts in draws(len(sums), resamples, seed))
    low, high = percentiles(np.concatenate([part[:, 0] / part[:, 1] for part in parts]), confidence, len(sums))
    # Sums in another order differ in their last digits: that must not let the interval exclude its own value.
    if high - low <= 1e-12 * max(1.0, abs(value)):
        low = high = value
    return Interval(value, low, high, len(sums))


def _students(value: float, sums: np.ndarray, sizes: np.ndarray, confidence: float) -> tuple[float, float]:
    """Student's interval of a ratio of sums, for few prompts. Exactly symmetric."""
    share = (sums - value * sizes) / sizes.mean()  # (P,), around 0
    half = _t(len(sums), confidence) * float(share.std(ddof=1)) / math.sqrt(len(sums))
    return value - half, value + half


def draws(prompts: int, resamples: int, seed: int, columns: int = 0) -> Iterator[np.ndarray]:
    """How often each prompt is in each resample, (<= resamples, P), in parts that fit in memory.

    columns  numbers that the caller computes from each row, if more than P
    """
    part = max(1, _CELLS // max(prompts, columns))
    rng = np.random.default_rng(seed)
    small = prompts * resamples <= _CELLS
    for start in range(0, resamples, part):
        size = min(part, resamples - start)
        yield _counts(prompts, resamples, seed)[start : start + size] if small else _multinomial(rng, prompts, size)


@lru_cache(maxsize=4)
def _counts(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """All resamples. They are cached: every judge and pair of policies of a comparison uses the same prompts."""
    counts = _multinomial(np.random.default_rng(seed), prompts, resamples)
    counts.flags.writeable = False
    return counts


def _multinomial(rng: np.random.Generator, prompts: int, size: int) -> np.ndarray:
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(float)


def percentiles(values: np.ndarray, confidence: float, prompts: float) -> tuple[float, float]:
    """Percentile interval of bootstrapped values, widened for the few clusters (`prompts`) that were resampled.

    Values of the opposite sign give exactly the opposite interval.
    """
    tail = _tail(prompts, confidence)
    return float(np.quantile(values, tail)), -float(np.quantile(-values, tail))


def _tail(prompts: float, confidence: float) -> float:
    """Share of the resamples below an interval: less than (1 - confidence) / 2 with few prompts, so it is wider."""
    return NormalDist().cdf(-math.sqrt(prompts / (prompts - 1)) * _t(prompts, confidence))


def _t(prompts: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(prompts - 1, (1 + confidence) / 2))


def normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
