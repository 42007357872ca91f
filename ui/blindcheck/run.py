"""The check that nothing in a labelling browser reveals where an answer came from.

It labels a copy of the store to its end like an annotator, over HTTP or in a real browser. It records every byte that
the server sends, headers and event streams too, and searches it for identifiers of an answer or another person. The
campaign's own store is only read.

Four rules:
1. No identifier occurs: hashes, paths and names of models and runs, sampling values, ids, log-probabilities, token ids,
   ids of earlier labels, other people's names.
2. A task has its token and texts and no other key, and no key of the API's responses is a name of provenance.
3. The order on the screen does not depend on the order in the store.
4. Hidden checks stay hidden: the responses to a label, to its undo, and to a look at one's own figures after it are the
   same for work, gold items and repeats in status, headers, keys, counters and figures.

An identifier in the texts themselves (an answer that names its model) is necessarily visible: it is searched for around
the texts, and the report counts it.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa

from trueup.errors import DataError, TrueupError
from ui.blindcheck.annotator import in_chromium, over_http, serving
from ui.blindcheck.secrets import (
    ANSWER_KEYS,
    PROVENANCE_KEYS,
    TASK_KEYS,
    Hit,
    Recorder,
    Response,
    Search,
    Secret,
    Tells,
    keys_of,
    leaves_of,
    secrets_of,
    without_texts,
)
from ui.labels.config import LabelConfig
from ui.labels.tables import Database, item, metadata, slot, view

SHOWN_HITS = 20


class Report:
    """Checks the responses one by one, and counts."""

    def __init__(self, secrets: list[Secret], texts: Iterable[str]):
        self.words = {secret.text: secret for secret in secrets if secret.text.isalpha() or len(secret.text) < 4}
        secrets = [secret for secret in secrets if secret.text not in self.words]
        text = "\n".join(texts)
        secrets_in_texts = {secret for _, secret in Search(secrets)(text)}
        self.search = Search(secret for secret in secrets if secret not in secrets_in_texts)
        self.around = Search(secrets_in_texts)
        self.named = Counter(secret.what for secret in secrets_in_texts)
        self.secrets = len(secrets) + len(self.words)
        self.hits: dict[Hit, None] = {}
        self.bytes = 0
        self.responses = 0
        self._same: set[int] = set()

    def check(self, response: Response) -> None:
        """Search one response. The same file is searched once."""
        headers = b"\n".join(b": ".join(pair) for pair in response.headers)
        self.responses += 1
        self.bytes += len(headers) + len(response.body)
        for part, raw in (("headers", headers), ("body", bytes(response.body))):
            if (digest := hash((response.where, raw))) in self._same:
                continue
            self._same.add(digest)
            text = raw.decode("utf-8", "replace")
            for search in (self.search, self.around) if part == "headers" else (self.search,):
                self._find(search, text, f"{response.where} {part}")
        path = response.where.partition(" ")[2]
        if "application/json" in response.kind and path.startswith("/api/") and not path.endswith("openapi.json"):
            self._check_json(response)

    def _find(self, search: Search, text: str, where: str) -> None:
        for start, secret in search(text):
            excerpt = text[max(0, start - 40) : start + len(secret.text) + 40].replace("\n", " ")
            self.hit(where, secret.what, excerpt)

    def _check_json(self, response: Response) -> None:
        where = f"{response.where} body"
        try:
            value = json.loads(bytes(response.body))
        except ValueError:
            return self.hit(
                where, "not the JSON that its header says", bytes(response.body[:60]).decode("utf-8", "replace")
            )
        around = without_texts(value)
        self._find(self.around, json.dumps(around, ensure_ascii=False), where)
        for key, inner in leaves_of(around):
            if isinstance(inner, str) and inner in self.words:
                self.hit(where, self.words[inner].what, f"{key}: {inner}")
        for key in keys_of(value):
            if key.lower() in PROVENANCE_KEYS:
                self.hit(where, "a key that names provenance", key)
        tasks = value.get("tasks") if isinstance(value, dict) else None
        for task in tasks if isinstance(tasks, list) else []:
            if more := set(task) - TASK_KEYS:
                self.hit(where, "a task has more than its token and texts", ", ".join(sorted(more)))
            for answer in task["answers"]:
                if more := set(answer) - ANSWER_KEYS:
                    self.hit(where, "an answer has more than its text", ", ".join(sorted(more)))

    def hit(self, where: str, what: str, excerpt: str) -> None:
        self.hits[Hit(where, what, excerpt)] = None


def order_says(same: int, pairs: int) -> str | None:
    """A finding, if `same` of `pairs` pairs were shown as in the store, five deviations away from a fair coin."""
    if abs(2 * same - pairs) <= 5 * pairs**0.5:
        return None
    return f"{same} of {pairs} pairs were shown in the order of the store"


# ---- A campaign to its end --------------------------------------------------------------------------------------


def blindcheck(
    config: LabelConfig, *, browser: bool = False, make_app: Callable[[LabelConfig], Any] | None = None
) -> tuple[str, bool]:
    """Label a copy of the campaign to its end and search all that was sent: the report, and whether it is clean.

    It works over HTTP, with every route of the pages and some that they never use; or with `browser` by the keys of a
    real Chromium (Playwright). `make_app` builds the application in place of `ui.app.label_app`.
    """
    from ui.app import label_app
    from ui.people.accounts import COOKIE, People

    with tempfile.TemporaryDirectory(prefix="trueup-blindcheck-") as folder:
        url = f"sqlite:///{Path(folder) / 'labels.sqlite'}"
        copy_store(config.store_url, url)
        app = (make_app or label_app)(config.model_copy(update={"store": url}))
        people: People = app.state.people
        store = people.store
        try:
            # It has its own account: the person at this machine is an admin, and may see everything.
            me = people.add(f"blindcheck {uuid.uuid4().hex[:8]}", "annotator", uuid.uuid4().hex)
            account_id = next(one.account_id for one in people.accounts() if one.pseudonym == me.pseudonym)
            with store.write() as db:  # this annotator gets every item, whatever was answered in the campaign
                db.execute(slot.update().values(state="open", annotator=None, expires_at=None))
            secrets = secrets_of(config, store, me.pseudonym)
            with store.read() as db:
                report = Report(secrets, _texts(db, config))
            recorder, tells = Recorder(app), Tells()

            def drain() -> None:
                while recorder.finished:
                    report.check(recorder.finished.popleft())

            with serving(recorder) as address:
                label = in_chromium if browser else over_http
                label(address, COOKIE, people.open_session(account_id), app, drain, tells)
            drain()
            for response in recorder.open:
                report.check(response)
            same, pairs, tasks = _orders(store, me.pseudonym)
        finally:
            store.close()
    if tasks == 0:
        raise TrueupError("nothing was labelled: the campaign needs no label; `trueup status CONFIG` says more")
    if finding := order_says(same, pairs):
        report.hit("tasks", "the order on the screen follows the order in the store", finding)
    for feature, how in tells.findings():
        report.hit(feature, "tells hidden checks from work", how)
    return _text(report, tells, tasks, browser), not report.hits


def _text(report: Report, tells: Tells, tasks: int, browser: bool) -> str:
    how = "in Chromium" if browser else "over HTTP"
    lines = [
        f"{tasks} tasks labelled {how} on a copy of the store; {report.responses} responses, {report.bytes:,} bytes, "
        f"searched for {report.secrets:,} identifiers"
    ]
    if report.named:
        counts_in_texts = ", ".join(f"{number} {what}" for what, number in report.named.items())
        lines.append(f"in the texts themselves, which people have to read: {counts_in_texts}")
    if compared := {purpose: len(seconds) for purpose, seconds in sorted(tells.seconds.items())}:
        counts = ", ".join(f"{number} {purpose}" for purpose, number in compared.items())
        times = ", ".join(f"{purpose} {1000 * median(tells.seconds[purpose]):.1f} ms" for purpose in compared)
        lines.append(f"compared after each label and after its undo: {counts}; median time of a response: {times}")
    hits = list(report.hits)
    lines.append(f"{len(hits)} hits" if hits else "0 hits: nothing reveals where an answer came from")
    lines += [f"  {hit.where}: {hit.what}: {hit.excerpt}" for hit in hits[:SHOWN_HITS]]
    lines += [f"  ... and {len(hits) - SHOWN_HITS} more"] if len(hits) > SHOWN_HITS else []
    return "\n".join(lines)


def copy_store(source: str | sa.URL, target: str | sa.URL) -> None:
    """All rows of the store at `source` in a new SQLite store; the source is only read."""
    parsed = sa.make_url(source)
    into = Path(str(sa.make_url(target).database))
    if parsed.get_backend_name() == "sqlite":
        path = Path(str(parsed.database))
        if not path.is_file():
            raise DataError(f"{path}: there is no label store yet; `trueup label CONFIG` creates it")
        with closing(sqlite3.connect(path)) as have, closing(sqlite3.connect(into)) as copy:
            have.backup(copy)
        return
    have_store, copied = Database(source), Database(target)
    try:
        with have_store.read() as db, copied.write() as out:
            for table in metadata.sorted_tables:
                if table.name != "meta" and (rows := [row._asdict() for row in db.execute(_in_order(table))]):
                    out.execute(table.insert(), rows)
    finally:
        have_store.close()
        copied.close()


def _in_order(table: sa.Table) -> sa.Select[Any]:
    """Rows of the table, with referenced rows first."""
    return sa.select(table).order_by(*table.primary_key.columns)


def _texts(db: sa.Connection, config: LabelConfig) -> Iterator[str]:
    """The texts for people."""
    yield config.guideline
    for row in db.execute(sa.select(item.c.prompt, item.c.completions)):
        yield from (message["content"] for message in row.prompt)
        yield from (answer["text"] for answer in row.completions)


def _orders(store: Database, annotator: str) -> tuple[int, int, int]:
    """The number of pairs in the order of the store, of all pairs, and of all views."""
    query = sa.select(view.c.item_id, view.c.drawn, view.c.purpose).where(view.c.annotator == annotator)
    with store.read() as db:
        rows = db.execute(query.order_by(view.c.view_id)).all()
    # Only the first view of an item is drawn: a repeat has its sides swapped, and a view after an undo keeps them.
    first = {row.item_id: row.drawn for row in reversed(rows) if row.purpose != "repeat"}
    pairs = [order for order in first.values() if len(order) == 2]
    return sum(order == [0, 1] for order in pairs), len(pairs), len(rows)
