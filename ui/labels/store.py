"""The label store: items to judge, the labels to collect of them, and every label as an append-only event.

ui/labels/service.py writes people's judgements. All else is here: adding items, writing labels of programs, and reading
current labels. Labels of people and of programs share the store, but a row has its `source` and `annotator`, and a
caller gets both only if it asks for both. An event counts as long as no later one supersedes it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from trueup.data.records import Ranking
from ui.labels.items import OF_ITEM, Gold, Item, ProgramLabel, QueueEntry, ideal_of, ranking_of
from ui.labels.judgements import Tiers
from ui.labels.tables import ROUND, Database, TableRow, event, gold, guideline, item, meta, now, slot, view

T = TypeVar("T")
CHUNK = 1000

# ---- The store --------------------------------------------------------------------------------------------------


class Store(Database):
    """The store, opened by its URL. It makes its tables if there are none."""

    def add_items(self, items: Iterable[Item]) -> list[str]:
        """Add items; existing ones keep their labels. Returns their ids, in order."""
        changing = ("category", "split", "sampler", "completions")  # an item's id is a hash of the rest
        columns = [item.c.item_id, *(item.c[key] for key in changing)]
        ids = []
        for chunk in _chunks(items):
            rows = {(row := one.row())["item_id"]: row for one in chunk}
            ids += [one.item_id for one in chunk]
            with self.write() as db:
                stored = {row.item_id: row for row in db.execute(sa.select(*columns).where(item.c.item_id.in_(rows)))}
                if fresh := [row for name, row in rows.items() if name not in stored]:
                    db.execute(item.insert(), fresh)
                for name, old in stored.items():  # the split's salt or the sampler may have changed: the label stands
                    values = {key: rows[name][key] for key in changing}
                    if any(getattr(old, key) != value for key, value in values.items()):
                        db.execute(item.update().where(item.c.item_id == name).values(**values))
        return ids

    def ask(
        self,
        queue: Iterable[QueueEntry],
        labels_per_pair: int = 1,
        in_rounds: bool = False,
        expected: int = 0,
        number: int = 1,
    ) -> None:
        """Make these items the queue, in this order, with `labels_per_pair` labels of each.

        Existing labels still count; a leased item stays leased if it is still in the queue.
        in_rounds: every item gets a first label before any gets a second; else each gets all of its labels in turn.
        number: the campaign's round that asks. What people write from now on belongs to it.
        expected: so many items are there in the end. `ask_more` adds the others; labels of items that may be among them
        keep their slots.
        """
        positions = {entry.item_id: (position, entry) for position, entry in reversed(list(enumerate(queue)))}
        with self.write() as db:
            slots: dict[str, list[Any]] = {}
            for row in db.execute(sa.select(slot).order_by(slot.c.slot_no)):
                slots.setdefault(row.item_id, []).append(row)
            labelled = _annotators(db, positions.keys() - slots.keys())
            changes = _SlotChanges(round_of=len(positions) if in_rounds else 0)
            stays = {"filled"} if expected else set[str]()
            others = [row for name, rows in slots.items() if name not in positions for row in rows]
            changes.gone = [row.slot_id for row in others if row.state not in stays]
            for name, (position, entry) in positions.items():
                changes.add(entry, position, labels_per_pair, slots.get(name, []), labelled.get(name, []))
            total = sum(map(len, slots.values())) + changes.write(db)
            # A number that grew with every answer would have annotators' remaining work estimated after each label.
            targets = (expected, expected * labels_per_pair) if expected else (len(positions), total)
            keep_note(db, WANTED, "{} {}".format(*targets))
            keep_note(db, ROUND, str(number))

    def ask_more(self, entries: Iterable[QueueEntry], labels_per_pair: int) -> None:
        """Put further items behind those of the queue, whose size `ask` was told to expect."""
        by_id = {entry.item_id: entry for entry in entries}
        with self.write() as db:
            slots: dict[str, list[Any]] = {}
            for row in db.execute(sa.select(slot).where(slot.c.item_id.in_(by_id)).order_by(slot.c.slot_no)):
                slots.setdefault(row.item_id, []).append(row)
            labelled = _annotators(db, by_id.keys() - slots.keys())
            last = db.scalar(sa.select(sa.func.max(slot.c.position)))
            changes = _SlotChanges(round_of=0)
            for position, (name, entry) in enumerate(by_id.items(), start=0 if last is None else last + 1):
                changes.add(entry, position, labels_per_pair, slots.get(name, []), labelled.get(name, []))
            changes.write(db)

    def asked(self) -> dict[str, QueueEntry]:
        """The current queue, by item id."""
        query = sa.select(slot.c.item_id, slot.c.selection, slot.c.propensity).order_by(slot.c.position)
        with self.read() as db:
            return {row.item_id: QueueEntry(*row) for row in db.execute(query)}

    def set_gold(self, use: Literal["check", "qualification"], entries: Iterable[Gold]) -> None:
        """Make these the hidden checks, or the qualification round; judgements of earlier ones stay."""
        rows = [{**one._asdict(), "use": use, "position": position} for position, one in enumerate(entries)]
        with self.write() as db:
            # An item cannot be both, since the round reveals its answer.
            ids = [row["item_id"] for row in rows]
            db.execute(gold.delete().where(sa.or_(gold.c.use == use, gold.c.item_id.in_(ids))))
            if rows:
                db.execute(gold.insert(), rows)

    def gold(self, use: Literal["check", "qualification"]) -> list[Gold]:
        """The items with a known answer, in order."""
        query = sa.select(*(gold.c[key] for key in Gold._fields)).where(gold.c.use == use).order_by(gold.c.position)
        with self.read() as db:
            return [Gold(*row) for row in db.execute(query)]

    def add_guideline(self, text: str) -> str:
        """Store a guideline's text; returns its hash, which views and labels refer to."""
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        with self.write() as db:
            if db.scalar(sa.select(guideline.c.sha256).where(guideline.c.sha256 == sha256)) is None:
                db.execute(guideline.insert().values(sha256=sha256, text=text, created_utc=now()))
        return sha256

    def name(self) -> str:
        """A random name of this store, under which a browser stores what it could not send."""
        with self.write() as db:
            name = db.scalar(sa.select(meta.c.value).where(meta.c.key == _NAME))
            if name is None:
                keep_note(db, _NAME, name := secrets.token_hex(8))
        return name

    def note(self, key: str) -> str | None:
        """A value that `set_note` stored."""
        with self.read() as db:
            return db.scalar(sa.select(meta.c.value).where(meta.c.key == key))

    def set_note(self, key: str, value: str) -> None:
        with self.write() as db:
            keep_note(db, key, value)

    def counts(self) -> tuple[int, int, int]:
        """The numbers of labels, of labels to collect, and of items in the queue; cheap in a large store too."""
        with self.read() as db:
            filled = db.scalar(sa.select(sa.func.count()).where(slot.c.state == "filled")) or 0
            note = db.scalar(sa.select(meta.c.value).where(meta.c.key == WANTED))
        items, total = map(int, (note or "0 0").split())
        return filled, total, items

    # ---- Machines

    def put(self, source: str, annotator: str, labels: Iterable[ProgramLabel]) -> int:
        """Make these the labels of `annotator` for the items. Returns the number of new events.

        Equal labels stay, other ones are superseded, so running a source again adds nothing.
        """
        added = 0
        with self.write() as db:
            query = _current(source).where(event.c.annotator == annotator)
            before = {row.item_id: row for row in db.execute(query)}
            for label in labels:
                old = before.get(label.item_id)
                if old is not None and (old.tiers, old.strength) == (label.tiers, label.strength):
                    continue
                # The same history gives the same label ids.
                key = json.dumps([source, annotator, *label, old.client_uuid if old is not None else None])
                name = str(uuid.uuid5(uuid.NAMESPACE_OID, key))
                row = {
                    "item_id": label.item_id,
                    "annotator": annotator,
                    "source": source,
                    "client_uuid": name,
                    "kind": "skip" if label.tiers is None else "label",
                    "tiers": label.tiers,
                    "strength": label.strength,
                    "created_utc": now(),
                }
                db.execute(event.insert().values(**row, supersedes=None if old is None else old.event_id))
                added += 1
        return added

    def judged(self, source: str, annotator: str) -> set[str]:
        """Items that an annotator has judged, for sources that continue where they stopped."""
        with self.read() as db:
            return {row.item_id for row in db.execute(_current(source).where(event.c.annotator == annotator))}

    # ---- Reading

    def rankings(
        self,
        sources: Collection[str],
        item_ids: Collection[str] | None = None,
        purpose: Literal["work", "repeat"] = "work",
    ) -> list[Ranking]:
        """Current labels as rankings, in the order of their events; or hidden repeats of them."""
        query = (
            sa.select(
                event,
                *(item.c[key] for key in (*OF_ITEM, "completions")),
                view.c.drawn,
            )
            .join(item, item.c.item_id == event.c.item_id)
            .outerjoin(view, view.c.token == event.c.view_token)
            .where(event.c.kind == "label", event.c.purpose == purpose, event.c.source.in_(sources), ~superseded())
            .order_by(event.c.event_id)
        )
        ids = None if item_ids is None else set(item_ids)
        with self.read() as db:
            return [ranking_of(row) for row in db.execute(query) if ids is None or row.item_id in ids]

    def answered(self, source: str, item_ids: Collection[str]) -> dict[str, list[str]]:
        """Current `label`, `skip`, `flag` and `late` of each of these items that has any."""
        ids, kinds = set(item_ids), dict[str, list[str]]()
        with self.read() as db:
            for row in db.execute(_current(source).with_only_columns(event.c.item_id, event.c.kind)):
                if row.item_id in ids:
                    kinds.setdefault(row.item_id, []).append(row.kind)
        return kinds

    def labelled_elsewhere(self, number: int) -> set[str]:
        """The items with a current label, of anybody, that another round asked for."""
        query = sa.select(event.c.item_id).where(
            event.c.kind == "label", event.c.purpose == "work", event.c.round != number, ~superseded()
        )
        with self.read() as db:
            return set(db.scalars(query))

    def votes(self) -> dict[str, Counter[str]]:
        """Counts of each judgement, whatever its strength, by item that people have labelled."""
        counts: dict[str, Counter[str]] = {}
        query = _current("human").with_only_columns(event.c.item_id, event.c.tiers).where(event.c.kind == "label")
        with self.read() as db:
            for row in db.execute(query):
                counts.setdefault(row.item_id, Counter())[json.dumps(row.tiers)] += 1
        return counts

    def left_choices(self, item_ids: Collection[str]) -> tuple[int, int]:
        """How often people preferred the completion on the left, and in how many pairs they preferred one."""
        columns = (event.c.item_id, event.c.tiers, event.c.first_shown)
        query = _current("human").with_only_columns(*columns).where(event.c.kind == "label")
        ids, on_left, strict = set(item_ids), 0, 0
        with self.read() as db:
            for row in db.execute(query):
                if row.item_id in ids and len(row.tiers) == 2 and sum(map(len, row.tiers)) == 2:
                    strict += 1
                    on_left += row.first_shown == row.tiers[0][0]
        return on_left, strict

    def checks(self) -> dict[str, list[tuple[Tiers, Tiers]]]:
        """For each annotator the first judgements of hidden gold items, taken back or not, with the known answers."""
        answers = {one.item_id: one.tiers for one in self.gold("check")}
        query = (
            sa.select(event.c.annotator, event.c.item_id, event.c.tiers)
            .where(event.c.source == "human", event.c.purpose == "gold", event.c.kind == "label")
            .order_by(event.c.event_id)
        )
        first: dict[tuple[str, str], Tiers] = {}
        with self.read() as db:
            for row in db.execute(query):
                first.setdefault((row.annotator, row.item_id), row.tiers)
        by_annotator: dict[str, list[tuple[Tiers, Tiers]]] = {}
        for (annotator, item_id), tiers in first.items():
            if item_id in answers:
                by_annotator.setdefault(annotator, []).append((tiers, answers[item_id]))
        return by_annotator

    def ideals(self, item_ids: Collection[str] | None = None, rounds: Collection[int] | None = None) -> list[Ranking]:
        """Current ideal answers of people, each as a ranking: the ideal answer above those that were shown."""
        query = (
            sa.select(event, *(item.c[key] for key in (*OF_ITEM, "completions")))
            .join(item, item.c.item_id == event.c.item_id)
            .where(event.c.kind == "demonstration", event.c.purpose.in_(_EXPORTED_IDEALS), ~superseded())
            .order_by(event.c.event_id)
        )
        if rounds is not None:
            query = query.where(event.c.round.in_(rounds))
        ids = None if item_ids is None else set(item_ids)
        with self.read() as db:
            return [ideal_of(row) for row in db.execute(query) if ids is None or row.item_id in ids]

    def digest(self, number: int) -> str | None:
        """A hash of people's current judgements of a round that the label stage exports or reports; None while there
        are none."""
        names = ("item_id", "annotator", "kind", "purpose", "tiers", "strength", "both_bad", "criteria", "note")
        query = sa.select(*(event.c[name] for name in names)).where(
            event.c.source == "human",
            event.c.round == number,
            event.c.kind.in_(("label", "demonstration")),
            sa.or_(
                event.c.purpose == "gold",
                sa.and_(event.c.purpose.in_(("work", "repeat")), ~superseded()),
            ),
        )
        with self.read() as db:
            rows = sorted(json.dumps(list(row)) for row in db.execute(query))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest() if rows else None


def digest(url: str | sa.URL, number: int) -> str | None:
    """A hash of people's current labels of a round in the store at `url`; None if there is no store."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        return None
    store = Store(url)
    try:
        return store.digest(number)
    finally:
        store.close()


@dataclass
class _SlotChanges:
    """The changes of slots for a new queue."""

    round_of: int
    """Positions from an item's first label to its second; 0: they follow each other."""
    gone: list[int] = field(default_factory=list)
    moved: list[TableRow] = field(default_factory=list)
    fresh: list[TableRow] = field(default_factory=list)

    def add(self, entry: QueueEntry, position: int, count: int, slots: list[Any], labelled: list[str]) -> None:
        """Give an item as many slots as labels to collect, with those of people who `labelled` it before."""
        free = [row for row in slots if row.state == "open"]
        annotators = [] if slots else labelled
        missing = max(0, count - (len(slots) - len(free)) - len(annotators))
        self.gone += [row.slot_id for row in free[missing:]]
        for row in free[:missing]:
            to = position + row.slot_no * self.round_of
            if (row.position, row.selection, row.propensity) != (to, entry.selection, entry.propensity):
                self.moved.append({"id": row.slot_id, "to": to, "by": entry.selection, "p": entry.propensity})
        first = 1 + max((row.slot_no for row in slots), default=-1)
        for number, annotator in enumerate([*annotators, *[None] * (missing - len(free[:missing]))], start=first):
            state = {"state": "open" if annotator is None else "filled", "annotator": annotator}
            row = {**entry._asdict(), "slot_no": number, "position": position + number * self.round_of, **state}
            self.fresh.append(row)

    def write(self, db: sa.Connection) -> int:
        """Write the changes; returns the difference in the number of slots."""
        for ids in _chunks(self.gone):
            db.execute(slot.delete().where(slot.c.slot_id.in_(ids)))
        to: TableRow = {
            "position": sa.bindparam("to"),
            "selection": sa.bindparam("by"),
            "propensity": sa.bindparam("p"),
        }
        for rows in _chunks(self.moved):
            db.execute(slot.update().where(slot.c.slot_id == sa.bindparam("id")).values(to), rows)
        for rows in _chunks(self.fresh):
            db.execute(slot.insert(), rows)
        return len(self.fresh) - len(self.gone)


# ---- Queries ----------------------------------------------------------------------------------------------------


def superseded() -> sa.ColumnElement[bool]:
    """Whether a later event takes this one back or replaces it."""
    later = event.alias("later")
    return sa.exists().where(later.c.supersedes == event.c.event_id)


ANSWERS = ("label", "skip", "flag", "late")
"""Kinds of events that answer a view."""


def _current(source: str) -> sa.Select[Any]:
    """The current judgements of a source: its work, without hidden checks and practice."""
    return sa.select(event).where(
        event.c.source == source, event.c.purpose == "work", event.c.kind.in_(ANSWERS), ~superseded()
    )


def _annotators(db: sa.Connection, item_ids: Collection[str]) -> dict[str, list[str]]:
    """The annotators who labelled each of these items."""
    annotators: dict[str, list[str]] = {}
    query = _current("human").with_only_columns(event.c.item_id, event.c.annotator).where(event.c.kind == "label")
    if len(item_ids) <= CHUNK:
        query = query.where(event.c.item_id.in_(item_ids))
    for row in db.execute(query):
        annotators.setdefault(row.item_id, []).append(row.annotator)
    return annotators


_EXPORTED_IDEALS = ("work", "repeat")
"""Purposes of the tasks whose ideal answers are exported."""
_NAME = "name"
WANTED = "wanted"
"""Key of the note with the numbers of items in the queue and of labels to collect, written with the queue."""


def keep_note(db: sa.Connection, key: str, value: str) -> None:
    db.execute(meta.delete().where(meta.c.key == key))
    db.execute(meta.insert().values(key=key, value=value))


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(itertools.islice(rest, CHUNK)):
        yield chunk
