"""How algorithms that are paid for sampled answers begin and end: what differs between them lies in between."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rlhf.align.config.paid import PaidConfig
from rlhf.align.prompts import Prompts, choose_prompts
from rlhf.align.report import write_report
from rlhf.align.rewards import Scorer, refuse_unfit, scorer
from rlhf.align.schema import BestOfNReport, OnlineReport
from trueup import runs
from trueup.artifacts.reports import Normalisation
from trueup.console import say
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.heads import fits_policy
from trueup.models.loading import Loaded
from trueup.models.policies import reward_model_config
from trueup.models.scoring import conversion
from trueup.runs import FinishedStage, StageRun
from trueup.training import loop


class Beginning(NamedTuple):
    stage: StageRun
    start: FinishedStage
    """The stage that made the policy."""
    reward: FinishedStage | None
    """None where the reward model does not pay."""
    policy: Loaded
    """As it is at the start, where it is also the reference."""
    prompts: Prompts
    on_one_base: bool
    """Whether the reward model was trained from this very policy, and reads its tokens with a head on all of its
    layers. Then both may share a base."""


def begin(config: PaidConfig) -> Beginning:
    """Open the stage and its parents, and load the policy and the prompts."""
    findings = refuse_unfit(config)  # before an earlier result is cleared away
    stage = runs.begin(config)
    stage.findings += findings
    parents = {parent.stage: parent for parent in stage.parents}
    start, reward = parents[config.start_stage], parents.get("reward")
    policy = loading.load_policy(start.dir / "model", config.model, master_weights=config.full_finetuning)
    reader = reward and loading.read_tokenizer(reward.dir / "model", reward_model_config(config.run_dir, config.model))
    converted = reader and conversion(reader, policy.tokenizer)
    if converted:
        say(f"{'reward':<12} {converted}")
        stage.find("info", "reward_model_reads_text", converted)
    prompts = choose_prompts(config, stage, policy.tokenizer, reader if converted else None)
    stage.trained_on(row.prompt for row in [*prompts.train, *prompts.evaluation])
    on_one_base = not converted and (
        reward is None
        or (reward.manifest.parent_sha256("sft") == start.sha256 and fits_policy(reward.dir / "model", policy.model))
    )
    return Beginning(stage, start, reward, policy, prompts, on_one_base)


def load_reward_model(config: PaidConfig, reward: FinishedStage) -> Loaded:
    """The reward model that pays, frozen, as a model of its own."""
    loaded = loading.load_reward_model(reward.dir / "model", reward_model_config(config.run_dir, config.model))
    loaded.model.eval().requires_grad_(False)
    return loaded


def scorer_of(config: PaidConfig, reward: FinishedStage, units: Normalisation) -> Scorer:
    """What the reward model pays, as a model of its own."""
    return scorer(load_reward_model(config, reward), units, config.reward_caution)


def proof_rows(policy: Loaded, prompts: Prompts) -> list[list[int]]:
    """A few prompts in tokens, on which the logits before and after merging are compared."""
    return [encode_prompt(policy.tokenizer, row.prompt) for row in prompts.train[:4]]


def save(stage: StageRun, aligned: Loaded, report: OnlineReport | BestOfNReport) -> Path:
    """Write the aligned policy, its report and the page of it, and finish the stage."""
    loop.require_sound(aligned.model, "align, merging the adapter", every=True)
    loading.save(aligned, stage.dir / "model")
    stage.write_report(report)
    stage.facts.update(aligned.placement.facts)
    write_report(stage, report)
    return stage.finish()
