"""What is in a file of rows: the schema of `trueup data inspect --json`."""

from __future__ import annotations

from typing import Literal

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.reports import Share
from trueup.data.formats.settling import Use

Role = Literal["system", "user", "assistant"]


class Spread(Artifact):
    """The lengths of texts, or counts of other things."""

    median: float
    p95: float
    """95 of 100 are no larger."""
    largest: float


class Part(Artifact):
    """A part of a sample, as it stands in the file or as the chat template writes it."""

    content: str
    trained: bool
    """Whether the model learns to write it; of preferences, whether it is what was judged."""
    role: Role | None = absent()
    """Who says it; absent where a chat template wrote the text, which says so itself."""


class ShownRow(Artifact):
    """A row as the model sees it."""

    where: str
    """File and line."""
    title: str
    """What of the row it is."""
    parts: list[Part]


class BadRows(Artifact):
    """Rows with one problem."""

    problem: str
    rows: int
    places: list[str]
    """File and line of the first ones."""


class Split(Artifact):
    """How a campaign's split falls on the rows."""

    train: int
    heldout: int
    near_duplicates: str | None
    """A sentence on held-out prompts that are nearly the same as one that may be trained on; null without any."""


class Judgements(Artifact):
    """What rows of preferences say."""

    pairs: int
    """Pairs of which one answer is better; a ranking has several."""
    ties: int
    """Rows that prefer no answer."""
    annotators: dict[str, int]
    """Rows by annotator."""
    agreement: float | None
    """How often two annotators put a pair in the same order; null where no two judged one pair."""
    shared_pairs: int
    """Pairs that several annotators put in a strict order."""
    longer_is_better: Share | None
    """How often the longer answer of a pair is the better one, over prompts."""
    same_text: int
    """Pairs of the same text twice, which teach nothing."""


class DataReport(Artifact):
    """What is in a file of rows."""

    path: str
    use: Use
    formats: dict[str, int]
    """Rows by the format that they were read as, with the columns that decided it."""
    rows: int
    """Demonstrations, prompts, or rankings by one annotator."""
    left_out: dict[str, int]
    """Rows that are sound and of no use, by reason."""
    bad_rows: int
    """Rows that cannot be read, or that the chat template refuses."""
    problems: list[BadRows]
    """What is wrong with them, the most frequent first."""
    columns_not_read: dict[str, int]
    """Columns that held something and were not read, with the number of rows."""
    lengths: dict[str, Spread]
    """In words, by what is measured; in tokens where the model is known."""
    turns: dict[int, int]
    """Rows by their number of user turns."""
    categories: dict[str, int]
    """Rows by their own category; empty where no row has one."""
    languages: dict[str, int]
    """Rows by language, of at most LANGUAGE_ROWS of them whose text is long enough to tell."""
    judgements: Judgements | None = absent()
    """Of preferences."""
    split: Split | None = absent()
    """Where a campaign is given."""
    over_max_length: int | None = absent()
    """Rows that are longer than the `max_length` of the campaign's stage."""
    overlong: Literal["drop", "cut", "split"] | None = absent()
    """What the stage does with them (`sft.overlong`)."""
    template: str | None = absent()
    """The chat template that the samples went through, and why it; absent where no campaign is given."""
    samples: list[ShownRow]
