"""Reward model: a scalar score of an answer, learnt from which of two was preferred.

Reads   labels/preferences.jsonl, and sft/model, from which it starts with a fresh head.
Writes  reward/: model/ (one output, adapters merged), report.json, scores.jsonl, metrics.jsonl, manifest.json.
Source  Bradley-Terry loss, Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1, over single pairs; head
        initialised as in Stiennon et al. 2020, https://arxiv.org/abs/2009.01325; trained by trl.RewardTrainer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType

from reward.config import RewardConfig
from reward.evaluate import report_card
from trueup import models, runs, training
from trueup.console import say
from trueup.errors import DataError
from trueup.pairs import EncodedPair, encode_pairs, read_pairs
from trueup.records import Dropped, write_rows
from trueup.runs import StageRun
from trueup.sampling import score


def run(config: RewardConfig) -> Path:
    stage = runs.begin(config)
    sft, label = stage.parents

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    train, heldout = read_pairs(label, config.pairs, config.split)
    say(f"{'pairs':<12} {len(train)} to train on, {len(heldout)} held out, split by prompt")

    # 2. Model --------------------------------------------------------------------------------------------------------
    torch.manual_seed(config.seed)  # the head is drawn at random
    model = models.load_reward_model(sft.dir / "model", config.model, master_weights=config.full_finetuning)
    say(f"{'model':<12} from the SFT policy, {model.placement.reason}")
    init_head(model)
    dropped = Dropped()
    train, rows = encode_pairs(train, model.tokenizer, config.max_length, dropped)
    heldout_dropped = Dropped()
    heldout, heldout_rows = encode_pairs(heldout, model.tokenizer, config.max_length, heldout_dropped)
    if not rows:
        raise DataError(f"every pair is longer than reward.max_length, {config.max_length} tokens")
    if dropped.counts or heldout_dropped.counts:
        stage.find("warn", "dropped", f"pairs not trained on: {dropped}; held out and not evaluated: {heldout_dropped}")

    # 3. Train --------------------------------------------------------------------------------------------------------
    trainer = build_trainer(config, stage, model, rows)
    training.train(trainer, stage)
    model.model = training.merged(trainer.model).eval()

    # 4. Evaluate on held-out pairs -----------------------------------------------------------------------------------
    prompts = [pair.prompt for pair in heldout]
    scores = score(
        model,
        prompts + prompts,
        [row.chosen_ids for row in heldout_rows] + [row.rejected_ids for row in heldout_rows],
    )
    chosen_scores, rejected_scores = scores[: len(heldout)], scores[len(heldout) :]
    report = report_card(train, heldout, chosen_scores, rejected_scores, stage)

    # 5. Save ---------------------------------------------------------------------------------------------------------
    write_rows(
        stage.dir / "scores.jsonl",
        (
            {"label_id": pair.label_id, "prompt_id": pair.prompt_id, "chosen": chosen, "rejected": rejected}
            for pair, chosen, rejected in zip(heldout, chosen_scores, rejected_scores, strict=True)
        ),
    )
    stage.write_json("report.json", report)
    models.save(model, stage.dir / "model")
    stage.facts.update(model.placement.facts)
    return stage.finish()


def init_head(model: models.Loaded) -> None:
    """Scores near 0 at first, so that the loss starts at ln 2.

    Stiennon et al. 2020 (p. 11) draw the weights from N(0, 1/(d + 1)), for d inputs of unit scale. The hidden states
    of the models that we start from are several times that; a hundredth of it starts them all alike.
    """
    head = model.model.score
    torch.nn.init.normal_(head.weight, std=0.01 / math.sqrt(head.in_features + 1))


def build_trainer(config: RewardConfig, stage: StageRun, model: models.Loaded, rows: list[EncodedPair]) -> Any:
    """trl.RewardTrainer over pairs that are tokenised already, so that an unfinished answer stays without EOS."""
    from trl import RewardConfig as TRLConfig
    from trl import RewardTrainer

    arguments = training.trainer_arguments(config, stage, model, [2 * row.longest for row in rows])
    arguments["center_rewards_coefficient"] = config.center_rewards_coefficient or None
    dataset = [
        {"chosen_ids": row.prompt_ids + row.chosen_ids, "rejected_ids": row.prompt_ids + row.rejected_ids}
        for row in rows
    ]
    return RewardTrainer(
        model=model.model,
        args=TRLConfig(**training.with_user_arguments(arguments, config, TRLConfig)),
        train_dataset=Dataset.from_list(dataset),
        processing_class=model.tokenizer,
        peft_config=training.adapter(config, model.model, TaskType.SEQ_CLS),
    )
