"""Stores of every older version are brought up to date with what was said in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from trueup.errors import DataError
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import MIGRATIONS, event, metadata, slot, view

# As version 1 made them, on either database.
VERSION_1 = """
CREATE TABLE meta (key VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL);
CREATE TABLE item (item_id VARCHAR NOT NULL PRIMARY KEY, prompt_id VARCHAR NOT NULL, prompt JSON NOT NULL,
    category VARCHAR, split VARCHAR NOT NULL, completions JSON NOT NULL, sampler JSON NOT NULL,
    created_utc VARCHAR NOT NULL);
CREATE INDEX ix_item_prompt_id ON item (prompt_id);
CREATE TABLE queue (position INTEGER NOT NULL PRIMARY KEY,
    item_id VARCHAR NOT NULL UNIQUE REFERENCES item (item_id));
CREATE TABLE view (view_id {serial}, token VARCHAR NOT NULL UNIQUE,
    item_id VARCHAR NOT NULL REFERENCES item (item_id), annotator VARCHAR NOT NULL, drawn JSON NOT NULL,
    created_utc VARCHAR NOT NULL);
CREATE INDEX ix_view_annotator ON view (annotator);
CREATE TABLE event (event_id {serial}, client_uuid VARCHAR NOT NULL UNIQUE,
    view_token VARCHAR UNIQUE REFERENCES view (token), item_id VARCHAR NOT NULL REFERENCES item (item_id),
    annotator VARCHAR NOT NULL, source VARCHAR NOT NULL, kind VARCHAR NOT NULL, tiers JSON, strength INTEGER,
    note TEXT, supersedes INTEGER UNIQUE REFERENCES event (event_id), created_utc VARCHAR NOT NULL,
    CHECK (kind IN ('label', 'skip', 'undo')), CHECK ((kind = 'label') = (tiers IS NOT NULL)),
    CHECK (kind <> 'undo' OR supersedes IS NOT NULL));
CREATE INDEX event_by_annotator ON event (annotator, item_id);
CREATE INDEX event_by_item ON event (item_id, source)
"""
TRIGGERS_1 = [
    f"CREATE TRIGGER event_no_{verb.lower()} BEFORE {verb} ON event "
    "BEGIN SELECT RAISE(ABORT, 'label events are append-only'); END"
    for verb in ("UPDATE", "DELETE")
]
UTC = "2026-11-01T12:00:00.000+00:00"


def insert(db: sa.Connection, table: str, **values: Any) -> None:
    values = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in values.items()}
    names = ", ".join(values)
    db.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(':' + name for name in values)})"), values)


@pytest.fixture
def version_1(store_url: str) -> str:
    """Three pairs; ann labelled the first, undid the second and skipped the third, bob labelled the first."""
    engine = sa.create_engine(store_url)
    sqlite = engine.dialect.name == "sqlite"
    with engine.begin() as db:
        serial = "INTEGER PRIMARY KEY AUTOINCREMENT" if sqlite else "SERIAL PRIMARY KEY"
        for statement in VERSION_1.format(serial=serial).split(";"):
            db.exec_driver_sql(statement)
        for statement in TRIGGERS_1 if sqlite else []:
            db.exec_driver_sql(statement)
        insert(db, "meta", key="schema_version", value="1")
        for i in range(3):
            answers = [
                {"text": text, "token_ids": [i], "finished": True, "logp": -1.5} for text in ("yes", f"no way {i}")
            ]
            prompt, sampler = [{"role": "user", "content": f"really {i}?"}], {"policy_sha256": "p"}
            common = {"category": None, "split": "train", "completions": answers, "created_utc": UTC}
            insert(db, "item", item_id=f"i{i}", prompt_id=f"p{i}", prompt=prompt, sampler=sampler, **common)
            insert(db, "queue", position=i, item_id=f"i{i}")
        said = [
            ("ann", "i0", "label", [[1], [0]], None),
            ("ann", "i1", "label", [[0, 1]], None),
            ("ann", "i1", "undo", None, 2),
            ("ann", "i2", "skip", None, None),
            ("bob", "i0", "label", [[0], [1]], None),
        ]
        for number, (annotator, item_id, kind, tiers, supersedes) in enumerate(said, start=1):
            named = {"item_id": item_id, "annotator": annotator, "created_utc": UTC}
            token = None
            if kind != "undo":
                token = f"view {number}"
                insert(db, "view", token=token, drawn=[1, 0], **named)
            values = {"kind": kind, "tiers": tiers, "supersedes": supersedes, "source": "human", "note": f"n{number}"}
            insert(db, "event", client_uuid=f"event {number}", view_token=token, **values, **named)
        rubric = {"annotator": "rubric:r", "source": "simulated", "kind": "label", "created_utc": UTC}
        insert(db, "event", client_uuid="event 6", item_id="i2", tiers=[[0], [1]], **rubric)
        waits = {"item_id": "i1", "annotator": "ann", "created_utc": UTC}
        insert(db, "view", token="waits", drawn=[1, 0], **waits)
    engine.dispose()
    return store_url


def shape(store: Store) -> dict[str, Any]:
    """Tables, columns, constraints and indexes, whatever order they were made in."""
    found = sa.inspect(store.engine)
    return {
        name: {
            "columns": {c["name"]: (str(c["type"]), c["nullable"]) for c in found.get_columns(name)},
            "indexes": {
                i["name"]: (tuple(i["column_names"]), bool(i["unique"]))
                for i in found.get_indexes(name)
                if "duplicates_constraint" not in i  # PostgreSQL names those, and avoids names that were taken
            },
            "unique": {tuple(c["column_names"]) for c in found.get_unique_constraints(name)},
            "foreign": {(tuple(k["constrained_columns"]), k["referred_table"]) for k in found.get_foreign_keys(name)},
            "checks": len(found.get_check_constraints(name)),
        }
        for name in sorted(found.get_table_names())
    }


def test_a_migrated_store_is_made_like_a_new_one(version_1: str, tmp_path: Path) -> None:
    old = Store(version_1)
    if old.is_sqlite:
        new = Store(f"sqlite:///{tmp_path / 'new.sqlite'}")
        migrated, blank = shape(old), shape(new)
        new.close()
    else:
        migrated = shape(old)
        with old.write() as db:
            metadata.drop_all(db)
        old.close()
        old = Store(version_1)
        blank = shape(old)
    old.close()
    assert migrated == blank


def test_what_was_said_in_version_1_is_kept_and_counted(version_1: str) -> None:
    Store(version_1).close()
    store = Store(version_1)  # opened again: migrated once
    with store.read() as db:
        rows = list(db.execute(sa.select(event).order_by(event.c.event_id)))
        slots = list(db.execute(sa.select(slot).order_by(slot.c.position, slot.c.slot_no)))
        assert db.scalar(sa.text("SELECT value FROM meta WHERE key = 'schema_version'")) == str(1 + len(MIGRATIONS))
    assert [row.client_uuid for row in rows] == [f"event {number}" for number in range(1, 7)]
    assert [row.note for row in rows] == [*(f"n{number}" for number in range(1, 6)), None]
    assert [row.tiers for row in rows] == [[[1], [0]], [[0, 1]], None, None, [[0], [1]], [[0], [1]]]
    assert [row.first_shown for row in rows] == [1, 1, None, 1, 1, None]
    assert [row.chose_longer for row in rows] == [True, None, None, None, False, False]
    assert rows[0].words == 6 and {row.purpose for row in rows} == {"work"}
    assert [(row.item_id, row.state, row.annotator) for row in slots] == [
        ("i0", "done", "ann"),
        ("i0", "done", "bob"),
        ("i1", "open", None),
        ("i2", "open", None),
    ]
    labels = store.rankings(["human"])
    assert [(row.label_id, row.shown, row.selection) for row in labels] == [
        ("event 1", [1, 0], "queue"),
        ("event 5", [1, 0], "queue"),
    ]
    assert len(store.rankings(["simulated"])) == 1
    store.close()


def test_labelling_goes_on_in_a_migrated_store(version_1: str) -> None:
    store = Store(version_1)
    asked = LabelService(store)
    assert (asked.progress("ann").mine, asked.progress("ann").skipped) == (1, 1)
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.write() as db:
        db.exec_driver_sql("DELETE FROM event")
    with store.read() as db:
        assert set(db.scalars(sa.select(view.c.closed))) == {True}
    assert asked.undo("ann", "undo-0001").undone
    assert [task.prompt[0].content for task in asked.tasks("ann")] == ["really 2?"]
    assert sorted(task.prompt[0].content for task in asked.tasks("cem")) == ["really 1?"]
    store.close()


def test_a_store_of_a_newer_version_is_left_alone(asking: Callable[..., Store]) -> None:
    store = asking(1)
    with store.write() as db:
        db.exec_driver_sql("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(DataError, match="newer Trueup"):
        Store(store.url.render_as_string(hide_password=False))
