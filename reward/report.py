"""What `reward` leaves in its report.json."""

from __future__ import annotations

from pydantic import ConfigDict

from trueup.artifacts.artifact import absent
from trueup.artifacts.manifest import MergeCheck
from trueup.artifacts.reports import Baseline, RewardCard, Share


class ReportCard(RewardCard):
    """All that is known of one reward model; the keys on held-out pairs are left out where there are none."""

    model_config = ConfigDict(extra="forbid")

    length_baseline: Baseline | None
    """Accuracy of length alone, in the direction that is right more often in training."""
    reward_length_spearman: float | None = None
    """Rank correlation of the margin in score with the margin in length."""
    by_category: dict[str, Share] | None = absent()
    by_annotator: dict[str, Share] | None = absent()


class SecondReportCard(ReportCard):
    """The card of the second reward model, whose merge has no manifest to stand in."""

    merge: MergeCheck | None


class RewardReport(ReportCard):
    """reward/report.json."""

    judge: SecondReportCard | None = absent()
    """The second reward model, trained on `split.judge_fraction` of the prompts."""
