"""Does what SFT teaches carry over to kinds of tasks that it left out (`sft.leave_out`)?

The base model and the SFT policy read the same demonstrations that nothing trained on: those that are held out, and of
the kinds that were left out all. A demonstration's score is its loss per token that carries loss, and the change is the
mean of the paired differences, with an interval over prompts. Tasks by kind, some of them unseen: Wei et al. 2022,
https://arxiv.org/abs/2109.01652, section 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sft.config import SFTConfig
from sft.data import Data
from sft.report import KindLoss, LossByKind
from trueup.console import say
from trueup.models.chat import IGNORED, Encoded
from trueup.runs import StageRun
from trueup.statistics.intervals import bootstrap_mean

_SCORED = 32
"""Most demonstrations of a kind that are read."""
SEEN, UNSEEN = "kinds that were trained on", "kinds that were left out"


def scored(data: Data, config: SFTConfig) -> dict[str, np.ndarray]:
    """Demonstrations of each kind to read before and after, by its name; none if no kind is left out."""
    if not config.leave_out:
        return {}
    codes, names = data.tokens.categories
    parts = np.concatenate([data.heldout, data.left_out])
    drawn = random.Random(config.seed)
    by_kind = {name: parts[codes[parts] == code].tolist() for code, name in enumerate(names)}
    return {
        name: np.array(sorted(drawn.sample(of_kind, min(len(of_kind), _SCORED))), dtype=np.int64)
        for name, of_kind in sorted(by_kind.items())
        if of_kind
    }


def losses(model: Any, data: Data, parts: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Nats per token that carries loss, of each demonstration."""
    model.eval()
    return {
        name: [loss(model, list(data.tokens.training_rows(of_kind[i : i + 1]))) for i in range(len(of_kind))]
        for name, of_kind in parts.items()
    }


@torch.inference_mode()
def loss(model: Any, rows: Sequence[Encoded]) -> float:
    """Of the training rows of one demonstration."""
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([values], device=model.device) for values in (row.input_ids, row.labels))
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="sum"))
        count += int((labels[0, 1:] != IGNORED).sum())
    return total / count


def compared(
    stage: StageRun,
    data: Data,
    parts: dict[str, np.ndarray],
    before: dict[str, list[float]],
    after: dict[str, list[float]],
    config: SFTConfig,
) -> LossByKind | None:
    """The losses of each kind and of all that were trained on or left out; None if no kind is left out."""
    if not parts:
        return None

    def of(kinds: Sequence[str]) -> KindLoss | None:
        pairs = [
            (one, *both) for kind in kinds for one, *both in zip(parts[kind], before[kind], after[kind], strict=True)
        ]
        if not pairs:
            return None
        changes: dict[int, list[float]] = {}
        for part, base, policy in pairs:
            changes.setdefault(int(data.tokens.openings[part]), []).append(policy - base)
        change = bootstrap_mean(list(changes.values()), seed=config.seed, bounds=None)
        bounds = [float(bound) if np.isfinite(bound) else None for bound in (change.low, change.high)]
        return KindLoss(
            before=float(np.mean([base for _, base, _ in pairs])),
            after=float(np.mean([policy for *_, policy in pairs])),
            value=change.value,
            ci_low=bounds[0],
            ci_high=bounds[1],
            n=len(changes),
            demonstrations=len(pairs),
        )

    names = {
        SEEN: [kind for kind in parts if kind not in config.leave_out],
        UNSEEN: [kind for kind in parts if kind in config.leave_out],
    }
    kinds = LossByKind(
        left_out=list(config.leave_out),
        by_kind={kind: one for kind in parts if (one := of([kind]))},
        seen=of(names[SEEN]),
        unseen=of(names[UNSEEN]),
    )
    for what, whole in ((SEEN, kinds.seen), (UNSEEN, kinds.unseen)):
        if whole:
            text = f"{what} ({', '.join(names[what])}): {in_words(whole)}"
            say(f"{'kinds':<12} {text}")
            stage.find("info", "kinds", text)
    return kinds


def in_words(one: KindLoss) -> str:
    interval = "" if one.ci_low is None or one.ci_high is None else f" [{one.ci_low:+.3f}, {one.ci_high:+.3f}]"
    return (
        f"loss {one.before:.3f} before, {one.after:.3f} after, change {one.value:+.3f}{interval} nats a token on "
        f"{one.demonstrations} demonstrations that nothing trained on"
    )
