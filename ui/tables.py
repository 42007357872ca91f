"""The label store's tables, its schema version, and how its database is opened.

    event   the truth: append-only; a label is never updated or deleted, an undo is an event that supersedes another
    view    what one annotator was shown once: an opaque token, and the order drawn for the answers
    item    what can be judged: a prompt and K answers, named by the hash of its content
    queue   which items people are asked about, in order; rewritten when the candidates change

SQLite by default, any database that SQLAlchemy speaks (PostgreSQL is meant) by URL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Integer, String, Table, Text

from trueup.errors import DataError

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)

meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))

item = Table(
    "item",
    metadata,
    Column("item_id", String, primary_key=True),
    Column("prompt_id", String, nullable=False, index=True),
    Column("prompt", _JSON, nullable=False),
    Column("category", String),
    Column("split", String, nullable=False),
    Column("completions", _JSON, nullable=False),  # [{text, token_ids, finished}], K of them
    Column("sampler", _JSON, nullable=False),
    Column("created_utc", String, nullable=False),
)

queue = Table(
    "queue",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("item_id", ForeignKey("item.item_id"), nullable=False, unique=True),
)

view = Table(
    "view",
    metadata,
    Column("view_id", Integer, primary_key=True),
    Column("token", String, nullable=False, unique=True),
    Column("item_id", ForeignKey("item.item_id"), nullable=False),
    Column("annotator", String, nullable=False, index=True),
    Column("drawn", _JSON, nullable=False),  # drawn[i]: which of the item's answers was shown at place i
    Column("created_utc", String, nullable=False),
)

event = Table(
    "event",
    metadata,
    Column("event_id", Integer, primary_key=True),
    Column("client_uuid", String, nullable=False, unique=True),  # a request sent twice is one event
    Column("view_token", ForeignKey("view.token"), unique=True),  # a view is answered at most once
    Column("item_id", ForeignKey("item.item_id"), nullable=False),
    Column("annotator", String, nullable=False),
    Column("source", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("tiers", _JSON),  # of a label: indices into the item's answers, best tier first
    Column("strength", Integer),
    Column("note", Text),
    Column("supersedes", ForeignKey("event.event_id"), unique=True),  # an event is taken back at most once
    Column("created_utc", String, nullable=False),
    sa.CheckConstraint("kind IN ('label', 'skip', 'undo')"),
    sa.CheckConstraint("(kind = 'label') = (tiers IS NOT NULL)"),
    sa.CheckConstraint("kind <> 'undo' OR supersedes IS NOT NULL"),
    sa.Index("event_by_annotator", "annotator", "item_id"),
    sa.Index("event_by_item", "item_id", "source"),
)

# SQLite hands out the id of a deleted last row again, unless told not to; ids order events in time.
event.dialect_options["sqlite"]["autoincrement"] = True

for _verb in ("UPDATE", "DELETE"):
    _refuse = sa.DDL(
        f"CREATE TRIGGER event_no_{_verb.lower()} BEFORE {_verb} ON event "
        "BEGIN SELECT RAISE(ABORT, 'label events are append-only'); END"
    )
    sa.event.listen(event, "after_create", _refuse.execute_if(dialect="sqlite"))

# ---- Schema version ---------------------------------------------------------------------------------------------

MIGRATIONS: list[Callable[[sa.Connection], None]] = []
"""In order: the n-th brings a store of version n to n + 1. A blank database gets the tables above at once."""


def _bring_up_to_date(connection: sa.Connection, url: str) -> None:
    newest = 1 + len(MIGRATIONS)
    present = set(sa.inspect(connection).get_table_names())
    if "meta" not in present:
        if clash := sorted(present & set(metadata.tables)):
            raise DataError(
                f"{url}: holds a table {clash[0]} that is not ours; give the labels a database of their own"
            )
        metadata.create_all(connection)
        connection.execute(meta.insert().values(key="schema_version", value=str(newest)))
        return
    stored = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar_one_or_none()
    if stored is None:
        raise DataError(f"{url}: has a table `meta` without a schema version, so this is not a label store")
    version = int(stored)
    if version > newest:
        raise DataError(
            f"{url}: written by a newer Trueup (store version {version}, known up to {newest}); update Trueup"
        )
    for migrate in MIGRATIONS[version - 1 :]:
        migrate(connection)
    connection.execute(meta.update().where(meta.c.key == "schema_version").values(value=str(newest)))


# ---- Database ---------------------------------------------------------------------------------------------------


class Database:
    """An open store: `read()` and `write()` give a connection in a transaction."""

    def __init__(self, url: str):
        try:
            self.url = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise DataError(f"{url!r} is not a database URL; for example sqlite:///labels.sqlite") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if not self.url.database or self.url.database == ":memory:":
                raise DataError(f"{url}: labels in memory would be lost; name a file, such as sqlite:///labels.sqlite")
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        # SQLite's own waiting is unfair: under load the same writer can lose again and again. Writers of this process
        # queue here; busy_timeout is for those of other processes.
        self._writing = threading.Lock()
        shown = self.url.render_as_string(hide_password=True)
        try:
            self.engine = sa.create_engine(self.url, pool_pre_ping=not self.is_sqlite)
            if self.is_sqlite:
                sa.event.listen(self.engine, "connect", _prepare_sqlite)
                sa.event.listen(self.engine, "begin", _begin_sqlite)
            self._writer = self.engine.execution_options(immediate=True)
            with self.write() as connection:
                _bring_up_to_date(connection, shown)
        except ModuleNotFoundError as error:
            raise DataError(
                f"{shown}: needs the Python package {error.name}; install it to use this database"
            ) from None
        except sa.exc.DatabaseError as error:
            self.close()
            raise DataError(f"{shown}: cannot be opened as a label store ({error.orig})") from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start, so that what it reads stays true until it commits."""
        with self._writing, self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7787)"))
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, see _begin_sqlite
    connection.execute("PRAGMA busy_timeout=10000")
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise DataError(f"the label store's file system cannot do SQLite's WAL (journal mode {mode}); use a local disk")
    # WAL with synchronous=NORMAL may lose the last commits when the power fails; a label that was confirmed is kept.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
