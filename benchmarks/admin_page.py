"""How long an admin waits for the page of a campaign with a million label events.

    python benchmarks/admin_page.py                1,000,000 events, 100 annotators, three labels a pair
    python benchmarks/admin_page.py --events 100000
    python benchmarks/admin_page.py --database postgresql+psycopg://USER@HOST:PORT

Makes a store by bulk insert, then asks the real HTTP route for the page: cold (the first answer, and how long until
everything is read in the background), once as in the first seconds after the start and once with the libraries loaded,
as the server does after three seconds; then thirty times warm, every five seconds as the page does, with 25 new events
before each. On SQLite; with `--database` on a PostgreSQL server, in a database of its own that is dropped.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from labelling import database, hardware
from ui.figures.agreement import load_libraries
from ui.figures.live import Live
from ui.labels.tables import Database
from ui.pages.admin_api import admin_api
from ui.people.accounts import LOCAL

ANNOTATORS, PER_ITEM, GOLD, FRESH, WARM, EVERY_S = 100, 3, 200, 25, 30, 5
START = datetime(2026, 1, 5, tzinfo=UTC)
EVENT = (
    "event_id client_uuid item_id annotator kind purpose tiers strength both_bad first_shown words seconds "
    "chose_longer supersedes created_utc source device"
)
Rows = Iterable[tuple[Any, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--database", metavar="URL", help="a PostgreSQL server; without it, SQLite")
    options = parser.parse_args()
    total = options.events
    with database(options) as url:
        store = Database(url)
        rng = np.random.default_rng(0)
        started = time.perf_counter()
        fill(store, total, rng)
        store.count_rows()
        print(f"made {total:,} events in {time.perf_counter() - started:.1f} s")

        cold("in the first seconds after the start", Live(store), total)
        load_libraries()
        live = Live(store)
        cold("later", live, total)
        report("warm: one page, 25 new events before each", warm(TestClient(application(live)), store, total, rng))
        mine = live.figures(wait=True)["as_of"]
        assert mine["event"] == mine["newest"] == total + WARM * FRESH, mine
        store.close()
    print(f"{hardware(options)}, numpy {np.__version__}")


URL = "/api/v1/admin/summary.html"


def application(live: Live) -> FastAPI:
    """The admin's API with somebody at this machine signed in."""
    app = FastAPI()

    @app.middleware("http")
    async def sign_in(request: Request, call_next):  # type: ignore[no-untyped-def]
        request.state.person = LOCAL
        return await call_next(request)

    app.include_router(admin_api(live))
    return app


def cold(when: str, live: Live, total: int) -> None:
    """The first page of a server that has read nothing yet."""
    client, before, started = TestClient(application(live)), rss(), time.perf_counter()
    first = client.get(URL)
    print(f"cold, {when}: first answer after {time.perf_counter() - started:.2f} s")
    assert first.status_code == 200, first.text
    while live.figures()["as_of"]["event"] < total:
        time.sleep(0.02)
    print(f"  all events read after {time.perf_counter() - started:.2f} s, {rss() - before:,.0f} MB more memory")


def warm(client: TestClient, store: Database, total: int, rng: np.random.Generator) -> list[float]:
    """Seconds that each page took."""
    taken: list[float] = []
    behind = 0
    for number in range(WARM):
        add(store, total + 1 + number * FRESH, FRESH, rng, total // PER_ITEM + GOLD)
        time.sleep(EVERY_S)
        started = time.perf_counter()
        answer = client.get(URL)
        taken.append(time.perf_counter() - started)
        assert answer.status_code == 200, answer.text
        behind += "reading: as of event" in answer.text
    print(f"warm: {behind} of {WARM} pages were a moment behind the newest events, and said so")
    return taken


# ---- A campaign as it would be ----------------------------------------------------------------------------------


def fill(store: Database, total: int, rng: np.random.Generator) -> None:
    """A store of `total` events: labels with ties and grades, skips, flags, undos, gold items, repeats."""
    items = total // PER_ITEM + GOLD
    insert(
        store,
        "item",
        "item_id prompt_id prompt split completions sampler created_utc",
        ((name(i), name(i), "[]", "train", "[]", "{}", "") for i in range(items)),
    )
    insert(
        store,
        "gold",
        "item_id tiers use position",
        ((name(items - 1 - i), json.dumps([[i % 2], [1 - i % 2]]), "check", i) for i in range(GOLD)),
    )
    insert(
        store,
        "slot",
        "item_id slot_no position selection propensity state annotator",
        (
            (name(i), n, i, "random", 1.0, *(("open", None) if i % 10 == 0 else ("filled", annotator(3 * i + n))))
            for i in range(items - GOLD)
            for n in range(PER_ITEM)
        ),
    )
    for first in range(1, total + 1, 100_000):
        add(store, first, min(100_000, total + 1 - first), rng, items)


def insert(store: Database, table: str, columns: str, rows: Rows) -> None:
    """Into one table, by what the driver has for many rows."""
    named, marks = ", ".join(columns.split()), ", ".join("?" for _ in columns.split())
    with store.write() as db:
        cursor: Any = db.connection.cursor()  # SQLite's takes rows one by one, psycopg's has `copy`
        if store.is_sqlite:
            cursor.executemany(f"INSERT INTO {table} ({named}) VALUES ({marks})", rows)
        else:
            with cursor.copy(f"COPY {table} ({named}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)


def add(store: Database, first: int, number: int, rng: np.random.Generator, items: int) -> None:
    """`number` events from id `first` on."""
    draws = rng.random((number, 8))
    seconds, words = rng.lognormal(3.0, 0.7, number), rng.integers(60, 500, number)
    rows: list[tuple[Any, ...]] = []
    for at in range(number):
        event_id, u = first + at, draws[at].tolist()
        item_no = (event_id // PER_ITEM) % (items - GOLD)
        kind, purpose = "label", "work"
        tiers: str | None = json.dumps([[0], [1]])
        supersedes: int | None = None
        if u[0] < 0.02:
            kind, tiers = ("skip" if u[0] < 0.015 else "flag"), None
        elif u[0] < 0.03 and at:
            kind, tiers, supersedes = "undo", None, event_id - 1
            if rows[-1][4] == "undo":
                kind, supersedes = "skip", None
        elif u[0] < 0.07:
            purpose, item_no = "gold", items - 1 - int(u[1] * GOLD)
        elif u[0] < 0.11 and event_id > 6000:
            purpose, item_no = "repeat", (item_no - 1000) % (items - GOLD)
        if tiers is not None:
            tiers = "[[0, 1]]" if u[2] < 0.12 else "[[0], [1]]" if (u[3] < 0.7) == (item_no % 2 == 0) else "[[1], [0]]"
        strict = tiers is not None and tiers != "[[0, 1]]"
        strength = 1 + int(u[4] * 3) if strict else None
        longer, bad = (int(u[5] < 0.6) if strict else None), int(not strict and tiers is not None and u[5] < 0.3)
        made = (START + timedelta(seconds=event_id * 3)).isoformat(timespec="milliseconds")
        who = annotator(item_no * 37 + event_id % PER_ITEM * (1 + item_no % 33))
        head = (event_id, f"uuid-{event_id}", name(item_no), who, kind, purpose, tiers, strength, bad)
        tail = (int(u[6] < 0.5), int(words[at]), float(seconds[at]), longer, supersedes, made, "human", "key")
        rows.append((*head, *tail))
    insert(store, "event", EVENT, rows)


def name(number: int) -> str:
    return f"{number:032x}"


def annotator(number: int) -> str:
    return f"annotator-{number % ANNOTATORS:06x}"  # three of an item are three different ones


# ---- Figures ----------------------------------------------------------------------------------------------------


def report(what: str, seconds: list[float]) -> None:
    p50, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    print(f"{what}: p50 {1000 * p50:,.0f} ms, p95 {1000 * p95:,.0f} ms, max {1000 * max(seconds):,.0f} ms")


def rss() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
