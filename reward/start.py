"""The start of a reward model whose head is a probe, and the choice between it and what training makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from reward.hidden import Features
from reward.probe import fit_probe, folds_of_prompts, prompt_weights
from trueup.console import say
from trueup.models.loading import Loaded
from trueup.models.scoring import Reading, score_readings
from trueup.training.pairs import EncodedPair


def start_at_probe(model: Loaded, features: Features, prompts: Sequence[str], seed: int) -> None:
    """Let the head be the probe of what it reads: the last token behind all layers.

    The best probe may read elsewhere. But a saved reward model must score alike in plain transformers, whose head reads
    there alone. Its scores are 0 on average over the answers of the N pairs.

    features, prompts  of the pairs
    """
    place = max(place for place in features if place.pooling == "last token")
    probe = fit_probe({place: features[place]}, prompts, seed)
    say(f"{'start':<12} the head is a probe: {probe.reason}")
    with torch.no_grad():
        head = model.model.score.weight
        head.copy_(torch.as_tensor(probe.direction, dtype=head.dtype)[None])


class Kept(NamedTuple):
    """Pairs of prompts that training does not see, which decide whether it helped."""

    rows: list[EncodedPair]
    prompts: list[str]
    loss_at_start: float

    @classmethod
    def of(cls, start: Loaded, rows: list[EncodedPair], prompts: list[str]) -> Kept:
        return cls(rows, prompts, pair_loss(start, rows, prompts))

    def favours_training(self, model: Loaded) -> bool:
        """Whether the trained model has the smaller loss on these pairs; printed with both."""
        loss, start = pair_loss(model, self.rows, self.prompts), self.loss_at_start
        count = len(set(self.prompts))
        kept = "the trained model is kept" if loss < start else "the probe is kept, fitted to all training pairs"
        say(
            f"{'choice':<12} loss on {count} training prompts kept for it: {loss:.3f}, of the probe {start:.3f}: {kept}"
        )
        return loss < start


def kept_for_choice(prompts: Sequence[str], seed: int) -> np.ndarray:
    """(N,) whether a pair is kept for the choice: one fold of the prompts. All are where there is one prompt alone."""
    return folds_of_prompts(prompts, seed) == 0


def pair_loss(model: Loaded, rows: Sequence[EncodedPair], prompts: Sequence[str]) -> float:
    """The mean of -log sigmoid(r(chosen) - r(rejected)), in which each prompt weighs the same."""
    answers = [Reading(tuple(row.prompt_ids), tuple(ids)) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    scores = np.array(score_readings(model, answers)).reshape(-1, 2)
    return float(prompt_weights(prompts) @ np.logaddexp(0, scores[:, 1] - scores[:, 0]))
