"""The path of an alignment: reward and KL of the policy that it started from, of the kept steps, and of the aligned
policy. The KL is to the SFT policy, from which a further round's alignment need not have started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.compare.answers import (
    ALIGNED,
    Answers,
    ComparedCompletions,
    TokenKLs,
    kl_per_sequence,
    on_common_prompts,
    sample_policy,
)
from rlhf.compare.config import CompareConfig
from rlhf.compare.judges import Judge, ScoringJudge
from rlhf.compare.schema import Checkpoint
from trueup.artifacts.reports import number
from trueup.models.loading import SavedPolicy
from trueup.models.policies import start_name
from trueup.models.sampling import Decoding
from trueup.runs import FinishedStage
from trueup.statistics import intervals
from trueup.training.adapters import STEPS


@dataclass(frozen=True)
class KeptStep:
    """A policy on the way, with one answer to each of the first prompts."""

    step: int
    policy: SavedPolicy
    answers: Answers
    """P lists of one."""


def kept_steps(align: FinishedStage) -> dict[int, Path]:
    """{step: adapter} of the steps that the alignment kept, in order."""
    folders = (align.dir / STEPS).glob("step-*")
    return {step: path for step, path in sorted((int(path.name.removeprefix("step-")), path) for path in folders)}


def sample_steps(
    policies: Mapping[str, SavedPolicy],
    align: FinishedStage,
    comparison: ComparedCompletions,
    decoding: Decoding,
    config: CompareConfig,
    folder: Path,
) -> list[KeptStep]:
    """One answer of every policy on the way to the first `step_prompts` prompts; the ends of the way have theirs."""
    adapters = kept_steps(align) if config.step_prompts else {}
    if not adapters:
        return []
    rows, start = comparison.rows[: config.step_prompts], start_name(align).removesuffix("/align")
    # The result may be a step on the way, if that was chosen as the best.
    result = int(align.manifest.steps or max(adapters) + 1)
    steps = [
        KeptStep(step, policies[name], _first(comparison.by_policy[name], len(rows)))
        for step, name in ((0, start), (result, ALIGNED))
    ]
    before = policies[start].merged or policies[start].directory
    for step, adapter in adapters.items():
        if step != result:
            policy = SavedPolicy(before, adapter)
            steps.append(
                KeptStep(step, policy, sample_policy(f"step-{step}", policy, rows, decoding, 1, config, folder))
            )
    return sorted(steps, key=lambda at: at.step)


def _first(answers: Answers, prompts: int) -> Answers:
    return [row[:1] for row in answers[:prompts]]


def measure(
    steps: Sequence[KeptStep],
    kls: Sequence[TokenKLs],
    comparison: ComparedCompletions,
    judges: Sequence[Judge],
    config: CompareConfig,
) -> list[Checkpoint]:
    """KL and each judge's mean score at every step.

    kls  for each step the KL at each token of its answers, to the first `step_prompts` prompts or to more
    """
    rows = comparison.rows[: config.step_prompts]
    by_judge = {
        judge.name: on_common_prompts({str(step.step): judge.score(rows, step.answers) for step in steps})
        for judge in judges
        if isinstance(judge, ScoringJudge)
    }
    path = []
    for step, per_token in zip(steps, kls, strict=True):
        kl = kl_per_sequence(per_token[: len(step.answers)], config.confidence, config.seed)
        read = {name: [row for row in of[str(step.step)] if not math.isnan(row[0])] for name, of in by_judge.items()}
        scores = {
            name: intervals.bootstrap_mean(values, config.confidence, config.seed, bounds=None).estimate()
            for name, values in read.items()
            if values
        }
        path.append(Checkpoint(step=step.step, kl_nats=kl.estimate(), scores=scores))
    return path


def within_budget(path: Sequence[Checkpoint], judge: str, budget: float | None) -> Checkpoint | None:
    """The step with the highest mean score whose KL is within the budget; None without a budget, steps or scores."""
    steps = [at for at in path if budget is not None and number(at.kl_nats) <= budget and judge in at.scores]
    return max(steps, key=lambda at: number(at.scores[judge]), default=None)
