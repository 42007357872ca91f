"""How PPO, GRPO and RLOO begin and end: what differs between them lies in between."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rlhf.align.config import OnlineConfig
from rlhf.align.prompts import Prompts, choose_prompts
from rlhf.align.report import write_report
from rlhf.align.rewards import refuse_unfit
from rlhf.align.schema import OnlineReport
from trueup import runs
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.loading import Loaded
from trueup.runs import FinishedStage, StageRun
from trueup.training import loop


class Beginning(NamedTuple):
    stage: StageRun
    sft: FinishedStage
    reward: FinishedStage | None
    """None where the reward model does not pay."""
    policy: Loaded
    """The SFT policy, which is also the reference."""
    prompts: Prompts


def begin(config: OnlineConfig) -> Beginning:
    """Open the stage and its parents, and load the SFT policy and the prompts."""
    refuse_unfit(config)  # before an earlier result is cleared away
    stage = runs.begin(config)
    parents = {parent.stage: parent for parent in stage.parents}
    policy = loading.load_policy(parents["sft"].dir / "model", config.model, master_weights=config.full_finetuning)
    prompts = choose_prompts(config, stage, policy.tokenizer)
    stage.trained_on(row.prompt for row in [*prompts.train, *prompts.evaluation])
    return Beginning(stage, parents["sft"], parents.get("reward"), policy, prompts)


def proof_rows(policy: Loaded, prompts: Prompts) -> list[list[int]]:
    """A few prompts in tokens, on which the logits before and after merging are compared."""
    return [encode_prompt(policy.tokenizer, row.prompt) for row in prompts.train[:4]]


def save(stage: StageRun, aligned: Loaded, report: OnlineReport) -> Path:
    """Write the aligned policy, its report and the page of it, and finish the stage."""
    loop.require_sound(aligned.model, "align, merging the adapter", every=True)
    loading.save(aligned, stage.dir / "model")
    stage.write_report(report)
    stage.facts.update(aligned.placement.facts)
    write_report(stage, report)
    return stage.finish()
