"""Input and output of the labelling service, in Python and over HTTP.

`ui.pages.label_api` sends and reads these very classes, and only adds the HTML of a task's texts. They do not reveal
the model, file or setting of a completion, or whether a task is a hidden check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import ConfigDict, Field

from trueup.data.records import Message
from trueup.errors import TrueupError
from trueup.judging.votes import Policy
from ui.labels.config import LabelConfig
from ui.labels.judgements import Scale, Tiers, choices, is_order, meaning_of

Device = Literal["key", "click", "touch", "api"]
BetterSide = Literal["a", "b", "tie"]
State = Literal["work", "practice", "waiting", "done", "failed_practice"]
"""waiting: more pairs come, without the annotator doing anything."""

MAX_NOTE = 20_000
"""Most characters of a note or a demonstration."""
_UUID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class StaleToken(TrueupError):
    """A judgement of a task that this annotator does not, or no longer, have. Nothing was recorded."""


class BadJudgement(TrueupError):
    """A judgement that is not valid; the text says why."""


@dataclass(frozen=True)
class Settings:
    """Settings of a campaign's labelling."""

    scale: Scale = "graded"
    criteria: tuple[str, ...] = ()
    guideline: str = ""
    rationale_share: float = 0.0
    gold_share: float = 0.0
    repeat_share: float = 0.0
    repeat_after: int = 20
    """Labels after which an annotator's own pair may come again."""
    qualification_pass: float = 0.7
    lease_s: float = 600.0
    reveal: bool = False
    """Votes on a comparison: the response to each names the policies of its completions, so it is final."""

    @classmethod
    def of(cls, config: LabelConfig) -> Settings:
        """The settings of the campaign file."""
        return cls(
            scale=config.scale,
            criteria=tuple(config.criteria),
            guideline=config.guideline,
            rationale_share=config.rationale_share,
            gold_share=config.gold_share,
            repeat_share=config.repeat_share,
            qualification_pass=config.qualification_pass,
            lease_s=config.lease_minutes * 60,
        )


# ---- What comes out ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskHead:
    """A task without its texts."""

    token: str
    wants_rationale: bool
    practice: bool


@dataclass(frozen=True)
class Task(TaskHead):
    """A task of an annotator."""

    prompt: list[Message]
    texts: list[str]
    """The completions in the drawn order, without tokens of a template."""
    reasonings: list[str]
    """The reasoning before each, which nobody is asked to judge; empty where there is none."""


T = TypeVar("T", bound=TaskHead)


@dataclass(frozen=True)
class Practice:
    """The qualification round."""

    done: int
    total: int
    right: int


@dataclass(frozen=True)
class Progress:
    """An annotator's progress. A hidden check counts like any other pair, so that nothing here reveals it."""

    mine: int
    """The annotator's labels."""
    skipped: int
    """The annotator's skips and flags."""
    left: int
    """Pairs that may still come, by the last estimate."""
    practice: Practice | None
    """None: there is no qualification round, or it is passed."""


@dataclass(frozen=True)
class Worklist(Generic[T]):
    """The waiting tasks of an annotator, and the annotator's progress."""

    tasks: list[T]
    progress: Progress
    state: State


@dataclass(frozen=True)
class Feedback:
    """In the qualification round: whether the judgement was right."""

    right: bool
    best: BetterSide | Tiers
    """The side, or tiers of places where it is a ranking."""
    explanation: str | None


@dataclass(frozen=True)
class StoredJudgement:
    """A stored judgement."""

    client_uuid: str
    kind: Literal["label", "skip", "flag", "late"]
    """late: it is stored, but does not count, because somebody else has the pair."""
    choice: str | None = None
    order: Tiers | None = None


@dataclass(frozen=True)
class Reveal:
    """After a vote: the policy of the completion at each place."""

    a: Policy
    b: Policy


@dataclass(frozen=True)
class Recorded(Worklist[T]):
    """The worklist after a recorded judgement."""

    label: StoredJudgement
    feedback: Feedback | None
    reveal: Reveal | None


@dataclass(frozen=True)
class Undone(Worklist[T]):
    """The worklist after taking back the last judgement, whose task is the first."""

    undone: bool
    """False: there was nothing to take back."""


# ---- What comes in ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Press:
    """One press of a key or a button."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    client_uuid: Annotated[str, Field(min_length=8, max_length=64)]
    """A random id of each press, from the client; the same id again is the same press."""


@dataclass(frozen=True)
class Judgement(Press):
    """A judgement of a task: a choice for a pair, an order for three and more completions."""

    token: Annotated[str, Field(max_length=64)]
    choice: Annotated[str | None, Field(max_length=16)] = None
    """One of `judgements.Choice`; for an order only skip and flag."""
    order: Annotated[Tiers | None, Field(max_length=100)] = None
    """Tiers of places, best first."""
    note: str | None = None
    criteria: dict[str, BetterSide] | None = None
    """The better side by each criterion."""
    seconds: float | None = None
    device: Device = "api"


@dataclass(frozen=True)
class IdealCompletion(Press):
    """A completion of a task's prompt that an annotator wrote."""

    token: Annotated[str, Field(max_length=64)]
    text: str


# ---- What is checked of it --------------------------------------------------------------------------------------


def tiers_of(judgement: Judgement, scale: Scale, count: int) -> tuple[Tiers | None, int | None]:
    """Tiers of places, and strength, of a judgement of `count` completions; (None, None): a skip or a flag."""
    options = choices(scale) if count == 2 else ("skip", "flag")
    choice, order = judgement.choice, judgement.order
    if (choice is None) == (order is None):
        raise BadJudgement("a judgement is either a choice or an order")
    if choice is not None:
        if choice not in options:
            raise BadJudgement(f"choice: expected one of {', '.join(options)}, found {choice!r}")
        return meaning_of(choice, scale)
    assert order is not None
    if count == 2:
        raise BadJudgement("order: a pair takes a choice, such as a, b or tie")
    if not is_order(order, count):
        raise BadJudgement(f"order: {order} does not place each of {count} answers once (0 to {count - 1})")
    return order, None


def better_by_criterion(
    sides: Mapping[str, BetterSide], criteria: Sequence[str], drawn: Sequence[int]
) -> dict[str, int | None]:
    """The index of the better completion by each criterion; None: a tie. `criteria` are the campaign's."""
    better: dict[str, int | None] = {}
    for name, side in sides.items():
        if name not in criteria:
            names = ", ".join(criteria) or "none"
            raise BadJudgement(f"criteria: {name!r} is not one of this campaign's (they are: {names})")
        if side not in get_args(BetterSide):
            raise BadJudgement(f"criteria: {name}: expected a, b or tie, found {side!r}")
        better[name] = None if side == "tie" else drawn["ab".index(side)]
    return better


def check_measured(judgement: Judgement) -> None:
    """Raise BadJudgement if the device or the time is not valid."""
    if judgement.device not in get_args(Device):
        expected = ", ".join(get_args(Device))
        raise BadJudgement(f"device: expected one of {expected}, found {judgement.device!r}")
    if judgement.seconds is not None and not 0 <= judgement.seconds <= 86_400:
        raise BadJudgement(f"seconds: expected 0 to 86400, found {judgement.seconds}")


def check_uuid(client_uuid: str) -> None:
    """Raise BadJudgement if a client's id is not valid."""
    if not _UUID.fullmatch(client_uuid):
        excerpt = json.dumps(client_uuid)[:80]
        raise BadJudgement(f"client_uuid: expected 8 to 64 letters, digits, - or _, found {excerpt}")


def checked_text(text: str | None, key: str) -> str | None:
    """The text, if every database can store it; otherwise BadJudgement."""
    if text is None:
        return None
    if len(text) > MAX_NOTE:
        raise BadJudgement(f"{key}: at most {MAX_NOTE} characters, found {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadJudgement(f"{key}: has half of a surrogate pair, which is no text") from None
    if "\0" in text:
        raise BadJudgement(f"{key}: has a NUL character, which a database cannot store")
    return text
