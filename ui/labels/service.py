"""The labelling service: the page, the HTTP API and the command line write people's judgements only through it.

It gives out tasks (an opaque token, the prompt, the texts in the drawn order) and takes one judgement of each;
`ui.labels.tasks` has the classes of both. One transaction records a judgement, closes its slot and leases the next
pair; it is committed before a method returns.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from trueup.data.records import Message
from ui.labels import assignment, judgements
from ui.labels.assignment import AHEAD, Cursor, Purpose
from ui.labels.items import Content, Gold
from ui.labels.judgements import Tiers
from ui.labels.progress import Tallies, Tally
from ui.labels.store import ANSWERS, Store, keep_note, superseded
from ui.labels.tables import ASKING, TableRow, event, item, meta, now, view
from ui.labels.tasks import (
    BadJudgement,
    BetterSide,
    Feedback,
    IdealCompletion,
    Judgement,
    Progress,
    Recorded,
    Reveal,
    Settings,
    StaleToken,
    StoredJudgement,
    Task,
    Undone,
    Worklist,
    better_by_criterion,
    check_measured,
    check_uuid,
    checked_text,
    tiers_of,
)

_IN_VAIN = "undone in vain"
"""Note of each annotator's last undos that found nothing, by their ids: whichever server gets one again knows it."""
_REMEMBERED = 100
_NOTE = sa.select(meta.c.value).where(meta.c.key == sa.bindparam("key"))


@dataclass
class LabelService:
    """The service over an open store. Its methods are quick and may be called from any thread."""

    store: Store
    settings: Settings = field(default_factory=Settings)
    grows: bool = False
    """Whether the queue still grows, so that an annotator who has nothing to do waits."""
    _items: OrderedDict[str, Content] = field(default_factory=OrderedDict, repr=False)
    _cursor: Cursor = field(default_factory=Cursor, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.guideline_sha256 = self.store.add_guideline(self.settings.guideline)
        self.campaign = self.store.name()
        self._practice: dict[str, Gold] = {one.item_id: one for one in self.store.gold("qualification")}
        self._tallies = Tallies(self.settings, self._practice, has_checks=bool(self.store.gold("check")))

    def work(self, annotator: str) -> Worklist[Task]:
        """Up to AHEAD tasks, each leased to this annotator, and the annotator's progress."""
        with self.store.write_as(annotator) as db:
            views, tally = self._top_up(db, annotator)
        return _worklist(views, tally)

    def tasks(self, annotator: str) -> list[Task]:
        return self.work(annotator).tasks

    def progress(self, annotator: str) -> Progress:
        """This annotator's progress; leases nothing."""
        with self.store.read() as db:
            tally = self._tallies.of(db, annotator)
            views = assignment.waiting(db, annotator, close=False)
            tally.left = self._tallies.total(db, annotator, tally).left(tally, views)
        return tally.progress

    def label(self, annotator: str, judgement: Judgement) -> Recorded[Task]:
        """Record a judgement and lease the next pair. StaleToken or BadJudgement: nothing was recorded.

        The same `client_uuid` again returns the stored judgement.
        """
        check_uuid(judgement.client_uuid)
        self._read(annotator, judgement.token)
        with self.store.write_as(annotator) as db:
            stored = _stored(db, annotator, judgement.client_uuid, ANSWERS)
            if stored is None:
                stored = self._record(db, annotator, judgement)
            label, feedback = self._stored_judgement(stored)
            reveal = None
            if self.settings.reveal and stored.row["tiers"] is not None:  # what was skipped stays blind
                policies = self._item(db, stored.row["item_id"]).policies
                reveal = Reveal(*(policies[index] for index in stored.drawn))  # type: ignore[arg-type]
            views, tally = self._top_up(db, annotator)
        if label.kind in ("skip", "flag"):
            self._cursor.stir()
        return Recorded(**vars(_worklist(views, tally)), label=label, feedback=feedback, reveal=reveal)

    def demonstrate(self, annotator: str, ideal: IdealCompletion) -> None:
        """Save an ideal completion of a task's prompt, written by the annotator. The task still waits for its label.

        A later one for the same task replaces it.
        """
        check_uuid(ideal.client_uuid)
        if self.settings.reveal:
            raise BadJudgement("on a comparison people vote; ideal answers are written on the labelling page")
        text = checked_text(ideal.text, "text") or ""
        if not text.strip():
            raise BadJudgement("text: expected an ideal answer, found nothing")
        self._read(annotator, ideal.token)
        with self.store.write_as(annotator) as db:
            if _stored(db, annotator, ideal.client_uuid, ("demonstration",)) is not None:
                return
            view_row = _view(db, annotator, ideal.token)
            if view_row.purpose == "work" and not assignment.is_asked(db, view_row.item_id):
                raise StaleToken("this pair is not asked about any more; nothing was recorded")
            query = sa.select(event.c.event_id).where(
                event.c.view_token == ideal.token, event.c.kind == "demonstration", ~superseded()
            )
            row = self._row(db, view_row, ideal.client_uuid, "demonstration")
            _insert(db, row | {"note": text, "supersedes": db.scalar(query)})

    def undo(self, annotator: str, client_uuid: str) -> Undone[Task]:
        """Take back this annotator's last judgement. Its task is the first again, with the same sides.

        A hidden check comes back like work, so that nothing tells them apart; it measures the first judgement.
        Judgements of the qualification round stay, since their feedback was given. If somebody else has taken a skipped
        pair since, it does not come back, but the skip is taken back.
        """
        check_uuid(client_uuid)
        if self.settings.reveal:
            raise BadJudgement("a vote is final: the page has named the policies of the answers")
        with self.store.write_as(annotator) as db:
            undone = _stored(db, annotator, client_uuid, ("undo",)) is not None
            in_vain = json.loads(db.scalar(_NOTE, {"key": f"{_IN_VAIN} {annotator}"}) or "[]")
            if not undone and client_uuid not in in_vain:
                undone = self._undo(db, annotator, client_uuid)
                if not undone:  # there is no event of it, and sent again later it must not take back what came after
                    keep_note(db, f"{_IN_VAIN} {annotator}", json.dumps([*in_vain, client_uuid][-_REMEMBERED:]))
            views, tally = self._top_up(db, annotator)
        return Undone(**vars(_worklist(views, tally)), undone=undone)

    def renew(self, annotator: str) -> None:
        """Extend the leases of this annotator, who is still there."""
        with self.store.write_as(annotator) as db:
            assignment.renew(db, annotator, self.settings.lease_s)

    def complete(self) -> None:
        """The queue is whole: nobody waits for more, and everybody searches it from its beginning."""
        self._cursor.stir()
        self.grows = False

    # ---- Recording

    def _read(self, annotator: str, token: str) -> None:
        """Prepare the texts of a task before its judgement is written, which needs their lengths."""
        with self.store.read() as db:
            view_row = db.execute(_VIEW, {"tok": token, "me": annotator}).first()
            task_item = None if view_row is None else self._item(db, view_row.item_id)
        if task_item is not None:
            _ = task_item.words

    def _record(self, db: sa.Connection, annotator: str, judgement: Judgement) -> _Stored:
        view_row = _view(db, annotator, judgement.token)
        if view_row.closed and assignment.is_answered(db, judgement.token):  # else closed because its lease was lost
            raise StaleToken("this pair has been labelled already; nothing was recorded")
        values = self._columns(db, view_row, judgement)
        if view_row.purpose == "work":
            labelled = values["kind"] == "label"
            chosen = assignment.fill(db, annotator, view_row.item_id) if labelled else None
            is_settled = chosen is not None or (not labelled and assignment.give_back(db, annotator, view_row.item_id))
            values |= chosen or {}
            if not is_settled:
                if not assignment.is_asked(db, view_row.item_id):
                    raise StaleToken("this pair is not asked about any more; nothing was recorded")
                values["kind"] = "late" if labelled else values["kind"]
        elif view_row.closed and view_row.purpose != "qualification" and values["kind"] == "label":
            values["kind"] = "late"  # a check that was lost with the work beside it
        assignment.close(db, judgement.token)
        row = self._row(db, view_row, judgement.client_uuid, values["kind"]) | values
        _insert(db, row)
        return _Stored(row, view_row.drawn)

    def _columns(self, db: sa.Connection, view_row: Any, judgement: Judgement) -> TableRow:
        """The columns of an event that a judgement fills, with the sides undone; BadJudgement if it is not valid."""
        drawn, pair = view_row.drawn, len(view_row.drawn) == 2
        tiers, strength = tiers_of(judgement, self.settings.scale, len(drawn))
        kind = "label" if tiers is not None else str(judgement.choice)
        note = checked_text(judgement.note, "note")
        if kind == "label" and view_row.wants_rationale and not (note or "").strip():
            raise BadJudgement("note: this pair needs a reason; write it first")
        check_measured(judgement)
        row: TableRow = {"kind": kind, "note": note or None}
        row |= {"seconds": judgement.seconds, "device": judgement.device, "both_bad": judgement.choice == "both_bad"}
        criteria = self.settings.criteria if pair and kind == "label" else ()
        row["criteria"] = better_by_criterion(judgement.criteria or {}, criteria, drawn) or None
        if tiers is not None:
            row |= {"tiers": judgements.to_indices(tiers, drawn), "strength": strength}
            if pair and len(tiers) == 2:
                texts = self._item(db, view_row.item_id).texts
                best, worst = (len(texts[drawn[tier[0]]]) for tier in tiers)
                row["chose_longer"] = None if best == worst else best > worst
        return row

    def _row(self, db: sa.Connection, view_row: Any, client_uuid: str, kind: str) -> TableRow:
        """All columns of an event about a view, without those of the judgement."""
        return {
            "client_uuid": client_uuid,
            "view_token": view_row.token,
            "item_id": view_row.item_id,
            "annotator": view_row.annotator,
            "source": "human",
            "kind": kind,
            "purpose": view_row.purpose,
            "tiers": None,
            "strength": None,
            "both_bad": False,
            "first_shown": view_row.drawn[0],
            "criteria": None,
            "note": None,
            "seconds": None,
            "words": self._item(db, view_row.item_id).words,
            "chose_longer": None,
            "device": None,
            "guideline_sha256": view_row.guideline_sha256,
            "supersedes": None,
            "created_utc": now(),
        }

    def _undo(self, db: sa.Connection, annotator: str, client_uuid: str) -> bool:
        last = db.execute(_LAST, {"me": annotator}).first()
        if last is None:
            return False
        view_row = _view(db, annotator, last.view_token)
        undo = self._row(db, view_row, client_uuid, "undo") | {
            "supersedes": last.event_id,
            "words": None,
            "first_shown": None,
        }
        _insert(db, undo)
        is_back = True
        if view_row.purpose == "work":
            is_back = assignment.take_back(db, annotator, view_row.item_id, self.settings.lease_s)
        if is_back:
            again = {"repeats": view_row.repeats, "wants_rationale": view_row.wants_rationale, "reshown": True}
            self._show(db, annotator, view_row.item_id, view_row.drawn, view_row.purpose, **again)
        return True

    # ---- Giving out

    def _top_up(self, db: sa.Connection, annotator: str) -> tuple[list[_Shown], Tally]:
        """The tasks of an annotator, after leasing new pairs up to AHEAD."""
        tally = self._tallies.of(db, annotator)
        views, added = _of_state(assignment.waiting(db, annotator), tally.state), 0
        if tally.state == "work":
            if views:
                assignment.renew(db, annotator, self.settings.lease_s)
            added = sum(self._next(db, annotator) for _ in range(AHEAD - len(views)))
        elif tally.state == "practice":
            fresh = assignment.unseen_gold(db, annotator, "qualification")[: max(0, AHEAD - len(views))]
            for name in fresh:
                self._show(db, annotator, name, self._draw(db, name), "qualification")
            added = len(fresh)
        if added:
            views = _of_state(assignment.waiting(db, annotator), tally.state)
        if tally.state == "work" and not views:
            tally.state = "waiting" if self.grows else "done"
        tally.left = self._tallies.total(db, annotator, tally, keep=True).left(tally, views)
        return [(row, self._item(db, row.item_id)) for row in views[:AHEAD]], tally

    def _next(self, db: sa.Connection, annotator: str) -> bool:
        """Give the annotator one more task: mostly an open pair, sometimes a hidden check."""
        chance = secrets.SystemRandom().random()
        values = {"wants_rationale": secrets.SystemRandom().random() < self.settings.rationale_share}
        if chance < self.settings.gold_share + self.settings.repeat_share and not self._cursor.has_more(db, annotator):
            return False  # a task after the end of the work would be known as a check
        if self._tallies.has_checks and chance < self.settings.gold_share:
            if unseen := assignment.unseen_gold(db, annotator, "check"):
                name = secrets.choice(unseen)
                self._show(db, annotator, name, self._draw(db, name), "gold", **values)
                return True
        elif 0 <= chance - self.settings.gold_share < self.settings.repeat_share:
            earlier = assignment.earlier_view(db, annotator, self.settings.repeat_after)
            if earlier is not None:
                values["repeats"] = earlier.token
                self._show(db, annotator, earlier.item_id, earlier.drawn[::-1], "repeat", **values)
                return True
        leased = self._cursor.lease(db, annotator, self.settings.lease_s)
        if leased is not None:
            self._show(db, annotator, leased, self._draw(db, leased), "work", **values)
        return leased is not None

    def _show(
        self, db: sa.Connection, annotator: str, item_id: str, drawn: list[int], purpose: Purpose, **values: Any
    ) -> None:
        values["guideline_sha256"] = self.guideline_sha256
        assignment.show(db, annotator, item_id, drawn, purpose, **values)

    def _draw(self, db: sa.Connection, item_id: str) -> list[int]:
        return assignment.draw(len(self._item(db, item_id).raw))

    def _item(self, db: sa.Connection, item_id: str) -> Content:
        with self._lock:
            if item_id in self._items:
                self._items.move_to_end(item_id)
                return self._items[item_id]
        row = db.execute(_ITEM, {"item": item_id}).one()
        prompt = [Message(**message) for message in row.prompt]
        policies = [answer["policy"] for answer in row.sampler["answers"]] if self.settings.reveal else []
        with self._lock:
            reasonings = [answer.get("reasoning", "") for answer in row.completions]
            texts = [answer["text"] for answer in row.completions]
            self._items[item_id] = Content(prompt, texts, policies, reasonings)
            while len(self._items) > 4096:
                self._items.popitem(last=False)
            return self._items[item_id]

    def _stored_judgement(self, stored: _Stored) -> tuple[StoredJudgement, Feedback | None]:
        row, drawn = stored
        uuid, kind = row["client_uuid"], row["kind"]
        if row["tiers"] is None:
            label = StoredJudgement(uuid, kind, choice=kind)
        elif len(drawn) == 2:
            choice = judgements.choice_of(row["tiers"], row["strength"], row["both_bad"], drawn)
            label = StoredJudgement(uuid, kind, choice=choice)
        else:
            label = StoredJudgement(uuid, kind, order=judgements.to_places(row["tiers"], drawn))
        gold = self._practice.get(row["item_id"]) if row["purpose"] == "qualification" else None
        if gold is None:
            return label, None
        places = judgements.to_places(gold.tiers, drawn)
        best: BetterSide | Tiers = places
        if len(drawn) == 2:
            best = "tie" if len(places) == 1 else "a" if places[0][0] == 0 else "b"
        right = row["tiers"] is not None and judgements.agrees(row["tiers"], gold.tiers)
        return label, Feedback(right, best, gold.explanation)


_Shown = tuple[Any, Content]
"""A row of a waiting view, and its content."""


def _of_state(views: list[Any], state: str) -> list[Any]:
    """The views for an annotator in this state; none after a failed qualification round."""
    if state == "failed_practice":
        return []
    return [row for row in views if (row.purpose == "qualification") is (state == "practice")]


def _worklist(views: list[_Shown], tally: Tally) -> Worklist[Task]:
    return Worklist([_task(row, content) for row, content in views], tally.progress, tally.state)


def _task(row: Any, content: Content) -> Task:
    texts = [content.texts[index] for index in row.drawn]
    reasonings = [content.reasonings[index] for index in row.drawn]
    practice = row.purpose == "qualification"
    return Task(row.token, bool(row.wants_rationale), practice, content.prompt, texts, reasonings)


# ---- Inside a transaction ---------------------------------------------------------------------------------------

_me = sa.bindparam("me", type_=sa.String)
_ITEM = sa.select(item.c.prompt, item.c.completions, item.c.sampler).where(item.c.item_id == sa.bindparam("item"))


_LAST = (
    sa.select(event.c.event_id, event.c.view_token)
    .where(
        event.c.annotator == _me,
        event.c.source == "human",
        event.c.purpose != "qualification",
        event.c.kind.in_(ANSWERS),
        event.c.view_token.is_not(None),
        event.c.round == ASKING,  # what an earlier round learnt from is not taken back by a key
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
    """An event, and the drawn order of its view."""

    row: Any
    drawn: list[int]


def _stored(db: sa.Connection, annotator: str, client_uuid: str, kinds: Collection[str]) -> _Stored | None:
    """The event of this request, if it came before; None: it is new."""
    row = db.execute(_BY_UUID, {"uuid": client_uuid}).first()
    if row is None:
        return None
    if row.annotator != annotator:
        raise StaleToken("this request's id belongs to somebody else's label; nothing was recorded")
    if row.kind not in kinds:
        raise BadJudgement(f"client_uuid: was used for another request ({row.kind}); every request has its own")
    return _Stored(row._mapping, row.drawn)


def _insert(db: sa.Connection, row: TableRow) -> None:
    try:
        db.execute(_INSERT, row)
    except sa.exc.IntegrityError:
        raise StaleToken(
            "this request's id was used at the same moment by somebody else; nothing was recorded"
        ) from None


def _view(db: sa.Connection, annotator: str, token: str) -> Any:
    view_row = db.execute(_VIEW, {"tok": token, "me": annotator}).first()
    if view_row is None:
        raise StaleToken("this task is not yours, or never was; nothing was recorded")
    return view_row
