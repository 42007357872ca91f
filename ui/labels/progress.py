"""Progress of each annotator: labels and skips, the qualification round, and the tasks that may still come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from ui.labels import assignment, judgements
from ui.labels.items import Gold
from ui.labels.store import ANSWERS, WANTED, keep_note, superseded
from ui.labels.tables import event, meta, slot
from ui.labels.tasks import Practice, Progress, Settings, State

ESTIMATED_AFTER = 20
"""Judgements between two estimates of the number still to come. An estimate after each one would reveal hidden checks;
one after twenty reveals the number of checks among them, but not which they were."""


@dataclass
class Tally:
    """Counts of one annotator's judgements. Practice counts separately, all other purposes together."""

    labelled: int
    skipped: int
    left: int = 0
    state: State = "work"
    practice: Practice | None = None

    @property
    def answered(self) -> int:
        return self.labelled + self.skipped

    @property
    def progress(self) -> Progress:
        return Progress(self.labelled, self.skipped, self.left, self.practice)


class Total(NamedTuple):
    """An estimate of an annotator's judgements in the end; see `Tallies.total`."""

    judgements: int
    due: int
    """Number of judgements at which it is estimated again."""
    targets: str
    """The campaign's targets at the time of the estimate."""

    def left(self, tally: Tally, waiting: Sequence[Any]) -> int:
        """At least what is in front of the annotator."""
        return 0 if tally.state == "done" else max(self.judgements - tally.answered, len(waiting))


@dataclass
class Tallies:
    """The tallies of all annotators. It remembers who passed the qualification round."""

    settings: Settings
    practice: Mapping[str, Gold]
    has_checks: bool
    _passed: set[str] = field(default_factory=set)

    def of(self, db: sa.Connection, annotator: str) -> Tally:
        tally = Tally(*db.execute(_COUNTS, {"me": annotator}).one())
        if not self.practice or annotator in self._passed:
            return tally
        rows = db.execute(_PRACTISED, {"me": annotator})
        tiers_of = {row.item_id: row.tiers for row in rows if row.item_id in self.practice}
        right = sum(
            tiers is not None and judgements.agrees(tiers, self.practice[name].tiers)
            for name, tiers in tiers_of.items()
        )
        is_through = len(tiers_of) == len(self.practice)
        if is_through and right >= self.settings.qualification_pass * len(self.practice):
            self._passed.add(annotator)
            return tally
        tally.practice = Practice(len(tiers_of), len(self.practice), right)
        tally.state = "failed_practice" if is_through else "practice"
        return tally

    def total(self, db: sa.Connection, annotator: str, tally: Tally, keep: bool = False) -> Total:
        """An estimate of all judgements of this annotator in the end, hidden checks among them.

        It is made once per ESTIMATED_AFTER judgements and stored: an undo, a restart or another server does not make it
        again. It depends on the remaining work, which a check changes no more than it changes the count of judgements.
        """
        key = f"total {annotator}"
        targets = db.scalar(_NOTE, {"key": WANTED}) or "0 0"
        if stored := db.scalar(_NOTE, {"key": key}):
            total = Total(*json.loads(stored))
            if tally.answered < total.due and total.targets == targets:
                return total
        items, labels = map(int, targets.split())
        judged = db.scalar(_JUDGED, {"me": annotator}) or 0
        work = max(0, min(labels - (db.scalar(_FILLED) or 0), items - judged))
        gold, repeats = self.settings.gold_share * self.has_checks, self.settings.repeat_share
        with_checks = work / max(1 - gold - repeats, 0.1)
        unseen = len(assignment.unseen_gold(db, annotator, "check")) if gold else 0
        checks = round(min(gold * with_checks, unseen) + repeats * with_checks)
        total = Total(tally.answered + work + checks, tally.answered + ESTIMATED_AFTER, targets)
        if keep:
            keep_note(db, key, json.dumps(total))
        return total


# ---- Queries ----------------------------------------------------------------------------------------------------

_of_me = sa.and_(event.c.annotator == sa.bindparam("me", type_=sa.String), event.c.source == "human")


def _count(*kinds: str) -> Any:
    """The number of an annotator's events of these kinds that were not taken back, for all purposes but practice."""
    conditions = (event.c.purpose != "qualification", event.c.kind.in_(kinds), event.c.view_token.is_not(None))
    return sa.select(sa.func.count()).where(_of_me, *conditions, ~superseded()).scalar_subquery()


_COUNTS = sa.select(_count("label"), _count("skip", "flag"))  # one round trip; in the order of Tally
_NOTE = sa.select(meta.c.value).where(meta.c.key == sa.bindparam("key"))
_FILLED = sa.select(sa.func.count()).where(slot.c.state == "filled")
_JUDGED = sa.select(sa.func.count(sa.distinct(event.c.item_id))).where(
    _of_me, event.c.purpose == "work", event.c.kind.in_(ANSWERS), ~superseded()
)
_PRACTISED = sa.select(event.c.item_id, event.c.tiers).where(
    _of_me, event.c.purpose == "qualification", event.c.kind.in_(ANSWERS)
)
