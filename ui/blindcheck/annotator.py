"""An annotator that labels a copy of the store to its end, over HTTP or in Chromium."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import sqlalchemy as sa

from trueup.console import progress, say
from trueup.errors import TrueupError
from ui.blindcheck.secrets import COMPARED, Tells
from ui.labels.judgements import to_places
from ui.labels.tables import Database, gold, view


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve the application on a free port of this machine; the value is its address."""
    from ui.app import listen
    from ui.people.connections import server

    bound = listen("127.0.0.1", 0)
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not running.started:
            if not thread.is_alive():
                raise TrueupError("the application did not start; the labelling page, opened by itself, says why")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)


# ---- An annotator over HTTP -------------------------------------------------------------------------------------

GRADED = ("a_much", "b_slightly", "tie", "b", "a_slightly", "a", "b_much", "both_bad")
PLAIN = ("a", "b", "tie", "both_bad")
PAGES = ("/", "/label", "/label/", "/compare/", "/admin", "/admin/", "/reports/sample", "/login", "/enter", "/invite")


def over_http(address: str, cookie: str, session: str, app: Any, drain: Callable[[], None], tells: Tells) -> None:
    """Make all requests of the labelling page, and some that it never makes."""
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
    """All routes that can be read without a parameter, with those of routers and mounted applications."""
    paths = []
    for route in app.routes:
        if (router := getattr(route, "original_router", None)) is not None:  # as FastAPI keeps an included one
            paths += _paths(router)
        elif getattr(getattr(route, "app", None), "routes", None) is not None:
            paths += [route.path + path for path in _paths(route.app)]
        elif "GET" in (getattr(route, "methods", None) or ()) and "{" not in route.path:
            paths.append(route.path)
    return [path for path in paths if "logout" not in path]


def _open_pages(me: Any, stranger: Any, paths: Iterable[str], drain: Callable[[], None]) -> None:
    """Open every page, with all its links, as the annotator and as a stranger."""
    import httpx

    waiting, opened = [*PAGES, *paths], set[str]()
    while waiting:
        path = waiting.pop()
        if path in opened:
            continue
        opened.add(path)
        for client in (me, stranger):
            try:
                response = client.get(path, headers={"Accept": "text/html, */*"})
            except httpx.ReadTimeout:  # an event stream: what it sent is kept
                continue
            if client is me and "html" in response.headers.get("content-type", ""):
                links = re.findall(r"""(?:href|src)=["']([^"'#]+)""", response.text)
                here = [urlsplit(urljoin(str(response.url), link)) for link in links]
                same = [link.path for link in here if link.netloc == response.url.netloc.decode()]
                waiting += [link for link in same if "logout" not in link]
        drain()


class _Annotator:
    """Labels over the API, with every choice, undo, skip, flag and repeated request in turn."""

    def __init__(self, http: Any, store: Database, tells: Tells):
        self.http, self.store, self.tells = http, store, tells
        self.number = 0

    def make_mistakes(self) -> None:
        """Send requests that are refused: a refusal must reveal nothing either."""
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
        response = self.ask("GET", "/api/v1/tasks")
        answers: Counter[str] = Counter()
        while response["tasks"]:
            task = response["tasks"][0]
            self.number += 1
            answers[task["token"]] += 1
            purpose = self.purpose(task["token"])
            if answers[task["token"]] > 3:
                raise TrueupError(f"task {task['token']} comes back after every label")
            response |= self.answer(task, response["settings"], purpose)
            drain()
            progress(self.number, self.number + len(response["tasks"]) + response["progress"]["left"])
        self.ask("GET", "/api/v1/tasks")
        self.http.get("/api/v1/mirror")

    def purpose(self, token: str) -> str:
        """The purpose of the task, from the store."""
        with self.store.read() as db:
            return str(db.scalar(sa.select(view.c.purpose).where(view.c.token == token)))

    def told(self, purpose: str, request: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a request, and count its response under the purpose of the task."""
        began = time.perf_counter()
        value = self.ask(method, path, body)
        if purpose != "qualification" and self.number <= COMPARED:
            if request.startswith("label"):
                self.tells.seconds.setdefault(purpose, []).append(time.perf_counter() - began)
            self.tells.tell(purpose, request, self.last.status_code, getattr(self.last, "headers", ()), value)
        return value

    def look(self, purpose: str, after: str) -> None:
        """Read all that an annotator can read after an answer."""
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
        response = self.told(purpose, f"label, {what}", "POST", "/api/v1/labels", body)
        self.look(purpose, what)
        if self.number % 3 == 2 and not task["practice"]:
            self.ask("POST", "/api/v1/labels", body)  # sent twice
            response = self.told(purpose, f"undo of {what}", "POST", "/api/v1/undo", {"client_uuid": _uuid()})
            self.look(purpose, f"undo of {what}")
        return response

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
        """The known answer of a practice item, from the store, so that the round is passed."""
        query = sa.select(view.c.drawn, gold.c.tiers).join(gold, gold.c.item_id == view.c.item_id)
        with self.store.read() as db:
            item = db.execute(query.where(view.c.token == task["token"])).one()
        places = to_places(item.tiers, item.drawn)
        if len(item.drawn) > 2:
            return {"order": places}
        return {"choice": "tie" if len(places) == 1 else "ab"[places[0][0]]}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = self.last = self.http.request(method, path, json=body)
        if response.status_code != 200:
            raise TrueupError(f"{method} {path}: {response.status_code} {response.text[:200]}")
        value: dict[str, Any] = response.json()
        return value


def _uuid() -> str:
    return str(uuid.uuid4())


# ---- An annotator in a real browser -----------------------------------------------------------------------------

SETTLED_MS = 600
"""Wait after a pair is painted: the page ignores keys at first, which were meant for the last pair."""
KEYS = {"graded": "1234567", "plain": "12t"}


def in_chromium(address: str, cookie: str, session: str, app: Any, drain: Callable[[], None], tells: Tells) -> None:
    """Label in a real Chromium: plain pairs by their keys, other tasks by the page's own requests."""
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
        response = annotator.ask("GET", "/api/v1/tasks")
        while response["tasks"]:
            task, settings = response["tasks"][0], response["settings"]
            annotator.number += 1
            if len(task["answers"]) > 2 or task["practice"] or task["wants_rationale"] or settings["criteria"]:
                response |= annotator.answer(task, settings, annotator.purpose(task["token"]))
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
                response |= answered.value.json()
                pressed += 1
            drain()
        by_page = annotator.number - pressed
        say(f"Chromium {chromium.version}: {pressed} labels by a key, {by_page} by requests of the page")
        chromium.close()


class _InPage:
    """An HTTP client for `_Annotator` whose requests the page in the browser makes."""

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
