"""What `compare` leaves in its report.json."""

from __future__ import annotations

from pydantic import Field

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.reports import ComparisonFigures, Estimate, PairedAccuracy, Rate
from trueup.data.records import Message, Row, is_empty


class PolicyMeasures(Artifact):
    """What one policy's completions are like, whatever a judge says of them."""

    length_tokens: float
    """Mean length, with the end-of-turn token."""
    eos_rate: float
    """Share that ends by itself."""
    distinct_2: float | None
    """Share of distinct word pairs; null for best of n, which gives one completion in several places."""
    repetition: float
    """Share that says three words in a row twice."""
    self_similarity: Estimate | None
    """How alike the completions of one prompt are."""
    heldout_loss: float | None
    """Nats per token of held-out demonstrations."""
    kl_nats: Estimate | None
    """KL to the SFT policy, per completion. Best of n has a bound in its place, without an interval."""


class ComparedPair(Artifact):
    """Two policies by one judge."""

    a: str
    b: str
    judge: str
    win_rate: Rate
    """How often `b` wins over `a`."""


class Strength(Estimate):
    """Bradley-Terry strength: log-odds of winning against the SFT policy."""

    elo: float
    """The value in Elo points."""


class PoliciesCompared(Artifact):
    """Every policy against every other one."""

    policies: list[str]
    best_of: int | None
    """From how many completions best of n chooses; null where it is not compared."""
    pairs: list[ComparedPair]
    strengths: dict[str, dict[str, Strength]]
    """Strength of each policy, by judge and policy."""
    notes: dict[str, str]
    """Why a judge's strengths say less than they seem to, by judge."""
    measures: dict[str, PolicyMeasures]


class CompletionKL(Estimate):
    """KL to the SFT policy in nats per completion."""

    samples_per_prompt: int


class Checkpoint(Artifact):
    """A kept step of the alignment, on the first prompts."""

    step: int
    kl_nats: Estimate
    scores: dict[str, Estimate]
    """Mean score by each judge that scores."""


class CheckResult(PairedAccuracy):
    """What both policies could do on prompts whose completions a program verifies."""

    verifier: str
    prompts: str
    """Which prompts were asked."""
    left_out: int
    """Prompts that a stage trained on."""
    unsupported: dict[str, int]
    """Instructions that the verifier does not know, by kind."""


class LastRound(Artifact):
    """This round beside the last one, by the judge that decided, and what another would probably add."""

    judge: str
    win_rate: Rate
    """How often this round's policy wins over the last one's."""
    gain: Estimate
    """Its win rate against the SFT policy minus that of the last one's."""
    labels: int
    """Labels that this round added."""
    hours: float | None
    """Time of as many more, at the median of people's labels so far; null for labels by a program."""
    expected_gain: Estimate
    """What as many more would probably add to the win rate against the SFT policy."""


class CompareReport(ComparisonFigures, extra="forbid"):
    """compare/report.json."""

    prompts: int
    samples_per_prompt: int
    """Completions of each policy to each prompt."""
    sources: dict[str, int]
    """Labels by source; empty where the run holds none."""
    policies_compared: PoliciesCompared
    greedy: dict[str, Rate] | None
    """Win rates of the aligned policy's likeliest completions, by judge; null where they were not asked for."""
    kl_nats: CompletionKL
    kl_nats_per_token: Estimate
    kl_budget: float | None
    checkpoints: list[Checkpoint]
    chosen_by_budget: Checkpoint | None
    """The kept step that the budget would choose."""
    identical_completions: float
    """Share of the completions in which both policies say the same, token by token."""
    checks: dict[str, CheckResult]
    last_round: LastRound | None = absent()
    """Absent in the first round, and where the judge that decided does not score answers."""


class ComparedCompletion(Row):
    """A completion as samples.jsonl has it."""

    text: str
    reasoning: str = Field("", exclude_if=is_empty)
    """What a model that reasons wrote before it."""
    finished: bool
    num_tokens: int
    logp: float | None
    scores: dict[str, float]
    """By each judge that scores."""


class PromptComparison(Row):
    """A row of compare/samples.jsonl: a prompt with the completions of every policy, and what the judges say."""

    prompt_id: str
    prompt: list[Message]
    category: str | None
    sft: list[ComparedCompletion]
    aligned: list[ComparedCompletion]
    others: dict[str, list[ComparedCompletion]]
    win_share: dict[str, float | None]
    """Share of the comparisons that the aligned policy won, by judge; null where there was none."""
