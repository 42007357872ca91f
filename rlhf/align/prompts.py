"""The prompts of an online alignment: which they are, and in what order they are answered."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf.align.config.online import OnlineConfig
from rlhf.align.config.paid import PaidConfig
from rlhf.checks import Check, load_check
from trueup.config import SplitConfig
from trueup.console import say
from trueup.data.duplicates.rows import NEAR_HELDOUT
from trueup.data.duplicates.training import near_heldout_prompts
from trueup.data.formats import read_prompts
from trueup.data.records import CandidateSet, Dropped, Message, Prompt, prompt_id, read_rows
from trueup.data.split import is_for_judge, is_heldout
from trueup.errors import DataError
from trueup.models.chat import encode_prompt
from trueup.models.encoding import RefusedRows, encode_rows
from trueup.runs import StageRun

# ---- Whom to ask ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt to train on, and the check that verifies its answers, if one does."""

    prompt: list[Message]
    category: str | None = None
    check: int = -1
    """Index into the config's checks."""
    check_row: int = -1


@dataclass(frozen=True)
class Prompts:
    train: list[RolloutPrompt]
    evaluation: list[RolloutPrompt]
    """Kept from training, to choose the best step by; not held out, so that the comparison stays untouched."""
    checks: list[Check]


def choose_prompts(
    config: PaidConfig,
    stage: StageRun,
    tokenizer: PreTrainedTokenizerBase,
    reader: PreTrainedTokenizerBase | None = None,
) -> Prompts:
    """The prompts that may be trained on and leave room for an answer; what is left out is counted. One that cannot be
    asked as it reads is refused by file and line, or left out where bad rows are.

    reader  the tokenizer of a reward model that reads other tokens: its template must write every prompt, too
    """

    def encode(row: Prompt, changes: set[str]) -> int:
        if reader:
            _as_reward_model_reads(reader, row)
        return len(encode_prompt(tokenizer, row.prompt, changes))

    checks = [load_check(check.kind, check.path, check.limit, config.seed) for check in config.checks]
    dropped = {n: Dropped() for n in range(-1, len(checks))}  # by index of the check; -1: prompts of none
    # Checks first: of a prompt that comes twice, the row whose answers can be verified stays.
    prompts_of_check: dict[int, Sequence[Prompt]] = {n: check.prompts for n, check in enumerate(checks)}
    prompts_of_check[-1] = _read_prompts(config, stage, dropped[-1])
    every = {row.prompt_id: row for prompts in reversed(prompts_of_check.values()) for row in reversed(prompts)}
    near = near_heldout_prompts(every, config.split)
    stage.leave_out_near(list(near.values()), "prompts")
    prompt_ids: set[str] = set()
    rows: list[RolloutPrompt] = []
    refused = RefusedRows()
    for n, prompts in prompts_of_check.items():
        trainable = _trainable(prompts, config.split, prompt_ids, near, dropped[n])
        encoded = encode_rows(
            [prompts[i] for i in trainable.values()],
            encode,
            refused,
            config.on_bad_rows if n < 0 and config.prompts else "refuse",
            dropped[n],
        )
        for row, length in encoded:
            if length + config.most_tokens > config.max_length:
                dropped[n].add("no room for an answer within max_length")
            elif n < 0:
                rows.append(RolloutPrompt(row.prompt, row.category))
            else:
                rows.append(RolloutPrompt(row.prompt, checks[n].kind, n, trainable[row.prompt_id]))
    refused.stop()
    random.Random(config.seed).shuffle(rows)
    evaluation, train = rows[: config.eval_prompts], rows[config.eval_prompts :]
    counts = Counter(row.check for row in rows)
    total = Dropped(sum((one.counts for one in dropped.values()), Counter()))
    # What is in the first files; of a reward's no row is asked, and PPO counts those of its demonstrations itself.
    holds = [*([-1] if config.prompts else []), *range(len(checks))]
    for path, n in zip_longest(PaidConfig.input_paths(config), holds):
        stage.add_input(path, counts[n], dropped.get(n))
    if config.prompts is None:
        stage.find("info", "dropped", f"prompts of the sample stage: {counts[-1]} used; left out: {dropped[-1]}")
    if len(train) < config.prompts_at_once:
        raise DataError(too_few_prompts(config, f"{len(rows)} prompts may be trained on (left out: {total})"))
    say(f"{'prompts':<12} {len(train)} to train on, {len(evaluation)} to choose the step by; left out: {total}")
    return Prompts(train, evaluation, checks)


def too_few_prompts(config: PaidConfig, sentence: str) -> str:
    """What to do about prompts that are too few, after a sentence on how many there are."""
    key, asks = "eval_prompts", "none is left: lower it"
    if isinstance(config, OnlineConfig):
        key, asks = "rollout_batch_size", f"a rollout asks {config.prompts_at_once}: lower it or align.eval_prompts"
    of_them = f"{config.eval_prompts} of them choose the step"
    return f"align.{key}: {sentence}; {of_them}, and {asks}, or give more prompts (align.prompts)"


def _as_reward_model_reads(reader: PreTrainedTokenizerBase, row: Prompt) -> None:
    try:
        encode_prompt(reader, row.prompt)
    except DataError as error:
        raise DataError(f"the reward model cannot read it: {error}") from None


def _trainable(
    prompts: Sequence[Prompt], split: SplitConfig, prompt_ids: set[str], near: Collection[str], left_out: Dropped
) -> dict[str, int]:
    """Where each prompt stands that may be trained on, by its id.

    prompt_ids  of prompts that stand elsewhere already; those of this call are added
    near        ids of prompts that nearly repeat a held-out one
    """
    row_of_prompt: dict[str, int] = {}
    for i, row in enumerate(prompts):
        if row.prompt_id in prompt_ids:
            left_out.add("duplicate")
        elif is_heldout(row.prompt, split):
            left_out.add("held out")
        elif row.prompt_id in near:
            left_out.add(NEAR_HELDOUT)
        elif is_for_judge(row.prompt, split):
            left_out.add("for the second reward model")
        else:
            prompt_ids.add(row.prompt_id)
            row_of_prompt[row.prompt_id] = i
    return row_of_prompt


def _read_prompts(config: PaidConfig, stage: StageRun, dropped: Dropped) -> Sequence[Prompt]:
    if config.prompts is not None:
        return read_prompts(
            config.prompts, dropped, config.on_bad_rows, config.ignore_columns, config.choice(config.seed)
        )
    sample_stage = next(parent for parent in stage.parents if parent.stage == "sample")
    rows = read_rows(sample_stage.dir / "candidates.jsonl", CandidateSet)
    return [Prompt(prompt=row.prompt, category=row.category).model_copy(update={"where": row.where}) for row in rows]


def schedule(rows: Sequence[RolloutPrompt], config: OnlineConfig) -> Dataset:
    """The prompts of every rollout, in the order in which they are asked: each pass over them in an order of its own.

    Laid out whole, so that going on after an interruption needs no state of a sampler.
    """
    per_rollout = config.rollout_batch_size // config.num_generations
    sequence: list[RolloutPrompt] = []
    for epoch in range(math.ceil(num_rollouts(len(rows), config) * per_rollout / len(rows))):
        order = list(rows)
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        sequence += order
    return Dataset.from_list(
        [
            {
                "prompt": [message.model_dump() for message in row.prompt],
                "prompt_id": prompt_id(row.prompt),
                "category": row.category,
                "check": row.check,
                "check_row": row.check_row,
            }
            for row in sequence[: num_rollouts(len(rows), config) * per_rollout]
        ]
    )


def schedule_of_one(config: OnlineConfig) -> Dataset:
    """A schedule whose one prompt stands for all (`trueup.training.trial`)."""
    config = config.model_copy(update={"max_steps": config.updates_per_rollout})
    return schedule([RolloutPrompt([Message(role="user", content="a")])], config)


def num_rollouts(prompts: int, config: OnlineConfig) -> int:
    """Rollouts until `max_steps`, or until every prompt was asked `num_train_epochs` times, in whole rollouts."""
    if config.max_steps > 0:
        return math.ceil(config.max_steps / config.updates_per_rollout)
    return math.ceil(config.num_train_epochs * prompts * config.num_generations / config.rollout_batch_size)
