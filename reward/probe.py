"""A probe: a direction in frozen hidden states along which the preferred answers lie further.

It asks what the labels hold that the model knows already. So the trained reward model is compared with it.

Source  Bradley-Terry as a logistic regression on differences of features, without an intercept (Bradley and Terry 1952,
        https://doi.org/10.2307/2334029); linear probes of hidden states: Alain and Bengio 2016,
        https://arxiv.org/abs/1610.01644. Middle layers are often the better ones: Skean et al. 2025,
        https://arxiv.org/abs/2502.02013.

Shapes: N pairs, H hidden units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from reward.hidden import POOLINGS, Features, Place, read_features
from trueup.console import say
from trueup.data.records import random_rows
from trueup.models.heads import Pooling
from trueup.models.loading import Loaded
from trueup.statistics.length_control import sigmoid
from trueup.training.pairs import EncodedPair

RIDGES = (10.0, 1.0, 0.1)
"""Strengths of the ridge, for features of unit variance and weights that sum to 1. The strongest comes first, and each
fit starts from the one before it."""
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """The score of an answer is `direction @ features at place`. It is 0 on average over the training answers."""

    place: Place
    direction: np.ndarray
    """(H,) float64, in the units of the hidden states."""
    reason: str
    """A sentence on why this place and this ridge."""

    def scores(self, features: Features) -> np.ndarray:
        """(N, 2) scores of the chosen and of the rejected answers."""
        return features[self.place].astype(np.float64) @ self.direction


class CurvePoint(NamedTuple):
    """What probes say of N held-out pairs that each learnt from an equal part of the training prompts."""

    prompts: int
    """In the smallest part."""
    margins: list[list[float]]
    """Score of the chosen minus that of the rejected answer: by part, by pair."""


class ProbeScores(NamedTuple):
    """What a probe says of N held-out pairs."""

    scores: list[tuple[float, float]]
    """Of the chosen and of the rejected answer of each pair."""
    reason: str
    curve: Mapping[float, CurvePoint] = MappingProxyType({})
    """By the share of the training prompts, rising to 1."""


PARTS = (4, 2, 1)
"""Numbers of parts into which the training prompts are cut for the learning curve. Each part teaches a probe, so that
no draw of a few prompts decides what a quarter of the labels is worth."""


MOST_PROMPTS = 2_000
"""Most prompts whose pairs the probe reads. Hidden states of more would take gigabytes, and move it little."""


def pairs_to_read(prompts: Sequence[str], seed: int) -> list[int]:
    """Indices of the pairs that the probe reads, in their order. `prompts` are those of all pairs."""
    chosen = set(random_rows(sorted(set(prompts)), MOST_PROMPTS, seed))
    return [i for i, prompt in enumerate(prompts) if prompt in chosen]


def probe_pairs(
    model: Loaded, features: Features, prompts: Sequence[str], heldout: Sequence[EncodedPair], seed: int
) -> ProbeScores:
    """A probe that is fitted to the training pairs, on the held-out ones, which `model` reads.

    features, prompts  of the training pairs
    """
    probe = fit_probe(features, prompts, seed)
    say(f"{'probe':<12} {probe.reason}")
    if not heldout:
        return ProbeScores([], probe.reason)
    examined = read_features(model, heldout, [probe.place.layers])
    scores = [(chosen, rejected) for chosen, rejected in probe.scores(examined).tolist()]
    return ProbeScores(scores, probe.reason, learning_curve(features, prompts, examined, probe.place, seed))


def learning_curve(
    features: Features, prompts: Sequence[str], examined: Features, place: Place, seed: int
) -> dict[float, CurvePoint]:
    """What probes of a quarter, of half and of all prompts say of other pairs. All read at one place, with a ridge of
    their own. Shares of less than two prompts are left out.

    features, prompts  of the training pairs
    examined           features of the other pairs
    """
    distinct = sorted(set(prompts))
    order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    curve = {}
    for parts in PARTS:
        if len(order) < 2 * parts:
            continue
        part_of = {prompt: n % parts for n, prompt in enumerate(order)}
        margins = []
        for part in range(parts):
            rows = [i for i, prompt in enumerate(prompts) if part_of[prompt] == part]
            probe = fit_probe({place: features[place][rows]}, [prompts[i] for i in rows], seed)
            scores = probe.scores(examined)
            margins.append((scores[:, 0] - scores[:, 1]).tolist())
        curve[1 / parts] = CurvePoint(len(order) // parts, margins)
    return curve


def fit_probe(features: Features, prompts: Sequence[str], seed: int, poolings: Sequence[Pooling] = POOLINGS) -> Probe:
    """The probe at the best place, with the best ridge, fitted to all pairs.

    prompts   of the N pairs. Each prompt weighs the same, however many pairs it has
    poolings  those that may be chosen

    Place and ridge are those with the smallest loss on prompts that the fit has not seen, over folds of prompts: a
    margin says more than its sign. The accuracy of the best of many is a little too high.
    """
    weights = prompt_weights(prompts)
    places = sorted(place for place in features if place.pooling in poolings)
    folds = folds_of_prompts(prompts, seed)
    if len(set(folds)) < 2:
        place, ridge = places[-1], 1.0
        reason = f"{_named(place, features)}: with one prompt there is nothing to choose by"
    else:
        judged = {place: _judge_ridges(features[place], weights, folds) for place in places}
        place, ridge = max(
            ((place, ridge) for place in places for ridge in RIDGES), key=lambda choice: judged[choice[0]][choice[1]]
        )
        usual = Place(max(place.layers for place in places), "last token")
        reason = (
            f"{_named(place, features)}, ridge {ridge:g}: {judged[place][ridge]} over {max(folds) + 1} "
            f"folds of {len(set(prompts))} training prompts"
        )
        if place != usual and usual in judged:
            reason += f"; {_named(usual, features)}: {max(judged[usual].values())}"
    return Probe(place, fit_directions(features[place], weights, [ridge])[0], reason)


# ---- The choice of place and ridge ------------------------------------------------------------------------------


def best_ridge(pairs: np.ndarray, prompts: Sequence[str], seed: int) -> float:
    """The ridge that `fit_probe` takes at a place, from the features (N, 2, H) there."""
    folds = folds_of_prompts(prompts, seed)
    if len(set(folds)) < 2:
        return 1.0
    judged = _judge_ridges(pairs, prompt_weights(prompts), folds)
    return max(RIDGES, key=lambda ridge: judged[ridge])


@dataclass(frozen=True, order=True)
class _Judged:
    minus_loss: float
    accuracy: float

    def __str__(self) -> str:
        return f"loss {-self.minus_loss:.2f} and accuracy {self.accuracy:.0%}"


def _judge_ridges(pairs: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> dict[float, _Judged]:
    """What each ridge gives on pairs (N, 2, H) of prompts that it was not fitted to."""
    margins = np.zeros((len(RIDGES), len(pairs)))
    for fold in set(folds.tolist()):
        kept = folds == fold
        directions = fit_directions(pairs[~kept], weights[~kept], RIDGES)
        margins[:, kept] = directions @ (pairs[kept, 0] - pairs[kept, 1]).T
    rights = (np.sign(margins) + 1) / 2
    losses = np.logaddexp(0, -margins)
    return {
        ridge: _Judged(-float(np.average(loss, weights=weights)), float(np.average(right, weights=weights)))
        for ridge, right, loss in zip(RIDGES, rights, losses, strict=True)
    }


def prompt_weights(prompts: Sequence[str]) -> np.ndarray:
    """(N,) weights of pairs that sum to 1, and to the same for every prompt."""
    counts = Counter(prompts)
    return np.array([1 / counts[prompt] for prompt in prompts]) / len(counts)


def folds_of_prompts(prompts: Sequence[str], seed: int) -> np.ndarray:
    """(N,) the fold of each pair: the prompts are dealt in an order that the seed draws."""
    distinct = sorted(set(prompts))
    order = np.random.default_rng(seed).permutation(len(distinct))
    fold = {distinct[i]: n % FOLDS for n, i in enumerate(order)}
    return np.array([fold[prompt] for prompt in prompts])


def _named(place: Place, features: Features) -> str:
    return f"layer {place.layers} of {max(place.layers for place in features)}, {place.pooling}"


# ---- The fit ----------------------------------------------------------------------------------------------------


class Standard(NamedTuple):
    """How features (..., H) are standardised: to unit variance over the answers, so that a ridge knows no unit, and
    orthogonal to the mean answer, since a head has no intercept and its scores are to be 0 on average."""

    scale: np.ndarray
    """(H,), infinite for a unit that never varies: it is left out."""
    common: np.ndarray
    """(H,) the direction of the mean answer in standardised features, of norm 1; all 0 where the mean is."""

    @classmethod
    def of(cls, pairs: np.ndarray) -> Standard:
        """That of the answers of pairs (N, 2, H) in float64."""
        chosen, rejected = pairs[:, 0], pairs[:, 1]
        mean = (chosen + rejected).mean(
            axis=0
        ) / 2  # over pairs of sums, which are the same after a swap to the last bit
        scale = np.sqrt(((chosen - mean) ** 2 + (rejected - mean) ** 2).mean(axis=0) / 2)
        scale[scale <= 1e-6 * scale.max(initial=0)] = np.inf
        common = mean / scale
        return cls(scale, common / (np.linalg.norm(common) or 1.0))

    def differences(self, pairs: np.ndarray) -> np.ndarray:
        """(N, H) the chosen answers' standardised features minus the rejected ones'."""
        differences = (pairs[:, 0] - pairs[:, 1]) / self.scale
        return differences - np.outer(differences @ self.common, self.common)

    def directions(self, thetas: np.ndarray) -> np.ndarray:
        """Directions (R, H) over the features themselves, from those over standardised ones."""
        return (thetas - np.outer(thetas @ self.common, self.common)) / self.scale


def fit_directions(pairs: np.ndarray, weights: np.ndarray, ridges: Sequence[float]) -> np.ndarray:
    """Directions (R, H) that minimise the Bradley-Terry loss with each of R ridges:

        sum_n w_n log(1 + exp(-theta . (chosen_n - rejected_n))) + ridge / 2 |theta|^2

    pairs    (N, 2, H) features of the chosen and of the rejected answers
    weights  (N,)

    theta is over standardised features. Swapping the answers of every pair negates the directions exactly.
    """
    pairs = pairs.astype(np.float64)
    standard = Standard.of(pairs)
    differences = standard.differences(pairs)
    weights = weights / weights.sum()

    def loss_and_slope(theta: np.ndarray, ridge: float) -> tuple[float, np.ndarray]:
        margins = differences @ theta
        loss = float(weights @ np.logaddexp(0, -margins)) + ridge / 2 * float(theta @ theta)
        return loss, ridge * theta - (weights * sigmoid(-margins)) @ differences

    theta, thetas = np.zeros(pairs.shape[-1]), []
    for ridge in ridges:
        options = {"maxiter": 500, "ftol": 1e-10, "gtol": 1e-7}
        theta = minimize(loss_and_slope, theta, (ridge,), "L-BFGS-B", jac=True, options=options).x
        thetas.append(theta)
    return standard.directions(np.stack(thetas))
