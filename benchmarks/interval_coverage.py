"""Do the intervals of `trueup.statistics.win_rates` hold what they promise? Campaigns of known truth, made by the
thousand.

    python benchmarks/interval_coverage.py                   all tables, some minutes on one core
    python benchmarks/interval_coverage.py --quick           a tenth of it
    python benchmarks/interval_coverage.py --only ties kl    these tables

Each table says how often a nominal 95 % interval covers the truth, with the 95 % interval (Wilson) that the number of
simulated campaigns gives this share. The bar is 93 to 97 %, for win rates of 0.4 to 0.7 and for Bradley-Terry
strengths; where nearly all is tied, and for KL, at least 93 %, since too wide there is better than too sure. Exit code
1 where a share is certainly beside its bar. Every campaign goes through the functions that the compare stage calls.

    votes    each answer is judged once per order, 1 a win, 0 a loss; in both orders a disagreement is a tie. Clusters:
             a prompt's chance of a win is Beta distributed around w (icc: the correlation of two verdicts on a prompt)
    scores   what is really used: K answers of either policy are scored with the prompt's own effect and on a coarse
             scale, so that many tie; the k-th answers of both are alike (shared random numbers); all pairs but those
    ties     most prompts are tied altogether; the others are won or lost whole (votes) or in part (several answers)
    kl       what is never negative, with tails from none to those of a lognormal whose logarithm has deviation 1.5
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from trueup.statistics.bradley_terry import bradley_terry
from trueup.statistics.intervals import Interval, bootstrap_mean, positive_mean, wilson
from trueup.statistics.length_control import length_controlled_win_rate
from trueup.statistics.win_rates import minimum_detectable_effect, outcomes, win_rate

BAR = (0.93, 0.97)
RATES = (0.4, 0.5, 0.6, 0.7)
FAR = (0.8, 0.9, 0.95)
PROMPTS = (50, 200)
FEW = (20, 24)
LEAST = 0.93
RESAMPLES = 1_000
"""The compare stage takes 10,000; the few more or less that 1,000 cover is below what the campaigns can tell."""

# ---- Campaigns ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Votes:
    answers: int
    orders: int
    icc: float = 0.0

    def __str__(self) -> str:
        ties = ", ties" if self.orders == 2 else ""
        return f"votes, K = {self.answers}{ties}{f', icc {self.icc}' if self.icc else ''}"

    def campaign(self, rng: np.random.Generator, rate: float, prompts: int) -> np.ndarray:
        """(P, K) outcomes with the true win rate `rate`."""
        chance = np.full((prompts, 1, 1), rate)
        if self.icc:
            both = 1 / self.icc - 1
            chance = rng.beta(rate * both, (1 - rate) * both, (prompts, 1, 1))
        return (rng.random((prompts, self.answers, self.orders)) < chance).mean(axis=2)


@dataclass(frozen=True)
class Scores:
    answers: int
    effect: float = 0.7
    """Standard deviation over prompts of how much better the aligned policy is; of an answer's own noise it is 1."""
    step: float = 0.7
    """Step of the scale: with 0.7 about one comparison in five is a tie."""
    shared: float = 0.8
    """Correlation of the k-th answers of both policies."""

    def __str__(self) -> str:
        return f"scores, K = {self.answers}"

    def campaign(self, rng: np.random.Generator, rate: float, prompts: int) -> np.ndarray:
        """(P, K, K) outcomes, as the compare stage makes them."""
        difficulty = rng.uniform(0, self.step, (prompts, 1))  # where the prompt lies on the scale: makes `mean` exact
        lead = rng.normal(self._mean(rate), self.effect, (prompts, 1))
        reference = rng.normal(size=(prompts, self.answers))
        own = math.sqrt(1 - self.shared**2) * rng.normal(size=reference.shape)
        aligned = lead + self.shared * reference + own
        rounded = [np.floor((difficulty + scores) / self.step) for scores in (reference, aligned)]
        return np.stack([outcomes(r, a) for r, a in zip(*rounded, strict=True)])

    def _mean(self, rate: float) -> float:
        alike = self.shared if self.answers == 1 else 0  # a single answer meets the one that it shares its numbers with
        return _lead(rate, math.sqrt(2 - 2 * alike + self.effect**2), self.step)


@cache
def _lead(rate: float, deviation: float, step: float) -> float:
    """The mean of a normal difference of scores at which the win rate is `rate`.

    On a scale of equal steps that begins anywhere, two scores with the difference d fall apart with probability
    min(1, |d| / step): the win rate is 0.5 + 0.5 * E[clip(d / step, -1, 1)].
    """
    quantiles = deviation * np.array([NormalDist().inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])
    low, high = -10 * deviation, 10 * deviation
    for _ in range(60):
        middle = (low + high) / 2
        made = 0.5 + 0.5 * float(np.clip((middle + quantiles) / step, -1, 1).mean())
        low, high = (middle, high) if made < rate else (low, middle)
    return (low + high) / 2


Design = Votes | Scores
DESIGNS: tuple[Design, ...] = (Votes(1, 1), Votes(1, 2), Votes(4, 1, 0.3), Votes(4, 2, 0.3), Scores(1), Scores(4))


@dataclass(frozen=True)
class Ties:
    """Prompts that are tied altogether, and some that are not."""

    share: float
    """Share of prompts that are tied."""
    favour: float
    """Share of the others that the aligned policy wins."""
    in_part: bool = False
    """They are won by 1 to 6 of the twelve comparisons of four answers with four, of which the rest are tied."""

    def __str__(self) -> str:
        how = "in part" if self.in_part else "whole"
        return f"{100 * self.share:g} % ties, {100 * self.favour:g} % of the rest won {how}"

    @property
    def rate(self) -> float:
        return 0.5 + (1 - self.share) * (self.favour - 0.5) * (3.5 / 12 if self.in_part else 1)

    def campaign(self, rng: np.random.Generator, prompts: int) -> np.ndarray:
        """(P, 12) outcomes."""
        decided = rng.random((prompts, 1)) >= self.share
        won = rng.random((prompts, 1)) < self.favour
        count = rng.integers(1, 7, (prompts, 1)) if self.in_part else 12
        differing = decided & (np.arange(12) < count)
        return np.where(differing, won, 0.5)


TIES = tuple(
    Ties(share, favour, in_part)
    for in_part in (False, True)
    for share in (0.5, 0.8, 0.9, 0.95, 0.98)
    for favour in (0.5, 0.75, 1.0)
)


@dataclass(frozen=True)
class Positive:
    """What a prompt's KL may be distributed like."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    mean: float
    held_to: float = LEAST
    """The least coverage that is promised with 24 prompts or more."""

    def __str__(self) -> str:
        return self.name


POSITIVE = (
    Positive("normal, 1 +- 0.3", lambda rng, shape: abs(rng.normal(1, 0.3, shape)), 1.0),
    Positive("lognormal, 0.5", lambda rng, shape: rng.lognormal(0, 0.5, shape), math.exp(0.125)),
    Positive("lognormal, 1", lambda rng, shape: rng.lognormal(0, 1, shape), math.exp(0.5)),
    Positive("exponential", lambda rng, shape: rng.exponential(1, shape), 1.0),
    Positive("gamma, shape 0.5", lambda rng, shape: rng.gamma(0.5, 1, shape), 0.5),
    Positive("lognormal, 1.5", lambda rng, shape: rng.lognormal(0, 1.5, shape), math.exp(1.125), 0.90),
)

# ---- Coverage ----------------------------------------------------------------------------------------------------


def share(hits: Iterator[bool]) -> Interval:
    counted = list(hits)
    return wilson(sum(counted), len(counted))


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def win_rate_coverage(
    design: Design, rate: float, prompts: int, campaigns: int, seed: int = 0, confidence: float = 0.95
) -> Interval:
    rng = np.random.default_rng([seed, prompts, round(1000 * rate)])
    return share(
        covers(win_rate(design.campaign(rng, rate, prompts), confidence, resamples=RESAMPLES).interval, rate)
        for _ in range(campaigns)
    )


def tied_coverage(ties: Ties, prompts: int, campaigns: int, seed: int = 0) -> tuple[Interval, float, Interval, float]:
    """Coverage and mean half width of the interval of `win_rate`, and of resamples alone."""
    rng = np.random.default_rng([seed, prompts, round(1000 * ties.share), round(100 * ties.favour), ties.in_part])
    planted = [ties.campaign(rng, prompts) for _ in range(campaigns)]
    return _both(
        [win_rate(table, resamples=RESAMPLES).interval for table in planted],
        [bootstrap_mean(table, resamples=RESAMPLES) for table in planted],
        ties.rate,
    )


def positive_coverage(
    values: Positive, prompts: int, campaigns: int, seed: int = 0
) -> tuple[Interval, float, Interval, float]:
    """Coverage and mean half width of the interval of `positive_mean`, and of percentiles of resamples."""
    rng = np.random.default_rng([seed, prompts])
    planted = [values.draw(rng, (prompts, 1)) for _ in range(campaigns)]
    return _both(
        [positive_mean(each, resamples=RESAMPLES) for each in planted],
        [bootstrap_mean(each, resamples=RESAMPLES, bounds=None) for each in planted],
        values.mean,
    )


def _both(used: list[Interval], before: list[Interval], truth: float) -> tuple[Interval, float, Interval, float]:
    def half(intervals: list[Interval]) -> float:
        return float(np.median([interval.high - interval.low for interval in intervals])) / 2

    hits = [share(covers(interval, truth) for interval in intervals) for intervals in (used, before)]
    return hits[0], half(used), hits[1], half(before)


def wilson_coverage(rate: float, n: int) -> float:
    """Exact: summed over every number of successes."""
    chance = [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
    return sum(p for k, p in enumerate(chance) if covers(wilson(k, n), rate))


def power(design: Design, prompts: int, campaigns: int, seed: int = 0) -> tuple[float, Interval]:
    """The mean minimum detectable effect of campaigns at 50 %, and how often a change of that size is found."""
    rng = np.random.default_rng([seed, prompts])
    unchanged = [minimum_detectable_effect(design.campaign(rng, 0.5, prompts)) for _ in range(200)]
    effect = float(np.mean(unchanged))
    found = share(
        win_rate(design.campaign(rng, 0.5 + effect, prompts), resamples=RESAMPLES).interval.low > 0.5
        for _ in range(campaigns)
    )
    return effect, found


POLICIES = {"sft": 0.0, "base": -1.0, "dpo": 0.7, "best_of_n": 1.0}


def tournament(rng: np.random.Generator, prompts: int, answers: int = 3) -> dict[tuple[str, str], np.ndarray]:
    """All pairs of policies whose scores have Gumbel noise, under which Bradley-Terry is exact, and prompt effects."""
    scores = {
        name: strength + rng.normal(0, 0.5, (prompts, 1)) + rng.gumbel(size=(prompts, answers))
        for name, strength in POLICIES.items()
    }
    names = list(POLICIES)
    return {
        (a, b): (np.sign(scores[b][:, None, :] - scores[a][:, :, None]) + 1) / 2
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def bradley_terry_coverage(prompts: int, campaigns: int, seed: int = 0) -> dict[str, Interval]:
    """Coverage by policy, without the reference. The truth is what a very large campaign finds, with prompt effects."""
    rng = np.random.default_rng([seed, prompts])
    large = [bradley_terry(tournament(rng, 20_000), "sft", resamples=1).of for _ in range(10)]
    truth = {name: float(np.mean([of[name].value for of in large])) for name in POLICIES}
    made = [bradley_terry(tournament(rng, prompts), "sft", resamples=500).of for _ in range(campaigns)]
    return {name: share(covers(of[name], truth[name]) for of in made) for name in POLICIES if name != "sft"}


def length_lover(rng: np.random.Generator, prompts: int, answers: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes and differences in length, (P, K, K), of a judge to whom only length counts, seen with some noise."""
    usual = rng.normal(0, 0.4, (prompts, 1))
    lengths = [
        np.round(middle * np.exp(usual + rng.normal(0, 0.4, (prompts, answers)))) for middle in (100, 150)
    ]  # the aligned policy writes half as much again
    seen = [each + rng.normal(0, noise, each.shape) for each in lengths]
    table = np.stack([outcomes(r, a) for r, a in zip(*seen, strict=True)])
    return table, lengths[1][:, None, :] - lengths[0][:, :, None]


def false_alarms(
    prompts: int, answers: int, noise: float, campaigns: int, seed: int = 0
) -> tuple[float, float, Interval, Interval]:
    """Mean raw and controlled win rate, and how often either interval leaves 50 % outside."""
    rng = np.random.default_rng([seed, prompts, answers])
    planted = [length_lover(rng, prompts, answers, noise) for _ in range(campaigns)]
    raw = [win_rate(table, resamples=RESAMPLES).interval for table, _ in planted]
    controlled = [length_controlled_win_rate(*each, resamples=300).interval for each in planted]
    return (
        float(np.mean([interval.value for interval in raw])),
        float(np.mean([interval.value for interval in controlled])),
        share(interval.excludes(0.5) for interval in raw),
        share(interval.excludes(0.5) for interval in controlled),
    )


# ---- Tables ------------------------------------------------------------------------------------------------------


def percent(interval: Interval) -> str:
    return f"{100 * interval.value:5.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def before_and_after(made: tuple[Interval, float, Interval, float], unit: float) -> str:
    """`99.1 +-5.2 (84.2 +-3.6)`."""
    covered, half, before, narrow = made
    text = f"{100 * covered.value:.1f} +-{unit * half:.2f} ({100 * before.value:.1f} +-{unit * narrow:.2f})"
    return f"{text:<31}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the campaigns")
    parser.add_argument("--seed", type=int, default=0)
    tables = ("rates", "few", "ties", "far", "strengths", "wilson", "power", "length", "kl")
    parser.add_argument("--only", nargs="+", choices=tables, default=tables, help="these tables")
    asked = parser.parse_args()
    wanted = asked.only.__contains__
    began = time.perf_counter()
    times: Callable[[int], int] = lambda campaigns: campaigns // (10 if asked.quick else 1)  # noqa: E731
    missed = 0

    if wanted("rates"):
        print(f"Win rate, {times(2000)} campaigns each\n{'':28} n    " + "".join(f"w = {rate:<16}" for rate in RATES))
        for design in DESIGNS:
            for prompts in PROMPTS:
                made = [win_rate_coverage(design, rate, prompts, times(2000), asked.seed) for rate in RATES]
                missed += sum(each.low > BAR[1] or each.high < BAR[0] for each in made)
                print(f"{design!s:28} {prompts:<4}" + " ".join(f"{percent(each):<19}" for each in made), flush=True)

    if wanted("few"):
        print(f"\nWin rate on few prompts, {times(1000)} campaigns each\n{'':28} n    ", end="")
        print("".join(f"w = {rate:<16}" for rate in RATES))
        for design in DESIGNS:
            for prompts in FEW:
                made = [win_rate_coverage(design, rate, prompts, times(1000), asked.seed) for rate in RATES]
                missed += sum(each.high < LEAST for each in made)
                print(f"{design!s:28} {prompts:<4}" + " ".join(f"{percent(each):<19}" for each in made), flush=True)

    if wanted("ties"):
        print(f"\nTies, {times(1000)} campaigns each: covered, median half width in points (resamples alone)")
        print(f"{'':40}" + "".join(f"n = {prompts:<27}" for prompts in (*FEW, *PROMPTS)))
        for ties in TIES:
            tied = [tied_coverage(ties, prompts, times(1000), asked.seed) for prompts in (*FEW, *PROMPTS)]
            missed += sum(made.high < LEAST for made, *_ in tied)
            print(f"{ties!s:40}" + "".join(before_and_after(made, 100) for made in tied), flush=True)

    if wanted("far"):
        print(f"\nFurther out, where no bar is promised, {times(1000)} campaigns each\n{'':28} n    ", end="")
        print("".join(f"w = {rate:<16}" for rate in FAR))
        for design in (Votes(1, 1), Scores(4)):
            for prompts in PROMPTS:
                made = [win_rate_coverage(design, rate, prompts, times(1000), asked.seed) for rate in FAR]
                print(f"{design!s:28} {prompts:<4}" + " ".join(f"{percent(each):<19}" for each in made), flush=True)

    if wanted("strengths"):
        print(f"\nBradley-Terry strengths, {times(500)} campaigns each\n{'':28} n    ", end="")
        print("".join(f"{name:<20}" for name in POLICIES if name != "sft"))
        for prompts in PROMPTS:
            strengths = list(bradley_terry_coverage(prompts, times(500), asked.seed).values())
            missed += sum(each.low > BAR[1] or each.high < BAR[0] for each in strengths)
            print(f"{'4 policies, K = 3':28} {prompts:<4}" + " ".join(f"{percent(each):<19}" for each in strengths))

    if wanted("wilson"):
        print("\nWilson's interval, exact")
        for n in PROMPTS:
            print(f"{'':28} {n:<4}" + " ".join(f"{100 * wilson_coverage(rate, n):5.1f}{'':14}" for rate in RATES))

    if wanted("power"):
        print("\nHow often a change of the minimum detectable size is found: wanted 80 %")
        for design in (Votes(1, 1), Scores(4)):
            for prompts in PROMPTS:
                effect, found = power(design, prompts, times(500), asked.seed)
                print(f"{design!s:28} {prompts:<4} {100 * effect:4.1f} points: {percent(found)} %")

    if wanted("length"):
        print("\nA judge that only likes length, of a policy that writes half as much again: how often 50 % is outside")
        for prompts, answers, noise in ((50, 2, 0.0), (50, 2, 20.0), (200, 2, 0.0), (200, 2, 20.0)):
            raw, controlled, wrong, right = false_alarms(prompts, answers, noise, times(500), asked.seed)
            how = "seen with noise" if noise else "by the token"
            print(
                f"{f'length {how}, K = {answers}':28} {prompts:<4} raw {100 * raw:.1f} %: {percent(wrong)} %", end="; "
            )
            print(f"controlled {100 * controlled:.1f} %: {percent(right)} %")

    if wanted("kl"):
        print(f"\nKL, {times(1000)} campaigns each: covered, median half width (percentiles of resamples)")
        print(f"{'':40}" + "".join(f"n = {prompts:<27}" for prompts in (8, 24, 90)))
        for values in POSITIVE:
            means = [positive_coverage(values, prompts, times(1000), asked.seed) for prompts in (8, 24, 90)]
            missed += sum(made.high < values.held_to for made, *_ in means[1:])
            print(f"{values!s:40}" + "".join(before_and_after(made, 1 / values.mean) for made in means), flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s; {missed} figures certainly outside the bar")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
