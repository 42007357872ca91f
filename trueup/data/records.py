"""The rows that stages exchange on disk, and the one way to read and write them.

Columns are the field's: `messages` for demonstrations, conversational `prompt`, `chosen`, `rejected` for preferences
(https://huggingface.co/docs/trl/dataset_formats). Every reader names file and line of a row that it cannot take.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from trueup.data.jsonl import cut, excerpt
from trueup.data.words import as_seen
from trueup.errors import DataError
from trueup.files import Json, require_file, write_atomically

# ---- Rows -------------------------------------------------------------------------------------------------------


def is_empty(value: Any) -> bool:
    """For a column that most rows lack: it is written where it says something."""
    return not value


class Row(BaseModel):
    """A row on disk. Columns that we do not know are ignored: files from elsewhere carry them."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class FiledRow(Row):
    """A row that knows where it stands, for whatever is found wrong with it later."""

    where: ClassVar[str] = ""
    """File and line. `parse_row` puts it beside the fields: it is no column, and makes no row unlike another."""


class ToolCall(Row):
    """What an assistant asks a tool for."""

    name: str = Field(min_length=1)
    arguments: Json
    id: str | None = Field(None, exclude_if=is_empty)
    """By which a result says whose it is; None where the file has none."""


class Message(Row):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    """What is said; of a tool its result. An assistant that calls a tool may say nothing."""
    trained: bool = Field(True, exclude_if=bool)
    """Whether a demonstration's assistant turn carries loss. False: it is there to be read alone."""
    tools: list[Json] | None = Field(None, exclude_if=is_empty)
    """Of the first message of a conversation: the tools that it offers, as `trueup.data.tools` reads them."""
    tool_calls: list[ToolCall] | None = Field(None, exclude_if=is_empty)
    """Of an assistant: the tools that it calls, behind what it says."""
    name: str | None = Field(None, exclude_if=is_empty)
    """Of a tool's result: the tool."""
    tool_call_id: str | None = Field(None, exclude_if=is_empty)
    """Of a tool's result: the call."""

    @property
    def said(self) -> str:
        """The content and, a line each, the calls as JSON."""
        calls = [{"name": call.name, "arguments": call.arguments} for call in self.tool_calls or []]
        lines = [self.content] * bool(self.content or not calls)
        return "\n".join(lines + [json.dumps(call, ensure_ascii=False) for call in calls])


class Demonstration(FiledRow):
    """A conversation whose assistant turns are to be imitated, but for those that are not `trained`. It ends with an
    assistant turn, which may call a tool."""

    messages: list[Message]
    category: str | None = None

    @model_validator(mode="after")
    def _has_answers(self) -> Demonstration:
        _check_turns(self.messages, last="assistant", may_call=True)
        if not any(message.trained for message in self.messages if message.role == "assistant"):
            raise ValueError("no assistant turn carries loss, so there is nothing to imitate")
        return self


class Prompt(FiledRow):
    """A conversation that waits for an answer."""

    prompt: list[Message]
    category: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("prompt"), str):
            return {**values, "prompt": [{"role": "user", "content": values["prompt"]}]}
        return values

    @model_validator(mode="after")
    def _asks(self) -> Prompt:
        _check_turns(self.prompt, last="user")
        return self

    @cached_property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt)


class Candidate(Row):
    """One sampled answer. `token_ids` are what was sampled, so that an answer cut at the limit never looks finished."""

    text: str
    """The answer, which is what is judged and measured."""
    reasoning: str = Field("", exclude_if=is_empty)
    """What the model wrote before it, with both tags of its block, though the prompt may have written the first."""
    reasoning_tokens: int = Field(0, exclude_if=is_empty)
    """How many of the tokens are the reasoning."""
    closed_at: int | None = Field(None, exclude_if=lambda value: value is None)
    """Index of the first token that closed the reasoning by force. None: the model closed it, or there is none."""
    token_ids: list[int]
    """The completion's tokens, with the end-of-turn token exactly when the answer was finished."""
    finished: bool
    """True: the model ended its turn. False: the limit on new tokens cut it."""
    logp: float | None = None
    """log-probability of the tokens under the policy that sampled them, in nats, at temperature 1."""
    policy: str | None = Field(None, exclude_if=lambda value: value is None)
    """Which policy sampled it, where several answered one prompt: `sft`, `round-1`, `best of 4`."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer, without its reasoning."""
        return len(self.token_ids) - self.reasoning_tokens


class PromptRow(FiledRow):
    """What every row about a prompt says of it."""

    prompt_id: str
    prompt: list[Message]
    category: str | None = None
    split: Literal["train", "heldout"]


class CandidateSet(PromptRow):
    """A prompt and its K sampled answers."""

    candidates: list[Candidate]
    sampler: Json
    """Provenance: policy_sha256 (manifest of the stage that made it; null where several policies answered), and the
    decoding settings with their seed."""


class CandidateScores(Row):
    """A row of candidate_scores.jsonl: a reward model's score of each answer to a prompt, in their order; null for one
    that it cannot read."""

    prompt_id: str
    scores: list[FiniteFloat | None]
    heads: list[list[FiniteFloat] | None] | None = Field(None, exclude_if=lambda value: value is None)
    """What each head of its ensemble says of them (`reward.ensemble`); their mean is the score."""


Better = int | None | list[list[int]]
"""By one criterion: the index of the better of two answers, None where they are tied; or tiers of several answers."""


class Label(PromptRow):
    """Whose judgement on which answers it is, and how it was given."""

    label_id: str
    row_id: str | None = Field(None, exclude_if=is_empty)
    """The id that its row has in the file it was imported from."""
    sampled_by: str | None = None
    """Manifest hash of the policy that sampled all answers, and whose log-probabilities of them these are."""
    sampler: Json = {}
    """How the answers were sampled: policy, policy_sha256, temperature, seed, ..."""
    strength: int | None = None
    """How much better the chosen side of a pair is: 1 slightly, 2 better, 3 much; None where nobody was asked."""
    seconds: float | None = None
    """From the first paint to the decision."""
    round: int = 1
    """The round of the campaign that asked for it."""
    guideline_sha256: str | None = None
    selection: str | None = None
    """How people came to be asked: random or uncertainty."""
    propensity: float | None = None
    """Probability with which that selection chose it."""
    source: str
    """Who or what made it: human, simulated, import, judge, reward_model."""
    annotator: str
    created_utc: str


class Ranking(Label):
    """What one annotator said of the answers to one prompt, whole. A pairwise label is a ranking of two."""

    completions: list[str]
    completion_token_ids: list[list[int] | None]
    """As sampled; None for text that came from elsewhere, which then counts as finished."""
    finished: list[bool]
    reasonings: list[str] | None = Field(None, exclude_if=is_empty)
    """What a model wrote before each answer, with its tags; it is trained on, and nobody judges it."""
    logps: list[float | None] | None = None
    """log-probability of each answer under the policy that sampled it, in nats."""
    tiers: list[list[int]]
    """Indices into `completions`, best tier first; answers in one tier are tied; left out: not ranked."""
    both_bad: bool = False
    """A tie because neither answer is good."""
    criteria: dict[str, Better] | None = None
    """The better answer by each criterion that was asked, or their order by it."""
    note: str | None = None
    """Why, in the annotator's words."""
    display_order: list[int] | None = None
    """Indices into `completions` in the order in which they stood on the page: left to right, or top to bottom."""


IDEALS = "ideals.jsonl"
"""In the folder of the label stage, if people wrote ideal answers: each above the answers that were shown."""


class Preference(Label):
    """A pair in TRL's conversational preference format, with where it came from. Of a tie, which has the same form in a
    file of its own, the names of its sides mean nothing."""

    chosen: list[Message]
    rejected: list[Message]
    chosen_token_ids: list[int] | None = None
    rejected_token_ids: list[int] | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True
    chosen_reasoning: str = Field("", exclude_if=is_empty)
    rejected_reasoning: str = Field("", exclude_if=is_empty)
    """As `reasonings` of the ranking."""
    chosen_logp: float | None = None
    rejected_logp: float | None = None
    chosen_rank: int = 0
    rejected_rank: int = 1
    """Tiers in the ranking that this pair is part of, 0 is best."""
    num_tiers: int = 2
    both_bad: bool = Field(False, exclude_if=is_empty)
    """Of a tie: neither answer is good."""
    better_by: dict[str, Literal["chosen", "rejected"] | None] = Field({}, exclude_if=is_empty)
    """The better answer by each criterion that was asked; None: a tie."""
    ideal: bool = Field(False, exclude_if=is_empty)
    """Whether the annotator wrote the chosen answer, as the ideal one: no policy sampled it."""
    display_first: Literal["chosen", "rejected"] | None = None
    """Which of the two was on the left, or above the other."""

    @property
    def texts(self) -> tuple[str, str]:
        """The chosen and the rejected answer."""
        return self.chosen[0].content, self.rejected[0].content


_FOLLOWING = {"": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
"""Who speaks after whom."""


def _check_turns(messages: list[Message], last: str, may_call: bool = False) -> None:
    turns = [message.role for message in messages if message.role != "system"]
    follow = all(role in _FOLLOWING[before] for before, role in zip(["", *turns], turns, strict=False))
    ends = messages[-1].role == "assistant" or last != "assistant" if messages else False
    if not turns or not follow or turns[-1] != last or not ends:
        roles, results = ", ".join(message.role for message in messages), "tool" in turns
        what = "user, assistant, with results behind what calls for them," if results else "user, assistant"
        raise ValueError(f"turns must alternate {what} and end with {last}; found {roles or 'none'}")
    for message in messages:
        if not may_call and (message.role == "tool" or message.tool_calls or message.tools):
            raise ValueError("a conversation with tools is read as a demonstration alone; take the row out")
        if message.role in ("user", "assistant") and not message.content.strip() and not message.tool_calls:
            raise ValueError(f"{'an' if message.role == 'assistant' else 'a'} {message.role} turn is empty")


def moment(text: str) -> str:
    """A moment in ISO 8601 as it is stored: in UTC, to the millisecond. Without a time zone it is UTC already."""
    try:
        value = datetime.fromisoformat(text.strip())
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise ValueError(f"expected a moment such as 2026-11-27T09:30:00Z, found {excerpt(text)}") from None


# ---- Split ------------------------------------------------------------------------------------------------------


def prompt_id(messages: list[Message]) -> str:
    """Identity of a prompt: 16 hex digits over its roles and its text as it is seen (`trueup.data.words.as_seen`)."""
    return digest("\x1e".join(f"{message.role}\x1f{as_seen(message.said)}" for message in messages))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


T = TypeVar("T")


def random_rows(rows: Sequence[T], limit: int | None, seed: int) -> Sequence[T]:
    """At most so many rows, drawn by the seed."""
    return rows if limit is None or len(rows) <= limit else random.Random(seed).sample(rows, limit)


class HasPrompt(Protocol):
    @property
    def prompt_id(self) -> str: ...


P = TypeVar("P", bound=HasPrompt)


def shuffled(rows: Iterable[P], seed: int) -> list[P]:
    """Rows in a random order. Each row's place among the others depends on the seed and its prompt alone, so the rows
    of some of the prompts are in the same order as they are among all."""
    return sorted(rows, key=lambda row: random.Random(f"{seed}/{row.prompt_id}").random())


# ---- Files ------------------------------------------------------------------------------------------------------


SHOWN_COLUMNS = 12
BAD_ROW = "bad row: "
MOST_KINDS = 30
"""Kinds of bad rows that are counted each by itself."""
LEFT_OUT = "left_out.jsonl"
"""In a stage's folder: the rows of its inputs that could not be read."""
LEFT_OUT_FOLDER = "left_out"
"""In a run directory: such rows of files that were imported by command."""


class LeftOut(Row):
    """A row of left_out.jsonl, which could not be read."""

    where: str
    """File and line."""
    problem: str
    row: Any
    """As it stands in its file."""


@dataclass
class Dropped:
    """Rows that were not used, counted by reason. Nothing is dropped without being counted."""

    counts: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    """Columns that held something and were not read, each with the number of rows."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Rows that could not be read, each with where it stands and why."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The first questions (`opening`) of dialogues that were read, and where each stands first."""
    not_placed: int = 0
    """Dialogues that came behind the first questions that are kept, and begin with another."""
    formats: Counter[str] = field(default_factory=Counter)
    """The formats that rows were read as, each with the columns that decided it."""

    def add(self, reason: str, rows: int = 1) -> None:
        if rows:
            self.counts[reason] += rows

    def leave_out(self, where: str, problem: str, row: Any) -> None:
        kind = _kind(problem)
        kinds = sum(name.startswith(BAD_ROW) for name in self.counts)
        self.add(BAD_ROW + (kind if kinds < MOST_KINDS or BAD_ROW + kind in self.counts else "of another kind"))
        text = getattr(row, "line", None) if isinstance(row, ValueError) else row
        self.left_out.append(LeftOut(where=where, problem=problem, row=text))

    def most_ignored(self, number: int) -> dict[str, int]:
        """The columns that were not read, the most frequent first."""
        return dict(sorted(self.ignored.items(), key=lambda one: (-one[1], one[0]))[:number])

    @property
    def columns(self) -> str:
        """The columns that were not read, in a line; empty if there are none."""
        entries = [f"{name} ({rows})" for name, rows in self.most_ignored(SHOWN_COLUMNS).items()]
        more = len(self.ignored) - SHOWN_COLUMNS
        return ", ".join(entries) + (f" and {more} more" if more > 0 else "")

    def __str__(self) -> str:
        return ", ".join(f"{rows} {reason}" for reason, rows in sorted(self.counts.items())) or "none"


def _kind(problem: str) -> str:
    """What is wrong, without what was found and in which message: problems of a kind are counted together."""
    text = re.sub(r"holds .*?, which", "what", problem, flags=re.DOTALL)
    text = re.sub(r"^message \d+ \(\w+\): ", "", text)
    text = re.split(r"[;(]|, found|(?:,|:|: of) (?=['\"])", text)[0]
    return cut(re.sub(r"[0-9]+", "N", text).strip(), 80)


R = TypeVar("R", bound=Row)


def parse_row(schema: type[R], values: Any, where: str, at: str = "") -> R:
    """A row of `schema`, or a DataError that starts with `where` (file and line) and the key, or else with `at`."""
    try:
        row = schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        key = ".".join(cut(str(part), 40) for part in first["loc"][:6]) or at
        problem = cut(first["msg"].removeprefix("Value error, "), 300)
        raise DataError(f"{where}: {key + ': ' if key else ''}{problem}") from None
    if isinstance(row, FiledRow):
        row.__dict__["where"] = where
    return row


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a JSON Lines file; blank lines are skipped."""
    try:
        require_file(path)
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise DataError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from None
                    except (ValueError, RecursionError) as error:
                        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                        raise DataError(f"{path}:{number}: not JSON ({cut(problem, 80)})") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_rows(path: Path, schema: type[R]) -> list[R]:
    """All rows of a file that Trueup wrote."""
    return [parse_row(schema, values, f"{path}:{number}") for number, values in read_jsonl(path)]


def write_rows(path: Path, rows: Iterable[BaseModel | Mapping[str, object]]) -> None:
    """Write JSON Lines atomically."""
    plain = (row.model_dump(mode="json") if isinstance(row, BaseModel) else row for row in rows)
    write_atomically(path, (json.dumps(values, ensure_ascii=False) + "\n" for values in plain))
