"""Demonstrations that are not trained on, since they nearly repeat a held-out prompt or an earlier demonstration, or
have words in a row of a held-out prompt or of a check."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft.config import SFTConfig
from sft.tokens import CODE, Source, Tokens, dialogues
from trueup.console import say
from trueup.data.containers.numbered import Batches, Numbered
from trueup.data.containers.spool import cache_entry, code_of, rows_at
from trueup.data.duplicates.exams import Contamination, Exam, check_exams, contaminated, heldout_exam, in_words
from trueup.data.duplicates.rows import CONTAMINATION, NEAR_HELDOUT, REPEATED, Contaminated, NearDuplicate
from trueup.data.duplicates.training import MOST_COMPARED, near_heldout_questions, repeated_demonstrations, too_many
from trueup.data.records import Demonstration, write_rows
from trueup.data.split import question
from trueup.files import Json
from trueup.provenance.inputs import sha256_of
from trueup.runs import StageRun

_AT_ONCE = 1000
"""Questions that are read together."""
MUCH = 0.2
"""Share of the demonstrations from which on their loss is a warning: they may share long passages by their nature."""


class NearDuplicates(NamedTuple):
    """Of one source, what is left out."""

    reasons: dict[int, str]
    """Why dialogues are, by their number."""
    parts: list[int]
    """Parts of other dialogues that were split."""


def near_duplicates(sources: Sequence[Source], config: SFTConfig, stage: StageRun) -> list[NearDuplicates]:
    """The dialogues of each source that are left out, and the parts. Each is listed in near_duplicates.jsonl."""
    rows, by_source = Encodable(sources), [NearDuplicates({}, []) for _ in sources]
    if config.near_duplicates == config.split.near_duplicates == "keep":
        return by_source
    if message := too_many(len(rows), "demonstrations"):
        say(f"{'data':<12} {message}")
        stage.find("info", "near_duplicates", message)
        return by_source
    is_small = None in [one.key for one in sources]
    found = _found(rows, sources, config) if is_small else _remembered(rows, sources, config)
    whole = {index: one for index, one in found.items() if index < len(rows)}
    for index, one in whole.items():
        source, number = rows.place(index)
        by_source[source].reasons[number] = one.reason
    parts, of_others = _split_parts(sources), list[NearDuplicate]()
    for index in sorted(found.keys() - whole.keys()):
        source, part = parts[index - len(rows)]
        if rows.dialogue_of(source, part) not in by_source[source].reasons:
            by_source[source].parts.append(part)
            of_others.append(found[index])
    for reason in (NEAR_HELDOUT, REPEATED):
        stage.leave_out_near([one for one in whole.values() if one.reason == reason], "demonstrations")
    stage.leave_out_near(of_others, "parts of dialogues that were split")
    if number := len(whole) + len(of_others):
        say(f"{'data':<12} {number} near-duplicates are left out, see near_duplicates.jsonl")
    return by_source


def _split_parts(sources: Sequence[Source]) -> list[tuple[int, int]]:
    """(source, part) of the dialogues that were split and may be trained on."""
    tables = [source.parts for source in sources]
    masks = [table["text"].is_valid().to_numpy() & ~table["of_heldout"].to_numpy() for table in tables]
    return [(source, int(part)) for source, mask in enumerate(masks) for part in np.flatnonzero(mask)]


def _found(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> dict[int, NearDuplicate]:
    """The demonstrations that are left out, by their place; behind them parts, by theirs among `_split_parts`."""
    parts, tokens = _split_parts(sources), [Tokens([source]) for source in sources]
    later = (
        tokens[source].questions(np.array([part for _, part in some]))
        for source, some in groupby(parts, lambda place: place[0])
    )

    def place(index: int) -> str:
        if index < len(rows):
            return rows[index].where
        source, part = parts[index - len(rows)]
        return tokens[source].whole(part).where

    near = near_heldout_questions(chain(rows.questions(), chain.from_iterable(later)), place, config.split)
    if config.near_duplicates == "keep":
        return near
    others = [int(index) for index in np.flatnonzero(~rows.heldout) if int(index) not in near]
    return near | {others[i]: one for i, one in repeated_demonstrations(rows.at(others)).items()}


def _remembered(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> dict[int, NearDuplicate]:
    """The same of sources that lie on disk: looked for once."""

    def look(folder: Path) -> Json:
        return {str(index): one.model_dump() for index, one in _found(rows, sources, config).items()}

    code = code_of("data", CODE)
    key = [[one.key for one in sources], config.split.model_dump(mode="json"), config.near_duplicates, code]
    _, report = cache_entry("near_duplicates", key, look)
    return {int(index): NearDuplicate.model_validate(values) for index, values in report.items()}


# ---- Words of exams ---------------------------------------------------------------------------------------------


def contamination(
    sources: Sequence[Source], left_out: Sequence[Mapping[int, str]], config: SFTConfig, stage: StageRun
) -> list[dict[int, str]]:
    """Why further dialogues of each source are left out, by their number in it. Each is listed in contamination.jsonl.

    left_out  those of each source that are left out already
    """
    rows = Encodable(sources)
    if len(rows) > MOST_COMPARED:
        message = (
            f"of {len(rows)} demonstrations, those with words of a check are looked for; with words of a held-out "
            f"prompt only among {MOST_COMPARED} or fewer (max_rows)"
        )
        say(f"{'data':<12} {message}")
        stage.find("info", "contamination", message)
    found = (
        _shared(rows, sources, config)
        if None in [one.key for one in sources]
        else _shared_remembered(rows, sources, config)
    )
    places = {index: rows.place(index) for index in found.rows}
    for index, (source, number) in places.items():
        if number in left_out[source]:
            del found.rows[index]
    by_source: list[dict[int, str]] = [{} for _ in sources]
    _tell_shared(found, len(rows), config, stage)
    if config.contamination == "drop":
        for index, one in found.rows.items():
            source, number = places[index]
            by_source[source][number] = one.reason
    return by_source


def _tell_shared(found: Contamination, demonstrations: int, config: SFTConfig, stage: StageRun) -> None:
    """Write down which demonstrations are contaminated, and say how many."""
    if found.phrases:
        say(f"{'data':<12} {found.phrases} demonstrations share with an exam no more than phrases that many have")
    if not found.rows:
        return
    write_rows(stage.dir / CONTAMINATION, found.rows.values())
    what = "left out" if config.contamination == "drop" else "trained on nevertheless"
    message = (
        f"{len(found.rows)} of {demonstrations} demonstrations {in_words(list(found.rows.values()))}; they are {what} "
        f"(sft.contamination: {config.contamination})"
    )
    say(f"{'data':<12} {message}")
    is_much = len(found.rows) > MUCH * demonstrations
    stage.find("warn" if is_much else "info", "contamination", f"{message}; see {CONTAMINATION}")


def _shared(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> Contamination:
    exams = check_exams(config.checked_files)
    if len(rows) <= MOST_COMPARED:
        exams += _heldout_exams(sources)
    others = np.flatnonzero(~rows.heldout).tolist()
    found = contaminated(rows.at(others), exams, config.contamination == "keep")
    return Contamination({others[index]: one for index, one in found.rows.items()}, found.phrases)


def _heldout_exams(sources: Sequence[Source]) -> list[Exam]:
    """The questions that held-out demonstrations begin with; what stands behind them in a dialogue is no exam."""
    exams: dict[str, Exam] = {}
    for tokens in (Tokens([source]) for source in sources):
        first, _ = dialogues(tokens.of_demonstration)
        parts = first[tokens.of_heldout[first]]
        for part, text in zip(parts.tolist(), tokens.questions(parts), strict=True):
            exams.setdefault(text, heldout_exam(text, partial(_where, tokens, part)))
    return list(exams.values())


def _where(tokens: Tokens, part: int) -> str:
    return tokens.whole(part).where


def _shared_remembered(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> Contamination:
    """The same of sources that lie on disk: looked for once."""

    def look(folder: Path) -> Json:
        found = _shared(rows, sources, config)
        return {"rows": {str(index): one.model_dump() for index, one in found.rows.items()}, "phrases": found.phrases}

    files = [(str(file), sha256_of(file)) for file in config.checked_files]
    settings = [config.split.model_dump(mode="json"), config.contamination, files]
    _, report = cache_entry("contamination", [[one.key for one in sources], *settings, code_of("data", CODE)], look)
    rows_found = {int(index): Contaminated.model_validate(values) for index, values in report["rows"].items()}
    return Contamination(rows_found, report["phrases"])


# ---- Rows --------------------------------------------------------------------------------------------------------


class Encodable(Numbered[Demonstration]):
    """The demonstrations of all sources of which something fits, read from where they lie when they are asked for."""

    def __init__(self, sources: Sequence[Source], numbers: Any = None):
        self._sources = sources
        self._parts = [one.parts for one in sources]
        of_demonstration = [parts["demonstration"].to_numpy() for parts in self._parts]
        self._first = [dialogues(one)[0] for one in of_demonstration]
        self._rows = [numbers[first] for numbers, first in zip(of_demonstration, self._first, strict=True)]
        self._begins = [0, *accumulate(map(len, self._first))]
        super().__init__(range(self._begins[-1]) if numbers is None else numbers)

    @property
    def heldout(self) -> np.ndarray:
        """(N,) which of all begin with a held-out question."""
        sides = [parts["of_heldout"].to_numpy()[first] for parts, first in zip(self._parts, self._first, strict=True)]
        return np.concatenate(sides)

    def questions(self) -> Iterator[str]:
        """What all of them begin with."""
        for index, (asked, is_part) in enumerate(self._first_questions()):
            yield question(self[index].messages) if is_part else asked

    def place(self, index: int) -> tuple[int, int]:
        """(source, number of the dialogue in it)."""
        source = bisect_right(self._begins, index) - 1
        return source, index - self._begins[source]

    def dialogue_of(self, source: int, part: int) -> int:
        """The number of the dialogue that a part is of."""
        return int(np.searchsorted(self._first[source], part, side="right")) - 1

    def _first_questions(self) -> Iterator[tuple[str, bool]]:
        """What the first part of each begins with, and whether it is a part and not the whole."""
        for parts, first in zip(self._parts, self._first, strict=True):
            texts = Batches(parts.append_column("is_part", parts["text"].is_valid()))
            for start in range(0, len(first), _AT_ONCE):
                yield from texts.read(first[start : start + _AT_ONCE].tolist(), "question", "is_part")

    def _of(self, numbers: Any) -> Encodable:
        return Encodable(self._sources, numbers)

    def _read(self, numbers: Sequence[int]) -> Iterator[Demonstration]:
        for source, some in groupby(map(self.place, numbers), lambda place: place[0]):
            rows = [int(self._rows[source][number]) for _, number in some]
            yield from rows_at(self._sources[source].demonstrations, rows)
