"""What one package reads of another's report: bases of the schemas that stand beside the stages' configs.

Packages meet on disk and never import each other. So whatever another package may rely on stands here, and the stage's
own schema adds the rest. A base ignores the keys that it does not name.
"""

from __future__ import annotations

from pydantic import ConfigDict

from trueup.artifacts import Artifact, absent
from trueup.manifest import Finding


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
    """What an alignment chose by itself (`rlhf.align_schema.DPOReport`)."""

    schedule: Schedule | None = absent()
