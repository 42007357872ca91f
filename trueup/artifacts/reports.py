"""The parts of reports that other packages read: bases of the schemas beside the stages' configs.

Packages meet on disk and never import each other. So the keys that another package may rely on stand here, and the
stage's own schema adds the rest. A base ignores the keys that it does not name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.manifest import Finding


class SharedReport(Artifact, extra="ignore"):
    """The part of a report that other packages read."""


# ---- Figures ----------------------------------------------------------------------------------------------------


class Estimate(Artifact):
    """A figure with its confidence interval; null if it is not known."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    """Independent units: prompts, or trials."""


def number(estimate: Estimate) -> float:
    """The value; NaN, for which every comparison is false, if it is not known."""
    return math.nan if estimate.value is None else estimate.value


class Share(Estimate):
    """A share over prompts, all with the same weight; `n` counts pairs."""

    prompts: int


class Rate(Estimate):
    """A win rate; `n` counts comparisons."""

    wins: int
    ties: int
    losses: int
    prompts: int


# ---- sample -----------------------------------------------------------------------------------------------------


class SampledAnswers(SharedReport):
    """Figures of the sampled completions (`sft.report.SampleReport`)."""

    eos_rate: float
    """Share of completions that end by themselves."""
    all_alike: float
    """Share of prompts whose completions are all the same text."""


# ---- label ------------------------------------------------------------------------------------------------------


class Reliability(Artifact):
    """How often an annotator is right (`trueup.statistics.reliability`)."""

    right: float
    """Probability that the preferred answer is the better one."""
    labels: int
    """Labels of pairs that were labelled more than once, hidden repeats among them, to prompts to train on."""
    checks: int
    """Hidden checks."""


class LabelSources(SharedReport):
    """Who or what made the labels (`ui.sources.report.LabelReport`)."""

    by_source: dict[str, int]
    by_round: dict[int, int] | None = absent()
    """Labels that each round asked for; absent where one asked for all."""
    seconds: float | None = absent()
    """Median time of a label by a person; absent where none was timed."""
    reliability: dict[str, Reliability] | None = absent()
    """By annotator; absent where no two labels are of one pair and there are no hidden checks."""
    agreement: float | None = absent()
    """How often two annotators put a pair in the same order, over the pairs of prompts to train on that several put in
    a strict one; absent where there are none."""


# ---- reward -----------------------------------------------------------------------------------------------------


class PairCounts(Artifact):
    """Strict pairs by split."""

    train: int
    heldout: int


class Baseline(Share):
    """Accuracy of a rule that reads nothing or of a bag of words, and what a rule learnt from the training pairs."""

    reversed: bool | None = absent()
    """Whether the rule is reversed, because that was right more often in training."""
    words: int | None = absent()
    """The length that the rule prefers."""


class BestBaseline(Artifact):
    """The baseline that is right most often in training, compared with the reward model on held-out pairs."""

    name: str
    difference: Estimate
    """The reward model's accuracy minus the baseline's, prompt by prompt."""


class Calibration(Artifact):
    """The distance between the reward model's confidence and its accuracy."""

    ece: float
    """Expected calibration error."""
    brier: float
    """Brier score: 0 is certain and right, 0.25 a coin toss."""
    temperature: float
    """Fitted on all held-out pairs. Above 1 the model is overconfident."""
    temperature_low: float
    temperature_high: float
    """Its 95 % interval over prompts."""
    ece_at_temperature: float | None
    """Expected calibration error of scores divided by a temperature that was fitted on other prompts; null with a
    single prompt."""
    brier_at_temperature: float | None
    """Brier score of the same."""


class Normalisation(Artifact):
    """The unit of scores, from the scores of held-out completions."""

    mean: float
    std: float


class RewardCard(SharedReport):
    """The report card of one reward model (`reward.report.RewardReport`)."""

    pairs: PairCounts
    accuracy: Share | None
    """Accuracy on held-out pairs. It is null, and keys that need held-out pairs are absent, if there are none."""
    baselines: dict[str, Baseline]
    best_baseline: BestBaseline | None = absent()
    calibration: Calibration | None = absent()
    normalisation: Normalisation | None = absent()
    findings: list[Finding]
    """Findings about this model; the stage's verdict has them too, where the second one's failure is a warning."""

    @property
    def failed(self) -> bool:
        return any(finding.level == "fail" for finding in self.findings)


class RewardCards(RewardCard):
    """The cards of the reward model and of the second one, if there is one."""

    judge: RewardCard | None = absent()
    """The second reward model, trained on `split.judge_fraction` of the prompts."""


# ---- align ------------------------------------------------------------------------------------------------------


class Schedule(Artifact):
    """The values of `auto`."""

    beta: float
    learning_rate: float
    num_train_epochs: float


class AlignSchedule(SharedReport):
    """The values that an alignment chose by itself (`rlhf.align.schema.DPOReport`, `KTOReport`)."""

    schedule: Schedule | None = absent()


# ---- compare ----------------------------------------------------------------------------------------------------


class ComparedPolicy(Artifact):
    """The result that a compared policy is."""

    stage: str
    manifest_sha256: str
    algorithm: str | None = absent()
    """Algorithm of the campaign's own aligned policy."""
    run: str | None = absent()
    """Run directory of a policy of another run."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn. Temperature 0 is greedy: the likeliest token, whatever the other keys say."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_thinking_tokens: Annotated[int, Field(exclude_if=lambda value: not value)] = 0
    """Most tokens of the reasoning before an answer, of a model that reasons. `max_new_tokens` count behind it."""

    @property
    def facts(self) -> dict[str, Any]:
        """As a row says it: without the reasoning of a model that does not reason."""
        return {key: value for key, value in vars(self).items() if value or key != "max_thinking_tokens"}


class ControlledRate(Estimate):
    """The win rate that the judge would give at equal length."""

    slope: float
    """Log-odds that being much longer adds to a win."""
    note: str | None
    """A limit of the figure, if there is one."""


class OwnFigures(Artifact):
    """What one kind of judge alone can say of itself."""

    comparisons: int | None = absent()
    """endpoint: pairs to compare."""
    contradictions: int | None = absent()
    """endpoint: pairs in which it preferred the same place in both orders."""
    position_bias: Estimate | None = absent()
    """endpoint: share of decided replies that prefer the first place."""
    refused: int | None = absent()
    cut: int | None = absent()
    malformed: int | None = absent()
    failed: dict[str, int] | None = absent()
    """endpoint: comparisons without a reply, by kind of error."""
    votes: int | None = absent()
    voters: int | None = absent()
    votes_on_other_completions: int | None = absent()


class JudgeFigures(OwnFigures):
    """What one judge says of the SFT and the aligned policy."""

    description: str
    made_the_labels: bool
    independent: bool
    win_rate: Rate
    length_controlled_win_rate: ControlledRate
    minimum_detectable_effect: float | None
    by_category: dict[str, Rate]


class ComparisonVerdict(Artifact):
    """The answer to whether alignment helped, and what it cost."""

    outcome: Literal["improved", "improved_at_a_price", "no_detectable_change", "worse", "no_verdict"]
    status: Literal["pass", "warn", "fail"]
    """The stage's status, by all of its findings."""
    code: str
    message: str
    prices: list[str]
    judge: str | None
    """The judge that decided; null if none could."""
    passed_over: dict[str, str]
    """Earlier judges in the order that could not decide, each with the reason."""


class ComparisonFigures(SharedReport):
    """The part of a comparison that the application reads (`rlhf.compare.schema.CompareReport`)."""

    policies: dict[str, ComparedPolicy]
    """`sft`, `aligned`, and policies of other runs by their names."""
    confidence: float
    """Confidence level of every interval."""
    decoding: Decoding
    """Sampling settings of every policy."""
    judges: dict[str, JudgeFigures]
    noise_floor: dict[str, Rate]
    """The SFT policy against itself, by each judge that scores."""
    verdict: ComparisonVerdict


class McNemar(Artifact):
    """The exact test of whether two policies are right on different prompts by more than chance."""

    p_value: float
    both: int
    only_sft: int
    only_aligned: int
    neither: int


class PairedAccuracy(Artifact):
    """Accuracy of both policies on the same prompts."""

    sft: Estimate
    aligned: Estimate
    mcnemar: McNemar
    unverified: int
    """Prompts that the verifier could not judge."""
