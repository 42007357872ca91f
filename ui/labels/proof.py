"""A hash of the events that a label stage read from its store, to compare the store with later.

Events are append-only, so those up to a given one never change. An edit of a label, an answer or a prompt in the
store's file shows, however many labels came after.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa

from trueup.artifacts.manifest import StoreProof
from trueup.errors import DataError
from trueup.runs import STORE, FinishedStage, stage_dir
from trueup.stages import campaign_dir
from ui.labels.tables import Database, event, item


def proof(store: Database) -> StoreProof:
    """The hash of all events of the store now, and of the items that they are about."""
    with store.read() as db:
        last = db.scalar(sa.select(sa.func.max(event.c.event_id))) or 0
        return StoreProof(last_event=last, sha256=_digest(db, last))


def _digest(db: sa.Connection, last: int) -> str:
    digest = hashlib.sha256()
    events = sa.select(event).where(event.c.event_id <= last).order_by(event.c.event_id)
    about = sa.select(event.c.item_id).where(event.c.event_id <= last)
    items = sa.select(item.c.item_id, item.c.prompt, item.c.completions).where(item.c.item_id.in_(about))
    for row in db.execute(events.execution_options(yield_per=1000)):
        digest.update(_line(list(row)))
    for row in db.execute(items.order_by(item.c.item_id).execution_options(yield_per=1000)):
        # Only the text of a completion is fixed; its token ids, for example, may be added later.
        digest.update(_line([row.item_id, row.prompt, [answer["text"] for answer in row.completions]]))
    return digest.hexdigest()


def _line(values: list[Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode() + b"\n"


def check_store(stage: FinishedStage) -> tuple[str | None, str | None]:
    """(problem, note): whether the store in the run still has the events that the label stage read.

    A database elsewhere is not opened: a run directory is data, and may come from somebody else.
    """
    stated, path = stage.manifest.store, stage_dir(campaign_dir(stage.dir.parent), "label") / STORE
    assert stated is not None
    if stage.manifest.identity.get("store"):
        return None, f"the labels' database is outside of {stage.dir}, and was not checked"
    if not path.is_file():
        return f"{path}: missing" if stated.last_event else None, None
    try:
        store = Database(sa.URL.create("sqlite", database=str(path)), read_only=True)
    except DataError as error:
        return str(error), None
    try:
        with store.read() as db:
            same = _digest(db, stated.last_event) == stated.sha256
    except (sa.exc.DatabaseError, ValueError, KeyError, TypeError) as error:
        return f"{path}: cannot be read as a label store ({getattr(error, 'orig', error)})", None
    finally:
        store.close()
    return None if same else f"{path}: labels or texts up to event {stated.last_event} were changed", None
