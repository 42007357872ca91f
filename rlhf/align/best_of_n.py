"""Best of n: the policy answers each prompt n times, the best paid answer is imitated. No rollouts, no critic.

Reads   sft/model, from which the policy starts (or the last round's align/model, see `align.start`); prompts, or those
        of candidates/ with their answers; reward/ where the reward model pays.
Writes  align/: what `rlhf.align.grpo_rloo` writes.
Source  rejection sampling, Touvron et al. 2023, https://arxiv.org/abs/2307.09288, section 3.2.3; trained by
        trl.SFTTrainer, with answers that Trueup draws. The command: `trueup align CONFIG --set
        align.algorithm=best_of_n`.

How it differs from SFT: the demonstrations are the policy's own tokens, as it drew them. So at step 0 the loss must be
what the policy itself says of these tokens; the stage stops if it is not. How it differs from GRPO: all answers are
drawn before any training, and only the best of each prompt teaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, TaskType

from rlhf.align import guards, online
from rlhf.align.best_step import EvaluateSteps, second_rewards, settle
from rlhf.align.config.paid import BestOfNConfig
from rlhf.align.prompts import RolloutPrompt
from rlhf.align.rewards import WeightedRewards, columns_of, make_rewards, normalisation
from rlhf.align.rollouts import draw, logps_of, reference_logps
from rlhf.align.schema import BestOfNReport, RolloutSample
from rlhf.align.step_0 import StartsAtPolicy, with_expected_loss
from trueup.artifacts.reports import RewardCard
from trueup.console import say
from trueup.data.records import Candidate, CandidateSet, Dropped, prompt_id, read_rows, write_rows
from trueup.errors import DataError
from trueup.launching import processes
from trueup.models.chat import IGNORED, Encoded, answer_text, encode_prompt
from trueup.models.course import drawn
from trueup.models.loading import Loaded
from trueup.models.templates.ends import turn_ends
from trueup.runs import FinishedStage, StageRun
from trueup.training import adapters, batches, loop
from trueup.training.arguments import build_arguments, trainer_arguments
from trueup.training.merging import merged

SHOWN = 24
"""Imitated answers that the page shows."""


def run(config: BestOfNConfig) -> Path:
    # 1. Inputs -------------------------------------------------------------------------------------------------------
    stage, start, reward, policy, prompts, _ = online.begin(config)
    say(f"{'policy':<12} from {config.start_title}, which answers; {policy.placement.reason}")

    # 2. Answers and their rewards ------------------------------------------------------------------------------------
    units = normalisation(reward.report(RewardCard) if reward else None)
    pays = online.scorer_of(config, reward, units) if reward else None
    text_of = partial(answer_text, policy.tokenizer)
    rewards = make_rewards(config, pays, prompts.checks, turn_ends(policy.tokenizer), text_of)

    def choose() -> tuple[list[Best], Dropped, int, int]:
        answers, from_sample = answers_of(config, stage, start, policy, prompts.train)
        dropped = Dropped()
        rows = zip(prompts.train, answers, strict=True)
        best = [one for row, its_answers in rows if (one := best_answer(row, its_answers, rewards, dropped))]
        return best, dropped, sum(map(len, answers)), from_sample

    # Of several processes one does it: a reward may cost money, or depend on chance.
    best, dropped, answered, from_sample = processes.agreed(choose)
    if not best:
        raise DataError(f"align: no prompt has an answer to imitate (left out: {dropped})")
    if dropped.counts:
        stage.find("info", "no_best_answer", f"{len(best)} best answers are imitated; prompts without one: {dropped}")
    mean_reward = sum(sum(one.all_rewards) for one in best) / sum(len(one.all_rewards) for one in best)
    best_reward = sum(one.reward for one in best) / len(best)
    say(f"{'best':<12} {len(best)} answers, paid {best_reward:.2f}; all answers to these prompts {mean_reward:.2f}")

    # 3. Train --------------------------------------------------------------------------------------------------------
    rows = [encode(policy, one) for one in best]
    nats = [-logp for logp in logps_of(policy, [one.row.prompt for one in best], [one.answer for one in best])]
    with loop.scored_completions_only():
        trainer = build_trainer(config, stage, policy, rows, nats)
        policy.model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
        logps = reference_logps(config.model, policy, trainer.model, start)
        second = second_rewards(config, reward, prompts.checks, turn_ends(policy.tokenizer))
        trainer.add_callback(EvaluateSteps(config, stage, policy, prompts.evaluation, rewards, logps, second))
        loop.train(trainer, stage, samples=True)

    # 4. The best step ------------------------------------------------------------------------------------------------
    paid = settle(config, stage, trainer.model, trainer.state.global_step, rewards, units, guards.in_best_of_n)

    # 5. Save ---------------------------------------------------------------------------------------------------------
    write_rows(stage.dir / loop.SAMPLES, map(sample_of, best[:SHOWN]))
    report = BestOfNReport(
        **dict(paid),
        algorithm="best_of_n",
        answers=answered,
        from_sample=from_sample,
        imitated=len(best),
        left_out=dict(dropped.counts),
        mean_reward=mean_reward,
        best_reward=best_reward,
    )
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    policy.model = merged(trainer.model, stage, online.proof_rows(policy, prompts))
    return online.save(stage, policy, report)


# ---- Answers ----------------------------------------------------------------------------------------------------


def answers_of(
    config: BestOfNConfig, stage: StageRun, start: FinishedStage, policy: Loaded, rows: Sequence[RolloutPrompt]
) -> tuple[list[list[Candidate]], int]:
    """The answers to each prompt, and how many of them a sample stage drew: those of this very policy that are no
    longer than the limit. The policy draws the others."""
    n, known = config.num_generations, dict[str, list[Candidate]]()
    for sampled in (parent for parent in stage.parents if parent.manifest.stage == "sample"):
        for row in read_rows(sampled.dir / "candidates.jsonl", CandidateSet):
            short = [one for one in row.candidates if len(one.token_ids) <= config.most_tokens]
            known.setdefault(row.prompt_id, []).extend(one for one in short if drew(start, sampled, row, one))
    answers = [known.get(prompt_id(row.prompt), [])[:n] for row in rows]
    from_sample = sum(map(len, answers))
    say(
        f"{'answers':<12} {n} to each of {len(rows)} prompts: {from_sample} from the sample stage, "
        f"{n * len(rows) - from_sample} to draw"
    )
    for missing in sorted({n - len(one) for one in answers} - {0}):
        which = [i for i, one in enumerate(answers) if n - len(one) == missing]
        # Another seed than those of the sample stages of all rounds, or the same answers would be drawn again.
        decoding = config.decoding(config.seed * 1_000_003 + 1 + 2_000_003 * (config.round - 1))
        for i, more in zip(which, draw(policy, [rows[i].prompt for i in which], decoding, missing), strict=True):
            answers[i] += more
    return answers, from_sample


def drew(start: FinishedStage, sampled: FinishedStage, row: CandidateSet, answer: Candidate) -> bool:
    """Whether the policy of `start` drew an answer of a sample stage. In a further round each answer names its policy;
    the best of several, which a reward model chose, is no draw."""
    if answer.policy is None:
        return row.sampler.get("policy_sha256") == start.sha256
    is_named = answer.policy == start.stage.removesuffix("/align")
    return is_named and sampled.manifest.parent_sha256(start.stage) == start.sha256


@dataclass(frozen=True)
class Best:
    """The best paid answer to a prompt."""

    row: RolloutPrompt
    answer: Candidate
    reward: float
    parts: dict[str, float | None]
    """What each function gave, unweighted; None where it has no opinion."""
    all_rewards: list[float]
    """Of all answers to the prompt of which a function has an opinion."""


def best_answer(
    row: RolloutPrompt, answers: Sequence[Candidate], rewards: WeightedRewards, dropped: Dropped
) -> Best | None:
    """The answer with the highest reward among those that may be imitated: that ended by themselves, since others teach
    not to end, unless their end is worth nothing (`missing_eos_penalty: 0`). None, with the reason counted, where there
    is none, or where all answers are paid alike."""
    rewards(**columns_of([row] * len(answers), answers), log_metric=lambda name, value: None)  # as TRL calls them
    totals = rewards.totals
    paid = [i for i, total in enumerate(totals) if not math.isnan(total)]
    fit = [i for i in paid if answers[i].finished or not rewards.missing_eos_penalty]
    if not paid:
        dropped.add("no reward has an opinion")
    elif len({totals[i] for i in paid}) == 1:
        dropped.add("all answers are paid alike")
    elif not fit:
        dropped.add("no answer ended by itself")
    else:
        best = max(fit, key=lambda i: (totals[i], -i))
        parts = {name: None if math.isnan(values[best]) else values[best] for name, values in rewards.parts.items()}
        return Best(row, answers[best], totals[best], parts, [totals[i] for i in paid])
    return None


def encode(policy: Loaded, best: Best) -> Encoded:
    """The prompt and the answer's tokens as drawn. Those that closed its reasoning by force are not trained."""
    prompt, ids = encode_prompt(policy.tokenizer, best.row.prompt), best.answer.token_ids
    labels = [token if own else IGNORED for token, own in zip(ids, drawn(policy.tokenizer, best.answer), strict=True)]
    return Encoded([*prompt, *ids], [IGNORED] * len(prompt) + labels)


def sample_of(best: Best) -> RolloutSample:
    """The row of samples.jsonl."""
    return RolloutSample(
        step=0,
        prompt=best.row.prompt,
        reasoning=best.answer.reasoning,
        completion=best.answer.text,
        score=best.reward,
        kl=0.0,
        total=best.reward,
        rewards=best.parts,
    )


# ---- Training ---------------------------------------------------------------------------------------------------


def build_trainer(
    config: BestOfNConfig, stage: StageRun, policy: Loaded, rows: Sequence[Encoded], nats: Sequence[float]
) -> Any:
    """trl.SFTTrainer over rows that already are tokens with labels.

    nats  minus log pi of each row's answer under the policy at the start
    """
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    lengths = [len(row.input_ids) for row in rows]
    arguments = trainer_arguments(config, stage, policy, lengths)
    arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    expected = {tuple(row.input_ids): value for row, value in zip(rows, nats, strict=True)}
    trainer = batches.grouped_by_length(with_expected_loss(SFTTrainer, expected), config, lengths)(
        model=policy.model,
        args=build_arguments(TRLConfig, arguments, config),
        train_dataset=Dataset.from_list([vars(row) for row in rows]),
        processing_class=policy.tokenizer,
        peft_config=adapters.adapter(config, policy.model, TaskType.CAUSAL_LM),
    )
    adapters.let_head_be_read(trainer.model)
    trainer.add_callback(StartsAtPolicy(trainer, policy.placement.dtype != torch.float32))
    return trainer


def trial(config: BestOfNConfig, stage: StageRun, policy: Loaded) -> Any:
    """The trainer over one sample row (`trueup.training.trial`)."""
    return build_trainer(config, stage, policy, [Encoded([0, 0], [IGNORED, 0])], [0.0])
