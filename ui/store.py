"""The label store: items to judge, what was shown to whom, and every label as an append-only event.

Labels of people and of machines share the store, but a row says its `source` and `annotator`, and nothing mixes them
unless it is asked for both. An event counts as long as no later one supersedes it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import sqlalchemy as sa

from trueup.errors import TrueupError
from trueup.records import Message, Ranking, prompt_id
from ui.tables import Database, event, item, queue, view

Tiers = list[list[int]]

# ---- What goes in and out ---------------------------------------------------------------------------------------


class AnswerLike(Protocol):
    """What is stored of an answer; `trueup.records.Candidate` is one."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Any: ...
    @property
    def finished(self) -> bool: ...
    @property
    def logp(self) -> float | None: ...


@dataclass(frozen=True)
class Text:
    """An answer that was not sampled here, and counts as finished."""

    text: str
    token_ids: list[int] | None = None
    finished: bool = True
    logp: float | None = None


@dataclass(frozen=True)
class Item:
    """A prompt and the answers to judge against each other."""

    prompt: list[Message]
    answers: list[AnswerLike]
    category: str | None
    split: Literal["train", "heldout"]
    sampler: dict[str, Any]

    @property
    def item_id(self) -> str:
        """Hash of what is judged; the category, the split and where it came from do not change it."""
        content = [[(message.role, message.content) for message in self.prompt], self._answers()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def _answers(self) -> list[dict[str, Any]]:
        return [{"text": a.text, "token_ids": a.token_ids, "finished": a.finished} for a in self.answers]

    def row(self) -> dict[str, Any]:
        return {
            "item_id": self.item_id,
            "prompt_id": prompt_id(self.prompt),
            "prompt": [message.model_dump() for message in self.prompt],
            "category": self.category,
            "split": self.split,
            "completions": [
                {**answer, "logp": a.logp} for answer, a in zip(self._answers(), self.answers, strict=True)
            ],
            "sampler": self.sampler,
            "created_utc": _now(),
        }


@dataclass(frozen=True)
class View:
    """What one annotator is shown: texts in the drawn order, and a token that says nothing about them."""

    token: str
    prompt: list[Message]
    texts: list[str]


@dataclass(frozen=True)
class Progress:
    labelled: int
    skipped: int
    total: int
    """Items in the queue."""


class Verdict(NamedTuple):
    """What a machine, or a file, says of an item."""

    item_id: str
    tiers: Tiers | None
    """Indices into the item's answers, best tier first; None: asked, and no answer was got."""
    strength: int | None = None


class StaleToken(TrueupError):
    """An answer to something that is not, or no longer, in front of this annotator."""


# ---- The store --------------------------------------------------------------------------------------------------


class Store(Database):
    """Opened by URL; creates or migrates its tables."""

    def add_items(self, items: Iterable[Item]) -> list[str]:
        """Put items in; those that are there keep their labels. Returns their ids, in order."""
        rows = [one.row() for one in items]
        with self.write() as db:
            known = set(db.scalars(sa.select(item.c.item_id)))
            fresh = {row["item_id"]: row for row in rows if row["item_id"] not in known}
            if fresh:
                db.execute(item.insert(), list(fresh.values()))
            for row in rows:
                if row["item_id"] in known:  # the split's salt or the sampler may have changed, and the label stands
                    values = {key: row[key] for key in ("category", "split", "sampler", "completions")}
                    db.execute(item.update().where(item.c.item_id == row["item_id"]).values(**values))
        return [row["item_id"] for row in rows]

    def set_queue(self, item_ids: Iterable[str]) -> None:
        """Ask people about these items, in this order, and about no others."""
        rows = [{"position": position, "item_id": name} for position, name in enumerate(dict.fromkeys(item_ids))]
        with self.write() as db:
            db.execute(queue.delete())
            if rows:
                db.execute(queue.insert(), rows)

    # ---- People: a view, its answer, the way back

    def next_view(self, annotator: str) -> View | None:
        """What is in front of this annotator: the view that waits for an answer, else a new one; None: all done."""
        with self.write() as db:
            return _next_view(db, annotator)

    def answer(
        self,
        token: str,
        annotator: str,
        client_uuid: str,
        tiers: Tiers | None,
        strength: int | None = None,
        note: str | None = None,
    ) -> View | None:
        """Record what a person says of a view and return the next, in one transaction.

        `tiers` are places on the screen, best first; None skips. The same `client_uuid` again changes nothing. A token
        that does not wait for this annotator's answer raises StaleToken.
        """
        with self.write() as db:
            if not _is_replay(db, client_uuid, annotator):
                waiting = _waiting(db, annotator)
                if waiting is None or waiting.token != token:
                    raise StaleToken("this pair has been answered already, or is not yours; nothing was recorded")
                if tiers is not None:
                    _check_tiers(tiers, len(waiting.drawn))
                    tiers = [sorted(waiting.drawn[place] for place in tier) for tier in tiers]
                row = _row(waiting.item_id, annotator, "human", client_uuid, tiers, strength, note)
                db.execute(event.insert().values(**row, view_token=token))
            return _next_view(db, annotator)

    def undo(self, annotator: str, client_uuid: str) -> tuple[bool, View | None]:
        """Take back this annotator's last answer. Returns whether there was one, and what is shown now.

        The item comes back in a new view with the sides as they were: who corrects a slip finds what they saw.
        """
        with self.write() as db:
            if _is_replay(db, client_uuid, annotator):
                return True, _next_view(db, annotator)
            last = db.execute(
                _current("human")
                .join(queue, queue.c.item_id == event.c.item_id)
                .where(event.c.annotator == annotator)
                .order_by(event.c.event_id.desc())
                .limit(1)
            ).first()
            if last is None:
                return False, _next_view(db, annotator)
            row = _row(last.item_id, annotator, "human", client_uuid, None) | {"kind": "undo"}
            db.execute(event.insert().values(**row, supersedes=last.event_id))
            drawn = db.scalar(sa.select(view.c.drawn).where(view.c.token == last.view_token))
            if drawn is not None:
                _show(db, annotator, last.item_id, drawn)
            return True, _next_view(db, annotator)

    def progress(self, annotator: str) -> Progress:
        """How far this annotator is through the queue."""
        mine = _current("human").where(event.c.annotator == annotator).subquery()
        counted = sa.select(mine.c.kind, sa.func.count()).join(queue, queue.c.item_id == mine.c.item_id)
        with self.read() as db:
            kinds = {kind: number for kind, number in db.execute(counted.group_by(mine.c.kind))}
            total = db.scalar(sa.select(sa.func.count()).select_from(queue)) or 0
        return Progress(kinds.get("label", 0), kinds.get("skip", 0), total)

    # ---- Machines

    def put(self, source: str, annotator: str, verdicts: Iterable[Verdict]) -> int:
        """Make these what `annotator` says of the items. Returns how many events that took.

        What it says already is left alone; what it said otherwise is superseded: running a source again adds nothing.
        """
        added = 0
        with self.write() as db:
            said = _current(source).where(event.c.annotator == annotator)
            before = {row.item_id: row for row in db.execute(said)}
            for verdict in verdicts:
                old = before.get(verdict.item_id)
                if old is not None and (old.tiers, old.strength) == (verdict.tiers, verdict.strength):
                    continue
                # The same history gives the same label ids.
                key = json.dumps([source, annotator, *verdict, old.client_uuid if old is not None else None])
                name = str(uuid.uuid5(uuid.NAMESPACE_OID, key))
                row = _row(verdict.item_id, annotator, source, name, verdict.tiers, verdict.strength)
                db.execute(event.insert().values(**row, supersedes=None if old is None else old.event_id))
                added += 1
        return added

    def judged(self, source: str, annotator: str) -> set[str]:
        """Items that an annotator has said something about, for sources that continue where they stopped."""
        with self.read() as db:
            return {row.item_id for row in db.execute(_current(source).where(event.c.annotator == annotator))}

    # ---- Reading

    def rankings(self, sources: Collection[str], item_ids: Collection[str] | None = None) -> list[Ranking]:
        """Current labels as rankings, in the order they were given."""
        query = (
            sa.select(event, *(column for column in item.c if column.name not in event.c))
            .join(item, item.c.item_id == event.c.item_id)
            .where(event.c.kind == "label", event.c.source.in_(sources), ~_superseded())
            .order_by(event.c.event_id)
        )
        with self.read() as db:
            rows = db.execute(query).all()
        wanted = None if item_ids is None else set(item_ids)
        return [
            Ranking(
                label_id=row.client_uuid,
                prompt_id=row.prompt_id,
                prompt=row.prompt,
                category=row.category,
                split=row.split,
                completions=[answer["text"] for answer in row.completions],
                completion_token_ids=[answer["token_ids"] for answer in row.completions],
                finished=[answer["finished"] for answer in row.completions],
                logps=[answer.get("logp") for answer in row.completions],
                sampled_by=row.sampler.get("policy_sha256"),
                tiers=row.tiers,
                strength=row.strength,
                source=row.source,
                annotator=row.annotator,
                created_utc=row.created_utc,
            )
            for row in rows
            if wanted is None or row.item_id in wanted
        ]

    def answered(self, source: str, item_ids: Collection[str]) -> dict[str, list[str]]:
        """Current `label` and `skip` of each of these items that has any."""
        wanted, kinds = set(item_ids), dict[str, list[str]]()
        with self.read() as db:
            for row in db.execute(_current(source)):
                if row.item_id in wanted:
                    kinds.setdefault(row.item_id, []).append(row.kind)
        return kinds

    def left_choices(self, item_ids: Collection[str]) -> tuple[int, int]:
        """Of the pairs in which people preferred one answer: how often the one on the left, and how many there are."""
        query = _current("human").add_columns(view.c.drawn).join(view, view.c.token == event.c.view_token)
        wanted, left, strict = set(item_ids), 0, 0
        with self.read() as db:
            for row in db.execute(query):
                if row.kind == "label" and len(row.tiers) == 2 and len(row.drawn) == 2 and row.item_id in wanted:
                    strict += 1
                    left += row.drawn[0] == row.tiers[0][0]
        return left, strict

    def digest(self) -> str | None:
        """A hash of people's current labels; None while there are none."""
        columns = [event.c[name] for name in ("item_id", "annotator", "tiers", "strength")]
        query = sa.select(*columns).where(event.c.source == "human", event.c.kind == "label", ~_superseded())
        with self.read() as db:
            rows = sorted(json.dumps(list(row)) for row in db.execute(query))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest() if rows else None


def digest(url: str) -> str | None:
    """A hash of people's current labels in the store at `url`. Opens nothing that is not there."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        return None
    store = Store(url)
    try:
        return store.digest()
    finally:
        store.close()


# ---- Inside a transaction ---------------------------------------------------------------------------------------


def _superseded() -> sa.ColumnElement[bool]:
    later = event.alias("later")
    return sa.exists().where(later.c.supersedes == event.c.event_id)


def _current(source: str) -> sa.Select[Any]:
    return sa.select(event).where(event.c.source == source, event.c.kind.in_(("label", "skip")), ~_superseded())


def _waiting(db: sa.Connection, annotator: str) -> sa.Row[Any] | None:
    """The newest view without an answer, of an item that people are still asked about."""
    query = (
        sa.select(view.c.token, view.c.drawn, item)
        .join(item, item.c.item_id == view.c.item_id)
        .join(queue, queue.c.item_id == view.c.item_id)
        .where(view.c.annotator == annotator, ~sa.exists().where(event.c.view_token == view.c.token))
        .order_by(view.c.view_id.desc())
        .limit(1)
    )
    return db.execute(query).first()


def _next_view(db: sa.Connection, annotator: str) -> View | None:
    waiting = _waiting(db, annotator)
    if waiting is None:
        mine = _current("human").where(event.c.annotator == annotator, event.c.item_id == item.c.item_id)
        first = db.execute(
            sa.select(item.c.item_id, item.c.completions)
            .join(queue, queue.c.item_id == item.c.item_id)
            .where(~sa.exists(mine.correlate(item)))
            .order_by(queue.c.position)
            .limit(1)
        ).first()
        if first is None:
            return None
        drawn = list(range(len(first.completions)))
        secrets.SystemRandom().shuffle(drawn)  # drawn and stored before any text is sent
        _show(db, annotator, first.item_id, drawn)
        waiting = _waiting(db, annotator)
        assert waiting is not None
    texts = [waiting.completions[index]["text"] for index in waiting.drawn]
    return View(waiting.token, [Message(**message) for message in waiting.prompt], texts)


def _show(db: sa.Connection, annotator: str, item_id: str, drawn: list[int]) -> None:
    values = {"token": secrets.token_urlsafe(18), "item_id": item_id, "annotator": annotator, "drawn": drawn}
    db.execute(view.insert().values(**values, created_utc=_now()))


def _is_replay(db: sa.Connection, client_uuid: str, annotator: str) -> bool:
    owner = db.scalar(sa.select(event.c.annotator).where(event.c.client_uuid == client_uuid))
    if owner is not None and owner != annotator:
        raise StaleToken("this request's id belongs to somebody else's label; nothing was recorded")
    return owner is not None


def _check_tiers(tiers: Tiers, count: int) -> None:
    if sorted(place for tier in tiers for place in tier) != list(range(count)) or not all(tiers):
        raise ValueError(f"tiers {tiers} do not place each of {count} answers once")


def _row(
    item_id: str,
    annotator: str,
    source: str,
    client_uuid: str,
    tiers: Tiers | None,
    strength: int | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    kind = "skip" if tiers is None else "label"
    named = {"item_id": item_id, "annotator": annotator, "source": source, "client_uuid": client_uuid}
    return {**named, "kind": kind, "tiers": tiers, "strength": strength, "note": note, "created_utc": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
