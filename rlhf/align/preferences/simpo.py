"""SimPO: an answer's reward is its own log-probability per token, and there is no reference in the loss.

Reads   labels/preferences.jsonl and ideals.jsonl, and the policy that it starts from: sft/model, or the last round's.
Writes  align/: what `rlhf.align.preferences.dpo` writes.
Source  Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6; trained by trl.experimental.cpo.CPOTrainer.

With r = log pi(y) / |y|, the loss of a pair is -log sigmoid(beta (r(chosen) - r(rejected)) - target_margin). So at step
0 it is what the own log-probabilities of the policy at the start make of it; the stage stops if it is not. What is
told of the training is told against that policy, as of DPO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.align.config.labelled import SimPOConfig
from rlhf.align.preferences.labelled import encode_labelled
from rlhf.align.preferences.learning import (
    chosen_fell,
    first_and_last,
    heldout_accuracy,
    learning_doubts,
    logps_change,
    resolve_schedule,
)
from rlhf.align.preferences.reference import StartsAtReference, compute_reference_logps
from rlhf.align.schema import SimPOReport
from trueup import runs
from trueup.artifacts.reports import Schedule
from trueup.console import say
from trueup.data.records import Preference
from trueup.errors import DataError
from trueup.files import Json
from trueup.models import loading
from trueup.models.chat import IGNORED
from trueup.runs import StageRun
from trueup.training import adapters, batches, loop
from trueup.training.arguments import build_arguments, trainer_arguments
from trueup.training.merging import merged
from trueup.training.pairs import EncodedPair, read_pairs


def run(config: SimPOConfig) -> Path:
    stage = runs.begin(config)
    start, label = stage.parents

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    pairs = read_pairs(label, config)
    stage.leave_out_near(pairs.near_duplicates, "labelled prompts")

    # 2. Policy, and what it says of the pairs before training --------------------------------------------------------
    policy = loading.load_policy(start.dir / "model", config.model, master_weights=config.full_finetuning)
    labelled = encode_labelled(config, stage, policy, pairs, [])
    train, rows = with_tokens(stage, labelled.train, labelled.rows)
    config = resolve_schedule(config, len(rows), "pairs")
    start_logps = compute_reference_logps(policy, start, train, rows)
    heldout, heldout_rows = labelled.heldout, labelled.heldout_rows
    heldout_logps = compute_reference_logps(policy, start, heldout, heldout_rows) if heldout else []

    # 3. Train --------------------------------------------------------------------------------------------------------
    trainer = build_trainer(config, stage, policy, rows, start_logps)
    loop.train(trainer, stage)
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    policy.model = adapters.under_adapter(trainer.model)  # before the merge, as in DPO
    accuracy = heldout_accuracy(policy, heldout, heldout_rows, heldout_logps)
    policy.model = merged(trainer.model, stage, [row.prompt_ids + row.chosen_ids for row in rows])
    loop.require_sound(policy.model, "align, merging the adapter", every=True)

    # 4. What changed -------------------------------------------------------------------------------------------------
    first, last = first_and_last(trainer.state.log_history)
    change = logps_change(last, config.beta)
    if change:
        for completion, nats in change:
            say(f"{f'log pi({completion})':<20} {nats:+8.2f} nats against {config.start_title}, at the end")
        stage.findings += chosen_fell(-change.chosen)
    if config.learning_rate:  # at 0 it is a control
        stage.findings += learning_doubts(change.margin if change else None, accuracy)

    # 5. Save ---------------------------------------------------------------------------------------------------------
    stage.write_report(
        SimPOReport(
            algorithm="simpo",
            pairs=len(rows),
            ties_left_out=pairs.ties_passed_over + len(pairs.ties),
            ideal_pairs=sum(pair.ideal for pair in train),
            first=first,
            last=last,
            logps_change_nats=change,
            margin_nats=change.margin if change else None,
            heldout_accuracy=accuracy.estimate() if accuracy else None,
            schedule=Schedule.model_validate({key: getattr(config, key) for key in Schedule.model_fields}),
        )
    )
    loading.save(policy, stage.dir / "model")
    stage.facts.update(policy.placement.facts)
    return stage.finish()


def with_tokens(
    stage: StageRun, pairs: list[Preference], rows: list[EncodedPair]
) -> tuple[list[Preference], list[EncodedPair]]:
    """The pairs whose answers both have tokens: of an answer that is empty and unfinished there is no mean."""
    kept = [i for i, row in enumerate(rows) if row.chosen_ids and row.rejected_ids]
    if empty := len(rows) - len(kept):
        stage.find("warn", "empty_answers", f"{empty} pairs are not trained on: one of their answers has no token")
    if not kept:
        raise DataError(f"no pair is left to train on: in all {len(rows)} one answer has no token")
    return [pairs[i] for i in kept], [rows[i] for i in kept]


def build_trainer(
    config: SimPOConfig,
    stage: StageRun,
    policy: loading.Loaded,
    rows: list[EncodedPair],
    start_logps: list[tuple[float, float]],
) -> Any:
    """trl.experimental.cpo.CPOTrainer over pairs in tokens, with the starting policy's log-probabilities."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    class TokenisedCPOTrainer(CPOTrainer):
        """TRL 1.16 tokenises every dataset itself, and puts a second EOS behind an answer that ends with one."""

        pass_weight = 1.0  # see trueup.training.batches

        def tokenize_row(self, *_: Any, **__: Any) -> Json:
            return {}

        def cpo_loss(self, chosen: Tensor, rejected: Tensor) -> Any:
            self.means = chosen.detach(), rejected.detach()
            return super().cpo_loss(chosen, rejected)

        def get_batch_loss_metrics(self, model: Any, batch: Json, train_eval: Any = "train") -> Any:
            """TRL's loss, and figures against the start, in beta times nats as DPO's are."""
            loss, figures = super().get_batch_loss_metrics(model, batch, train_eval)
            lengths = [(batch[f"{side}_labels"] != IGNORED).sum(dim=1) for side in SIDES]
            starts = [batch[f"ref_{side}_logps"].to(loss.device) for side in SIDES]
            chosen, rejected = (
                self.beta * (mean * length - start)
                for mean, length, start in zip(self.means, lengths, starts, strict=True)
            )
            gap = starts[0] / lengths[0] - starts[1] / lengths[1]
            ours = {
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": (chosen > rejected).float(),
                "loss/at_reference": -logsigmoid(self.beta * gap - config.target_margin),
            }
            means = {name: self.pass_weight * values.mean() for name, values in ours.items()}
            return loss, figures | {name: self.accelerator.gather(mean).mean().item() for name, mean in means.items()}

    arguments = trainer_arguments(config, stage, policy, [2 * row.longest for row in rows])
    arguments |= {"beta": config.beta, "loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": config.target_margin}
    trainer = batches.grouped_by_length(TokenisedCPOTrainer, config, [row.longest for row in rows])(
        model=policy.model,
        args=build_arguments(CPOConfig, arguments | {"remove_unused_columns": False}, config),
        train_dataset=Dataset.from_list([columns_of(*pair) for pair in zip(rows, start_logps, strict=True)]),
        processing_class=policy.tokenizer,
        peft_config=adapters.adapter(config, policy.model, TaskType.CAUSAL_LM),
    )
    adapters.keep_adapter_dropout(trainer.model, config.lora.lora_dropout)
    is_rounded = policy.placement.dtype != torch.float32
    trainer.add_callback(StartsAtReference(lambda logs: logs["loss/at_reference"], config.beta, is_rounded))
    trainer.add_callback(adapters.KeepSteps(stage, config.keep_steps))
    return trainer


SIDES = ("chosen", "rejected")


def columns_of(row: EncodedPair, start_logps: tuple[float, float]) -> Json:
    """A row as TRL's collator takes it. Its texts are empty: only their presence is asked for."""
    columns: Json = {"prompt": "", "prompt_input_ids": row.prompt_ids}
    columns["prompt_attention_mask"] = [1] * len(row.prompt_ids)
    for side, ids, logp in zip(SIDES, (row.chosen_ids, row.rejected_ids), start_logps, strict=True):
        columns |= {
            side: "",
            f"{side}_input_ids": row.prompt_ids + ids,
            f"{side}_attention_mask": [1] * len(row.prompt_ids + ids),
            f"{side}_labels": [IGNORED] * len(row.prompt_ids) + ids,
            f"ref_{side}_logps": logp,
        }
    return columns


def trial(config: SimPOConfig, stage: StageRun, policy: loading.Loaded) -> Any:
    """The trainer over a pair that stands for all (`trueup.training.trial`)."""
    return build_trainer(resolve_schedule(config, 1), stage, policy, [EncodedPair([0], [0, 0], [0])], [(0.0, 0.0)])
