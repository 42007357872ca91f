"""Direct preference optimisation: fit the policy to chosen/rejected pairs, held near the reference by beta.

Reads   labels/preferences.jsonl, and sft/model: policy and reference both start from it.
Writes  align/: model/ (adapter merged), adapter/ and steps/step-N/ (relative to the SFT policy), metrics.jsonl,
        report.json, manifest.json.
Source  Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; trained by trl.DPOTrainer.

The reference is the SFT policy itself: the base under the adapter, with the adapter off. Its log-probabilities are
known from sampling, or computed once before training. At step 0 policy and reference are one, so the loss must be
ln 2 and the margins 0; the stage stops if they are not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from transformers import TrainerCallback

from rlhf.config import DPOConfig
from trueup import models, runs, training
from trueup.console import say
from trueup.errors import DataError
from trueup.pairs import EncodedPair, encode_pairs, read_pairs
from trueup.records import Dropped, Preference
from trueup.runs import FinishedStage, StageRun
from trueup.sampling import completion_logps


def run(config: DPOConfig) -> Path:
    stage = runs.begin(config)
    sft, label = stage.parents

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    train = read_pairs(label, config.pairs, config.split).train

    # 2. Policy and reference -----------------------------------------------------------------------------------------
    policy = models.load_policy(sft.dir / "model", config.model, master_weights=config.full_finetuning)
    dropped = Dropped()
    train, rows = encode_pairs(train, policy.tokenizer, config.max_length, dropped)
    if not rows:
        raise DataError(f"every pair is longer than align.max_length, {config.max_length} tokens")
    if dropped.counts:
        stage.find("warn", "dropped", f"pairs not trained on: {dropped}")
    stage.trained_on(pair.prompt for pair in train)
    say(f"{'pairs':<12} {len(rows)} to train on ({config.pairs}); dropped: {dropped}")
    say(f"{'policy':<12} from the SFT policy, which is also the reference; {policy.placement.reason}")

    reference_logps = compute_reference_logps(policy, sft, train, rows)

    # 3. Train --------------------------------------------------------------------------------------------------------
    with training.scored_completions_only():
        trainer = build_trainer(config, stage, policy, rows, reference_logps)
        training.train(trainer, stage)
    training.save_adapter(trainer.model, stage.dir / training.ADAPTER)
    policy.model = training.merged(trainer.model)

    # 4. What changed -------------------------------------------------------------------------------------------------
    first, last = first_and_last(trainer.state.log_history)
    for name in ("rewards/margins", "rewards/accuracies"):
        say(f"{name:<20} {first[name]:8.2f} -> {last[name]:8.2f}")
    # Against the reference, not against the first batches, whose answers are longer or shorter than those of the last.
    change = {answer: last[f"rewards/{answer}"] / config.beta for answer in ("chosen", "rejected")}
    for answer, nats in change.items():
        say(f"{f'log pi({answer})':<20} {nats:+8.2f} nats against the reference, at the end")
    fallen = -change["chosen"]
    if fallen > 10:
        # Common and not always harm: DPO needs only the difference. Past some point probability goes to neither answer.
        stage.find(
            "warn",
            "chosen_logps_fell",
            f"log-probability of chosen answers fell by {fallen:.1f} nats: raise beta or stop earlier",
        )

    # 5. Save ---------------------------------------------------------------------------------------------------------
    report = {"algorithm": "dpo", "pairs": len(rows), "first": first, "last": last, "logps_change_nats": change}
    stage.write_json("report.json", report)
    models.save(policy, stage.dir / "model")
    stage.facts.update(policy.placement.facts)
    return stage.finish()


def compute_reference_logps(
    policy: models.Loaded, sft: FinishedStage, pairs: list[Preference], rows: list[EncodedPair]
) -> list[tuple[float, float]]:
    """log pi_ref of the chosen and the rejected answer of each pair, in nats.

    Sampling wrote them down: an answer that this very SFT policy sampled in float32 is not scored again.
    """
    recorded = policy.placement.dtype == torch.float32
    known = {
        i: (pair.chosen_logp, pair.rejected_logp)
        for i, pair in enumerate(pairs)
        if recorded and pair.sampled_by == sft.sha256 and None not in (pair.chosen_logp, pair.rejected_logp)
    }
    missing = [i for i in range(len(rows)) if i not in known]
    say(f"{'reference':<12} log-probabilities of {len(known)} pairs known from sampling, {len(missing)} to compute")
    if missing:
        # Several annotators of one pair label the same two answers: each answer is read once.
        asked = {
            (tuple(rows[i].prompt_ids), tuple(ids)): (pairs[i].prompt, ids)
            for i in missing
            for ids in (rows[i].chosen_ids, rows[i].rejected_ids)
        }
        prompts, answers = zip(*asked.values(), strict=True)
        logps = dict(zip(asked, completion_logps(policy, prompts, answers), strict=True))
        for i in missing:
            prompt = tuple(rows[i].prompt_ids)
            known[i] = (logps[prompt, tuple(rows[i].chosen_ids)], logps[prompt, tuple(rows[i].rejected_ids)])
    return [known[i] for i in range(len(rows))]  # type: ignore[misc]


def build_trainer(
    config: DPOConfig,
    stage: StageRun,
    policy: models.Loaded,
    rows: list[EncodedPair],
    reference_logps: list[tuple[float, float]],
) -> Any:
    """trl.DPOTrainer over pairs that are tokens already, with the reference's log-probabilities beside them."""
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

    arguments = training.trainer_arguments(config, stage, policy, [2 * row.longest for row in rows])
    arguments |= {
        "beta": config.beta,
        "loss_type": [config.loss_type],
        "label_smoothing": config.label_smoothing,
        "precompute_ref_log_probs": True,
    }
    trainer = training.grouped_by_length(TokenisedDPOTrainer, config, [row.longest for row in rows])(
        model=policy.model,
        args=TRLConfig(**training.with_user_arguments(arguments, config, TRLConfig)),
        train_dataset=Dataset.from_list(dataset),
        processing_class=policy.tokenizer,
        peft_config=training.adapter(config, policy.model, TaskType.CAUSAL_LM),
    )
    trainer.add_callback(StartsAtReference(config))
    trainer.add_callback(training.KeepSteps(stage, config.keep_steps))
    return trainer


class StartsAtReference(TrainerCallback):
    """Stops a run whose policy is not the reference at step 0: margins must be 0, and a sigmoid loss ln 2."""

    def __init__(self, config: DPOConfig):
        self.config = config

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.global_step != 1 or "rewards/margins" not in (logs or {}):
            return
        # bf16 rounds each of some hundred log-probabilities; float32 agrees to five digits.
        tolerance = 0.05 if args.bf16 else 1e-3
        margin, loss = abs(logs["rewards/margins"]), logs["loss"]
        if margin > tolerance or (self.config.loss_type == "sigmoid" and abs(loss - math.log(2)) > tolerance):
            raise AssertionError(
                f"at step 0 policy and reference differ: loss {loss:.4f} (ln 2 {math.log(2):.4f}), margin {margin:.4f}"
            )
        say(f"{'step 0':<12} loss {loss:.4f} (ln 2 = {math.log(2):.4f}), margin {margin:.4f}: policy is reference")


def first_and_last(history: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Means of the training metrics over the first and the last tenth of the steps."""
    rows = [row for row in history if "rewards/margins" in row]
    count = max(1, len(rows) // 10)
    names = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    )

    def mean(part: list[dict[str, Any]]) -> dict[str, float]:
        return {name: sum(row[name] for row in part) / len(part) for name in names}

    return mean(rows[:count]), mean(rows[-count:])
