"""The answers of a further round: most by the policy that the last round aligned, the others are anchors.

Anchors keep the labels in contact with what was known before. The SFT policy's answers show what alignment moved away
from, and the best of n by the last reward model what it moves towards. All have the same prompt, so each pair of them
is a comparison that people may be asked for.
Source  sampling the newest policy and its variants, best-of-n among them, round after round: Dong et al. 2024, RLHF
        Workflow, https://arxiv.org/abs/2405.07863, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sft.config import SampleConfig
from trueup.console import progress, say
from trueup.data.records import Candidate, Message
from trueup.models.loading import SavedPolicy, load_reward_model
from trueup.models.policies import aligned, reward_model_config
from trueup.models.sampling import Decoding, sample_resumed
from trueup.models.scoring import score_sets
from trueup.runs import StageRun

Answers = list[list[Candidate]]
"""P lists of answers."""
Scores = list[list[float | None]]
"""The last reward model's score of each of them; None for an answer that it cannot read."""


def answer(
    config: SampleConfig, stage: StageRun, prompts: Sequence[Sequence[Message]], decoding: Decoding
) -> tuple[Answers, Scores]:
    """`num_candidates` answers to each prompt, and what the last round's reward model says of them."""
    sft, align, reward = stage.parents
    anchors = int(config.num_candidates * config.sft_share)
    num_best = int(config.num_candidates * config.best_share)
    own = config.num_candidates - anchors - num_best
    last = f"round-{config.round - 1}"
    best_of_n = f"best of {config.best_of}"
    by = f"{own} by {last}, {anchors} by the SFT policy, {num_best} {best_of_n}"
    say(f"{'policies':<12} of each prompt's answers {by}")

    def sampled(name: str, policy: SavedPolicy, count: int, seed: int) -> Answers:
        if not count:
            return [[] for _ in prompts]
        drawing = replace(decoding, seed=seed)
        return sample_resumed(
            stage.dir, name, policy, config.model, prompts, drawing, count, config.batch_size, config.num_workers
        )

    # By the same random numbers a policy that moved little would give the SFT policy's very answers.
    apart = decoding.seed + 1_000_003
    newest = sampled(last, aligned(align), own + (config.best_of if num_best else 0), decoding.seed)
    references = sampled("sft", SavedPolicy(sft.dir / "model"), anchors, apart)
    scorer = load_reward_model(reward.dir / "model", reward_model_config(reward.dir.parent, config.model))
    scorer.model.eval()
    pools = [row[own:] for row in newest]
    chosen = best(pools, score_sets(scorer, prompts, pools, progress) if num_best else [[] for _ in pools], num_best)
    answers = [
        [*named(last, row[:own]), *named("sft", reference), *named(best_of_n, top)]
        for row, reference, top in zip(newest, references, chosen, strict=True)
    ]
    return answers, score_sets(scorer, prompts, answers, progress)


def best(pools: Answers, scores: Scores, count: int) -> Answers:
    """The `count` best of each pool by score, the first of equals; one without a score is the last choice."""

    def ranked(scores: Sequence[float | None]) -> list[int]:
        worst = float("-inf")
        return sorted(range(len(scores)), key=lambda k: -(worst if (value := scores[k]) is None else value))

    return [[pool[k] for k in ranked(row)[:count]] for pool, row in zip(pools, scores, strict=True)]


def named(policy: str, answers: Sequence[Candidate]) -> list[Candidate]:
    return [candidate.model_copy(update={"policy": policy}) for candidate in answers]
