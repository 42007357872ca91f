"""What `align` leaves in its report.json, by algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlhf.align.config import ALGORITHMS
from rlhf.align.config.online import OnlineConfig
from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.manifest import Finding
from trueup.artifacts.reports import AlignSchedule, Estimate, Normalisation, Schedule
from trueup.data.records import Message, Row, is_empty


class LogpsChange(Artifact):
    """How log-probabilities moved against the reference, in nats, at the end of the training."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """How much chosen completions gained on rejected ones."""
        return self.chosen - self.rejected


class LabelledReport(AlignSchedule, extra="forbid"):
    """What align/report.json has of every algorithm that learns from labelled pairs."""

    pairs: int
    """Strict pairs that were trained on."""
    ties_left_out: int
    """Tied pairs that were not."""
    ideal_pairs: int
    """Those of the strict pairs whose chosen answer an annotator wrote."""
    first: dict[str, float]
    """Means of TRL's metrics over the first tenth of the steps whose batch held both a chosen and a rejected answer."""
    last: dict[str, float]
    """The same over the last tenth."""
    logps_change_nats: LogpsChange | None
    """Null where no batch held both."""
    margin_nats: float | None
    """How much the chosen completions of the training pairs gained on the rejected ones."""
    heldout_accuracy: Estimate | None
    """Share of held-out pairs that the policy orders rightly, over prompts; null where there are none."""
    schedule: Schedule


class DPOReport(LabelledReport):
    """align/report.json of a DPO."""

    algorithm: Literal["dpo"]
    ties: int
    """Tied pairs that were trained on. `align.ties` leaves out the others, or they do not fit."""
    label_smoothing: float | None = absent()
    """Share of labels that were taken to be wrong; absent at 0."""
    annotator_weights: dict[str, float] | None = absent()
    """Weight of each annotator's labels; absent where all counted alike."""


class SimPOReport(LabelledReport):
    """align/report.json of a SimPO."""

    algorithm: Literal["simpo"]


class KTOReport(LabelledReport):
    """align/report.json of a KTO."""

    algorithm: Literal["kto"]
    desirable: int
    """Answers that were chosen."""
    undesirable: int
    """Answers that were rejected, or that are tied because both are bad."""
    both_bad: int
    """Tied pairs that are bad on both sides, all of each ranking. Other ties call no answer good or bad."""
    desirable_weight: float
    undesirable_weight: float


class Evaluation(Artifact):
    """How the policy did, at one step, on the prompts that are kept to choose a step by."""

    step: int
    """0: the policy at the start."""
    reward: float
    """Mean over the completions."""
    kl: float
    """To the policy at the start, in nats per completion."""
    second_reward: float | None = absent()
    """Mean reward with the second reward model in place of the one that pays, where there is one."""
    spread: float | None = absent()
    """Mean standard deviation over the heads of the reward model, in its units; absent where it has one head."""


class RolloutFigures(Artifact):
    """Means over the completions of one rollout of PPO."""

    scores: float
    length: float
    kl: float
    entropy: float
    eos_rate: float
    repetition: float
    explained_variance: float | None
    """Null where the returns are all the same."""


class PPOState(Artifact):
    """What a checkpoint of PPO keeps beside the weights."""

    kl_coef: float
    history: list[RolloutFigures]
    """The rollouts so far."""
    guard_findings: dict[str, Finding]
    """What the guards have found, by code."""


class RolloutSample(Row):
    """A row of align/samples.jsonl: an answer of a PPO rollout, and what it was paid."""

    step: int
    """At which the rollout was drawn."""
    prompt: list[Message]
    reasoning: str = Field("", exclude_if=is_empty)
    completion: str
    score: float
    """Weighted sum of the rewards."""
    kl: float
    """To the policy at the start, in nats."""
    total: float
    """The score less what the KL costs."""
    rewards: dict[str, float | None]
    """What each function gave, unweighted; null where it has no opinion."""


class KLPrice(Artifact):
    """What a nat of KL costs, in units of reward."""

    first: float
    last: float


if TYPE_CHECKING:
    OnlineAlgorithm = str
else:
    OnlineAlgorithm = Literal[tuple(name for name, schema in ALGORITHMS.items() if issubclass(schema, OnlineConfig))]


class PaidReport(Artifact):
    """What align/report.json has of every algorithm that is paid for sampled answers."""

    rewards: dict[str, float]
    """Weight of each reward."""
    reward_caution: float | None = absent()
    """Standard deviations over the reward model's heads that are taken from its score; absent at 0."""
    normalisation: Normalisation
    """What the reward model counts in; mean 0 and standard deviation 1 where none pays."""
    evaluations: list[Evaluation]
    chosen_step: int
    """The step whose adapter is the aligned policy."""
    chosen_by: Literal["reward", "second_reward"]
    steps_trained: int


class OnlineReport(PaidReport):
    """align/report.json of a PPO, GRPO or RLOO."""

    algorithm: OnlineAlgorithm
    rollouts: list[RolloutFigures]
    """PPO's; of the other algorithms metrics.jsonl tells."""
    kl_coef: KLPrice | None = absent()
    """PPO's."""


class BestOfNReport(PaidReport):
    """align/report.json of a best of n."""

    algorithm: Literal["best_of_n"]
    answers: int
    """Answers of all prompts to train on."""
    from_sample: int
    """Those among them that the sample stage drew."""
    imitated: int
    """Prompts whose best answer was imitated."""
    left_out: dict[str, int]
    """Prompts without one, by reason."""
    mean_reward: float
    """Mean over all answers."""
    best_reward: float
    """Mean over those that were imitated."""


AlignReport = Annotated[
    DPOReport | SimPOReport | KTOReport | BestOfNReport | OnlineReport, Field(discriminator="algorithm")
]
"""align/report.json, whatever the algorithm was."""
