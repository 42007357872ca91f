"""Does anything that a labelling browser receives say where an answer came from?

A copy of the store is labelled to its end as an annotator does it, over HTTP or in a real browser. Every byte that the
server sends is kept, headers and event streams too, and searched for what identifies an answer or another person. The
campaign's own store is only read.

Four rules:
1. No identifier occurs: hashes, paths and names of models and runs, sampling values, ids, log-probabilities, token ids,
   ids of earlier labels, other people's names.
2. A task holds its token and texts and no other key, and no key of the API's answers is the name of provenance.
3. The order on the screen says nothing of the order in the store.
4. Hidden checks stay hidden: nothing that is answered to a label, to its undo, or to a look at one's own figures
   behind it, differs between work, gold items and repeats: no status, header, key, counter or figure.

An identifier that stands in the texts themselves (an answer that names its model) is shown to people by necessity:
it is searched for around the texts, and the report counts it.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import sqlalchemy as sa

from trueup import runs
from trueup.console import progress, say
from trueup.errors import DataError, TrueupError
from ui.answers import to_places
from ui.config import LabelConfig
from ui.tables import Database, account, event, gold, item, metadata, slot, view

TASK_KEYS = {"token", "prompt", "answers", "wants_rationale", "practice"}
ANSWER_KEYS = {"html", "text"}
PROVENANCE_KEYS = frozenset(
    "annotator candidates category checkpoint completions created_utc drawn finished first_shown item_id label_id logp "
    "logps model path policy policy_sha256 prompt_id propensity purpose reward run_dir sampled_by sampler score scores "
    "seed selection slot_id source split temperature tiers token_ids top_k top_p view_id words".split()
)
"""Names under which provenance is kept; none is a key of what the labelling API answers."""
SHOWN_HITS = 20
COMPARED = 600
"""Tasks after which it is looked up what they changed."""
_KEY = 6
"""Identifiers are found by their first characters; shorter ones are searched for as whole words."""


class Secret(NamedTuple):
    """A text that must not reach a labelling browser, and what it is."""

    text: str
    what: str


class Hit(NamedTuple):
    where: str
    what: str
    excerpt: str


# ---- What must not be sent --------------------------------------------------------------------------------------


def secrets_of(config: LabelConfig, store: Database, me: str) -> list[Secret]:
    """Everything in the campaign that identifies an answer's origin, an item, or an annotator other than `me`."""
    found: dict[str, str] = {}

    def add(value: Any, what: str) -> None:
        for text in _distinctive(value):
            found.setdefault(text, what)

    with store.read() as db:
        for row in db.execute(sa.select(item)):
            add(row.item_id, "item id")
            add(row.prompt_id, "prompt id")
            for key, value in _leaves(row.sampler):
                add(value, f"sampler {key}")
            for answer in row.completions:
                add(answer.get("logp"), "log-probability")
                add(answer["token_ids"], "token ids")
        for row in db.execute(sa.select(event.c.client_uuid, event.c.annotator)):
            add(row.client_uuid, "id of a label")
            if row.annotator != me:
                add(row.annotator, "another annotator")
        for row in db.execute(sa.select(account).where(account.c.pseudonym != me)):
            add(row.pseudonym, "another annotator")
            add(row.name, "another person's name")
    add(config.model.name, "model.name")
    for name in ("reward_model", "judge_url", "judge_model"):
        add(getattr(config, name), name)
    for folder in {config.run_dir, config.run_dir.absolute(), config.run_dir.resolve()}:
        add(str(folder), "run directory")
    for stage in runs.DIRECTORIES:
        made = runs.find_stage(config.run_dir, stage)
        if made is not None:
            add(made.sha256, f"manifest of {stage}")
            for key, value in _leaves(made.manifest.plain()):
                if key.endswith(("sha256", "git_commit", "model.name")) or str(value).startswith("/"):
                    add(value, f"{key} in the manifest of {stage}")
    return [Secret(text, what) for text, what in found.items()]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _distinctive(value: Any) -> Iterator[str]:
    """How a value would be written, where that cannot occur by chance: the 0.8 of a style sheet is no temperature."""
    if isinstance(value, list):  # token ids
        if len(", ".join(map(str, value))) >= 12:
            yield from (", ".join(map(str, value)), ",".join(map(str, value)))
    elif isinstance(value, float):
        if len(re.sub(r"e.*|\D", "", repr(abs(value))).strip("0")) >= 5:
            yield repr(abs(value))
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) >= 100_000:
            yield str(abs(value))
    elif (text := str(value).strip()).isalpha() or 0 < len(text) < 4:
        yield text  # a word may stand anywhere, and is looked for as a whole value: see Report
    elif text:
        # A path is also a URL's part, and text in JSON or HTML is escaped.
        yield from {text, quote(text), quote(text, safe=""), escape(text), json.dumps(text)[1:-1]}


class Tells:
    """What an annotator is told after answering a task, by the purpose of the task.

    Of a number it counts by how much it has changed since it was last told; of a text, whether it has.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Counter[Any]]] = {}
        """feature: purpose: how often each value."""
        self.seconds: dict[str, list[float]] = {}
        self._last: dict[tuple[bool, str], Any] = {}

    def tell(self, purpose: str, request: str, status: int, headers: Iterable[str], body: Any) -> None:
        """Count what one answer of the server told after a task of this purpose."""
        told: dict[str, Any] = {"status": status, "headers": " ".join(sorted({name.lower() for name in headers}))}
        told["keys"] = " ".join(sorted(_keys(_without_texts(body))))
        if isinstance(body, dict):
            told["tasks"] = len(body.get("tasks") or ())
            told |= {key: self._change(request, key, value) for key, value in _leaves(_without_tasks(body))}
        for key, value in told.items():
            self.counts.setdefault(f"{request}: {key}", {}).setdefault(purpose, Counter())[value] += 1

    def _change(self, request: str, key: str, value: Any) -> Any:
        kind = (request.startswith("mirror"), key)  # the counters of whatever else is answered are the same ones
        before = self._last.get(kind)
        self._last[kind] = value
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(before, int | float):
            return value if isinstance(value, bool) or value is None else (type(value).__name__, value == before)
        change = value - before
        return change if isinstance(change, int) else (change > 0) - (change < 0)

    def findings(self) -> Iterator[tuple[str, str]]:
        """Features by which a check can be told from work, each with how, where chance does not explain it."""
        tests = [
            (feature, purpose, value, by)
            for feature, by in self.counts.items()
            for purpose in sorted(by.keys() - {"work"})
            if "work" in by
            for value in sorted(by["work"].keys() | by[purpose].keys(), key=repr)
        ]
        for feature, purpose, value, by in tests:
            work, check = by["work"], by[purpose]
            p = _fisher(work[value], work.total(), check[value], check.total())
            if p * len(tests) < 1e-3:
                share = f"{value!r} after {work[value]} of {work.total()} work and {check[value]} of {check.total()}"
                yield feature, f"{share} {purpose}"


def _fisher(a: int, n: int, b: int, m: int) -> float:
    """Two-sided p of Fisher's exact test: a of n against b of m."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[a, n - a], [b, m - b]])[1])


def _without_tasks(body: dict[str, Any]) -> Any:
    """What is said beside the tasks, and beside what the label itself was."""
    return _without_texts({key: value for key, value in body.items() if key not in ("tasks", "label", "settings")})


class Search:
    """Finds many texts in one pass: by a table of their first characters."""

    def __init__(self, secrets: Iterable[Secret]):
        self.by_start: dict[str, list[Secret]] = {}
        self.short: list[tuple[re.Pattern[str], Secret]] = []
        for secret in secrets:
            if len(secret.text) >= _KEY:
                self.by_start.setdefault(secret.text[:_KEY], []).append(secret)
            else:
                self.short.append((re.compile(rf"(?<![\w.]){re.escape(secret.text)}(?![\w])"), secret))

    def __call__(self, text: str) -> Iterator[tuple[int, Secret]]:
        for start in range(len(text) - _KEY + 1):
            for secret in self.by_start.get(text[start : start + _KEY], ()):
                if text.startswith(secret.text, start):
                    yield start, secret
        for pattern, secret in self.short:
            for match in pattern.finditer(text):
                yield match.start(), secret


# ---- What was sent ----------------------------------------------------------------------------------------------


@dataclass
class Response:
    """What the server sent for one request (of an event stream or a web socket: all of it)."""

    where: str
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    @property
    def kind(self) -> str:
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == b"content-type"), "")


class Recorder:
    """ASGI middleware around everything else: keeps every byte that leaves the application."""

    def __init__(self, app: Any):
        self.app = app
        self.open: list[Response] = []
        """Event streams stay open until the end."""
        self.finished: deque[Response] = deque()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[[Any], Any]) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        response = Response(f"{scope.get('method', 'SOCKET')} {scope['path']}")
        self.open.append(response)
        # Compressed bytes could not be searched.
        plain = [(key, value) for key, value in scope["headers"] if key.lower() != b"accept-encoding"]

        async def record(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                response.status = message["status"]
                response.headers += message.get("headers", [])
            response.headers += message.get("headers", []) if message["type"] == "websocket.accept" else []
            for key in ("body", "bytes", "text", "reason"):
                if value := message.get(key):
                    response.body += value.encode() if isinstance(value, str) else value
            await send(message)

        try:
            await self.app({**scope, "headers": plain}, receive, record)
        finally:
            self.open.remove(response)
            self.finished.append(response)


class Report:
    """Checks what was sent, a response at a time, and counts."""

    def __init__(self, secrets: list[Secret], texts: Iterable[str]):
        self.words = {secret.text: secret for secret in secrets if secret.text.isalpha() or len(secret.text) < 4}
        secrets = [secret for secret in secrets if secret.text not in self.words]
        shown = "\n".join(texts)
        named = {secret for _, secret in Search(secrets)(shown)}
        self.search = Search(secret for secret in secrets if secret not in named)
        self.around = Search(named)
        self.named = Counter(secret.what for secret in named)
        self.secrets = len(secrets) + len(self.words)
        self.hits: dict[Hit, None] = {}
        self.bytes = 0
        self.responses = 0
        self._same: set[int] = set()

    def check(self, response: Response) -> None:
        """Search one response; the same file served again is searched once."""
        headers = b"\n".join(b": ".join(pair) for pair in response.headers)
        self.responses += 1
        self.bytes += len(headers) + len(response.body)
        for part, raw in (("headers", headers), ("body", bytes(response.body))):
            if (seen := hash((response.where, raw))) in self._same:
                continue
            self._same.add(seen)
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
        around = _without_texts(value)
        self._find(self.around, json.dumps(around, ensure_ascii=False), where)
        for key, inner in _leaves(around):
            if isinstance(inner, str) and inner in self.words:
                self.hit(where, self.words[inner].what, f"{key}: {inner}")
        for key in _keys(value):
            if key.lower() in PROVENANCE_KEYS:
                self.hit(where, "a key that names provenance", key)
        tasks = value.get("tasks") if isinstance(value, dict) else None
        for task in tasks if isinstance(tasks, list) else []:
            if more := set(task) - TASK_KEYS:
                self.hit(where, "a task holds more than its token and texts", ", ".join(sorted(more)))
            for answer in task["answers"]:
                if more := set(answer) - ANSWER_KEYS:
                    self.hit(where, "an answer holds more than its text", ", ".join(sorted(more)))

    def hit(self, where: str, what: str, excerpt: str) -> None:
        self.hits[Hit(where, what, excerpt)] = None


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _without_texts(value: Any) -> Any:
    """An API answer without what people are meant to read."""
    texts = ("html", "text", "prompt", "guideline_html", "guideline_line", "explanation")
    if isinstance(value, dict):
        return {key: _without_texts(inner) for key, inner in value.items() if key not in texts}
    return [_without_texts(inner) for inner in value] if isinstance(value, list) else value


def order_says(same: int, pairs: int) -> str | None:
    """Of `pairs` shown, `same` stood as in the store: a finding where that is five deviations from a fair coin."""
    if abs(2 * same - pairs) <= 5 * pairs**0.5:
        return None
    return f"{same} of {pairs} pairs were shown in the order of the store"


# ---- A campaign to its end --------------------------------------------------------------------------------------


def blindcheck(
    config: LabelConfig, *, browser: bool = False, make_app: Callable[[LabelConfig], Any] | None = None
) -> tuple[str, bool]:
    """Label a copy of the campaign to its end and search all that was sent: the report, and whether it is clean.

    Over HTTP, with every route that the pages use and some that they never would; or with `browser` by the keys of a
    real Chromium (Playwright). `make_app` builds the application in place of `ui.app.label_app`.
    """
    from ui.accounts import COOKIE, People
    from ui.app import label_app

    with tempfile.TemporaryDirectory(prefix="trueup-blindcheck-") as folder:
        url = f"sqlite:///{Path(folder) / 'labels.sqlite'}"
        copy_store(config.store_url, url)
        app = (make_app or label_app)(config.model_copy(update={"store": url}))
        people: People = app.state.people
        store = people.store
        try:
            # An account of its own: the person at this machine is an admin, and may see everything.
            me = people.add(f"blindcheck {uuid.uuid4().hex[:8]}", "annotator", uuid.uuid4().hex)
            account_id = next(one.account_id for one in people.accounts() if one.pseudonym == me.pseudonym)
            with store.write() as db:  # whatever is answered in the campaign: this annotator is given every item
                db.execute(slot.update().values(state="open", annotator=None, expires_at=None))
            secrets = secrets_of(config, store, me.pseudonym)
            with store.read() as db:
                report = Report(secrets, _texts(db, config))
            recorder, tells = Recorder(app), Tells()

            def drain() -> None:
                while recorder.finished:
                    report.check(recorder.finished.popleft())

            with _served(recorder) as address:
                label = _in_chromium if browser else _over_http
                label(address, COOKIE, people.open_session(account_id), app, drain, tells)
            drain()
            for response in recorder.open:
                report.check(response)
            same, pairs, shown = _orders(store, me.pseudonym)
        finally:
            store.close()
    if shown == 0:
        raise TrueupError("nothing was labelled: the campaign asks for no label; `trueup status CONFIG` says more")
    if said := order_says(same, pairs):
        report.hit("tasks", "the order on the screen follows the order in the store", said)
    for feature, how in tells.findings():
        report.hit(feature, "tells hidden checks from work", how)
    return _text(report, tells, shown, browser), not report.hits


def _text(report: Report, tells: Tells, shown: int, browser: bool) -> str:
    how = "in Chromium" if browser else "over HTTP"
    lines = [
        f"{shown} tasks labelled {how} on a copy of the store; {report.responses} responses, {report.bytes:,} bytes, "
        f"searched for {report.secrets:,} identifiers"
    ]
    if report.named:
        named = ", ".join(f"{number} {what}" for what, number in report.named.items())
        lines.append(f"in the texts themselves, which people have to read: {named}")
    if compared := {purpose: len(seconds) for purpose, seconds in sorted(tells.seconds.items())}:
        counts = ", ".join(f"{number} {purpose}" for purpose, number in compared.items())
        times = ", ".join(f"{purpose} {1000 * median(tells.seconds[purpose]):.1f} ms" for purpose in compared)
        lines.append(f"compared after each label and after its undo: {counts}; median time of an answer: {times}")
    hits = list(report.hits)
    lines.append(f"{len(hits)} hits" if hits else "0 hits: nothing tells where an answer came from")
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
            raise DataError(f"{path}: there is no label store yet; `trueup label CONFIG` makes it")
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
    """Rows of the table, those that others name first."""
    return sa.select(table).order_by(*table.primary_key.columns)


def _texts(db: sa.Connection, config: LabelConfig) -> Iterator[str]:
    """What people are meant to read."""
    yield config.guideline
    for row in db.execute(sa.select(item.c.prompt, item.c.completions)):
        yield from (message["content"] for message in row.prompt)
        yield from (answer["text"] for answer in row.completions)


def _orders(store: Database, annotator: str) -> tuple[int, int, int]:
    """Of the pairs shown: how many in the order of the store, how many there were; and of all views, how many."""
    query = sa.select(view.c.item_id, view.c.drawn, view.c.purpose).where(view.c.annotator == annotator)
    with store.read() as db:
        shown = db.execute(query.order_by(view.c.view_id)).all()
    # Drawn is the first view of an item: a repeat has its sides swapped, and an undone one has those that it had.
    first = {row.item_id: row.drawn for row in reversed(shown) if row.purpose != "repeat"}
    pairs = [drawn for drawn in first.values() if len(drawn) == 2]
    return sum(drawn == [0, 1] for drawn in pairs), len(pairs), len(shown)


@contextmanager
def _served(app: Any) -> Iterator[str]:
    """The application on a free port of this machine; gives its address."""
    from ui.app import listen
    from ui.connections import server

    bound = listen("127.0.0.1", 0)
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not running.started:
            if not thread.is_alive():
                raise TrueupError("the application did not start; `trueup label CONFIG` says why")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)


# ---- An annotator over HTTP -------------------------------------------------------------------------------------

GRADED = ("a_much", "b_slightly", "tie", "b", "a_slightly", "a", "b_much", "both_bad")
PLAIN = ("a", "b", "tie", "both_bad")
PAGES = ("/", "/label", "/label/", "/compare/", "/admin", "/admin/", "/reports/sample", "/login", "/enter", "/invite")


def _over_http(address: str, cookie: str, session: str, app: Any, drain: Callable[[], None], tells: Tells) -> None:
    """Everything that the labelling page asks for, and some things that it never would."""
    import httpx

    timeout = httpx.Timeout(60, read=10)
    with (
        httpx.Client(base_url=address, cookies={cookie: session}, timeout=timeout) as me,
        httpx.Client(base_url=address, timeout=timeout) as stranger,
    ):
        _open_pages(me, stranger, _paths(app), drain)
        annotator = _Annotator(me, app.state.people.store, tells)
        annotator.make_mistakes()
        annotator.label_everything(drain)


def _paths(app: Any) -> list[str]:
    """All routes that can be read and need no parameter, with those of routers and of what is mounted."""
    found = []
    for route in app.routes:
        if (router := getattr(route, "original_router", None)) is not None:  # as FastAPI keeps an included one
            found += _paths(router)
        elif getattr(getattr(route, "app", None), "routes", None) is not None:
            found += [route.path + path for path in _paths(route.app)]
        elif "GET" in (getattr(route, "methods", None) or ()) and "{" not in route.path:
            found.append(route.path)
    return [path for path in found if "logout" not in path]


def _open_pages(me: Any, stranger: Any, paths: Iterable[str], drain: Callable[[], None]) -> None:
    """Every page, with all that it links to, as the annotator and as nobody."""
    import httpx

    waiting, seen = [*PAGES, *paths], set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for client in (me, stranger):
            try:
                got = client.get(path, headers={"Accept": "text/html, */*"})
            except httpx.ReadTimeout:  # an event stream: what it sent is kept
                continue
            if client is me and "html" in got.headers.get("content-type", ""):
                links = re.findall(r"""(?:href|src)=["']([^"'#]+)""", got.text)
                here = [urlsplit(urljoin(str(got.url), link)) for link in links]
                same = [link.path for link in here if link.netloc == got.url.netloc.decode()]
                waiting += [link for link in same if "logout" not in link]
        drain()


class _Annotator:
    """Labels over the API, with every choice, undo, skip, flag and repeated request in turn."""

    def __init__(self, http: Any, store: Database, tells: Tells):
        self.http, self.store, self.tells = http, store, tells
        self.number = 0

    def make_mistakes(self) -> None:
        """What is refused tells nothing either."""
        tasks = self.ask("GET", "/api/v1/tasks")["tasks"]
        token = tasks[0]["token"] if tasks else "none"
        for body in (
            {"client_uuid": _uuid(), "token": "not-a-token", "choice": "tie"},
            {"client_uuid": _uuid(), "token": token, "choice": "c"},
            {"client_uuid": _uuid(), "token": token, "order": [[0], [0]]},
            {"client_uuid": "x", "token": token},
        ):
            self.http.post("/api/v1/labels", json=body)
        self.http.post("/api/v1/labels", content=b"{")
        self.http.post("/api/v1/undo", json={"client_uuid": _uuid()}, headers={"Origin": "http://example.org"})
        self.http.post("/api/v1/undo", json={"client_uuid": _uuid()})  # before there is anything to undo
        self.http.get("/api/v1/admin/statistics")
        self.http.get("/api/v1/nowhere")

    def label_everything(self, drain: Callable[[], None]) -> None:
        shown = self.ask("GET", "/api/v1/tasks")
        answers: Counter[str] = Counter()
        while shown["tasks"]:
            task = shown["tasks"][0]
            self.number += 1
            answers[task["token"]] += 1
            purpose = self.purpose(task["token"])
            if answers[task["token"]] > 3:
                raise TrueupError(f"task {task['token']} comes back whatever is answered")
            shown |= self.answer(task, shown["settings"], purpose)
            drain()
            progress(self.number, self.number + len(shown["tasks"]) + shown["progress"]["left"])
        self.ask("GET", "/api/v1/tasks")
        self.http.get("/api/v1/mirror")

    def purpose(self, token: str) -> str:
        """What the store says that the task is for."""
        with self.store.read() as db:
            return str(db.scalar(sa.select(view.c.purpose).where(view.c.token == token)))

    def told(self, purpose: str, request: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Ask, and count what is answered by the purpose of the task that was answered."""
        began = time.perf_counter()
        value = self.ask(method, path, body)
        if purpose != "qualification" and self.number <= COMPARED:
            if request.startswith("label"):
                self.tells.seconds.setdefault(purpose, []).append(time.perf_counter() - began)
            self.tells.tell(purpose, request, self.last.status_code, getattr(self.last, "headers", ()), value)
        return value

    def look(self, purpose: str, after: str) -> None:
        """What can be looked up after an answer."""
        if self.number <= COMPARED:
            self.told(purpose, f"tasks after {after}", "GET", "/api/v1/tasks")
            self.told(purpose, f"mirror after {after}", "GET", "/api/v1/mirror")

    def answer(self, task: dict[str, Any], settings: dict[str, Any], purpose: str = "work") -> dict[str, Any]:
        body = {"client_uuid": _uuid(), "token": task["token"], "note": "Because.", "seconds": 9.5}
        body |= self.right(task) if task["practice"] else self.choice(task, settings)
        if self.number % 5 == 1 and not task["practice"]:
            text = {"client_uuid": _uuid(), "token": task["token"], "text": "A better answer."}
            self.ask("POST", "/api/v1/demonstrations", text)
        if self.number % 4 == 1:
            self.ask("POST", "/api/v1/heartbeat", {})
            self.http.get("/api/v1/mirror")
        what = body["choice"] if body.get("choice") in ("skip", "flag") else "label"
        shown = self.told(purpose, f"label, {what}", "POST", "/api/v1/labels", body)
        self.look(purpose, what)
        if self.number % 3 == 2 and not task["practice"]:
            self.ask("POST", "/api/v1/labels", body)  # sent twice
            shown = self.told(purpose, f"undo of {what}", "POST", "/api/v1/undo", {"client_uuid": _uuid()})
            self.look(purpose, f"undo of {what}")
        return shown

    def choice(self, task: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        if self.number % 11 in (3, 6):
            return {"choice": "skip" if self.number % 11 == 3 else "flag"}
        if (places := len(task["answers"])) > 2:
            order = [[place] for place in range(places)]
            return {"order": [order[0] + order[1], *order[2:]] if self.number % 3 == 0 else order}
        choices = GRADED if settings["scale"] == "graded" else PLAIN
        criteria = {"criteria": {name: "tie" for name in settings["criteria"]}} if settings["criteria"] else {}
        return {"choice": choices[self.number % len(choices)], **criteria}

    def right(self, task: dict[str, Any]) -> dict[str, Any]:
        """The known answer of a practice item, as only this check can look it up, so that the round is passed."""
        query = sa.select(view.c.drawn, gold.c.tiers).join(gold, gold.c.item_id == view.c.item_id)
        with self.store.read() as db:
            known = db.execute(query.where(view.c.token == task["token"])).one()
        places = to_places(known.tiers, known.drawn)
        if len(known.drawn) > 2:
            return {"order": places}
        return {"choice": "tie" if len(places) == 1 else "ab"[places[0][0]]}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        got = self.last = self.http.request(method, path, json=body)
        if got.status_code != 200:
            raise TrueupError(f"{method} {path}: {got.status_code} {got.text[:200]}")
        value: dict[str, Any] = got.json()
        return value


def _uuid() -> str:
    return str(uuid.uuid4())


# ---- An annotator in a real browser -----------------------------------------------------------------------------

SETTLED_MS = 600
"""After a pair is painted: the page takes no key that was meant for the last one."""
KEYS = {"graded": "1234567", "plain": "12t"}


def _in_chromium(address: str, cookie: str, session: str, app: Any, drain: Callable[[], None], tells: Tells) -> None:
    """Label in a real Chromium: plain pairs by their keys, whatever needs more by the page's own requests."""
    try:
        from playwright.sync_api import TimeoutError as NoResponse
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise TrueupError(
            "a browser is driven by Playwright, which is not installed: pip install -e '.[browser]'"
        ) from None
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise TrueupError("no Chromium is installed (chromium, chromium-browser or google-chrome); leave out --browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = chromium.new_context(base_url=address)
        context.add_cookies([{"name": cookie, "value": session, "url": address}])
        page = context.new_page()
        for other in (*PAGES, "/label"):
            page.goto(other)
        annotator = _Annotator(_InPage(page), app.state.people.store, tells)
        annotator.make_mistakes()
        pressed, open_ = 0, False
        shown = annotator.ask("GET", "/api/v1/tasks")
        while shown["tasks"]:
            task, settings = shown["tasks"][0], shown["settings"]
            annotator.number += 1
            if len(task["answers"]) > 2 or task["practice"] or task["wants_rationale"] or settings["criteria"]:
                shown |= annotator.answer(task, settings, annotator.purpose(task["token"]))
                open_ = False
            else:
                if not open_:
                    with page.expect_response("**/api/v1/tasks"):
                        page.goto("/label")
                    open_ = True
                keys = KEYS[settings["scale"]]
                page.wait_for_timeout(SETTLED_MS)
                try:
                    with page.expect_response("**/api/v1/labels", timeout=15_000) as answered:
                        page.keyboard.press(keys[annotator.number % len(keys)])
                except NoResponse:
                    raise TrueupError(f"the labelling page sent no label when a key was pressed ({page.url})") from None
                shown |= answered.value.json()
                pressed += 1
            drain()
        by_page = annotator.number - pressed
        say(f"Chromium {chromium.version}: {pressed} labels by a key, {by_page} by requests of the page")
        chromium.close()


class _InPage:
    """Requests that the page in the browser makes; what `_Annotator` needs of an HTTP client."""

    def __init__(self, page: Any):
        self.page = page

    def request(self, method: str, path: str, json: Any = None) -> _Got:
        script = """async ([method, path, body]) => {
            const headers = { "Content-Type": "application/json" };
            const got = await fetch(path, { method, headers, body: body === null ? undefined : JSON.stringify(body) });
            return [got.status, await got.text()];
        }"""
        return _Got(*self.page.evaluate(script, [method, path, json]))

    def get(self, path: str) -> _Got:
        return self.request("GET", path)

    def post(self, path: str, json: Any = None, **_: Any) -> _Got:
        return self.request("POST", path, json)


class _Got(NamedTuple):
    status_code: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)
