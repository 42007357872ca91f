"""Label events as columns of numbers (numpy), read from the append-only table in parts.

Each reading appends the events after the last one; an event that supersedes another marks it as taken back. Reading in
parts and reading all at once give the same columns.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import sqlalchemy as sa

from ui.labels.judgements import Tiers
from ui.labels.tables import Database, event, gold

CHUNK = 50_000
"""Events that are read at once."""
TIE, BOTH_BAD = 30, 31
"""Verdicts that name no answer; others are the index of the best one."""

_TYPES: dict[str, Any] = {
    "event_id": np.int64,
    "kind": np.int8,
    "purpose": np.int8,
    "verdict": np.int8,  # index of the best answer; TIE: several are best; BOTH_BAD; -1: not a label
    "answers": np.int8,  # how many there were to choose from
    "said": np.int32,  # code of the tiers
    "strength": np.int8,  # -1: none, as with all numbers below
    "first_shown": np.int8,
    "chose_longer": np.int8,
    "words": np.int32,
    "seconds": np.float64,
    "who": np.int16,
    "item": np.int32,
    "created_ms": np.int64,
    "alive": np.bool_,
}
KINDS = ("label", "skip", "flag", "late", "demonstration", "undo")
PURPOSES = ("work", "repeat", "gold", "qualification")
LABEL, SKIP, FLAG, LATE, DEMONSTRATION, UNDO = range(len(KINDS))
WORK, REPEAT, GOLD, QUALIFICATION = range(len(PURPOSES))


class _Codes(dict[Any, int]):
    """Numbers things in the order of their first appearance."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self)
        return self[key]


class Log:
    """The events of a store that have been read; only one annotator's, if one is named."""

    def __init__(self, annotator: str | None = None):
        self.annotator = annotator
        self.last = 0
        """Id of the last event that was read."""
        self.size = 0
        self.people = _Codes()
        """(source, annotator) to code."""
        self.said = _Codes()
        """Tiers, as JSON, to code."""
        self.flags: list[tuple[int, str]] = []
        """Row and reason of every flag."""
        self._items = _Codes()
        self._columns = {name: np.empty(1024, dtype) for name, dtype in _TYPES.items()}

    def __getitem__(self, column: str) -> np.ndarray:
        return self._columns[column][: self.size]

    @property
    def items(self) -> int:
        return len(self._items)

    def read(self, db: sa.Connection, newest: int | None, limit: int = CHUNK) -> int:
        """Append up to `limit` further events; returns their number.

        newest  id of the last event to read, see `newest_event`; None for one annotator, who writes one after the other
        """
        query = sa.select(*_SELECTED).where(event.c.event_id > self.last).order_by(event.c.event_id).limit(limit)
        if newest is not None:
            query = query.where(event.c.event_id <= newest)
        if self.annotator is not None:
            query = query.where(event.c.annotator == self.annotator)
        # The driver's own rows: making SQLAlchemy's takes longer than all the rest.
        rows = db.execute(query).cursor.fetchall()
        if rows:
            self._append(*zip(*rows, strict=True))
        return len(rows)

    def item_code(self, item_id: str) -> int | None:
        """The code of an item that has an event."""
        return self._items.get(item_id)

    def _append(self, *columns: tuple[Any, ...]) -> None:
        ids, kinds, purposes, tiers, bad, *numbers, source, annotator, item, created, supersedes, notes = columns
        strength, first_shown, chose_longer, words, seconds = numbers
        verdicts = {key: _verdict(*key) for key in set(zip(tiers, bad, strict=True))}
        verdict, answers = zip(*(verdicts[key] for key in zip(tiers, bad, strict=True)), strict=True)
        start, end = self.size, self.size + len(ids)
        self._reserve(end)
        new: dict[str, Any] = {
            "event_id": ids,
            "kind": [KINDS.index(kind) for kind in kinds],
            "purpose": [PURPOSES.index(purpose) for purpose in purposes],
            "verdict": verdict,
            "answers": answers,
            "said": [self.said[one] for one in tiers],
            "strength": strength,
            "first_shown": first_shown,
            "chose_longer": chose_longer,
            "words": words,
            "seconds": seconds,
            "who": [self.people[one] for one in zip(source, annotator, strict=True)],
            "item": [self._items[one] for one in item],
            "created_ms": np.array(created, dtype="datetime64[ms]").astype(np.int64),
            "alive": True,
        }
        for name, values in new.items():
            self._columns[name][start:end] = values
        self.size, self.last = end, ids[-1]
        self.flags += [(start + at, note) for at, note in enumerate(notes) if note is not None]
        old_ids = np.array([one for one in supersedes if one], dtype=np.int64)
        self["alive"][np.searchsorted(self["event_id"], old_ids)] = False

    def _reserve(self, size: int) -> None:
        if size > len(self._columns["event_id"]):
            room = max(size, 2 * len(self._columns["event_id"]))
            for name, values in self._columns.items():
                self._columns[name] = np.concatenate([values, np.empty(room - len(values), values.dtype)])


_SELECTED = [
    event.c.event_id,
    event.c.kind,
    event.c.purpose,
    sa.cast(event.c.tiers, sa.Text),
    sa.cast(event.c.both_bad, sa.Integer),
    sa.func.coalesce(event.c.strength, -1),
    sa.func.coalesce(event.c.first_shown, -1),
    sa.func.coalesce(sa.cast(event.c.chose_longer, sa.Integer), -1),
    sa.func.coalesce(event.c.words, -1),
    sa.func.coalesce(event.c.seconds, -1.0),
    event.c.source,
    event.c.annotator,
    event.c.item_id,
    sa.func.substr(event.c.created_utc, 1, 23),
    event.c.supersedes,
    sa.case((event.c.kind == "flag", sa.func.coalesce(event.c.note, ""))),
]


def _verdict(tiers: str | None, both_bad: int = 0) -> tuple[int, int]:
    """(index of the best answer, number of answers)."""
    if tiers is None:
        return -1, 0
    order = json.loads(tiers)
    best = BOTH_BAD if both_bad else order[0][0] if len(order[0]) == 1 else TIE
    return best, sum(len(tier) for tier in order)


def newest_event(store: Database) -> int:
    """An event id up to which no further event can appear. 0: no events.

    PostgreSQL numbers events before they are committed, and annotators write side by side, so a smaller number can
    appear after a greater one. A lock stops writing for a moment, so that all numbered events are committed.
    """
    with store.read() if store.is_sqlite else store.write() as db:
        return db.scalar(sa.select(sa.func.max(event.c.event_id))) or 0


def known_answers(db: sa.Connection, log: Log) -> dict[int, Tiers]:
    """The known answer of each gold item that has events, by the item's code."""
    rows = db.execute(sa.select(gold.c.item_id, gold.c.tiers))
    return {code: tiers for item_id, tiers in rows if (code := log.item_code(item_id)) is not None}
