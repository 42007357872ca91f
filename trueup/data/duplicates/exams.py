"""What a model is examined on, as texts that no row of training may have: held-out prompts, and the files of checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from trueup.config import SplitConfig
from trueup.data.duplicates.contamination import shared_with
from trueup.data.duplicates.rows import SHARES_CHECK, SHARES_HELDOUT, Contaminated
from trueup.data.jsonl import cut
from trueup.data.records import Demonstration, read_jsonl
from trueup.data.split import is_heldout, question

_CHECKED = ("prompt", "question", "answer")
"""The columns of a check that hold what is asked, and what is to be answered."""


class Exam(NamedTuple):
    text: str
    reason: str
    """Why a row is left out that has words of it."""
    where: Callable[[], str]


class Contamination(NamedTuple):
    rows: dict[int, Contaminated]
    """By their index."""
    phrases: int
    """Rows that share no more than phrases which many rows have."""


def heldout_exam(question: str, where: Callable[[], str]) -> Exam:
    return Exam(question, SHARES_HELDOUT, where)


def check_exams(files: Iterable[Path]) -> list[Exam]:
    """The questions and the answers in files of checks."""
    return [
        Exam(values[column], SHARES_CHECK, f"{file}:{number}".__str__)
        for file in dict.fromkeys(files)
        for number, values in read_jsonl(file)
        for column in _CHECKED
        if isinstance(values, dict) and isinstance(values.get(column), str)
    ]


def contaminated(rows: Sequence[Demonstration], exams: Sequence[Exam], are_trained: bool) -> Contamination:
    """The demonstrations of which a turn has words of an exam.

    are_trained  whether they are trained on nevertheless
    """
    found = shared_with([exam.text for exam in exams], _Turns(rows))
    by_row = {}
    for one in found.shared:
        exam = exams[one.text]
        by_row[one.row] = Contaminated(
            where=rows[one.row].where,
            reason=exam.reason,
            exam=exam.where(),
            words=cut(one.words, 400),
            trained=are_trained,
        )
    return Contamination(by_row, found.phrases)


def on_exams(rows: Sequence[Demonstration], files: Iterable[Path], split: SplitConfig) -> str | None:
    """What is said of demonstrations that may be trained on and have words of an exam; None: there is none.

    files  of checks
    """
    exams = {
        text: heldout_exam(text, partial(getattr, row, "where"))
        for row in rows
        if is_heldout(row.messages, split)
        for text in [question(row.messages)]
    }
    trained = [row for row in rows if not is_heldout(row.messages, split)]
    found = contaminated(trained, [*check_exams(files), *exams.values()], False).rows
    if not found:
        return None
    return f"{len(found)} of {len(trained)} demonstrations {in_words(list(found.values()))}"


def in_words(found: Sequence[Contaminated]) -> str:
    """What demonstrations share with exams, after their number."""
    counts = Counter(one.reason for one in found)
    each = ", ".join(f"{count} {reason.replace('has', 'have', 1)}" for reason, count in counts.items())
    return f"({each}), such as {found[0].where}, which shares {found[0].words!r} with {found[0].exam}"


class _Turns(Sequence[list[str]]):
    """What is asked and what is answered in demonstrations, which may lie on disk, turn by turn."""

    def __init__(self, rows: Sequence[Demonstration]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return _turns(self._rows[index])

    def __iter__(self) -> Any:
        return map(_turns, self._rows)


def _turns(row: Demonstration) -> list[str]:
    return [message.said for message in row.messages if message.role != "system"]
