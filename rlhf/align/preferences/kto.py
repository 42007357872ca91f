"""Kahneman-Tversky optimisation: answers are desirable or undesirable, each by itself, held near the reference by beta.

Reads   labels/preferences.jsonl, ties.jsonl and ideals.jsonl, and sft/model (or the last round's align/model, see
        `align.start`): policy and reference both start from it.
Writes  align/: what `rlhf.align.preferences.dpo` writes.
Source  Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 7 and 8; trained by trl.KTOTrainer.

With r = log pi - log pi_ref of an answer and z its mean over answers to other prompts (at least 0, without gradient),
    desirable    w_d (1 - sigmoid(beta (r - z)))
    undesirable  w_u (1 - sigmoid(beta (z - r)))
Chosen answers are desirable, rejected ones undesirable, and so are both answers of a tie that is bad on both sides. An
ideal answer, which somebody wrote, is desirable, and says nothing of the answers that were shown. At step 0 policy and
reference are one, so z is 0 and an answer's loss half its weight; the stage stops if they are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType

from rlhf.align.config.labelled import KTOConfig
from rlhf.align.preferences.labelled import Labelled, encode_labelled
from rlhf.align.preferences.learning import (
    chosen_fell,
    first_and_last,
    heldout_accuracy,
    learning_doubts,
    logps_change,
    resolve_schedule,
)
from rlhf.align.preferences.reference import StartsAtReference, compute_reference_logps, distinct_logps
from rlhf.align.schema import KTOReport
from trueup import runs
from trueup.artifacts.reports import Schedule
from trueup.console import say
from trueup.data.records import Message
from trueup.files import Json
from trueup.launching import processes
from trueup.models import loading
from trueup.runs import StageRun
from trueup.training import adapters, batches, loop
from trueup.training.arguments import build_arguments, trainer_arguments
from trueup.training.merging import merged
from trueup.training.pairs import read_pairs


def run(config: KTOConfig) -> Path:
    stage = runs.begin(config)
    start, label = stage.parents

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    pairs = read_pairs(label, config, tie_rule="all")
    stage.leave_out_near(pairs.near_duplicates, "labelled prompts")

    # 2. Policy and reference -----------------------------------------------------------------------------------------
    policy = loading.load_policy(start.dir / "model", config.model, master_weights=config.full_finetuning)
    labelled = encode_labelled(config, stage, policy, pairs, [tie for tie in pairs.ties if tie.both_bad])
    reference_logps = compute_reference_logps(
        policy, start, labelled.train + labelled.ties, labelled.rows + labelled.tied_rows
    )
    answers = with_strangers(answers_of(labelled, reference_logps), policy, config.max_length, config.seed)
    heldout, heldout_rows = labelled.heldout, labelled.heldout_rows
    heldout_logps = compute_reference_logps(policy, start, heldout, heldout_rows) if heldout else []
    config = resolve_weights(resolve_schedule(config, len(answers)), answers)

    # 3. Train --------------------------------------------------------------------------------------------------------
    with loop.scored_completions_only():
        trainer = build_trainer(config, stage, policy, answers)
        loop.train(trainer, stage)
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    # Before the merge, in the precision of the reference and on its device.
    policy.model = adapters.under_adapter(trainer.model)
    accuracy = heldout_accuracy(policy, heldout, heldout_rows, heldout_logps)
    policy.model = merged(trainer.model, stage, [list(answer.prompt_ids + answer.completion_ids) for answer in answers])
    loop.require_sound(policy.model, "align, merging the adapter", every=True)

    # 4. What changed -------------------------------------------------------------------------------------------------
    first, last = first_and_last(trainer.state.log_history)
    change = logps_change(last, config.beta)
    margin = change.margin if change else None
    if change:
        say(f"{'margin':<12} {change.margin:+.2f} nats by which desirable answers gained on undesirable ones")
        stage.findings += chosen_fell(-change.chosen)
    if config.learning_rate:  # at 0 it is a control
        stage.findings += learning_doubts(margin, accuracy)

    # 5. Save ---------------------------------------------------------------------------------------------------------
    stage.write_report(
        KTOReport(
            algorithm="kto",
            pairs=len(labelled.rows),
            desirable=sum(answer.desirable for answer in answers),
            undesirable=sum(not answer.desirable for answer in answers),
            both_bad=len(labelled.ties),
            ties_left_out=pairs.ties_passed_over + len(pairs.ties) - len(labelled.ties),
            ideal_pairs=sum(pair.ideal for pair in labelled.train),
            desirable_weight=float(config.desirable_weight),
            undesirable_weight=float(config.undesirable_weight),
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


# ---- Answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer to train on."""

    prompt: list[Message]
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    desirable: bool
    reference_logp: float
    """log pi_ref, in nats."""
    stranger_ids: tuple[int, ...] = ()
    """An answer to another prompt. The KL is estimated over those of all answers that are computed at once."""
    stranger_logp: float = 0.0
    """log pi_ref of the stranger after this prompt, in nats."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer completion."""
        return len(self.prompt_ids) + max(len(self.completion_ids), len(self.stranger_ids))


def answers_of(labelled: Labelled, reference_logps: Sequence[tuple[float, float]]) -> list[LabelledAnswer]:
    """The answers of all pairs, chosen ones desirable; of a tie, which is bad on both sides, neither. An ideal answer
    says nothing of those below it. A label says a thing of an answer once, however many of its pairs it is in."""
    answers: dict[tuple[str, tuple[int, ...], bool], LabelledAnswer] = {}
    pairs = [*labelled.train, *labelled.ties]
    rows = [*labelled.rows, *labelled.tied_rows]
    for i, (pair, row, (chosen_logp, rejected_logp)) in enumerate(zip(pairs, rows, reference_logps, strict=True)):
        is_tie = i >= len(labelled.train)
        for ids, desirable, logp in (
            (row.chosen_ids, not is_tie, chosen_logp),
            (row.rejected_ids, False, rejected_logp),
        ):
            answer = LabelledAnswer(pair.prompt, tuple(row.prompt_ids), tuple(ids), desirable, logp)
            if desirable or not pair.ideal:
                answers.setdefault((pair.label_id, answer.completion_ids, desirable), answer)
    return list(answers.values())


def with_strangers(
    answers: list[LabelledAnswer], policy: loading.Loaded, max_length: int, seed: int
) -> list[LabelledAnswer]:
    """The answers, shuffled, each with the next one that is to another prompt and fits behind this one. Where none
    fits, with itself: its loss then has less of a slope, and the KL is that of answers that are trained on.

    Unshuffled, desirable and undesirable answers alternate, and the next one to another prompt is always desirable.
    """
    answers = random.Random(seed).sample(answers, len(answers))
    paired = []
    for i, answer in enumerate(answers):
        others = (answers[(i + step) % len(answers)] for step in range(1, len(answers)))
        room = max_length - len(answer.prompt_ids)
        fits = (o for o in others if o.prompt_ids != answer.prompt_ids and len(o.completion_ids) <= room)
        paired.append(replace(answer, stranger_ids=next(fits, answer).completion_ids))
    logps = distinct_logps(policy, {(answer.prompt_ids, answer.stranger_ids): answer.prompt for answer in paired})
    return [replace(answer, stranger_logp=logps[answer.prompt_ids, answer.stranger_ids]) for answer in paired]


# ---- Weights ----------------------------------------------------------------------------------------------------

LEAST_RATIO, MOST_RATIO = 1.0, 4 / 3
"""Range of (w_d times desirable answers) / (w_u times undesirable ones) that the paper recommends in eq. 8."""


def resolve_weights(config: KTOConfig, answers: Sequence[LabelledAnswer]) -> KTOConfig:
    """The config with a number in place of each `auto`, and the reason printed."""
    desirable = sum(answer.desirable for answer in answers)
    undesirable = len(answers) - desirable
    weights = auto_weights(desirable, undesirable, config.desirable_weight, config.undesirable_weight)
    if "auto" in (config.desirable_weight, config.undesirable_weight):
        ratio = weights[0] * desirable / (weights[1] * undesirable)
        say(
            f"{'weights':<12} {weights[0]:.3g} for {desirable} desirable answers, {weights[1]:.3g} for {undesirable} "
            f"undesirable ones: together {ratio:.2f} to 1, and between 1 and 4/3 is recommended"
        )
    return config.model_copy(update={"desirable_weight": weights[0], "undesirable_weight": weights[1]})


def auto_weights(
    desirable: int, undesirable: int, desirable_weight: float | str, undesirable_weight: float | str
) -> tuple[float, float]:
    """Both weights, where `auto` is the one nearest to 1 that brings the ratio into the range; of two, the lighter side
    is raised.

    desirable, undesirable  how many answers there are of each
    """
    ratio = desirable / undesirable
    if desirable_weight == "auto" and undesirable_weight == "auto":
        undesirable_weight = max(1.0, ratio / MOST_RATIO)
    if desirable_weight == "auto":
        unit = float(undesirable_weight) / ratio
        return min(max(1.0, LEAST_RATIO * unit), MOST_RATIO * unit), float(undesirable_weight)
    if undesirable_weight == "auto":
        unit = float(desirable_weight) * ratio
        return float(desirable_weight), min(max(1.0, unit / MOST_RATIO), unit / LEAST_RATIO)
    return float(desirable_weight), float(undesirable_weight)


# ---- Trainer ----------------------------------------------------------------------------------------------------


def build_trainer(config: KTOConfig, stage: StageRun, policy: loading.Loaded, answers: Sequence[LabelledAnswer]) -> Any:
    """trl.KTOTrainer over answers that are tokens already, with the reference's log-probabilities beside them."""
    from trl import KTOConfig as TRLConfig
    from trl import KTOTrainer

    class TokenisedKTOTrainer(KTOTrainer):
        """TRL 1.16 tokenises every dataset itself, ends every answer with EOS, and pairs the strangers within the
        batches of a fixed order; ours are paired already, and batches hold rows of like length."""

        pass_weight = 1.0  # see trueup.training.batches

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _compute_loss(self, model: Any, inputs: Json, return_outputs: bool) -> Any:
            share = self.accelerator.gather(self.pass_weight * inputs["label"].float().mean()).mean().item()
            self._metrics["train" if self.model.training else "eval"]["desirable"].append(share)
            return super()._compute_loss(model, inputs, return_outputs)

    dataset = [
        {
            "prompt_ids": answer.prompt_ids,
            "completion_ids": answer.completion_ids,
            "KL_completion_ids": answer.stranger_ids,
            "label": answer.desirable,
            "ref_logps": answer.reference_logp,
            "ref_KL_logps": answer.stranger_logp,
        }
        for answer in answers
    ]
    longest = [answer.longest for answer in answers]
    arguments = trainer_arguments(config, stage, policy, longest)
    arguments |= {
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
        "precompute_ref_log_probs": True,
    }
    trainer = batches.grouped_by_length(TokenisedKTOTrainer, config, longest)(
        model=policy.model,
        args=build_arguments(TRLConfig, arguments, config),
        train_dataset=Dataset.from_list(dataset),
        processing_class=policy.tokenizer,
        peft_config=adapters.adapter(config, policy.model, TaskType.CAUSAL_LM),
    )
    adapters.keep_adapter_dropout(trainer.model, config.lora.lora_dropout)
    expected = lambda logs: loss_at_reference(config, logs["desirable"])  # noqa: E731
    trainer.add_callback(StartsAtReference(expected, config.beta, policy.placement.dtype != torch.float32))
    trainer.add_callback(adapters.KeepSteps(stage, config.keep_steps))
    return trainer


def loss_at_reference(config: KTOConfig, desirable: float) -> float:
    """The loss as long as the policy is the reference: half the weight of an answer.

    desirable  share of the answers of the batch
    """
    return 0.5 * (float(config.desirable_weight) * desirable + float(config.undesirable_weight) * (1 - desirable))


def trial(config: KTOConfig, stage: StageRun, policy: loading.Loaded) -> Any:
    """The trainer over answers that stand for all (`trueup.training.trial`)."""
    from trl.trainer import kto_trainer

    if config.per_device_train_batch_size == 1:  # which stands for `auto` here, and which the config refuses
        rows = config.train_batch_size // processes.count()
        config = config.model_copy(update={"per_device_train_batch_size": rows})
    original = kto_trainer.hash_module
    kto_trainer.hash_module = lambda module: ""  # names a cache of the reference by weights, which are not there
    try:
        answers = [
            LabelledAnswer([], (0,), (0, 0), is_desirable, 0.0, stranger_ids=(0,)) for is_desirable in (True, False)
        ]
        return build_trainer(resolve_weights(resolve_schedule(config, 2), answers), stage, policy, answers)
    finally:
        kto_trainer.hash_module = original
