"""Which rows of training share words in a row with what a model is examined on: held-out prompts and checks.

A text of an exam is contaminated by a row of which one turn has 13 words in a row of it, in lower case and without
punctuation (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C). As there, words in a row that many have
are no more than a phrase, such as an instruction that many prompts begin with: here more than 10 rows and other exams
together, since in a small set few rows have it. Nor is what has less than 7 words beside a phrase more than that. But a
turn that is the same as a text is contaminated whatever it shares, and so is a row with all of a text whose words are
all of phrases. Of a text shorter than 13 words a turn must be the same.

The exams are few and stay in memory as hashes; the rows are many, and read in parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from trueup.data.words import normal, words

WORDS = 13
"""Words in a row that are shared."""
LEAST = 5
"""Words of the shortest text that is looked for: shorter ones, such as "Go on, please", are nobody's own."""
PHRASE = 10
"""Rows and other texts of exams that may have words in a row; what more of them have is a phrase."""
OWN = 7
"""Of the words in a row, those that must be of no phrase."""
_AT_ONCE = 1000
"""Rows that are compared together."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
_ABSENT = 0
"""Number of a word that no exam has. It parts turns, too."""


class Shared(NamedTuple):
    row: int
    text: int
    """Index of the text of an exam, of several the first."""
    words: str
    """The words in a row that both have, the first of them in the row."""


class Found(NamedTuple):
    shared: list[Shared]
    """By their rows, each once."""
    phrases: int
    """Rows that share no more with the exams than phrases."""


def shared_with(exams: Sequence[str], rows: Iterable[Sequence[str]]) -> Found:
    """The rows that share words in a row with a text of an exam.

    rows  the turns of each row
    """
    index, search = _Index(exams), _Search()
    begin, rest = 0, iter(rows)
    while part := list(islice(rest, _AT_ONCE)):
        if index.numbers:
            search.add(index, part, begin)
        begin += len(part)
    return search.found(index)


class _Index:
    """The words of the exams' texts and the hashes of all their words in a row."""

    def __init__(self, exams: Sequence[str]):
        self._exams = exams
        self.numbers: list[int] = []
        """Which exam each of the texts is of: each is here once, and those too short not at all."""
        self.by_hash: dict[int, int] = {}
        """The texts by the hash of their words."""
        self._number_of: dict[str, int] = {}
        hashes = list[np.ndarray]()
        for number, exam in enumerate(exams):
            said = words(normal(exam))
            whole = hash(" ".join(said))
            if len(said) < LEAST or whole in self.by_hash:
                continue
            self.by_hash[whole] = len(self.numbers)
            for word in said if len(said) >= WORDS else ():
                self._number_of.setdefault(word, len(self._number_of) + 1)
            hashes.append(self.hashes(said)[0])
            self.numbers.append(number)
        sizes = list(map(len, hashes))
        self._of_text = of_text = np.repeat(np.arange(len(sizes)), sizes)
        self.runs, first, self._inverse = np.unique(
            np.concatenate([*hashes, np.zeros(0, dtype=np.uint64)]), return_index=True, return_inverse=True
        )
        """(R,) hashes of words in a row, in order."""
        self.text_of_run = of_text[first]
        """(R,) the first text that has each."""
        bounds = np.cumsum([0, *sizes])
        self.place_of_run = first - bounds[self.text_of_run]
        """(R,) where they begin in it."""
        self.runs_of = [np.unique(self._inverse[a:b]) for a, b in pairwise(bounds.tolist())]
        texts_with = np.bincount(np.concatenate([*self.runs_of, first[:0]]), minlength=len(self.runs))
        self.others_with = texts_with - 1
        """(R,) texts that have each, besides one."""
        self.rarest: dict[int, list[int]] = {}
        """The texts by that run of theirs that fewest others have: who has all of a text has this one."""
        for text, runs in enumerate(self.runs_of):
            if len(runs):
                self.rarest.setdefault(int(runs[texts_with[runs].argmin()]), []).append(text)

    def own_words(self, is_phrase: np.ndarray) -> np.ndarray:
        """(R,) words of each run that are of no phrase, at that place among the exams where they are most.

        is_phrase  (R,) which runs are phrases
        """
        begins = np.arange(len(self._inverse)) + (WORDS - 1) * self._of_text  # among the words of all texts
        of_phrases = begins[is_phrase[self._inverse]]
        changes = np.zeros(len(begins) + (WORDS - 1) * len(self.numbers) + 1, dtype=np.int64)
        np.add.at(changes, of_phrases, 1)
        np.add.at(changes, of_phrases + WORDS, -1)
        before = np.cumsum(np.r_[0, np.cumsum(changes) == 0])
        own = np.zeros(len(self.runs), dtype=np.int64)
        np.maximum.at(own, self._inverse, before[begins + WORDS] - before[begins])
        return own

    def words(self, text: int, place: int) -> str:
        return " ".join(words(normal(self._exams[self.numbers[text]]))[place : place + WORDS])

    def hashes(self, said: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of all words in a row that exams may have: their hashes, and where each begins."""
        ids = np.fromiter((self._number_of.get(word, _ABSENT) for word in said), dtype=np.uint64, count=len(said))
        size = max(len(ids) - WORDS + 1, 0)
        absent = np.r_[0, np.cumsum(ids == _ABSENT)]
        begins = np.flatnonzero(absent[WORDS:] == absent[:size]) if size else np.zeros(0, dtype=np.int64)
        values = np.zeros(len(begins), dtype=np.uint64)
        for offset in range(WORDS):  # unsigned integers wrap around, as is meant
            values = (values + ids[begins + offset]) * _MIX
            values ^= values >> np.uint64(29)
        return values, begins


class _Search:
    """What the rows share that were looked at so far. Of each run of words memory holds at most PHRASE rows."""

    def __init__(self) -> None:
        self._rows, self._runs, self._any = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._count: np.ndarray = np.zeros(0, dtype=np.int64)
        self._same: dict[int, int] = {}
        """The text that a turn of a row is the same as."""
        self._whole: dict[int, list[int]] = {}
        """The texts that a row has whole."""

    def add(self, index: _Index, part: Sequence[Sequence[str]], begin: int) -> None:
        said, ends = list[str](), list[int]()
        for row, turns in enumerate(part, start=begin):
            for turn in turns:
                of_turn = words(normal(turn))
                if len(of_turn) >= LEAST and (text := index.by_hash.get(hash(" ".join(of_turn)))) is not None:
                    self._same.setdefault(row, text)
                said += of_turn
                said.append("")  # no word, so that nothing goes on in the next turn
            ends.append(len(said))
        values, begins = index.hashes(said)
        places = np.searchsorted(index.runs, values)
        is_shared = places < len(index.runs)
        is_shared[is_shared] = index.runs[places[is_shared]] == values[is_shared]
        runs, rows = places[is_shared], begin + np.searchsorted(ends, begins[is_shared], side="right")
        _, first = np.unique(rows * max(len(index.runs), 1) + runs, return_index=True)
        first.sort()  # in the order of the words
        rows, runs = rows[first], runs[first]
        self._any = np.append(self._any, np.unique(rows))
        self._add_whole(index, rows, runs)
        self._count = np.bincount(runs, minlength=len(index.runs)) + (
            self._count if len(self._count) else index.others_with
        )
        self._rows, self._runs = np.append(self._rows, rows), np.append(self._runs, runs)
        is_rare = self._count[self._runs] <= PHRASE
        self._rows, self._runs = self._rows[is_rare], self._runs[is_rare]

    def _add_whole(self, index: _Index, rows: np.ndarray, runs: np.ndarray) -> None:
        for row, run in zip(rows.tolist(), runs.tolist(), strict=True):
            for text in index.rarest.get(run, ()):
                start, end = np.searchsorted(rows, [row, row + 1])
                if np.isin(index.runs_of[text], runs[start:end]).all():
                    self._whole.setdefault(row, []).append(text)

    def found(self, index: _Index) -> Found:
        is_phrase = self._count > PHRASE
        texts = dict(self._same)
        for row, whole in self._whole.items():
            for text in whole:
                if is_phrase[index.runs_of[text]].all():
                    texts.setdefault(row, text)
        shared = {row: Shared(row, index.numbers[text], index.words(text, 0)) for row, text in texts.items()}
        own = index.own_words(is_phrase) if len(is_phrase) else self._count
        for row, run in zip(self._rows.tolist(), self._runs.tolist(), strict=True):
            if row not in shared and own[run] >= OWN:
                text = int(index.text_of_run[run])
                shared[row] = Shared(row, index.numbers[text], index.words(text, int(index.place_of_run[run])))
        return Found([shared[row] for row in sorted(shared)], len(np.setdiff1d(self._any, list(shared))))
