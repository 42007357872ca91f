"""The label store's tables, its schema version, and how its database is opened.

    event      the truth: append-only; a label is never updated or deleted, an undo is an event that supersedes another
    view       what one annotator was shown once: an opaque token, and the order drawn for the answers
    item       what can be judged: a prompt and K answers, named by the hash of its content
    slot       one label that is wanted of an item: overlap is a number of rows, so too many cannot be collected
    gold       items with a known answer, for hidden checks and for the qualification round
    guideline  every text that annotators were ever guided by, named by its hash
    account    who may label or administer; session, invite: how they get in

SQLite by default, any database that SQLAlchemy speaks (PostgreSQL is meant) by URL.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, ForeignKey, Integer, String, Table, Text

from trueup.errors import DataError, of_the_machine
from trueup.files import is_writable
from trueup.provenance.masking import masked

TableRow = dict[str, Any]
"""Values of a row by column, as SQLAlchemy takes them: text, numbers, and what JSON columns hold."""

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
    Column("completions", _JSON, nullable=False),  # [{text, token_ids, finished, logp}], K of them
    Column("sampler", _JSON, nullable=False),
    Column("created_utc", String, nullable=False),
)

gold = Table(
    "gold",
    metadata,
    Column("item_id", ForeignKey("item.item_id"), primary_key=True),
    Column("tiers", _JSON, nullable=False),  # the known answer, in indices into the item's answers
    Column("explanation", Text),  # shown in the qualification round
    Column("use", String, nullable=False),
    Column("position", Integer, nullable=False),
    sa.CheckConstraint("use IN ('check', 'qualification')"),
)

slot = Table(
    "slot",
    metadata,
    Column("slot_id", Integer, primary_key=True),
    Column("item_id", ForeignKey("item.item_id"), nullable=False),
    Column("slot_no", Integer, nullable=False),
    Column("position", Integer, nullable=False),  # the order in which slots are handed out
    Column("selection", String, nullable=False),  # how the item came to be asked about: random, uncertainty
    Column("propensity", Float, nullable=False),  # probability with which that selection chose it
    Column("state", String, nullable=False),
    Column("annotator", String),  # whose it is: leased or filled
    Column("expires_at", Float),  # of a lease, seconds since the epoch
    sa.UniqueConstraint("item_id", "slot_no"),
    sa.UniqueConstraint("item_id", "annotator"),  # nobody fills two slots of one item
    sa.CheckConstraint("state IN ('open', 'leased', 'filled')"),
    sa.CheckConstraint("(state = 'open') = (annotator IS NULL)"),
    sa.CheckConstraint("(state = 'leased') = (expires_at IS NOT NULL)"),
    sa.Index("slot_by_state", "state", "position"),
    sa.Index("slot_by_annotator", "annotator", "state"),
)

guideline = Table(
    "guideline",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("text", Text, nullable=False),
    Column("created_utc", String, nullable=False),
)

view = Table(
    "view",
    metadata,
    Column("view_id", Integer, primary_key=True),
    Column("token", String, nullable=False, unique=True),
    Column("item_id", ForeignKey("item.item_id"), nullable=False),
    Column("annotator", String, nullable=False),
    Column("drawn", _JSON, nullable=False),  # drawn[i]: which of the item's answers was shown at place i
    Column("purpose", String, nullable=False, server_default="work"),
    Column("repeats", ForeignKey("view.token")),  # of a hidden repeat: the view that it shows again, sides swapped
    Column("wants_rationale", Boolean, nullable=False, server_default=sa.false()),
    Column("closed", Boolean, nullable=False, server_default=sa.false()),  # answered, or its lease was lost
    Column("reshown", Boolean, nullable=False, server_default=sa.false()),  # after an undo: it comes before the others
    Column("guideline_sha256", String),
    Column("created_utc", String, nullable=False),
    sa.CheckConstraint("purpose IN ('work', 'repeat', 'gold', 'qualification')"),
    sa.Index("view_by_annotator", "annotator", "closed", "view_id"),
    sa.Index("view_by_item", "item_id"),
    sa.Index("view_by_repeated", "repeats"),
)

ROUND = "round"
"""Key of the note with the round that asks. Whatever is written meanwhile belongs to it: `ASKING`."""
ASKING = (
    sa.select(sa.func.coalesce(sa.func.max(sa.cast(meta.c.value, Integer)), 1))
    .where(meta.c.key == ROUND)
    .scalar_subquery()
)

event = Table(
    "event",
    metadata,
    Column("event_id", Integer, primary_key=True),
    Column("client_uuid", String, nullable=False, unique=True),  # a request sent twice is one event
    Column("view_token", ForeignKey("view.token")),
    Column("item_id", ForeignKey("item.item_id"), nullable=False),
    Column("annotator", String, nullable=False),
    Column("source", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("purpose", String, nullable=False, server_default="work"),  # of the view
    Column("tiers", _JSON),  # of a label: indices into the item's answers, best tier first
    Column("strength", Integer),  # of a strict pair: 1 slightly, 2 better, 3 much better
    Column("both_bad", Boolean, nullable=False, server_default=sa.false()),
    Column("first_shown", Integer),  # index of the answer on the left (of a ranking: first)
    Column("criteria", _JSON),  # {criterion: index of the better answer, null for a tie, or tiers of several answers}
    Column("note", Text),  # rationale of a label, reason of a flag, text of a demonstration
    Column("seconds", Float),  # from the first paint to the decision, as the browser measured it
    Column("words", Integer),  # of prompt and answers: what had to be read
    Column("chose_longer", Boolean),  # of a strict pair whose answers differ in length (characters)
    Column("device", String),  # key, click, touch, api
    Column("guideline_sha256", String),
    Column("round", Integer, nullable=False, default=ASKING),  # of the campaign, that asked for it
    # Of a person's label, as its slot has them: another queue may take the slot away.
    Column("selection", String),
    Column("propensity", Float),
    Column("row_id", String),  # of the row in the file that a label was imported from
    Column("supersedes", ForeignKey("event.event_id"), unique=True),  # an event is taken back at most once
    Column("created_utc", String, nullable=False),
    sa.CheckConstraint("kind IN ('label', 'skip', 'flag', 'late', 'demonstration', 'undo')"),
    sa.CheckConstraint("(kind IN ('label', 'late')) = (tiers IS NOT NULL)"),
    sa.CheckConstraint("kind <> 'undo' OR supersedes IS NOT NULL"),
    sa.Index("event_by_annotator", "annotator", "event_id"),
    sa.Index("event_by_purpose", "annotator", "purpose", "kind"),
    sa.Index("event_by_item", "item_id", "source"),
    # A view is answered at most once; demonstrations are written beside its answer.
    sa.Index(
        "event_answers_view",
        "view_token",
        unique=True,
        sqlite_where=sa.text("kind IN ('label', 'skip', 'flag', 'late')"),
        postgresql_where=sa.text("kind IN ('label', 'skip', 'flag', 'late')"),
    ),
)

account = Table(
    "account",
    metadata,
    Column("account_id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("folded", String, nullable=False, unique=True),  # ui.people.names: the form by which a name is found
    Column("skeleton", String, nullable=False, index=True),  # what it looks like
    Column("pseudonym", String, nullable=False, unique=True),  # what events and exports call them
    Column("role", String, nullable=False),
    Column("password_hash", String, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_utc", String, nullable=False),
    sa.CheckConstraint("role IN ('admin', 'annotator')"),
)

session = Table(
    "session",
    metadata,
    Column("token_sha256", String, primary_key=True),
    Column("account_id", ForeignKey("account.account_id")),  # null: the person at this machine, let in by a link
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

invite = Table(
    "invite",
    metadata,
    Column("token_sha256", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)

# SQLite hands out the id of a deleted last row again, unless told not to; ids order events in time.
event.dialect_options["sqlite"]["autoincrement"] = True

_APPEND_ONLY = "label events are append-only"
for _verb in ("UPDATE", "DELETE"):
    _refuse = sa.DDL(
        f"CREATE TRIGGER event_no_{_verb.lower()} BEFORE {_verb} ON event "
        f"BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END"
    )
    sa.event.listen(event, "after_create", _refuse.execute_if(dialect="sqlite"))
for _statement in (
    "CREATE OR REPLACE FUNCTION trueup_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_APPEND_ONLY}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
    "CREATE TRIGGER event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event "
    "FOR EACH STATEMENT EXECUTE FUNCTION trueup_append_only()",
):
    sa.event.listen(event, "after_create", sa.DDL(_statement).execute_if(dialect="postgresql"))

# ---- Schema version ---------------------------------------------------------------------------------------------

VERSION = "4"
"""Version of these tables; a store of another version is refused."""


def _make_tables(connection: sa.Connection, url: str) -> None:
    """Make the tables in a database without any of ours; refuse one that has other tables of these names."""
    present = set(sa.inspect(connection).get_table_names())
    if "meta" in present:
        _refuse_another_version(connection, url)
        return
    if clash := sorted(present & set(metadata.tables)):
        raise DataError(f"{url}: holds a table {clash[0]} that is not ours; give the labels a database of their own")
    metadata.create_all(connection)
    connection.execute(meta.insert().values(key="schema_version", value=VERSION))


def _refuse_another_version(connection: sa.Connection, url: str) -> None:
    """Raise DataError unless the tables are those of this version."""
    version = None
    if "meta" in sa.inspect(connection).get_table_names():
        version = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar_one_or_none()
    if version != VERSION:
        raise DataError(
            f"{url}: holds no labels of this version of Trueup (store version {version or 'unknown'}, this one reads "
            f"{VERSION}); open it with the version that wrote it"
        )


def url_of_existing(url: sa.URL) -> sa.URL:
    """The same URL; DataError if its file does not exist, so that reading does not create one."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise DataError(
            f"{url.database}: there is no label store yet; `trueup label` and `trueup labels import` make it"
        )
    return url


def shown(url: sa.URL) -> str:
    """The URL for messages."""
    return url.render_as_string(hide_password=True)


# ---- Database ---------------------------------------------------------------------------------------------------


_LOCK_STORE = sa.text("SELECT pg_advisory_xact_lock(7787)")
_LOCK_ANNOTATOR = sa.text(
    "SELECT pg_advisory_xact_lock_shared(7787), pg_advisory_xact_lock(7787, hashtext(:annotator))"
)


class Database:
    """An open store: `read()`, `write()` and `write_as()` yield a connection in a transaction."""

    def __init__(self, url: str | sa.URL, read_only: bool = False):
        """Open the store and make its tables if there are none; with `read_only`, change nothing.

        A SQLite file on a medium that cannot be written is read from a copy, and `is_copy` is true: writes to it are
        lost with it.
        """
        try:
            self.url = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise DataError(f"{masked(url)!r} is not a database URL; for example sqlite:///labels.sqlite") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        name = shown(self.url)
        if self.is_sqlite:
            if not self.url.database or self.url.database == ":memory:":
                raise DataError(f"{url}: labels in memory would be lost; name a file, such as sqlite:///labels.sqlite")
            self._open_file(Path(self.url.database), read_only)
        self._inode = _inode(self.url) if self.is_sqlite else None
        # SQLite's own waiting is unfair: under load one writer can lose again and again. Writers of this process queue
        # here; busy_timeout is for those of other processes.
        self._writing = threading.Lock()
        try:
            # As many connections as the web server has threads, so that nobody waits for one. Parameters of statements
            # are people's texts, so errors must not print them.
            self.engine = sa.create_engine(
                self.url, pool_size=40, max_overflow=10, pool_pre_ping=not self.is_sqlite, hide_parameters=True
            )
            if self.is_sqlite:
                sa.event.listen(self.engine, "connect", _prepare_sqlite)
                sa.event.listen(self.engine, "begin", _begin_sqlite)
            self._writer = self.engine.execution_options(immediate=True)
            if read_only:
                with self.read() as connection:
                    _refuse_another_version(connection, name)
            else:
                with self.write() as connection:
                    _make_tables(connection, name)
        except ModuleNotFoundError as error:
            raise DataError(f"{name}: needs the Python package {error.name}; install it to use this database") from None
        except DataError:
            self.close()
            raise
        except sa.exc.DatabaseError as error:
            self.close()
            raise DataError(f"{name}: cannot be opened as a label store ({error.orig})") from None

    @property
    def is_copy(self) -> bool:
        """Whether this is a copy of a file that cannot be written."""
        return self._copy is not None

    def _open_file(self, path: Path, read_only: bool) -> None:
        """Prepare the file: make its folder, let only its owner read it, or copy it."""
        if path.is_file() and (read_only or not is_writable(path, path.parent)):
            self._copy = tempfile.TemporaryDirectory(prefix="trueup-labels-")
            _copy_file(path, Path(self._copy.name, path.name))
            self.url = self.url.set(database=str(Path(self._copy.name, path.name)))
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Created here, so that it is never readable to everybody; SQLite gives its log files the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise DataError(f"{path}: cannot be written, so no label could be saved ({error.strerror})") from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction with no other writer, so that its reads stay true until it commits."""
        if self.is_sqlite:
            with _in_a_sentence(), self._writing, self._writer.begin() as connection:
                yield connection
                self._refuse_lost_file()
        else:
            with _in_a_sentence(), self.engine.begin() as connection:
                connection.execute(_LOCK_STORE)
                yield connection

    @contextmanager
    def write_as(self, annotator: str) -> Iterator[sa.Connection]:
        """A transaction in which this annotator does not write elsewhere, in another tab or process.

        SQLite has one writer anyway. On PostgreSQL different annotators write side by side, but never beside `write()`.
        """
        if self.is_sqlite:
            with self.write() as connection:
                yield connection
        else:
            with _in_a_sentence(), self.engine.begin() as connection:
                connection.execute(_LOCK_ANNOTATOR, {"annotator": annotator})
                yield connection

    def count_rows(self) -> None:
        """Tell PostgreSQL's planner the size of the tables; before that, a next pair may take seconds."""
        if not self.is_sqlite:
            with self.engine.begin() as connection:
                connection.execute(sa.text("ANALYZE item, slot, view, event"))

    def _refuse_lost_file(self) -> None:
        """A DataError if the file was removed or replaced: it then exists only for processes that have it open."""
        if self._inode is not None and _inode(self.url) != self._inode:
            raise DataError(
                f"{self.url.database}: was removed or replaced while it was open, so nothing is saved any more: "
                "put it back, then start again"
            )

    def close(self) -> None:
        self.engine.dispose()
        if self._copy is not None:
            self._copy.cleanup()


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Turn a full or read-only disk, which is no bug, into a DataError. Nothing was saved."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if (sentence := of_the_machine(error)) is None:
            raise
        raise DataError(f"nothing was saved: {sentence}") from None


def _copy_file(path: Path, to: Path) -> None:
    """Copy a SQLite file, which others may be writing to, at one moment; DataError if it cannot be read."""
    try:
        if is_writable(path, path.parent):
            with closing(sqlite3.connect(path)) as store, closing(sqlite3.connect(to)) as copy:
                store.backup(copy)
            return
        # SQLite writes beside a file even to read it. There are no writers here: the file and its log have every label.
        for end in ("", "-wal"):
            if (source := path.with_name(path.name + end)).is_file():
                shutil.copyfile(source, to.with_name(to.name + end))
    except (sqlite3.Error, OSError) as error:
        raise DataError(f"{path}: cannot be read as a label store ({error})") from None


def _inode(url: sa.URL) -> tuple[int, int] | None:
    try:
        state = os.stat(str(url.database))
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, see _begin_sqlite
    connection.execute("PRAGMA busy_timeout=10000")
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise DataError(f"the label store's file system cannot do SQLite's WAL (journal mode {mode}); use a local disk")
    # WAL with synchronous=NORMAL may lose the last commits when the power fails; a confirmed label must stay.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def now() -> str:
    """The current time for the store, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
