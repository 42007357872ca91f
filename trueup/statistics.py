"""Statistics of comparisons and of reward models: pure functions over numpy arrays, no torch.

What is independent in a comparison is the prompt, not the answer: answers to one prompt share its difficulty. Every
interval here is therefore a bootstrap over prompts (Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x;
for language models: Miller 2024, https://arxiv.org/abs/2411.00640, section 2.2), and `n` counts prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Groups = Sequence[Sequence[float]] | Sequence[np.ndarray] | np.ndarray
"""One sequence of values per prompt; lengths may differ."""

POWER = 0.8
"""With which probability a change of the minimum detectable size is found."""

_CELLS = 2_000_000
"""Numbers that a bootstrap holds at once: 16 MB, whatever the number of prompts."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; a bound that nothing is known of is not finite."""

    value: float
    low: float
    high: float
    n: int
    """Independent units: prompts, or trials."""

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high and not math.isnan(self.low + self.high)

    def as_json(self) -> dict[str, Any]:
        """Keys as in every report; what is not finite becomes null, since JSON has no word for it."""
        bounds = {"value": self.value, "ci_low": self.low, "ci_high": self.high}
        return {**{key: value if math.isfinite(value) else None for key, value in bounds.items()}, "n": self.n}


# ---- Proportions and means --------------------------------------------------------------------------------------


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """A proportion of independent trials with its score interval (Wilson 1927, https://doi.org/10.2307/2276774)."""
    if n < 1:
        return Interval(math.nan, 0.0, 1.0, 0)
    z, p = _z(confidence), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the bounds are 0 and 1 exactly; rounding would put them an ulp beside the value.
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
    bounds  what a mean could be; with a single prompt that is all that is known of the others. None: anything

    Whole prompts are drawn with replacement, so that the values of one prompt stay together. The interval is the
    expanded percentile interval of Hesterberg 2015 (https://doi.org/10.1080/00031305.2015.1089789, section 5.3): plain
    percentiles are as much too narrow as a standard error that divides by P in place of P - 1.
    """
    sums, sizes = _sums(groups)
    value = sums.sum() / sizes.sum()
    if len(sums) < 2:
        low, high = bounds or (math.nan, math.nan)
        return Interval(float(value), low, high, len(sums))
    drawn = np.concatenate(
        [counts @ sums / (counts @ sizes) for counts in _draws(len(sums), resamples, np.random.default_rng(seed))]
    )
    # Sums in another order differ in their last digits: the interval must not exclude its own value for that.
    low, high = _percentiles(drawn, confidence, len(sums))
    tiny = 1e-12 * max(1.0, abs(value))
    if high - low <= tiny:
        low = high = float(value)
    return Interval(float(value), low, high, len(sums))


def _sums(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each group that has values, both (P,)."""
    kept = [np.asarray(group, dtype=float) for group in groups if len(group)]
    if not kept:
        raise ValueError("no values: a mean of nothing")
    return np.array([group.sum() for group in kept]), np.array([float(group.size) for group in kept])


def _draws(prompts: int, resamples: int, rng: np.random.Generator, columns: int = 0) -> Iterator[np.ndarray]:
    """How often each prompt is in each resample, (<= resamples, P), in parts that fit in memory."""
    part = max(1, _CELLS // max(prompts, columns))
    for start in range(0, resamples, part):
        size = min(part, resamples - start)
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(float)


def _percentiles(drawn: np.ndarray, confidence: float, prompts: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    t = float(stdtrit(prompts - 1, (1 + confidence) / 2))
    tail = NormalDist().cdf(-math.sqrt(prompts / (prompts - 1)) * t)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


# ---- Win rates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WinRate:
    """Of all comparisons the share that is won, a tie counting as half a win. `interval.n` is prompts."""

    interval: Interval
    wins: int
    ties: int
    losses: int


def outcomes(reference: Sequence[float] | np.ndarray, aligned: Sequence[float] | np.ndarray) -> np.ndarray:
    """Every comparison of two answers to one prompt that were drawn apart: 1 where the aligned one wins, 0.5 a tie.

    reference  (K,) scores of the reference's answers
    aligned    (K,) scores of the aligned policy's; the k-th answers of both share their random numbers
    returns    (K, K) with NaN on the diagonal for K > 1, row i: the reference's i-th answer

    All pairs use the answers best: among estimators from the same answers their mean has the least variance (Hoeffding
    1948). The k-th with the k-th is left out because those two are not independent: they share their random numbers, so
    a policy that moved a little would often repeat itself there, and pull its win rate towards a half.
    """
    r, a = np.asarray(reference, dtype=float), np.asarray(aligned, dtype=float)
    table = (np.sign(a[None, :] - r[:, None]) + 1) / 2
    if len(r) > 1:
        np.fill_diagonal(table, np.nan)
    return table


def win_rate(groups: Groups, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000) -> WinRate:
    """The win rate with its bootstrap interval over prompts.

    groups  P sequences of outcomes: 1 a win, 0.5 a tie, 0 a loss

    Where every comparison of every prompt is won (or lost) a bootstrap has no width, however few the prompts; then the
    interval is Wilson's over prompts. All ties do give [0.5, 0.5]: equal answers would tie on any further prompt too.
    """
    values = np.concatenate([np.asarray(group, dtype=float) for group in groups])
    interval = bootstrap_mean(groups, confidence, seed, resamples)
    if interval.value in (0.0, 1.0):
        interval = wilson(interval.value * interval.n, interval.n, confidence)
    return WinRate(interval, int((values == 1).sum()), int((values == 0.5).sum()), int((values == 0).sum()))


def minimum_detectable_effect(groups: Groups, confidence: float = 0.95, power: float = POWER) -> float:
    """The least distance of a win rate from 0.5 that a comparison like this one finds with probability `power`.

    groups   P sequences of outcomes; the spread of the prompts' means is what this comparison knows of its noise
    returns  (z_(1 - alpha/2) + z_power) * s / sqrt(P), as in Miller 2024, https://arxiv.org/abs/2411.00640, section 5;
             NaN with a single prompt, which has no spread
    """
    means = np.array([np.mean(group) for group in groups if len(group)])
    if len(means) < 2:
        return math.nan
    return float((_z(confidence) + NormalDist().inv_cdf(power)) * means.std(ddof=1) / math.sqrt(len(means)))


# ---- Win rate at equal length -----------------------------------------------------------------------------------

_RIDGE = 1e-7
"""Weight of the slope's square beside the mean log loss: nothing to a slope that the data fix, and it keeps finite one
that they do not (every longer answer won). 1e-3 would already bend a judge of length alone from 50 % to 58 %."""

_STEEP = 10.0
"""From this slope on, length decides nearly every comparison: half a standard deviation more of it wins 99 of 100."""


@dataclass(frozen=True)
class LengthControlled:
    """The win rate that the judge would give at equal length."""

    interval: Interval
    slope: float
    """Log-odds of a win per standard deviation of the log length ratio; 0: length does not matter to the judge."""
    note: str | None
    """Why the figure says less than it seems to, if so."""


def length_controlled_win_rate(
    groups: Groups,
    log_length_ratios: Groups,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1_000,
) -> LengthControlled:
    """Win rate at equal length: logistic regression of the outcome on log(aligned length / reference length).

    groups             P sequences of outcomes: 1, 0.5 (a tie, half a win and half a loss), 0
    log_length_ratios  P sequences of the same shape

    After Dubois et al. 2024 (length-controlled AlpacaEval, https://arxiv.org/abs/2404.04475, section 3), without their
    terms for the model and the instruction: one pair of policies is compared, on prompts of its own. The interval
    refits on prompts drawn with replacement. With equal lengths everywhere there is nothing to control for, and it is
    the plain win rate.
    """
    pairs = [
        (np.asarray(y, dtype=float), np.asarray(x, dtype=float)) for y, x in zip(groups, log_length_ratios, strict=True)
    ]
    pairs = [(y, x) for y, x in pairs if y.size]
    y, x = np.concatenate([y for y, _ in pairs]), np.concatenate([x for _, x in pairs])  # (N,)
    prompt = np.repeat(np.arange(len(pairs)), [len(group) for group, _ in pairs])  # (N,)
    spread = x.std()
    if spread < 1e-9:
        plain = win_rate(groups, confidence, seed).interval
        if abs(x).max() < 1e-9:
            return LengthControlled(plain, 0.0, "all lengths are equal, so this is the plain win rate")
        return LengthControlled(
            plain,
            0.0,
            "the lengths differ always by the same factor, so nothing can tell what length does; not controlled",
        )
    if y.min() == y.max():
        # Nothing varies, so nothing explains anything: all wins, all losses or all ties, at every length.
        return LengthControlled(win_rate(groups, confidence, seed).interval, 0.0, None)
    x = x / spread  # not centred: 0 stays equal length
    intercept, slope = _fit(y, x, np.ones((1, len(y))))
    value = float(_sigmoid(intercept)[0])
    if len(pairs) < 2:
        return LengthControlled(Interval(value, 0.0, 1.0, 1), float(slope[0]), "one prompt")
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [_sigmoid(_fit(y, x, counts[:, prompt])[0]) for counts in _draws(len(pairs), resamples, rng, columns=len(y))]
    )
    low, high = _percentiles(drawn, confidence, len(pairs))
    note = None
    if x.min() > 0 or x.max() < 0:
        who = "aligned" if x.min() > 0 else "reference"
        note = f"the {who} answer was the longer one in every comparison, so equal length is a guess beyond the data"
    elif abs(slope[0]) > _STEEP:
        note = "length decides nearly every comparison, so the figure at equal length rests on the few of like length"
    return LengthControlled(Interval(value, min(low, value), max(high, value), len(pairs)), float(slope[0]), note)


def _fit(y: np.ndarray, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts and slopes (R,) of R weighted logistic regressions with one predictor, by Newton's method.

    y, x     (N,) outcomes in [0, 1], and the predictor
    weights  (R, N)
    """
    total = weights.sum(axis=1)
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(50):
        p = _sigmoid(intercept[:, None] + slope[:, None] * x)  # (R, N)
        error, curve = weights * (p - y), weights * p * (1 - p)
        # Both parameters are held by the ridge, the intercept by much less: all wins have no finite intercept.
        g0 = error.sum(axis=1) / total + 1e-3 * _RIDGE * intercept
        g1 = error @ x / total + _RIDGE * slope
        h00 = curve.sum(axis=1) / total + 1e-3 * _RIDGE
        h01 = curve @ x / total
        h11 = curve @ (x * x) / total + _RIDGE
        determinant = h00 * h11 - h01 * h01
        step0, step1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # Newton overshoots where the curve is flat; steps of at most 2 in log-odds always came to rest.
        scale = np.minimum(1.0, 2 / np.maximum(1e-12, np.maximum(abs(step0), abs(step1))))
        intercept, slope = intercept - scale * step0, slope - scale * step1
        if max(abs(step0).max(), abs(step1).max()) < 1e-8:
            break
    return intercept, slope


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # no overflow on either side


# ---- Reward models ----------------------------------------------------------------------------------------------


def expected_calibration_error(margins: Sequence[float], bins: int = 10, temperature: float = 1.0) -> float:
    """How far a reward model's confidence is from how often it is right, averaged over its predictions.

    margins  (N,) r(chosen) - r(rejected)

    The model predicts the answer that it scores higher, with confidence sigmoid(|margin| / T) in [0.5, 1], which is cut
    into `bins` of equal width; it is right where the margin is positive, and half right at 0. Confidence in `chosen`
    would not do: chosen is always right, so that overconfidence could not be seen. Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, eq. 3.
    """
    m = np.asarray(margins, dtype=float)
    if not m.size:
        raise ValueError("no margins: nothing to calibrate")
    confidence, right = _sigmoid(abs(m) / temperature), (np.sign(m) + 1) / 2
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    weight = np.bincount(index, minlength=bins)
    gap = np.bincount(index, confidence - right, minlength=bins)
    return float(abs(gap).sum() / weight.sum())


TEMPERATURES = (0.01, 100.0)
"""A fitted temperature stays between these: at the lower every pair is right, at the upper the scores say nothing."""


def fit_temperature(margins: Sequence[float]) -> float:
    """The T that minimises the mean of -log sigmoid(margin / T): above 1 the reward model is overconfident.

    margins  (N,) r(chosen) - r(rejected)

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. In 1/T the loss is convex, so its slope is bisected.
    """
    m = np.asarray(margins, dtype=float)
    if not m.size:
        raise ValueError("no margins: nothing to fit")
    low, high = math.log(1 / TEMPERATURES[1]), math.log(1 / TEMPERATURES[0])
    for _ in range(60):
        middle = (low + high) / 2
        slope = -float(np.mean(m * _sigmoid(-math.exp(middle) * m)))
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation of two (N,) sequences, ties sharing their mean rank; None where one of them never changes."""
    rx, ry = _ranks(x), _ranks(y)
    rx, ry = rx - rx.mean(), ry - ry.mean()
    scale = math.sqrt(float((rx @ rx) * (ry @ ry)))
    return float(rx @ ry) / scale if scale else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, index, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[index]
