"""The figures of labelling as JSON, for `/api/v1/admin/summary` and the tables."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ShareFigures(TypedDict):
    """A share, or a coefficient, with its 95 % interval. Unknown values are None, and `note` has the reason."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    """Independent units: labels, or items."""
    note: str | None
    labels: NotRequired[int]
    """Labels of the items, if `n` counts items."""
    chance: NotRequired[float]
    """The share by chance alone, if it is known."""
    p: NotRequired[float | None]
    """Two-sided binomial test against chance."""


class Measure(ShareFigures):
    """Agreement of all annotators, by one measure."""

    measure: str
    of: str


class Slots(TypedDict):
    """Numbers of labels to collect, by their state."""

    open: int
    leased: int
    filled: int


class ProgressFigures(TypedDict):
    """Progress of labelling, its pace, and the time left at this pace."""

    labels: int
    target: int
    slots: Slots
    labels_per_hour: float
    window_h: float
    labels_per_busy_hour: float | None
    eta_h: float | None
    annotators: int
    annotators_now: int
    seconds: float | None
    """Median time of a label."""


class AnnotatorFigures(TypedDict):
    """One annotator who is a person."""

    annotator: str
    name: NotRequired[str | None]
    """The account's name, for admins only."""
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
    """Agreement with the other labels of the same items."""
    last_utc: str | None


class Two(TypedDict):
    """Agreement of two annotators."""

    a: str
    b: str
    items: int
    equal: ShareFigures
    kappa: ShareFigures


class Program(TypedDict):
    """How often people prefer the same answer as a program (a rubric, a judge, a reward model)."""

    source: str
    annotator: str
    same: ShareFigures


class Hour(TypedDict):
    """Labels of one hour."""

    hour_utc: str | None
    labels: int
    annotators: int


class Drift(TypedDict):
    """Shares and seconds of one step of the drift."""

    first: int
    last: int
    from_utc: str | None
    left: ShareFigures
    longer: ShareFigures
    tie: ShareFigures
    seconds: float | None


class HalfWidths(TypedDict):
    """Half-widths of intervals with fewer labels."""

    labels: int
    agree: float | None
    longer: float | None


class Excluded(TypedDict):
    """Events of people that are not among the labels."""

    what: str
    events: int
    why: str


class Flags(TypedDict):
    """Number of flags with one reason."""

    reason: str
    flags: int


class Look(TypedDict):
    """A finding for the admin, about one annotator or about all (None)."""

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
    """The effect of `more` further labels on intervals, and their cost."""

    more: int
    labels: int
    hours: float | None
    reward_model: bool
    quantities: list[Quantity]


class AsOf(TypedDict):
    """The last event in the figures."""

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
