"""What is in a file of rows: the schema of `trueup data inspect --json`, and of a stage's data.json."""

from __future__ import annotations

from typing import Literal

from trueup.artifacts.artifact import Artifact, absent
from trueup.artifacts.reports import Estimate, Share
from trueup.data.formats.settling import Use

Role = Literal["system", "user", "assistant", "tool", "tools"]


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
    """A sentence on prompts that may be trained on and are nearly the same as a held-out one; null without any."""
    contamination: str | None = absent()
    """A sentence on demonstrations that may be trained on and have words of a held-out prompt or of a check of the
    campaign; null without any."""


class FiledText(Artifact):
    """A text of a row."""

    where: str
    """File and line."""
    content: str
    """Its beginning."""


class Histogram(Artifact):
    """How often values are how large. The bins of one measure are the same in every report, so that two compare."""

    edges: list[float]
    """The ends of the bins, of which each holds its lower end."""
    counts: list[int]


class Kinds(Artifact):
    """Rows by the kind of task (`trueup.inspecting.kinds`)."""

    rows: dict[str, int]
    """Rows of each kind; `other` are those of which nothing says what they are."""
    by_category: int
    """Rows whose own category names a kind. The others are told by cue words, which are English."""
    agreement: Estimate | None
    """How often the cue words name the kind that a row's own category names; null where no category names one."""
    cues: dict[str, dict[str, int]]
    """Of the rows that are told by cue words: the most frequent cues of each kind."""


class Verb(Artifact):
    """A verb of instructions, with what it is about."""

    verb: str
    rows: int
    nouns: dict[str, int]
    """Its most frequent objects."""


class Instructions(Artifact):
    """Verbs and objects of English instructions (`trueup.inspecting.instructions`)."""

    rows: int
    """Rows with an instruction in which a verb was found; others are questions, or not in English."""
    pairs: int
    """Different pairs of verb and object."""
    verbs: list[Verb]
    """The most frequent ones."""


class Vocabulary(Artifact):
    """How varied the words of texts are, on average over windows of a fixed number of words, so that it does not depend
    on how many texts there are."""

    windows: int
    """Windows of 1,000 words that are averaged over, each of the first 50 words of texts in a random order."""
    type_token: float
    """Different words among those of a window."""
    distinct_2: float
    """Different pairs of neighbouring words among those of a window."""


class Close(Artifact):
    """Two prompts that are much alike."""

    alike: float
    first: FiledText
    second: FiledText


class Neighbours(Artifact):
    """How alike each prompt is to the one most like it: the cosine of their TF-IDF vectors of words. It grows with the
    number of prompts compared, so that only figures of equal `rows` compare."""

    rows: int
    """Prompts that were compared with each other, drawn at random if there are more."""
    median: float
    near: float
    """Share of the prompts whose nearest one is alike by 0.8 or more."""
    alike: Histogram
    closest: list[Close]
    """The pairs that are most alike. Prompts that are the same word for word stand here too."""


class Diversity(Artifact):
    """How varied the rows are."""

    rows: int
    """Rows that these figures are of, drawn at random if there are more."""
    kinds: Kinds
    instructions: Instructions
    vocabulary: dict[str, Vocabulary]
    """Of what is asked and of the answers; without those of fewer words than a window has."""
    lengths: dict[str, Histogram]
    """In words, of what is asked in a row and of each answer."""
    neighbours: Neighbours | None
    """Of what is asked; null where there are fewer than two prompts."""
    files: dict[str, int]
    """Rows by the file that they stand in."""


class Moved(Artifact):
    """A figure of both versions of a set."""

    name: str
    before: float | None
    after: float | None
    share: bool
    """Whether it is a share of all."""


class Against(Artifact):
    """The difference to another version of the set."""

    path: str
    rows: int
    """Rows of the other version."""
    added: int
    """Rows that only this version has. A row is the same where all its texts are."""
    removed: int
    """Rows that only the other version has."""
    same_prompt: int
    """Added rows whose prompt the other version has with another answer."""
    added_rows: list[FiledText]
    """Some of them."""
    removed_rows: list[FiledText]
    """Some of them."""
    figures: list[Moved]
    diversity: Diversity
    """Of the other version."""


class SourceRows(Artifact):
    """What a stage read of one of its sources."""

    path: str
    rows: int
    """Rows that the stage uses."""
    formats: dict[str, int]
    """Rows by the format that they were read as, with the columns that decided it."""
    left_out: dict[str, int]
    """Rows that it does not use, by reason; bad rows begin with `bad row`."""


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
    sources: list[SourceRows] | None = absent()
    """Of a stage: what it read, source by source."""
    drawn: int | None = absent()
    """Rows that the figures below are of, drawn at random: of a stage that has more, or of a large file that is shown
    as a campaign's model sees it."""
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
    diversity: Diversity
    against: Against | None = absent()
    """Where another version is named (`--against`)."""
    samples: list[ShownRow]
