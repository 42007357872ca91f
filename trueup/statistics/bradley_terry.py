"""Bradley-Terry strengths: several policies on one scale, from comparisons of two at a time.

    P(b wins against a) = sigmoid(theta_b - theta_a)        Bradley and Terry 1952, https://doi.org/10.2307/2334029

The fit is maximum likelihood; a tie is half a win for each. Strengths are log-odds against a named reference, which has
0. As in `trueup.statistics.win_rates`, the prompt is the independent unit: a pair weighs by its prompts, however
many answers to each there were, and intervals refit on prompts drawn with replacement, the same ones for every pair. If
most prompts are tied, the intervals are widened as the win rate against the reference is
(`trueup.statistics.win_rates.win_rate`).

Shapes: R fits, E pairs (edges) of m policies, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trueup.statistics.intervals import Groups, Interval, draws, flat, percentiles
from trueup.statistics.win_rates import margin_interval

ELO = 400 / math.log(10)
"""Elo points per unit of log-odds: 400 points are odds of ten to one."""

_LOST = 0.5
"""Prompts added as lost, and as won, to the real ones, if no strength were finite without them (Haldane 1956,
https://doi.org/10.1111/j.1469-1809.1955.tb01285.x): 50 prompts without a loss are odds of 101 to 1."""


@dataclass(frozen=True)
class Strengths:
    """The strength of each policy against `reference`, whose own is 0 by definition."""

    reference: str
    of: dict[str, Interval]
    """Log-odds of winning against the reference; `n` is prompts."""
    note: str | None
    """A limit of the figures, if there is one."""


def bradley_terry(
    pairs: Mapping[tuple[str, str], Groups],
    reference: str,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 1_000,
) -> Strengths:
    """Strengths of all policies in `pairs`, with bootstrap intervals over prompts.

    pairs  {(a, b): outcomes of P prompts}, the same prompts for every pair: 1 where b wins, 0.5 a tie, 0 where a wins,
           NaN not compared; a prompt on which a pair was not compared has an empty sequence

    Of two policies the strength is the logit of their win rate; swapped outcomes give exactly the negative.

    If one group of policies never loses to the others, their distance is infinite (Ford 1957,
    https://doi.org/10.2307/2308513). Half a won prompt is then added to both sides of each pair between the groups. A
    resample of wins is always all wins, so for such a pair the interval draws the lost share from its posterior under
    Jeffreys' prior, whose mean the added half gives. The note names these pairs. Policies that no chain of comparisons
    connects have no common scale: a ValueError names them.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    if reference not in names:
        raise ValueError(f"reference {reference!r} is in no pair; the pairs are of {', '.join(names) or 'no policies'}")
    edges = np.array([[names.index(a), names.index(b)] for a, b in pairs])  # (E, 2)
    home = names.index(reference)
    margins, sizes = _per_prompt(pairs)  # (P, E)
    compared = (sizes > 0).astype(float)
    prompts = len(compared)

    margin, weight = _margin(margins.sum(axis=0)[None], sizes.sum(axis=0)[None]), compared.sum(axis=0)[None]  # (1, E)
    _refuse_parts(names, edges, weight)
    never = _one_way(margin, weight, edges, len(names))[0]  # (E,)
    value = _fit(margin, weight, edges, len(names), home)[0]  # (m,)
    notes = []
    if never.any():
        winners = [f"{b} to {a}" if margin[0, e] > 0 else f"{a} to {b}" for e, (a, b) in enumerate(pairs) if never[e]]
        notes.append(f"never lost: {', '.join(winners)}; finite only because half a prompt is counted as lost")

    rng = np.random.default_rng(seed)
    fits = []
    for counts in draws(prompts, resamples, seed, columns=len(names) ** 2):
        resample = _margin(counts @ margins, counts @ sizes)  # (R, E)
        share = np.maximum(1e-7, rng.beta(_LOST, weight + _LOST, size=resample.shape))  # 0 would be infinite again
        resample = np.where(never, np.sign(margin) * (0.5 - share), resample)
        fits.append(_fit(resample, counts @ compared, edges, len(names), home))
    theta = np.concatenate(fits)
    theta = theta[np.isfinite(theta).all(axis=1)]  # (R, m)
    if len(theta) < resamples:
        notes.append(f"{resamples - len(theta)} of {resamples} resamples left policies unconnected, and are left out")
    if prompts < 2 or len(theta) < resamples / 2:
        bounds = [(-math.inf, math.inf) for _ in names]
        notes.append("too few prompts for intervals")
    else:
        bounds = [percentiles(column, confidence, prompts) for column in theta.T]
        for e, (a, b) in enumerate(edges):
            if home in (a, b) and not never[e]:
                rate, beyond = margin_interval(*_compared(margins[:, e], sizes[:, e]), confidence, seed, resamples)
                bounds[a + b - home] = _wider(bounds[a + b - home], rate, beyond, a == home)
    bounds[home] = (0.0, 0.0)
    of = {}
    for name, strength, (low, high) in zip(names, value.tolist(), bounds, strict=True):
        # The last digits of refits differ: that must not let the interval exclude its own value.
        of[name] = Interval(strength, min(low, strength), max(high, strength), prompts)
    return Strengths(reference, of, "; ".join(notes) or None)


def _wider(
    bounds: tuple[float, float], rate: Interval, beyond: tuple[float, float], first: bool
) -> tuple[float, float]:
    """The bounds, widened for ties. In log-odds, they widen as much as the win rate against the reference does.

    rate, beyond  of the pair of the policy and the reference, by `margin_interval`
    first         whether the reference is the pair's first policy, so that a win is the policy's
    """
    if rate.n < 2 or abs(rate.value) == 0.5:
        return bounds
    less = _log_odds(rate.low + beyond[0]) - _log_odds(rate.low)
    more = _log_odds(rate.high) - _log_odds(rate.high - beyond[1])
    less, more = (less, more) if first else (more, less)
    return bounds[0] - max(0.0, less), bounds[1] + max(0.0, more)


def _log_odds(margin: float) -> float:
    """Log-odds of the win rate margin + 0.5; exactly odd, and finite."""
    return 2 * math.atanh(max(-1 + 1e-12, min(1 - 1e-12, 2 * margin)))


def _compared(margins: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Margins and sizes, both (P,), of the prompts on which a pair was compared."""
    return margins[sizes > 0], sizes[sizes > 0]


def _per_prompt(pairs: Mapping[tuple[str, str], Groups]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the outcomes - 0.5 of each prompt that has some, both (P, E)."""
    counts = {pair: len(groups) for pair, groups in pairs.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{a} and {b} on {count}" for (a, b), count in counts.items())
        raise ValueError(f"every pair needs the same prompts, with an empty one if it was not compared: {listed}")
    margins, sizes = [], []
    for pair, groups in pairs.items():
        values, prompt = flat(groups)
        valid = ~np.isnan(values)
        margins.append(np.bincount(prompt[valid], values[valid] - 0.5, minlength=counts[pair]))
        sizes.append(np.bincount(prompt[valid], minlength=counts[pair]).astype(float))
    valid = np.any(sizes, axis=0)
    return np.stack(margins, axis=1)[valid], np.stack(sizes, axis=1)[valid]


def _margin(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Win rate of b - 0.5; 0 without a comparison."""
    return sums / np.maximum(sizes, 1)


def _refuse_parts(names: list[str], edges: np.ndarray, weight: np.ndarray) -> None:
    reach = _reach(weight > 0, weight > 0, edges, len(names))[0]
    parts = dict.fromkeys(tuple(np.flatnonzero(row)) for row in reach)
    if len(parts) > 1:
        listed = " | ".join(", ".join(names[i] for i in part) for part in parts)
        raise ValueError(f"no comparison connects these policies, so they have no common scale: {listed}")


def _reach(forward: np.ndarray, backward: np.ndarray, edges: np.ndarray, policies: int) -> np.ndarray:
    """(R, E) whether each edge leads from its first policy to its second, and back -> (R, m, m) policies reached."""
    reach = np.zeros((len(forward), policies, policies))
    reach[:, range(policies), range(policies)] = 1
    for e, (a, b) in enumerate(edges):
        reach[:, a, b] += forward[:, e]
        reach[:, b, a] += backward[:, e]
    for _ in range(policies.bit_length()):  # paths of twice the length each time
        reach = ((reach @ reach) > 0).astype(float)
    return reach > 0


def _one_way(margin: np.ndarray, weight: np.ndarray, edges: np.ndarray, policies: int) -> np.ndarray:
    """(R, E) whether a pair is between two groups of policies of which one won every comparison."""
    played = weight > 0
    reach = _reach(played & (margin > -0.5), played & (margin < 0.5), edges, policies)
    a, b = edges.T
    return played & ~(reach[:, a, b] & reach[:, b, a])


def _fit(margin: np.ndarray, weight: np.ndarray, edges: np.ndarray, policies: int, home: int) -> np.ndarray:
    """R fits at once by Newton's method (Hunter 2004, https://doi.org/10.1214/aos/1079120141, has a slower method and
    says when there is a maximum).

    margin, weight  (R, E) win rate of b - 0.5, and prompts
    returns         (R, m) strengths, 0 at `home`; NaN if the comparisons leave policies unconnected
    """
    wins = margin * weight
    weight = weight + 2 * _LOST * _one_way(margin, weight, edges, policies)  # `wins` stays: both sides gain alike
    connected = np.flatnonzero(_reach(weight > 0, weight > 0, edges, policies).all(axis=(1, 2)))
    wins, weight = wins[connected], weight[connected]
    signs = np.zeros((len(edges), policies))
    signs[range(len(edges)), edges[:, 1]] += 1
    signs[range(len(edges)), edges[:, 0]] -= 1
    free = [i for i in range(policies) if i != home]
    signs = signs[:, free]  # (E, m - 1)
    theta = np.zeros((len(wins), len(free)))
    for _ in range(100):
        predicted = 0.5 * np.tanh(0.5 * theta @ signs.T)  # (R, E), p - 0.5; odd, so that swapping negates exactly
        slope = (wins - weight * predicted) @ signs  # (R, m - 1)
        curve = np.einsum("re,ei,ej->rij", weight * (0.25 - predicted * predicted), signs, signs)
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        # Newton overshoots where the curve is flat; with steps of at most 2 in log-odds it always converged.
        step /= np.maximum(1.0, abs(step).max(axis=1, keepdims=True, initial=0) / 2)
        theta += step
        if abs(step).max(initial=0) < 1e-8:
            break
    strengths = np.full((len(margin), policies), np.nan)
    strengths[connected] = np.insert(theta, home, 0.0, axis=1)
    return strengths
