"""trl.RewardTrainer over labels: rankings kept whole, grades, ties, and answers that were found bad."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from reward.comparisons import Collator, LabelRow
from reward.config import RewardConfig
from reward.loss import preference_loss, threshold_of
from trueup.console import say
from trueup.models import loading
from trueup.models.heads import Pooling, pooling_of, read_scores
from trueup.runs import StageRun
from trueup.training import adapters, batches
from trueup.training.arguments import build_arguments, trainer_arguments

_THRESHOLD = "log_threshold"
"""Name of the parameter that the head has while it learns from ties, so that checkpoints hold it."""
_THRESHOLD_RATE = 100.0
"""Learning rate of its logarithm as a multiple of the model's: one number has further to go than a million."""
_MOST_TIES = 0.95
"""Share of ties from which the threshold starts at most, since at 1 it would be infinite."""


def trainer_class(config: RewardConfig, columns: Sequence[str], pooling: Pooling) -> Any:
    """A subclass of trl.RewardTrainer whose rows are labels with these columns.

    pooling  where the model's head reads
    """
    from trl import RewardTrainer

    class LabelTrainer(RewardTrainer):
        """TRL 1.16 reads pairs of texts, each by itself, and knows neither ties nor rankings."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = list(columns)

        def create_optimizer(self, *args: Any) -> Any:
            is_new, optimizer = self.optimizer is None, super().create_optimizer(*args)
            threshold = threshold_parameter(self.model)
            if is_new and threshold is not None:
                for group in optimizer.param_groups:
                    group["params"] = [weight for weight in group["params"] if weight is not threshold]
                rate = _THRESHOLD_RATE * self.args.learning_rate
                optimizer.add_param_group({"params": [threshold], "lr": rate, "weight_decay": 0.0})
            return optimizer

        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
            names = ("contrasts", "weights", "margins", "ties", "rows")
            contrasts, weights, margins, ties, count = (inputs.pop(name) for name in names)
            answer_mask = inputs.pop("answer_mask")
            where = {} if pooling == "last token" else {"answer_mask": answer_mask}
            scores = model(**inputs, **where, use_cache=False).logits.squeeze(-1).float()  # (N,)
            gaps = contrasts @ scores
            log_threshold = threshold_parameter(self.model)
            h = None if log_threshold is None else log_threshold.exp().squeeze()
            loss = preference_loss(gaps, margins, ties, weights, h, float(config.label_smoothing)) / count
            if weight := self.args.center_rewards_coefficient:
                loss = loss + weight * (weights * (contrasts.abs() @ scores) ** 2).sum() / count
            self._note(scores.detach(), gaps.detach()[~ties], inputs["attention_mask"], h)
            return loss

        def _note(self, scores: Tensor, gaps: Tensor, mask: Tensor, threshold: Tensor | None) -> None:
            """The metrics of a forward pass on all processes, by the names of TRL. `gaps` are those of strict
            comparisons."""
            metrics, gather = self._metrics["train"], self.accelerator.gather
            self._total_train_tokens += int(gather(mask.sum()).sum())
            metrics["num_tokens"] = [self._total_train_tokens]
            extremes = gather(torch.stack([scores.min(), scores.max()])[None])
            strict = torch.tensor(float(len(gaps)), device=gaps.device)
            sums = torch.stack([scores.sum(), strict.new_tensor(len(scores)), (gaps > 0).sum(), gaps.sum(), strict])
            total, count, right, gap, strict_count = gather(sums[None]).sum(dim=0).tolist()
            metrics["min_reward"].append(extremes[:, 0].min().item())
            metrics["max_reward"].append(extremes[:, 1].max().item())
            metrics["mean_reward"].append(total / count)
            if strict_count:
                metrics["accuracy"].append(right / strict_count)
                metrics["margin"].append(gap / strict_count)
            if threshold is not None:
                metrics["tie_threshold"].append(threshold.item())

    return LabelTrainer


def build_trainer(config: RewardConfig, stage: StageRun, model: loading.Loaded, rows: Sequence[LabelRow]) -> Any:
    """trl.RewardTrainer over labels in tokens, so that an unfinished answer stays without EOS."""
    from trl import RewardConfig as TRLConfig

    if config.ties == "rao_kupper":
        add_threshold(model.model.score, rows)
    arguments = trainer_arguments(config, stage, model, [len(row.answers) * row.longest for row in rows])
    arguments["center_rewards_coefficient"] = config.center_rewards_coefficient or None
    trl_config = build_arguments(TRLConfig, arguments, config)
    if (pooling := pooling_of(model.model)) != "last token":
        read_answers(model.model)
    of_labels = trainer_class(config, list(rows[0].columns), pooling)
    trainer = batches.grouped_by_length(of_labels, config, [row.longest for row in rows])(
        model=model.model,
        args=trl_config,
        train_dataset=Dataset.from_list([row.columns for row in rows]),
        data_collator=Collator(model.tokenizer.pad_token_id, trl_config.pad_to_multiple_of),
        processing_class=model.tokenizer,
        peft_config=adapters.adapter(config, model.model, TaskType.SEQ_CLS),
    )
    adapters.keep_adapter_dropout(trainer.model, config.lora.lora_dropout)
    return trainer


def read_answers(model: Any) -> None:
    """Let `model(..., answer_mask=mask)` score what its head reads of the answers; without a mask, of all tokens.

    Through the model's own forward, since only that is seen by what wraps a model to run on several processes.
    """

    @functools.wraps(type(model).forward)  # transformers reads the signature
    def forward(self: Any, input_ids: Tensor, *_: Any, answer_mask: Tensor | None = None, **inputs: Any) -> Any:
        given = {name: value for name, value in inputs.items() if value is not None}
        hidden = self.base_model(input_ids=input_ids, **given).last_hidden_state
        mask = given.get("attention_mask", torch.ones_like(input_ids)) if answer_mask is None else answer_mask
        return SequenceClassifierOutputWithPast(logits=read_scores(self, hidden, mask.bool())[:, None])

    model.forward = types.MethodType(forward, model)


# ---- The threshold of ties --------------------------------------------------------------------------------------


def add_threshold(head: nn.Module, rows: Sequence[LabelRow]) -> None:
    """Let the head learn the threshold of ties, from the one at which all answers would be equally good. Without ties
    there is nothing to learn."""
    comparisons = [one for row in rows for one in row.comparisons]
    share = sum(one.weight for one in comparisons if one.is_tie) / sum(one.weight for one in comparisons)
    if share:
        start = threshold_of(min(share, _MOST_TIES))
        say(f"{'ties':<12} {share:.0%} of judgements; the gap that tells answers apart starts at {start:.2f}")
        head.register_parameter(_THRESHOLD, nn.Parameter(torch.tensor([start]).log()))
        head.register_forward_hook(_touch_threshold)


def _touch_threshold(head: nn.Module, args: Any, scores: Tensor) -> Tensor:
    """Let the scores depend on the threshold, by nothing. It stands in the loss, outside the model, and processes that
    train together stop at a parameter that no forward pass has used."""
    log_threshold = getattr(head, _THRESHOLD, None)
    return scores if log_threshold is None else scores + 0 * log_threshold.sum()


def threshold_parameter(model: nn.Module) -> nn.Parameter | None:
    """The logarithm of the threshold that is trained, if there is one."""
    own = (weight for name, weight in model.named_parameters() if name.endswith(_THRESHOLD) and weight.requires_grad)
    return next(own, None)


def take_threshold(model: nn.Module) -> float | None:
    """The threshold, which leaves the model: it is no part of what scores an answer."""
    log_threshold = threshold_parameter(model)
    for module in model.modules():
        module._parameters.pop(_THRESHOLD, None)
    return None if log_threshold is None else log_threshold.exp().item()
