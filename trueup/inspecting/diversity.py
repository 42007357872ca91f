"""How varied the rows of a set are: kinds of tasks, instructions, vocabulary, lengths, nearest neighbours.

Figures are of at most SAMPLED rows that are drawn at random, so that their cost does not grow with the set, and those
that depend on the number of rows say of how many they are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trueup.data.jsonl import cut
from trueup.data.records import random_rows
from trueup.data.words import count_words, words
from trueup.inspecting.instructions import instruction_of
from trueup.inspecting.kinds import KINDS, OTHER, most_frequent, named_kind, told_kind
from trueup.inspecting.report import (
    Close,
    Diversity,
    FiledText,
    Histogram,
    Instructions,
    Kinds,
    Neighbours,
    Verb,
    Vocabulary,
)
from trueup.inspecting.rows import Row, Rows, answers_of, asked_in, file_of, opening_of, text_of, words_asked
from trueup.statistics.intervals import wilson

SAMPLED = 5_000
"""Most rows whose texts are read here."""
COMPARED = 2_000
"""Most prompts that are compared with each other."""
LANGUAGE_ROWS = 2_000
"""Most rows whose language is told."""
LEAST_CHARACTERS = 20
"""Characters from which the language of a text can be told."""
NEAR = 0.8
"""Cosine from which two prompts count as near."""
CLOSEST = 5
"""Pairs of prompts that are shown."""
VERBS, NOUNS = 15, 5
WINDOW = 1_000
"""Words of a window of vocabulary."""
PIECE = 50
"""Words of a text that a window takes, so that it spans many texts, however long they are."""
SHOWN_TEXT = 300
"""Characters of a text that stand in the report."""


def diversity(rows: Rows, compared: int = COMPARED, seed: int = 0) -> Diversity:
    """compared: prompts that are compared with each other; for two sets to be compared it must be the same number."""
    drawn = random_rows(rows, SAMPLED, seed)
    texts = {
        "asked": [text for row in drawn for text in asked_in(row)],
        "answers": [text for row in drawn for text in answers_of(row)],
    }
    asked = [words_asked(row) for row in drawn]
    answers = [count_words(text) for text in texts["answers"]]
    vocabularies = {what: vocabulary(some, seed) for what, some in texts.items()}
    return Diversity(
        rows=len(drawn),
        kinds=kinds(drawn),
        instructions=instructions([opening_of(row) for row in drawn]),
        vocabulary={what: found for what, found in vocabularies.items() if found},
        lengths={what: of_lengths(some) for what, some in (("asked", asked), ("answer", answers)) if some},
        neighbours=neighbours(random_rows(drawn, compared, seed)),
        files=dict(Counter(file_of(row) for row in rows).most_common()),
    )


def place(row: Row, text: str | None = None) -> FiledText:
    return FiledText(where=row.where, content=cut(opening_of(row) if text is None else text, SHOWN_TEXT))


# ---- Kinds and instructions -------------------------------------------------------------------------------------


def kinds(rows: Rows) -> Kinds:
    """Rows by the kind that their category names, or else their cue words."""
    counts: Counter[str] = Counter()
    cues: dict[str, Counter[str]] = {}
    named = right = 0
    for row in rows:
        told, own = told_kind(opening_of(row)), named_kind(row.category)
        counts[own or told.kind] += 1
        if own:
            named += 1
            right += told.kind == own
        elif told.cues:
            cues.setdefault(told.kind, Counter()).update(told.cues)
    return Kinds(
        rows={kind: counts[kind] for kind in (*KINDS, OTHER) if counts[kind]},
        by_category=named,
        agreement=wilson(right, named).estimate() if named else None,
        cues={kind: most_frequent(cues[kind]) for kind in KINDS if kind in cues},
    )


def instructions(texts: Sequence[str]) -> Instructions:
    found = [one for text in texts if (one := instruction_of(text))]
    nouns: dict[str, Counter[str]] = {}
    for one in found:
        nouns.setdefault(one.verb, Counter()).update([one.noun] if one.noun else [])
    verbs = Counter(one.verb for one in found)
    return Instructions(
        rows=len(found),
        pairs=len({one for one in found if one.noun}),
        verbs=[
            Verb(verb=verb, rows=count, nouns=dict(nouns[verb].most_common(NOUNS)))
            for verb, count in verbs.most_common(VERBS)
        ],
    )


# ---- Words ------------------------------------------------------------------------------------------------------


def vocabulary(texts: Sequence[str], seed: int = 0) -> Vocabulary | None:
    """Type-token ratio and distinct-2 (Li et al. 2016, https://arxiv.org/abs/1510.03055) of windows of a fixed size, as
    Johnson 1944 has it (https://doi.org/10.1037/h0093508): both fall with the number of words. None: fewer words than
    one window has."""
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    pieces = (words(texts[i][: 20 * PIECE])[:PIECE] for i in order)
    tokens: list[str] = []
    singles, pairs = [], []
    for piece in pieces:
        tokens += piece
        while len(tokens) >= WINDOW:
            window, tokens = tokens[:WINDOW], tokens[WINDOW:]
            singles.append(len(set(window)) / WINDOW)
            pairs.append(len(set(pairwise(window))) / (WINDOW - 1))
    if not singles:
        return None
    return Vocabulary(windows=len(singles), type_token=float(np.mean(singles)), distinct_2=float(np.mean(pairs)))


def of_lengths(counts: Sequence[float]) -> Histogram:
    """Numbers of words in bins that widen with them: each further one ends at 1.41 times its beginning."""
    edges = [0.0, 1.0, 2.0, 4.0]
    while edges[-1] <= max(counts):
        edges.append(2 ** ((len(edges) + 1) / 2) if len(edges) > 3 else 2.0 * edges[-1])
    return Histogram(edges=edges, counts=np.histogram(counts, edges)[0].tolist())


def languages(rows: Rows) -> dict[str, int]:
    """At most LANGUAGE_ROWS rows by language (ISO 639-1), most frequent first, without those too short to tell."""
    from py3langid import classify

    texts = (text_of(row) for row in random_rows(rows, LANGUAGE_ROWS, 0))
    long = [text for text in texts if len(text) >= LEAST_CHARACTERS]
    return dict(Counter(str(classify(text)[0]) for text in long).most_common())


# ---- Neighbours -------------------------------------------------------------------------------------------------


def neighbours(rows: Rows) -> Neighbours | None:
    """The nearest one of each prompt among the others."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    kept = [row for row in rows if words(opening_of(row))]
    if len(kept) < 2:
        return None
    vectors = TfidfVectorizer(analyzer=words, sublinear_tf=True).fit_transform([opening_of(row) for row in kept])
    alike = np.asarray((vectors @ vectors.T).todense())
    np.fill_diagonal(alike, -1.0)
    nearest, most = alike.argmax(axis=1), np.clip(alike.max(axis=1), 0.0, 1.0)
    pairs = {(min(i, j), max(i, j)) for i, j in enumerate(nearest.tolist())}
    closest = sorted(pairs, key=lambda pair: (-alike[pair], pair))[:CLOSEST]
    edges = np.linspace(0, 1, 21)
    return Neighbours(
        rows=len(kept),
        median=float(np.median(most)),
        near=float(np.mean(most >= NEAR)),
        alike=Histogram(edges=edges.round(2).tolist(), counts=np.histogram(most, edges)[0].tolist()),
        closest=[
            Close(alike=min(1.0, float(alike[i, j])), first=place(kept[i]), second=place(kept[j])) for i, j in closest
        ],
    )
