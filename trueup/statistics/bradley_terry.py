"""Bradley-Terry strengths: several policies on one scale, from comparisons of two at a time.

    P(b wins against a) = sigmoid(theta_b - theta_a)        Bradley and Terry 1952, https://doi.org/10.2307/2334029

Maximum likelihood, a tie being half a win for each; strengths are log-odds against a named reference, which has 0. As
in `trueup.statistics.win_rates`, what is independent is the prompt: a pair weighs by the prompts that it was compared
on, however many answers to each there were, and intervals refit on prompts drawn with replacement, the same ones for
every pair. Where most prompts are tied, they are widened as the win rate against the reference is
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
"""Prompts counted as lost, and as won, beside the real ones, where there would be no finite strength without them
(Haldane 1956, https://doi.org/10.1111/j.1469-1809.1955.tb01285.x): 50 prompts without a loss are odds of 101 to 1."""


@dataclass(frozen=True)
class Strengths:
    """The strength of each policy against `reference`, whose own is 0 by definition."""

    reference: str
    of: dict[str, Interval]
    """Log-odds of winning against the reference; `n` is prompts."""
    note: str | None
    """Why the figures say less than they seem to, if so."""


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

    Two policies come out at the logit of their win rate, and outcomes the other way round at exactly the negative.

    Where one group of policies never loses to the others their distance is infinite (Ford 1957,
    https://doi.org/10.2307/2308513). Half a prompt won is then added to both sides of each pair between the groups. A
    resample of wins is always all wins, so for such a pair the interval takes the share that is lost from its posterior
    under Jeffreys' prior, of which the added half gives the mean. The note names these pairs. Policies that no chain of
    comparisons connects have no common scale: that is a ValueError which names them.
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
        notes.append(f"never lost: {', '.join(winners)}; finite only since half a prompt is counted as lost")

    rng = np.random.default_rng(seed)
    fits = []
    for counts in draws(prompts, resamples, seed, columns=len(names) ** 2):
        drawn = _margin(counts @ margins, counts @ sizes)  # (R, E)
        lost = np.maximum(1e-7, rng.beta(_LOST, weight + _LOST, size=drawn.shape))  # 0 would be infinite again
        drawn = np.where(never, np.sign(margin) * (0.5 - lost), drawn)
        fits.append(_fit(drawn, counts @ compared, edges, len(names), home))
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
                made, beyond = margin_interval(*_compared(margins[:, e], sizes[:, e]), confidence, seed, resamples)
                bounds[a + b - home] = _wider(bounds[a + b - home], made, beyond, a == home)
    bounds[home] = (0.0, 0.0)
    of = {}
    for name, strength, (low, high) in zip(names, value.tolist(), bounds, strict=True):
        # The last digits of refits differ: the interval must not exclude its own value for that.
        of[name] = Interval(strength, min(low, strength), max(high, strength), prompts)
    return Strengths(reference, of, "; ".join(notes) or None)


def _wider(
    bounds: tuple[float, float], made: Interval, beyond: tuple[float, float], first: bool
) -> tuple[float, float]:
    """Ties are no certainty: as much wider, in log-odds, as the win rate against the reference is than its resamples.

    made, beyond  of the pair of the policy and the reference, by `margin_interval`
    first         whether the reference is the pair's first policy, so that a win is the policy's
    """
    if made.n < 2 or abs(made.value) == 0.5:
        return bounds
    less = _log_odds(made.low + beyond[0]) - _log_odds(made.low)
    more = _log_odds(made.high) - _log_odds(made.high - beyond[1])
    less, more = (less, more) if first else (more, less)
    return bounds[0] - max(0.0, less), bounds[1] + max(0.0, more)


def _log_odds(margin: float) -> float:
    """Log-odds of a win rate that is given less 0.5; exactly odd, and finite."""
    return 2 * math.atanh(max(-1 + 1e-12, min(1 - 1e-12, 2 * margin)))


def _compared(margins: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both (P,), of the prompts on which a pair was compared."""
    return margins[sizes > 0], sizes[sizes > 0]


def _per_prompt(pairs: Mapping[tuple[str, str], Groups]) -> tuple[np.ndarray, np.ndarray]:
    """What the outcomes - 0.5 of each prompt add up to, and their number, both (P, E), of prompts that have some."""
    counts = {pair: len(groups) for pair, groups in pairs.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{a} and {b} on {count}" for (a, b), count in counts.items())
        raise ValueError(f"every pair needs the same prompts, with nothing where it was not compared: {listed}")
    margins, sizes = [], []
    for pair, groups in pairs.items():
        values, prompt = flat(groups)
        kept = ~np.isnan(values)
        margins.append(np.bincount(prompt[kept], values[kept] - 0.5, minlength=counts[pair]))
        sizes.append(np.bincount(prompt[kept], minlength=counts[pair]).astype(float))
    kept = np.any(sizes, axis=0)
    return np.stack(margins, axis=1)[kept], np.stack(sizes, axis=1)[kept]


def _margin(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Win rate of b - 0.5, 0 where nothing was compared."""
    return sums / np.maximum(sizes, 1)


def _refuse_parts(names: list[str], edges: np.ndarray, weight: np.ndarray) -> None:
    reach = _reach(weight > 0, weight > 0, edges, len(names))[0]
    parts = dict.fromkeys(tuple(np.flatnonzero(row)) for row in reach)
    if len(parts) > 1:
        listed = " | ".join(", ".join(names[i] for i in part) for part in parts)
        raise ValueError(f"no comparison connects these policies, so they have no common scale: {listed}")


def _reach(forward: np.ndarray, backward: np.ndarray, edges: np.ndarray, policies: int) -> np.ndarray:
    """(R, E) whether each edge leads from its first policy to its second, and back -> (R, m, m) who is reached."""
    reach = np.zeros((len(forward), policies, policies))
    reach[:, range(policies), range(policies)] = 1
    for e, (a, b) in enumerate(edges):
        reach[:, a, b] += forward[:, e]
        reach[:, b, a] += backward[:, e]
    for _ in range(policies.bit_length()):  # paths of twice the length each time
        reach = ((reach @ reach) > 0).astype(float)
    return reach > 0


def _one_way(margin: np.ndarray, weight: np.ndarray, edges: np.ndarray, policies: int) -> np.ndarray:
    """(R, E) which pairs are between groups of policies that only ever won and only ever lost against each other."""
    played = weight > 0
    reach = _reach(played & (margin > -0.5), played & (margin < 0.5), edges, policies)
    a, b = edges.T
    return played & ~(reach[:, a, b] & reach[:, b, a])


def _fit(margin: np.ndarray, weight: np.ndarray, edges: np.ndarray, policies: int, home: int) -> np.ndarray:
    """R fits at once by Newton's method (for a slower one and for when there is a maximum: Hunter 2004,
    https://doi.org/10.1214/aos/1079120141).

    margin, weight  (R, E) win rate of b - 0.5, and prompts
    returns         (R, m) strengths, 0 at `home`; NaN where the comparisons leave policies unconnected
    """
    won = margin * weight
    weight = weight + 2 * _LOST * _one_way(margin, weight, edges, policies)  # `won` stays: as much to either side
    connected = np.flatnonzero(_reach(weight > 0, weight > 0, edges, policies).all(axis=(1, 2)))
    won, weight = won[connected], weight[connected]
    signs = np.zeros((len(edges), policies))
    signs[range(len(edges)), edges[:, 1]] += 1
    signs[range(len(edges)), edges[:, 0]] -= 1
    free = [i for i in range(policies) if i != home]
    signs = signs[:, free]  # (E, m - 1)
    theta = np.zeros((len(won), len(free)))
    for _ in range(100):
        fitted = 0.5 * np.tanh(0.5 * theta @ signs.T)  # (R, E), p - 0.5; odd, so that swapping negates exactly
        slope = (won - weight * fitted) @ signs  # (R, m - 1)
        curve = np.einsum("re,ei,ej->rij", weight * (0.25 - fitted * fitted), signs, signs)
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        # Newton overshoots where the curve is flat; steps of at most 2 in log-odds always came to rest.
        step /= np.maximum(1.0, abs(step).max(axis=1, keepdims=True, initial=0) / 2)
        theta += step
        if abs(step).max(initial=0) < 1e-8:
            break
    made = np.full((len(margin), policies), np.nan)
    made[connected] = np.insert(theta, home, 0.0, axis=1)
    return made
