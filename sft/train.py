"""Supervised fine-tuning: teach the base model to answer as the demonstrations do, and to stop.

Reads   demonstrations (`sft.data`) and the base model.
Writes  sft/: model/ (adapter merged), adapter/ (relative to the base model), metrics.jsonl, samples.jsonl,
        heldout.jsonl (held-out demonstrations in tokens), data.json and data.html (what was read), report.json,
        manifest.json.
Source  Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5; trained by trl.SFTTrainer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peft import TaskType

from sft import kinds, packing
from sft.config import SFTConfig
from sft.data import Data, answerable, last_trained, read_data, spread
from sft.report import HeldoutCompletion, HeldoutLoss, RowCounts, SFTReport, TokenCounts
from sft.tokens import TrainingRows
from trueup import runs
from trueup.console import say
from trueup.data.records import Demonstration, write_rows
from trueup.models import loading
from trueup.models.chat import IGNORED, Encoded
from trueup.models.encoding import TOO_LONG, named
from trueup.models.sampling import Decoding, sample
from trueup.models.sources.settings import context_length
from trueup.models.templates.ends import choice_of
from trueup.runs import StageRun
from trueup.training import adapters, batches, loop
from trueup.training.arguments import build_arguments, trainer_arguments
from trueup.training.merging import merged

_EVALUATED = 16
"""Number of held-out demonstrations whose loss is measured, before and after."""
_COLLATED = 10_000
"""Most training rows whose batches are looked at."""
_PROBED = 32
"""Number of training rows that the merged policy may be compared on."""
_ANSWERED = 16
"""Number of held-out prompts that are answered afterwards, to see whether the policy stops by itself."""


def run(config: SFTConfig) -> Path:
    stage = runs.begin(config)

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    data = read_data(config, stage, loading.load_base_tokenizer(config.model))
    tokens = data.tokens
    stage.trained_on_openings(tokens.openings[data.train], data.questions)
    train_rows = tokens.training_rows(np.concatenate([data.train, data.again]))
    heldout_rows = tokens.training_rows(spread(data, data.heldout, _EVALUATED, config.seed))
    tell(stage, data, train_rows, config)

    # 2. Model --------------------------------------------------------------------------------------------------------
    base = loading.load_base(config.model, master_weights=config.full_finetuning)

    # 3. Train --------------------------------------------------------------------------------------------------------
    with loop.scored_completions_only():
        trainer = build_trainer(config, stage, base, train_rows, heldout_rows)
        require_labels(trainer, train_rows, config.seed)
        turns = {"assistant": "assistant turns", "all": "turns"}[config.train_on]
        say(f"{'end of turn':<12} {base.tokenizer.eos_token!r} is a label in {train_rows.ends} {turns}")
        if config.packing:
            packing.require_no_leak(trainer, base, "sft.packing")
        of_kinds = kinds.scored(data, config)
        by_base = kinds.read(base, data, of_kinds, _new_tokens(config.max_length))
        loop.train(trainer, stage)
        before = loop.loss_before(stage)
        after = trainer.evaluate()["eval_loss"] if heldout_rows else None
        by_policy = kinds.read(base, data, of_kinds, _new_tokens(config.max_length))
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    base.model = adapters.under_adapter(trainer.model)

    # 4. Evaluate -----------------------------------------------------------------------------------------------------
    limits = _new_tokens(config.max_length), context_length(base.model.config, base.tokenizer)
    room = limits[0] + config.model.thinking_budget(limits[0]), limits[1]
    rooms = (answerable(data, parts, *room) for parts in (data.heldout, data.train))
    parts = next(filter(len, rooms), data.heldout[:0])
    asked = map(tokens.demonstration, spread(data, parts, _ANSWERED, config.seed).tolist())
    samples = answer_heldout(config, base, list(asked))
    eos_rate = look_whether_it_stops(stage, samples, *limits)
    if before is not None and after is not None and after >= before:
        stage.find("warn", "not_learnt", f"held-out loss went from {before:.3f} to {after:.3f}")

    # 5. Save ---------------------------------------------------------------------------------------------------------
    write_rows(stage.dir / "samples.jsonl", samples)
    write_rows(stage.dir / "heldout.jsonl", [vars(row) for row in heldout_rows])
    stage.write_report(
        SFTReport(
            heldout_loss=HeldoutLoss(before=before, after=after, rows=len(heldout_rows)),
            eos_rate=eos_rate,
            trained_eos=train_rows.ends,
            rows=RowCounts(
                train=len(train_rows),
                packed=len(trainer.train_dataset) if config.packing else None,
                heldout=len(data.heldout),
                dropped=({TOO_LONG: len(data.too_long)} if data.too_long else {}) | data.not_trained,
                long=data.long_counts if data.long_counts.demonstrations else None,
            ),
            tokens=TokenCounts(all=train_rows.tokens, with_loss=train_rows.tokens_with_loss),
            by_category=data.by_category,
            kinds=kinds.compared(stage, data, of_kinds, by_base, by_policy, config),
        )
    )
    base.model = merged(trainer.model, stage, [row.input_ids for row in train_rows[:_PROBED]])
    loop.require_sound(base.model, "sft, merging the adapter", every=True)
    loading.save(base, stage.dir / "model")
    stage.facts["chat_template"] = choice_of(base.tokenizer)
    stage.facts.update(base.placement.facts, base_model=config.model.name)
    return stage.finish()


def tell(stage: StageRun, data: Data, train_rows: TrainingRows, config: SFTConfig) -> None:
    """Say what is trained on, and find what is to know of it."""
    say(f"{'data':<12} {len(data.train)} demonstrations to train on, {len(data.heldout)} held out by their prompts")
    if len(data.again):
        say(f"{'data':<12} a pass takes {len(data.again)} again, by the weights of their sources")
    say(
        f"{'tokens':<12} {train_rows.tokens} in {len(train_rows)} training rows, of which "
        f"{train_rows.tokens_with_loss} carry loss"
    )
    for code, text in notes_on(data, config):
        say(f"{'tokens':<12} {text}")
        stage.find("info", code, text)


def notes_on(data: Data, config: SFTConfig) -> Iterator[tuple[str, str]]:
    """(code, sentence) on demonstrations that were too long, and on changes to their texts."""
    tokens, longer = data.tokens, f"longer than sft.max_length, {config.max_length} tokens"
    if data.too_long:
        yield (
            "too_long",
            f"{len(data.too_long)} of {tokens.count} demonstrations are {longer}, and are left out whole: "
            f"{named(data.too_long)}",
        )
    long = data.long_counts
    if long.demonstrations and config.overlong == "cut":
        yield (
            "cut",
            f"{long.demonstrations} of {tokens.count} demonstrations are {longer}, and are cut there: "
            f"{long.tokens_cut} tokens are lost, and a cut answer teaches no end of turn",
        )
    elif long.demonstrations:
        yield (
            "split",
            f"{long.demonstrations} of {tokens.count} demonstrations are {longer}, and are split at turns into "
            f"{long.parts} dialogues; {long.exchanges_left_out} exchanges that do not fit by themselves are left out",
        )
    if long.turns_left_out:
        yield (
            "turns_left_out",
            f"{long.turns_left_out} turns of these are left out too, since no answer that is learnt follows them",
        )
    if long.parts_left_out:
        yield (
            "heldout_parts",
            f"{long.parts_left_out} parts of dialogues that were split begin with a held-out question, or with nearly "
            "one, and are left out",
        )
    for what, count in data.changes.items():
        yield "texts_in_tokens", f"{count} of {tokens.count} demonstrations are {what}"


def build_trainer(
    config: SFTConfig, stage: StageRun, base: loading.Loaded, train_rows: TrainingRows, heldout_rows: TrainingRows
) -> Any:
    """trl.SFTTrainer over rows that already are tokens with labels."""
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    rows, lengths = train_rows.dataset(), train_rows.lengths
    if config.packing:
        config, rows = packing.one_at_once(config), packing.packed(rows, config.max_length)
        lengths = np.array([sum(of_each) for of_each in rows["seq_lengths"]])
        if config.mask_note:
            say(f"{'packing':<12} {config.mask_note}")
        say(f"{'packing':<12} {len(train_rows)} training rows in {len(rows)} of up to {config.max_length} tokens")
    arguments = trainer_arguments(config, stage, base, lengths)
    arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": config.packing}
    new_tokens = loading.new_token_ids(config.model, base)

    trainer = batches.grouped_by_length(SFTTrainer, config, lengths)(
        model=base.model,
        args=build_arguments(TRLConfig, arguments, config),
        train_dataset=rows,
        eval_dataset=heldout_rows.dataset() if heldout_rows else None,
        processing_class=base.tokenizer,
        peft_config=adapters.adapter(config, base.model, TaskType.CAUSAL_LM, new_tokens),
    )
    adapters.let_head_be_read(trainer.model)
    return trainer


def trial(config: SFTConfig, stage: StageRun, base: loading.Loaded) -> Any:
    """The trainer over one sample row (`trueup.training.trial`)."""
    rows = TrainingRows.of([Encoded([0, 0], [0, 0])])
    return build_trainer(config, stage, base, rows, rows)


def require_labels(trainer: Any, rows: TrainingRows, seed: int) -> None:
    """The batches of the trainer's own collator are what is really trained. One that changes labels is a bug, and stops
    the stage. Of many rows some are drawn."""
    drawn = sorted(random.Random(seed).sample(range(len(rows)), min(len(rows), _COLLATED)))
    for start in range(0, len(drawn), 64):
        batch = [rows[index] for index in drawn[start : start + 64]]
        collated = trainer.data_collator([vars(row) for row in batch])
        in_batch = zip(collated["input_ids"].flatten().tolist(), collated["labels"].flatten().tolist(), strict=True)
        in_rows = (pair for row in batch for pair in zip(row.input_ids, row.labels, strict=True))
        if _with_loss(in_batch) != _with_loss(in_rows):
            raise AssertionError("the collator changed the labels of a training row")


def _with_loss(tokens: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(token, label) for token, label in tokens if label != IGNORED]


def answer_heldout(config: SFTConfig, policy: loading.Loaded, rows: list[Demonstration]) -> list[HeldoutCompletion]:
    """One completion of the new policy to each of a few prompts, beside the demonstration's own."""
    turns = [last_trained(row) for row in rows]
    most = _new_tokens(config.max_length)
    thinking = config.model.thinking_budget(most)
    decoding = Decoding(most, top_k=50, seed=config.seed, max_thinking_tokens=thinking)
    policy.model.eval()
    completions = sample(policy, [prompt for prompt, _ in turns], decoding, 1, _ANSWERED)
    return [
        HeldoutCompletion(
            prompt=prompt,
            demonstration=answer,
            reasoning=completion[0].reasoning,
            completion=completion[0].text,
            finished=completion[0].finished,
        )
        for (prompt, answer), completion in zip(turns, completions, strict=True)
    ]


def look_whether_it_stops(
    stage: StageRun, samples: list[HeldoutCompletion], new_tokens: int, context: int | None
) -> float | None:
    """Share of the completions that end by themselves, with a finding if it is low; None without completions."""
    if not samples:
        message = f"no prompt leaves room for {new_tokens} new tokens in the model's context of {context}"
        stage.find("warn", "not_answered", f"{message}, so it is not known whether the policy stops")
        return None
    rate = sum(row.finished for row in samples) / len(samples)
    say(f"{'stops':<12} {rate:.0%} of {len(samples)} answers end by themselves within {new_tokens} tokens")
    if rate < 0.5:
        message = f"only {rate:.0%} of answers end by themselves: train longer or on shorter answers"
        stage.find("warn", "rarely_stops", message)
    return rate


def _new_tokens(max_length: int) -> int:
    return min(64, max_length // 2)
