"""Statistics of comparisons and of reward models: pure functions over numpy arrays, no torch.

What is independent in a comparison is the prompt, not the answer: answers to one prompt share its difficulty. Every
interval here is therefore a bootstrap over prompts (Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x;
for language models: Miller 2024, https://arxiv.org/abs/2411.00640, section 2.2), and `n` counts prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from trueup.reports import Estimate

Groups = Sequence[Sequence[float]] | Sequence[np.ndarray] | np.ndarray
"""The values of each prompt: a sequence or an array of any shape per prompt; sizes may differ."""

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

    def estimate(self) -> Estimate:
        """As in every report; what is not finite becomes null, since JSON has no word for it."""
        value, low, high = (each if math.isfinite(each) else None for each in (self.value, self.low, self.high))
        return Estimate(value=value, ci_low=low, ci_high=high, n=self.n)


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

    A resample lies between the least and the greatest prompt, and of five prompts or fewer these enclose the truth less
    than 95 times in 100: there the interval is Student's, over prompts.

    Where every value is the same the interval has no width: of wins and ties `win_rate` says more, of what is never
    negative `positive_mean`.
    """
    values, prompt = flat(groups)
    return _bootstrap(*totals(values, prompt), confidence, seed, resamples, bounds)


def positive_mean(groups: Groups, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000) -> Interval:
    """The mean of values that are never negative and may have a heavy tail, such as KL, with an interval over prompts.

    groups  P sequences, the values of each prompt, as for `bootstrap_mean`

    Few prompts with large values make the mean: where they are missing, the mean and its spread are too small at once,
    and percentiles of it are too low. So the logarithm of the mean is divided by its standard error in each resample
    (the bootstrap-t, Hall 1988, https://doi.org/10.1214/aos/1176350933, on the scale on which that error changes least,
    Tibshirani 1988, https://doi.org/10.1093/biomet/75.3.433), with percentiles as wide as for half the prompts, but 12;
    the interval is never narrower than that of `bootstrap_mean`. Five prompts or fewer: Student's, of the logarithm.
    benchmarks/interval_coverage.py says how often it covers.
    """
    sums, sizes = totals(*flat(groups))
    plain = _bootstrap(sums, sizes, confidence, seed, resamples, (0.0, math.inf))
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
            kept = (value > 0) & (spread > 1e-12 * value)
            parts.append(np.log(value[kept] / plain.value) / (spread[kept] / value[kept]))
        tail = _tail(min(plain.n, max(plain.n / 2, 12)), confidence)
        pivot = np.concatenate(parts) if parts else np.zeros(0)
        if not pivot.size:
            return plain
        low, high = (-error * float(np.quantile(pivot, at)) for at in (1 - tail, tail))
    bounds = plain.value * math.exp(low), plain.value * math.exp(min(700.0, high))
    return Interval(plain.value, min(plain.low, bounds[0]), max(plain.high, bounds[1]), plain.n)


def _ratio_error(counts: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and its standard error, of each resample: sum of sums over sum of sizes, both (R,).

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
    kept = sizes > 0
    return np.bincount(prompt, values)[kept], sizes[kept].astype(float)


def _bootstrap(
    sums: np.ndarray,
    sizes: np.ndarray,
    confidence: float,
    seed: int,
    resamples: int,
    bounds: tuple[float, float] | None,
) -> Interval:
    """The interval of `bootstrap_mean` from what the values of each prompt add up to, and their number, both (P,)."""
    if not len(sums):
        raise ValueError("no values: a mean of nothing")
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
    # Sums in another order differ in their last digits: the interval must not exclude its own value for that.
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

    columns  width of what is made of each row, if that is more than P
    """
    part = max(1, _CELLS // max(prompts, columns))
    rng = np.random.default_rng(seed)
    small = prompts * resamples <= _CELLS
    for start in range(0, resamples, part):
        size = min(part, resamples - start)
        yield _drawn(prompts, resamples, seed)[start : start + size] if small else _multinomial(rng, prompts, size)


@lru_cache(maxsize=4)
def _drawn(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """Kept, since every judge and pair of policies of a comparison has the same prompts, and drawing costs the most."""
    made = _multinomial(np.random.default_rng(seed), prompts, resamples)
    made.flags.writeable = False
    return made


def _multinomial(rng: np.random.Generator, prompts: int, size: int) -> np.ndarray:
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(float)


def percentiles(drawn: np.ndarray, confidence: float, prompts: float) -> tuple[float, float]:
    """Percentile interval of bootstrapped values, widened for the few clusters (`prompts`) that were resampled.

    Values of the opposite sign give exactly the opposite interval.
    """
    tail = _tail(prompts, confidence)
    return float(np.quantile(drawn, tail)), -float(np.quantile(-drawn, tail))


def _tail(prompts: float, confidence: float) -> float:
    """Below which share of the resamples an interval begins: wider than (1 - confidence) / 2 for few prompts."""
    return NormalDist().cdf(-math.sqrt(prompts / (prompts - 1)) * _t(prompts, confidence))


def _t(prompts: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(prompts - 1, (1 + confidence) / 2))


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
    returns    (K, K) with NaN on the diagonal for K > 1 and where a score is NaN, row i: the reference's i-th answer

    All pairs use the answers best: among estimators from the same answers their mean has the least variance (Hoeffding
    1948). The k-th with the k-th is left out because those two are not independent: they share their random numbers, so
    a policy that moved a little would often repeat itself there, and pull its win rate towards a half.
    """
    r, a = np.asarray(reference, dtype=float), np.asarray(aligned, dtype=float)
    table = _against(r, a)
    if len(r) > 1:
        np.fill_diagonal(table, np.nan)
    return table


def win_rate(groups: Groups, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000) -> WinRate:
    """The win rate with its bootstrap interval over prompts.

    groups  outcomes of P prompts: 1 a win, 0.5 a tie, 0 a loss, NaN not compared (and not counted)

    The other policy's win rate on the same outcomes is exactly 1 - w, bounds included: all is reckoned from the
    distance to a half. Where every comparison of every prompt is won (or lost) the interval is Wilson's over prompts.
    Of no comparison nothing is known.

    Ties are no certainty: with nine ties in ten, 24 prompts may hold none of those that differ, and resamples of them
    cannot either. So the interval holds that of Bonett and Price 2012 (https://doi.org/10.1177/0962280211399949) too,
    Wald's after one prompt won and one lost were added. They won or lost everything; here prompts may be won in part,
    and what is added is of the size of those that differ, or of all, the fewer of them there are (`_with_unseen`).

    Of win rates between 0.4 and 0.7 on 50 and 200 prompts it covers 94 to 97 %, with 50 to 98 % of ties on 20 to 200
    prompts at least 93 % (benchmarks/interval_coverage.py). Student's t, bias-corrected (BCa), studentised and smoothed
    resamples were tried: no better there, and too sure of the few prompts that differ where nearly everything is tied.
    """
    values, prompt = _compared(groups)
    counts = [int((values == outcome).sum()) for outcome in (1, 0.5, 0)]
    if not values.size:
        return WinRate(Interval(math.nan, 0.0, 1.0, 0), *counts)
    made, _ = margin_interval(*totals(values - 0.5, prompt), confidence, seed, resamples)
    return WinRate(Interval(_from_half(made.value), _from_half(made.low), _from_half(made.high), made.n), *counts)


def margin_interval(
    sums: np.ndarray, sizes: np.ndarray, confidence: float, seed: int, resamples: int
) -> tuple[Interval, tuple[float, float]]:
    """A win rate - 0.5 with its interval, and how much lower and higher that reaches than resamples do.

    sums, sizes  (P,) what the outcomes - 0.5 of each prompt add up to, and their number
    """
    made = _bootstrap(sums, sizes, confidence, seed, resamples, (-0.5, 0.5))
    low, high = made.low, made.high
    if abs(made.value) == 0.5:
        least = wilson(made.n, made.n, confidence).low - 0.5
        low, high = (least, 0.5) if made.value > 0 else (-0.5, -least)
    elif made.n > 1:
        centre, error = _with_unseen(sums, sizes)
        half = _z(confidence) * error
        low, high = max(-0.5, min(low, centre - half)), min(0.5, max(high, centre + half))
    return Interval(made.value, low, high, made.n), (made.low - low, high - made.high)


def _with_unseen(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """A win rate - 0.5 and its standard error with two prompts more, one won by `size`, one lost by it.

    `size` is what prompts differ by that are not tied, one among them that is won or lost altogether.
    """
    prompts = len(sums)
    margins = sums / sizes
    size = math.sqrt((0.25 + float(margins @ margins)) / (1 + int((abs(margins) > 1e-12).sum())))
    centre = float(sums.sum() / sizes.sum()) * prompts / (prompts + 2)
    apart = (sums - centre * sizes) / sizes.mean()  # (P,)
    spread = float(apart @ apart) + 2 * (size * size + centre * centre)
    return centre, math.sqrt(spread) / (prompts + 2)


def by_group(
    groups: Groups,
    categories: Sequence[str | None],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, WinRate]:
    """The win rate in each category of prompts, in the order of their names; prompts without one are `none`.

    groups      outcomes of P prompts, as for `win_rate`
    categories  (P,)

    Small categories stay, with the wide intervals that they have. Each interval is of its category alone: of twenty
    categories one is expected beside 50 % by chance.
    """
    names = [category or "none" for category in categories]
    rows: dict[str, list[Any]] = {name: [] for name in sorted(set(names))}
    for name, group in zip(names, groups, strict=True):
        rows[name].append(group)
    return {name: win_rate(row, confidence, seed, resamples) for name, row in rows.items()}


def noise_floor(
    scores: Sequence[Sequence[float]] | np.ndarray, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> WinRate:
    """One policy against itself: 50 % within its interval (19 times in 20), or the comparison itself is broken.

    scores  (P, K) of K >= 2 answers to each prompt that were sampled apart

    The first half of each prompt's answers meets the second half, every one every other. The halves have no random
    numbers in common, so that all distance from 50 % is noise, of half as many answers as a comparison of two has.
    """
    tables = []
    for row in scores:
        values = np.asarray(row, dtype=float)
        if len(values) < 2:
            raise ValueError("a policy meets itself in two answers to a prompt or more; one was given")
        half = len(values) // 2
        tables.append(_against(values[:half], values[half:]))
    return win_rate(tables, confidence, seed, resamples)


def minimum_detectable_effect(groups: Groups, confidence: float = 0.95, power: float = POWER) -> float:
    """The least distance of a win rate from 0.5 that a comparison like this one finds with probability `power`.

    groups   outcomes of P prompts, as for `win_rate`; the spread of the prompts is what this comparison knows of its
             noise
    returns  (z_(1 - alpha/2) + z_power) * s / sqrt(P), as in Miller 2024, https://arxiv.org/abs/2411.00640, section 5;
             s is the standard deviation over prompts of their share in the win rate, and not less than with the two
             prompts that `win_rate` adds where most are tied. NaN with a single prompt, which has no spread
    """
    sums, sizes = totals(*_compared(groups))
    if len(sums) < 2:
        return math.nan
    share = (sums - sizes * sums.sum() / sizes.sum()) / sizes.mean()  # (P,), around 0; with equal sizes the means
    error = max(float(share.std(ddof=1)) / math.sqrt(len(share)), _with_unseen(sums - 0.5 * sizes, sizes)[1])
    return (_z(confidence) + NormalDist().inv_cdf(power)) * error


def _against(reference: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """(K,) and (L,) scores -> (K, L) outcomes, NaN where a score is."""
    return (np.sign(aligned[None, :] - reference[:, None]) + 1) / 2


def _compared(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes that are not NaN, and the prompt of each; both (N,)."""
    values, prompt = flat(groups)
    kept = ~np.isnan(values)
    return values[kept], prompt[kept]


def _from_half(margin: float) -> float:
    """0.5 + margin, on the grid of 2**-53, where 1 - w is exact too: the nearest float below 0.5 has a finer one."""
    return 0.5 + round(margin * 2**53) / 2**53


# ---- Win rate at equal length -----------------------------------------------------------------------------------

_RIDGE = 1e-5
"""Weight of the slope's square beside the mean log loss: nothing to a slope that the data fix, and it keeps finite one
that they do not (every longer answer won). 1e-3 would already bend a judge of length alone by several points."""

_STEEP = 10.0
"""From this slope on, length decides nearly every comparison: half a standard deviation more of it wins 99 of 100."""

_GUESS = "the {who} answer was the longer one in every comparison, so equal length is a guess beyond the data"


@dataclass(frozen=True)
class LengthControlled:
    """The win rate that the judge would give at equal length."""

    interval: Interval
    slope: float
    """Log-odds that being much longer adds to a win; 0: length does not matter to the judge."""
    note: str | None
    """Why the figure says less than it seems to, if so."""
    a_guess: bool = False
    """No comparison was near equal length, so that nothing is known there."""


def length_controlled_win_rate(
    groups: Groups,
    length_differences: Groups,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1_000,
) -> LengthControlled:
    """Win rate at equal length: what a logistic regression of the outcome on the difference in length says at 0.

        logit P(the aligned answer wins) = theta + phi * tanh(difference / its standard deviation)

    groups              outcomes of P prompts: 1, 0.5 (a tie, half a win and half a loss), 0, NaN not compared
    length_differences  aligned length - reference length of each, of the same shapes

    The regression of AlpacaEval 2 (Dubois et al. 2024, https://arxiv.org/abs/2404.04475, section 3), with two terms
    less. Theirs for the instruction is a difficulty that they learnt from the verdicts on a hundred other models; here
    one pair of policies is compared, on prompts of its own. Theirs that draws towards two models which were told to
    write more and less needs answers of such models; a ridge that is next to nothing stands for it. The tanh is kept,
    for comparison with theirs and for itself: a difference that is already large says little more when it doubles, and
    a straight line, through the difference or through log(aligned / reference), leaves more of the bias of a judge
    whose liking levels off.

    The interval refits on prompts drawn with replacement. Swapping the policies gives exactly the complement. With
    equal lengths everywhere there is nothing to control for, and it is the plain win rate.
    """
    values, prompt = flat(groups)
    differences, same_prompt = flat(length_differences)
    if not np.array_equal(prompt, same_prompt):
        raise ValueError("length_differences: give one for each outcome, prompt by prompt")
    kept = ~np.isnan(values)
    margin, difference = values[kept] - 0.5, differences[kept]  # (N,)
    _, prompt = np.unique(prompt[kept], return_inverse=True)  # (N,), numbered without gaps
    plain = win_rate(groups, confidence, seed).interval
    if not margin.size:
        return LengthControlled(plain, 0.0, "no comparisons")
    spread = difference.std()
    note: str | None
    if spread < 1e-9:
        note = "all lengths are equal, so this is the plain win rate"
        if apart := bool(abs(difference).max() > 1e-9):
            note = "the lengths differ always by the same, so nothing can tell what length does; not controlled"
        return LengthControlled(plain, 0.0, note, a_guess=apart)
    if margin.min() == margin.max():
        # Nothing varies, so nothing explains anything: all wins, all losses or all ties, at every length.
        never_near = bool(difference.min() > 0 or difference.max() < 0)
        note = _GUESS.format(who="aligned" if difference.min() > 0 else "reference") if never_near else None
        return LengthControlled(plain, 0.0, note, a_guess=never_near)
    x = np.tanh(difference / spread)  # not centred: 0 stays equal length
    theta, phi = (float(found[0]) for found in _fit(margin, x, np.ones((1, len(x)))))
    value = _from_half(float(_margin(theta)))
    if plain.n < 2:
        return LengthControlled(Interval(value, 0.0, 1.0, 1), phi, "one prompt")
    drawn = np.concatenate(
        [
            _margin(_fit(margin, x, counts[:, prompt], (theta, phi))[0])
            for counts in draws(plain.n, resamples, seed, columns=len(x))
        ]
    )
    # What a comparison says of the intercept is p (1 - p): with a steep slope that is little, but for those of like
    # length, and the interval must be as wide as that of the few prompts which decide.
    says = np.bincount(prompt, 0.25 - _margin(theta + phi * x) ** 2)  # (P,)
    deciding = max(2.0, float(says.sum() ** 2 / (says @ says)))
    low, high = percentiles(drawn, confidence, deciding)
    # Ties are no certainty at equal length either: as much wider as the plain interval is than its resamples.
    _, (lower, higher) = margin_interval(*totals(margin, prompt), confidence, seed, resamples)
    low, high = _from_half(max(-0.5, low - lower)), _from_half(min(0.5, high + higher))
    note = None
    if beyond := bool(x.min() > 0 or x.max() < 0):
        note = _GUESS.format(who="aligned" if x.min() > 0 else "reference")
    elif abs(phi) > _STEEP:
        note = "length decides nearly every comparison, so the figure at equal length rests on the few of like length"
    return LengthControlled(Interval(value, min(low, value), max(high, value), plain.n), phi, note, beyond)


def _fit(
    margin: np.ndarray, x: np.ndarray, weights: np.ndarray, start: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts and slopes (R,) of R weighted logistic regressions with one predictor, by Newton's method.

    margin   (N,) outcomes - 0.5: with both margin and x of the opposite sign exactly -intercept and slope come out
    x        (N,) the predictor
    weights  (R, N)
    """
    total = weights.sum(axis=1)
    intercept, slope = np.full(len(weights), start[0]), np.full(len(weights), start[1])
    for _ in range(50):
        fitted = _margin(intercept[:, None] + slope[:, None] * x)  # (R, N), p - 0.5
        error, curve = weights * (fitted - margin), weights * (0.25 - fitted * fitted)
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


def _margin(log_odds: np.ndarray | float) -> np.ndarray:
    """sigmoid(x) - 0.5, exactly odd in x."""
    return 0.5 * np.tanh(0.5 * np.asarray(log_odds))


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
