"""The invariant of imitation at step 0: the loss is what the policy itself says of the tokens that it drew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from rlhf.align.preferences.reference import loss_of_router
from trueup.console import say
from trueup.files import Json
from trueup.models.chat import IGNORED


def with_expected_loss(trainer: Any, nats: Mapping[tuple[int, ...], float]) -> Any:
    """A subclass of `trainer`, a trl.SFTTrainer, that sums up during the first step what its loss must be.

    nats  minus log pi of the labelled tokens of each row, by its tokens, under the policy that training starts from
    """

    class Expecting(trainer):
        expected: tuple[float, float] = (0.0, 0.0)
        """Nats and labelled tokens of the first step, over all processes."""

        def compute_loss(self, model: Any, inputs: Json, *args: Any, **keys: Any) -> Any:
            if model.training and self.state.global_step == 0:
                real, labels = inputs["attention_mask"].bool(), inputs["labels"]
                rows = [tuple(ids[there].tolist()) for ids, there in zip(inputs["input_ids"], real, strict=True)]
                own = torch.tensor([[sum(nats[row] for row in rows), float((labels != IGNORED).sum())]])
                total = self.accelerator.gather(own.to(labels.device)).sum(dim=0).tolist()
                self.expected = (self.expected[0] + total[0], self.expected[1] + total[1])
            return super().compute_loss(model, inputs, *args, **keys)

    return Expecting


class StartsAtPolicy(TrainerCallback):
    """Stops a run whose first loss is not that of the policy that drew the answers: its adapter is not fresh, or other
    tokens are trained than were drawn."""

    def __init__(self, trainer: Any, rounded_weights: bool):
        """trainer  of `with_expected_loss`"""
        self.trainer, self.rounded_weights = trainer, rounded_weights

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        nats, tokens = self.trainer.expected
        if state.global_step != 1 or "loss" not in (logs or {}) or not tokens:
            return
        loss, expected = logs["loss"] - loss_of_router(model, logs), nats / tokens
        tolerance = 0.05 if args.bf16 or self.rounded_weights else 1e-3
        figures = f"loss {loss:.4f} (expected {expected:.4f}, what the policy says of its own answers)"
        if abs(loss - expected) > tolerance * max(1, expected):
            raise AssertionError(f"at step 0 the policy is not the one that drew the answers: {figures}")
        say(f"{'step 0':<12} {figures}: policy is the one that answered")
