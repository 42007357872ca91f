"""A format: a name, the columns that a row of it is recognised by, its converter; and what becomes of a preference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, StrictInt, field_validator, model_validator

from trueup.data.formats import vocabulary
from trueup.data.formats.columns import Columns, Values
from trueup.data.jsonl import excerpt
from trueup.data.records import Better, Message, Preference, Ranking, Row, moment, prompt_id
from trueup.files import Json


class Skipped(NamedTuple):
    """What a converter gives in place of a row that is sound but of no use; it is counted by its reason."""

    reason: str


Convert = Callable[[Columns, Path], Iterable[Values | Skipped]]


class Format(NamedTuple):
    name: str
    keys: tuple[str, ...]
    """What a row is recognised by: it has all of these, where `a|b` is either."""
    convert: Convert


def any_of(names: Iterable[str]) -> str:
    return "|".join(dict.fromkeys(names))


# ---- What comes out ---------------------------------------------------------------------------------------------


class Provenance(Row):
    """What Trueup's own files say of a label besides the verdict; the names are those of `records.Ranking`."""

    label_id: str = Field(min_length=1, max_length=200)
    source: str
    created_utc: str
    both_bad: bool = False
    note: str | None = None
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    guideline_sha256: str | None = None
    sampler: Json = Field({})

    _moment = field_validator("created_utc")(moment)


class ImportedRanking(Row):
    """What one annotator said of the answers to one prompt, in a file. A pair is a ranking of two."""

    where: str
    """File and line."""
    prompt: list[Message]
    completions: list[str]
    completion_token_ids: list[list[int] | None] | None = None
    finished: list[bool] | None = None
    logps: list[float | None] | None = None
    reasonings: list[str] | None = None
    """What a model that reasons wrote before each completion."""
    tiers: list[list[StrictInt]]
    """Indices into `completions`, best tier first; answers in one tier are tied; left out: not ranked."""
    annotator: str = Field(min_length=1, max_length=200)
    category: str | None = None
    strength: int | None = Field(None, ge=1, le=3)
    both_bad: bool = False
    """A tie because neither answer is good."""
    criteria: dict[str, Better] | None = None
    """Which answer is better by single criteria, as `records.Ranking` has it."""
    row_id: str | None = Field(None, max_length=200)
    """What the file itself calls the row."""
    explanation: str | None = None
    """Why it is so, the note of the label; shown to annotators who practise with this row."""
    display_order: list[int] | None = None
    """Indices into `completions` in the order in which they stood on the page."""
    provenance: Provenance | None = None
    """Where the row comes from, if Trueup wrote it."""
    ranks: tuple[int, int] | None = None
    """Tiers that the two completions of a pair have in its ranking, if Trueup wrote the pair."""

    @model_validator(mode="after")
    def _ranks_answers(self) -> ImportedRanking:
        indices, count = [index for tier in self.tiers for index in tier], len(self.completions)
        if len(indices) < 2 or len(set(indices)) < len(indices) or not set(indices) <= set(range(count)):
            raise ValueError(f"{excerpt(self.tiers)} is no order of two or more of {count} completions")
        if not all(self.tiers):
            raise ValueError(f"{excerpt(self.tiers)} has a tier without completions; take it out")
        if self.both_bad and len(self.tiers) > 1:
            raise ValueError(f"both_bad goes with a tie, and {excerpt(self.tiers)} prefers an answer: mend one of them")
        if self.display_order is not None and sorted(self.display_order) != list(range(count)):
            raise ValueError(f"display_order {excerpt(self.display_order)} is no order of {count} completions")
        criteria = self.criteria or {}
        named = [index for better in criteria.values() for index in _indices(better)]
        if not set(named) <= set(range(count)):
            raise ValueError(f"criteria {excerpt(criteria)} name no completion of {count}")
        for key in OF_AN_ANSWER:
            if (values := getattr(self, key)) is not None and len(values) != count:
                raise ValueError(f"{key}: expected one for each of {count} completions, found {len(values)}")
        return self

    def ranking(self) -> Ranking:
        """The row as a label, for what is measured on it where there is no campaign."""
        count = len(self.completions)
        return Ranking(
            prompt_id=prompt_id(self.prompt),
            prompt=self.prompt,
            category=self.category,
            split="heldout",
            label_id=self.where,
            source="import",
            annotator=self.annotator,
            created_utc="",
            completions=self.completions,
            completion_token_ids=[None] * count,
            finished=self.finished or [True] * count,
            tiers=self.tiers,
            both_bad=self.both_bad,
            strength=self.strength,
        )


def _indices(better: Better) -> list[int]:
    """The answers that an order by one criterion names."""
    if isinstance(better, list):
        return [index for tier in better for index in tier]
    return [] if better is None else [better]


# ---- What may stand beside any of them --------------------------------------------------------------------------


def who_and_why(row: Columns) -> Values:
    """Whose judgement a row is, why it is so, how much better the better answer is, and what the file calls the row."""
    values: Values = {
        "provenance": provenance(row),
        "annotator": "unknown",
        "row_id": row.get("row_id") if is_own(row) else _row_id(row),
    }
    for name in vocabulary.ANNOTATORS:
        if row.there(name):
            try:
                values["annotator"] = vocabulary.annotator_name(row.get(name))
            except ValueError as error:
                raise ValueError(f"{row.at(name)}: {error}") from None
            break
    values["strength"] = row.get("strength") if row.there("strength") else None
    reasons = [name for name in vocabulary.REASONS if isinstance(row.values.get(name), str) and row.holds(name)]
    values["explanation"] = " ".join(row.get(name).strip() for name in reasons) or None
    return values


def _row_id(row: Columns) -> str | None:
    """What the file calls a row, in a column of its own or within the question or post that it is about."""
    for values in (row.values, row.values.get("question"), row.values.get("info")):
        for name in vocabulary.ROW_IDS if isinstance(values, dict) else ():
            value = values.get(name) if isinstance(values, dict) else None
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
                row.names_read.update([name] if values is row.values else [])
                return str(value).strip()
    return None


OF_AN_ANSWER = ("completion_token_ids", "finished", "logps", "reasonings")


def is_own(row: Columns) -> bool:
    """Whether Trueup wrote this row: a column `seconds` of somebody else's file may mean anything."""
    return {"label_id", "prompt_id", "source", "annotator", "created_utc"} <= row.values.keys()


def provenance(row: Columns) -> Values | None:
    """What our own row says of its label; its other columns count as read."""
    if not is_own(row):
        return None
    row.names_read |= Ranking.model_fields.keys() | Preference.model_fields.keys()
    return {key: row.values[key] for key in Provenance.model_fields if key in row}
