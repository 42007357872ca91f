"""The win rate at equal length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trueup.statistics.intervals import Groups, Interval, draws, flat, percentiles, totals
from trueup.statistics.win_rates import from_half, margin_interval, win_rate

_RIDGE = 1e-5
"""Weight of the slope's square beside the mean log loss. It does not move a slope that the data determine, and keeps a
slope finite that they do not (every longer answer won). 1e-3 would bend a judge of length alone by several points."""

_STEEP = 10.0
"""Slope from which length decides nearly every comparison: half a standard deviation more of it wins 99 of 100."""

_GUESS = "the {who} answer was the longer one in every comparison, so equal length is a guess beyond the data"


@dataclass(frozen=True)
class LengthControlled:
    """The win rate that the judge would give at equal length."""

    interval: Interval
    slope: float
    """Log-odds that being much longer adds to a win; 0: length does not matter to the judge."""
    note: str | None
    """A limit of the figure, if there is one."""
    a_guess: bool = False
    """No comparison was near equal length, so the figure is an extrapolation."""


def length_controlled_win_rate(
    groups: Groups, length_differences: Groups, confidence: float = 0.95, seed: int = 0, resamples: int = 1_000
) -> LengthControlled:
    """Win rate at equal length: the value at 0 of a logistic regression of the outcome on the difference in length.

        logit P(the aligned answer wins) = theta + phi * tanh(difference / its standard deviation)

    groups              outcomes of P prompts: 1, 0.5 (a tie, half a win and half a loss), 0, NaN not compared
    length_differences  aligned length - reference length of each, of the same shapes

    This is the regression of AlpacaEval 2 (Dubois et al. 2024, https://arxiv.org/abs/2404.04475, section 3) without two
    of its terms. Their term for the instruction is a difficulty learnt from the judgements on a hundred other models;
    here there is one pair of policies, on prompts of its own. Their regulariser needs answers of models that were told
    to write more and less; a tiny ridge takes its place. The tanh stays, so that figures compare with theirs, and
    because a large difference matters little more when it doubles: a straight line, through the difference or through
    log(aligned / reference), leaves more of the bias of a judge whose liking levels off.

    The interval refits on prompts drawn with replacement. Swapping the policies gives exactly the complement. If all
    lengths are equal there is nothing to control, and the result is the plain win rate.
    """
    values, prompt = flat(groups)
    differences, same_prompt = flat(length_differences)
    if not np.array_equal(prompt, same_prompt):
        raise ValueError("length_differences: give one for each outcome, prompt by prompt")
    valid = ~np.isnan(values)
    margin, difference = values[valid] - 0.5, differences[valid]  # (N,)
    _, prompt = np.unique(prompt[valid], return_inverse=True)  # (N,), numbered without gaps
    plain = win_rate(groups, confidence, seed).interval
    if not margin.size:
        return LengthControlled(plain, 0.0, "no comparisons")
    spread = difference.std()
    note: str | None
    if spread < 1e-9:
        note = "all lengths are equal, so this is the plain win rate"
        if apart := bool(abs(difference).max() > 1e-9):
            note = "all lengths differ by the same, so the effect of length cannot be estimated; not controlled"
        return LengthControlled(plain, 0.0, note, a_guess=apart)
    if margin.min() == margin.max():
        # The outcome does not vary: all wins, all losses or all ties, at every length.
        never_near = bool(difference.min() > 0 or difference.max() < 0)
        note = _GUESS.format(who="aligned" if difference.min() > 0 else "reference") if never_near else None
        return LengthControlled(plain, 0.0, note, a_guess=never_near)
    x = np.tanh(difference / spread)  # not centred: 0 stays equal length
    theta, phi = (float(fit[0]) for fit in _fit(margin, x, np.ones((1, len(x)))))
    value = from_half(float(_margin(theta)))
    if plain.n < 2:
        return LengthControlled(Interval(value, 0.0, 1.0, 1), phi, "one prompt")
    low, high = _interval(margin, x, prompt, (theta, phi), confidence, seed, resamples)
    note = None
    if beyond := bool(x.min() > 0 or x.max() < 0):
        note = _GUESS.format(who="aligned" if x.min() > 0 else "reference")
    elif abs(phi) > _STEEP:
        note = "length decides nearly every comparison, so the figure at equal length rests on the few of like length"
    return LengthControlled(Interval(value, min(low, value), max(high, value), plain.n), phi, note, beyond)


def _interval(
    margin: np.ndarray,
    x: np.ndarray,
    prompt: np.ndarray,
    start: tuple[float, float],
    confidence: float,
    seed: int,
    resamples: int,
) -> tuple[float, float]:
    """Bounds of the win rate at equal length, by refits on prompts drawn with replacement."""
    theta, phi = start
    rates = np.concatenate(
        [
            _margin(_fit(margin, x, counts[:, prompt], start)[0])
            for counts in draws(int(prompt.max()) + 1, resamples, seed, columns=len(x))
        ]
    )
    # A comparison's information on the intercept is p (1 - p). With a steep slope only those of like length have much,
    # and the interval must be as wide as that of the few prompts which decide.
    information = np.bincount(prompt, 0.25 - _margin(theta + phi * x) ** 2)  # (P,)
    deciding = max(2.0, float(information.sum() ** 2 / (information @ information)))
    low, high = percentiles(rates, confidence, deciding)
    # Ties are no certainty at equal length either: widen as much as the plain interval does.
    _, (lower, higher) = margin_interval(*totals(margin, prompt), confidence, seed, resamples)
    return from_half(max(-0.5, low - lower)), from_half(min(0.5, high + higher))


def _fit(
    margin: np.ndarray, x: np.ndarray, weights: np.ndarray, start: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts and slopes (R,) of R weighted logistic regressions with one predictor, by Newton's method.

    margin   (N,) outcomes - 0.5; with both margin and x negated the result is exactly -intercept and slope
    x        (N,) the predictor
    weights  (R, N)
    """
    total = weights.sum(axis=1)
    intercept, slope = np.full(len(weights), start[0]), np.full(len(weights), start[1])
    for _ in range(50):
        predicted = _margin(intercept[:, None] + slope[:, None] * x)  # (R, N), p - 0.5
        error, curve = weights * (predicted - margin), weights * (0.25 - predicted * predicted)
        # The ridge holds both parameters, the intercept much less: all wins have no finite intercept.
        g0 = error.sum(axis=1) / total + 1e-3 * _RIDGE * intercept
        g1 = error @ x / total + _RIDGE * slope
        h00 = curve.sum(axis=1) / total + 1e-3 * _RIDGE
        h01 = curve @ x / total
        h11 = curve @ (x * x) / total + _RIDGE
        determinant = h00 * h11 - h01 * h01
        step0, step1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # Newton overshoots where the curve is flat; with steps of at most 2 in log-odds it always converged.
        scale = np.minimum(1.0, 2 / np.maximum(1e-12, np.maximum(abs(step0), abs(step1))))
        intercept, slope = intercept - scale * step0, slope - scale * step1
        if max(abs(step0).max(), abs(step1).max()) < 1e-8:
            break
    return intercept, slope


def _margin(log_odds: np.ndarray | float) -> np.ndarray:
    """sigmoid(x) - 0.5, exactly odd in x."""
    return 0.5 * np.tanh(0.5 * np.asarray(log_odds))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # no overflow on either side
