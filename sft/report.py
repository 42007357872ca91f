"""Schemas of the report.json of `sft`, with a training and without, and of `sample`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trueup.artifacts.artifact import Artifact
from trueup.artifacts.reports import SampledAnswers
from trueup.data.records import Message, Row, is_empty


class HeldoutLoss(Artifact):
    """Loss on held-out demonstrations, in nats per trained token; null without any."""

    before: float | None
    after: float | None
    rows: int


class RowCounts(Artifact):
    """Numbers of demonstrations."""

    train: int
    heldout: int
    dropped: dict[str, int]
    """Demonstrations that were left out, by reason."""


class TokenCounts(Artifact):
    """Tokens of the training rows."""

    all: int
    with_loss: int


class HeldoutCompletion(Row):
    """A row of sft/samples.jsonl: the new policy's completion of a held-out prompt."""

    prompt: list[Message]
    demonstration: str
    """The demonstration's completion."""
    reasoning: str = Field("", exclude_if=is_empty)
    """What the policy wrote before its completion, with its tags."""
    completion: str
    finished: bool
    """Whether the completion ends by itself."""


class SFTReport(Artifact):
    """sft/report.json."""

    heldout_loss: HeldoutLoss
    eos_rate: float | None
    """Share of completions of held-out prompts that end by themselves; null if no prompt left room for one."""
    trained_eos: int
    """Assistant turns whose end-of-turn token carries loss."""
    rows: RowCounts
    tokens: TokenCounts
    by_category: dict[str, int]
    """Demonstrations in training, by category."""


class StartReport(Artifact):
    """sft/report.json where nothing was trained (`sft: none`)."""

    model: str
    """The model that is the SFT policy, as the campaign names it."""
    adapter: str | None
    """The adapter that was merged into it, as the campaign names it."""
    weights: Literal["linked", "copied", "saved", "merged"]
    """The way of the weights into the run: the model's own files, by a hard link or as a copy; saved as safetensors; or
    merged with the adapter."""
    parameters: int


class SampleReport(SampledAnswers, extra="forbid"):
    """candidates/report.json."""

    prompts: int
    heldout: int
    """Number of held-out prompts."""
    mean_tokens: float
    """Mean length of a completion, with its end-of-turn token."""
