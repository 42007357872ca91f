"""trl.DPOTrainer for pairs that do not all count alike (`rlhf.align.preferences.losses`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf.align.config.labelled import IMITATION, DPOConfig
from rlhf.align.preferences.labelled import Labelled
from rlhf.align.preferences.losses import Batch, imitation_loss, weighted_loss
from trueup.data.records import Preference
from trueup.files import Json
from trueup.training.pairs import weights

COLUMNS = ("weights", "offsets", "is_tie")
"""What a row says besides TRL's columns."""
PLAIN_GRADE = 2
"""Better: between slightly and much better. What nobody graded counts as this."""


def columns_of(config: DPOConfig, labelled: Labelled, weight_of: Mapping[str, float]) -> list[dict[str, float | bool]]:
    """The columns of each pair to train on, strict ones first. Weights are scaled to 1 on average.

    weight_of  the weight of each annotator's labels; empty: all count alike
    """
    pairs = [*labelled.train, *labelled.ties]
    shares = weights(pairs) if config.pair_weight == "per_label" else [1.0] * len(pairs)
    unscaled = [
        share * _grade_weight(config, pair) * weight_of.get(pair.annotator, 1.0)
        for share, pair in zip(shares, pairs, strict=True)
    ]
    mean = sum(unscaled) / len(unscaled)
    return [
        {"weights": weight / mean, "offsets": _offset(config, pair), "is_tie": i >= len(labelled.train)}
        for i, (pair, weight) in enumerate(zip(pairs, unscaled, strict=True))
    ]


def _grade_weight(config: DPOConfig, pair: Preference) -> float:
    return (pair.strength or PLAIN_GRADE) / PLAIN_GRADE if config.grades == "weight" else 1.0


def _offset(config: DPOConfig, pair: Preference) -> float:
    """The logarithm of the grade: 0 for slightly better and for what nobody graded."""
    return float(torch.tensor(pair.strength or 1.0).log()) if config.grades == "offset" else 0.0


def with_columns(collate: Any) -> Any:
    """TRL's collator, which knows its own columns alone, with ours beside them."""

    def collated(examples: list[Json]) -> Json:
        return {**collate(examples), **{name: torch.tensor([row[name] for row in examples]) for name in COLUMNS}}

    return collated


def with_own_loss(trainer: Any, config: DPOConfig) -> Any:
    """A subclass of `trainer`, a trl.DPOTrainer, whose rows have our columns and whose loss obeys them.

    TRL's own method still computes its figures, from the outputs of the same forward pass; of its loss nothing is used.
    """

    class OwnLossTrainer(trainer):
        pass_weight = 1.0  # see trueup.training.batches

        def __init__(self, *args: Any, **keys: Any):
            super().__init__(*args, **keys)
            self.data_collator: Any = with_columns(self.data_collator)

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns: list[str] = list(dict.fromkeys([*self._signature_columns, *COLUMNS]))

        def _compute_loss(self, model: Any, inputs: Json, return_outputs: bool) -> Any:
            outputs: list[Any] = []

            def recorded(**keys: Any) -> Any:
                outputs.append(model(**keys))
                return outputs[-1]

            its_own = {key: value for key, value in inputs.items() if key not in COLUMNS}
            super()._compute_loss(recorded, its_own, False)
            logps = outputs[0].log_probs[:, -(inputs["input_ids"].size(1) - 1) :].sum(dim=1)
            batch, chosen_logps = batch_of(inputs, logps)
            loss = self._weighed(batch, chosen_logps)
            metrics = self._metrics["train" if self.model.training else "eval"]
            at_reference = self._weighed(batch.at_reference(), chosen_logps).detach()
            weighed = self.pass_weight * at_reference
            metrics["loss/at_reference"].append(self.accelerator.gather(weighed).mean().item())
            self._tell_of_strict(batch, metrics)
            if self.aux_loss_enabled:
                loss = loss + self.router_aux_loss_coef * outputs[0].aux_loss
            return (loss, outputs[0]) if return_outputs else loss

        def _weighed(self, batch: Batch, chosen_logps: Tensor) -> Tensor:
            """The losses of the config, mixed by their weights."""
            davidson = config.ties == "davidson"
            losses = [
                imitation_loss(batch, chosen_logps)
                if name == IMITATION
                else weighted_loss(batch, name, self.beta, float(config.label_smoothing), davidson)
                for name in config.losses
            ]
            mix = torch.tensor(list(config.losses.values()), device=chosen_logps.device)
            return (mix * torch.stack(losses)).sum()

        def _tell_of_strict(self, batch: Batch, metrics: dict[str, list[float]]) -> None:
            """Rewards of the strict pairs in place of those of all: a tie has no chosen answer."""
            strict = ~batch.is_tie
            chosen, rejected = self.beta * batch.chosen.detach(), self.beta * batch.rejected.detach()
            figures = {
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": (chosen > rejected).float(),
            }
            sums = torch.stack([strict.sum().float(), *((values * strict).sum() for values in figures.values())])
            count, *totals = self.accelerator.gather(sums[None]).sum(dim=0).tolist()
            for name, total in zip(figures, totals, strict=True):
                metrics[name].pop()
                if count:
                    metrics[name].append(total / count)
                elif not metrics[name]:
                    del metrics[name]

    return OwnLossTrainer


def batch_of(inputs: dict[str, Tensor], logps: Tensor) -> tuple[Batch, Tensor]:
    """The pairs of a batch of TRL's collator, and log pi of their chosen answers.

    logps  (2n,), log pi of the chosen answers and then of the rejected ones
    """
    chosen, rejected = logps.chunk(2)
    chosen_tokens, rejected_tokens = inputs["completion_mask"].sum(dim=1).chunk(2)
    batch = Batch(
        chosen=chosen - inputs["ref_chosen_logps"],
        rejected=rejected - inputs["ref_rejected_logps"],
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        is_tie=inputs["is_tie"],
        offsets=inputs["offsets"],
        weights=inputs["weights"],
    )
    return batch, chosen
