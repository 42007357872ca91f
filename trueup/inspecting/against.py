"""The difference between two versions of a set: which rows came and went, and how each figure moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from trueup.data.formats import ImportedRanking
from trueup.data.records import digest, random_rows
from trueup.data.words import count_words
from trueup.inspecting.diversity import languages, place
from trueup.inspecting.kinds import KINDS, OTHER
from trueup.inspecting.report import Against, Diversity, Moved
from trueup.inspecting.rows import Row, Rows, answers_of, asked_in, messages_of

SHOWN = 5
"""Rows that are shown of those that came, and of those that went."""
LEAST_SHARE = 0.01
"""Languages that are rarer in both versions are not told: short texts are often taken for another language."""


def against(path: Path, before: Rows, after: Rows, of_before: Diversity, of_after: Diversity) -> Against:
    """The difference of `after`, which is inspected, to `before`, which stands at `path`."""
    added, removed = only(after, before), only(before, after)
    prompts = {prompt_of(row) for row in before}
    return Against(
        path=str(path),
        rows=len(before),
        added=len(added),
        removed=len(removed),
        same_prompt=sum(prompt_of(row) in prompts for row in added),
        added_rows=[place(row) for row in random_rows(added, SHOWN, 0)],
        removed_rows=[place(row) for row in random_rows(removed, SHOWN, 0)],
        figures=list(moved(figures(before, of_before), figures(after, of_after))),
        diversity=of_before,
    )


def only(rows: Rows, other: Rows) -> Rows:
    """The rows that the other version has not, or not as often."""
    left = Counter(map(identity, other))
    found = []
    for row in rows:
        name = identity(row)
        if left[name]:
            left[name] -= 1
        else:
            found.append(row)
    return found


def identity(row: Row) -> str:
    """Equal for rows that say the same."""
    said = [f"{one.role}\x1f{one.said}\x1f{one.trained}\x1f{one.tools or ''}" for one in messages_of(row)]
    if isinstance(row, ImportedRanking):
        said += [*row.completions, str(row.tiers), row.annotator]
    return digest("\x1e".join(said))


def prompt_of(row: Row) -> str:
    """Equal for rows that ask the same, whatever they answer."""
    return digest("\x1e".join(f"{one.role}\x1f{one.content}" for one in messages_of(row) if one.role != "assistant"))


# ---- Figures ----------------------------------------------------------------------------------------------------

Figures = Mapping[str, tuple[float, bool]]
"""The value of each figure, and whether it is a share of all."""


def figures(rows: Rows, found: Diversity) -> Figures:
    return dict(_figures(rows, found))


def _figures(rows: Rows, found: Diversity) -> Iterator[tuple[str, tuple[float, bool]]]:
    yield "rows", (len(rows), False)
    drawn = random_rows(rows, found.rows, 0)
    lengths = {
        "asked, words in the middle": [sum(map(count_words, asked_in(row))) for row in drawn],
        "answer, words in the middle": [count_words(text) for row in drawn for text in answers_of(row)],
    }
    for name, values in lengths.items():
        if values:
            yield name, (float(np.median(values)), False)
    yield "questions in a row", (float(np.mean([len(asked_in(row)) for row in drawn])), False)
    for what, words in found.vocabulary.items():
        yield f"different words, {what}", (words.type_token, True)
        yield f"different word pairs, {what}", (words.distinct_2, True)
    if found.neighbours:
        yield "likeness to the nearest prompt", (found.neighbours.median, False)
        yield "prompts with a near one", (found.neighbours.near, True)
    for kind in (*KINDS, OTHER):
        yield f"kind {kind.replace('_', ' ')}", (found.kinds.rows.get(kind, 0) / found.rows, True)
    told = languages(drawn)
    for language, count in told.items():
        yield f"language {language}", (count / sum(told.values()), True)


def moved(before: Figures, after: Figures) -> Iterator[Moved]:
    """Each figure of either version; a share that a version does not name is 0 there."""
    for name in dict.fromkeys([*after, *before]):
        _, share = after.get(name) or before[name]
        values = [side[name][0] if name in side else None for side in (before, after)]
        if name.startswith(("kind ", "language ")):
            values = [value or 0.0 for value in values]
            if max(value or 0.0 for value in values) < LEAST_SHARE:
                continue
        yield Moved(name=name, before=values[0], after=values[1], share=share)
