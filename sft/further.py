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
from trueup.models.scoring import HeadScores, score_sets_by_heads
from trueup.runs import StageRun

Answers = list[list[Candidate]]
"""P lists of answers."""
Scores = list[list[HeadScores | None]]
"""What the last reward model says of each of them; None for an answer that it cannot read."""


def answer(
    config: SampleConfig, stage: StageRun, prompts: Sequence[Sequence[Message]], decoding: Decoding
) -> tuple[Answers, Scores]:
    """`num_candidates` answers to each prompt, and what the last round's reward model says of them."""
    sft, align, reward = stage.parents
    if failure := reward.failure():
        stage.find("warn", "failed_reward_model", f"{failure}; it chooses the best answers, and what people are asked")
    anchors = int(config.num_candidates * config.sft_share)
    num_best = int(config.num_candidates * config.best_share)
    own = config.num_candidates - anchors - num_best
    last = f"round-{config.round - 1}"
    drawn = max(config.best_of, num_best)
    best_of_n = f"best of {drawn}"
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
    newest = sampled(last, aligned(align), own + (drawn if num_best else 0), decoding.seed)
    references = sampled("sft", SavedPolicy(sft.dir / "model"), anchors, apart)
    scorer = load_reward_model(reward.dir / "model", reward_model_config(reward.dir.parent, config.model))
    scorer.model.eval()
    scores = score_sets_by_heads(scorer, prompts, newest, progress)
    best = [ranked(row[own:])[:num_best] for row in scores]
    anchored = score_sets_by_heads(scorer, prompts, references, progress)
    answers = [
        [*named(last, row[:own]), *named("sft", anchor), *named(best_of_n, [row[own + k] for k in top])]
        for row, anchor, top in zip(newest, references, best, strict=True)
    ]
    values = [
        [*row[:own], *anchor, *(row[own + k] for k in top)]
        for row, anchor, top in zip(scores, anchored, best, strict=True)
    ]
    return answers, values


def ranked(scores: Sequence[HeadScores | None]) -> list[int]:
    """The places of the scores, the best first and the first of equals; one without a score is the last choice."""
    worst = float("-inf")
    return sorted(range(len(scores)), key=lambda k: -(worst if (one := scores[k]) is None else one.score))


def named(policy: str, answers: Sequence[Candidate]) -> list[Candidate]:
    return [candidate.model_copy(update={"policy": policy}) for candidate in answers]
