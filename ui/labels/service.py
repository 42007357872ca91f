"""The labelling service: the one way in which the page, the HTTP API and the command line write what people say.

It gives out tasks (an opaque token, the prompt, the texts in the drawn order) and takes one answer for each. Nothing in
a task says which model, file or setting an answer came from, or whether the task is a hidden check. An answer is
recorded, its slot closed and the next pair leased in one transaction; what this returns was committed.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from trueup.data.records import Message
from trueup.data.words import count_words
from trueup.errors import TrueupError
from ui.labels import assignment, judgements
from ui.labels.assignment import AHEAD, Cursor, Purpose
from ui.labels.config import LabelConfig
from ui.labels.judgements import Scale, Tiers
from ui.labels.store import ANSWERS, WANTED, Gold, Store, keep_note, now, superseded
from ui.labels.tables import event, item, meta, slot, view

DEVICES = ("key", "click", "touch", "api")
MAX_NOTE = 20_000
"""Characters of a note or a demonstration."""
RECKONED_AFTER = 20
"""Answers after which what is left is reckoned anew. Were it followed answer by answer, it would tell hidden checks
from work: of so many answers it tells how many were checks, and of none whether it was one."""
_UUID = re.compile(r"[A-Za-z0-9_-]{8,64}")

# ---- What goes in and out ---------------------------------------------------------------------------------------

State = Literal["work", "practice", "done", "failed_practice"]


class StaleToken(TrueupError):
    """An answer to something that is not, or no longer, in front of this annotator. Nothing was recorded."""


class BadAnswer(TrueupError):
    """An answer that says nothing that could be recorded; the text says why."""


@dataclass(frozen=True)
class Settings:
    """How a campaign is labelled."""

    scale: Scale = "graded"
    criteria: tuple[str, ...] = ()
    guideline: str = ""
    rationale_share: float = 0.0
    gold_share: float = 0.0
    repeat_share: float = 0.0
    repeat_after: int = 20
    """Answers after which an annotator's own pair may come again."""
    qualification_pass: float = 0.7
    lease_s: float = 600.0
    reveal: bool = False
    """Votes on a comparison: each is answered with whose answers they were, and is final for that."""

    @classmethod
    def of(cls, config: LabelConfig) -> Settings:
        return cls(
            scale=config.scale,
            criteria=tuple(config.criteria),
            guideline=config.guideline,
            rationale_share=config.rationale_share,
            gold_share=config.gold_share,
            repeat_share=config.repeat_share,
            qualification_pass=config.qualification_pass,
            lease_s=config.lease_minutes * 60,
        )


@dataclass(frozen=True)
class Task:
    """What is in front of an annotator."""

    token: str
    prompt: list[Message]
    texts: list[str]
    """In the drawn order, without tokens of a template."""
    wants_rationale: bool
    practice: bool


@dataclass(frozen=True)
class Practice:
    """The qualification round."""

    done: int
    total: int
    right: int


@dataclass(frozen=True)
class Progress:
    """How far an annotator is. A hidden check counts like any other pair, so that nothing here gives it away."""

    mine: int
    """Their labels."""
    skipped: int
    """Their skips and flags."""
    left: int
    """Pairs that may still come to them, as far as was known when it was last reckoned."""
    practice: Practice | None
    """None: there is no qualification round, or it is passed."""


@dataclass(frozen=True)
class Work:
    """Everything that is to be done, and how far it is."""

    tasks: list[Task]
    progress: Progress
    state: State


@dataclass(frozen=True)
class Answer:
    """What somebody says of a task. A pair takes a choice, three and more answers an order."""

    client_uuid: str
    """Drawn by the client; the same one again is the same answer."""
    token: str
    choice: str | None = None
    """One of `answers.Choice`; of an order only skip and flag."""
    order: Tiers | None = None
    """Tiers of places, best first."""
    note: str | None = None
    criteria: dict[str, str] | None = None
    """{criterion: a, b or tie}"""
    seconds: float | None = None
    device: str = "api"


@dataclass(frozen=True)
class Feedback:
    """In the qualification round: whether the answer was right."""

    right: bool
    best: str | Tiers
    """a, b or tie; of a ranking tiers of places."""
    explanation: str | None


@dataclass(frozen=True)
class Said:
    """An answer as it is stored."""

    client_uuid: str
    kind: str
    """label, skip, flag; late: kept, but somebody else had taken the pair over, and it does not count."""
    choice: str | None = None
    order: Tiers | None = None


@dataclass(frozen=True)
class Recorded:
    label: Said
    feedback: Feedback | None
    work: Work
    reveal: list[str] | None = None
    """Of a vote: the policy whose answer stood at each place."""


@dataclass(frozen=True)
class Undone:
    undone: bool
    """False: there was nothing to take back."""
    work: Work


# ---- The service ------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """What a task needs of an item; it never changes, so it is read once.

    Its texts are a model's, of any length: they are made ready where nobody waits for them, outside any transaction.
    """

    prompt: list[Message]
    raw: list[str]
    """The answers as they are stored."""
    policies: list[str]
    """Of a comparison: whose each text is."""

    @cached_property
    def texts(self) -> list[str]:
        return [judgements.clean(text) for text in self.raw]

    @cached_property
    def words(self) -> int:
        return round(sum(map(count_words, [*self.texts, *(message.content for message in self.prompt)])))


@dataclass
class LabelService:
    """Over an open store. Its methods are quick and may be called from any thread."""

    store: Store
    settings: Settings = Settings()
    _items: OrderedDict[str, _Item] = field(default_factory=OrderedDict, repr=False)
    _cursor: Cursor = field(default_factory=Cursor, repr=False)
    _passed: set[str] = field(default_factory=set, repr=False)
    _empty_undos: OrderedDict[str, None] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.guideline_sha256 = self.store.add_guideline(self.settings.guideline)
        self.campaign = self.store.name()
        self._practice: dict[str, Gold] = {one.item_id: one for one in self.store.gold("qualification")}
        self._checks = bool(self.store.gold("check"))

    def work(self, annotator: str) -> Work:
        """What is to be done now: up to AHEAD tasks, each leased to this annotator, and how far it is."""
        with self.store.write_as(annotator) as db:
            rows, mine = self._top_up(db, annotator)
        return self._work(rows, mine)

    def tasks(self, annotator: str) -> list[Task]:
        return self.work(annotator).tasks

    def progress(self, annotator: str) -> Progress:
        """How far this annotator is; leases nothing."""
        with self.store.read() as db:
            mine = self._mine(db, annotator)
            mine.left = self._reckoned(db, annotator, mine).left(mine, assignment.waiting(db, annotator, close=False))
        return Progress(mine.labelled, mine.skipped, mine.left, mine.practice)

    def label(self, annotator: str, answer: Answer) -> Recorded:
        """Record an answer and lease the next pair. StaleToken or BadAnswer: nothing was recorded.

        The same `client_uuid` again gives the stored answer.
        """
        _check_uuid(answer.client_uuid)
        self._read(annotator, answer.token)
        with self.store.write_as(annotator) as db:
            stored = _stored(db, annotator, answer.client_uuid, ANSWERS)
            if stored is None:
                stored = self._record(db, annotator, answer)
            said, feedback = self._said(stored)
            reveal = None
            if self.settings.reveal and stored.row["tiers"] is not None:  # what was skipped stays blind
                policies = self._item(db, stored.row["item_id"]).policies
                reveal = [policies[index] for index in stored.drawn]
            rows, mine = self._top_up(db, annotator)
        if said.kind in ("skip", "flag"):
            self._cursor.stir()
        return Recorded(said, feedback, self._work(rows, mine), reveal)

    def demonstrate(self, annotator: str, client_uuid: str, token: str, text: str) -> None:
        """Keep an ideal answer to the prompt of a task, written by the annotator; the task goes on waiting.

        A later one for the same task replaces it.
        """
        _check_uuid(client_uuid)
        if self.settings.reveal:
            raise BadAnswer("on a comparison people vote; ideal answers are written on the labelling page")
        text = _checked_text(text, "text") or ""
        if not text.strip():
            raise BadAnswer("text: an ideal answer is wanted, found nothing")
        self._read(annotator, token)
        with self.store.write_as(annotator) as db:
            if _stored(db, annotator, client_uuid, ("demonstration",)) is not None:
                return
            shown = _view(db, annotator, token)
            query = sa.select(event.c.event_id).where(
                event.c.view_token == token, event.c.kind == "demonstration", ~superseded()
            )
            row = self._row(db, shown, client_uuid, "demonstration") | {"note": text, "supersedes": db.scalar(query)}
            _insert(db, row)

    def undo(self, annotator: str, client_uuid: str) -> Undone:
        """Take back this annotator's last answer; it is the first task again, with its sides as they were.

        A hidden check comes back as work does, so that nothing tells them apart; what it measures is the answer that
        was given first. Answers of the qualification round stay: their feedback was given. A skipped pair that somebody
        else has taken since does not come back, but the skip is taken back.
        """
        _check_uuid(client_uuid)
        if self.settings.reveal:
            raise BadAnswer("a vote is final: whose answers they were has been shown")
        with self.store.write_as(annotator) as db:
            undone = _stored(db, annotator, client_uuid, ("undo",)) is not None
            if not undone and client_uuid not in self._empty_undos:
                undone = self._undo(db, annotator, client_uuid)
                if not undone:  # nothing is stored of it, and sent again later it must not take back what came after
                    self._remember_empty(client_uuid)
            rows, mine = self._top_up(db, annotator)
        return Undone(undone, self._work(rows, mine))

    def renew(self, annotator: str) -> None:
        """A sign of life: what is in front of this annotator stays theirs."""
        with self.store.write_as(annotator) as db:
            assignment.renew(db, annotator, self.settings.lease_s)

    def _remember_empty(self, client_uuid: str) -> None:
        with self._lock:
            self._empty_undos[client_uuid] = None
            while len(self._empty_undos) > 4096:
                self._empty_undos.popitem(last=False)

    # ---- Recording

    def _read(self, annotator: str, token: str) -> None:
        """Make the texts of a task ready before its answer is written, which needs their lengths."""
        with self.store.read() as db:
            shown = db.execute(_VIEW, {"tok": token, "me": annotator}).first()
            found = None if shown is None else self._item(db, shown.item_id)
        if found is not None:
            _ = found.words

    def _record(self, db: sa.Connection, annotator: str, answer: Answer) -> Any:
        shown = _view(db, annotator, answer.token)
        if shown.closed and assignment.is_answered(db, answer.token):  # else closed because its lease was lost
            raise StaleToken("this pair has been answered already; nothing was recorded")
        values = self._judgement(db, shown, answer)
        if shown.purpose == "work":
            labelled = values["kind"] == "label"
            settle = assignment.fill if labelled else assignment.give_back
            if not settle(db, annotator, shown.item_id):
                if not assignment.is_asked(db, shown.item_id):
                    raise StaleToken("this pair is not asked about any more; nothing was recorded")
                values["kind"] = "late" if labelled else values["kind"]
        elif shown.closed and shown.purpose != "qualification" and values["kind"] == "label":
            values["kind"] = "late"  # a check that was lost with the work beside it
        assignment.close(db, answer.token)
        row = self._row(db, shown, answer.client_uuid, values["kind"]) | values
        _insert(db, row)
        return _Stored(row, shown.drawn)

    def _judgement(self, db: sa.Connection, shown: Any, answer: Answer) -> dict[str, Any]:
        """The columns of an event that an answer fills, with the sides undone; BadAnswer if it says nothing."""
        drawn, pair = shown.drawn, len(shown.drawn) == 2
        tiers, strength = self._tiers(answer, len(drawn))
        kind = "label" if tiers is not None else str(answer.choice)
        note = _checked_text(answer.note, "note")
        if kind == "label" and shown.wants_rationale and not (note or "").strip():
            raise BadAnswer("note: for this pair a reason is asked for; write it first")
        if answer.device not in DEVICES:
            raise BadAnswer(f"device: expected one of {', '.join(DEVICES)}, found {answer.device!r}")
        seconds = answer.seconds
        if seconds is not None and not 0 <= seconds <= 86_400:
            raise BadAnswer(f"seconds: expected 0 to 86400, found {seconds}")
        row: dict[str, Any] = {"kind": kind, "note": note or None, "seconds": seconds, "device": answer.device}
        row["both_bad"] = answer.choice == "both_bad"
        row["criteria"] = self._criteria(answer.criteria or {}, drawn, pair and kind == "label") or None
        if tiers is not None:
            row |= {"tiers": judgements.to_indices(tiers, drawn), "strength": strength}
            if pair and len(tiers) == 2:
                texts = self._item(db, shown.item_id).texts
                best, worst = (len(texts[drawn[tier[0]]]) for tier in tiers)
                row["chose_longer"] = None if best == worst else best > worst
        return row

    def _tiers(self, answer: Answer, count: int) -> tuple[Tiers | None, int | None]:
        known = judgements.choices(self.settings.scale) if count == 2 else ("skip", "flag")
        if (answer.choice is None) == (answer.order is None):
            raise BadAnswer("an answer is either a choice or an order")
        if answer.choice is not None:
            if answer.choice not in known:
                raise BadAnswer(f"choice: expected one of {', '.join(known)}, found {answer.choice!r}")
            return judgements.judgement(answer.choice, self.settings.scale)
        assert answer.order is not None
        if count == 2:
            raise BadAnswer("order: a pair takes a choice, such as a, b or tie")
        if not judgements.is_order(answer.order, count):
            raise BadAnswer(f"order: {answer.order} does not place each of {count} answers once (0 to {count - 1})")
        return answer.order, None

    def _criteria(self, said: dict[str, str], drawn: list[int], allowed: bool) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name, side in said.items():
            if not allowed or name not in self.settings.criteria:
                asked = ", ".join(self.settings.criteria) if allowed else ""
                raise BadAnswer(f"criteria: {name!r} is not asked for here (asked for: {asked or 'none'})")
            if side not in ("a", "b", "tie"):
                raise BadAnswer(f"criteria: {name}: expected a, b or tie, found {side!r}")
            found[name] = None if side == "tie" else drawn["ab".index(side)]
        return found

    def _row(self, db: sa.Connection, shown: Any, client_uuid: str, kind: str) -> dict[str, Any]:
        """All columns of an event about a view, none of them filled by what was answered."""
        return {
            "client_uuid": client_uuid,
            "view_token": shown.token,
            "item_id": shown.item_id,
            "annotator": shown.annotator,
            "source": "human",
            "kind": kind,
            "purpose": shown.purpose,
            "tiers": None,
            "strength": None,
            "both_bad": False,
            "first_shown": shown.drawn[0],
            "criteria": None,
            "note": None,
            "seconds": None,
            "words": self._item(db, shown.item_id).words,
            "chose_longer": None,
            "device": None,
            "guideline_sha256": shown.guideline_sha256,
            "supersedes": None,
            "created_utc": now(),
        }

    def _undo(self, db: sa.Connection, annotator: str, client_uuid: str) -> bool:
        last = db.execute(_LAST, {"me": annotator}).first()
        if last is None:
            return False
        shown = _view(db, annotator, last.view_token)
        undo = self._row(db, shown, client_uuid, "undo") | {
            "supersedes": last.event_id,
            "words": None,
            "first_shown": None,
        }
        _insert(db, undo)
        there = True
        if shown.purpose == "work":
            there = assignment.take_back(db, annotator, shown.item_id, self.settings.lease_s)
        if there:
            again = {"repeats": shown.repeats, "wants_rationale": shown.wants_rationale, "reshown": True}
            self._show(db, annotator, shown.item_id, shown.drawn, shown.purpose, **again)
        return True

    # ---- Giving out

    def _top_up(self, db: sa.Connection, annotator: str) -> tuple[list[_Shown], _Mine]:
        """What is in front of an annotator, after new pairs were leased up to AHEAD of them."""
        mine = self._mine(db, annotator)
        rows = assignment.waiting(db, annotator)
        if mine.state == "work":
            rows = [row for row in rows if row.purpose != "qualification"]
            if rows:
                assignment.renew(db, annotator, self.settings.lease_s)
            wanted = max(0, AHEAD - len(rows))
            shown = sum(self._next(db, annotator) for _ in range(wanted))
        elif mine.state == "practice":
            rows = [row for row in rows if row.purpose == "qualification"]
            fresh = assignment.unseen_gold(db, annotator, "qualification")[: max(0, AHEAD - len(rows))]
            for name in fresh:
                self._show(db, annotator, name, self._draw(db, name), "qualification")
            shown = len(fresh)
        else:
            rows, shown = [], 0
        if shown:
            practice = mine.state == "practice"
            rows = assignment.waiting(db, annotator)
            rows = [row for row in rows if (row.purpose == "qualification") is practice]
        if mine.state == "work" and not rows:
            mine.state = "done"
        mine.left = self._reckoned(db, annotator, mine, keep=True).left(mine, rows)
        return [(row, self._item(db, row.item_id)) for row in rows[:AHEAD]], mine

    def _next(self, db: sa.Connection, annotator: str) -> bool:
        """Show the annotator one more: mostly an open pair, sometimes a hidden check."""
        chance = secrets.SystemRandom().random()
        if chance < self.settings.gold_share + self.settings.repeat_share and not self._cursor.has_more(db, annotator):
            return False  # whatever comes when work has run out would be known as a check
        if self._checks and chance < self.settings.gold_share:
            unseen = assignment.unseen_gold(db, annotator, "check")
            if unseen:
                name = secrets.choice(unseen)
                self._show(db, annotator, name, self._draw(db, name), "gold", wants_rationale=self._wants_rationale())
                return True
        elif 0 <= chance - self.settings.gold_share < self.settings.repeat_share:
            earlier = assignment.earlier_view(db, annotator, self.settings.repeat_after)
            if earlier is not None:
                values = {"repeats": earlier.token, "wants_rationale": self._wants_rationale()}
                self._show(db, annotator, earlier.item_id, earlier.drawn[::-1], "repeat", **values)
                return True
        name_or_none = self._cursor.lease(db, annotator, self.settings.lease_s)
        if name_or_none is None:
            return False
        values = {"wants_rationale": self._wants_rationale()}
        self._show(db, annotator, name_or_none, self._draw(db, name_or_none), "work", **values)
        return True

    def _show(
        self, db: sa.Connection, annotator: str, item_id: str, drawn: list[int], purpose: Purpose, **values: Any
    ) -> None:
        values["guideline_sha256"] = self.guideline_sha256
        assignment.show(db, annotator, item_id, drawn, purpose, **values)

    def _draw(self, db: sa.Connection, item_id: str) -> list[int]:
        return assignment.draw(len(self._item(db, item_id).raw))

    def _wants_rationale(self) -> bool:
        return secrets.SystemRandom().random() < self.settings.rationale_share

    def _item(self, db: sa.Connection, item_id: str) -> _Item:
        with self._lock:
            if item_id in self._items:
                self._items.move_to_end(item_id)
                return self._items[item_id]
        row = db.execute(_ITEM, {"item": item_id}).one()
        prompt = [Message(**message) for message in row.prompt]
        policies = [answer["policy"] for answer in row.sampler["answers"]] if self.settings.reveal else []
        with self._lock:
            self._items[item_id] = _Item(prompt, [answer["text"] for answer in row.completions], policies)
            while len(self._items) > 4096:
                self._items.popitem(last=False)
            return self._items[item_id]

    # ---- How far

    def _mine(self, db: sa.Connection, annotator: str) -> _Mine:
        mine = _Mine(*db.execute(_MINE, {"me": annotator}).one())
        if not self._practice or annotator in self._passed:
            return mine
        said = {row.item_id: row for row in db.execute(_PRACTISED, {"me": annotator}) if row.item_id in self._practice}
        right = sum(
            row.tiers is not None and judgements.agrees(row.tiers, self._practice[name].tiers)
            for name, row in said.items()
        )
        if len(said) == len(self._practice) and right >= self.settings.qualification_pass * len(self._practice):
            self._passed.add(annotator)
            return mine
        mine.practice = Practice(len(said), len(self._practice), right)
        mine.state = "practice" if len(said) < len(self._practice) else "failed_practice"
        return mine

    def _work(self, rows: list[_Shown], mine: _Mine) -> Work:
        progress = Progress(mine.labelled, mine.skipped, mine.left, mine.practice)
        return Work([_task(row, found) for row, found in rows], progress, mine.state)

    def _reckoned(self, db: sa.Connection, annotator: str, mine: _Mine, keep: bool = False) -> _Total:
        """How many answers this annotator will have given in all, hidden checks among them.

        It is reckoned after every so many answers, whoever looks and however often, and kept in the store: an undo, a
        restart or another server does not reckon it again. It goes by what work is left; a check changes that no
        more than it changes the count of answers.
        """
        key, answered = f"{_TOTAL} {annotator}", mine.labelled + mine.skipped
        wanted = db.scalar(_NOTE, {"key": WANTED}) or "0 0"
        if known := db.scalar(_NOTE, {"key": key}):
            total = _Total(*json.loads(known))
            if answered < total.due and total.wanted == wanted:
                return total
        items, labels = map(int, wanted.split())
        mine_already = db.scalar(_JUDGED, {"me": annotator}) or 0
        work = max(0, min(labels - (db.scalar(_DONE) or 0), items - mine_already))
        gold, repeats = self.settings.gold_share * self._checks, self.settings.repeat_share
        given = work / max(1 - gold - repeats, 0.1)  # with the checks among them
        unseen = len(assignment.unseen_gold(db, annotator, "check")) if gold else 0
        total = _Total(
            answered + work + round(min(gold * given, unseen) + repeats * given), answered + RECKONED_AFTER, wanted
        )
        if keep:
            keep_note(db, key, json.dumps(total))
        return total

    def _said(self, stored: _Stored) -> tuple[Said, Feedback | None]:
        row, drawn = stored
        if row["tiers"] is None:
            said = Said(row["client_uuid"], row["kind"], choice=row["kind"])
        elif len(drawn) == 2:
            choice = judgements.choice_of(row["tiers"], row["strength"], row["both_bad"], drawn)
            said = Said(row["client_uuid"], row["kind"], choice=choice)
        else:
            said = Said(row["client_uuid"], row["kind"], order=judgements.to_places(row["tiers"], drawn))
        known = self._practice.get(row["item_id"]) if row["purpose"] == "qualification" else None
        if known is None:
            return said, None
        places = judgements.to_places(known.tiers, drawn)
        best: str | Tiers = places
        if len(drawn) == 2:
            best = "tie" if len(places) == 1 else "ab"[places[0][0]]
        right = row["tiers"] is not None and judgements.agrees(row["tiers"], known.tiers)
        return said, Feedback(right, best, known.explanation)


@dataclass
class _Mine:
    """One annotator's answers, of whatever purpose but practice."""

    labelled: int
    skipped: int
    left: int = 0
    state: State = "work"
    practice: Practice | None = None


class _Total(NamedTuple):
    """Of an annotator; see `LabelService._reckoned`."""

    answers: int
    due: int
    """Answers at which it is reckoned again."""
    wanted: str
    """What the campaign asked for when it was."""

    def left(self, mine: _Mine, rows: Sequence[Any]) -> int:
        """At least what is in front of them."""
        return 0 if mine.state == "done" else max(self.answers - mine.labelled - mine.skipped, len(rows))


_Shown = tuple[Any, _Item]
"""A row of a view that waits, and what it shows."""


def _task(row: Any, found: _Item) -> Task:
    texts = [found.texts[index] for index in row.drawn]
    return Task(row.token, found.prompt, texts, bool(row.wants_rationale), row.purpose == "qualification")


# ---- Inside a transaction ---------------------------------------------------------------------------------------

_me = sa.bindparam("me", type_=sa.String)
_ITEM = sa.select(item.c.prompt, item.c.completions, item.c.sampler).where(item.c.item_id == sa.bindparam("item"))


def _said(*kinds: str) -> Any:
    """How many answers of these kinds an annotator gave and did not take back, with one definition for all purposes."""
    counted = sa.and_(event.c.source == "human", event.c.purpose != "qualification", event.c.kind.in_(kinds))
    return (
        sa.select(sa.func.count())
        .where(event.c.annotator == _me, counted, event.c.view_token.is_not(None), ~superseded())
        .scalar_subquery()
    )


_MINE = sa.select(_said("label"), _said("skip", "flag"))  # one round trip; in the order of _Mine
_NOTE = sa.select(meta.c.value).where(meta.c.key == sa.bindparam("key"))
_TOTAL = "total"
_DONE = sa.select(sa.func.count()).where(slot.c.state == "done")
_JUDGED = sa.select(sa.func.count(sa.distinct(event.c.item_id))).where(
    event.c.annotator == _me,
    event.c.source == "human",
    event.c.purpose == "work",
    event.c.kind.in_(ANSWERS),
    ~superseded(),
)
_PRACTISED = sa.select(event.c.item_id, event.c.tiers).where(
    event.c.annotator == _me, event.c.purpose == "qualification", event.c.kind.in_(ANSWERS)
)
_LAST = (
    sa.select(event.c.event_id, event.c.view_token)
    .where(
        event.c.annotator == _me,
        event.c.source == "human",
        event.c.purpose != "qualification",
        event.c.kind.in_(ANSWERS),
        event.c.view_token.is_not(None),
        ~superseded(),
    )
    .order_by(event.c.event_id.desc())
    .limit(1)
)
_VIEW = sa.select(view).where(view.c.token == sa.bindparam("tok"), view.c.annotator == _me)
_BY_UUID = (
    sa.select(event, view.c.drawn)
    .outerjoin(view, view.c.token == event.c.view_token)
    .where(event.c.client_uuid == sa.bindparam("uuid"))
)
_INSERT = event.insert()


class _Stored(NamedTuple):
    """An event and the places in which its view was drawn."""

    row: Any
    drawn: list[int]


def _stored(db: sa.Connection, annotator: str, client_uuid: str, kinds: Collection[str]) -> _Stored | None:
    """The event that this request made when it came before; None: it is new."""
    row = db.execute(_BY_UUID, {"uuid": client_uuid}).first()
    if row is None:
        return None
    if row.annotator != annotator:
        raise StaleToken("this request's id belongs to somebody else's label; nothing was recorded")
    if row.kind not in kinds:
        raise BadAnswer(f"client_uuid: was used for another request ({row.kind}); every request has its own")
    return _Stored(row._mapping, row.drawn)


def _insert(db: sa.Connection, row: dict[str, Any]) -> None:
    try:
        db.execute(_INSERT, row)
    except sa.exc.IntegrityError:
        raise StaleToken(
            "this request's id was used at the same moment by somebody else; nothing was recorded"
        ) from None


def _view(db: sa.Connection, annotator: str, token: str) -> Any:
    shown = db.execute(_VIEW, {"tok": token, "me": annotator}).first()
    if shown is None:
        raise StaleToken("this task is not yours, or never was; nothing was recorded")
    return shown


def _check_uuid(client_uuid: str) -> None:
    if not _UUID.fullmatch(client_uuid):
        raise BadAnswer(f"client_uuid: expected 8 to 64 letters, digits, - or _, found {json.dumps(client_uuid)[:80]}")


def _checked_text(text: str | None, key: str) -> str | None:
    """A text that every database can hold."""
    if text is None:
        return None
    if len(text) > MAX_NOTE:
        raise BadAnswer(f"{key}: at most {MAX_NOTE} characters, found {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadAnswer(f"{key}: holds half of a surrogate pair, which is no text") from None
    if "\0" in text:
        raise BadAnswer(f"{key}: holds a NUL character, which a database cannot store")
    return text
