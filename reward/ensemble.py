"""An ensemble of heads on one trunk: they agree where the labels settle what is better, and differ elsewhere.

Other labels would have trained another head. So each head is fitted to the labels of prompts that are drawn with
replacement, over the hidden states that the trained head reads, with the ridge of the probe. The heads differ where few
prompts decide, or where prompts contradict each other.

A fit is larger or smaller than the trained head, which may have any temperature; so each is brought to its scale, and a
spread is in the units of the scores. The deviations are centred: the mean of the heads is the trained head, and the
saved model scores as it would alone. Along what no labelled pair has shown every fit is 0, and the heads agree there.
Nothing is known here about the trunk: what its hidden states do not tell apart, no head does, and what deceives it
deceives all of them (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244).

Source  bootstrap: Efron 1979, https://doi.org/10.1214/aos/1176344552; of heads on one trunk: Osband et al. 2016,
        https://arxiv.org/abs/1602.04621; clusters (here prompts) are drawn whole: Field and Welsh 2007,
        https://doi.org/10.1111/j.1467-9868.2007.00593.x.

Shapes: N pairs, H hidden units, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reward.comparisons import Encoded
from reward.hidden import Place, read_features
from reward.probe import best_ridge, fit_directions, pairs_to_read, prompt_weights
from reward.start import KnownPairs
from trueup.console import say
from trueup.models.heads import pooling_of, set_ensemble
from trueup.models.loading import Loaded


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
    prompts  of the N pairs; each weighs the same, however many pairs it has, and is drawn with all of them
    ridge    of `reward.probe.fit_directions`
    observed  number of prompts that the head learnt from, if these pairs are of some of them only: a fit to more varies
              less, as the inverse of their root

    Each fit is brought to the root mean square of the trained head's margins.
    """
    names, random = sorted(set(prompts)), np.random.default_rng(seed)
    weights = prompt_weights(prompts)
    place = {name: i for i, name in enumerate(names)}
    rows = np.array([place[prompt] for prompt in prompts])
    differences = (pairs[:, 0] - pairs[:, 1]).astype(np.float64)
    fits = []
    for _ in range(count):
        times = random.multinomial(len(names), np.full(len(names), 1 / len(names)))
        fit = fit_directions(pairs, weights * times[rows], [ridge])[0]
        size = _root_mean_square(differences @ fit, weights)
        fits.append(fit * (_root_mean_square(margins, weights) / size if size else 0.0))
    return (np.stack(fits) - np.mean(fits, axis=0)) * np.sqrt(len(names) / (observed or len(names)))


def _root_mean_square(margins: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sqrt(weights @ np.square(margins.astype(np.float64))))
