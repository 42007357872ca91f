"""What one package reads of another's report: bases of the schemas that stand beside the stages' configs.

Packages meet on disk and never import each other. So whatever another package may rely on stands here, and the stage's
own schema adds the rest. A base ignores the keys that it does not name.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.manifest import Finding


class SharedReport(Artifact):
    """The part of a report that other packages read."""

    model_config = ConfigDict(extra="ignore")


# ---- Figures ----------------------------------------------------------------------------------------------------


class Estimate(Artifact):
    """A figure with its confidence interval; null where nothing is known."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    """Independent units: prompts, or trials."""


def number(estimate: Estimate) -> float:
    """The value; NaN, which no comparison holds for, where nothing is known."""
    return math.nan if estimate.value is None else estimate.value


class Share(Estimate):
    """A share over prompts, each of which weighs the same; `n` counts pairs."""

    prompts: int


class Rate(Estimate):
    """A win rate; `n` counts comparisons."""

    wins: int
    ties: int
    losses: int
    prompts: int


# ---- sample -----------------------------------------------------------------------------------------------------


class SampledAnswers(SharedReport):
    """How the sampled completions are (`sft.report.SampleReport`)."""

    eos_rate: float
    """Share of completions that end by themselves."""
    all_alike: float
    """Share of prompts whose completions are all the same text."""


# ---- label ------------------------------------------------------------------------------------------------------


class LabelSources(SharedReport):
    """Who or what made the labels (`ui.label_report.LabelReport`)."""

    by_source: dict[str, int]


# ---- reward -----------------------------------------------------------------------------------------------------


class PairCounts(Artifact):
    """Strict pairs by split."""

    train: int
    heldout: int


class Baseline(Share):
    """Accuracy of a rule that reads nothing, and what the rule took from the training pairs."""

    reversed: bool | None = absent()
    """Whether the rule counts the other way round, since that was right more often in training."""
    words: int | None = absent()
    """The length that the rule prefers."""


class BestBaseline(Artifact):
    """The rule that is right most often in training, against the reward model on held-out pairs."""

    name: str
    difference: Estimate
    """Accuracy of the reward model less that of the rule, prompt by prompt."""


class Calibration(Artifact):
    """How far the reward model's confidence is from how often it is right."""

    ece: float
    """Expected calibration error."""
    temperature: float
    """Above 1 the model is overconfident."""


class Normalisation(Artifact):
    """What scores are counted in: those of held-out completions."""

    mean: float
    std: float


class RewardCard(SharedReport):
    """The report card of one reward model (`reward.report.RewardReport`)."""

    pairs: PairCounts
    accuracy: Share | None
    """On held-out pairs; null where no labelled prompt is held out, and then everything that needs some is left out."""
    baselines: dict[str, Baseline]
    best_baseline: BestBaseline | None = absent()
    calibration: Calibration | None = absent()
    normalisation: Normalisation | None = absent()
    findings: list[Finding]
    """What was found of this model; the stage's verdict holds the same."""


class RewardCards(RewardCard):
    """The card of the reward model, and of the second one where there is one."""

    judge: RewardCard | None = absent()
    """The second reward model, trained on `split.judge_fraction` of the prompts."""


# ---- align ------------------------------------------------------------------------------------------------------


class Schedule(Artifact):
    """What `auto` stood for."""

    beta: float
    learning_rate: float
    num_train_epochs: float


class AlignSchedule(SharedReport):
    """What an alignment chose by itself (`rlhf.align.schema.DPOReport`)."""

    schedule: Schedule | None = absent()


# ---- compare ----------------------------------------------------------------------------------------------------


class ComparedPolicy(Artifact):
    """Which result a compared policy is."""

    stage: str
    manifest_sha256: str
    algorithm: str | None = absent()
    """How the campaign's own aligned policy was aligned."""
    run: str | None = absent()
    """The run directory of a policy of another run."""


class DecodingSettings(Artifact):
    """How every policy was sampled."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


class ControlledRate(Estimate):
    """The win rate that the judge would give at equal length."""

    slope: float
    """Log-odds that being much longer adds to a win."""
    note: str | None
    """Why the figure says less than it seems to."""


class JudgeFigures(Artifact):
    """What one judge says of the SFT and the aligned policy. The keys after `by_category` are those of one judge."""

    description: str
    made_the_labels: bool
    independent: bool
    win_rate: Rate
    length_controlled_win_rate: ControlledRate
    minimum_detectable_effect: float | None
    by_category: dict[str, Rate]
    comparisons: int | None = absent()
    """endpoint: pairs that it was to compare."""
    contradictions: int | None = absent()
    """endpoint: pairs in which it preferred the same place in both orders."""
    position_bias: Estimate | None = absent()
    """endpoint: share of decided replies that prefer the first place."""
    refused: int | None = absent()
    cut: int | None = absent()
    malformed: int | None = absent()
    failed: dict[str, int] | None = absent()
    """endpoint: comparisons without a reply, by what went wrong."""
    votes: int | None = absent()
    voters: int | None = absent()
    votes_on_other_completions: int | None = absent()


class ComparisonVerdict(Artifact):
    """Did alignment help, and what did it cost?"""

    outcome: Literal["improved", "improved_at_a_price", "no_detectable_change", "worse", "no_verdict"]
    status: Literal["pass", "warn", "fail"]
    """The stage's, by all of its findings."""
    code: str
    message: str
    prices: list[str]
    judge: str | None
    """Who decided; null: nobody could."""
    passed_over: dict[str, str]
    """Judges that stand before it and decide nothing, each with the reason."""


class ComparisonFigures(SharedReport):
    """What the application reads of a comparison (`rlhf.compare.schema.CompareReport`)."""

    policies: dict[str, ComparedPolicy]
    """`sft`, `aligned`, and those of other runs by their names."""
    confidence: float
    """Level of every interval."""
    decoding: DecodingSettings
    judges: dict[str, JudgeFigures]
    noise_floor: dict[str, Rate]
    """The SFT policy against itself, by each judge that scores."""
    verdict: ComparisonVerdict
