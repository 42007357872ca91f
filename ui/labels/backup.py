"""`trueup labels backup`: a copy of the label store, made while people label and checked before it counts."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from trueup.errors import DataError, TrueupError, writing
from ui.labels.tables import shown, url_of_existing


def backup(url: sa.URL, to: Path) -> str:
    """Copy the store to the new file `to` while people label; returns a sentence on the copy.

    The copy is the store at one moment. It is checked before it gets its name, by SQLite's own check and the number of
    events.
    """
    url_of_existing(url)
    if url.get_backend_name() != "sqlite":
        plain = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
        raise TrueupError(
            f"{shown(url)}: this store is on a server, and nothing was copied. Its own tool copies it while people "
            f"label:\n  pg_dump --format=custom --file={to} '{plain}'"
        )
    if to.exists():
        raise TrueupError(f"{to}: already there, and never written over; name a file that is new")
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f"{to.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # as the store: it has all accounts
        with closing(sqlite3.connect(str(url.database))) as store, closing(sqlite3.connect(partial)) as copy:
            before = _count_events(store)
            store.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
            [check] = copy.execute("PRAGMA quick_check").fetchone()
            events, after = _count_events(copy), _count_events(store)
        if check != "ok" or not before <= events <= after:
            raise DataError(
                f"{url.database}: the copy is not sound ({check}; {events} events, the store has {before} to {after}) "
                "and was taken away; look at the disk, and keep the store's files"
            )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.link(partial, to)  # unlike a rename, this never replaces what appeared there meanwhile
    except sqlite3.Error as error:
        raise DataError(f"{url.database}: cannot be copied to {to} ({error})") from None
    except OSError as error:
        raise TrueupError(f"{to}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)
    return f"{to}: {events} events, {to.stat().st_size / 1e6:.1f} MB, checked (quick_check ok)"


def _count_events(db: sqlite3.Connection) -> int:
    [count] = db.execute("SELECT count(*) FROM event").fetchone()
    return int(count)
