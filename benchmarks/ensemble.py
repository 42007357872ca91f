"""Whether the heads of an ensemble disagree where the model is wrong, and on answers unlike those that were labelled.

    python benchmarks/ensemble.py runs/demo
    python benchmarks/ensemble.py runs/demo --heads 3 --seeds 0 1 2

The run has a finished sft and label stage; the hidden states are those of its SFT policy, and the pairs those of
`reward` in configs/demo.yaml. A seed draws a quarter of the prompts; the head is a probe of the others. Three kinds of
heads around it: fits to prompts drawn with replacement (reward/ensemble.py, which the stage takes), draws from its
posterior, and draws from the prior alone, which no label has narrowed.

Prints a row a kind, each figure a mean over seeds with the least and the greatest: the share of the drawn quarter's
pairs on which all heads agree; the accuracy there and elsewhere; the accuracy on as many pairs as those elsewhere whose
margin is nearest to 0, which is what one head knows of its doubts; and how much larger the spread is on spoilt answers
(reward/card/stress.py) than on the answers themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from reward.card.shares import half_for_ties, mean_over_prompts
from reward.card.stress import EDITS
from reward.config import RewardConfig
from reward.ensemble import deviations
from reward.hidden import Place, read_features
from reward.probe import Standard, best_ridge, fit_directions, prompt_weights
from trueup.campaign import load_campaign
from trueup.data.pairs import choose_pairs
from trueup.data.records import Dropped, Preference, random_rows, read_rows
from trueup.models import loading
from trueup.models.chat import encode_completion
from trueup.statistics.length_control import sigmoid
from trueup.training.pairs import EncodedPair, encode_pairs

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
PLACE = Place(10, "mean over the answer")
"""The labels can be read there as well as behind more layers (benchmarks/probe_places.py), and it takes less time."""
SPOILT = 40
"""Prompts whose answers are spoilt, at most."""
Draw = Callable[[np.ndarray, np.ndarray, Sequence[str], float, int, int], np.ndarray]
"""Heads' deviations (K, H) by `reward.ensemble.deviations`' arguments."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with a finished sft and label stage")
    parser.add_argument("--heads", type=int, nargs="+", default=[3, 16])
    parser.add_argument("--prompts", type=int, default=200, help="prompts whose pairs are read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    config = load_campaign(DEMO, [f"run_dir={options.run}"]).stages["reward"]
    assert isinstance(config, RewardConfig)
    model = loading.new_reward_model(options.run / "sft" / "model", config.model)
    labelled = choose_pairs(read_rows(options.run / "labels" / "preferences.jsonl", Preference), config.pairs)
    asked = set(random_rows(sorted({pair.prompt_id for pair in labelled}), options.prompts, 0))
    labelled = [pair for pair in labelled if pair.prompt_id in asked]
    pairs, rows = encode_pairs(labelled, model.tokenizer, 256, Dropped())
    print(f"{len(pairs)} pairs of {len({pair.prompt_id for pair in pairs})} prompts", flush=True)
    features = read_features(model, rows, [PLACE.layers])[PLACE]
    first = list({pair.prompt_id: i for i, pair in enumerate(pairs)}.values())[:SPOILT]
    spoilt = read_features(model, spoilt_rows(model, pairs, rows, first), [PLACE.layers])[PLACE][:, 0]
    spoilt = spoilt.reshape(len(EDITS), len(first), -1)
    print("| heads | kind | agree | accuracy there | elsewhere | nearest to 0 | spread on spoilt answers |")
    print("|---" * 7 + "|")
    for count in options.heads:
        for kind, draw in KINDS.items():
            figures = [measure(features, pairs, first, spoilt, draw, count, seed) for seed in options.seeds]
            cells = [
                f"{np.nanmean(one):.2f} ({np.nanmin(one):.2f} to {np.nanmax(one):.2f})"
                for one in zip(*figures, strict=True)
            ]
            print(f"| {count} | {kind} | {' | '.join(cells)} |", flush=True)


def spoilt_rows(
    model: loading.Loaded, pairs: Sequence[Preference], rows: Sequence[EncodedPair], which: Sequence[int]
) -> list[EncodedPair]:
    """Each edit of the chosen answers of these pairs, edit by edit, as the chosen side."""
    texts = [pairs[i].chosen[0].content for i in which]
    return [
        EncodedPair(rows[i].prompt_ids, encode_completion(model.tokenizer, edit(text, other), True), rows[i].chosen_ids)
        for edit in EDITS.values()
        for i, text, other in zip(which, texts, [*texts[1:], texts[0]], strict=True)
    ]


def measure(
    features: np.ndarray,
    pairs: Sequence[Preference],
    first: Sequence[int],
    spoilt: np.ndarray,
    draw: Draw,
    count: int,
    seed: int,
) -> list[float]:
    """The row of one seed.

    features  (N, 2, H)
    first     a pair of each of P of the prompts
    spoilt    (E, P, H) their chosen answers after E edits
    """
    names = sorted({pair.prompt_id for pair in pairs})
    drawn = set(np.random.default_rng(seed).permutation(names)[: len(names) // 4].tolist())
    known = [i for i, pair in enumerate(pairs) if pair.prompt_id not in drawn]
    rest = [i for i, pair in enumerate(pairs) if pair.prompt_id in drawn]
    prompts = [pairs[i].prompt_id for i in known]
    ridge = best_ridge(features[known], prompts, seed)
    head = fit_directions(features[known], prompt_weights(prompts), [ridge])[0]
    differences = (features[:, 0] - features[:, 1]).astype(np.float64)
    heads = draw(features[known], differences[known] @ head, prompts, ridge, count, seed)
    margins = differences[rest] @ head
    by_head = margins[:, None] + differences[rest] @ heads.T
    agreed = (np.sign(by_head) == np.sign(by_head[:, :1])).all(axis=1)
    near = np.argsort(abs(margins))[: int((~agreed).sum())]
    examined = [place for place, i in enumerate(first) if pairs[i].prompt_id in drawn]
    own = features[[first[place] for place in examined], 0]
    spreads = [(one.astype(np.float64) @ heads.T).std(axis=-1, ddof=1).mean() for one in (own, spoilt[:, examined])]
    nearest = np.zeros(len(rest), dtype=bool)
    nearest[near] = True
    return [
        mean_over_prompts([pairs[i] for i in rest], agreed.astype(float).tolist()),
        *(accuracy(margins, [pairs[i] for i in rest], which) for which in (agreed, ~agreed, nearest)),
        spreads[1] / spreads[0],
    ]


def accuracy(margins: np.ndarray, pairs: Sequence[Preference], which: np.ndarray) -> float:
    rows = np.flatnonzero(which).tolist()
    if not rows:
        return float("nan")
    return mean_over_prompts([pairs[i] for i in rows], [half_for_ties(margins[i]) for i in rows])


def posterior(
    pairs: np.ndarray, margins: np.ndarray, prompts: Sequence[str], ridge: float, count: int, seed: int
) -> np.ndarray:
    """Draws from Laplace's approximation, N(0, inverse of P (sum_n w_n p_n (1 - p_n) x_n x_n^T + ridge I)) over
    standardised differences x_n, with p_n = sigmoid(margin_n) and P prompts. MacKay 1992,
    https://doi.org/10.1162/neco.1992.4.3.448; of reward models: Yang et al. 2024, https://arxiv.org/abs/2402.13210."""
    pairs = pairs.astype(np.float64)
    standard = Standard.of(pairs)
    weights = prompt_weights(prompts) * sigmoid(margins) * sigmoid(-margins)
    differences = standard.differences(pairs) * np.sqrt(weights)[:, None]
    curvature = differences.T @ differences
    curvature[np.diag_indices_from(curvature)] += ridge
    root = cholesky(len(set(prompts)) * curvature, lower=True)
    draws = np.random.default_rng(seed).standard_normal((count, len(root)))
    thetas = solve_triangular(root, draws.T, lower=True, trans="T").T
    return standard.directions(thetas - thetas.mean(axis=0))


def noise(
    pairs: np.ndarray, margins: np.ndarray, prompts: Sequence[str], ridge: float, count: int, seed: int
) -> np.ndarray:
    """The prior alone: what the heads would be if no label had been read."""
    draws = np.random.default_rng(seed).standard_normal((count, pairs.shape[-1])) / np.sqrt(ridge * len(set(prompts)))
    return Standard.of(pairs.astype(np.float64)).directions(draws - draws.mean(axis=0))


KINDS: dict[str, Draw] = {"bootstrap": deviations, "posterior": posterior, "prior": noise}


if __name__ == "__main__":
    main()
