"""An ensemble of heads on one trunk: they agree where the labels settle what is better, and differ elsewhere.

The trained head is one of many that the labels allow. Over the hidden states that it reads, the likelihood of the
labels and the ridge of the probe make a posterior of heads; near the trained one it is about normal, and the heads are
draws from it. So they differ most along what no labelled pair has shown. Heads that were fitted to resampled labels
would all be 0 there, and agree on answers unlike any that was labelled.

Their deviations are centred: the mean of the heads is the trained head, and the saved model scores as it would alone.
They are in its units, since the curvature is that of the loss at its own margins. Nothing is known here about the
trunk: what its hidden states do not tell apart, no head does, and what deceives it deceives all of them (Eisenstein
et al. 2023, https://arxiv.org/abs/2312.09244).

Source  Laplace approximation: MacKay 1992, https://doi.org/10.1162/neco.1992.4.3.448; of the last layer alone:
        Daxberger et al. 2021, https://arxiv.org/abs/2106.14806; of a reward model: Yang et al. 2024,
        https://arxiv.org/abs/2402.13210, and from its last hidden states Zhang et al. 2024,
        https://arxiv.org/abs/2403.05171.

Shapes: N pairs, H hidden units, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular

from reward.comparisons import Encoded
from reward.hidden import Place, read_features
from reward.probe import Standard, best_ridge, pairs_to_read, prompt_weights
from reward.start import KnownPairs
from trueup.console import say
from trueup.models.heads import pooling_of, set_ensemble
from trueup.models.loading import Loaded
from trueup.statistics.length_control import sigmoid


def add_heads(model: Loaded, pairs: Sequence[Encoded], known: KnownPairs, count: int, seed: int) -> None:
    """Give a trained reward model `count` heads.

    pairs  the strict training pairs
    known  hidden states before training, of which the ridge is chosen: training has seen the labels
    """
    layers = model.model.config.get_text_config().num_hidden_layers
    place = Place(layers, pooling_of(model.model))
    ridge = best_ridge(known.features[place], known.prompts, seed)
    prompts = [pair.prompt_id for pair, _ in pairs]
    read = pairs_to_read(prompts, seed)
    features = read_features(model, [pairs[i][1] for i in read], [layers])[place]
    head = next(model.model.score.parameters())
    with torch.inference_mode():
        scores = model.model.score(torch.from_numpy(features).to(head)).squeeze(-1).float().cpu().numpy()
    margins = scores[:, 0] - scores[:, 1]
    heads = deviations(features, margins, [prompts[i] for i in read], ridge, count, seed, len(set(prompts)))
    by_head = margins[:, None] + (features[:, 0] - features[:, 1]).astype(np.float64) @ heads.T
    agree = (np.sign(by_head) == np.sign(by_head[:, :1])).all(axis=1).mean()
    say(
        f"{'ensemble':<12} {count} heads, ridge {ridge:g}; they agree on the order of {agree:.0%} of the training pairs"
    )
    set_ensemble(model.model, torch.from_numpy(heads))


def deviations(
    pairs: np.ndarray,
    margins: np.ndarray,
    prompts: Sequence[str],
    ridge: float,
    count: int,
    seed: int,
    observed: int | None = None,
) -> np.ndarray:
    """(K, H) what each of K heads has more than the trained one; they sum to 0.

    pairs    (N, 2, H) hidden states of the chosen and of the rejected answers
    margins  (N,) the trained head's
    prompts  of the N pairs; each weighs the same, and counts as one observation, however many pairs it has
    ridge    of `reward.probe.fit_directions`
    observed  number of prompts that the head learnt from, P, if these pairs are of some of them only

    Drawn from N(0, inverse of P (sum_n w_n p_n (1 - p_n) x_n x_n^T + ridge I)) over standardised differences x_n, with
    p_n = sigmoid(margin_n) and P prompts: the curvature of P times the loss that a probe minimises.
    """
    pairs = pairs.astype(np.float64)
    standard = Standard.of(pairs)
    weights = prompt_weights(prompts) * sigmoid(margins) * sigmoid(-margins)
    differences = standard.differences(pairs) * np.sqrt(weights)[:, None]
    curvature = differences.T @ differences
    curvature[np.diag_indices_from(curvature)] += ridge
    root = cholesky((observed or len(set(prompts))) * curvature, lower=True)
    draws = np.random.default_rng(seed).standard_normal((count, len(root)))
    thetas = solve_triangular(root, draws.T, lower=True, trans="T").T
    return standard.directions(thetas - thetas.mean(axis=0))
