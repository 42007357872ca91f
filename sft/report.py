"""Schemas of the report.json of `sft`, with a training and without, and of `sample`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.reports import Estimate, SampledAnswers
from trueup.data.records import Message, Row, is_empty


class HeldoutLoss(Artifact):
    """Loss on held-out demonstrations, in nats per trained token; null without any."""

    before: float | None
    after: float | None
    rows: int


class LongCounts(Artifact):
    """What became of demonstrations that are longer than `max_length`, by `sft.overlong: cut` or `split`."""

    demonstrations: int
    """Those of which something is left, on either side of the split."""
    tokens_cut: int
    """Tokens behind `max_length`, which were cut away."""
    parts: int
    """Dialogues that they became. One that was cut stays one."""
    exchanges_left_out: int
    """Exchanges of them that do not fit by themselves."""
    turns_left_out: int
    """Turns of them that no learnt answer follows."""
    parts_left_out: int
    """Parts that begin with a question that is held out, or with nearly one, while their dialogue is trained on."""


class RowCounts(Artifact):
    """Numbers of demonstrations."""

    train: int
    """Training rows, before they are packed."""
    packed: int | None = absent()
    """Rows that they were packed into (`sft.packing`), by which batches and steps count."""
    heldout: int
    dropped: dict[str, int]
    """Demonstrations that were left out, by reason."""
    long: LongCounts | None = absent()
    """Those that were too long, and were cut or split."""


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


class MeanChange(Estimate):
    """A mean over demonstrations by the base model and by the SFT policy. The estimate is of the change, paired by
    demonstration; `n` counts prompts."""

    before: float
    after: float
    demonstrations: int


class KindFigures(Artifact):
    """How a kind of task changed, on demonstrations that nothing trained on."""

    loss: MeanChange
    """In nats per token that carries loss."""
    exact: MeanChange | None
    """Share of greedy answers that are the demonstration's, whatever their case and the marks around them, where that
    has few words; null if none has."""
    overlap: MeanChange | None
    """F1 of the words of greedy answers and of the demonstrations' (https://arxiv.org/abs/1606.05250); null if no
    answer is short enough to be compared."""


class FiguresByKind(Artifact):
    """Figures by kind of task: of kinds that were trained on, and of those that `sft.leave_out` left out."""

    left_out: list[str]
    """As the key names them."""
    by_kind: dict[str, KindFigures]
    seen: KindFigures | None
    """Of all kinds that were trained on; null if none of their demonstrations is held out."""
    unseen: KindFigures | None
    neither: list[str]
    """Kinds that are not left out, and of which none is trained on."""
    told: int
    """Demonstrations without a category, whose kind was told by the words of their question."""


class SFTReport(Artifact):
    """sft/report.json."""

    heldout_loss: HeldoutLoss
    eos_rate: float | None
    """Share of completions of held-out prompts that end by themselves; null if no prompt left room for one."""
    trained_eos: int
    """Assistant turns whose end-of-turn token carries loss; with `sft.train_on: all`, turns of anybody."""
    rows: RowCounts
    tokens: TokenCounts
    by_category: dict[str, int]
    """Demonstrations in training, by category."""
    kinds: FiguresByKind | None = None
    """Null if no kind was left out."""


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
