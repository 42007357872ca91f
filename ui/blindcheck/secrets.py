"""Texts that must not reach an annotator, and the search for them in the responses."""

from __future__ import annotations

import html
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import markupsafe
import sqlalchemy as sa

from trueup import runs
from trueup.stages import campaign_dir, stages_of
from ui.labels.config import LabelConfig
from ui.labels.tables import Database, account, event, item

TASK_KEYS = {"token", "prompt", "answers", "wants_rationale", "practice"}
ANSWER_KEYS = {"html", "text", "reasoning"}
PROVENANCE_KEYS = frozenset(
    "annotator candidates category checkpoint completions created_utc drawn finished first_shown item_id label_id logp "
    "logps model path policy policy_sha256 prompt_id propensity purpose reward run_dir sampled_by sampler score scores "
    "seed selection slot_id source split temperature tiers token_ids top_k top_p view_id words".split()
)
"""Names of provenance; none is a key of the labelling API's responses."""
COMPARED = 600
"""Number of tasks after which the effect of each one is compared."""
_KEY = 6
"""First characters by which identifiers are found; shorter ones are searched for as whole words."""


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
    secrets: dict[str, str] = {}

    def add(value: Any, what: str) -> None:
        for text in _distinctive(value):
            secrets.setdefault(text, what)

    with store.read() as db:
        for row in db.execute(sa.select(item)):
            add(row.item_id, "item id")
            add(row.prompt_id, "prompt id")
            for key, value in leaves_of(row.sampler):
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
    run_dir = campaign_dir(config.run_dir)
    for folder in {run_dir, run_dir.absolute(), run_dir.resolve()}:
        add(str(folder), "run directory")
    for stage in stages_of(run_dir):
        stage_result = runs.find_stage(run_dir, stage)
        if stage_result is not None:
            add(stage_result.sha256, f"manifest of {stage}")
            for key, value in leaves_of(stage_result.manifest.plain()):
                if key.endswith(("sha256", "git_commit", "model.name")) or str(value).startswith("/"):
                    add(value, f"{key} in the manifest of {stage}")
    return [Secret(text, what) for text, what in secrets.items()]


def leaves_of(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves_of(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves_of(inner, key)
    else:
        yield key, value


def _distinctive(value: Any) -> Iterator[str]:
    """The written forms of a value that cannot occur by chance: the 0.8 of a style sheet is no temperature."""
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
        yield text  # a word may occur anywhere, so it is searched for as a whole value: see Report
    elif text:
        # A path is also a URL's part, and text in JSON or HTML is escaped.
        in_html = {html.escape(text), str(markupsafe.escape(text))}  # quotes are written in two ways
        yield from {text, quote(text), quote(text, safe=""), *in_html, json.dumps(text)[1:-1]}


class Tells:
    """The responses to an annotator after each task, by the purpose of the task.

    A number counts by its change since the last response, a text by whether it has changed.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Counter[Any]]] = {}
        """feature: purpose: the count of each value."""
        self.seconds: dict[str, list[float]] = {}
        self._last: dict[tuple[bool, str], Any] = {}

    def tell(self, purpose: str, request: str, status: int, headers: Iterable[str], body: Any) -> None:
        """Count the features of one response after a task of this purpose."""
        values: dict[str, Any] = {"status": status, "headers": " ".join(sorted({name.lower() for name in headers}))}
        values["keys"] = " ".join(sorted(keys_of(without_texts(body))))
        if isinstance(body, dict):
            values["tasks"] = len(body.get("tasks") or ())
            values |= {key: self._change(request, key, value) for key, value in leaves_of(_without_tasks(body))}
        for key, value in values.items():
            self.counts.setdefault(f"{request}: {key}", {}).setdefault(purpose, Counter())[value] += 1

    def _change(self, request: str, key: str, value: Any) -> Any:
        kind = (request.startswith("mirror"), key)  # all other responses share their counters
        before = self._last.get(kind)
        self._last[kind] = value
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(before, int | float):
            return value if isinstance(value, bool) or value is None else (type(value).__name__, value == before)
        change = value - before
        return change if isinstance(change, int) else (change > 0) - (change < 0)

    def findings(self) -> Iterator[tuple[str, str]]:
        """Features that reveal a check, beyond chance, each with the difference."""
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
    """The body without its tasks and without the label itself."""
    return without_texts({key: value for key, value in body.items() if key not in ("tasks", "label", "settings")})


class Search:
    """Finds many texts in one pass, by a table of their first characters."""

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
    """The response to one request; an event stream or a web socket is recorded whole."""

    where: str
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    @property
    def kind(self) -> str:
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == b"content-type"), "")


class Recorder:
    """ASGI middleware around everything else, which records every byte that leaves the application."""

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


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys_of(inner)


def without_texts(value: Any) -> Any:
    """An API response without the texts for people."""
    texts = ("html", "text", "prompt", "guideline_html", "guideline_line", "explanation")
    if isinstance(value, dict):
        return {key: without_texts(inner) for key, inner in value.items() if key not in texts}
    return [without_texts(inner) for inner in value] if isinstance(value, list) else value
