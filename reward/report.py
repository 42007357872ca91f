"""Schemas of the report.json of `reward`."""

from __future__ import annotations

from trueup.artifacts.artifact import absent
from trueup.artifacts.manifest import MergeCheck
from trueup.artifacts.reports import Baseline, Estimate, RewardCard, Share
from trueup.data.records import Row


class ProbeShare(Share):
    """Accuracy of a probe (`reward.probe`): what the model knew of these preferences before it was trained."""

    reason: str
    """Where the probe reads, and why there."""
    difference: Estimate
    """The reward model's accuracy minus the probe's, prompt by prompt."""


class ReportCard(RewardCard, extra="forbid"):
    """The report card of one reward model. Without held-out pairs it has no keys about them."""

    length_baseline: Baseline | None
    """Accuracy of length alone, in the direction that is right more often in training."""
    reward_length_spearman: float | None = None
    """Rank correlation of the margin in score with the margin in length."""
    probe: ProbeShare | None = absent()
    """Absent where nothing was trained."""
    by_category: dict[str, Share] | None = absent()
    by_annotator: dict[str, Share] | None = absent()


class SecondReportCard(ReportCard):
    """The card of the second reward model. It has the merge too, since the manifest has the first model's."""

    merge: MergeCheck | None


class RewardReport(ReportCard):
    """reward/report.json."""

    judge: SecondReportCard | None = absent()
    """The second reward model, trained on `split.judge_fraction` of the prompts."""


class PairScore(Row):
    """A row of scores.jsonl: what the reward model says of a held-out pair."""

    label_id: str
    prompt_id: str
    chosen: float
    rejected: float


class CandidateScores(Row):
    """A row of candidate_scores.jsonl: the score of each candidate of a prompt, in their order; null for one that the
    reward model cannot read."""

    prompt_id: str
    scores: list[float | None]
