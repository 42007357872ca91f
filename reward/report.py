"""Schemas of the report.json of `reward`."""

from __future__ import annotations

from typing import Literal

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.manifest import MergeCheck
from trueup.artifacts.reports import Baseline, Estimate, RewardCard, Share
from trueup.data.records import Message, Row


class Ceiling(Artifact):
    """How often even a perfect model would agree with one annotator (`reward.card.ceiling`)."""

    agreement: Share
    """How often two annotators agree on a pair that both put in a strict order; `n` counts pairs of answers."""
    accuracy: Estimate
    """The best accuracy if annotators err on every pair alike. It is lower, but not below the agreement, where some
    pairs are harder than others."""


class Stress(Artifact):
    """How often worse versions of held-out answers score higher than the answers (`reward.card.stress`)."""

    scores_higher: dict[str, Share]
    """By edit."""
    answers: int
    """Answers that were edited, each of another prompt."""
    seconds: float
    """What the probes took."""


class ReliabilityPoint(Artifact):
    """The held-out pairs in which the model is about as sure."""

    confidence: float
    """Mean probability with which the model expects the answer that it scores higher to be preferred. Each prompt
    weighs the same."""
    right: Share
    """How often that answer was preferred."""


class ProbeShare(Share):
    """Accuracy of a probe (`reward.probe`): what the model knew of these preferences before it was trained."""

    reason: str
    """Where the probe reads, and why there."""
    difference: Estimate
    """The reward model's accuracy minus the probe's, prompt by prompt."""


class LearningPoint(Artifact):
    """What a share of the training prompts teaches a probe (`reward.probe`), which takes seconds to fit."""

    share: float
    prompts: int
    """Training prompts from which each probe of this share learnt."""
    accuracy: Share
    """On the held-out pairs: the mean over probes of all parts of this size."""


class HeadAgreement(Artifact):
    """What the heads of an ensemble tell on held-out pairs (`reward.card.agreement`)."""

    heads: int
    agree: Share
    """The share of the pairs that all heads put in the same order."""
    right_where_agreed: Share | None
    """Accuracy of the reward model on these pairs; null where there are none."""
    right_elsewhere: Share | None
    difference: Estimate | None
    """The first accuracy minus the second; null where there is only one of them."""
    spread: float
    """Mean standard deviation over heads of the score of a held-out answer, in standard deviations of these scores."""


class ReportCard(RewardCard, extra="forbid"):
    """The report card of one reward model. Without held-out pairs it has no keys about them."""

    length_baseline: Baseline | None
    """Accuracy of length alone, in the direction that is right more often in training."""
    reward_length_spearman: float | None = None
    """Rank correlation of the margin in score with the margin in length."""
    probe: ProbeShare | None = absent()
    """Absent where nothing was trained."""
    learning_curve: list[LearningPoint] | None = absent()
    """Of the probe, by the share of the training prompts."""
    shuffled_p: float | None = absent()
    """How often labels that are shuffled by prompt would give at least this accuracy."""
    reliability: list[ReliabilityPoint] | None = absent()
    ceiling: Ceiling | None = absent()
    """Absent where no two annotators put the same pair in a strict order."""
    stress: Stress | None = absent()
    agreement: HeadAgreement | None = absent()
    """Of the heads (`reward.ensemble`); absent where there is one."""
    kendall_tau: Estimate | None = absent()
    """Rank correlation of scores with rankings of three answers or more, over held-out prompts; absent without any."""
    by_category: dict[str, Share] | None = absent()
    by_annotator: dict[str, Share] | None = absent()
    by_strength: dict[str, Share] | None = absent()
    """By how much better the chosen answer is: 1 slightly, 2 better, 3 much; `none` where nobody was asked."""
    by_source: dict[str, Share] | None = absent()
    by_round: dict[str, Share] | None = absent()
    by_length: dict[str, Share] | None = absent()
    """By whether the chosen answer has more words than the other."""


class Learnt(Artifact):
    """What a reward model learnt from."""

    labels: int
    comparisons: int
    """Pairs of answers, or an answer below the mean of others, in these labels."""
    ties: int
    """Comparisons in which neither side is better."""
    graded: int
    """Comparisons whose grade asks for a margin."""
    below_others: int
    """Comparisons of an answer that was found bad with the mean of others."""
    ideal: int
    """Comparisons of an ideal answer, which an annotator wrote, with an answer that was shown."""
    label_smoothing: float | None = absent()
    """Share of preferences that were taken to be the wrong way round; absent at 0."""
    annotator_weights: dict[str, float] | None = absent()
    """Weight of each annotator's labels; absent where all counted alike."""
    tie_threshold: float | None
    """Gap between two scores at which the better answer wins half of the comparisons; the other half are ties and
    losses. Null if no tie was learnt from by the model of Rao and Kupper."""


class StartChoice(Artifact):
    """Whether training improved on the probe that the head was at first (`reward.start`)."""

    reason: str
    """Where the head reads, and why there."""
    kept_prompts: int
    """Training prompts that decided it, and trained nothing; 0 where there were too few."""
    loss_at_start: float | None
    """On these prompts, at the best temperature."""
    loss_trained: float | None
    """The smallest during training, in the same way."""
    step: int
    """The step whose weights were kept; 0: training was undone, and the model is the probe of all training pairs."""


class SecondReportCard(ReportCard):
    """The card of the second reward model. It has the merge too, since the manifest has the first model's."""

    learnt: Learnt | None
    start: StartChoice | None = absent()
    merge: MergeCheck | None


class RewardReport(ReportCard):
    """reward/report.json."""

    learnt: Learnt | None
    """Null of a reward model that is used as it is."""
    start: StartChoice | None = absent()
    """Absent where the head started with random weights."""
    judge: SecondReportCard | None = absent()
    """The second reward model, trained on `split.judge_fraction` of the prompts."""


class PairScore(Row):
    """A row of scores.jsonl: what the reward model says of a held-out pair."""

    label_id: str
    prompt_id: str
    chosen: float
    rejected: float


class Mistake(Row):
    """A row of mistakes.jsonl: a held-out pair that the reward model orders against the label, the surest first."""

    label_id: str
    prompt_id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    confidence: float
    """Probability, by the two scores, that the rejected answer is preferred."""
    category: str | None
    annotator: str
    strength: int | None


class AnswerScore(Row):
    """A line of `trueup reward score`: an answer of a file, and what the reward model says of it."""

    where: str
    """File and line of its row."""
    prompt_id: str
    category: str | None
    completion: str
    tier: int | None
    """Its rank in the row, 0 is best; null if it is not ranked."""
    score: float
    spread: float | None = absent()
    """Standard deviation of the score over the heads of an ensemble (`reward.ensemble`)."""


class FileReport(Artifact):
    """The figures of `trueup reward eval`: how often the better answer scores higher. Each prompt weighs the same."""

    model: str
    file: str
    file_sha256: str
    rows: int
    """Rows whose answers all have a score."""
    ties: int
    """Rows among them that prefer no answer, and count for nothing."""
    dropped: dict[str, int]
    """Rows that were not used, by reason."""
    columns_not_read: dict[str, int]
    """Columns that no reader knows, with the number of rows that have them."""
    accuracy: Share
    length_rule: Literal["longer", "shorter"]
    """Which of the two is right more often in this file."""
    by_length_rule: Share
    """Accuracy of that rule."""
    ahead: Estimate
    """The model's accuracy minus the rule's, prompt by prompt."""
    by_category: dict[str, Share]
    by_length: dict[str, Share]
    """By whether the chosen answer has more words than the other."""
