"""Direct preference optimisation: fit the policy to chosen/rejected pairs, held near the reference by beta.

Reads   labels/preferences.jsonl, ties.jsonl and ideals.jsonl, and sft/model (or the last round's align/model, see
        `align.start`): policy and reference both start from it.
Writes  align/: model/ (adapter merged), adapter/ and steps/step-N/ (relative to the reference), metrics.jsonl,
        report.json (with the accuracy on held-out pairs), manifest.json.
Source  Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; trained by trl.DPOTrainer.

The reference is the policy at the start: the model under the adapter, with the adapter off. Its log-probabilities are
known from sampling, or computed once before training. At step 0 policy and reference are one, so margins must be 0 and
the loss what the table `LOSSES` says (ln 2 for `sigmoid`); the stage stops if they are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType

from rlhf.align.config.labelled import IMITATION, LOSSES, DPOConfig
from rlhf.align.preferences.labelled import Labelled, encode_labelled
from rlhf.align.preferences.learning import (
    chosen_fell,
    first_and_last,
    heldout_accuracy,
    learning_doubts,
    logps_change,
    resolve_auto,
)
from rlhf.align.preferences.reference import StartsAtReference, compute_reference_logps
from rlhf.align.preferences.trainer import columns_of, with_own_loss
from rlhf.align.schema import DPOReport
from trueup import runs
from trueup.artifacts.reports import Schedule
from trueup.console import say
from trueup.models import loading
from trueup.runs import Finding, StageRun
from trueup.training import adapters, batches, loop
from trueup.training.annotators import resolve_smoothing
from trueup.training.arguments import build_arguments, trainer_arguments
from trueup.training.merging import merged
from trueup.training.pairs import EncodedPair, read_pairs


def run(config: DPOConfig) -> Path:
    stage = runs.begin(config)
    start, label = stage.parents

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    pairs = read_pairs(label, config)
    stage.leave_out_near(pairs.near_duplicates, "labelled prompts")
    config = resolve_smoothing(config, label)

    # 2. Policy and reference -----------------------------------------------------------------------------------------
    policy = loading.load_policy(start.dir / "model", config.model, master_weights=config.full_finetuning)
    labelled = encode_labelled(config, stage, policy, pairs, [] if config.ties == "leave_out" else pairs.ties)
    stage.findings += unheard(config, labelled)
    train, rows = labelled.train + labelled.ties, labelled.rows + labelled.tied_rows
    config = resolve_auto(config, len(rows))
    reference_logps = compute_reference_logps(policy, start, train, rows)
    heldout, heldout_rows = labelled.heldout, labelled.heldout_rows
    heldout_logps = compute_reference_logps(policy, start, heldout, heldout_rows) if heldout else []

    # 3. Train --------------------------------------------------------------------------------------------------------
    with loop.scored_completions_only():
        trainer = build_trainer(
            config, stage, policy, rows, reference_logps, columns_of(config, labelled, pairs.weight_of)
        )
        loop.train(trainer, stage)
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    # Before the merge, in the precision of the reference and on its device: merged weights are float32, and may be on
    # the CPU where a GPU has no room for them.
    policy.model = adapters.under_adapter(trainer.model)
    accuracy = heldout_accuracy(policy, heldout, heldout_rows, heldout_logps)
    policy.model = merged(trainer.model, stage, [row.prompt_ids + row.chosen_ids for row in rows])
    loop.require_sound(policy.model, "align, merging the adapter", every=True)

    # 4. What changed -------------------------------------------------------------------------------------------------
    first, last = first_and_last(trainer.state.log_history)
    # Against the reference, not against the first batches, whose answers are longer or shorter than those of the last.
    change = logps_change(last, float(config.beta))
    margin = change.margin if change else None
    if change:
        for name in ("rewards/margins", "rewards/accuracies"):
            say(f"{name:<20} {first[name]:8.2f} -> {last[name]:8.2f}")
        for completion, nats in change:
            say(f"{f'log pi({completion})':<20} {nats:+8.2f} nats against the reference, at the end")
        if "apo_down" not in config.losses:  # which means them to fall
            stage.findings += chosen_fell(-change.chosen)
    if config.learning_rate:  # at 0 it is a control
        stage.findings += learning_doubts(margin, accuracy)

    # 5. Save ---------------------------------------------------------------------------------------------------------
    stage.write_report(
        DPOReport(
            algorithm="dpo",
            pairs=len(labelled.rows),
            ties=len(labelled.ties),
            label_smoothing=float(config.label_smoothing) or None,
            annotator_weights=pairs.weight_of or None,
            ties_left_out=pairs.ties_passed_over + len(pairs.ties) - len(labelled.ties),
            ideal_pairs=sum(pair.ideal for pair in labelled.train),
            first=first,
            last=last,
            logps_change_nats=change,
            margin_nats=margin,
            heldout_accuracy=accuracy.estimate() if accuracy else None,
            schedule=Schedule.model_validate({key: getattr(config, key) for key in Schedule.model_fields}),
        )
    )
    loading.save(policy, stage.dir / "model")
    stage.facts.update(policy.placement.facts)
    return stage.finish()


def unheard(config: DPOConfig, labelled: Labelled) -> list[Finding]:
    """A warning for each key that asks for what no label has."""
    missing = {
        f"grades: {config.grades}": config.grades != "leave_out" and not any(pair.strength for pair in labelled.train),
        f"ties: {config.ties}": config.ties != "leave_out" and not labelled.ties,
    }
    return [
        Finding("warn", f"no_{key.partition(':')[0]}", f"align.{key} changes nothing: no label to train on has any")
        for key, is_missing in missing.items()
        if is_missing
    ]


def build_trainer(
    config: DPOConfig,
    stage: StageRun,
    policy: loading.Loaded,
    rows: list[EncodedPair],
    reference_logps: list[tuple[float, float]],
    columns: list[dict[str, float | bool]],
) -> Any:
    """trl.DPOTrainer over pairs that are tokens already, with the reference's log-probabilities beside them.

    columns  how each pair counts (`rlhf.align.preferences.trainer.columns_of`), where pairs do not all count alike
    """
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        """TRL 1.16 tokenises every dataset itself, and so ends every answer with EOS, finished or not."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    dataset = [
        {**vars(row), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(rows, reference_logps, strict=True)
    ]

    trainer_class: Any = TokenisedDPOTrainer
    if config.weighs:
        dataset = [{**row, **its_columns} for row, its_columns in zip(dataset, columns, strict=True)]
        trainer_class = with_own_loss(TokenisedDPOTrainer, config)
    arguments = trainer_arguments(config, stage, policy, [2 * row.longest for row in rows])
    arguments |= {
        "beta": config.beta,
        "loss_type": ["robust" if config.label_smoothing and name == "sigmoid" else name for name in config.losses],
        "loss_weights": list(config.losses.values()),
        "label_smoothing": float(config.label_smoothing),
        "precompute_ref_log_probs": True,
    }
    trainer = batches.grouped_by_length(trainer_class, config, [row.longest for row in rows])(
        model=policy.model,
        args=build_arguments(TRLConfig, arguments, config),
        train_dataset=Dataset.from_list(dataset),
        processing_class=policy.tokenizer,
        peft_config=adapters.adapter(config, policy.model, TaskType.CAUSAL_LM),
    )
    if "sigmoid" in config.losses:
        trainer.label_smoothing = as_robust(float(config.label_smoothing))
    adapters.keep_adapter_dropout(trainer.model, config.lora.lora_dropout)
    expected = loss_at_reference(config)
    starts = StartsAtReference(
        lambda logs: logs.get("loss/at_reference", expected),
        float(config.beta),
        policy.placement.dtype != torch.float32,
    )
    trainer.add_callback(starts)
    trainer.add_callback(adapters.KeepSteps(stage, config.keep_steps))
    return trainer


def as_robust(smoothing: float) -> float:
    """The smoothing at which TRL's `robust` loss is cDPO's, which TRL's `sigmoid` leaves out.

    With x = beta times the margin and L = -log sigmoid, and since L(-x) = L(x) + x,
        cDPO    (1 - e) L(x) + e L(-x)              = L(x) + e x
        robust  ((1 - s) L(x) - s L(-x)) / (1 - 2s) = L(x) - s x / (1 - 2s)
    which are equal at s = -e / (1 - 2e).
    """
    return -smoothing / (1 - 2 * smoothing)


def trial(config: DPOConfig, stage: StageRun, policy: loading.Loaded) -> Any:
    """The trainer over a pair that stands for all (`trueup.training.trial`)."""
    from trl.trainer import dpo_trainer

    original = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""  # names a cache of the reference by weights, which are not there
    try:
        columns = [{"weights": 1.0, "offsets": 0.0, "is_tie": False}]
        rows = [EncodedPair([0], [0, 0], [0])]
        if config.label_smoothing == "measured":
            config = config.model_copy(update={"label_smoothing": 0.1})  # stands for what will be measured
        return build_trainer(resolve_auto(config, 1), stage, policy, rows, [(0.0, 0.0)], columns)
    finally:
        dpo_trainer.hash_module = original


def loss_at_reference(config: DPOConfig) -> float | None:
    """The loss as long as the policy is the reference; None where it hangs on the answers: imitation has their
    log-probability, and `use_weighting` multiplies each pair's loss by a likelihood."""
    if IMITATION in config.losses or config.trainer_args.get("use_weighting"):
        return None
    return sum(weight * LOSSES[name].at_reference(float(config.beta)) for name, weight in config.losses.items())
