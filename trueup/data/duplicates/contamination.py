"""Which rows of training share words in a row with what a model is examined on: held-out prompts and checks.

A text of an exam is contaminated by a row of which one turn has 13 words in a row of it, in lower case and without
punctuation (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C). There, what more than 10 rows have is
left out of account. Here too, and by fewer words, since an instruction that many prompts begin with may be short: 7
words in a row that more than 10 rows and other exams have together are a phrase, and 7 of the 13 words must be of none.
But a turn that is the same as a text is contaminated whatever it shares, and so is a row with all of a text that is
made of phrases. Of a text shorter than 13 words a turn must be the same; and
if more than 10 rows have it, the first turn.

The exams are few and stay in memory as hashes; the rows are many, and read in parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from trueup.data.words import normal, words

WORDS = 13
"""Words in a row that are shared."""
LEAST = 5
"""Words of the shortest text that is looked for: shorter ones, such as "Go on, please", are nobody's own."""
PHRASE = 10
"""Rows and other texts of exams that may have OWN words in a row; what more of them have is a phrase."""
OWN = 7
"""Words of a phrase; and of the words in a row, those that must be of none."""
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
    index = _Index(exams)
    search = _Search(index)
    begin, rest = 0, iter(rows)
    while part := list(islice(rest, _AT_ONCE)):
        if index.numbers:
            search.add(index, part, begin)
        begin += len(part)
    return search.found(index)


class _Index:
    """The words of the exams' texts and the hashes of all their words in a row."""

    def __init__(self, exams: Sequence[str]):
        self._said = lru_cache(maxsize=64)(lambda text: words(normal(exams[self.numbers[text]])))
        self.numbers: list[int] = []
        """Which exam each of the texts is of: each is here once, and those too short not at all."""
        self.by_hash: dict[int, int] = {}
        """The texts by the hash of their words."""
        self._number_of: dict[str, int] = {}
        of_long, of_short = list[np.ndarray](), list[np.ndarray]()
        for number, exam in enumerate(exams):
            said = words(normal(exam))
            whole = hash(" ".join(said))
            if len(said) < LEAST or whole in self.by_hash:
                continue
            self.by_hash[whole] = len(self.numbers)
            is_long = len(said) >= WORDS
            for word in said if is_long else ():
                self._number_of.setdefault(word, len(self._number_of) + 1)
            of_long.append(self.hashes(said, WORDS)[0])
            of_short.append(self.hashes(said if is_long else [], OWN)[0])
            self.numbers.append(number)
        self.long, self.short = _Runs(of_long), _Runs(of_short)
        """All WORDS words in a row, and all OWN words in a row."""
        self.text_of_run = self.long.text[self.long.first]
        """(R,) the first text that has each of the long ones."""
        self.place_of_run = self.long.place[self.long.first]
        """(R,) where they begin in it."""
        self.runs_of = [np.unique(self.long.inverse[a:b]) for a, b in pairwise(self.long.bounds.tolist())]
        self.rarest: dict[int, list[int]] = {}
        """The texts by that run of theirs that fewest others have: who has all of a text has this one."""
        for text, runs in enumerate(self.runs_of):
            if len(runs):
                self.rarest.setdefault(int(runs[self.long.others_with[runs].argmin()]), []).append(text)

    def own_words(self, is_phrase: np.ndarray) -> np.ndarray:
        """(R,) words of each long run that are of no phrase, at that place among the exams where they are most.

        is_phrase  which short runs are phrases
        """
        begin_of_text = self.long.bounds[:-1] + (WORDS - 1) * np.arange(len(self.numbers))  # among all words
        begins, of_short = (begin_of_text[runs.text] + runs.place for runs in (self.long, self.short))
        of_phrases = of_short[is_phrase[self.short.inverse]]
        changes = np.zeros(len(begins) + (WORDS - 1) * len(self.numbers) + 1, dtype=np.int64)
        np.add.at(changes, of_phrases, 1)
        np.add.at(changes, of_phrases + OWN, -1)
        before = np.cumsum(np.r_[0, np.cumsum(changes) == 0])
        own = np.zeros(len(self.long.hashes), dtype=np.int64)
        np.maximum.at(own, self.long.inverse, before[begins + WORDS] - before[begins])
        return own

    def words(self, text: int, place: int) -> str:
        return " ".join(self._said(text)[place : place + WORDS])

    def hashes(self, said: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Of all so many words in a row that exams may have: their hashes, and where each begins."""
        ids = np.fromiter((self._number_of.get(word, _ABSENT) for word in said), dtype=np.uint64, count=len(said))
        size = max(len(ids) - length + 1, 0)
        absent = np.r_[0, np.cumsum(ids == _ABSENT)]
        begins = np.flatnonzero(absent[length:] == absent[:size]) if size else np.zeros(0, dtype=np.int64)
        values = np.zeros(len(begins), dtype=np.uint64)
        for offset in range(length):  # unsigned integers wrap around, as is meant
            values = (values + ids[begins + offset]) * _MIX
            values ^= values >> np.uint64(29)
        return values, begins


class _Runs:
    """Words in a row of all texts, each once."""

    def __init__(self, hashes: Sequence[np.ndarray]):
        """hashes  those of each text, in the order of its words"""
        sizes = list(map(len, hashes))
        self.bounds = np.cumsum([0, *sizes])
        self.text = np.repeat(np.arange(len(sizes)), sizes)
        """(N,) the text of each place where a run is."""
        self.place = np.arange(len(self.text)) - self.bounds[self.text]
        """(N,) where in it that is."""
        self.hashes, self.first, self.inverse = np.unique(
            np.concatenate([*hashes, np.zeros(0, dtype=np.uint64)]), return_index=True, return_inverse=True
        )
        of_texts = np.unique(np.stack([self.text, self.inverse]), axis=1)[1]
        self.others_with = np.bincount(of_texts, minlength=len(self.hashes)) - 1
        """(R,) texts that have each, besides one."""

    def found(self, hashes: np.ndarray, begins: np.ndarray, ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The rows and the runs that they have, each pair once, in the order of the words.

        hashes  of words in a row of all rows, which begin at `begins`
        ends    where the words of each row end
        """
        places = np.searchsorted(self.hashes, hashes)
        is_shared = places < len(self.hashes)
        is_shared[is_shared] = self.hashes[places[is_shared]] == hashes[is_shared]
        runs, rows = places[is_shared], np.searchsorted(ends, begins[is_shared], side="right")
        _, first = np.unique(rows * max(len(self.hashes), 1) + runs, return_index=True)
        first.sort()
        return rows[first], runs[first]


class _Search:
    """What the rows share that were looked at so far. Of each run of words memory holds at most PHRASE rows."""

    def __init__(self, index: _Index):
        self._rows, self._runs, self._any = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._count, self._short_count = index.long.others_with.copy(), index.short.others_with.copy()
        self._same: dict[int, set[int]] = {}
        """The texts that a turn of a row is the same as."""
        self._opening: dict[int, int] = {}
        """The one that its first turn is the same as."""
        self._whole: dict[int, list[int]] = {}
        """The texts that a row has whole."""

    def add(self, index: _Index, part: Sequence[Sequence[str]], begin: int) -> None:
        said, ends = list[str](), list[int]()
        for row, turns in enumerate(part, start=begin):
            for place, turn in enumerate(turns):
                of_turn = words(normal(turn))
                if len(of_turn) >= LEAST and (text := index.by_hash.get(hash(" ".join(of_turn)))) is not None:
                    self._same.setdefault(row, set()).add(text)
                    if not place:
                        self._opening[row] = text
                said += of_turn
                said.append("")  # no word, so that nothing goes on in the next turn
            ends.append(len(said))
        rows, runs = index.long.found(*index.hashes(said, WORDS), ends)
        rows += begin
        self._any = np.append(self._any, np.unique(rows))
        self._add_whole(index, rows, runs)
        self._count += np.bincount(runs, minlength=len(self._count))
        _, short = index.short.found(*index.hashes(said, OWN), ends)
        self._short_count += np.bincount(short, minlength=len(self._short_count))
        self._rows, self._runs = np.append(self._rows, rows), np.append(self._runs, runs)
        is_rare = self._count[self._runs] <= PHRASE
        self._rows, self._runs = self._rows[is_rare], self._runs[is_rare]

    def _add_whole(self, index: _Index, rows: np.ndarray, runs: np.ndarray) -> None:
        for row in np.unique(rows).tolist():
            start, end = np.searchsorted(rows, [row, row + 1])
            has = np.unique(runs[start:end])
            for text in [text for run in has.tolist() for text in index.rarest.get(run, ())]:
                if len(index.runs_of[text]) <= len(has) and np.isin(index.runs_of[text], has).all():
                    self._whole.setdefault(row, []).append(text)

    def found(self, index: _Index) -> Found:
        own = index.own_words(self._short_count > PHRASE)
        rows_with = Counter(text for same in self._same.values() for text in same)
        texts = dict[int, int]()
        for row, same in self._same.items():
            # What many ask behind their first question is a phrase too, such as "Can you explain that in more detail?"
            own_texts = [one for one in same if len(index.runs_of[one]) or rows_with[one] <= PHRASE]
            if own_texts or row in self._opening:
                texts[row] = min([*own_texts, *([self._opening[row]] if row in self._opening else [])])
        for row, whole in self._whole.items():
            for text in whole:
                if (own[index.runs_of[text]] < OWN).all():
                    texts.setdefault(row, text)
        shared = {row: Shared(row, index.numbers[text], index.words(text, 0)) for row, text in texts.items()}
        for row, run in zip(self._rows.tolist(), self._runs.tolist(), strict=True):
            if row not in shared and own[run] >= OWN:
                text = int(index.text_of_run[run])
                shared[row] = Shared(row, index.numbers[text], index.words(text, int(index.place_of_run[run])))
        shares = np.union1d(self._any, list(self._same)).astype(np.int64)
        return Found([shared[row] for row in sorted(shared)], len(np.setdiff1d(shares, list(shared))))
