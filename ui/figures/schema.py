"""The figures of labelling as JSON: what `/api/v1/admin/summary` answers, and what the tables are made of."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ShareFigures(TypedDict):
    """A share, or a coefficient, with its 95 % interval; None where nothing is known, and then `note` says why."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    """Independent units: labels, or items."""
    note: str | None
    labels: NotRequired[int]
    """Labels of the items, where `n` counts items."""
    chance: NotRequired[float]
    """What chance alone would give, where that is known."""
    p: NotRequired[float | None]
    """Two-sided binomial test against chance."""


class Measure(ShareFigures):
    """How far all annotators agree, by one measure."""

    measure: str
    of: str


class Slots(TypedDict):
    """How many labels are wanted, by their state."""

    open: int
    leased: int
    done: int


class ProgressFigures(TypedDict):
    """How far labelling is, how fast it goes, and when it will be done at this pace."""

    labels: int
    wanted: int
    slots: Slots
    labels_per_hour: float
    window_h: float
    labels_per_busy_hour: float | None
    eta_h: float | None
    annotators: int
    annotators_now: int
    seconds: float | None
    """Median of a label."""


class AnnotatorFigures(TypedDict):
    """One annotator who is a person."""

    annotator: str
    name: NotRequired[str | None]
    """For admins, where accounts have names."""
    labels: int
    skips: int
    flags: int
    late: int
    undone: int
    seconds: float | None
    left: ShareFigures
    longer: ShareFigures
    tie: ShareFigures
    both_bad: ShareFigures
    too_fast: ShareFigures
    gold: ShareFigures
    qualification: ShareFigures
    consistency: ShareFigures
    agreement: ShareFigures
    """With the other labels of the same items."""
    last_utc: str | None


class Two(TypedDict):
    """Agreement of two annotators."""

    a: str
    b: str
    items: int
    equal: ShareFigures
    kappa: ShareFigures


class Program(TypedDict):
    """How often people prefer what a program prefers (a rubric, a judge, a reward model)."""

    source: str
    annotator: str
    same: ShareFigures


class Hour(TypedDict):
    """Labels of one hour."""

    hour_utc: str | None
    labels: int
    annotators: int


class Drift(TypedDict):
    """Shares and seconds of a stretch of labels."""

    first: int
    last: int
    from_utc: str | None
    left: ShareFigures
    longer: ShareFigures
    tie: ShareFigures
    seconds: float | None


class HalfWidths(TypedDict):
    """How wide intervals were with fewer labels."""

    labels: int
    agree: float | None
    longer: float | None


class Excluded(TypedDict):
    """What people did that is not among the labels."""

    what: str
    events: int
    why: str


class Flags(TypedDict):
    """How many flags give one reason."""

    reason: str
    flags: int


class Look(TypedDict):
    """What an admin should look at, of one annotator or of all (None)."""

    annotator: str | None
    message: str


class Quantity(TypedDict):
    """A share that further labels would narrow."""

    key: str
    quantity: str
    share: ShareFigures
    labels: int
    half_width: float | None
    half_width_after: float | None
    labels_to_bar: int | None


class Worth(TypedDict):
    """What `more` further labels would narrow, and what they cost."""

    more: int
    labels: int
    hours: float | None
    reward_model: bool
    quantities: list[Quantity]


class AsOf(TypedDict):
    """Up to which event the figures are."""

    event: int
    events: int
    now_utc: str | None
    newest: NotRequired[int]


class Figures(TypedDict):
    """All figures of a store."""

    progress: ProgressFigures
    overall: dict[str, ShareFigures]
    """Shares of all people's labels together."""
    annotators: list[AnnotatorFigures]
    agreement: list[Measure]
    pairs: list[Two]
    programs: list[Program]
    hours: list[Hour]
    drift: list[Drift]
    history: list[HalfWidths]
    excluded: list[Excluded]
    flags: list[Flags]
    findings: list[Look]
    worth: NotRequired[Worth]
    as_of: NotRequired[AsOf]


class Mirror(TypedDict):
    """An annotator's own figures."""

    labels: int
    skips: int
    seconds: float | None
    labels_per_hour: float | None
    left: ShareFigures
    longer: ShareFigures
    tie: ShareFigures
