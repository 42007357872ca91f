"""Assignment of work: slots, leases and views, inside the transaction of one annotator (`Store.write_as`).

A slot is one label to collect of an item. It is leased to the annotator who sees it, filled once they labelled it, and
open again after a skip. Others may take a lease that ran out; until somebody does, its label still counts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa

from ui.labels.store import ANSWERS
from ui.labels.tables import TableRow, event, gold, now, slot, view

Purpose = Literal["work", "repeat", "gold", "qualification"]

AHEAD = 3
"""Tasks that a client has in advance, so that the next pair needs no round trip."""
REPEAT_WITHIN = 200
"""Number of an annotator's earlier views from which hidden repeats are drawn."""

_me, _item = sa.bindparam("me", type_=sa.String), sa.bindparam("item", type_=sa.String)
_now, _until = sa.bindparam("now", type_=sa.Float), sa.bindparam("until", type_=sa.Float)
_mine, _theirs = slot.alias("mine"), slot.alias("theirs")

# ---- What waits -------------------------------------------------------------------------------------------------

_WAITING = (
    sa.select(view, _mine.c.slot_id)
    .outerjoin(_mine, sa.and_(_mine.c.item_id == view.c.item_id, _mine.c.annotator == _me, _mine.c.state == "leased"))
    .where(view.c.annotator == _me, view.c.closed.is_(False))
    .order_by(view.c.view_id)
)
_CLOSE = view.update().where(view.c.view_id == sa.bindparam("id")).values(closed=True)
_RENEW = (
    slot.update().where(slot.c.annotator == _me, slot.c.state == "leased").values(expires_at=_until)
)  # fmt: skip


def waiting(db: sa.Connection, annotator: str, close: bool = True) -> list[Any]:
    """The views in front of an annotator, the first to be answered first. A pair whose lease was lost is closed.

    A hidden check has no lease and is lost with the work beside it: a task that stays alone would be known as a check.
    close  False: change nothing
    """
    again: list[Any] = []
    in_turn: list[Any] = []
    rows = db.execute(_WAITING, {"me": annotator}).all()
    for row, is_lost in zip(rows, _lost(rows), strict=True):
        if is_lost and close:
            db.execute(_CLOSE, {"id": row.view_id})
        elif is_lost:
            continue
        elif row.reshown:
            again.insert(0, row)
        else:
            in_turn.append(row)
    return again + in_turn


def _lost(rows: Sequence[Any]) -> list[bool]:
    """Whether each view is lost: work by its lease, a check with the work before it, or else after it."""
    leases = [row.slot_id is None if row.purpose == "work" else None for row in rows]
    before = next((lost for lost in leases if lost is not None), None)
    flags = []
    for row, lost in zip(rows, leases, strict=True):
        before = lost if lost is not None else before
        flags.append(bool(before) and row.purpose != "qualification")
    return flags


def renew(db: sa.Connection, annotator: str, lease_s: float) -> None:
    """Extend all leases of an annotator by `lease_s`."""
    db.execute(_RENEW, {"me": annotator, "until": time.time() + lease_s})


# ---- The next pair ----------------------------------------------------------------------------------------------

_not_mine = sa.and_(
    ~sa.exists().where(_mine.c.item_id == _theirs.c.item_id, _mine.c.annotator == _me),
    ~sa.exists().where(event.c.item_id == _theirs.c.item_id, event.c.source == "human", event.c.annotator == _me),
)
_LEASE = {"state": "leased", "annotator": _me, "expires_at": _until}
_TAKEN = (slot.c.item_id, slot.c.position)


def _take(which: Any, values: TableRow, *returning: Any) -> Any:
    """UPDATE of the one slot that `which` finds; a slot that somebody else is just taking is passed over."""
    first = which.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    return slot.update().where(slot.c.slot_id == first).values(values).returning(*returning)


_slot_id = sa.select(_theirs.c.slot_id)
_ran_out = sa.and_(_theirs.c.state == "leased", _theirs.c.expires_at < _now)
_expired = _slot_id.where(_ran_out, _not_mine).order_by(_theirs.c.position)
_open = _slot_id.where(_theirs.c.state == "open", _theirs.c.position >= sa.bindparam("from"), _not_mine).order_by(
    _theirs.c.position, _theirs.c.slot_no
)
_TAKE_EXPIRED, _TAKE_OPEN = (_take(which, _LEASE, *_TAKEN) for which in (_expired, _open))
_EXPIRED, _OPEN = _expired.limit(1), _open.limit(1)


class Cursor:
    """Each annotator's position in the queue, so that the search for the next pair does not start at its beginning.

    Slots before it were theirs, or were taken when they came by. At the end the search starts over, for slots that
    others gave back; if it finds none, it is not repeated for a while.
    """

    REST_S = 2.0

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._dry: dict[str, float] = {}

    def lease(self, db: sa.Connection, annotator: str, lease_s: float) -> str | None:
        """Lease the next item that this annotator has not judged; None: there is none."""
        moment = time.time()
        values = {"me": annotator, "now": moment, "until": moment + lease_s, "from": self._at.get(annotator, 0)}
        slot_row = db.execute(_TAKE_EXPIRED, values).first() or db.execute(_TAKE_OPEN, values).first()
        if slot_row is None and values["from"] and time.monotonic() - self._dry.get(annotator, 0) > self.REST_S:
            slot_row = db.execute(_TAKE_OPEN, values | {"from": 0}).first()
            if slot_row is None:
                self._dry[annotator] = time.monotonic()
        if slot_row is None:
            return None
        self._at[annotator] = slot_row.position
        return str(slot_row.item_id)

    def has_more(self, db: sa.Connection, annotator: str) -> bool:
        """Whether there is a further item for this annotator to lease."""
        values = {"me": annotator, "now": time.time(), "from": self._at.get(annotator, 0)}
        queries = [(_EXPIRED, values), (_OPEN, values), (_OPEN, values | {"from": 0})]
        return any(db.execute(query, bound).first() is not None for query, bound in queries)

    def stir(self) -> None:
        """Let annotators without work search again, since somebody gave a slot back, or the order has changed."""
        self._dry.clear()


# ---- Views ------------------------------------------------------------------------------------------------------

_SHOW = view.insert()


def show(db: sa.Connection, annotator: str, item_id: str, drawn: list[int], purpose: Purpose, **values: Any) -> None:
    """Store a view with its sides, before any text is sent."""
    row: TableRow = {"token": secrets.token_urlsafe(18), "item_id": item_id, "annotator": annotator}
    row |= {
        "drawn": drawn,
        "purpose": purpose,
        "repeats": None,
        "wants_rationale": False,
        "reshown": False,
        "closed": False,
    }
    db.execute(_SHOW, {**row, **values, "created_utc": now()})


def draw(count: int) -> list[int]:
    """Places for `count` answers, from a cryptographic source."""
    places = list(range(count))
    secrets.SystemRandom().shuffle(places)
    return places


# ---- Hidden checks ----------------------------------------------------------------------------------------------

_UNSEEN = (
    sa.select(gold.c.item_id)
    .where(
        gold.c.use == sa.bindparam("use"),
        ~sa.exists().where(view.c.item_id == gold.c.item_id, view.c.annotator == _me),
    )
    .order_by(gold.c.position)
)
_EARLIER = (
    sa.select(view.c.token, view.c.item_id, view.c.drawn)
    .where(view.c.annotator == _me, view.c.closed.is_(True), view.c.purpose == "work")
    .order_by(view.c.view_id.desc())
    .limit(REPEAT_WITHIN)
    .offset(sa.bindparam("after", type_=sa.Integer))
)
_later, _again = event.alias("later"), view.alias("again")
_REPEATABLE = (
    sa.select(view.c.token, view.c.item_id, view.c.drawn)
    .join(event, event.c.view_token == view.c.token)
    .where(
        view.c.token.in_(sa.bindparam("tokens", expanding=True)),
        event.c.kind == "label",
        ~sa.exists().where(_later.c.supersedes == event.c.event_id),
        ~sa.exists().where(_again.c.repeats == view.c.token),
    )
)


def unseen_gold(db: sa.Connection, annotator: str, use: Literal["check", "qualification"]) -> list[str]:
    """Items with a known answer that this annotator was never shown, in order."""
    return list(db.scalars(_UNSEEN, {"use": use, "me": annotator}))


def earlier_view(db: sa.Connection, annotator: str, after: int) -> Any | None:
    """One of the annotator's own labelled views, at least `after` views ago, which did not come again yet."""
    tokens = [row.token for row in db.execute(_EARLIER, {"me": annotator, "after": after})]
    if not tokens:
        return None
    repeatable = db.execute(_REPEATABLE, {"tokens": tokens}).all()
    return secrets.choice(repeatable) if repeatable else None


# ---- After an answer --------------------------------------------------------------------------------------------

_CLOSE_TOKEN = view.update().where(view.c.token == sa.bindparam("tok")).values(closed=True)
_of_item = sa.and_(slot.c.item_id == _item, slot.c.annotator == _me)
_CHOSEN = (slot.c.selection, slot.c.propensity)
_FILLED = {"state": "filled", "annotator": _me, "expires_at": None}
_FILL_MINE = slot.update().where(_of_item, slot.c.state == "leased").values(_FILLED).returning(*_CHOSEN)
_free = sa.and_(
    _theirs.c.item_id == _item,
    sa.or_(_theirs.c.state == "open", _ran_out),
    ~sa.exists().where(_mine.c.item_id == _item, _mine.c.annotator == _me),
)
_FILL_FREE = _take(_slot_id.where(_free), _FILLED, *_CHOSEN)
_TAKE_FREE = _take(_slot_id.where(_free), _LEASE, slot.c.slot_id)
_GIVE_BACK = (
    slot.update().where(_of_item, slot.c.state == "leased").values(state="open", annotator=None, expires_at=None)
)
_TAKE_BACK = slot.update().where(_of_item, slot.c.state == "filled").values(_LEASE).returning(slot.c.slot_id)
_IS_ASKED = sa.select(slot.c.slot_id).where(slot.c.item_id == _item).limit(1)
_ANSWERED = sa.select(event.c.event_id).where(
    event.c.view_token == sa.bindparam("tok"), event.c.kind.in_(ANSWERS)
)  # fmt: skip


def close(db: sa.Connection, token: str) -> None:
    db.execute(_CLOSE_TOKEN, {"tok": token})


def is_answered(db: sa.Connection, token: str) -> bool:
    return db.scalar(_ANSWERED, {"tok": token}) is not None


def is_asked(db: sa.Connection, item_id: str) -> bool:
    """Whether an item is still in the queue."""
    return db.scalar(_IS_ASKED, {"item": item_id}) is not None


def fill(db: sa.Connection, annotator: str, item_id: str) -> TableRow | None:
    """Close the annotator's slot of an item; if it was lost, a free one. Returns how the item was selected, and with
    which probability; None: all were taken meanwhile."""
    values = {"me": annotator, "item": item_id, "now": time.time()}
    for query in (_FILL_MINE, _FILL_FREE):
        if (row := db.execute(query, values).first()) is not None:
            return dict(row._mapping)
    return None


def give_back(db: sa.Connection, annotator: str, item_id: str) -> bool:
    """Give the slot to others. False: it was lost already."""
    return db.execute(_GIVE_BACK, {"me": annotator, "item": item_id}).rowcount > 0


def take_back(db: sa.Connection, annotator: str, item_id: str, lease_s: float) -> bool:
    """Lease a labelled or skipped item again. False: it has no slot any more."""
    moment = time.time()
    values = {"me": annotator, "item": item_id, "now": moment, "until": moment + lease_s}
    return any(db.execute(query, values).first() is not None for query in (_TAKE_BACK, _TAKE_FREE))
