"""The rows of a campaign's files and their lengths in tokens, for the checks of its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueup.data.containers.choice import Choice
from trueup.data.containers.spool import Spool
from trueup.data.formats import ImportedRanking
from trueup.data.records import Demonstration, Dropped, Message, random_rows
from trueup.data.row_rules import BadRows, RowRules
from trueup.data.rubric import load_rubric
from trueup.errors import DataError, ModelError
from trueup.provenance.inputs import hub_id_of

CHECKED_ROWS = 20_000
"""Most rows of a large file that are looked at."""
TOO_MANY_DROPPED = 0.2
"""Share of rows longer than `max_length` above which the setting counts as a mistake."""


@dataclass
class ReadFile:
    """The rows of a file that a stage reads. `encode` removes those that the stage would drop."""

    key: str
    path: Path
    rows: list[Any]
    """Demonstrations, prompts or imported rankings."""
    on_bad_rows: BadRows = "refuse"
    max_new_tokens: int = 0
    """Most tokens of an answer to each row, if the rows are prompts."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The place of each dialogue, by its first question."""
    not_placed: int = 0
    """Dialogues with further questions, whose places were not kept."""
    is_drawn: bool = False
    """Whether the rows are a part of a large file."""


def read_file(
    key: str,
    path: Path,
    reader: Callable[[Path, Dropped, BadRows, list[str], Choice | None], Sequence[Any]],
    section: RowRules,
    seed: int | None,
    problems: list[str],
    notes: list[str],
) -> ReadFile | None:
    """A file that a section names, with its rows; None if it cannot be read."""
    dropped, choice = Dropped(), None if seed is None else section.choice(seed)
    try:
        if hub_id := hub_id_of(path, key):
            from trueup.models.sources import hub

            hub.fetch(hub_id)
        rows = reader(path, dropped, section.on_bad_rows, section.ignore_columns, choice)
    except (DataError, ModelError) as error:
        problems.append(str(error) if isinstance(error, ModelError) else f"{key}: {error}")
        return None
    rest = f", dropped: {dropped}" if dropped.counts else ""
    rest += f"; columns not read: {dropped.columns}" if dropped.ignored else ""
    notes.append(f"{key}: {path}: {len(rows)} rows{rest}")
    if isinstance(rows, Spool) and len(rows) > CHECKED_ROWS:
        notes.append(f"{key}: {path}: is large, so all rows were read, and {CHECKED_ROWS} drawn ones are looked at")
    checked = random_rows(rows, CHECKED_ROWS, 0) if isinstance(rows, Spool) else rows
    is_drawn = len(checked) < len(rows)
    places, not_placed = dropped.places, dropped.not_placed
    return ReadFile(key, path, list(checked), section.on_bad_rows, 0, places, not_placed, is_drawn)


def check_rubric(stage: str, name: str, problems: list[str]) -> None:
    """Add a problem unless the rubric can be loaded and gives a number, even for an empty answer."""
    try:
        rubric = load_rubric(name)
        for text, finished in (("It is red, because it is.", True), ("", False)):
            rubric.score([Message(role="user", content="Why is it red?")], text, finished)
    except DataError as error:
        problems.append(f"{stage}.{error}")


@dataclass
class Rows:
    """All files of a campaign, and the lengths of their rows, if a tokenizer could be loaded."""

    files: list[ReadFile]
    context: int | None = None
    """Most tokens that the model can read."""
    end_token: str | None = None
    """The token that ends an assistant turn."""
    tokenizer: Any = None
    """The tokenizer, with its chat template."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Tokens by the row's identity, since several rows may stand in one line."""

    def of(self, key: str) -> list[Any] | None:
        """The rows of all files of a key; None without such a file that could be read."""
        files = [file for file in self.files if file.key == key]
        return [row for file in files for row in file.rows] if files else None

    def tokens(self, rows: Iterable[Any] | None) -> list[int]:
        """The lengths of the rows that could be encoded; an imported ranking's includes its longest answer."""
        return [self.lengths[id(row)] for row in rows or [] if id(row) in self.lengths]

    def encode(self, tokenizer: Any, problems: list[str], notes: list[str]) -> None:
        """Encode every row of every file as a stage would, and note its length."""
        self.tokenizer, self.end_token = tokenizer, tokenizer.eos_token
        past: set[str] = set()
        for file in self.files:
            _encode(file, tokenizer, past, self.lengths, problems, notes)


def _encode(
    file: ReadFile, tokenizer: Any, past: set[str], lengths: dict[int, int], problems: list[str], notes: list[str]
) -> None:
    """Add the length of every row that can be encoded. The others are dropped from the file if the stage drops them;
    otherwise they are problems. `past` holds the problems that were reported, since two stages may read a row."""
    from trueup.models.chat import encode_completion, encode_demonstration, encode_prompt
    from trueup.models.encoding import RefusedRows, encode_rows

    def count(row: Any, changes: set[str]) -> int:
        if isinstance(row, Demonstration):
            return max(len(encoded.input_ids) for encoded in encode_demonstration(tokenizer, row.messages, changes))
        prompt_length = len(encode_prompt(tokenizer, row.prompt, changes))
        if not isinstance(row, ImportedRanking):
            return prompt_length
        finished = row.finished or [True] * len(row.completions)
        answers = zip(row.completions, finished, strict=True)
        return prompt_length + max(len(encode_completion(tokenizer, text, ends, changes)) for text, ends in answers)

    refused, dropped = RefusedRows(), Dropped()
    encoded = encode_rows(file.rows, count, refused, file.on_bad_rows, dropped)
    lengths |= {id(row): length for row, length in encoded}
    of_file = len(file.rows)
    if dropped.counts:
        file.rows = [row for row, _ in encoded]
        notes.append(f"{file.key}: {file.path}: {len(file.rows)} rows can be encoded, dropped: {dropped}")
    refused.leave_out(past)
    problems.extend(f"{file.key}: {line}" for line in refused.lines())
    notes.extend(f"{file.key}: {many} of {of_file} rows are {what}" for what, many in refused.changes.items())


# ---- Whether they fit -------------------------------------------------------------------------------------------


def check_context(key: str, lengths: list[int], new_tokens: int, rows: Rows, problems: list[str]) -> None:
    """Add a problem if prompts of these lengths, with their answers, exceed the model's context."""
    context = rows.context
    if context and (beyond := sum(length + new_tokens > context for length in lengths)):
        problems.append(
            f"{key}: {beyond} of {len(lengths)} prompts with {new_tokens} new tokens are longer than the model's "
            f"context of {context} tokens"
        )


def check_pair_lengths(
    stage: str, limit: int, label_parents: tuple[str, ...], rows: Rows, problems: list[str], notes: list[str]
) -> None:
    """Report the pairs that a stage would drop: those that are too long, and those that would be with long answers."""
    imported = rows.tokens(rows.of("label.path"))
    if long := sum(length > limit for length in imported):
        text = (
            f"{stage}.max_length: {long} of {len(imported)} preferences of label.path are longer than {limit} tokens "
            f"and are dropped; the longest has {max(imported)}"
        )
        (problems if long / len(imported) > TOO_MANY_DROPPED else notes).append(text)
    prompts = rows.tokens(rows.of("sample.prompts")) if "sample" in label_parents else []
    new_tokens = max((file.max_new_tokens for file in rows.files if file.key == "sample.prompts"), default=0)
    alone = sum(length >= limit for length in prompts)
    if prompts and alone / len(prompts) > TOO_MANY_DROPPED:
        problems.append(
            f"{stage}.max_length: {alone} of {len(prompts)} prompts leave no room for an answer within {limit} tokens, "
            "and their pairs would be dropped"
        )
    elif beyond := sum(length + new_tokens > limit for length in prompts):
        notes.append(
            f"{stage}.max_length: {beyond} of {len(prompts)} prompts with a whole answer of {new_tokens} tokens are "
            f"longer than {limit}, and their pairs would be dropped"
        )
