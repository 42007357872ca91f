"""Demonstrations that are not trained on, since they have words in a row of a held-out prompt or of a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sft.config import SFTConfig
from sft.duplicates import Encodable
from sft.tokens import Source, Tokens
from trueup.console import say
from trueup.data.containers.spool import cache_entry, code_of
from trueup.data.duplicates.exams import Contamination, Exam, check_exams, contaminated, heldout_exam, in_words
from trueup.data.duplicates.rows import CONTAMINATION, Contaminated
from trueup.data.duplicates.training import MOST_COMPARED
from trueup.data.records import write_rows
from trueup.files import Json
from trueup.provenance.inputs import sha256_of
from trueup.runs import StageRun

MUCH = 0.2
"""Share of the demonstrations from which on their loss is a warning: they may share long passages by their nature."""


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
    found = _found(rows, sources, config) if None in [one.key for one in sources] else _kept(rows, sources, config)
    places = {index: rows.place(index) for index in found.rows}
    for index, (source, number) in places.items():
        if number in left_out[source]:
            del found.rows[index]
    by_source: list[dict[int, str]] = [{} for _ in sources]
    tell(found, len(rows), config, stage)
    if config.contamination == "drop":
        for index, one in found.rows.items():
            source, number = places[index]
            by_source[source][number] = one.reason
    return by_source


def tell(found: Contamination, demonstrations: int, config: SFTConfig, stage: StageRun) -> None:
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


def _found(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> Contamination:
    exams = check_exams(config.checked_files)
    if len(rows) <= MOST_COMPARED:
        exams += _heldout(sources)
    others = np.flatnonzero(~rows.heldout).tolist()
    found = contaminated(rows.at(others), exams, config.contamination == "keep")
    return Contamination({others[index]: one for index, one in found.rows.items()}, found.phrases)


def _heldout(sources: Sequence[Source]) -> list[Exam]:
    """The held-out questions that demonstrations, or parts of them, begin with."""
    exams: dict[str, Exam] = {}
    for tokens in (Tokens([source]) for source in sources):
        parts = np.flatnonzero(tokens.heldout)
        for part, text in zip(parts.tolist(), tokens.questions(parts), strict=True):
            exams.setdefault(text, heldout_exam(text, partial(_where, tokens, part)))
    return list(exams.values())


def _where(tokens: Tokens, part: int) -> str:
    return tokens.whole(part).where


def _kept(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> Contamination:
    """The same of sources that lie on disk: looked for once."""

    def look(folder: Path) -> Json:
        found = _found(rows, sources, config)
        return {"rows": {str(index): one.model_dump() for index, one in found.rows.items()}, "phrases": found.phrases}

    files = [(str(file), sha256_of(file)) for file in config.checked_files]
    settings = [config.split.model_dump(mode="json"), config.contamination, files]
    _, report = cache_entry("contamination", [[one.key for one in sources], *settings, code_of("data")], look)
    rows_found = {int(index): Contaminated.model_validate(values) for index, values in report["rows"].items()}
    return Contamination(rows_found, report["phrases"])
