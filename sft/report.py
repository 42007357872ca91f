"""What `sft` and `sample` leave in their report.json."""

from __future__ import annotations

from pydantic import ConfigDict

from trueup.artifacts.artifact import Artifact
from trueup.artifacts.reports import SampledAnswers
from trueup.data.records import Message, Row


class HeldoutLoss(Artifact):
    """Loss on held-out demonstrations, in nats per trained token; null without any."""

    before: float | None
    after: float | None
    rows: int


class RowCounts(Artifact):
    """Demonstrations."""

    train: int
    heldout: int
    dropped: dict[str, int]
    """Those that were not trained on, by reason."""


class TokenCounts(Artifact):
    """Tokens of the training rows."""

    all: int
    with_loss: int


class HeldoutCompletion(Row):
    """A row of sft/samples.jsonl: what the new policy says to a held-out prompt."""

    prompt: list[Message]
    demonstration: str
    """The completion that the demonstration has."""
    completion: str
    finished: bool
    """Whether the completion ends by itself."""


class SFTReport(Artifact):
    """sft/report.json."""

    heldout_loss: HeldoutLoss
    eos_rate: float | None
    """Share of completions of held-out prompts that end by themselves; none where no prompt left room for one."""
    trained_eos: int
    """Assistant turns whose end-of-turn token is a label."""
    rows: RowCounts
    tokens: TokenCounts
    by_category: dict[str, int]
    """Demonstrations trained on."""


class SampleReport(SampledAnswers):
    """candidates/report.json."""

    model_config = ConfigDict(extra="forbid")

    prompts: int
    heldout: int
    """Prompts that are held out."""
    mean_tokens: float
    """Mean length of a completion, with its end-of-turn token."""
